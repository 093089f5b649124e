"""Kills a run at random moments and compares what its resumption ends with, bit by bit.

    python -m benchmarks.kill_and_resume --trials 30

The run is the whole chain on a few digits (train, harden, encode, attack, evaluate), then the
attacks once more with their images stored. It runs once without a stop. Then each trial starts it
in a fresh folder, kills it one to three times, each time where its resumption has got to, and lets
it end. Compared are the states of all final checkpoints, the logs, the records and the images.
Two of five trials kill at any moment; the others wait for a phase, so that short ones are hit too.

Prints a table, writes it as JSON and PNG, and fails if anything differs. A failed trial's folder
is kept. `--sigterm` asks the run to stop instead, and measures how long it takes to leave.
"""

import argparse
import collections
import dataclasses
import json
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from saat_jax import checkpoints

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ("start", "training", "checkpointing", "encoding", "attack", "evaluation")
# Short epochs and batches, and a checkpoint every other step: much to be stopped in.
SETTINGS = (
    "--config=configs/demo.py:smoke",
    *(
        f"--config.{stage}.{setting}"
        for stage in ("pretrain", "defenses.hardened")
        for setting in ("num_epochs=4", "evaluate_every=2", "checkpoint_every=2", "log_every=1")
    ),
    "--config.evaluation.batch_size=8",
    "--config.attacks.mainstay.num_steps=40",
    "--config.attacks.mainstay_targeted.num_steps=40",
)
COMMANDS = (
    ("--config.task=chain",),
    ("--config.task=attack", "--config.evaluation.models=('hardened',)"),
)
# Seconds that a command may take; more is counted as a failure to end.
LIMIT = 600
# Seconds after SIGTERM within which a run must have left: the shortest notice of the clouds' own.
GRACE = 30
# Where the trials stop, in turn; None is any moment.
_AIMS = (*PHASES, None, None, None, None)


@dataclasses.dataclass(frozen=True)
class Stop:
    """A kill: what the run was doing, and how long it then took to be gone."""

    phase: str
    seconds: float


def phase_of(output: str, *, saving: bool) -> str:
    """What a run is doing, by the progress bars that it has printed.

    Args:
        output: what the run has printed.
        saving: whether a checkpoint is being written.
    """
    bars = re.findall(r"(models|encode|attack)[ \w/]*: +(\d+)%", output)
    if saving:
        return "checkpointing"
    if not bars:
        return "start"
    name, percent = bars[-1]
    if name == "models":
        return "training"
    if percent == "100":
        return "evaluation"
    return "encoding" if name == "encode" else "attack"


class Command:
    """A started command of the run.

    Args:
        workdir: of the run.
        arguments: the task and its settings.
        cache: folder of compiled programs.
    """

    def __init__(self, workdir: pathlib.Path, arguments: tuple[str, ...], cache: pathlib.Path):
        self.workdir = workdir
        self.started = time.time()
        self._log = workdir.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.main", *SETTINGS, *arguments),
                    *(f"--workdir={workdir}", f"--compilation_cache={cache}"),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def phase(self) -> str:
        """What it is doing."""
        return phase_of(self.output(), saving=self._is_saving())

    def _is_saving(self) -> bool:
        for folder in self.workdir.glob("models/*/checkpoints/*/*orbax-checkpoint-tmp*"):
            try:
                # Not what another command, that was killed, has left.
                if folder.stat().st_mtime > self.started:
                    return True
            except FileNotFoundError:
                continue
        return False

    def wait_for(self, phase: str) -> bool:
        """Returns whether it comes to a phase before it ends."""
        while self.process.poll() is None:
            if self.phase() == phase:
                return True
            time.sleep(0.005)
        return False

    def stop(self, kind: signal.Signals) -> Stop | None:
        """Sends a signal, and returns what it hit; None if the command had ended."""
        phase, sent = self.phase(), time.monotonic()
        if self.process.poll() is not None:
            return None
        self.process.send_signal(kind)
        self.process.wait(LIMIT)
        return Stop(phase, time.monotonic() - sent)

    def end(self) -> None:
        """Waits for its end.

        Raises:
            RuntimeError: if it fails.
        """
        if self.process.wait(LIMIT):
            raise RuntimeError(f"the run has failed:\n{self.output()[-2000:]}")


