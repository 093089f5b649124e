"""What the records of a run say together: rows of numbers, comparisons, strongest attacks."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from saat_jax.reports.records import (
    BASE_MODEL,
    METRICS,
    Record,
    display_name,
    is_benign,
    is_worst_case,
    method,
    settings_of,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result table.

    Attributes:
        metric: name with its cut-off, such as "MAP@5000" or "t-MAP@all".
        label: kind of query, with the attack's strength.
        values: fraction in [0, 1] by model; models without the number are absent.
        is_attack: whether an attack was run; not so for benign, theory and base rate rows.
        epsilon: radius of its ball as text; empty without an attack.
    """

    metric: str
    label: str
    values: dict[str, float]
    is_attack: bool
    epsilon: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """MAP of `pretrained` (before) and of another model (after), clean and attacked.

    Attacked is the worst of `attacks`, which are those that both models stood; where there is no
    such attack, those on `pretrained`. Of several balls, the one with most attacks counts. None is
    "not known".
    """

    model: str | None
    clean_before: float | None
    clean_after: float | None
    attacked_before: float | None
    attacked_after: float | None
    attacks: list[str]
    comparable: bool
    base_rate: float | None = None

    @property
    def skill(self) -> tuple[float | None, float | None]:
        """Attacked MAP above chance, before and after: 1 is perfect, 0 what random codes score."""
        before, after = self.attacked_before, self.attacked_after
        return _skill(before, self.base_rate), _skill(after, self.base_rate)


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


def query_label(record: Record) -> str:
    """Names the kind of query and the strength of its attack."""
    name = display_name(record["attack"])
    # Of several balls each has its radius in its name, and again after it.
    parts = [re.sub(r"[ \d]+$", "", name) if is_worst_case(record) else name]
    if settings_of(record).get("epsilon") is not None:
        parts.append(epsilon_text(record))
    if (steps := _num_steps(record)) is not None:
        parts.append(f"{steps} steps")
    return ", ".join(parts)


def epsilon_text(record: Record) -> str:
    """Writes the radius of an attack's ball: "8/255", of another norm than "linf" "8/255 l2";
    "none", or "-" if there is no attack.
    """
    settings = settings_of(record)
    if "epsilon" not in settings:
        return "-"
    if settings["epsilon"] is None:
        return "none"
    norm = settings.get("norm", "linf")
    return f"{255 * settings['epsilon']:.3g}/255" + f" {norm}" * (norm != "linf")


def by_metric(records: Sequence[Record]) -> dict[str, list[tuple[str, Record]]]:
    """Sorts the records by what they measure: "MAP@5000" to pairs of "map" and record.

    Benign records measure both MAP and t-MAP.
    """
    groups: dict[str, list[tuple[str, Record]]] = {}
    for key in METRICS:
        for record in records:
            if key in record["metrics"]:
                groups.setdefault(metric_name(key, record), []).append((key, record))
    return groups


def balls(records: Sequence[Record]) -> list[tuple[Record, str, dict[float, float]]]:
    """The worst cases of each model by the radius of the ball, where there are several.

    Returns:
        The record of the largest ball, the metric's name, and the score by radius in grey levels,
        zero being benign.
    """
    groups: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        if is_worst_case(record):
            groups.setdefault((record["model"], record["targeted"]), []).append(record)
    found = []
    for (model, targeted), members in groups.items():
        key = "t_map" if targeted else "map"
        benign = [r for r in records if r["model"] == model and is_benign(r)]
        scores: dict[float, float] = {
            255 * (settings_of(r).get("epsilon") or 0): r["metrics"][key]
            for r in (*benign, *members)
            if key in r["metrics"]
        }
        if len(members) > 1:
            scores = {level: scores[level] for level in sorted(scores)}
            found.append((members[-1], metric_name(key, members[-1]), scores))
    return found


