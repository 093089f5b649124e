"""Charts of a run, as PNG bytes.

Every chart exists for a light and for a dark page, on a transparent ground. Colour tells the
kind of query, line style the model. Equal input gives equal bytes.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from saat_jax.reports.records import Record, Run, display_name, is_benign

THEMES = {"light": "#1d2126", "dark": "#e4e7eb"}
# Each has at least 3:1 contrast with white and with the dark page.
_COLORS = ("#3b82f6", "#df6020", "#9a6ff0", "#17976f", "#d1498b", "#a58100")
_DASHES = ("-", "--", ":", "-.")
_GREY = "#858b93"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart: its file name, the part of the page it stands in, and what it shows."""

    name: str
    section: str
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    is_fraction: bool

    @property
    def description(self) -> str:
        """Says in words what the chart shows, with the last value of every line."""
        ends = "; ".join(f"{line.label} ends at {line.y[-1]:.3g}" for line in self.lines)
        return f"{self.title}: {self.y_label} against {self.x_label}. {ends}."


def make_charts(run: Run) -> list[Chart]:
    """Lists the charts that the files of the run allow; those without lines are left out."""
    charts = [
        *_curve_charts(run, "precision_recall", ("recall", "precision")),
        *_curve_charts(run, "precision_at_n", ("n", "precision")),
        *_training_charts(run),
    ]
    return [chart for chart in charts if chart.lines]


def draw(chart: Chart, *, theme: str) -> bytes:
    """Draws a chart as a PNG with a transparent ground, its text in the ink of `theme`."""
    # Imported here: reading records and printing the table need no plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink = THEMES[theme]
    num_columns = 2 if max(len(line.label) for line in chart.lines) <= 23 else 1
    num_rows = -(-len(chart.lines) // num_columns) if len(chart.lines) > 1 else 0
    # In inches. The axes are placed by hand so that charts side by side line up.
    width, below = 4.6, 0.55 + 0.19 * num_rows
    height = below + 2.6
    figure = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.55 / width, below / height, 4.0 / width, 2.5 / height))
    for line in chart.lines:
        is_point = len(line.x) == 1
        axes.plot(
            line.x,
            line.y,
            color=line.color,
            linestyle=line.dash,
            linewidth=1.8,
            marker="o" if is_point else None,
            label=line.label,
        )
    if chart.is_fraction:
        axes.set_ylim(0, 1.03)
    axes.set_xlabel(chart.x_label, color=ink, fontsize=9.5)
    axes.set_ylabel(chart.y_label, color=ink, fontsize=9.5)
    axes.tick_params(colors=ink, labelsize=9, length=0)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    if num_rows:
        figure.legend(
            loc="lower left",
            ncols=num_columns,
            frameon=False,
            fontsize=9,
            labelcolor=ink,
            handlelength=2.2,
            columnspacing=1.2,
            borderpad=0,
            borderaxespad=0,
        )
    buffer = io.BytesIO()
    # Matplotlib would stamp its version into the file.
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _curve_charts(run: Run, kind: str, axes: tuple[str, str]) -> list[Chart]:
    """Makes one chart against the queries' own labels and one against the target labels."""
    attacks = list(dict.fromkeys(record["attack"] for record in run.records))
    own: list[Line] = []
    target: list[Line] = []
    for record in run.records:
        style = (
            f"{display_name(record['attack'])}, {record['model']}",
            _COLORS[attacks.index(record["attack"]) % len(_COLORS)],
            _DASHES[run.models.index(record["model"]) % len(_DASHES)],
        )
        (target if record["targeted"] else own).extend(_line(record, kind, axes, style))
        if is_benign(record):
            target.extend(_line(record, f"{kind}_target", axes, style))
    x_label = {"recall": "recall", "n": "N, length of the returned list"}[axes[0]]
    words = {"precision_recall": "Precision and recall", "precision_at_n": "Precision at N"}[kind]
    return [
        Chart(
            f"{kind}{suffix}", "curves", f"{words}, {whose} labels", x_label, axes[1], lines, True
        )
        for suffix, whose, lines in (
            ("", "own", own + _base_rate_line(run, own)),
            ("_target", "target", target),
        )
    ]


def _line(
    record: Record, kind: str, axes: tuple[str, str], style: tuple[str, str, str]
) -> list[Line]:
    curve = record["curves"].get(kind)
    return [Line(style[0], curve[axes[0]], curve[axes[1]], *style[1:])] if curve else []


def _base_rate_line(run: Run, lines: list[Line]) -> list[Line]:
    rates = [r["protocol"]["base_rate"] for r in run.records if "base_rate" in r["protocol"]]
    if not rates or not lines:
        return []
    ends = [min(min(line.x) for line in lines), max(max(line.x) for line in lines)]
    return [Line("base rate", ends, [rates[0]] * 2, _GREY, ":")]


def _training_charts(run: Run) -> list[Chart]:
    """Makes, for each model, one chart of its loss and one of its MAP on held-out queries."""
    charts = []
    for model, logged in run.training.items():
        for name, y_label, is_fraction in (("loss", "loss", False), ("map", "MAP", True)):
            points = _series(logged, name)
            lines = [Line(y_label, list(points), list(points.values()), _COLORS[0], "-")]
            charts.append(
                Chart(
                    f"training_{model}_{name}",
                    "training",
                    f"{y_label[0].upper()}{y_label[1:]} of {model}",
                    "epoch",
                    y_label,
                    lines if points else [],
                    is_fraction,
                )
            )
    return charts


def _series(logged: list[dict[str, Any]], name: str) -> dict[float, float]:
    """Collects a logged number by epoch. A resumed run repeats steps: the last one counts."""
    points = {line["epoch"]: line[name] for line in logged if name in line and "epoch" in line}
    return dict(sorted(points.items()))
