"""Several runs side by side: means over seeds, their spread, and differences query by query."""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from saat_jax import files
from saat_jax.reports import analysis, charts, gallery, page, tables
from saat_jax.reports.charts import Chart, Line
from saat_jax.reports.records import METRICS, Record, is_benign, is_worst_case, load_run
from saat_jax.reports.sections import Section, Table

# An experiment is a folder of runs that differ in their seed alone.
_SEED = re.compile(r"seed_(\d+)")
_DRAWS = 2000
# Of a protocol, what queries do not depend on.
_OWN = ("num_bits", "precision")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared: a model of a run, or of the runs of an experiment.

    Attributes:
        label: its name.
        records: by seed and by the name of the attack.
        scores: `[num_queries]` average precision, by the same.
    """

    label: str
    records: Mapping[str, Mapping[str, Record]]
    scores: Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more one arm scores than another, in the mean over queries and seeds.

    Attributes:
        mean: of the differences.
        interval: 95 %, by drawing the queries of each seed again.
        by_seed: the mean of each seed.
        num_queries: in all.
    """

    mean: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]
    num_queries: int


def load_arms(folders: Sequence[str | os.PathLike[str]]) -> list[Arm]:
    """Reads runs, or experiments: folders of runs `seed_0`, `seed_1`, ...

    Args:
        folders: of runs or experiments.

    Returns:
        An arm for each model of each folder; of several folders, named after both.

    Raises:
        ValueError: if a folder has no records, or a file is damaged.
    """
    arms = []
    for folder in map(pathlib.Path, folders):
        seeds = [path for path in sorted(folder.glob("seed_*")) if _SEED.fullmatch(path.name)]
        runs = {path.name if seeds else "": load_run(path) for path in seeds or [folder]}
        if damaged := [line for run in runs.values() for line in run.damaged]:
            raise ValueError("\n".join(damaged))
        models = dict.fromkeys(model for run in runs.values() for model in run.models)
        if not any(run.records for run in runs.values()):
            raise ValueError(f"{folder} has no records; name the --workdir of a run, or of --seeds")
        for model in models:
            records = {
                seed: {r["attack"]: r for r in run.records if r["model"] == model}
                for seed, run in runs.items()
            }
            scores = {
                seed: {
                    attack: run.examples[model, attack]["average_precision"]
                    for attack in records[seed]
                    if "average_precision" in run.examples.get((model, attack), {})
                }
                for seed, run in runs.items()
            }
            label = f"{folder.name}: {model}" if len(folders) > 1 else model
            arms.append(Arm(label, records, scores))
    return arms


def difference(one: Arm, other: Arm, attack: str, *, seed: int = 0) -> Difference | None:
    """How much more one arm scores than another on the same queries; None if they share none.

    Args:
        one: an arm.
        other: the arm that is taken off.
        attack: name of the attack, or "benign".
        seed: of the draws.
    """
    apart = []
    for run in one.records:
        if not all(attack in arm.scores.get(run, {}) for arm in (one, other)):
            continue
        mine, theirs = (arm.scores[run][attack] for arm in (one, other))
        same = _queries_of(one.records[run][attack]) == _queries_of(other.records[run][attack])
        if same and len(mine) == len(theirs):
            apart.append(np.asarray(mine, float) - theirs)
    if not apart:
        return None
    rng = np.random.default_rng(seed)
    means = np.zeros(_DRAWS)
    for values in apart:
        drawn = rng.integers(len(values), size=(_DRAWS, len(values)))
        means += values[drawn].mean(axis=1) / len(apart)
    by_seed = tuple(float(values.mean()) for values in apart)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Difference(float(np.mean(by_seed)), (low, high), by_seed, sum(map(len, apart)))


def _queries_of(record: Record) -> dict[str, object]:
    """What two records of the same queries and the same judging share."""
    return {name: value for name, value in record["protocol"].items() if name not in _OWN}


