"""The papers' figures beside ours, laid out as in the papers.

Vocabulary: a *cell* is one published figure with our values of it, one per seed. A *table id*
names paper and table: "saat:II", "prosgan:1".
"""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from importlib import resources


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of `reported.csv`. What does not apply, or is not stated, is empty.

    Attributes:
        paper: "SAAT" or "ProS-GAN".
        table: its number there.
        dataset: "FLICKR-25K", "NUS-WIDE" or "MS-COCO".
        hashing_method: "DPH", "DPSH", "HashNet" or "CSQ".
        backbone: such as "VGG11".
        bits: code length.
        defense: "none", "ATRDH" or "SAAT".
        attack: such as "DHTA"; "Original" is no attack.
        source_model: whom images were crafted on, as "DPSH-VGG11-32".
        target_model: who judged them.
        iterations: steps of the attack.
        metric: with its cut-off; "theory-": of the code that the attack steers towards.
        value: as printed: percent, seconds, or the unit in the metric's name; NaN in a table
            of another set than the paper's.
    """

    paper: str
    table: str
    dataset: str
    hashing_method: str
    backbone: str
    bits: str
    defense: str
    attack: str
    source_model: str
    target_model: str
    iterations: str
    metric: str
    value: float

    @property
    def table_id(self) -> str:
        """The table as `--table` takes it."""
        return f"{self.paper.lower().replace('-', '')}:{self.table}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A published figure and ours.

    Attributes:
        row: the published figure.
        values: ours in the same unit, one per seed; empty while not run.
        page: path of the run's report, relative to the site's folder; empty if there is none.
        num_queries: how many queries each value is of; 0 if unknown.
    """

    row: Published
    values: tuple[float, ...] = ()
    page: str = ""
    num_queries: int = 0

    @property
    def mean(self) -> float | None:
        """Mean of our values; None while not run."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of our values over seeds (n - 1); None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the published; None while not run, or if there is nothing to compare."""
        gap = math.nan if self.mean is None else self.mean - self.row.value
        return None if math.isnan(gap) else gap

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """Ours, its spread, the published and the difference; unknown: "-", spread empty.

        The last two are empty where nothing published can be compared.
        """
        # Times differ by orders of magnitude.
        form, digits = (".4g", 6) if self.row.metric.startswith("time") else (".2f", 2)
        # `+ 0.0` turns the -0.0 of a tiny difference into 0.0.
        gap = None if self.difference is None else round(self.difference, digits) + 0.0
        return (
            "-" if self.mean is None else f"{self.mean:{form}}",
            "" if self.spread is None else f"±{self.spread:{form}}",
            *(
                ("", "")
                if math.isnan(self.row.value)
                else (f"{self.row.value:{form}}", "-" if gap is None else f"{gap:+{form}}")
            ),
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a table lies: names of `Published`'s fields that tell groups, rows and columns apart."""

    title: str
    groups: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    note: str = ""


_NO_BITS = "The paper does not state the code length."
_TRANSFER = (("attack",), ("source_model",), ("target_model",))
LAYOUTS = {
    "saat:II": Layout(
        "Attacks on undefended models", ("metric",), ("attack",), ("dataset", "bits")
    ),
    "saat:III": Layout(
        "Non-targeted attacks on defended models", ("defense",), ("attack",), ("dataset", "bits")
    ),
    "saat:IV": Layout(
        "Targeted attacks on defended models",
        ("defense",),
        ("attack", "metric"),
        ("dataset", "bits"),
    ),
    "saat:V": Layout("What attacks reach in theory", ("metric",), ("attack",), ("dataset", "bits")),
    "saat:VI": Layout("MAP by the number of steps", (), ("iterations", "metric"), ("bits",)),
    "saat:VII": Layout("How visible attacks are", (), ("metric",), ("dataset", "attack"), _NO_BITS),
    "saat:VIII": Layout(
        "Other hashing methods and backbones",
        ("defense",),
        ("attack",),
        ("hashing_method", "backbone"),
        _NO_BITS,
    ),
    "prosgan:1": Layout("Targeted attacks", ("metric",), ("attack",), ("dataset", "bits")),
    "prosgan:2": Layout(
        "Score, visibility and time of attacks",
        (),
        ("attack", "iterations"),
        ("dataset", "metric"),
        "Seconds depend on the hardware.",
    ),
    "prosgan:3": Layout("Transfer between models on {dataset}", *_TRANSFER),
    "prosgan:4": Layout(
        "Other hashing methods", ("metric",), ("attack",), ("hashing_method", "bits")
    ),
    "prosgan:5": Layout("Transfer between code lengths", *_TRANSFER),
    "prosgan:6": Layout("Transfer between models on {dataset}", *_TRANSFER),
    "prosgan:7": Layout("Transfer between models on {dataset}", *_TRANSFER),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A laid out table.

    Attributes:
        table_id: which.
        title: paper, number and subject.
        note: what holds for all of it.
        columns: heads, outermost level first.
        groups: title of a group (may be empty) to label of a row to its cells, one per column;
            None where the paper has no figure.
    """

    table_id: str
    title: str
    note: str
    columns: list[tuple[str, ...]]
    groups: dict[str, dict[str, list[Cell | None]]]

    @property
    def cells(self) -> list[Cell]:
        """The cells, row by row."""
        lines = (line for group in self.groups.values() for line in group.values())
        return [cell for line in lines for cell in line if cell is not None]


def load_published() -> list[Published]:
    """Reads the figures of both papers, in the papers' order."""
    text = resources.files(__package__).joinpath("reported.csv").read_text(encoding="utf-8")
    return [
        Published(**{**row, "value": float(row["value"])})  # type: ignore[arg-type]
        for row in csv.DictReader(io.StringIO(text))
    ]


def as_stand_in(cells: Iterable[Cell], name: str) -> list[Cell]:
    """The cells of a set that stands for all of the papers'.

    Nothing published is of that set, so these have no published figure. A cell that stood for
    several sets is there once, and so is a table that would repeat an earlier one (ProS-GAN's
    Tables 6 and 7 are Table 3 on other sets).

    Args:
        cells: as of the papers' sets.
        name: of the set.
    """
    tables: dict[str, dict[Published, Cell]] = {}
    for cell in cells:
        row = dataclasses.replace(cell.row, dataset=name, value=math.nan)
        place = dataclasses.replace(row, table="")
        tables.setdefault(row.table_id, {}).setdefault(place, dataclasses.replace(cell, row=row))
    seen: list[set[Published]] = []
    kept: list[Cell] = []
    for table in tables.values():
        if not any(table.keys() <= other for other in seen):
            kept += table.values()
        seen.append(set(table))
    return kept


def make_tables(cells: Sequence[Cell]) -> list[Table]:
    """Lays the cells out as in the papers, a table for each table id among them.

    Raises:
        ValueError: if two cells are of the same published figure.
    """
    parts: dict[str, list[Cell]] = {name: [] for name in LAYOUTS}
    for cell in cells:
        parts[cell.row.table_id].append(cell)
    return [_lay_out(name, part) for name, part in parts.items() if part]


def _lay_out(table_id: str, cells: list[Cell]) -> Table:
    layout = LAYOUTS[table_id]
    places: dict[tuple[tuple[str, ...], ...], Cell] = {}
    for cell in cells:
        place = tuple(
            tuple(_label(cell.row, field) for field in fields)
            for fields in (layout.groups, layout.rows, layout.columns)
        )
        if place in places:
            raise ValueError(f"got two cells of {cell.row}; expected one, with the values of seeds")
        places[place] = cell
    columns = _in_order([column for *_, column in places])
    laid_out: dict[str, dict[str, list[Cell | None]]] = {}
    for group, row in dict.fromkeys((group, row) for group, row, _ in places):
        line = [places.get((group, row, column)) for column in columns]
        laid_out.setdefault(", ".join(group), {})[", ".join(filter(None, row)) or "-"] = line
    free = set(layout.groups + layout.rows + layout.columns)
    common = [
        _label(cells[0].row, field)
        for field in ("dataset", "hashing_method", "backbone", "bits", "defense", "metric")
        if field not in free and len({getattr(cell.row, field) for cell in cells}) == 1
    ]
    note = ", ".join(filter(None, common)) + f". {layout.note}".rstrip()
    number = f"{cells[0].row.paper}, Table {cells[0].row.table}"
    title = layout.title.format(dataset=cells[0].row.dataset)
    return Table(table_id, f"{number}: {title}", note, columns, laid_out)


def _in_order(labels: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The distinct labels, each part of them in the order of its first appearance."""
    labels = list(dict.fromkeys(labels))
    parts = [list(dict.fromkeys(part)) for part in zip(*labels, strict=True)]
    return sorted(labels, key=lambda label: [p.index(x) for p, x in zip(parts, label, strict=True)])


def _label(row: Published, field: str) -> str:
    value = getattr(row, field)
    if field == "defense":
        return "undefended" if value == "none" else f"defended by {value}"
    if field in ("source_model", "target_model"):
        return value.removeprefix(f"{row.hashing_method}-")
    words = {"bits": f"{value} bits", "iterations": f"T={value}"}
    return words.get(field, value) if value else ""


def to_csv(table: Table) -> str:
    """Writes a table in long form, one line per published figure."""
    fields = [field.name for field in dataclasses.fields(Published)][:-1]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "published", "ours", "spread", "num_seeds", "difference", "page"])
    for cell in table.cells:
        given = None if math.isnan(cell.row.value) else cell.row.value
        numbers = [given, cell.mean, cell.spread, cell.difference]
        published, ours, spread, gap = ("" if x is None else f"{x:.6g}" for x in numbers)
        about = [getattr(cell.row, field) for field in fields]
        writer.writerow([*about, published, ours, spread, len(cell.values), gap, cell.page])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Writes a table as in the paper; a cell reads "ours (published, difference)".

    Where there is nothing to compare with, it reads "ours".
    """
    rows = [["", *(" ".join(column) for column in table.columns)]]
    for group, lines in table.groups.items():
        for label, cells in lines.items():
            rows.append([f"{group}: {label}" if group else label, *map(_markdown_cell, cells)])
    return markdown_rows(rows)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    ours, spread, published, gap = cell.shown
    beside = f"({published}, {gap})".replace(", -)", ")") if published else ""
    return " ".join(filter(None, (ours, spread, beside)))


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows of text, the first one the head, as a table of Markdown."""
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in [rows[0], rule, *rows[1:]])
