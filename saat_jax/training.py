"""The training loop: data, update, log, checkpoint, evaluate; and start again where it stopped."""

import contextlib
import json
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import chex
import jax
import numpy as np
from jax.experimental import multihost_utils
from tensorboardX import SummaryWriter
from tqdm import tqdm

from saat_jax import checkpoints, defenses, files, parallel
from saat_jax.optimizers import Schedule

# What an update changes: a dataclass with at least `step` and `params`.
State = Any


class Interrupted(SystemExit):
    """Training was asked to stop (SIGTERM) and has saved its state."""


class MetricsLog:
    """Metrics by step, as JSON lines and for TensorBoard.

    Args:
        folder: gets `metrics.jsonl` and TensorBoard's event files.
        first_step: lines after this step are dropped: a run that resumes there writes them
            again, and the file ends as if the run had never stopped.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int = -1):
        self._file: TextIO | None = None
        if jax.process_index() > 0:
            return
        path = folder / "metrics.jsonl"
        kept = [line for line in files.whole_lines(path) if json.loads(line)["step"] <= first_step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")  # noqa: SIM115, closed by close()
        # Any number may wait: its thread ends on a full disk, and must not hold up this one.
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1, max_queue=0)

    def write(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Appends one line, on the first process only."""
        if self._file is None:
            return
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        with files.telling(pathlib.Path(self._file.name)):
            line = json.dumps({"step": step, "epoch": round(epoch, 4), **metrics})
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Writes out what is buffered, if the disk has room."""
        if self._file is None:
            return
        try:
            self._board.close()
            self._file.close()
        except OSError:
            # Lines were flushed one by one: only TensorBoard's last events are lost. It would try
            # again at exit, and bury what is said of a full disk.
            self._board.file_writer.event_writer.flush = lambda: None
            with contextlib.suppress(OSError):
                self._board.close()


class StopSignal:
    """Turns SIGTERM, the notice of pre-emption, into a flag that the loop reads."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> "StopSignal":
        # Python allows handlers in the main thread only; elsewhere the signal kills as before.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, *_: object) -> None:
        self.received = True

    def on_any_process(self) -> bool:
        """Whether any process was told to stop: all must save the same step."""
        if jax.process_count() == 1:
            return self.received
        return bool(multihost_utils.process_allgather(np.array(self.received)).any())


