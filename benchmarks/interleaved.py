"""Programs that take turns: each in a process of its own, one at a time, round after round.

A machine that others use is now fast, now slow. What is compared is therefore the median over the
rounds of the ratio of two programs' times in the same round, never times of different minutes.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

_SPAWN = multiprocessing.get_context("spawn")
# A program: the function that makes it, its keyword arguments, its environment.
Program = tuple[Callable[..., Callable[[], Any]], dict[str, Any], dict[str, str]]


@dataclasses.dataclass
class Result:
    """What one program took.

    Attributes:
        seconds: wall clock of each round.
        cpu_seconds: of all threads, in each round.
        peak_mib: largest resident memory of its process, from start to end.
        start_seconds: of the first run, compilation included.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    peak_mib: float
    start_seconds: float

    @property
    def median(self) -> float:
        """Median wall clock of a round, in seconds."""
        return statistics.median(self.seconds)


def _serve(connection: Any, make: Callable[..., Callable[[], Any]], options: Any) -> None:
    """Makes a program, runs it once, then once more whenever told."""
    start = time.perf_counter()
    run = make(**options)
    run()
    connection.send(time.perf_counter() - start)
    while connection.recv():
        start, cpu = time.perf_counter(), time.process_time()
        run()
        connection.send((time.perf_counter() - start, time.process_time() - cpu))
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s*(\d+) kB", status)
    connection.send(int(match[1]) / 1024 if match else float("nan"))


def take_turns(programs: Mapping[str, Program], *, rounds: int) -> dict[str, Result]:
    """Runs each program once in every round, after one run that is not counted.

    Args:
        programs: by name; each a function of a module, called with keyword arguments in a new
            process that has the given environment besides this one's, which returns a
            function that does the work and waits until it is done.
        rounds: number of rounds.
    """
    workers = {}
    results = {}
    for name, (make, options, environment) in programs.items():
        before = dict(os.environ)
        os.environ.update(environment)
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, make, options), daemon=True)
        process.start()
        # So that the death of a worker ends the wait for it.
        theirs.close()
        os.environ.clear()
        os.environ.update(before)
        workers[name] = process, ours
        # One at a time also while they start, so that no peak of memory meets another.
        results[name] = Result([], [], 0, ours.recv())
    for _ in range(rounds):
        for name, (_, connection) in workers.items():
            connection.send(True)
            seconds, cpu_seconds = connection.recv()
            results[name].seconds.append(seconds)
            results[name].cpu_seconds.append(cpu_seconds)
    for name, (process, connection) in workers.items():
        connection.send(False)
        results[name].peak_mib = connection.recv()
        process.join()
    return results


def ratio(peer: Result, ours: Result) -> float:
    """Median over the rounds of the peer's time by ours: above 1 ours is faster."""
    return statistics.median(
        theirs / mine for theirs, mine in zip(peer.seconds, ours.seconds, strict=True)
    )


def cpu_ratio(peer: Result, ours: Result) -> float:
    """`ratio` of the CPU seconds, which other users of the machine disturb less."""
    return statistics.median(
        theirs / mine for theirs, mine in zip(peer.cpu_seconds, ours.cpu_seconds, strict=True)
    )
