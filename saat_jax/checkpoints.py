"""Checkpoints of training: the latest ones, the best one, and what they were trained with.

A checkpoint is one Orbax folder `<folder>/latest/<step>` or `<folder>/best/<step>`, which appears
under its final name only when it is whole. It holds the state as NumPy arrays, which restore on
any number of devices and hosts, and metadata as JSON (its part "record"): the network, its data,
its metrics. Orbax hands out flipped bits in silence, so that checksums of both are kept there.
"""

import contextlib
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A restored checkpoint: its state (NumPy leaves), its metadata in JSON's types, its step."""

    state: Any
    metadata: dict[str, Any]
    step: int


class CheckpointFolder:
    """The checkpoints of one training run.

    Use as a context manager: leaving it waits for the last save to be whole.

    Args:
        folder: where the checkpoints live; made if absent, unless `read_only`.
        keep: how many of the latest to keep, so that a damaged newest one is no loss.
        read_only: never change the folder: a trainer may be writing to it.
        fields: what the metadata of a sound checkpoint has.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        fields: Collection[str] = (),
    ):
        self._root = root = pathlib.Path(folder).absolute()
        self._fields = fields
        self._unreadable: set[str] = set()
        # Each process reads alone: one may see a folder, or fail to read, where others do not.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
        )
        self._managers = {
            kind: ocp.CheckpointManager(
                root / kind,
                options=ocp.CheckpointManagerOptions(
                    read_only=True, create=False, multiprocessing_options=alone
                )
                if read_only
                else ocp.CheckpointManagerOptions(
                    max_to_keep=count,
                    create=True,
                    cleanup_tmp_directories=True,
                    # Saves of both kinds are under way at once; among several processes they
                    # would wait for each other's barriers.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=kind
                    ),
                ),
            )
            for kind, count in (("latest", keep), ("best", 1))
            if not read_only or (root / kind).is_dir()
        }

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *_: object) -> None:
        for manager in self._managers.values():
            with _telling(manager):
                manager.close()

    def save(
        self, step: int, state: chex.ArrayTree, metadata: dict[str, Any], *, best: bool = False
    ) -> None:
        """Saves a state in the background.

        A step already saved is left as it is. What `restore` found unreadable is removed: of
        later steps, it would take the place of what is saved now.

        Args:
            step: number of updates behind the state.
            state: pytree of NumPy arrays, such as `parallel.unreplicate` returns.
            metadata: what to keep beside it, in JSON's types; a "step" in it must be `step`.
            best: whether to replace the best checkpoint rather than to add a latest one.

        Raises:
            OSError: if this or the last save fails, as on a full disk; the checkpoints that were
                there before are kept.
        """
        manager = self._managers["best" if best else "latest"]
        for found in manager.all_steps():
            if str(manager.directory / str(found)) in self._unreadable:
                manager.delete(found)
        if step in manager.all_steps():
            return
        state = jax.tree.map(np.asarray, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave({**metadata, "checksums": _checksums(state, metadata)}),
        )
        with _telling(manager):
            manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when every save is whole, or raises as `save` does."""
        for manager in self._managers.values():
            with _telling(manager):
                manager.wait_until_finished()

    def restore(
        self, template: chex.ArrayTree | None = None, *, best: bool = False
    ) -> Checkpoint | None:
        """Reads the newest checkpoint that is sound, or returns None if there is none.

        Args:
            template: pytree of arrays with the structure, shapes and dtypes to expect; without
                it the state comes back as nested dicts and lists.
            best: whether to read the best checkpoint rather than the latest.

        Raises:
            ValueError: if checkpoints exist but none can be read into the template, or if the
                processes of a job find different ones.
        """
        kind = "best" if best else "latest"
        found, problems = self._newest(kind, template)
        steps = _of_all(found.step if found else -1)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes find different steps in {self._root / kind}: {steps}, where -1 is "
                "none; the folder must lie on a disk that all share. Start again if it does"
            )
        if problems and not found:
            raise ValueError(
                "no checkpoint fits the state to restore; the network, the data or the code "
                "may have changed since, or the files are damaged:\n" + "\n".join(problems)
            )
        return found

    def _newest(
        self, kind: str, template: chex.ArrayTree | None
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that this process can read, and what is wrong with newer ones."""
        problems: list[str] = []
        if kind not in self._managers:
            return None, problems
        manager = self._managers[kind]
        target = None if template is None else jax.tree.map(np.asarray, template)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        )
        for step in sorted(manager.all_steps(), reverse=True):
            path = str(manager.directory / str(step))
            try:
                restored = self._reader.restore(path, args=args)
                state, metadata = restored.state, restored.record
                if target is not None:
                    _check_shapes(state, target)
                # Checkpoints made by earlier code have none.
                if metadata.pop("checksums", None) not in (None, _checksums(state, metadata)):
                    raise ValueError("its checksums differ: the files have changed since")
                if lacking := [name for name in self._fields if name not in metadata]:
                    raise ValueError(f"its metadata lacks {lacking}: it is of another version")
                if metadata.get("step", step) != step:
                    raise ValueError(f"it is of step {metadata['step']}: it was renamed")
            # Orbax raises many kinds for a damaged folder; all are reported below.
            except Exception as error:
                self._unreadable.add(path)
                problems.append(f"{path}: {error}")
                _log.warning("checkpoint %s cannot be read, trying the one before", problems[-1])
                continue
            return Checkpoint(state, metadata, step), problems
        return None, problems

    def metadata(self) -> dict[str, Any] | None:
        """Reads that of the newest sound checkpoint, whatever network its state is of."""
        found = self.restore()
        return found and found.metadata


def _without_closed_loops(report: Callable[[Any], None]) -> Callable[[Any], None]:
    """Leaves out what TensorStore's threads say of a loop that Orbax has closed at a fault.

    The fault itself is told; these would bury it under tracebacks, even where a recovery goes well.
    """

    def told(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    return told


sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


def _of_all(step: int) -> list[int]:
    """The steps that the processes have found."""
    return np.atleast_1d(multihost_utils.process_allgather(np.array(step))).tolist()


@contextlib.contextmanager
def _telling(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Makes one kind of the many that Orbax raises when a save fails, with what to do."""
    try:
        yield
    except Exception as error:
        cause = str(error).partition(" [tensorstore_spec")[0]
        raise OSError(
            f"a checkpoint in {manager.directory} cannot be saved; those saved before are kept. "
            "Mend the cause (free space on the disk?) and run the same command again: it goes on "
            f"from the newest. The cause: {cause}"
        ) from error


def _checksums(state: chex.ArrayTree, metadata: dict[str, Any]) -> dict[str, int]:
    """Of the arrays, in no order, as without a template another comes back; and of the metadata."""
    arrays = (
        zlib.crc32(np.ascontiguousarray(x).view(np.uint8).data) for x in jax.tree.leaves(state)
    )
    return {
        "state": sum(arrays) % 2**32,
        "record": zlib.crc32(json.dumps(metadata, sort_keys=True).encode()),
    }


def _check_shapes(state: chex.ArrayTree, template: chex.ArrayTree) -> None:
    """Refuses arrays of other shapes than the template's, which Orbax hands out in silence."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, found), wanted in zip(leaves, jax.tree.leaves(template), strict=True):
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {found.dtype} {found.shape}, expected "
                f"{wanted.dtype} {wanted.shape}"
            )
