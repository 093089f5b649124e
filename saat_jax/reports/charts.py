"""Charts: what a run's files allow, and how a chart is drawn, as PNG or SVG bytes.

Every chart exists for a light and for a dark page, on a transparent ground. Colour and mark tell
the kind of query, line style the model. Equal input gives equal bytes.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

from saat_jax import options
from saat_jax.reports import analysis
from saat_jax.reports.records import (
    METRICS,
    Record,
    RunFiles,
    display_name,
    is_benign,
    is_suite,
    method,
)

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
    """One line of a chart; `band` has the lower and the upper ends of its intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str
    mark: str = ""
    band: tuple[Sequence[float], ...] = dataclasses.field(default=(), kw_only=True)


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


def make_charts(run: RunFiles) -> list[Chart]:
    """Lists the charts that the files of the run allow; those without lines are left out."""
    charts = [
        *_curve_charts(run, "precision_recall", "recall", "Precision and recall", "recall"),
        *_curve_charts(
            run, "precision_at_n", "n", "Precision at N", "N, length of the returned list"
        ),
        *_ball_charts(run),
        *_sweep_charts(run),
        *_training_charts(run),
        *_learned_charts(run),
    ]
    return [chart for chart in charts if chart.lines]


def draw(chart: Chart, *, theme: str) -> bytes:
    """Draws a chart as a PNG with a transparent ground, its text in the ink of `theme`."""
    canvas = new_canvas(*chart_size(chart))
    plot(canvas, chart, ink=THEMES[theme])
    return save(canvas)


def new_canvas(width: float, height: float) -> Any:
    """Makes an empty canvas (what Matplotlib calls a figure) of a size in inches."""
    # Imported here: reading records and printing the table need no plotting library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(canvas)
    return canvas


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


def plot(canvas: Any, chart: Chart, *, ink: str, left: float = 0, bottom: float = 0) -> None:
    """Plots a chart on a canvas; `left` and `bottom` are its corner in inches."""
    # The axes are placed by hand so that charts side by side line up.
    below, num_rows, num_columns = _below(chart)
    width, height = canvas.get_size_inches()
    axes = canvas.add_axes(
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
            # Between dollars, Matplotlib reads formulas.
            label=options.shortened(line.label).replace("$", r"\$"),
        )
        if line.band:
            axes.fill_between(line.x, *line.band, color=line.color, alpha=0.15, linewidth=0)
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
        canvas.legend(
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


def save(canvas: Any, *, kind: str = "png", ground: str | None = None) -> bytes:
    """Writes a canvas as "png" or "svg", on a transparent ground unless it has a colour."""
    import matplotlib

    # Matplotlib would stamp its version and the date into the file.
    unstamped = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "saat_jax", "image.composite_image": False}):
        canvas.savefig(
            buffer,
            format=kind,
            metadata=unstamped[kind],
            facecolor=ground or "none",
            transparent=ground is None,
        )
    return buffer.getvalue()


def look(index: int) -> dict[str, Any]:
    """Colour, dash and mark of the line with a number, the same in every panel of a figure."""
    return {
        "color": _COLORS[index % len(_COLORS)],
        "dash": "-",
        "mark": _MARKS[index % len(_MARKS)],
    }


def _curve_charts(run: RunFiles, kind: str, axis: str, words: str, x_label: str) -> Iterator[Chart]:
    """Makes one chart against the queries' own labels and one against the target labels.

    With many attacks, every model has its own, and an attack its greatest number of steps.
    """
    many = is_suite(run.records)
    models = list(dict.fromkeys(record["model"] for record in run.records))
    apart = many and len(models) > 1
    records = analysis.most_steps(run.records) if many else run.records
    for panel in [[model] for model in models] if apart else [models]:
        lines: dict[str, list[Line]] = {"own": [], "target": []}
        for record in (r for r in records if r["model"] in panel):
            label = display_name(record["attack"]) + f", {record['model']}" * (not many)
            curves = {"target" if record["targeted"] else "own": record["curves"].get(kind)}
            if is_benign(record):
                curves["target"] = record["curves"].get(f"{kind}_target")
            for labels, curve in curves.items():
                if curve:
                    line = Line(label, curve[axis], curve["precision"], **_style(run, record))
                    lines[labels].append(line)
        if many:
            # The legend lists them as they lie in the chart, from the top.
            lines = {k: sorted(v, key=lambda a: -sum(a.y) / len(a.y)) for k, v in lines.items()}
        if run.base_rate is not None and lines["own"]:
            xs = [x for line in lines["own"] for x in line.x]
            level = [run.base_rate] * 2
            lines["own"].append(Line("base rate", [min(xs), max(xs)], level, _GREY, ":"))
        for labels, found in lines.items():
            owner = panel if apart else []
            name = "_".join([kind, *(["target"] * (labels == "target")), *owner])
            title = ", ".join([words, f"{labels} labels", *owner])
            yield Chart(name, "curves", title, x_label, "precision", found, True)


