"""The section of query attacks."""

from collections.abc import Mapping

import numpy as np

from saat_jax.reports import charts, tables
from saat_jax.reports.charts import Chart, Line
from saat_jax.reports.sections import Record, Section, Table, rate

_ANSWERS = {
    "distances": "distances",
    "ranks": "ranked ids",
    "match": "match or no match",
}
_GAMES = {"square": "Square", "nes": "NES", "spsa": "SPSA", "hop_skip_jump": "HopSkipJump"}


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """Success against queries, by what the service answers."""
    del arrays
    per_second, level = record["per_second"], record["level"]
    marks = [*record["lines"][0]["success"]]
    rows, sentences, lines = [], [], []
    for place, line in enumerate(record["lines"]):
        answer, game = _ANSWERS[line["answer"]], _GAMES[line["game"]]
        name = f"{game}, {answer}"
        median = line["median"]
        told = "-" if median is None else f"{median:g}"
        rows.append([name, *(rate(line["success"][mark]) for mark in marks), told])
        found = [line["success"][mark] for mark in marks]
        look = charts.look(place)
        xs, ys = [*map(float, marks)], [share["rate"] for share in found]
        lines.append(Line(name, xs, ys, **look))
        if median is not None:
            sentences.append(
                f"{name}: half of those that succeed take {median:g} queries, "
                f"{_time(median / per_second)} at {per_second:g} a second"
            )
    sentences.append(
        f"with the gradient and all else known: {rate(record['white_box'])} within {level}/255"
    )
    raised = {"model": record["encoder"]["name"], "attack": "queries", "flags": record["flags"]}
    return Section(
        title=f"Queries alone: {record['task'].replace('_', ' ')} within {level}/255",
        note="The attacker sees no weights, only what a service answers about images, and pays for "
        "each. The service counts, and refuses what is beyond the budget; one query, for the list "
        "that the listed image itself gets, is counted too.",
        tables=[
            Table(
                "Share of images that are done after so many queries, with its 95 % interval "
                "(Clopper and Pearson); the median is of those that are.",
                ["attack, by what it is told", *(f"{int(mark):,}" for mark in marks), "median"],
                rows,
            )
        ],
        sentences=sentences,
        charts=[
            Chart(
                "queries", "queries", "Success against queries", "queries", "share of images",
                lines, True, x_scale="steps",
            )
        ],
        flags=tables.flag_lines([raised]),
    )  # fmt: skip


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"
