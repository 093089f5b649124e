"""Devices: moving data to and from them, and mapping an update over them."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saat_jax import parallel

NUM_DEVICES = 8


def _tree():
    return {
        "float": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "int": np.array(7, np.int32),
        "jax": jnp.arange(4.0),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float32),
        "nested": [np.float32(np.nan)],
        "none": None,
    }


def _update(state, batch, *, axis_name):
    """Adds up the rows of all devices, and keeps the rows in their global order."""
    total = lax.psum(jnp.sum(batch["x"]), axis_name)
    rows = lax.all_gather(batch["x"], axis_name, tiled=True)
    return {"total": state["total"] + total, "rows": rows}, {"mean": total / rows.size}


def test_the_suite_runs_on_eight_devices():
    assert jax.local_device_count() == NUM_DEVICES


def test_replicate_and_unreplicate_round_trip():
    tree = _tree()
    replicated = parallel.replicate(tree)
    for copies, value in zip(jax.tree.leaves(replicated), jax.tree.leaves(tree), strict=True):
        assert copies.shape == (NUM_DEVICES, *np.shape(value))
        assert len(copies.sharding.device_set) == NUM_DEVICES
        assert copies.addressable_shards[3].data.shape == (1, *np.shape(value))
    back = parallel.unreplicate(replicated)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for actual, value in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert isinstance(actual, np.ndarray | np.generic)
        assert actual.dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(actual, value)


def test_rows_are_split_evenly_or_not_at_all():
    tree = {"a": np.arange(16.0), "b": np.arange(32).reshape(16, 2)}
    split = parallel.split_rows(tree)
    assert split["b"].addressable_shards[1].data.shape == (2, 2)
    for name, value in tree.items():
        np.testing.assert_array_equal(split[name], value)
    whole = parallel.split_rows(np.arange(15.0))
    assert len(whole.sharding.device_set) == NUM_DEVICES and whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, np.arange(15.0))


def test_split_rows_and_whole_arrays_work_together():
    rows, matrix = np.arange(24.0).reshape(8, 3), np.arange(6.0).reshape(3, 2)
    product = jax.jit(jnp.matmul)(parallel.split_rows(rows), parallel.on_every_device(matrix))
    assert not product.sharding.is_fully_replicated
    np.testing.assert_array_equal(product, rows @ matrix)


def test_join_rows_in_one_process_is_what_it_has():
    have = np.array([True, False])
    values, joined = parallel.join_rows({"x": np.arange(2)}, have)
    np.testing.assert_array_equal(values["x"], [0, 1])
    np.testing.assert_array_equal(joined, have)


@pytest.mark.parametrize("mapping", parallel.MAPPINGS)
def test_map_update_worked_by_hand(mapping):
    # The rows 0 to 15 add up to 120, wherever they lie; their mean is 7.5.
    state = {"total": np.float32(1000), "rows": np.zeros(16, np.float32)}
    batch = parallel.shard_batch({"x": np.arange(16, dtype=np.float32)})
    mapped = parallel.map_update(_update, mapping=mapping)
    state, metrics = mapped(parallel.replicate(state), batch)
    assert parallel.replicas_agree((state, metrics))
    state = parallel.unreplicate(state)
    assert state["total"] == 1120
    np.testing.assert_array_equal(state["rows"], np.arange(16))
    assert parallel.unreplicate(metrics)["mean"] == 7.5


def test_an_unknown_mapping_is_refused():
    with pytest.raises(ValueError, match=r"unknown mapping 'vmap'; expected one of \['pmap', 'sh"):
        parallel.map_update(_update, mapping="vmap")


@pytest.mark.parametrize("mapping", parallel.MAPPINGS)
def test_a_mapped_update_consumes_its_state_and_nothing_of_the_caller(mapping):
    state = {"total": jnp.float32(1000), "rows": np.zeros(16, np.float32)}
    on_host = np.ones(16, np.float32)
    batch = parallel.shard_batch({"x": on_host})
    mapped = parallel.map_update(_update, mapping=mapping)
    ends = []
    for _ in range(2):
        replicated = parallel.replicate(state)
        end, _ = mapped(replicated, batch)
        assert replicated["total"].is_deleted()
        ends.append(parallel.unreplicate(end))
    assert ends[0]["total"] == ends[1]["total"] == 1016
    assert not state["total"].is_deleted() and state["total"] == 1000
    np.testing.assert_array_equal(state["rows"], np.zeros(16))
    np.testing.assert_array_equal(on_host, np.ones(16))


def test_what_was_fetched_outlives_the_state():
    # A checkpoint is written in the background while the next update reuses the memory.
    mapped = parallel.map_update(_update)
    batch = parallel.shard_batch({"x": np.ones(16, np.float32)})
    state = {"total": np.float32(0), "rows": np.zeros(16, np.float32)}
    replicated, _ = mapped(parallel.replicate(state), batch)
    fetched = parallel.unreplicate(replicated)
    before = jax.tree.map(np.copy, fetched)
    for _ in range(3):
        replicated, _ = mapped(replicated, batch)
    jax.tree.map(np.testing.assert_array_equal, fetched, before)


def test_shard_batch_gives_device_after_device_its_rows():
    images = np.arange(16 * 3).reshape(16, 3)
    sharded = parallel.shard_batch({"image": images, "index": np.arange(16)})
    assert sharded["image"].shape == (NUM_DEVICES, 2, 3)
    np.testing.assert_array_equal(sharded["index"][5], [10, 11])
    np.testing.assert_array_equal(sharded["image"][5], images[10:12])


@pytest.mark.parametrize("rows", [1, 12, 17])
def test_shard_batch_refuses_rows_that_do_not_divide(rows):
    message = (
        f"a batch must divide evenly over the 8 local devices, got {rows} rows; "
        "set the global batch size to a multiple of 8"
    )
    with pytest.raises(ValueError, match=message):
        parallel.shard_batch({"image": np.zeros((rows, 2))})


def test_replicas_agree_looks_at_every_device_and_every_bit():
    def diverge(x):
        return x + 1e-7 * (lax.axis_index(parallel.AXIS) == 6)

    same = parallel.replicate(_tree())
    assert parallel.replicas_agree(same)
    ones = np.ones((NUM_DEVICES, 3), np.float32)
    different = jax.pmap(diverge, axis_name=parallel.AXIS)(ones)
    assert not parallel.replicas_agree({"same": same, "different": different})


def test_a_job_has_the_cpus_it_was_given(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert parallel.num_cpus() == 3
    # Not every system tells.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert parallel.num_cpus() == 7