def variables_of(state: defenses.TrainState) -> dict[str, Any]:
    """The network's variables in a training state, as `encode_fn` takes them."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def train(
    update: Callable[..., tuple[State, Any]],
    state: State,
    batches_from: Callable[[int], Iterable[dict[str, np.ndarray]]],
    *,
    folder: str | pathlib.Path,
    steps_per_epoch: int,
    num_epochs: int,
    schedule: Schedule,
    record: dict[str, Any],
    evaluate: Callable[[State], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    log_every: int = 20,
    checkpoint_every: int = 500,
    title: str = "train",
    progress: bool = True,
    donate: bool = True,
) -> State:
    """Trains to the last epoch, resuming from the folder's latest checkpoint if it has one.

    The result depends on the arguments alone: a run that was killed and resumed ends with the
    same bits as one that was not.

    Args:
        update: a per-device update, as `parallel` describes it; a metric is "loss".
        state: the state to begin with.
        batches_from: maps a step to the batches from that step on, each this process' rows.
        folder: gets `checkpoints/`, `metrics.jsonl` and TensorBoard's files.
        steps_per_epoch: number of batches in an epoch.
        num_epochs: number of epochs.
        schedule: learning rate by step, for the log.
        record: what to store in every checkpoint, in JSON's types; a checkpoint of another
            "identity" entry is refused.
        evaluate: maps a state with NumPy leaves to metrics; "map" decides the best checkpoint.
        evaluate_every: epochs between evaluations; one comes before the first step, for what
            training starts from, and one after the last epoch.
        log_every: steps between log lines; each is the mean over these steps.
        checkpoint_every: steps between checkpoints; each epoch's end has one too.
        title: of the progress bar.
        progress: whether to show the bar.
        donate: see `parallel.pmap_update`.

    Returns:
        The final state, with NumPy leaves.

    Raises:
        FloatingPointError: if a logged metric is NaN or infinite, naming the steps.
        Interrupted: after SIGTERM, with the state saved.
        OSError: if a checkpoint or the log cannot be written, as on a full disk.
        ValueError: if the folder holds another run, none of its checkpoints can be read, or the
            processes of a job find different ones.
    """
    folder = pathlib.Path(folder)
    num_steps = steps_per_epoch * num_epochs
    with (
        checkpoints.CheckpointFolder(folder / "checkpoints") as saved,
        StopSignal() as stop,
        contextlib.ExitStack() as at_end,
    ):
        best_map, pending = -1.0, []
        # Before the state, whose shapes differ where the settings do.
        if (before := saved.record()) is not None:
            check_identity(before["identity"], record["identity"], folder)
        found = saved.restore(state)
        if found is not None:
            state = found.state
            best_map, pending = found.record["best_map"], found.record["pending"]
        step = int(state.step)
        log = MetricsLog(folder, first_step=step if found else -1)
        at_end.callback(log.close)
        if evaluate and found is None:
            log.write(step, 0.0, evaluate(state))
        hidden = not progress or jax.process_index() > 0
        bar = tqdm(total=num_steps, initial=step, desc=title, disable=hidden, unit="step")
        # Closed, it leaves the next line to the message of a stop or an error.
        at_end.callback(bar.close)
        mapped = parallel.pmap_update(update, donate=donate)
        replicated = parallel.replicate(state)
        batches = iter(batches_from(step)) if step < num_steps else iter(())

        def save(host: State, *, best: bool) -> None:
            reached = {"step": step, "num_steps": num_steps, "best_map": best_map}
            # A copy: the save goes on in the background.
            saved.save(step, host, {**record, **reached, "pending": [*pending]}, best=best)

        stopped = False
        while step < num_steps and not stopped:
            replicated, metrics = mapped(replicated, parallel.shard_batch(next(batches)))
            pending.append(metrics)
            step += 1
            bar.update()
            epoch = step / steps_per_epoch
            epoch_ends = step % steps_per_epoch == 0
            # A checkpoint falls on a log line; a stop between two carries what is pending, so
            # that a resumed run logs the same lines.
            checkpoint = epoch_ends or step % checkpoint_every == 0
            if step % log_every == 0 or checkpoint:
                means = _mean_metrics(_fetch(pending), last_step=step)
                log.write(step, epoch, {**means, "learning_rate": float(schedule(step - 1))})
                bar.set_postfix({"loss": f"{means['loss']:.4f}"})
                pending = []
            stopped = stop.on_any_process()
            if not (checkpoint or stopped):
                continue
            host = parallel.unreplicate(replicated)
            _check_finite(host.params, step)
            if evaluate and epoch_ends and (epoch % evaluate_every == 0 or step == num_steps):
                scores = evaluate(host)
                log.write(step, epoch, scores)
                if scores.get("map", -1.0) > best_map:
                    best_map = scores["map"]
                    save(host, best=True)
                    # The next checkpoint says that this one is there.
                    saved.wait()
            pending = _fetch(pending)
            save(host, best=False)
        # Asked once more, since the last evaluation takes its time.
        if stop.on_any_process():
            saved.wait()
            raise Interrupted(f"stopped by SIGTERM at step {step} of {num_steps}, saved")
        return parallel.unreplicate(replicated)


def _fetch(pending: list[Any]) -> list[dict[str, float]]:
    """The metrics of some steps as plain numbers; those fetched before stay as they are."""
    return [
        {
            name: float(x if isinstance(x, float) else parallel.unreplicate(x))
            for name, x in m.items()
        }
        for m in pending
    ]


def _mean_metrics(metrics: list[dict[str, float]], *, last_step: int) -> dict[str, float]:
    """Averages the metrics of some steps.

    Raises:
        FloatingPointError: if a mean is NaN or infinite.
    """
    means = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
    bad = {name: value for name, value in means.items() if not math.isfinite(value)}
    if bad:
        raise FloatingPointError(
            f"{bad} between steps {last_step - len(metrics) + 1} and {last_step}: training has "
            "diverged; lower the learning rate, or look at the images of these steps"
        )
    return means


def _check_finite(params: chex.ArrayTree, step: int) -> None:
    """Refuses to save parameters from which no run could go on."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path)} is NaN or infinite after step {step}: training has "
                "diverged; lower the learning rate. The last checkpoint is sound"
            )


def check_identity(found: dict[str, Any], wanted: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares what made a checkpoint with what a run wants, in the sections it names.

    Raises:
        ValueError: naming the first setting that differs.
    """
    old = _flatten({name: found.get(name) for name in wanted})
    new = _flatten(wanted)
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{folder} was made with {name} = {old.get(name)!r}, this run has "
                f"{new.get(name)!r}; use another --workdir, or the same setting"
            )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            # As JSON would give it back: a tuple is a list.
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