def sweeps(records: Sequence[Record]) -> list[Sweep]:
    """Finds the attacks that were run with several numbers of steps, by their settings."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        settings = dict(settings_of(record))
        if settings.pop("num_steps", None) is not None:
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
            metric = metric_name(key, last)
            theory = last["metrics"].get(f"theory_{key}")
            lesser = [r["attack"] for r in members if r is not last]
            found.append(Sweep(last, metric, dict(sorted(scores.items())), theory, lesser))
    return found


def _num_steps(record: Record) -> Any:
    return settings_of(record).get("num_steps")


def most_steps(records: Sequence[Record]) -> list[Record]:
    """Leaves out, of an attack with several numbers of steps, all but that with the most."""
    lesser = {(s.record["model"], name) for s in sweeps(records) for name in s.lesser}
    return [record for record in records if (record["model"], record["attack"]) not in lesser]


def strongest(records: Sequence[Record]) -> list[Strongest]:
    """Finds the strongest attacks of each model and ball; those without a ball, or with one of
    another norm than "linf", do not count.

    Balls that hold the same 8-bit images are one: SAAT's P2P and DHTA have a radius of 0.032,
    its other attacks one of 8 / 255.
    """
    balls: dict[tuple[str, float], dict[str, list[Record]]] = {}
    for record in records:
        epsilon = settings_of(record).get("epsilon")
        key = "t_map" if record["targeted"] else "map"
        norm = settings_of(record).get("norm", "linf")
        if epsilon is not None and norm == "linf" and key in record["metrics"]:
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


def result_rows(records: Sequence[Record], *, theory: bool = True) -> list[Row]:
    """Sorts the numbers into rows: MAP with theory and base rate, then t-MAP with theory."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    attacks: dict[tuple[str, str], str] = {}
    for key in METRICS:
        for record in records:
            metric, label = metric_name(key, record), query_label(record)
            for name, row in ((key, label), (f"theory_{key}", f"{label}, theory")):
                if name in record["metrics"] and (theory or name == key):
                    value = record["metrics"][name]
                    cells.setdefault((metric, row), {})[record["model"]] = value
                    if name == key and not is_benign(record):
                        attacks[metric, row] = epsilon_text(record)
    # The share of relevant pairs is what a random order scores against the own labels.
    for record in records:
        if "base_rate" in record["protocol"]:
            row_key = (metric_name("map", record), "base rate")
            cells.setdefault(row_key, {})[record["model"]] = record["protocol"]["base_rate"]
    metrics = dict.fromkeys(metric for metric, _ in cells)
    return [
        Row(metric, label, values, (metric, label) in attacks, attacks.get((metric, label), ""))
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
        balls = [row.epsilon for row in shared or attacked]
        ball = max(balls, key=balls.count, default="")
        attacked, shared = (
            [row for row in found if row.epsilon == ball] for found in (attacked, shared)
        )
        comparisons.append(
            Comparison(
                model,
                clean.get(BASE_MODEL),
                clean.get(model or ""),
                min((row.values[BASE_MODEL] for row in shared or attacked), default=None),
                min((row.values[model or ""] for row in shared), default=None),
                [row.label for row in shared or attacked],
                len(protocols(r for r in records if r["model"] in pair)) == 1,
                next(
                    (row.values.get(BASE_MODEL) for row in rows if row.label == "base rate"), None
                ),
            )
        )
    return comparisons


def _skill(score: float | None, base_rate: float | None) -> float | None:
    if score is None or base_rate is None or base_rate >= 1:
        return None
    return (score - base_rate) / (1 - base_rate)


def metric_name(key: str, record: Record) -> str:
    """Names a metric with its cut-off: "map" is "MAP@5000", or "MAP@all"."""
    return f"{METRICS[key]}@{record['protocol'].get('k') or 'all'}"


def protocols(records: Iterable[Record]) -> dict[str, list[str]]:
    """Maps each distinct protocol, as JSON text, to the names of its records."""
    owners: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for record in records:
        protocol: dict[str, Any] = record["protocol"]
        text = seen.setdefault(json.dumps(protocol, sort_keys=True), json.dumps(protocol))
        # A transfer matrix is of no model alone.
        owner = f"{record.get('model', '')} {display_name(record['attack'])}".strip()
        owners.setdefault(text, []).append(owner)
    return owners
