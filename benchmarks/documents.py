"""The figures that README, docs and configs state, written from stored records of runs.

    python -m benchmarks.documents
    python -m benchmarks.documents --keep runs/demo --name demo --seconds 103

The first writes every figure into its place; the second stores the records of a run in
`docs/records/`, with the machine that it is called on, and then does the same.

A figure stands between marks that say which it is: `<!-- figure: demo table -->` and `<!-- / -->`
in Markdown, comment lines `# figure: demo summary` and `# /` in Python. There are

    RUN table                       the table that the run prints, in a fence
    RUN PART                        the table that a part of an audit prints (audit, edits, ...), in
                                    a fence
    RUN seeds                       models over the runs RUN, RUN_1, ...: mean, least and most, and
                                    what SAAT is above the others, seed by seed, in a fence
    RUN summary                     machine, time, what hardening gains and costs, in a sentence
    RUN machine, RUN minutes
    RUN MODEL ATTACK METRIC         a metric of a record, or its base_rate, in percent
    RUN MODEL ATTACK reached        how much of the way from benign queries to theory, in percent
"""

import argparse
import math
import os
import pathlib
import platform
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import jax

from saat_jax import files, reports
from saat_jax.reports import analysis, tables

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "records"
DOCUMENTS = ("README.md", "docs/*.md", "configs/*.py")
_MARKED = re.compile(
    r"(<!-- figure: (?P<inline>[^>\n]+) -->)[^<]*(<!-- / -->)"
    r"|^(# figure: (?P<lines>.+)\n)(?:#.*\n)*?(# /\n)",
    re.MULTILINE,
)


def keep(workdir: pathlib.Path, path: pathlib.Path, seconds: float) -> None:
    """Stores the records of a run, without their curves, as one file."""
    records = [
        files.read_json(workdir / f"{part}.json")
        for part in reports.PARTS
        if (workdir / f"{part}.json").is_file()
    ] or [{**record, "curves": {}} for record in reports.load_records(workdir)]
    python = ".".join(platform.python_version_tuple()[:2])
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}, Python {python}, jax {jax.__version__})"
    )
    files.write_json(path, {"machine": machine, "seconds": seconds, "records": records})


def load_runs(folder: pathlib.Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Reads the stored runs by name."""
    fields = {"machine": str, "seconds": float, "records": list}
    return {path.stem: files.read_json(path, fields=fields) for path in folder.glob("*.json")}


def figure(name: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes a figure by its name; ValueError if there is none of that name."""
    run, *words = name.split()
    try:
        if words == ["seeds"]:
            seeds = [runs[other] for other in sorted(runs) if re.fullmatch(rf"{run}(_\d+)?", other)]
            return _fence(_seed_lines([seed["records"] for seed in seeds]))
        return _figure(runs[run], *words)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"there is no figure {name!r} in the records of {sorted(runs)}; the top of "
            f"benchmarks/documents.py lists the kinds of figures"
        ) from error


def _figure(run: Mapping[str, Any], kind: str, attack: str = "", metric: str = "") -> str:
    records = run["records"]
    if attack:
        found = {(record["model"], record["attack"]): record for record in records}
        return _number(found[kind, "benign"], found[kind, attack], metric)
    if kind in reports.PARTS:
        parts = {record["part"]: record for record in records}
        return _fence(reports.audit_table(parts[kind]).splitlines())
    if kind == "table":
        lines = reports.summary_table(records).splitlines()
        return _fence([x for x in lines if not x.startswith("protocol")])
    minutes = str(max(1, math.ceil(run["seconds"] / 60)))
    if kind == "summary":
        gains = "; ".join(filter(None, map(tables.gain_line, analysis.compare(records))))
        gains = gains[:1].upper() + gains[1:]
        rate = _number(records[0], records[0], "base_rate")
        return f"Run on {run['machine']} in about {minutes} minutes. {gains}. Base rate {rate} %."
    return {"machine": run["machine"], "minutes": minutes}[kind]


def _fence(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def _seed_lines(seeds: list[list[dict[str, Any]]]) -> list[str]:
    """A score of each model over seeds; and how far SAAT is above the other defences."""
    found = [{(r["model"], r["attack"]): r["metrics"] for r in records} for records in seeds]
    models = list(dict.fromkeys(record["model"] for record in seeds[0]))
    asked = [("benign", "map"), ("mainstay", "map"), ("worst_case", "map"),
             ("mainstay_targeted", "t_map"), ("worst_case_targeted", "t_map")]  # fmt: skip
    rows, margins = [], []
    for attack, key in asked:
        row = [f"{key.replace('t_map', 't-MAP').replace('map', 'MAP')} {attack.replace('_', ' ')}"]
        scores = {m: [100 * seed[m, attack][key] for seed in found] for m in models}
        for values in scores.values():
            mean = sum(values) / len(values)
            row.append(f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})")
        rows.append(row)
        for other in models[1:]:
            if other != "saat" and attack != "benign":
                apart = [a - b for a, b in zip(scores["saat"], scores[other], strict=True)]
                margins.append(
                    f"SAAT above {other}, {row[0]}: " + ", ".join(f"{x:+.1f}" for x in apart)
                )
    return [*tables.aligned([["", *models], *rows]), *margins]


def _number(benign: Mapping[str, Any], record: Mapping[str, Any], metric: str) -> str:
    if metric == "reached":
        key = "t_map" if record["targeted"] else "map"
        start, now, theory = (
            source["metrics"][name]
            for source, name in ((benign, key), (record, key), (record, f"theory_{key}"))
        )
        return f"{100 * (start - now) / (start - theory):.0f}"
    return f"{100 * {**record['protocol'], **record['metrics']}[metric]:.1f}"


def written(text: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a document with its figures written anew."""

    def fill(match: re.Match[str]) -> str:
        if match["lines"]:
            content = textwrap.fill(
                figure(match["lines"], runs), 100, initial_indent="# ", subsequent_indent="# "
            )
            return f"{match[4]}{content}\n{match[6]}"
        content = figure(match["inline"], runs)
        # What has lines of its own keeps them: Markdown reads a fence at the start of a line only.
        around = "\n" if "\n" in content else ""
        return f"{match[1]}{around}{content}{around}{match[3]}"

    return _MARKED.sub(fill, text)


def documents(root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """The files that may state figures."""
    return sorted(path for pattern in DOCUMENTS for path in root.glob(pattern))


def main(arguments: list[str] | None = None) -> None:
    """Writes the figures; see the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.documents")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of a run to store")
    parser.add_argument("--name", help="what to call it")
    parser.add_argument("--seconds", type=float, help="how long the run took")
    options = parser.parse_args(arguments)
    if options.keep:
        if not options.name or options.seconds is None:
            parser.error("--keep takes --name and --seconds")
        keep(options.keep, RECORDS / f"{options.name}.json", options.seconds)
    runs = load_runs()
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := written(text, runs)) != text:
            files.write_bytes(path, new.encode())
            print(f"{path.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
