"""Records as rows of numbers, and as a plain-text table for the terminal."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from saat_jax.reports.records import (
    BASE_MODEL,
    Record,
    display_name,
    is_benign,
    is_suite,
    method,
)

TITLES = {"map": "MAP", "t_map": "t-MAP"}
# Per quantity of a change: factor of the number that papers print, and head, in two lines.
PERTURBATIONS = {
    "matrix_norm_linf": (1, "matrix", "L-inf"),
    "matrix_norm_l2": (1, "spectral", "L2"),
    "mse": (1e4, "MSE", "x1e-4"),
    "root_mean_square": (1e2, "Per.", "x1e-2"),
}


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


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One attack on one model with several numbers of steps, all else equal.

    Attributes:
        record: that with the most steps.
        metric: as of `Row`.
        scores: the metric by number of steps, ascending; 0 steps is benign.
        theory: the score of the code that the attack steers towards.
        lesser: the names of the other records.
    """

    record: Record
    metric: str
    scores: dict[int, float]
    theory: float | None
    lesser: list[str]


@dataclasses.dataclass(frozen=True)
class Strongest:
    """The strongest of the attacks that keep to one ball on one model.

    Attributes:
        model: whom they attack.
        epsilon: radius of the ball, in grey levels.
        attacks: the attack with the lowest MAP and that with the highest t-MAP, by metric name.
        num_attacks: how many methods there are of each.
    """

    model: str
    epsilon: float
    attacks: dict[str, Record]
    num_attacks: dict[str, int]


def percent(value: float | None, digits: int = 2) -> str:
    """Writes a fraction as a percentage; "-" if it is not known."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def query_label(record: Record) -> str:
    """Names the kind of query and the strength of its attack."""
    settings = record.get("settings") or {}
    parts = [display_name(record["attack"])]
    if settings.get("epsilon") is not None:
        parts.append(epsilon_text(record))
    if "num_steps" in settings:
        parts.append(f"{settings['num_steps']} steps")
    return ", ".join(parts)


def epsilon_text(record: Record) -> str:
    """Writes the radius of an attack's ball: "8/255", "none", or "-" if there is no attack."""
    settings = record.get("settings") or {}
    if "epsilon" not in settings:
        return "-"
    return "none" if settings["epsilon"] is None else f"{255 * settings['epsilon']:.3g}/255"


def number(value: float | None) -> str:
    """Writes a number with three digits; "-" if it is not known."""
    return "-" if value is None else f"{value:.3g}"


def by_metric(records: Sequence[Record]) -> dict[str, list[tuple[str, Record]]]:
    """Sorts the records by what they measure: "MAP@5000" to pairs of "map" and record.

    Benign records measure both MAP and t-MAP.
    """
    groups: dict[str, list[tuple[str, Record]]] = {}
    for key, title in TITLES.items():
        for record in records:
            if key in record["metrics"]:
                groups.setdefault(_metric(title, record), []).append((key, record))
    return groups


def sweeps(records: Sequence[Record]) -> list[Sweep]:
    """Finds the attacks that were run with several numbers of steps, by their settings."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        settings = dict(record.get("settings") or {})
        if "num_steps" in settings:
            del settings["num_steps"]
            same = [method(record), record["targeted"], settings, record["protocol"]]
            group = record["model"], json.dumps(same, sort_keys=True)
            groups.setdefault(group, []).append(record)
    found = []
    for (model, _), members in groups.items():
        members.sort(key=_num_steps)
        last = max(members, key=_num_steps)
        key = "t_map" if last["targeted"] else "map"
        benign = [
            r
            for r in records
            if r["model"] == model and is_benign(r) and r["protocol"] == last["protocol"]
        ]
        # From the end: of records with as many steps, the first counts, as in `last`.
        scores = {
            0 if is_benign(r) else _num_steps(r): r["metrics"][key]
            for r in reversed(benign + members)
            if key in r["metrics"]
        }
        if _num_steps(members[0]) < _num_steps(last) and len(scores) > 1:
            metric = _metric(TITLES[key], last)
            theory = last["metrics"].get(f"theory_{key}")
            lesser = [r["attack"] for r in members if r is not last]
            found.append(Sweep(last, metric, dict(sorted(scores.items())), theory, lesser))
    return found


def _num_steps(record: Record) -> int:
    return int(record["settings"]["num_steps"])


def most_steps(records: Sequence[Record]) -> list[Record]:
    """Leaves out, of an attack with several numbers of steps, all but that with the most."""
    lesser = {(s.record["model"], name) for s in sweeps(records) for name in s.lesser}
    return [record for record in records if (record["model"], record["attack"]) not in lesser]


def strongest(records: Sequence[Record]) -> list[Strongest]:
    """Finds the strongest attacks of each model and ball; those without a ball do not count.

    Balls that hold the same 8-bit images are one: SAAT's P2P and DHTA have a radius of 0.032,
    its other attacks one of 8 / 255.
    """
    balls: dict[tuple[str, float], dict[str, list[Record]]] = {}
    for record in records:
        epsilon = (record.get("settings") or {}).get("epsilon")
        key = "t_map" if record["targeted"] else "map"
        if epsilon is not None and key in record["metrics"]:
            levels = math.floor(255 * epsilon + 1e-3) or round(255 * epsilon, 3)
            ball = balls.setdefault((record["model"], levels), {})
            ball.setdefault(key, []).append(record)
    found = []
    for (model, levels), ball in balls.items():
        attacks = {}
        for key in sorted(ball):
            scores = [record["metrics"][key] for record in ball[key]]
            best = max(scores) if key == "t_map" else min(scores)
            attacks[key] = ball[key][scores.index(best)]
        methods = {key: len(set(map(method, members))) for key, members in ball.items()}
        found.append(Strongest(model, levels, attacks, methods))
    return found


def strongest_lines(records: Sequence[Record]) -> list[str]:
    """Names the strongest non-targeted and targeted attack inside each ball, a line each."""
    return [
        f"strongest on {best.model} within {best.epsilon:g}/255: "
        + "; ".join(
            f"{display_name(record['attack'])} ({TITLES[key]} {percent(record['metrics'][key])})"
            for key, record in best.attacks.items()
        )
        for best in strongest(records)
    ]


def result_rows(records: Sequence[Record], *, theory: bool = True) -> list[Row]:
    """Sorts the numbers into rows: MAP with theory and base rate, then t-MAP with theory."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    attacks = set()
    for key, title in TITLES.items():
        for record in records:
            metric, label = _metric(title, record), query_label(record)
            for name, row in ((key, label), (f"theory_{key}", f"{label}, theory")):
                if name in record["metrics"] and (theory or name == key):
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


