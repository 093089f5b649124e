"""Records as plain-text tables for the terminal."""

import json
from collections.abc import Sequence
from typing import Any

from saat_jax import options
from saat_jax.reports import analysis
from saat_jax.reports.records import (
    BASE_MODEL,
    METRICS,
    Record,
    display_name,
    is_benign,
    is_suite,
    is_worst_case,
    settings_of,
    transfer_rows,
)

# Per quantity of a change: factor of the number that papers print, and head, in two lines.
PERTURBATIONS = {
    "matrix_norm_linf": (1, "matrix", "L-inf"),
    "matrix_norm_l2": (1, "spectral", "L2"),
    "mse": (1e4, "MSE", "x1e-4"),
    "root_mean_square": (1e2, "Per.", "x1e-2"),
}
# The one letter of the tables that not every terminal has.
_RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"


def printable(text: str) -> str:
    """Text whose control characters, and what is no character at all, are shown as escapes."""
    return "\n".join(options.shortened(line, 10 * len(line)) for line in text.split("\n"))


def for_terminal(text: str, encoding: str | None) -> str:
    r"""Text as a terminal of an encoding can show it, such as `sys.stdout.encoding`.

    Example:
        >>> for_terminal("\u2500 \u00e9", "ascii")
        '- \\xe9'
    """
    text, encoding = printable(text), encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace(_RULE, "-").encode(encoding, "backslashreplace").decode(encoding)
    return text


def percent(value: float | None, digits: int = 2) -> str:
    """Writes a fraction as a percentage; "-" if it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def attack_cells(key: str, record: Record) -> list[str]:
    """Writes a record's score ("map" or "t_map"), theory, steps, epsilon, change and time."""
    sizes = record.get("perturbation") or {}
    seconds = record.get("seconds_per_image")
    return [
        percent(record["metrics"][key]),
        percent(record["metrics"].get(f"theory_{key}")),
        plain(settings_of(record).get("num_steps")),
        analysis.epsilon_text(record),
        *(
            f"{sizes[name] * factor:.2f}" if name in sizes else "-"
            for name, (factor, *_) in PERTURBATIONS.items()
        ),
        "-" if seconds is None else f"{seconds:.3g}",
    ]


def strongest_lines(records: Sequence[Record]) -> list[str]:
    """Names the strongest non-targeted and targeted attack inside each ball, a line each."""
    lines = []
    for best in analysis.strongest(records):
        names = [
            f"{display_name(r['attack'])} ({METRICS[key]} {percent(r['metrics'][key])})"
            for key, r in best.attacks.items()
        ]
        lines.append(f"strongest on {best.model} within {best.epsilon:g}/255: {'; '.join(names)}")
    return lines


def gain_line(comparison: analysis.Comparison) -> str | None:
    """Says in a line what hardening gains and costs; None while a number is missing."""
    clean = comparison.clean_before, comparison.clean_after
    attacked = comparison.attacked_before, comparison.attacked_after
    if comparison.model is None or None in clean + attacked:
        return None
    name = "hardening" if comparison.model == "hardened" else comparison.model
    if not comparison.comparable:
        return f"{name}: not compared with {BASE_MODEL}, as their protocols differ"
    worst = f" (worst of {len(comparison.attacks)})" if len(comparison.attacks) > 1 else ""
    return (
        f"{name}: attacked MAP{worst} {percent(attacked[0], 1)} -> {percent(attacked[1], 1)}"
        f"{_in_brackets(_above_chance(comparison))}, clean MAP {percent(clean[0], 1)} -> "
        f"{percent(clean[1], 1)}{_in_brackets(points(*clean))}"
    )


def _above_chance(comparison: analysis.Comparison) -> str:
    before, after = comparison.skill
    if before is None or after is None:
        return ""
    return f"skill above chance {before:.2f} -> {after:.2f}"