def _style(run: RunFiles, record: Record) -> dict[str, Any]:
    """Look of a record's line: colour and mark by method, dash by model."""
    methods = list(dict.fromkeys(method(r) for r in run.records))
    dash = _DASHES[run.models.index(record["model"]) % len(_DASHES)]
    style = look(methods.index(method(record))) | {"dash": dash}
    return style if is_suite(run.records) else style | {"mark": ""}


def _sweep_charts(run: RunFiles) -> list[Chart]:
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


def _ball_charts(run: RunFiles) -> list[Chart]:
    """Makes, for each metric, one chart of the worst case by the radius of the ball."""
    found = analysis.balls(run.records)
    charts = []
    for metric in dict.fromkeys(metric for _, metric, _ in found):
        lines = [
            Line(
                record["model"],
                list(scores),
                list(scores.values()),
                **look(run.models.index(record["model"])),
            )
            for record, name, scores in found
            if name == metric
        ]
        name = f"balls_{metric.replace('@', '_').replace('-', '_').lower()}"
        title = f"Worst case: {metric} by the radius of the ball"
        charts.append(
            Chart(name, "balls", title, "epsilon in grey levels of 255", metric, lines, True)
        )
    return charts


def _training_charts(run: RunFiles) -> list[Chart]:
    """Makes, for each model, one chart of its loss and one of its MAP on held-out queries."""
    return [
        Chart(
            f"training_{model}_{name}",
            "training",
            f"{words[0].upper()}{words[1:]} of {model}",
            "epoch",
            words,
            _logged_lines(logged, [name]),
            is_fraction=name == "map",
        )
        for model, logged in run.training.items()
        for name, words in (("loss", "loss"), ("map", "MAP"))
    ]


def _learned_charts(run: RunFiles) -> list[Chart]:
    """Makes, for each network that an attack trains, charts of its losses and its samples."""
    charts = []
    for (model, network), logged in run.learned.items():
        names = sorted({name for line in logged for name in line})
        losses = [name for name in names if name.endswith("loss")]
        losses.sort(key=lambda name: name != "loss")
        samples = [name for name in names if name.startswith("sample_")]
        for what, words, shown in (("losses", "loss", losses), ("samples", "value", samples)):
            lines = _logged_lines(logged, shown)
            is_log = what == "losses" and all(y > 0 for line in lines for y in line.y)
            name = f"learned_{model}_{network}_{what}"
            title = f"{what.capitalize()} of {display_name(network)} for {model}"
            scale = "log" if is_log else "linear"
            charts.append(
                Chart(name, "learned", title, "epoch", words, lines, False, y_scale=scale)
            )
    return charts


def _logged_lines(logged: list[dict[str, Any]], names: Sequence[str]) -> list[Line]:
    """Makes lines of logged numbers by epoch. A resumed run repeats steps: the last one counts."""
    lines = []
    for i, name in enumerate(names):
        points = {line["epoch"]: line[name] for line in logged if name in line and "epoch" in line}
        words = METRICS.get(name) or display_name(name.removeprefix("sample_"))
        look = _COLORS[i % len(_COLORS)], _DASHES[i % len(_DASHES)]
        if points:
            epochs, values = zip(*sorted(points.items()), strict=True)
            lines.append(Line(words, epochs, values, *look))
    return lines
