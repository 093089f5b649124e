"""Devices: the one place that maps an update over them, and moves data to and from them.

An update is a pure per-device function `update(state, batch, *, axis_name) -> (state, metrics)`.
The state is the same on every device; a batch is a share of the global batch. Collectives run
over the axis `AXIS`, over all devices of all processes.
"""

import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from saat_jax import options

Array = jax.Array

AXIS = "devices"


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 120,
) -> None:
    """Joins this process to the others of a job; call it before anything else of JAX.

    Without arguments the job is found from its environment: Slurm, Open MPI, Cloud TPU, GKE.

    Args:
        coordinator: "ADDRESS:PORT" of the first process.
        num_processes: number of processes.
        process_id: which of them this is.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: if there is nothing to find the job from, or the address has no port.
        TimeoutError: if the others did not come.
    """
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"the coordinator must be ADDRESS:PORT, got {coordinator!r}")
    problems: list[Exception] = []

    def connect() -> None:
        try:
            # JAX ends the process when its own time is over: ours is over first.
            jax.distributed.initialize(
                coordinator, num_processes, process_id, initialization_timeout=int(timeout) + 600
            )
        except Exception as error:
            problems.append(error)

    print(f"waiting up to {timeout:g} s for the other processes", file=sys.stderr, flush=True)
    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(timeout)
    if connecting.is_alive():
        raise TimeoutError(
            f"not all {num_processes or ''} processes came within {timeout:g} s"
            f"{coordinator and f' to {coordinator}' or ''}; start all of them, the first (process "
            "0) at that address, where the others can reach it"
        )
    for problem in problems:
        if not isinstance(problem, ValueError):
            raise problem
        raise ValueError(
            f"no job of several processes found ({problem}); start the processes by Slurm, Open "
            "MPI or on a TPU pod, or name --coordinator, --num_processes and --process_id"
        ) from problem
    check_platform()
    # On a CPU the first collective fails where a process comes half a minute late; this waits.
    wait_for_all("start")


def check_platform() -> None:
    """Starts JAX's devices; to be called before anything asks for them.

    Raises:
        ValueError: if the platform that the environment names is not there.
    """
    try:
        jax.devices()
    # JAX has no word of its own for a plugin that is not installed.
    except (RuntimeError, AssertionError) as error:
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", None)
        there = sorted({device.platform for device in jax.devices()})
        # Without JAX's advice, which ours repeats.
        reason = str(error).partition(" (set JAX")[0].rstrip(".")
        raise ValueError(
            f"no device of the platform {wanted!r}{reason and f' ({reason})'}; this machine has "
            f"{there}: unset JAX_PLATFORMS to take what there is, or install JAX for that "
            "platform, such as pip install 'jax[cuda13]'"
        ) from error


def wait_for_all(place: str) -> None:
    """Returns when every process of the job has come to a place of that name."""
    multihost_utils.sync_global_devices(place)


def num_cpus() -> int:
    """Counts the CPUs that this process may use, which a job can have fewer of than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def on_cpu() -> bool:
    """Whether programs are compiled for the CPU, which wants some operations in other forms."""
    return jax.default_backend() == "cpu"


def split_rows(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Puts arrays on this process' devices, an equal share of the rows on each.

    A function under `jax.jit` then works on all of them. Rows that do not divide evenly are put
    on each device whole, so that all do the same.
    """
    even = all(len(x) % jax.local_device_count() == 0 for x in jax.tree.leaves(tree))
    return jax.device_put(tree, _sharding(AXIS) if even else _sharding())


