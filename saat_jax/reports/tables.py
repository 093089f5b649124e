"""Records as rows of numbers, and as a plain-text table for the terminal."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from saat_jax.reports.records import BASE_MODEL, Record, display_name, is_benign


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result table.

    Attributes:
        metric: name with its cut-off, such as "MAP@5000" or "t-MAP@all".
        label: kind of query, with the attack's strength.
        values: fraction in [0, 1] by model; models without the number are absent.
        is_attack: whether an attack was run; not so for benign, theory and base rate rows.
    """

    metric: str
    label: str
    values: dict[str, float]
    is_attack: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """MAP of `pretrained` (before) and of another model (after), clean and attacked.

    Attacked is the worst of `attacks`, which are those that both models stood; where there is no
    such attack, those on `pretrained`. None is "not known".
    """

    model: str | None
    clean_before: float | None
    clean_after: float | None
    attacked_before: float | None
    attacked_after: float | None
    attacks: list[str]
    comparable: bool


def percent(value: float | None, digits: int = 2) -> str:
    """Writes a fraction as a percentage; "-" if it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def query_label(record: Record) -> str:
    """Names the kind of query and the strength of its attack."""
    settings = record.get("settings") or {}
    parts = [display_name(record["attack"])]
    if "epsilon" in settings:
        parts.append(f"{255 * settings['epsilon']:.3g}/255")
    if "num_steps" in settings:
        parts.append(f"{settings['num_steps']} steps")
    return ", ".join(parts)


def result_rows(records: Sequence[Record]) -> list[Row]:
    """Sorts the numbers into rows: MAP with theory and base rate, then t-MAP with theory."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    attacks = set()
    for key, title in (("map", "MAP"), ("t_map", "t-MAP")):
        for record in records:
            metric, label = _metric(title, record), query_label(record)
            for name, row in ((key, label), (f"theory_{key}", f"{label}, theory")):
                if name in record["metrics"]:
                    value = record["metrics"][name]
                    cells.setdefault((metric, row), {})[record["model"]] = value
                    if name == key and not is_benign(record):
                        attacks.add((metric, row))
    # The share of relevant pairs is what a random order scores against the own labels.
    for record in records:
        if "base_rate" in record["protocol"]:
            row_key = (_metric("MAP", record), "base rate")
            cells.setdefault(row_key, {})[record["model"]] = record["protocol"]["base_rate"]
    metrics = dict.fromkeys(metric for metric, _ in cells)
    return [
        Row(metric, label, values, (metric, label) in attacks)
        for wanted in metrics
        for (metric, label), values in cells.items()
        if metric == wanted
    ]


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Compares `pretrained` with each other model; with none, it stands alone."""
    rows = [row for row in result_rows(records) if row.metric.startswith("MAP")]
    rows = [row for row in rows if row.metric == rows[0].metric]
    clean = next((row.values for row in rows if row.label == "benign"), {})
    others = list(dict.fromkeys(r["model"] for r in records if r["model"] != BASE_MODEL))
    comparisons = []
    for model in others or [None]:
        pair = {BASE_MODEL, model} - {None}
        attacked = [row for row in rows if row.is_attack and BASE_MODEL in row.values]
        shared = [row for row in attacked if model in row.values]
        comparisons.append(
            Comparison(
                model,
                clean.get(BASE_MODEL),
                clean.get(model or ""),
                min((row.values[BASE_MODEL] for row in shared or attacked), default=None),
                min((row.values[model or ""] for row in shared), default=None),
                [row.label for row in shared or attacked],
                len(_protocols(r for r in records if r["model"] in pair)) == 1,
            )
        )
    return comparisons


def gain_line(comparison: Comparison) -> str | None:
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
        f"{_in_brackets(times(*attacked))}, clean MAP {percent(clean[0], 1)} -> "
        f"{percent(clean[1], 1)}{_in_brackets(points(*clean))}"
    )


def times(before: float | None, after: float | None) -> str:
    """Writes the ratio: "4.6 times"; empty if it is not known or has no meaning."""
    return f"{after / before:.1f} times" if before and after is not None else ""


def points(before: float | None, after: float | None) -> str:
    """Writes the difference in percentage points: "-6.1 points"; empty if not known."""
    if before is None or after is None:
        return ""
    # `+ 0.0` turns the -0.0 of a tiny loss into 0.0.
    return f"{round(100 * (after - before), 1) + 0.0:+.1f} points"


def protocol_lines(records: Sequence[Record]) -> list[str]:
    """Writes how the numbers were measured: one line, or one per protocol if they differ."""
    protocols = _protocols(records)
    lines = []
    for protocol, owners in protocols.items():
        words = "; ".join(
            f"{key.removeprefix('num_').replace('_', ' ')} {_plain(value)}"
            for key, value in json.loads(protocol).items()
        )
        whose = f" of {', '.join(owners)}" if len(protocols) > 1 else ""
        lines.append(f"protocol{whose}: {words}")
    return lines


def _plain(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary_table(records: Sequence[Record]) -> str:
    """Writes the result table of a run as aligned plain text for the terminal.

    Rows are kinds of queries, grouped by metric; columns are models. Below stand what
    hardening gains and costs, and the protocol behind every number.

    Args:
        records: as `load_records` returns them; numbers not yet there show as "-".

    Returns:
        Lines without a trailing newline.
    """
    if not records:
        return "no records yet: nothing has been evaluated"
    models = list(dict.fromkeys(record["model"] for record in records))
    rows = result_rows(records)
    table = [["", *models]]
    for i, row in enumerate(rows):
        if i == 0 or row.metric != rows[i - 1].metric:
            table.append([row.metric, *[""] * len(models)])
        table.append([f"  {row.label}", *(percent(row.values.get(model)) for model in models)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in table
    ]
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + 2 * len(models))
    gains = [line for comparison in compare(records) if (line := gain_line(comparison))]
    return "\n".join([lines[0], rule, *lines[1:], rule, *gains, *protocol_lines(records)])


def _metric(title: str, record: Record) -> str:
    return f"{title}@{record['protocol'].get('k') or 'all'}"


def _protocols(records: Iterable[Record]) -> dict[str, list[str]]:
    """Maps each distinct protocol, as JSON text, to the names of its records."""
    owners: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for record in records:
        protocol: dict[str, Any] = record["protocol"]
        text = seen.setdefault(json.dumps(protocol, sort_keys=True), json.dumps(protocol))
        owners.setdefault(text, []).append(f"{record['model']} {display_name(record['attack'])}")
    return owners


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
