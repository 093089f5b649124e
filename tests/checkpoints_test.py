"""Checkpoints: what comes back, what is kept, and what a damaged or half-written one does."""

import logging
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import checkpoints, defenses, objectives

METADATA = {"model": {"name": "convnet", "widths": [4, 4]}, "best_map": 0.25}


def _state(step, *, num_bits=6, saat=True):
    """A training state of step `step`, whose every number differs from step to step."""
    rng = np.random.default_rng(step)
    params = {"hash": {"kernel": rng.normal(size=(5, num_bits)).astype(np.float32)}}
    variables = {"params": params, "batch_stats": {"norm": {"mean": np.float32(rng.random(3))}}}
    bank = objectives.CodeBank(rng.random((7, num_bits)), rng.integers(0, 2, (7, 3)))
    bank = jax.tree.map(np.float32, bank)
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda _: 1.0))
    state = defenses.init_state(
        variables, optimizer, objectives.State(bank=bank), bank if saat else None
    )
    return jax.tree.map(np.asarray, state.replace(step=jnp.int32(step)))


def _save(folder, *steps):
    with checkpoints.CheckpointFolder(folder) as saved:
        for step in steps:
            saved.save(step, _state(step), METADATA)


def _kept(folder, kind):
    return sorted(path.name for path in (folder / kind).iterdir())


def _truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("saat", [True, False])
def test_a_state_comes_back_with_its_types_and_bits(tmp_path, saat):
    state = _state(3, saat=saat)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore(state) is None
        saved.save(3, state, METADATA)
        saved.wait()
        found = saved.restore(_state(0, saat=saat))
    assert found.step == 3 and found.metadata == METADATA
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.state, state)
    chex.assert_trees_all_equal(found.state, state)
    assert isinstance(found.state, defenses.TrainState)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.state))


def test_without_a_template_a_state_comes_back_as_dicts(tmp_path):
    _save(tmp_path, 3)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        found = saved.restore()
    state = _state(3)
    assert isinstance(found.state, dict)
    np.testing.assert_array_equal(
        found.state["params"]["hash"]["kernel"], state.params["hash"]["kernel"]
    )
    np.testing.assert_array_equal(
        found.state["batch_stats"]["norm"]["mean"], state.batch_stats["norm"]["mean"]
    )
    np.testing.assert_array_equal(
        found.state["objective"]["bank"]["codes"], state.objective.bank.codes
    )
    assert found.metadata == METADATA


def test_a_saved_state_may_change_at_once(tmp_path):
    # The save goes on in the background.
    state = jax.tree.map(np.copy, _state(1))
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        saved.save(1, state, METADATA)
        saved.wait()
        jax.tree.map(lambda x: x.fill(0) if x.ndim else None, state)
        found = saved.restore(state)
    chex.assert_trees_all_equal(found.state, _state(1))


def test_the_latest_two_and_the_best_one_are_kept(tmp_path):
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        for step in (1, 2, 3, 4):
            saved.save(step, _state(step), METADATA)
        for step in (2, 3):
            saved.save(step, _state(step), {"best_map": step / 10}, best=True)
        saved.wait()
        assert saved.restore(_state(0)).step == 4
        best = saved.restore(_state(0), best=True)
    assert _kept(tmp_path, "latest") == ["3", "4"]
    assert _kept(tmp_path, "best") == ["3"]
    assert best.step == 3 and best.metadata == {"best_map": 0.3}
    chex.assert_trees_all_equal(best.state, _state(3))


def test_a_step_already_saved_is_left_as_it_is(tmp_path):
    _save(tmp_path, 1)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        saved.save(1, _state(2), {"other": True})
        saved.wait()
        found = saved.restore(_state(0))
    assert found.metadata == METADATA
    chex.assert_trees_all_equal(found.state, _state(1))


@pytest.mark.parametrize("part", ["state", "record", ""])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, part):
    _save(tmp_path, 1, 2)
    _truncate(tmp_path / "latest" / "2" / part)
    with (
        caplog.at_level(logging.WARNING, "saat_jax.checkpoints"),
        checkpoints.CheckpointFolder(tmp_path) as saved,
    ):
        found = saved.restore(_state(0))
    assert found.step == 1
    chex.assert_trees_all_equal(found.state, _state(1))
    assert f"{tmp_path / 'latest' / '2'}" in caplog.text
    assert "cannot be read, trying the one before" in caplog.text


@pytest.mark.parametrize("between", [(), (2,), (2, 3)])
def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path, between):
    _save(tmp_path, 1, 4)
    _truncate(tmp_path / "latest" / "4")
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore(_state(0)).step == 1
        for step in between:
            saved.save(step, _state(step), METADATA)
            saved.wait()
            # A run that is stopped here must find this step, not an older one.
            assert saved.restore(_state(0)).step == step
        saved.save(4, _state(4), METADATA)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        found = saved.restore(_state(0))
    assert found.step == 4
    chex.assert_trees_all_equal(found.state, _state(4))


def test_a_half_written_folder_is_not_a_checkpoint(tmp_path):
    _save(tmp_path, 1)
    latest = tmp_path / "latest"
    # What a kill during a save leaves behind.
    shutil.copytree(latest / "1", latest / "2.orbax-checkpoint-tmp")
    _truncate(latest / "2.orbax-checkpoint-tmp")
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore(_state(0)).step == 1
        saved.save(2, _state(2), METADATA)
    assert _kept(tmp_path, "latest") == ["1", "2"]
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        chex.assert_trees_all_equal(saved.restore(_state(0)).state, _state(2))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: _state(0, num_bits=8), id="other shapes"),
        pytest.param(lambda: _state(0, saat=False), id="other structure"),
    ],
)
def test_a_state_of_another_network_is_refused(tmp_path, other):
    _save(tmp_path, 1, 2)
    with (
        checkpoints.CheckpointFolder(tmp_path) as saved,
        pytest.raises(ValueError, match="no checkpoint fits the state to restore") as error,
    ):
        saved.restore(other())
    assert str(tmp_path / "latest" / "2") in str(error.value)
    # They are still there for who asks with the right state.
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore(_state(0)).step == 2


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _save("run/checkpoints", 1)
    with checkpoints.CheckpointFolder(pathlib.Path("run/checkpoints")) as saved:
        assert saved.restore().step == 1


def test_reading_changes_nothing(tmp_path):
    with checkpoints.CheckpointFolder(tmp_path / "absent", read_only=True) as saved:
        assert saved.restore() is None and saved.metadata() is None
    assert not (tmp_path / "absent").exists()
    _save(tmp_path, 1)
    # What a trainer in another process is just writing.
    unfinished = tmp_path / "latest" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with checkpoints.CheckpointFolder(tmp_path, read_only=True) as saved:
        assert saved.restore().step == 1 and saved.restore(best=True) is None
    assert unfinished.is_dir()


def test_processes_that_find_different_steps_are_stopped(tmp_path, monkeypatch):
    _save(tmp_path, 1, 2)
    monkeypatch.setattr(checkpoints, "_of_all", lambda step: [step, 1])
    with checkpoints.CheckpointFolder(tmp_path, read_only=True) as saved:
        with pytest.raises(ValueError, match=r"find different steps in .*latest: \[2, 1\], where"):
            saved.restore()
        with pytest.raises(ValueError, match=r"find different steps in .*best: \[-1, 1\], where"):
            saved.restore(best=True)
