"""What a run survives: damaged files, a full disk, a notice to one of two processes, other devices.

The training here counts in whole numbers, which come out the same however they are spread.
"""

import argparse
import contextlib
import errno
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import optax
import pytest
from jax import lax

from benchmarks import kill_and_resume
from configs import demo
from saat_jax import checkpoints, defenses, files, objectives, parallel, pipeline, training

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS, BATCH_SIZE, WIDTH = 40, 16, 4096


def _update(state, batch, *, axis_name):
    total = lax.psum(batch["number"].sum(0), axis_name)
    params = {"w": (3 * state.params["w"] + total) % 1009}
    return state.replace(step=state.step + 1, params=params), {"loss": params["w"].mean()}


def _batches(start_step, *, delay, fail_at):
    share = BATCH_SIZE // jax.process_count()
    for step in range(start_step, NUM_STEPS):
        time.sleep(delay)
        if step == fail_at:
            raise InterruptedError("stopped by the test")
        numbers = np.random.default_rng(step).integers(9, size=(BATCH_SIZE, WIDTH))
        yield {"number": numbers[jax.process_index() * share :][:share].astype(np.float32)}


def train(folder, *, delay=0.0, fail_at=None, evaluate=None, mapping="pmap"):
    """Trains to the end; `delay` seconds a step, and an error before step `fail_at`."""
    variables = {"params": {"w": np.zeros(WIDTH, np.float32)}}
    return training.train(
        _update,
        defenses.init_state(variables, optax.sgd(1.0), objectives.State()),
        lambda step: _batches(step, delay=delay, fail_at=fail_at),
        folder=folder,
        steps_per_epoch=10,
        num_epochs=NUM_STEPS // 10,
        schedule=lambda step: 1.0,
        metadata={"identity": {}},
        evaluate=evaluate,
        evaluate_every=NUM_STEPS,
        log_every=3,
        checkpoint_every=4,
        progress=False,
        mapping=mapping,
    )


def _start(code, *, devices=1):
    """Runs code in a process of its own, with this module as `t`."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests import recovery_test as t\n{code}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(final state, log) of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    return train(folder), (folder / "metrics.jsonl").read_bytes()


def _assert_ends_as(unbroken, folder):
    chex.assert_trees_all_equal(train(folder), unbroken[0])
    assert (folder / "metrics.jsonl").read_bytes() == unbroken[1]


# --- damaged files ---


def _save(folder, *steps):
    """Checkpoints of random arrays, which no compression makes smaller."""
    with checkpoints.CheckpointFolder(folder) as saved:
        for step in steps:
            saved.save(step, _state(step), {"step": step, "seed": 1234})


def _state(step):
    return {"w": np.random.default_rng(step).random(WIDTH, np.float32), "b": np.float32(step)}


def _largest(folder):
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_of_the_newest_state_is_noticed(tmp_path, caplog):
    _save(tmp_path, 1, 2)
    largest = _largest(tmp_path / "latest" / "2" / "state")
    _flip(largest, largest.stat().st_size // 2)
    for read_only in (True, False):
        with checkpoints.CheckpointFolder(tmp_path, read_only=read_only) as saved:
            for found in (saved.restore(), saved.restore(_state(0))):
                assert found.step == 1
                chex.assert_trees_all_equal(found.state, _state(1))
            # A record of a state that cannot be read says nothing true.
            assert saved.metadata() == {"step": 1, "seed": 1234}
    assert f"{tmp_path / 'latest' / '2'}: its checksums differ" in caplog.text


def test_a_changed_digit_of_the_newest_record_is_noticed(tmp_path, caplog):
    _save(tmp_path, 1, 2)
    path = tmp_path / "latest" / "2" / "record" / "metadata"
    _flip(path, path.read_bytes().index(b"1234") + 3)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.metadata() == {"step": 1, "seed": 1234}
    assert "its checksums differ" in caplog.text


def test_an_empty_folder_in_place_of_the_newest_checkpoint(tmp_path):
    _save(tmp_path, 1)
    (tmp_path / "latest" / "2").mkdir()
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore(_state(0)).step == 1
        saved.save(2, _state(2), {})
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        chex.assert_trees_all_equal(saved.restore().state, _state(2))


def test_a_checkpoint_without_checksums_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_checksums", lambda state, record: None)
    _save(tmp_path, 1)
    monkeypatch.undo()
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore().step == 1


def test_a_finished_run_whose_end_is_damaged_is_trained_to_its_end_again(tmp_path, unbroken):
    train(tmp_path)
    largest = _largest(tmp_path / "checkpoints" / "latest" / str(NUM_STEPS) / "state")
    _flip(largest, largest.stat().st_size // 2)
    _assert_ends_as(unbroken, tmp_path)
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints", read_only=True) as saved:
        assert saved.restore().step == NUM_STEPS


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        (None, r"cannot be read \(.*"),
        ({"target_labels": np.zeros((40, 10))}, r"lacks the arrays \['made_for'\]"),
        ({"made_for": np.array("this run")}, r"lacks the arrays \['target_labels'\]"),
        (
            {"made_for": ..., "target_labels": np.zeros((3, 10))},
            r"must have target_labels of shape",
        ),
        ({"made_for": ..., "target_labels": np.full((40, 10), "a")}, "must have target_labels of"),
    ],
)
def test_damaged_target_labels_are_named(tmp_path, arrays, fault):
    config = demo.get_config("smoke").to_dict()
    run = pipeline.Run(config, tmp_path)
    path = tmp_path / "targets.npz"
    if arrays is None:
        path.write_bytes(b"PK")
    else:
        sound = files.read_arrays(path)
        np.savez(path, **{k: sound[k] if v is ... else v for k, v in arrays.items()})
    with pytest.raises(ValueError, match=rf"{path} {fault}.*; delete it and start again"):
        pipeline.Run(config, tmp_path, run.data)


def test_what_a_closed_loop_is_told_is_left_out():
    told = []
    report = checkpoints._without_closed_loops(told.append)
    for words in ("Event loop is closed", "out of memory"):
        report(argparse.Namespace(exc_value=RuntimeError(words)))
    assert [str(one.exc_value) for one in told] == ["out of memory"]


@pytest.mark.parametrize("damage", ["zero", "gone", "half"])
def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path, damage):
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        for step in (1, 2):
            # Many arrays: TensorStore reads them at once, and finds one fault after the other.
            saved.save(step, {str(i): np.arange(9.0 + i) for i in range(40)}, {"step": step})
    for path in (tmp_path / "latest" / "2" / "state").rglob("*"):
        if damage == "half" and path.name == "manifest.ocdbt":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage != "half" and path.parent.name == "d" and path.is_file():
            path.write_bytes(bytes(path.stat().st_size)) if damage == "zero" else path.unlink()
    process = _start(f"""
