"""The training loop: data, update, log, checkpoint, evaluate; and start again where it stopped."""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import chex
import jax
import numpy as np
from jax.experimental import multihost_utils
from tensorboardX import SummaryWriter
from tqdm import tqdm

from saat_jax import checkpoints, files, optimizers, parallel
from saat_jax.optimizers import Schedule

# What an update changes: a dataclass with at least `step` and `params`.
State = Any


class Interrupted(SystemExit):
    """Training was asked to stop, and has saved its state; stderr says so.

    Its `code` is the exit status: 1 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, kind: signal.Signals, step: int, num_steps: int):
        name, code = ("Ctrl-C", 130) if kind == signal.SIGINT else (kind.name, 1)
        super().__init__(f"stopped by {name} at step {step} of {num_steps}, saved")
        self.code = code
        print(self, file=sys.stderr)


class _Lines:
    """A file of JSON, one object a line, that loses nothing when the program is killed.

    Args:
        path: of the file.
        first_step: lines after this step are dropped.
    """

    def __init__(self, path: pathlib.Path, first_step: int):
        cure = "mend the line, or delete the file: the log then begins at the newest checkpoint"
        lines = files.read_json_lines(path, cure=cure, fields={"step": int})
        kept = [line for line in lines if line["step"] <= first_step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path = path
        self._file: TextIO = path.open("a")  # noqa: SIM115, closed by close()

    def write(self, line: dict[str, Any]) -> None:
        with files.telling(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricsLog:
    """Metrics by step, as JSON lines and for TensorBoard; and beside them the speed.

    Args:
        folder: gets `metrics.jsonl`, `speed.jsonl` and TensorBoard's event files.
        first_step: lines after this step are dropped: a run that resumes there writes them
            again, and `metrics.jsonl` ends as if the run had never stopped.
    """

    def __init__(self, folder: pathlib.Path, *, first_step: int = -1):
        self._lines: list[_Lines] = []
        if jax.process_index() > 0:
            return
        self._lines = [
            _Lines(folder / f"{name}.jsonl", first_step) for name in ("metrics", "speed")
        ]
        # Any number may wait: its thread ends on a full disk, and must not hold up this one.
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1, max_queue=0)

    def write(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Appends a line of metrics, on the first process only."""
        self._write(0, metrics, {"step": step, "epoch": round(epoch, 4)})

    def write_speed(self, step: int, speed: dict[str, Any]) -> None:
        """Appends a line of what differs from run to run, on the first process only."""
        self._write(1, speed, {"step": step})

    def _write(self, kind: int, values: dict[str, Any], place: dict[str, Any]) -> None:
        if not self._lines:
            return
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar("speed/" * kind + name, value, place["step"])
        self._lines[kind].write(place | values)

    def close(self) -> None:
        """Writes out what is buffered, if the disk has room."""
        if not self._lines:
            return
        try:
            self._board.close()
            for lines in self._lines:
                lines.close()
        except OSError:
            # Lines were flushed one by one: only TensorBoard's last events are lost. It would try
            # again at exit, and bury what is said of a full disk.
            self._board.file_writer.event_writer.flush = lambda: None
            with contextlib.suppress(OSError):
                self._board.close()


