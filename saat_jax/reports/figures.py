"""Charts of a run, as PNG bytes.

Every chart exists for a light and for a dark page, on a transparent ground. Colour and mark tell
the kind of query, line style the model. Equal input gives equal bytes.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from saat_jax.reports import analysis
from saat_jax.reports.records import Record, Run, display_name, is_benign, is_suite, method

THEMES = {"light": "#1d2126", "dark": "#e4e7eb"}
# Each has at least 3:1 contrast with white and with the dark page.
_COLORS = (
    "#3b82f6", "#df6020", "#9a6ff0", "#17976f", "#d1498b", "#a58100", "#0d93a8", "#e0475b",
    "#6f8f1f", "#ab7657", "#7f86c9",
)  # fmt: skip
# Beside colour, as nobody tells eleven colours apart; none on benign queries.
_MARKS = ("", "o", "s", "^", "D", "v", "P", "X", "<", "p", ">")
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
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart: its file name, the part of the page it stands in, and what it shows.

    `x_scale` "steps" shows numbers of steps, zero included, on a logarithmic axis; "even" spaces
    the values evenly.
    """

    name: str
    section: str
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    is_fraction: bool
    x_scale: str = "linear"
    y_scale: str = "linear"

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
        *_sweep_charts(run),
        *_training_charts(run),
        *_learned_charts(run),
    ]
    return [chart for chart in charts if chart.lines]


def draw(chart: Chart, *, theme: str) -> bytes:
    """Draws a chart as a PNG with a transparent ground, its text in the ink of `theme`."""
    figure = new_figure(*chart_size(chart))
    plot(figure, chart, ink=THEMES[theme])
    return save(figure)


def new_figure(width: float, height: float) -> Any:
    """Makes an empty Matplotlib figure of a size in inches."""
    # Imported here: reading records and printing the table need no plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)
    return figure


def chart_size(chart: Chart) -> tuple[float, float]:
    """Width and height of a chart with its legend, in inches."""
    return 4.6, _below(chart)[0] + 2.6


def _below(chart: Chart) -> tuple[float, int, int]:
    """The room below the axes in inches, and rows and columns of the legend."""
    num_columns = 2 if max(len(line.label) for line in chart.lines) <= 23 else 1
    # A line alone is named by the axis, unless it has a name of its own.
    is_named = len(chart.lines) > 1 or chart.lines[0].label != chart.y_label
    num_rows = -(-len(chart.lines) // num_columns) if is_named else 0
    return 0.55 + 0.19 * num_rows, num_rows, num_columns


def plot(figure: Any, chart: Chart, *, ink: str, left: float = 0, bottom: float = 0) -> None:
    """Plots a chart into a figure; `left` and `bottom` are its corner in inches."""
    # The axes are placed by hand so that charts side by side line up.
    below, num_rows, num_columns = _below(chart)
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        ((left + 0.55) / width, (bottom + below) / height, 4.0 / width, 2.5 / height)
    )
    ticks = sorted({x for line in chart.lines for x in line.x})
    for line in chart.lines:
        # Marks of lines that run close to each other do not fall on each other.
        place = chart.lines.index(line) / len(chart.lines)
        is_curve = len(line.x) > 10
        axes.plot(
            [ticks.index(x) for x in line.x] if chart.x_scale == "even" else line.x,
            line.y,
            color=line.color,
            linestyle=line.dash,
            linewidth=1.5 if len(chart.lines) > 4 else 1.8,
            marker=line.mark or ("o" if len(line.x) == 1 else None),
            markersize=4.5,
            markevery=(0.2 * place, 0.2) if is_curve else None,
            label=line.label,
        )
    if chart.is_fraction:
        axes.set_ylim(0, 1.03)
    axes.set_yscale(chart.y_scale)
    if chart.x_scale == "steps":
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    if chart.x_scale != "linear":
        places = range(len(ticks)) if chart.x_scale == "even" else ticks
        axes.set_xticks(places, [f"{x:g}" for x in ticks])
        axes.set_xticks([], minor=True)
    if chart.x_scale == "steps":
        axes.set_xlim(-0.1, 1.15 * ticks[-1])
    axes.set_xlabel(chart.x_label, color=ink, fontsize=9.5)
    axes.set_ylabel(chart.y_label, color=ink, fontsize=9.5)
    axes.tick_params(which="both", colors=ink, labelsize=9, length=0)
    axes.grid(color=_GREY, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    if num_rows:
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="lower left",
            bbox_to_anchor=(left / width, bottom / height),
            ncols=num_columns,
            frameon=False,
            fontsize=9,
            labelcolor=ink,
            handlelength=2.2,
            columnspacing=1.2,
            borderpad=0,
            borderaxespad=0,
        )


def save(figure: Any, *, kind: str = "png", ground: str | None = None) -> bytes:
    """Writes a figure as "png" or "svg", on a transparent ground unless it has a colour."""
    import matplotlib

    # Matplotlib would stamp its version and the date into the file.
    unstamped = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "saat_jax", "image.composite_image": False}):
        figure.savefig(
            buffer,
            format=kind,
            metadata=unstamped[kind],
            facecolor=ground or "none",
            transparent=ground is None,
        )
    return buffer.getvalue()


def look(index: int) -> dict[str, str]:
    """Colour, dash and mark of the line with a number, the same in every panel of a figure."""
    return {
        "color": _COLORS[index % len(_COLORS)],
        "dash": "-",
        "mark": _MARKS[index % len(_MARKS)],
    }