def comparison(arms: Sequence[Arm]) -> Section:
    """The scores of arms, and what each scores more than the first, as tables and a chart."""
    first, *others = arms
    rows, apart = [], []
    for attack, record in _attacks(arms).items():
        key = "t_map" if record["targeted"] else "map"
        what = f"{METRICS[key]} {analysis.query_label(record)}"
        rows.append([what, *(_spread(_values(arm, attack, key)) for arm in arms)])
        found = [difference(arm, first, attack) for arm in others]
        if any(found):
            apart.append([what, *map(_difference_text, found)])
    seeds = max(len(arm.records) for arm in arms)
    spread = f"Mean of {seeds} seeds, least and most in brackets." if seeds > 1 else "One seed."
    flags = {
        line
        for arm in arms
        for records in arm.records.values()
        for line in tables.flag_lines([*records.values()])
    }
    return Section(
        title="Scores",
        note="A run's score is the mean over its queries. Differences are between the same queries "
        "of the same seed.",
        tables=[
            Table(spread, ["", *(arm.label for arm in arms)], rows),
            Table(
                f"Above {first.label}, in points, with the 95 % interval over queries (paired "
                "bootstrap); of several seeds each follows.",
                ["", *(arm.label for arm in others)],
                apart,
            ),
        ],
        charts=_frontier(arms),
        flags=sorted(flags),
    )


def _attacks(arms: Sequence[Arm]) -> dict[str, Record]:
    """A record of each attack of any arm: benign, then in the order of the first that has it."""
    found: dict[str, Record] = {}
    for arm in arms:
        for records in arm.records.values():
            for attack, record in records.items():
                found.setdefault(attack, record)
    return found


def _values(arm: Arm, attack: str, key: str) -> list[float]:
    records = (records.get(attack) for records in arm.records.values())
    return [record["metrics"][key] for record in records if record and key in record["metrics"]]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{100 * np.mean(values):.1f} %"
    low, high = 100 * min(values), 100 * max(values)
    return f"{mean} ({low:.1f}-{high:.1f})" if len(values) > 1 else mean


def _difference_text(found: Difference | None) -> str:
    if found is None:
        return "-"
    low, high = (100 * end for end in found.interval)
    text = f"{100 * found.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    if len(found.by_seed) > 1:
        text += "; " + ", ".join(f"{100 * value:+.1f}" for value in found.by_seed)
    return text


def _frontier(arms: Sequence[Arm]) -> list[Chart]:
    """Clean MAP against worst-case MAP, a mark for each seed."""
    worst = [a for a, r in _attacks(arms).items() if is_worst_case(r) and not r["targeted"]]
    benign = [a for a, r in _attacks(arms).items() if is_benign(r)]
    if not worst or not benign:
        return []
    lines = []
    for place, arm in enumerate(arms):
        clean, attacked = _values(arm, benign[0], "map"), _values(arm, worst[-1], "map")
        if clean and len(clean) == len(attacked):
            look = charts.look(place) | {"dash": "", "mark": "o"}
            lines.append(Line(arm.label, clean, attacked, **look))
    record = _attacks(arms)[worst[-1]]
    return [
        Chart(
            "frontier", "scores", "Clean against worst case", "clean MAP",
            f"MAP, {analysis.query_label(record)}", lines, True,
        )
    ] if lines else []  # fmt: skip


def show_comparison(folders: Sequence[str | os.PathLike[str]], path: pathlib.Path) -> None:
    """Prints the comparison of runs, and writes its page.

    Args:
        folders: as of `load_arms`.
        path: of the page.

    Raises:
        ModuleNotFoundError: if a package that the page takes is not installed; the tables are
            printed all the same.
        ValueError: as of `load_arms` and `comparison`.
    """
    shown = comparison(load_arms(folders))
    lines = [line for table in shown.tables for line in _lines(table)]
    try:
        page.check_packages()
        drawings = [(chart, gallery.drawn(chart)) for chart in shown.charts]
        title = ", ".join(pathlib.Path(folder).name for folder in folders)
        template = page.environment().get_template("sections.html")
        content = template.render(
            kicker="Comparison", title=title, sections=[(shown, drawings)], flags=shown.flags
        )
        files.write_bytes(path, content.encode())
    finally:
        print(tables.for_terminal("\n".join([*lines, *shown.flags]), sys.stdout.encoding))
    print(tables.for_terminal(f"report: {path}", sys.stdout.encoding))


def _lines(table: Table) -> list[str]:
    if not table.rows:
        return []
    return [table.caption, *tables.aligned([[*table.heads], *map(list, table.rows)])]