def terminal_tables(records: Sequence[Record]) -> str:
    """Writes the tables that the records of a run call for: models, attacks, steps.

    Few attacks: `summary_table`. Many: `attack_table`, and below it the summary if there are
    several models. In both cases `iterations_table` where there is something for it.
    """
    several = len({record["model"] for record in records}) > 1
    suite = is_suite(records)
    parts = [
        _attack_lines(records) if suite else [],
        _iteration_lines(records) if sweeps(records) else [],
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
    rows = result_rows(records, theory=not is_suite(records))
    table = [["", *models]]
    for i, row in enumerate(rows):
        if i == 0 or row.metric != rows[i - 1].metric:
            table.append([row.metric, *[""] * len(models)])
        table.append([f"  {row.label}", *(percent(row.values.get(model)) for model in models)])
    gains = [line for comparison in compare(records) if (line := gain_line(comparison))]
    return [*aligned(table), *gains]


def _attack_lines(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["no records yet: nothing has been evaluated"]
    _, first, second = zip(*PERTURBATIONS.values(), strict=True)
    heads = ["", "", "", "", *first, "seconds"], ["score", "theory", "steps", "epsilon", *second]
    lines = []
    for model in dict.fromkeys(record["model"] for record in records):
        table = [[model, *heads[0]], ["", *heads[1], "/image"]]
        for metric, group in by_metric([r for r in records if r["model"] == model]).items():
            table.append([metric, *[""] * len(heads[0])])
            for key, record in group:
                sizes = record.get("perturbation") or {}
                table.append(
                    [
                        f"  {display_name(record['attack'])}",
                        percent(record["metrics"][key]),
                        percent(record["metrics"].get(f"theory_{key}")),
                        str((record.get("settings") or {}).get("num_steps", "-")),
                        epsilon_text(record),
                        *(
                            f"{sizes[name] * factor:.2f}" if name in sizes else "-"
                            for name, (factor, *_) in PERTURBATIONS.items()
                        ),
                        number(record.get("seconds_per_image")),
                    ]
                )
        lines += [*aligned(table, num_heads=2), ""]
    return lines[:-1] + strongest_lines(records)


def _iteration_lines(records: Sequence[Record]) -> list[str]:
    found = sweeps(records)
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
    targets = list(matrix["benign"])
    rows = {"benign": matrix["benign"], **matrix["matrix"]}
    table = [
        [transfer_title(matrix), *targets],
        *([name, *(percent(row[target]) for target in targets)] for name, row in rows.items()),
    ]
    return "\n".join([*aligned(table), *protocol_lines([{"model": "", **matrix}])])


def transfer_title(matrix: dict[str, Any]) -> str:
    """Names the metric and the attack of a transfer matrix."""
    return f"{_metric(TITLES[matrix['metric']], matrix)}, {query_label(matrix)}"


def aligned(table: Sequence[Sequence[str]], *, num_heads: int = 1) -> list[str]:
    """Lines of a table of text, its first rows its head, between rules."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in table
    ]
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + 2 * (len(widths) - 1))
    return [*lines[:num_heads], rule, *lines[num_heads:], rule]


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