def on_every_device(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Puts whole arrays on each of this process' devices, to be used beside split rows."""
    return jax.device_put(tree, _sharding())


def join_rows(values: chex.ArrayTree, have: np.ndarray) -> tuple[chex.ArrayTree, np.ndarray]:
    """Takes each row of some arrays from the process that has it.

    Args:
        values: NumPy arrays `[rows, ...]`, of one shape on all processes.
        have: `[rows]` bool, which rows are this process'.

    Returns:
        The joined arrays, and which rows any process has.
    """
    if jax.process_count() == 1:
        return values, have
    everyone, owned = multihost_utils.process_allgather((values, have))
    owner, rows = np.argmax(owned, axis=0), np.arange(len(have))
    return jax.tree.map(lambda x: np.asarray(x)[owner, rows], everyone), owned.any(axis=0)


def describe_devices() -> str:
    """All devices of the job in words, such as "8 x NVIDIA H100"."""
    devices = jax.devices()
    return f"{len(devices)} x {'CPU' if on_cpu() else devices[0].device_kind}"


def map_update(
    update: Callable[..., Any], *, donate: bool = True, mapping: str = "pmap"
) -> Callable[..., Any]:
    """Maps a per-device update over all devices.

    Args:
        update: as the head of this file says.
        donate: whether the state passed in is consumed: its memory is that of the next.
        mapping: one of `MAPPINGS`, which give the same bits.
    """
    mapped = functools.partial(update, axis_name=AXIS)
    return MAPPINGS[mapping](mapped, (0,) if donate else ())


def _pmap(update: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
    return jax.pmap(update, axis_name=AXIS, donate_argnums=donated)


def _shard_map(update: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
    """The same as a program of all devices, each of which has one row of every array."""
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec(AXIS))

    def of_one_device(*rows: chex.ArrayTree) -> Any:
        return jax.tree.map(lambda x: x[None], update(*jax.tree.map(lambda x: x[0], rows)))

    rows = PartitionSpec(AXIS)
    mapped = jax.shard_map(
        of_one_device, mesh=everywhere.mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    program = jax.jit(mapped, donate_argnums=donated)

    def of_all(x: Any) -> Array:
        """The rows of all processes, of which this one has its own."""
        local = jax.device_put(x, _sharding(AXIS)) if isinstance(x, np.ndarray) else x
        if len(local) == jax.device_count():
            return local
        shape = (jax.device_count(), *local.shape[1:])
        parts = [shard.data for shard in local.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, everywhere, parts)

    return lambda *trees: program(*jax.tree.map(of_all, trees))


MAPPINGS = options.Choices("mapping", {"pmap": _pmap, "shard_map": _shard_map})


def global_sum(tree: chex.ArrayTree, axis_name: str | None) -> chex.ArrayTree:
    """Adds up every device's arrays, within an update; without an axis there is one device."""
    return lax.psum(tree, axis_name) if axis_name else tree


def all_rows(tree: chex.ArrayTree, axis_name: str | None) -> chex.ArrayTree:
    """Joins the rows of all devices, within an update, in the order of the global batch."""
    return lax.all_gather(tree, axis_name, tiled=True) if axis_name else tree


def mean_shares(mask: Array, axis_name: str | None) -> Callable[[Any], Any]:
    """How a device's `[rows]` losses count in their means over the real rows of all devices.

    Args:
        mask: `[rows]` 1 for real rows, 0 for padding.
        axis_name: the mapped axis of the devices, if any.

    Returns:
        Maps losses, or a dict of them, to scalars, of which the sum over devices is the mean.
    """
    count = global_sum(jnp.sum(mask), axis_name)
    return functools.partial(jax.tree.map, lambda losses: jnp.sum(losses * mask) / count)


def batch_moments(
    values: Array, mask: Array, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    """Mean, variance and unbiased variance of a batch, over all axes but the last.

    Args:
        values: `[rows, ..., channels]`.
        mask: `[rows]` 1 for real rows, 0 for padding.
        axis_name: the mapped axis of the devices, over whose rows to take them, if any.

    Returns:
        Three arrays `[channels]`.
    """
    weights = mask.reshape(-1, *(1,) * (values.ndim - 1))

    def total(values: Array) -> Any:
        return global_sum(jnp.sum(values * weights, tuple(range(values.ndim - 1))), axis_name)

    count = jnp.maximum(total(jnp.ones_like(values[..., :1])), 1)
    mean = total(values) / count
    var = total(jnp.square(values - mean)) / count
    return mean, var, var * count / jnp.maximum(count - 1, 1)


def replicate(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Copies a pytree onto every local device, along a new leading axis."""
    count = jax.local_device_count()

    def place(x: Any) -> Array:
        # Copied for each device: a donated buffer must never be the caller's own.
        return jax.make_array_from_callback(
            (count, *np.shape(x)), _sharding(AXIS), lambda _: np.array(x, copy=True)[None]
        )

    return jax.tree.map(place, tree)


def unreplicate(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Fetches one device's copy of a replicated pytree as NumPy arrays."""
    # Not x[0], which would first copy the row to all devices.
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def shard_batch(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits this process' rows of a batch evenly over its devices, in order.

    Raises:
        ValueError: if the rows do not divide evenly.
    """
    count = jax.local_device_count()
    rows = len(next(iter(batch.values())))
    if rows % count:
        raise ValueError(
            f"a batch must divide evenly over the {count} local devices, got {rows} rows; "
            f"set the global batch size to a multiple of {count * jax.process_count()}"
        )
    return {name: x.reshape(count, rows // count, *x.shape[1:]) for name, x in batch.items()}


def replicas_agree(tree: chex.ArrayTree) -> bool:
    """Whether every local device holds the same bits of a replicated pytree."""
    return all(
        np.array_equal(np.asarray(x), np.broadcast_to(np.asarray(x)[:1], x.shape), equal_nan=True)
        for x in jax.tree.leaves(tree)
    )
