"""What the papers say of their tables and figures, checked on ours claim by claim.

A claim is a list of *comparisons*: that one number is above, or below, or near others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.reproduce import grid, statements
from launch.reproduce.grid import Measurement
from launch.reproduce.published import Cell, Published, load_published
from launch.reproduce.statements import Comparison, Key, Statement

_Array = np.ndarray

# How far the one is ahead of its rivals; all but "apart" are to be above the bound.
_GAPS = {
    "above": lambda one, rivals: one - rivals.max(axis=0),
    "below": lambda one, rivals: rivals.min(axis=0) - one,
    "apart": lambda one, rivals: abs(one - rivals).max(axis=0),
    "times below": lambda one, rivals: rivals.min(axis=0) / one,
    "percent below": lambda one, rivals: 100 * (1 - one / rivals.min(axis=0)),
}
_MEANS = {"dataset": "each data set", "table_id": "all cells"}
HOLDS, FAILS, WITHIN_NOISE, NOT_RUN = "holds", "does not hold", "within noise", "not run"


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a figure and our values of it.

    Attributes:
        measurement: which, as in `grid.FIGURES`.
        values: ours in the printed unit, one per seed; empty while not run.
        num_queries: how many queries each of them is of.
    """

    measurement: Measurement
    values: tuple[float, ...] = ()
    num_queries: int = 0


@dataclasses.dataclass(frozen=True)
class Tally:
    """A claim's comparisons, counted on some numbers.

    Attributes:
        verdict: "holds", "does not hold", "within noise" or "not run".
        num_held: comparisons that hold, each for itself.
        num_known: comparisons that are measured.
        num_missing: those that are not.
        figures: the mean of each data set; or the comparison that is nearest to fail.
        spreads: standard deviation of each figure over seeds; empty for one seed.
        num_clear: comparisons that hold by more than `statements.most_noise`; None where they are
            not of MAP.
    """

    verdict: str = NOT_RUN
    num_held: int = 0
    num_known: int = 0
    num_missing: int = 0
    figures: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    num_clear: int | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says of its tables, and whether ours say it too.

    Attributes:
        paper: as of `Published`.
        statement: the claim, in words.
        criterion: when it holds.
        printed: the figure in the paper's text; empty if there is none.
        published: the tally of the published numbers; of a figure, nothing is known.
        ours: the same of our cells, what is one measurement counted once.
        num_queries: of how many queries our numbers are, each count once.
    """

    paper: str
    statement: str
    criterion: str
    printed: str
    published: Tally
    ours: Tally
    num_queries: tuple[int, ...]

    @property
    def contradicted(self) -> bool:
        """Whether the paper's own tables say otherwise."""
        return self.published.verdict == FAILS


def check_claims(
    cells: Sequence[Cell], points: Sequence[Point] = (), *, one_set: bool = False
) -> list[Claim]:
    """Checks what the papers say of their tables and figures, claim by claim, on our numbers.

    With several seeds, a gap holds, or fails, if its mean is farther from the bound than twice
    its standard error, and is within noise otherwise. A claim holds if all comparisons that
    decide it do, and fails if one of them fails.

    Args:
        cells: any part of the published figures; those not measured are left out.
        points: any part of the points of `grid.FIGURES`.
        one_set: whether one set stands for all. Then comparisons, and claims, that differ by the
            set alone are one.

    Returns:
        The claims of both papers, SAAT's first.
    """
    known: dict[Key, Cell | Point] = {cell.row: cell for cell in cells}
    known |= {point.measurement: point for point in points}
    published = {row: (row.value,) for row in load_published()}
    ours = {key: found.values for key, found in known.items() if found.values}
    claims = {}
    for paper, stated in statements.statements().items():
        for statement in stated:
            distinct = _distinct(statement.comparisons, one_set)
            name = statement.kind, statement.mean_by, frozenset(distinct)
            if name in claims:
                continue
            pairs = [*distinct.values()]
            used = {key for one, rivals in pairs for key in (one, *rivals) if key in ours}
            claims[name] = Claim(
                paper,
                statement.text,
                _criterion(statement),
                statement.printed,
                _tally(statement, [*_distinct(statement.comparisons, False).values()], published),
                _tally(statement, pairs, ours),
                tuple(sorted({known[key].num_queries for key in used} - {0})),
            )
    return list(claims.values())


