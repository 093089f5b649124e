"""Sections: what the terminal and the page show of a part of an audit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from saat_jax.reports import tables
from saat_jax.reports.charts import Chart

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Heads and rows of words, below a caption."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of an audit in words, tables and charts.

    Attributes:
        title: of the section.
        note: what was done, in a sentence or two, for the page.
        tables: the first is the terminal's too.
        sentences: what stands below them, also on the terminal.
        charts: for the page.
        flags: why not to believe it, in words.
    """

    title: str
    note: str
    tables: Sequence[Table]
    sentences: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    flags: Sequence[str] = ()

    def lines(self) -> list[str]:
        """For the terminal."""
        first = self.tables[0]
        return [
            *tables.aligned([[*first.heads], *map(list, first.rows)]),
            *self.sentences,
            *self.flags,
        ]


def rate(found: Mapping[str, Any]) -> str:
    """A share with its interval, in percent; `found` is what a record has of a `retrieval.Rate`."""
    low, high = (f"{100 * end:.0f}" for end in found["interval"])
    return f"{100 * found['rate']:.1f} % ({low}-{high})"


def number(quartiles: Mapping[str, Any]) -> str:
    """The median, or a dash if it is beyond what was tried."""
    value = quartiles.get("median")
    return "-" if value is None else f"{value + 0.0:.3g}"


def kind_of(record: Record) -> str:
    """The kind of the record's operating point."""
    return next(kind for kind in ("radius", "cosine", "top_k") if kind in record["point"])


def apart_in(record: Record) -> str:
    """What distances are in."""
    return "1 - cosine" if kind_of(record) == "cosine" else "bits apart"


def subject(record: Record) -> str:
    """Who was audited, at which point, on how many images."""
    encoder, kind, images = record["encoder"], kind_of(record), record["images"]
    some = images.get("attacked", images["number"])
    number = f"{some} of " * (some < images["number"]) + f"{images['number']} images"
    return (
        f"{encoder['name']}, {encoder['num_bits']} bits, {kind} {record['point'][kind]:g}, "
        f"{number}, judged by {encoder['runtime']}"
    )