def run_to_end(workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Runs all commands; returns the seconds they took."""
    start = time.monotonic()
    for arguments in COMMANDS:
        Command(workdir, arguments, cache).end()
    return time.monotonic() - start


def stop_and_resume(
    workdir: pathlib.Path,
    cache: pathlib.Path,
    rng: random.Random,
    *,
    aim: str | None,
    duration: float,
    kind: signal.Signals,
) -> list[Stop]:
    """Runs all commands, stopping them one to three times on the way.

    Args:
        workdir: of the run.
        cache: folder of compiled programs.
        rng: draws how often, where and when to stop.
        aim: the phase to stop in; None for any moment.
        duration: seconds that the run takes without a stop.
        kind: the signal to send.
    """
    stops: list[Stop] = []
    wanted = rng.randint(1, 3)
    for arguments in COMMANDS:
        while True:
            command = Command(workdir, arguments, cache)
            if len(stops) < wanted:
                if aim is None:
                    time.sleep(rng.uniform(0, duration / (wanted + 1)))
                else:
                    # From a few moments on: the first save or batch is not the only one.
                    time.sleep(rng.uniform(0, duration / 4) * (aim != "start"))
                    command.wait_for(aim)
                    time.sleep(rng.uniform(0, 4 if aim == "start" else 0.1))
                if stop := command.stop(kind):
                    stops.append(stop)
                    continue
            command.end()
            break
    return stops


def contents(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run ends with, by name: everything but times."""
    found: dict[str, Any] = {}
    for folder in workdir.glob("models/*"):
        for best in (False, True):
            with checkpoints.CheckpointFolder(folder / "checkpoints", read_only=True) as saved:
                checkpoint = saved.restore(best=best)
            assert checkpoint is not None
            name = f"{folder.name}/{'best' if best else 'latest'}"
            found[f"{name}/step and metadata"] = (checkpoint.step, checkpoint.metadata)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(checkpoint.state):
                found[f"{name}/{jax.tree_util.keystr(keys)}"] = leaf
        found[f"{folder.name}/metrics.jsonl"] = (folder / "metrics.jsonl").read_bytes()
    for path in [*workdir.glob("records/*/*"), workdir / "targets.npz"]:
        name = str(path.relative_to(workdir))
        if path.suffix == ".json":
            found[name] = {**json.loads(path.read_text()), "seconds_per_image": None}
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {f"{name}/{key}": arrays[key] for key in arrays}
    found |= {
        str(path.relative_to(workdir)): path.read_bytes() for path in workdir.glob("records/*/*/*")
    }
    return found


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names under which two runs' contents differ."""

    def same(name: str) -> bool:
        if name not in one or name not in two:
            return False
        if not isinstance(one[name], np.ndarray):
            return bool(one[name] == two[name])
        a, b = one[name], np.asarray(two[name])
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())

    return sorted(name for name in one.keys() | two.keys() if not same(name))


def draw(path: pathlib.Path, hits: dict[str, int], title: str) -> None:
    """Writes the figure: a bar for each phase."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    bars = axes.barh(list(hits), list(hits.values()), color="#4477aa")
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(title=title, xlabel="stops in this phase")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Runs the trials; returns how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--sigterm", action="store_true", help="ask to stop instead of killing")
    parser.add_argument("--output", type=pathlib.Path, default="runs/kill_and_resume")
    options = parser.parse_args(arguments)
    # Orbax warns that a folder opened for reading is only read.
    logging.getLogger("absl").setLevel(logging.ERROR)
    kind = signal.SIGTERM if options.sigterm else signal.SIGKILL
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    truth, cache = output / "truth", output / "cache"
    # What is timed, and compared to, is a run that finds its programs compiled, as the others do.
    for compiles in (True, False) if not cache.is_dir() else (False,):
        shutil.rmtree(truth, ignore_errors=True)
        duration = run_to_end(truth, cache)
        print(f"without a stop{' (compiling)' * compiles}: {duration:.1f} s", flush=True)
    expected = contents(truth)

    trials: list[dict[str, Any]] = []
    for number in range(options.trials):
        rng = random.Random(f"{options.seed} {number}")
        aim = _AIMS[number % len(_AIMS)]
        workdir = output / f"trial_{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        start, stops, wrong = time.monotonic(), [], []
        try:
            stops = stop_and_resume(workdir, cache, rng, aim=aim, duration=duration, kind=kind)
            wrong = differences(expected, contents(workdir))
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            wrong = [str(error)]
        wrong += [f"left {s.seconds:.1f} s after SIGTERM" for s in stops if s.seconds > GRACE]
        seconds = time.monotonic() - start
        trials.append({"aim": aim, "stops": stops, "seconds": seconds, "wrong": wrong})
        where = ", ".join(f"{s.phase} ({s.seconds:.1f} s)" for s in stops)
        print(f"{number + 1}: stopped in {where or 'nothing'}; {seconds:.0f} s", flush=True)
        if wrong:
            print(f"   DIFFERS, see {workdir}: " + "; ".join(wrong), flush=True)
        else:
            shutil.rmtree(workdir)

    counts = collections.Counter(stop.phase for t in trials for stop in t["stops"])
    hits = {phase: counts[phase] for phase in PHASES}
    identical = sum(not t["wrong"] for t in trials)
    slowest = max((stop.seconds for t in trials for stop in t["stops"]), default=0.0)
    summary = f"{identical} of {len(trials)} identical after {kind.name}"
    print(f"\n{'phase':<16}stops")
    for phase, count in hits.items():
        print(f"{phase:<16}{count:>5}")
    print(f"\n{summary}; gone {slowest:.1f} s after the signal at most")
    result = {
        "signal": kind.name,
        "identical": identical,
        "phases": hits,
        "slowest_seconds": slowest,
        "seconds_without_a_stop": duration,
        "trials": [{**t, "stops": [dataclasses.asdict(s) for s in t["stops"]]} for t in trials],
    }
    name = kind.name.lower()
    (output / f"{name}.json").write_text(json.dumps(result, indent=1))
    draw(output / f"{name}.png", hits, summary)
    return len(trials) - identical


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