import logging
from saat_jax import checkpoints
logging.getLogger("absl").setLevel(logging.CRITICAL)
with checkpoints.CheckpointFolder({str(tmp_path)!r}, read_only=True) as saved:
    print("step", saved.restore().step)
""")
    output, _ = process.communicate(timeout=120)
    assert "step 1\n" in output and "2: " in output, output
    assert "Traceback" not in output and "Event loop" not in output, output


# --- a full disk ---


@contextlib.contextmanager
def _no_file_longer_than(size):
    """Makes writing fail as on a full disk, for all threads and for Orbax's C++ too."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_checkpoint_that_has_no_room_keeps_those_before(tmp_path):
    _save(tmp_path, 1)
    message = (
        f"a checkpoint in {tmp_path / 'latest'} cannot be saved; those saved before are kept. "
        r"Mend the cause \(free space on the disk\?\) and run the same command again"
    )
    with _no_file_longer_than(WIDTH), pytest.raises(OSError, match=message) as error:
        _save(tmp_path, 2, 3)
    assert os.strerror(errno.EFBIG) in str(error.value)
    assert "tensorstore_spec" not in str(error.value)
    with checkpoints.CheckpointFolder(tmp_path) as saved:
        assert saved.restore().step == 1
        saved.save(2, _state(2), {})
        saved.wait()
        assert saved.restore().step == 2


def test_a_run_goes_on_when_the_disk_has_room_again(tmp_path, unbroken):
    with pytest.raises(InterruptedError):
        train(tmp_path, fail_at=15)
    with _no_file_longer_than(WIDTH), pytest.raises(OSError, match="run the same command again"):
        train(tmp_path)
    _assert_ends_as(unbroken, tmp_path)


