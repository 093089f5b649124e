"""Malformed, odd and hostile inputs by the hundred: is each answered by one clear message?

    python -m benchmarks.bad_inputs                    # the figure, and what is not answered
    python -m benchmarks.bad_inputs --room weights     # one room

An answer is a ValueError, TypeError or OSError of one message that names what is wrong, floods no
terminal and shows none of its control codes; or, where the input is only odd, a right result. A
number that comes out of a wrong input, another exception, or a message that does not name the
culprit is none. `tests/bad_inputs_test.py` runs one case of each kind.
"""

from collections.abc import Callable, Iterator

from benchmarks.bad_inputs import api, configs, lists, runs, weights
from benchmarks.bad_inputs.judging import Case, judge

__all__ = ["ROOMS", "Case", "judge", "one_a_kind"]

ROOMS: dict[str, Callable[[], Iterator[Case]]] = {
    "api": api.cases,
    "configs": configs.cases,
    "lists": lists.cases,
    "runs": runs.cases,
    "weights": weights.cases,
}


def one_a_kind(room: str) -> list[Case]:
    """The first case of each kind."""
    return list({case.kind: case for case in reversed([*ROOMS[room]()])}.values())[::-1]