class StopSignal:
    """Turns SIGTERM, the notice of pre-emption, and Ctrl-C into a flag that the loop reads.

    Ctrl-C again ends the program at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self._asked, self._calls, self._next = time.monotonic(), 0, 1
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        # Python allows handlers in the main thread only; elsewhere the signal kills as before.
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGINT):
                # What a shell starts in the background is deaf to Ctrl-C, and so it stays.
                if signal.getsignal(kind) is not signal.SIG_IGN:
                    self._previous[kind] = signal.signal(kind, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)

    def _receive(self, kind: int, _: object) -> None:
        self.received = kind
        if kind == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            # Not print, which this may have interrupted.
            os.write(2, b"\nstopping once the state is saved; Ctrl-C again ends at once\n")

    def on_any_process(self, *, at_once: bool = False) -> int:
        """The signal that any process was sent, or 0: all must save the same step.

        Several processes ask each other about once a second, after a number of calls that they
        agree upon: to do so in each step would make it wait for the devices.

        Args:
            at_once: ask now.
        """
        if jax.process_count() == 1:
            return self.received
        self._calls += 1
        if self._calls < self._next and not at_once:
            return 0
        seconds = (time.monotonic() - self._asked) / self._calls
        told = multihost_utils.process_allgather(np.array([self.received, seconds]))
        self._asked, self._calls = time.monotonic(), 0
        self._next = max(1, round(1 / max(told[:, 1].max(), 1e-3)))
        return int(told[:, 0].max())


class _Meter:
    """The speed of the steps alone, without compilation, evaluations and checkpoints."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps = self._rows = 0

    def count(self, batch: dict[str, np.ndarray], metrics: Any) -> None:
        """Counts a step of this process' rows."""
        if self._since is None:
            # It was compiled.
            jax.block_until_ready(metrics)
            self.restart()
            return
        self._steps += 1
        self._rows += len(next(iter(batch.values()))) * jax.process_count()

    def restart(self) -> None:
        """Begins to count; what came before is forgotten."""
        self._since, self._steps, self._rows = time.perf_counter(), 0, 0

    def read(self) -> dict[str, Any]:
        """The speed since the start, if any step was counted; the last one must be done."""
        if self._since is None or not self._steps:
            return {}
        seconds = time.perf_counter() - self._since
        speed = {
            "images_per_second": round(self._rows / seconds, 1),
            "step_ms": round(1000 * seconds / self._steps, 2),
            "devices": parallel.describe_devices(),
        }
        # Not every backend tells, a CPU does not.
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return speed | ({"peak_memory_mib": memory // 2**20} if memory else {})


class _Trace:
    """Traces some steps with JAX's profiler.

    Args:
        folder: for TensorBoard's profile plugin or Perfetto.
        steps: the first and the last step, from 1; empty for none.
    """

    def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
        self._folder, self._steps, self._on = folder, steps, False

    def before(self, step: int) -> None:
        """Starts before the first step of the range that this process makes."""
        if self._steps and self._steps[0] <= step <= self._steps[1] and not self._on:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, metrics: Any) -> None:
        """Stops after the last step of the range."""
        if self._on and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Stops, if it has not."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()


class _Progress:
    """What a training shows and logs of its steps: a bar, metrics, speed, a trace of some.

    Args:
        folder: as of `train`.
        bar: shows the steps.
        first_step: as of `MetricsLog`.
        profile: as of `train`.
    """

    def __init__(self, folder: pathlib.Path, bar: Any, first_step: int, profile: Sequence[int]):
        self.log = MetricsLog(folder, first_step=first_step)
        self.meter = _Meter()
        self.trace = _Trace(folder / "profile", profile)
        self.bar = bar

    def count(self, step: int, batch: dict[str, np.ndarray], metrics: Any) -> None:
        """Counts a step that was begun."""
        self.meter.count(batch, metrics)
        self.trace.after(step, metrics)
        self.bar.update()

    def write(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Logs the metrics of the steps since the last line, which are done."""
        self.log.write(step, epoch, metrics)
        shown = {"loss": f"{metrics['loss']:.4f}"}
        if speed := self.meter.read():
            self.log.write_speed(step, speed)
            shown |= {"images/s": speed["images_per_second"], "ms": speed["step_ms"]}
        self.bar.set_postfix(shown)
        self.meter.restart()

    def close(self) -> None:
        """Leaves the next line to the message of a stop or an error."""
        self.trace.close()
        self.bar.close()
        self.log.close()


def variables_of(state: Any) -> dict[str, Any]:
    """The network's variables in a training state, as `encode_fn` takes them.

    The parameters are their running average, if the optimizer keeps one.

    Args:
        state: a state, or one as a checkpoint holds it, whose classes are dicts.
    """
    held = state if isinstance(state, dict) else vars(state)
    average = optimizers.averaged(held["opt_state"])
    # Of the network's and of the objective's.
    params = held["params"] if average is None else next(iter(_values(average)))
    return {"params": params, "batch_stats": held.get("batch_stats") or {}}


def _values(tree: Any) -> Iterable[Any]:
    return tree.values() if isinstance(tree, dict) else tree


def train(
    update: Callable[..., tuple[State, Any]],
    state: State,
    batches_from: Callable[[int], Iterable[dict[str, np.ndarray]]],
    *,
    folder: str | pathlib.Path,
    steps_per_epoch: int,
    num_epochs: int,
    schedule: Schedule,
    metadata: dict[str, Any],
    evaluate: Callable[[State], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    log_every: int = 20,
    checkpoint_every: int = 500,
    title: str = "train",
    progress: bool = True,
    donate: bool = True,
    mapping: str = "pmap",
    profile: Sequence[int] = (),
) -> State:
    """Trains to the last epoch, resuming from the folder's latest checkpoint if it has one.

    The result depends on the arguments alone: a run that was killed and resumed ends with the
    same bits as one that was not.

    Args:
        update: a per-device update, as `parallel` describes it; a metric is "loss".
        state: the state to begin with.
        batches_from: maps a step to the batches from that step on, each this process' rows.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl` and TensorBoard's files.
        steps_per_epoch: number of batches in an epoch.
        num_epochs: number of epochs; with none, the first state is evaluated and saved.
        schedule: learning rate by step, for the log.
        metadata: what to store in every checkpoint, in JSON's types; a checkpoint of another
            "identity" entry is refused.
        evaluate: maps a state with NumPy leaves to metrics; "map" decides the best checkpoint.
        evaluate_every: epochs between evaluations; one comes before the first step, for what
            training starts from, and one after the last epoch.
        log_every: steps between log lines; each is the mean over these steps.
        checkpoint_every: steps between checkpoints; each epoch's end has one too.
        title: of the progress bar.
        progress: whether to show the bar.
        donate: see `parallel.map_update`.
        mapping: see `parallel.map_update`.
        profile: the first and the last step, from 1, to trace into `folder`/profile; empty for
            none.

    Returns:
        The final state, with NumPy leaves.

    Raises:
        FloatingPointError: if a logged metric is NaN or infinite, naming the steps.
        Interrupted: after SIGTERM or Ctrl-C, with the state saved.
        OSError: if a checkpoint or the log cannot be written, as on a full disk.
        ValueError: if the folder holds another run, none of its checkpoints can be read, a line
            of its log is damaged, or the processes of a job find different checkpoints.
    """
    folder = pathlib.Path(folder)
    num_steps = steps_per_epoch * num_epochs
    with (
        open_checkpoints(folder, read_only=False) as saved,
        StopSignal() as stop,
        contextlib.ExitStack() as at_end,
    ):
        best_map, pending = -1.0, []
        # Before the state, whose shapes differ where the settings do.
        if (before := saved.metadata()) is not None:
            check_identity(before["identity"], metadata["identity"], folder)
        found = saved.restore(state)
        if found is not None:
            state = found.state
            best_map, pending = found.metadata["best_map"], found.metadata["pending"]
        step = int(state.step)
        hidden = not progress or jax.process_index() > 0
        bar = tqdm(total=num_steps, initial=step, desc=title, disable=hidden, unit="step")
        told = _Progress(folder, bar, step if found else -1, profile)
        at_end.callback(told.close)
        scores = evaluate(state) if evaluate and found is None else {}
        if scores:
            told.log.write(step, 0.0, scores)
        mapped = parallel.map_update(update, donate=donate, mapping=mapping)
        replicated = parallel.replicate(state)
        batches = iter(batches_from(step)) if step < num_steps else iter(())

        def save(host: State, *, best: bool) -> None:
            reached = {"step": step, "num_steps": num_steps, "best_map": best_map}
            # A copy: the save goes on in the background.
            saved.save(step, host, {**metadata, **reached, "pending": [*pending]}, best=best)

        if num_steps == 0 and found is None:
            best_map = scores.get("map", -1.0)
            for best in (True, False):
                save(state, best=best)
                saved.wait()
        stopped = 0
        while step < num_steps and not stopped:
            told.trace.before(step + 1)
            batch = next(batches)
            replicated, metrics = mapped(replicated, parallel.shard_batch(batch))
            pending.append(metrics)
            step += 1
            told.count(step, batch, metrics)
            epoch = step / steps_per_epoch
            epoch_ends = step % steps_per_epoch == 0
            # A checkpoint falls on a log line; a stop between two carries what is pending, so
            # that a resumed run logs the same lines.
            checkpoint = epoch_ends or step % checkpoint_every == 0
            if step % log_every == 0 or checkpoint:
                means = _mean_metrics(_fetch(pending), last_step=step)
                told.write(step, epoch, {**means, "learning_rate": float(schedule(step - 1))})
                pending = []
            stopped = stop.on_any_process()
            if not (checkpoint or stopped):
                continue
            host = parallel.unreplicate(replicated)
            _check_finite(host.params, step)
            if evaluate and epoch_ends and (epoch % evaluate_every == 0 or step == num_steps):
                scores = evaluate(host)
                told.log.write(step, epoch, scores)
                if scores.get("map", -1.0) > best_map:
                    best_map = scores["map"]
                    save(host, best=True)
                    # The next checkpoint says that this one is there.
                    saved.wait()
            pending = _fetch(pending)
            save(host, best=False)
            told.meter.restart()
        # Asked once more, since the last evaluation takes its time.
        if kind := stop.on_any_process(at_once=True):
            saved.wait()
            told.bar.close()
            raise Interrupted(signal.Signals(kind), step, num_steps)
        return parallel.unreplicate(replicated)


def open_checkpoints(
    folder: pathlib.Path, *, read_only: bool = True
) -> checkpoints.CheckpointFolder:
    """The checkpoints that `train` leaves in a folder."""
    return checkpoints.CheckpointFolder(
        folder / "checkpoints", read_only=read_only, fields=("identity", "step", "num_steps")
    )


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


def reached(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint that `train` has left in a folder, sound or not."""
    steps = (path.name for path in (folder / "checkpoints" / "latest").glob("[0-9]*"))
    return max((int(name) for name in steps if name.isdecimal()), default=0)


def last_map(folder: pathlib.Path) -> float | None:
    """The last MAP that `train` has logged in a folder; None if there is none."""
    try:
        lines = files.read_json_lines(folder / "metrics.jsonl")
    # For people alone: a damaged one stops nobody.
    except ValueError:
        return None
    return next((line["map"] for line in reversed(lines) if "map" in line), None)


def last_speed(folder: pathlib.Path) -> dict[str, Any]:
    """The last line of speed that `train` has left in a folder; empty if there is none."""
    try:
        return files.read_json_lines(folder / "speed.jsonl")[-1]
    # For people alone: a damaged one stops nobody.
    except (IndexError, ValueError):
        return {}


def check_identity(found: dict[str, Any], wanted: dict[str, Any], folder: pathlib.Path) -> None:
    """Compares what made a checkpoint with what a run wants, in the sections it names.

    Raises:
        ValueError: naming the first setting that differs.
    """
    old = flatten({name: found.get(name) for name in wanted})
    new = flatten(wanted)
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{folder} was made with {name} = {old.get(name)!r}, this run has "
                f"{new.get(name)!r}; use another --workdir, or the same setting"
            )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by dotted name, as JSON would give them back.

    Example:
        >>> flatten({"model": {"name": "convnet", "widths": (8, 16)}})
        {'model.name': 'convnet', 'model.widths': [8, 16]}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