def _distinct(
    comparisons: Sequence[Comparison], one_set: bool
) -> dict[tuple[Measurement, ...], Comparison]:
    """The first comparison of each choice of measurements."""
    found: dict[tuple[Measurement, ...], Comparison] = {}
    for one, rivals in comparisons:
        points = (grid.measurement(k) if isinstance(k, Published) else k for k in (one, *rivals))
        sources = tuple(grid.source(point, one_set=one_set) for point in points)
        found.setdefault(sources, (one, rivals))
    return found


def _criterion(statement: Statement) -> str:
    """When a claim holds, and which figure of it is shown."""
    is_near = statement.kind == "apart"
    limit = f"{'at most' if is_near else 'above'} {statement.bound:.3g} {statement.unit}"
    if statement.mean_by:
        return f"mean of {_MEANS[statement.mean_by]} {limit}"
    if len(statement.comparisons) == 1:
        return limit
    return f"every cell {limit}; the {'most' if is_near else 'least'} is shown"


def _tally(
    statement: Statement, comparisons: Sequence[Comparison], values: Mapping[Any, tuple[float, ...]]
) -> Tally:
    ready = [pair for pair in comparisons if all(key in values for key in (pair[0], *pair[1]))]
    missing = len(comparisons) - len(ready)
    if not ready:
        return Tally(num_missing=missing)
    # Seeds are compared one by one, if all cells have them.
    per_seed = len({len(values[key]) for one, rivals in ready for key in (one, *rivals)}) == 1

    def of(key: Key) -> _Array:
        return np.array(values[key] if per_seed else [np.mean(values[key])])

    gap = _GAPS[statement.kind]
    gaps = np.stack([gap(of(one), np.stack([of(r) for r in rivals])) for one, rivals in ready])
    decisive = gaps
    if statement.mean_by:
        names = np.array([getattr(one, statement.mean_by) for one, _ in ready])
        decisive = np.stack([gaps[names == name].mean(axis=0) for name in dict.fromkeys(names)])
    sign = -1 if statement.kind == "apart" else 1
    excess = sign * (gaps - statement.bound)
    is_clear = excess.mean(axis=1) > statements.most_noise()
    in_points = statement.kind in ("above", "below") and all(
        "map" in _quantity(one) for one, _ in ready
    )
    verdicts = {_verdict(line) for line in sign * (decisive - statement.bound)}
    shown = decisive if statement.mean_by else gaps[[np.argmin(excess.mean(axis=1))]]
    spreads = shown.std(axis=1, ddof=1) if shown.shape[1] > 1 else []
    held = np.array([_verdict(line) == HOLDS for line in excess])
    return Tally(
        next(verdict for verdict in (FAILS, WITHIN_NOISE, HOLDS) if verdict in verdicts),
        int(held.sum()),
        len(ready),
        missing,
        tuple(map(float, shown.mean(axis=1))),
        tuple(map(float, spreads)),
        int(np.sum(held & is_clear)) if in_points else None,
    )


def _verdict(excess: _Array) -> str:
    """Whether what is above a bound in each seed is so beyond noise."""
    noise = 2 * excess.std(ddof=1) / np.sqrt(len(excess)) if len(excess) > 1 else 0.0
    if excess.mean() > noise:
        return HOLDS
    return WITHIN_NOISE if len(excess) > 1 and excess.mean() >= -noise else FAILS


def _quantity(key: Key) -> str:
    return (key.metric if isinstance(key, Published) else key.quantity).lower()
