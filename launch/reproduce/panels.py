"""The papers' figures, drawn from records: curves, sweeps over a setting, example images."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saat_jax import options
from saat_jax.reports import analysis, charts, gallery, tables
from saat_jax.reports.records import Record, display_name, is_benign, load_examples, load_record

_CURVES = options.Choices(
    "curve", {"precision_recall": ("recall", "precision"), "precision_at_n": ("n", "precision")}
)
_KINDS = ("retrieval", "images")
# In inches.
_TITLE, _GAP, _MARGIN = 0.32, 0.35, 0.15
_TILE, _LABEL, _APART = 0.8, 1.15, 0.15
_RIGHT, _WRONG = "#17976f", "#e0475b"


@dataclasses.dataclass(frozen=True)
class CurvePanel:
    """Curves of several records.

    Attributes:
        title: what the panel shows, such as the data set.
        curve: "precision_recall" or "precision_at_n". Benign queries beside targeted attacks
            show their curve against the target labels.
        records: path of a record's JSON by the label of its line.
    """

    title: str
    curve: str
    records: Mapping[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class SweepPanel:
    """A quantity of records against a setting; each quantity becomes a chart of its own.

    Attributes:
        title: what the panel shows.
        x_label: the setting.
        lines: by label, the points: the setting, path of the record's JSON, and the quantity:
            a name in the record's metrics or perturbation, or "seconds_per_image".
    """

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, pathlib.Path, str]]]


@dataclasses.dataclass(frozen=True)
class ExamplePanel:
    """Images of records.

    Attributes:
        title: what the panel shows.
        records: path of a record's `.npz` by the label of its row.
        kind: "retrieval": a query and what it retrieves first, a row for each record. "images":
            benign queries, what each record made of them, and the change, magnified.
        top: how many items are shown, or how many queries.
        query: which of the stored queries "retrieval" shows.
    """

    title: str
    records: Mapping[str, pathlib.Path]
    kind: str = "retrieval"
    top: int = 5
    query: int = 0


Panel = CurvePanel | SweepPanel | ExamplePanel


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of a paper as it is drawn here: its panels, with the records that they show.

    Attributes:
        id: paper and number, "saat:fig3".
        title: what it shows.
        panels: its parts, in reading order. Records that do not exist yet are left out.
        note: what else is to be said.
    """

    id: str
    title: str
    panels: Sequence[Panel]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Rows of a label, images, and for each image whether it is right; None for a query."""

    title: str
    rows: list[tuple[str, list[np.ndarray], list[bool | None]]]

    @property
    def description(self) -> str:
        """Says in words what is shown."""
        return f"{self.title}: {'; '.join(' '.join(label.split()) for label, *_ in self.rows)}."


Block = charts.Chart | Tiles


def make_blocks(drawing: Drawing) -> list[Block]:
    """Reads what a drawing shows; panels of which no record exists yet are left out.

    Raises:
        ValueError: if a record is broken, or a panel asks for what there is not.
    """
    names = [
        label
        for panel in drawing.panels
        for label in (panel.lines if isinstance(panel, SweepPanel) else panel.records)
    ]
    # One look for a label in all panels.
    looks = {label: charts.look(i) for i, label in enumerate(dict.fromkeys(names))}
    blocks: list[Block] = []
    for panel in drawing.panels:
        if isinstance(panel, CurvePanel):
            blocks += _curves(panel, looks)
        elif isinstance(panel, SweepPanel):
            blocks += _sweeps(panel, looks)
        else:
            blocks += _tiles(panel)
    return blocks


def _curves(panel: CurvePanel, looks: Mapping[str, dict[str, Any]]) -> list[Block]:
    x, y = _CURVES[panel.curve]
    records = {label: load_record(p) for label, p in panel.records.items() if p.exists()}
    targeted = any(record["targeted"] for record in records.values())
    lines = []
    for label, record in records.items():
        name = panel.curve + ("_target" if targeted and is_benign(record) else "")
        if name not in record["curves"]:
            raise ValueError(f"{panel.records[label]} has no curve {name!r}; evaluate again")
        curve = record["curves"][name]
        lines.append(charts.Line(label, curve[x], curve[y], **looks[label]))
    x_label = "N" if x == "n" else x
    return [charts.Chart("", "", panel.title, x_label, y, lines, True)] if lines else []


def _sweeps(panel: SweepPanel, looks: Mapping[str, dict[str, Any]]) -> list[Block]:
    lines_of: dict[str, list[charts.Line]] = {}
    for label, points in panel.lines.items():
        for quantity in dict.fromkeys(quantity for *_, quantity in points):
            found = sorted(
                (x, *_quantity(load_record(path), quantity, path))
                for x, path, name in points
                if name == quantity and path.exists()
            )
            if found:
                xs, ys, (axis, *_) = zip(*found, strict=True)
                line = charts.Line(label, xs, ys, **{**looks[label], "mark": "o"})
                lines_of.setdefault(axis, []).append(line)
    blocks: list[Block] = []
    for axis, lines in lines_of.items():
        title = panel.title if len(lines_of) == 1 else f"{panel.title}: {axis}"
        is_fraction = "MAP" in axis
        blocks.append(charts.Chart("", "", title, panel.x_label, axis, lines, is_fraction, "even"))
    return blocks


def _quantity(record: Record, name: str, path: pathlib.Path) -> tuple[float, str]:
    """A number of a record in the unit it is printed in, and the name of its axis."""
    if name in record["metrics"]:
        key = name.removeprefix("theory_").removesuffix("_8bit")
        words = analysis.metric_name(key, record)
        return record["metrics"][name], f"theory {words}" if name.startswith("theory") else words
    value = {**record, **(record.get("perturbation") or {})}.get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"{path} has no quantity {name!r}; evaluate again or choose another")
    factor, first, second = tables.PERTURBATIONS.get(name, (1, display_name(name), ""))
    return value * factor, f"{first} {second}".rstrip()


def _tiles(panel: ExamplePanel) -> list[Block]:
    options.check_word("panel kind", panel.kind, _KINDS)
    examples = {label: load_examples(p) for label, p in panel.records.items() if p.exists()}
    rows: list[tuple[str, list[np.ndarray], list[bool | None]]] = []
    if panel.kind == "retrieval":
        for label, arrays in examples.items():
            hits = arrays["top_relevant"][panel.query][: panel.top]
            found = arrays["top_images"][panel.query][: panel.top]
            query = arrays["images"][panel.query]
            rows.append((label, [query, *found], [None, *map(bool, hits)]))
    else:
        changes = [arrays["images"] - arrays["benign_images"] for arrays in examples.values()]
        for (label, arrays), change in zip(examples.items(), changes, strict=True):
            factor = gallery.magnification([change])
            shown = [
                (label, arrays["images"]),
                (f"its change, {factor} times", 0.5 + factor * change),
            ]
            if not rows:
                shown.insert(0, ("benign", arrays["benign_images"]))
            for words, images in shown:
                row = list(images[: panel.top])
                rows.append((words, row, [None] * len(row)))
    return [Tiles(panel.title, rows)] if rows else []


def draw(blocks: Sequence[Block], *, theme: str, kind: str = "png", titles: bool = True) -> bytes:
    """Draws the parts of a drawing as one image.

    Args:
        blocks: as `make_blocks` returns them; at least one.
        theme: a name of `charts.THEMES`. With titles, "light" has a white ground; all else is
            transparent.
        kind: "png" or "svg".
        titles: whether each part carries its title.

    Returns:
        The file's bytes; equal for equal blocks.
    """
    sizes = [_size(block) for block in blocks]
    room, margin = (_TITLE, _MARGIN) if titles else (0, 0)
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    num_columns = 1
    if not any(isinstance(block, Tiles) for block in blocks) and len(blocks) > 1:
        num_columns = 3 if len(blocks) % 3 == 0 else 2
    num_rows = -(-len(blocks) // num_columns)
    total = (
        num_columns * (width + _GAP) - _GAP + 2 * margin,
        num_rows * (height + room + _GAP) - _GAP + 2 * margin,
    )
    canvas = charts.new_canvas(*total)
    ink = charts.THEMES[theme]
    for i, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        left = margin + i % num_columns * (width + _GAP)
        top = total[1] - margin - i // num_columns * (height + room + _GAP)
        if titles:
            canvas.text(
                left / total[0],
                top / total[1],
                block.title,
                va="top",
                color=ink,
                fontsize=10.5,
                fontweight="bold",
            )
        bottom = top - room - size[1]
        if isinstance(block, Tiles):
            _show_tiles(canvas, block, ink=ink, left=left, bottom=bottom)
        else:
            charts.plot(canvas, block, ink=ink, left=left, bottom=bottom)
    ground = "white" if titles and theme == "light" else None
    return charts.save(canvas, kind=kind, ground=ground)


def is_wide(block: Block) -> bool:
    """Tells whether a part has so many images in a row that a narrow page cannot show it."""
    return _size(block)[0] > 8


def _size(block: Block) -> tuple[float, float]:
    if isinstance(block, Tiles):
        width = max(
            _TILE * len(images) + _APART * any(mark is not None for mark in marks)
            for _, images, marks in block.rows
        )
        return _LABEL + width, _TILE * len(block.rows)
    return charts.chart_size(block)


def _show_tiles(canvas: Any, tiles: Tiles, *, ink: str, left: float, bottom: float) -> None:
    from matplotlib.patches import Rectangle

    width, height = _size(tiles)
    whole = canvas.get_size_inches()
    axes = canvas.add_axes(
        (left / whole[0], bottom / whole[1], width / whole[0], height / whole[1])
    )
    for i, (label, images, marks) in enumerate(tiles.rows):
        low = height - _TILE * (i + 1)
        words = textwrap.fill(label, 13)
        axes.text(0, low + _TILE / 2, words, va="center", color=ink, fontsize=10)
        for j, (image, mark) in enumerate(zip(images, marks, strict=True)):
            x, y, side = _LABEL + _TILE * j + 0.05, low + 0.05, _TILE - 0.1
            # What was retrieved stands apart from the query.
            x += _APART if mark is not None else 0
            shown = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
            axes.imshow(shown, extent=(x, x + side, y, y + side), interpolation="none")
            if mark is not None:
                color = _RIGHT if mark else _WRONG
                axes.add_patch(
                    Rectangle((x, y), side, side, fill=False, edgecolor=color, linewidth=2.5)
                )
                axes.text(
                    x + side - 0.02,
                    y + 0.03,
                    "\N{CHECK MARK}" if mark else "\N{BALLOT X}",
                    ha="right",
                    va="bottom",
                    fontsize=8,
                    color="white",
                    bbox={"facecolor": color, "edgecolor": "none", "pad": 1},
                )
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    axes.axis("off")