def interval_lines(records: Sequence[Record]) -> list[str]:
    """Writes how far chance in the queries may have moved benign and worst-case scores."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.get("interval") and (is_benign(record) or is_worst_case(record)):
            low, high = (f"{100 * end:.1f}" for end in record["interval"])
            # Benign queries have one of MAP.
            key = "t_map" if record["targeted"] else "map"
            what = f"{METRICS[key]} {analysis.query_label(record)}"
            found.setdefault(what, []).append(f"{record['model']} {low} to {high} %")
    return [f"95 % interval over queries, {what}: {'; '.join(s)}" for what, s in found.items()]


def flag_lines(records: Sequence[Record]) -> list[str]:
    """Writes the flags that were raised: what is wrong with which number, and what to do."""
    lines: dict[str, list[str]] = {}
    for record in records:
        for flag in record.get("flags") or ():
            what = f"{display_name(flag['flag'])} ({flag['meaning']}; {flag['advice']})"
            owner = f"{record['model']} {display_name(record['attack'])} {flag['value']:.3g}"
            lines.setdefault(what, []).append(owner)
    return [f"FLAG {what}: {', '.join(owners)}" for what, owners in lines.items()]


def points(before: float | None, after: float | None) -> str:
    """Writes the difference in percentage points: "-6.1 points"; empty if not known."""
    if before is None or after is None:
        return ""
    # `+ 0.0` turns the -0.0 of a tiny loss into 0.0.
    return f"{round(100 * (after - before), 1) + 0.0:+.1f} points"


def protocol_lines(records: Sequence[Record]) -> list[str]:
    """Writes how the numbers were measured: one line, or one per protocol if they differ."""
    protocols = analysis.protocols(records)
    lines = []
    for protocol, owners in protocols.items():
        words = "; ".join(
            f"{key.removeprefix('num_').replace('_', ' ')} {plain(value, 'all')}"
            for key, value in json.loads(protocol).items()
        )
        whose = f" of {', '.join(owners)}" if len(protocols) > 1 else ""
        lines.append(f"protocol{whose}: {words}")
    return lines


def differences(earlier: Record, record: Record | None) -> str:
    """Says in what a record of other settings differs from that in its place.

    What made the model, and the items of the data set, are not in records.
    """
    if record is None:
        return "there is none in its place"
    old, new = (
        {"version": r.get("version"), "device": r.get("device")} | r["protocol"] | settings_of(r)
        for r in (earlier, record)
    )
    parts = [
        f"{display_name(name)} {plain(old.get(name))}, now {plain(new.get(name))}"
        for name in old | new
        if old.get(name) != new.get(name)
    ]
    return "; ".join(parts) or "the model, the data or the target labels"


def plain(value: Any, absent: str = "-") -> str:
    """Writes a setting in a few letters; `absent` for None."""
    if value is None:
        return absent
    return f"{value:.4g}" if isinstance(value, float) else options.shortened(value)


def terminal_tables(records: Sequence[Record]) -> str:
    """Writes the tables that the records of a run call for: models, attacks, steps.

    Few attacks: `summary_table`. Many: `attack_table`, and below it the summary if there are
    several models. In both cases `iterations_table` where there is something for it.
    """
    several = several_models(records)
    suite = is_suite(records)
    parts = [
        _attack_lines(records) if suite else [],
        _iteration_lines(records) if analysis.sweeps(records) else [],
        _summary_lines(records) if several or not suite else [],
    ]
    shown = "\n\n".join("\n".join(part) for part in parts if part)
    return "\n".join([shown, *protocol_lines(records)])


def summary_table(records: Sequence[Record]) -> str:
    """Writes the result table of a run as aligned plain text for the terminal.

    Rows are kinds of queries, grouped by metric; columns are models. Below stand what
    hardening gains and costs, and the protocol behind every number. Theory is left to
    `attack_table` where there are many attacks.

    Args:
        records: as `load_records` returns them; numbers not yet there show as "-".

    Returns:
        Lines without a trailing newline.
    """
    return "\n".join([*_summary_lines(records), *protocol_lines(records)])


def attack_table(records: Sequence[Record]) -> str:
    """Writes all attacks side by side, for each model, as aligned plain text.

    The analogue of SAAT's Tables II, V and VII and ProS-GAN's Tables 1 and 2. MAP and its
    theory, settings, size of the change, and time. "matrix L-inf" and "spectral L2" are what
    SAAT's Table VII calls L_inf and L_2, "Per." is ProS-GAN's root mean square. Below stands
    the strongest attack inside the ball.

    Args:
        records: as `load_records` returns them.

    Returns:
        Lines without a trailing newline.
    """
    return "\n".join([*_attack_lines(records), *protocol_lines(records)])


def iterations_table(records: Sequence[Record]) -> str:
    """Writes the scores of attacks by their number of steps: the analogue of SAAT's Table VI.

    A row holds the records that differ in nothing but `num_steps`; 0 steps is benign.

    Args:
        records: as `load_records` returns them.

    Returns:
        Lines without a trailing newline.
    """
    return "\n".join([*_iteration_lines(records), *protocol_lines(records)])


def _summary_lines(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["no records yet: nothing has been evaluated"]
    models = list(dict.fromkeys(record["model"] for record in records))
    rows = analysis.result_rows(records, theory=not is_suite(records))
    table = [["", *models]]
    for i, row in enumerate(rows):
        if i == 0 or row.metric != rows[i - 1].metric:
            table.append([row.metric, *[""] * len(models)])
        table.append([f"  {row.label}", *(percent(row.values.get(model)) for model in models)])
    gains = [line for comparison in analysis.compare(records) if (line := gain_line(comparison))]
    return [*aligned(table), *gains, *interval_lines(records), *flag_lines(records)]


def _attack_lines(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["no records yet: nothing has been evaluated"]
    _, first, second = zip(*PERTURBATIONS.values(), strict=True)
    heads = ["", "", "", "", *first, "seconds"], ["score", "theory", "steps", "epsilon", *second]
    lines = []
    for model in dict.fromkeys(record["model"] for record in records):
        table = [[model, *heads[0]], ["", *heads[1], "/image"]]
        own = [record for record in records if record["model"] == model]
        for metric, group in analysis.by_metric(own).items():
            table.append([metric, *[""] * len(heads[0])])
            for key, record in group:
                table.append([f"  {display_name(record['attack'])}", *attack_cells(key, record)])
        lines += [*aligned(table, num_heads=2), ""]
    evidence = [] if several_models(records) else interval_lines(records) + flag_lines(records)
    return lines[:-1] + strongest_lines(records) + evidence


def several_models(records: Sequence[Record]) -> bool:
    """Tells whether the records are of more than one model."""
    return len({record["model"] for record in records}) > 1


def _iteration_lines(records: Sequence[Record]) -> list[str]:
    found = analysis.sweeps(records)
    if not found:
        return ["no attack was run with several numbers of steps"]
    steps = sorted({steps for sweep in found for steps in sweep.scores})
    table = [["steps", *map(str, steps), "theory"]]
    for metric in dict.fromkeys(sweep.metric for sweep in found):
        table.append([metric, *[""] * (len(steps) + 1)])
        table += [
            [
                f"  {display_name(sweep.record['attack'])} on {sweep.record['model']}",
                *(percent(sweep.scores.get(t)) for t in steps),
                percent(sweep.theory),
            ]
            for sweep in found
            if sweep.metric == metric
        ]
    return aligned(table)


def transfer_table(matrix: dict[str, Any]) -> str:
    """Writes a transfer matrix of `evaluation.transfer` as aligned plain text.

    Rows are the models that images were crafted on, columns those that judged them.
    """
    table = [
        [transfer_title(matrix), *matrix["benign"]],
        *(
            [name, *(percent(row[target]) for target in matrix["benign"])]
            for name, row in transfer_rows(matrix).items()
        ),
    ]
    return "\n".join([*aligned(table), *protocol_lines([matrix])])


def transfer_title(matrix: dict[str, Any]) -> str:
    """Names the metric and the attack of a transfer matrix."""
    metric = analysis.metric_name(matrix["metric"], matrix)
    return f"{metric}, {analysis.query_label(matrix)}"


def aligned(table: Sequence[Sequence[str]], *, num_heads: int = 1) -> list[str]:
    """Lines of a table of text, its first rows its head, between rules."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in table
    ]
    rule = _RULE * (sum(widths) + 2 * (len(widths) - 1))
    return [*lines[:num_heads], rule, *lines[num_heads:], rule]


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
