"""Checkpoints of training: the latest ones, the best one, and what they were trained with.

A checkpoint is one Orbax folder `<folder>/latest/<step>` or `<folder>/best/<step>`, which appears
under its final name only when it is whole. It holds the state as NumPy arrays, which restore on
any number of devices and hosts, and a JSON record: the network, its data, its metrics.
"""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A restored checkpoint: its state (NumPy leaves), its JSON record, its step."""

    state: Any
    record: dict[str, Any]
    step: int


class CheckpointFolder:
    """The checkpoints of one training run.

    Use as a context manager: leaving it waits for the last save to be whole.

    Args:
        folder: where the checkpoints live; made if absent, unless `read_only`.
        keep: how many of the latest to keep, so that a damaged newest one is no loss.
        read_only: never change the folder: a trainer may be writing to it.
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        root = pathlib.Path(folder).absolute()
        self._unreadable: set[str] = set()
        self._managers = {
            kind: ocp.CheckpointManager(
                root / kind,
                options=ocp.CheckpointManagerOptions(read_only=True, create=False)
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
            manager.wait_until_finished()
            manager.close()

    def save(
        self, step: int, state: chex.ArrayTree, record: dict[str, Any], *, best: bool = False
    ) -> None:
        """Saves a state in the background.

        A step already saved is left as it is, unless `restore` found it unreadable.

        Args:
            step: number of updates behind the state.
            state: pytree of NumPy arrays, such as `parallel.unreplicate` returns.
            record: what to keep beside it, in JSON's types.
            best: whether to replace the best checkpoint rather than to add a latest one.
        """
        manager = self._managers["best" if best else "latest"]
        if step in manager.all_steps():
            if str(manager.directory / str(step)) not in self._unreadable:
                return
            manager.delete(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(np.asarray, state)),
            record=ocp.args.JsonSave(record),
        )
        manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when every save is whole."""
        for manager in self._managers.values():
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
            ValueError: if checkpoints exist but none can be read into the template.
        """
        manager = self._managers.get("best" if best else "latest")
        target = None if template is None else jax.tree.map(np.asarray, template)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        )

        def check(restored: Any) -> None:
            if target is not None:
                _check_shapes(restored.state, target)

        found = self._newest(manager, args, check)
        return found and Checkpoint(found[1].state, found[1].record, found[0])

    def record(self) -> dict[str, Any] | None:
        """Reads the newest sound record alone, whatever network its state is of."""
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        found = self._newest(self._managers.get("latest"), args, lambda restored: None)
        return found and found[1].record

    def _newest(
        self, manager: ocp.CheckpointManager | None, args: Any, check: Callable[[Any], None]
    ) -> tuple[int, Any] | None:
        if manager is None:
            return None
        problems = []
        for step in sorted(manager.all_steps(), reverse=True):
            path = str(manager.directory / str(step))
            try:
                restored = manager.restore(step, args=args)
                check(restored)
            # Orbax raises many kinds for a damaged folder; all are reported below.
            except Exception as error:
                self._unreadable.add(path)
                problems.append(f"{path}: {error}")
                _log.warning("checkpoint %s cannot be read, trying the one before", problems[-1])
                continue
            return step, restored
        if problems:
            raise ValueError(
                "no checkpoint fits the state to restore; the network, the data or the code "
                "may have changed since, or the files are damaged:\n" + "\n".join(problems)
            )
        return None


def _check_shapes(state: chex.ArrayTree, template: chex.ArrayTree) -> None:
    """Refuses arrays of other shapes than the template's, which Orbax hands out in silence."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, found), wanted in zip(leaves, jax.tree.leaves(template), strict=True):
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {found.dtype} {found.shape}, expected "
                f"{wanted.dtype} {wanted.shape}"
            )