def _curve_charts(run: Run, kind: str, axes: tuple[str, str]) -> list[Chart]:
    """Makes one chart against the queries' own labels and one against the target labels.

    With many attacks, every model has its own, and an attack its greatest number of steps.
    """
    x_label = {"recall": "recall", "n": "N, length of the returned list"}[axes[0]]
    words = {"precision_recall": "Precision and recall", "precision_at_n": "Precision at N"}[kind]
    models = list(dict.fromkeys(record["model"] for record in run.records))
    apart = is_suite(run.records) and len(models) > 1
    records = analysis.most_steps(run.records) if is_suite(run.records) else run.records
    charts = []
    for panel in [[model] for model in models] if apart else [models]:
        own: list[Line] = []
        target: list[Line] = []
        for record in (r for r in records if r["model"] in panel):
            label = display_name(record["attack"])
            label = label if is_suite(run.records) else f"{label}, {record['model']}"
            style = _style(run, record)
            (target if record["targeted"] else own).extend(_line(record, kind, axes, label, style))
            if is_benign(record):
                target.extend(_line(record, f"{kind}_target", axes, label, style))
        owner = f", {panel[0]}" if apart else ""
        for suffix, whose, lines in (
            ("", "own", _from_the_top(run, own) + _base_rate_line(run, own)),
            ("_target", "target", _from_the_top(run, target)),
        ):
            name = "_".join([f"{kind}{suffix}", *(panel if apart else [])])
            title = f"{words}, {whose} labels{owner}"
            charts.append(Chart(name, "curves", title, x_label, axes[1], lines, True))
    return charts


def _style(run: Run, record: Record) -> dict[str, str]:
    """Look of a record's line: colour and mark by method, dash by model."""
    methods = list(dict.fromkeys(method(r) for r in run.records))
    kind = methods.index(method(record))
    return {
        "color": _COLORS[kind % len(_COLORS)],
        "dash": _DASHES[run.models.index(record["model"]) % len(_DASHES)],
        "mark": _MARKS[kind % len(_MARKS)] if is_suite(run.records) else "",
    }


def _line(
    record: Record, kind: str, axes: tuple[str, str], label: str, style: dict[str, str]
) -> list[Line]:
    curve = record["curves"].get(kind)
    return [Line(label, curve[axes[0]], curve[axes[1]], **style)] if curve else []


def _from_the_top(run: Run, lines: list[Line]) -> list[Line]:
    """Sorts many lines so that the legend lists them as they lie in the chart."""
    if not is_suite(run.records):
        return lines
    return sorted(lines, key=lambda line: -sum(line.y) / len(line.y))


def _base_rate_line(run: Run, lines: list[Line]) -> list[Line]:
    rates = [r["protocol"]["base_rate"] for r in run.records if "base_rate" in r["protocol"]]
    if not rates or not lines:
        return []
    ends = [min(min(line.x) for line in lines), max(max(line.x) for line in lines)]
    return [Line("base rate", ends, [rates[0]] * 2, _GREY, ":")]


def _sweep_charts(run: Run) -> list[Chart]:
    """Makes, for each metric, one chart of attacks by their number of steps."""
    sweeps = analysis.sweeps(run.records)
    charts = []
    for metric in dict.fromkeys(sweep.metric for sweep in sweeps):
        lines = []
        for sweep in sweeps:
            if sweep.metric == metric:
                style = _style(run, sweep.record) | {"mark": "o"}
                name = f"{display_name(sweep.record['attack'])}, {sweep.record['model']}"
                steps = list(sweep.scores)
                lines.append(Line(name, steps, list(sweep.scores.values()), **style))
                if sweep.theory is not None:
                    ends, level = [steps[0], steps[-1]], [sweep.theory] * 2
                    lines.append(Line(f"{name}: theory", ends, level, style["color"], ":"))
        name = f"steps_{metric.replace('@', '_').replace('-', '_').lower()}"
        title = f"{metric} by the number of steps"
        charts.append(Chart(name, "steps", title, "steps", metric, lines, True, x_scale="steps"))
    return charts


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


def _learned_charts(run: Run) -> list[Chart]:
    """Makes, for each network that an attack trains, charts of its losses and its samples."""
    charts = []
    for (model, network), logged in run.learned.items():
        names = sorted({name for line in logged for name in line})
        losses = [name for name in names if name.endswith("loss")]
        for what, shown in (
            ("losses", sorted(losses, key=lambda name: name != "loss")),
            ("samples", [name for name in names if name.startswith("sample_")]),
        ):
            lines = []
            for i, name in enumerate(shown):
                points = _series(logged, name)
                words = display_name(name.removeprefix("sample_"))
                look = _COLORS[i % len(_COLORS)], _DASHES[i % len(_DASHES)]
                if points:
                    lines.append(Line(words, list(points), list(points.values()), *look))
            positive = all(y > 0 for line in lines for y in line.y)
            is_log = what == "losses" and positive
            charts.append(
                Chart(
                    f"learned_{model}_{network}_{what}",
                    "learned",
                    f"{what.capitalize()} of {display_name(network)} for {model}",
                    "epoch",
                    "loss" if what == "losses" else "value",
                    lines,
                    False,
                    y_scale="log" if is_log else "linear",
                )
            )
    return charts


def _series(logged: list[dict[str, Any]], name: str) -> dict[float, float]:
    """Collects a logged number by epoch. A resumed run repeats steps: the last one counts."""
    points = {line["epoch"]: line[name] for line in logged if name in line and "epoch" in line}
    return dict(sorted(points.items()))