# TensorBoard's own thread ends on it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_that_has_no_room_says_so_and_closes(tmp_path):
    log = training.MetricsLog(tmp_path)
    log.write(1, 0.5, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    with _no_file_longer_than(path.stat().st_size + 5):
        with pytest.raises(OSError, match=f"{path} cannot be written; what was saved before is"):
            log.write(2, 1.0, {"loss": 0.5})
        log.close()
    log = training.MetricsLog(tmp_path, first_step=2)
    log.close()
    assert path.read_text() == '{"step": 1, "epoch": 0.5, "loss": 1.0}\n'


def test_a_file_that_has_no_room_keeps_the_old_one(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, {"old": True})
    with _no_file_longer_than(100), pytest.raises(OSError, match="run the same command again"):
        files.write_json(path, {"new": "x" * 200})
    assert path.read_text() == '{\n "old": true\n}'
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_run_without_room_says_what_to_do(tmp_path):
    # What the launcher prints instead of a traceback.
    config = demo.get_config("smoke").to_dict()
    message = f"{tmp_path / 'targets.npz'} cannot be written; .* run the same command again"
    with _no_file_longer_than(100), pytest.raises(OSError, match=message):
        pipeline.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


# --- notices, other devices, other processes ---


def test_a_notice_during_the_last_evaluation_is_heard(tmp_path, unbroken):
    def evaluate(state):
        if state.step == NUM_STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    message = f"stopped by SIGTERM at step {NUM_STEPS} of {NUM_STEPS}, saved"
    with pytest.raises(training.Interrupted, match=message):
        train(tmp_path, evaluate=evaluate)
    chex.assert_trees_all_equal(train(tmp_path, fail_at=0), unbroken[0])


def test_one_device_goes_on_where_eight_stopped_and_the_reverse(tmp_path, unbroken):
    assert jax.device_count() == 8
    with pytest.raises(InterruptedError):
        train(tmp_path / "from_8", fail_at=18)
    folders = f"{str(tmp_path / 'from_8')!r}, {str(tmp_path / 'from_1')!r}"
    process = _start(f"""
import jax
assert jax.device_count() == 1
from_8, from_1 = {folders}
t.train(from_8, mapping="shard_map")
try:
    t.train(from_1, fail_at=18)
except InterruptedError:
    print("stopped")
""")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped" in output, output
    with checkpoints.CheckpointFolder(tmp_path / "from_8" / "checkpoints") as saved:
        found = saved.restore(unbroken[0])
    chex.assert_trees_all_equal(found.state, unbroken[0])
    assert (tmp_path / "from_8" / "metrics.jsonl").read_bytes() == unbroken[1]
    with checkpoints.CheckpointFolder(tmp_path / "from_1" / "checkpoints") as saved:
        assert saved.restore().step == 16
    _assert_ends_as(unbroken, tmp_path / "from_1")


@pytest.mark.parametrize("mapping", parallel.MAPPINGS)
def test_a_notice_to_one_of_two_processes_stops_both_at_one_step(tmp_path, unbroken, mapping):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path / "run"
    processes = [
        _start(f"""
from saat_jax import parallel
parallel.start({address!r}, 2, {number})
t.train({str(folder)!r}, delay=0.05, mapping={mapping!r})
""")
        for number in range(2)
    ]
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/latest/[0-9]")):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    pattern = rf"stopped by SIGTERM at step (\d+) of {NUM_STEPS}, saved"
    steps = {int(re.search(pattern, output).group(1)) for output in outputs}
    (step,) = steps
    with checkpoints.CheckpointFolder(folder / "checkpoints", read_only=True) as saved:
        assert saved.restore().step == step
    # In one process of eight devices.
    _assert_ends_as(unbroken, folder)


# --- the script that kills a run at random moments ---


@pytest.mark.parametrize(
    ("output", "phase"),
    [
        ("", "start"),
        ("note: no bars\n", "start"),
        ("\rmodels/pretrained:   0%|   | 0/12\rmodels/pretrained:  50%|=  | 6/12", "training"),
        ("\rmodels/hardened: 100%|===| 12/12\nencode database:  80%|== | 128/160", "encoding"),
        ("encode train: 100%|===| 96/96\n", "evaluation"),
        ("encode train: 100%|===| 96/96\nattack mainstay_targeted:   0%|", "attack"),
        ("attack mainstay: 100%|===| 40/40\nreport: x", "evaluation"),
    ],
)
def test_what_a_killed_run_was_doing_is_read_from_its_output(output, phase):
    assert kill_and_resume.phase_of(output, saving=False) == phase
    assert kill_and_resume.phase_of(output, saving=True) == "checkpointing"


def test_differences_of_two_runs_are_named():
    one = {"a": np.float32([1, 0]), "b": b"x", "c": {"d": 1}}
    same = {"a": np.float32([1, 0]), "b": b"x", "c": {"d": 1}}
    assert kill_and_resume.differences(one, same) == []
    # Equal in value, not in bits; of another type; absent.
    two = {"a": np.float32([1, -0.0]), "b": b"y", "d": 0}
    assert kill_and_resume.differences(one, two) == ["a", "b", "c", "d"]
    assert kill_and_resume.differences(one, same | {"a": np.float64([1, 0])}) == ["a"]
