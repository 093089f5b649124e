"""The report's page: one HTML file with its images and styles inside."""

import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

from saat_jax import files
from saat_jax.reports import analysis, charts, gallery, tables
from saat_jax.reports.records import (
    BASE_MODEL,
    METRICS,
    Record,
    RunFiles,
    display_name,
    is_benign,
    is_suite,
    is_worst_case,
    key_of,
    load_run,
    settings_of,
    transfer_rows,
)

# What the page takes, by the name that is imported.
_PACKAGES = {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"}
# Queries of a model that are listed as its worst.
_NUM_WORST = 5
MINUS = "\N{MINUS SIGN}"
# Retrieved items are shown small: what has more pixels a side is shrunk, for a lighter page.
_MAX_THUMBNAIL = 112
# Quantities of a change beside those of `tables.PERTURBATIONS`: head, factor, unit.
_MORE_SIZES = {
    "linf": ("L-inf", 255, "/255"),
    "l2": ("L2", 1, ""),
    "psnr": ("PSNR", 1, " dB"),
}


def show_report(workdir: str | os.PathLike[str]) -> None:
    """Writes the page of a run and prints its tables; what is damaged is left out of both.

    Args:
        workdir: folder of the run.

    Raises:
        ModuleNotFoundError: if a package that the page takes is not installed. The tables are
            printed all the same.
        OSError: if the page cannot be written. The tables are printed all the same.
        ValueError: once page and tables are there, if files of the run are damaged: which, what
            is wrong with each, and what to do.
    """
    run, workdir = load_run(workdir), pathlib.Path(workdir)
    parts = [tables.transfer_table(matrix) for matrix in run.transfer]
    if run.records or not parts:
        parts.append(tables.terminal_tables(run.records))
    try:
        # Before the table, which not every terminal can show.
        path = _write(run, workdir)
    finally:
        print(tables.for_terminal("\n".join(parts), sys.stdout.encoding))
    print(tables.for_terminal(f"report: {path}", sys.stdout.encoding))
    if run.earlier:
        print(f"records of other settings, kept and listed on the page: {len(run.earlier)}")
    if run.damaged:
        faults = "\n".join(run.damaged)
        raise ValueError(f"left out of the report, as damaged:\n{faults}")


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `figures/*.png` and the self-contained page `report.html` of a run.

    The page needs no other file and no network. Equal input gives equal bytes; each file is
    replaced whole, so a reader never meets half of one.

    Args:
        workdir: folder of the run. Files that it lacks, or that are damaged, are named on the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: if the folder does not exist.
    """
    return _write(load_run(workdir), pathlib.Path(workdir))


def check_packages() -> None:
    """Raises ModuleNotFoundError unless all that a page takes is installed."""
    absent = [package for name, package in _PACKAGES.items() if not importlib.util.find_spec(name)]
    if absent:
        packages = " ".join(absent)
        raise ModuleNotFoundError(f"no page without {packages}: pip install {packages}")


def _write(run: RunFiles, workdir: pathlib.Path) -> pathlib.Path:
    check_packages()
    drawings = []
    for chart in charts.make_charts(run):
        images = {theme: charts.draw(chart, theme=theme) for theme in charts.THEMES}
        for theme, suffix in (("light", ""), ("dark", "_dark")):
            path = workdir / "figures" / f"{chart.name}{suffix}.png"
            files.write_bytes(path, images[theme])
        drawings.append((chart, {theme: gallery.address(image) for theme, image in images.items()}))
    page = environment().get_template("page.html")
    sections = {chart.section for chart, _ in drawings}
    path = workdir / "report.html"
    content = page.render(_values(run), drawings=drawings, sections=sections)
    files.write_bytes(path, content.encode())
    return path


def environment(*packages: str) -> Any:
    """Makes a Jinja environment on the templates of some packages, and on those of reports."""
    # Imported here: reading records and printing the table need no engine of templates.
    import jinja2
    import markupsafe

    def finalize(value: Any) -> Any:
        # Names and settings may hold what no page should.
        is_text = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
        return tables.printable(value) if is_text else value

    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name) for name in (*packages, __package__)]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
    )
    made.filters.update(percent=_percent, sentence=_sentence, words=display_name)
    made.globals.update(embed=gallery.embed, address=gallery.address)
    return made


def _percent(value: float | None, digits: int = 2) -> str:
    # No line begins with the sign.
    return tables.percent(value, digits).replace(" ", "\N{NO-BREAK SPACE}")


def _sentence(line: str) -> str:
    """Turns a line for the terminal into a sentence of the page."""
    arrow = line.replace("->", "\N{RIGHTWARDS ARROW}").replace("(-", f"({MINUS}")
    return f"{arrow[:1].upper()}{arrow[1:]}."


def _values(run: RunFiles) -> dict[str, Any]:
    """What the template of the page is filled with, beside the charts."""
    records, many = run.records, is_suite(run.records)
    protocol = [*records, *run.transfer, {"protocol": {}}][0]["protocol"]
    bits = f", {protocol['num_bits']} bits" if "num_bits" in protocol else ""
    comparisons = analysis.compare(records)
    headline = next((c for c in comparisons if c.model == "hardened"), comparisons[0])
    benign = [r["metrics"] for r in records if is_benign(r) and r["model"] == BASE_MODEL]
    strongest = analysis.strongest(records) if many else []
    balls = [best for best in strongest if best.model == BASE_MODEL and headline.model is None]
    if None in (headline.clean_before, headline.attacked_before):
        balls = []
    pictured = [record for record in records if key_of(record) in run.examples]
    if many:
        best = _attacks(analysis.strongest(pictured))
        pictured = [record for record in pictured if is_benign(record) or record in best]
    shown = [len(run.examples[key_of(record)]["images"]) for record in pictured]
    return {
        "run": run,
        "many": many,
        "several": len({record["model"] for record in records}) > 1,
        "subject": f"{protocol.get('dataset', 'unfinished run')}{bits}",
        "headline": headline,
        "suite": max(balls, key=lambda ball: sum(ball.num_attacks.values()), default=None),
        "benign": benign[0] if benign else {},
        "flags": tables.flag_lines(records),
        "intervals": tables.interval_lines(records),
        "worst_cases": [record for record in records if is_worst_case(record)],
        "worst_queries": _worst_queries(run),
        "gains": [line for c in comparisons if (line := tables.gain_line(c))],
        "strongest": _attacks(strongest),
        "scores": _scores(records),
        "measures": _measures([record for record in records if record.get("perturbation")]),
        "images": gallery.image_groups(run),
        "retrieved": pictured,
        "queries": range(min(gallery.MAX_QUERIES, *shown)) if shown else (),
        "earlier": _earlier(run),
        "settings": _settings(records),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "metrics": METRICS,
        "minus": MINUS,
        "max_thumbnail": _MAX_THUMBNAIL,
        "sizes": [head for _, *head in tables.PERTURBATIONS.values()],
        "attack_cells": tables.attack_cells,
        "class_names": gallery.class_names,
        "key_of": key_of,
        "points": tables.points,
        "protocol_lines": tables.protocol_lines,
        "query_label": analysis.query_label,
        "transfer_rows": transfer_rows,
        "transfer_title": tables.transfer_title,
    }


def _attacks(strongest: list[analysis.Strongest]) -> list[Record]:
    return [record for best in strongest for record in best.attacks.values()]


def _scores(records: list[Record]) -> dict[str, list[list[tuple[str, Record]]]]:
    """The records of each metric by attack: benign, then from the strongest on the first model."""
    scores = {}
    for metric, group in analysis.by_metric(records).items():
        attacks: dict[str, list[tuple[str, Record]]] = {}
        for key, record in group:
            attacks.setdefault(record["attack"], []).append((key, record))

        def rank(rows: list[tuple[str, Record]]) -> float:
            key, record = rows[0]
            return -2.0 if is_benign(record) else record["metrics"][key] * (-1) ** (key == "t_map")

        scores[metric] = sorted(attacks.values(), key=rank)
    return scores


def _measures(records: list[Record]) -> tuple[list[str], list[list[str]]] | None:
    """Heads and rows of the measures of the change that the scores do not show."""
    if not records:
        return None
    found = {name for record in records for name in record["perturbation"]}
    # A quantity that is in no list shows under its own name.
    other = sorted(found - set(tables.PERTURBATIONS) - set(_MORE_SIZES))
    sizes = {**_MORE_SIZES, **{name: (name, 1, "") for name in other}}
    rows = []
    for record in records:
        rounded = [v for name, v in record["metrics"].items() if name.endswith("_8bit")]
        row = [_title(record), tables.percent(rounded[0] if rounded else None)]
        for name, (_, factor, unit) in sizes.items():
            value = record["perturbation"].get(name)
            row.append("-" if value is None else f"{value * factor:.3g}{unit}")
        rows.append(row)
    return ["model: query", "as 8-bit images", *(head for head, *_ in sizes.values())], rows


def _settings(records: list[Record]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the settings that the scores do not show."""
    found = dict.fromkeys(name for record in records for name in settings_of(record))
    names = [name for name in found if name not in ("num_steps", "epsilon")]
    facts = ("device", "version")
    rows = [
        [
            _title(record),
            *(tables.plain(settings_of(record).get(name)) for name in names),
            *(tables.plain(record.get(name)) for name in facts),
        ]
        for record in records
    ]
    return ["model: query", *map(display_name, (*names, *facts))], rows


def _earlier(run: RunFiles) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the records that those of other settings took the place of."""
    present = {_title(record): record for record in (*run.records, *run.transfer)}
    rows = []
    for path, record in run.earlier.items():
        scores = record.get("metrics", {})
        shown = [
            f"{METRICS[key]} {tables.percent(scores[key])}" for key in METRICS if key in scores
        ]
        differs = tables.differences(record, present.get(_title(record)))
        rows.append([_title(record), ", ".join(shown) or "-", differs, path])
    return ["model: query", "score", "differs in", "file"], rows


def _worst_queries(run: RunFiles) -> tuple[list[str], list[list[str]]] | None:
    """Heads and rows of the queries that lose most in the worst case, for each model."""
    rows = []
    for record in run.records:
        before = run.examples.get((record["model"], "benign"), {}).get("average_precision")
        after = run.examples.get(key_of(record), {}).get("average_precision")
        is_own = is_worst_case(record) and not record["targeted"]
        if not is_own or before is None or after is None or len(before) != len(after):
            continue
        names = list(record["members"])
        members = run.examples[key_of(record)].get("member")
        for row in (before - after).argsort(kind="stable")[::-1][:_NUM_WORST]:
            by = display_name(names[members[row]]) if members is not None else "-"
            scores = (tables.percent(float(x[row]), 1) for x in (before, after))
            rows.append(
                [f"{record['model']}, {analysis.query_label(record)}", str(row), *scores, by]
            )
    heads = ["model and attack", "query", "benign", "worst case", "by"]
    return (heads, rows) if rows else None


def _title(record: Record) -> str:
    return f"{record.get('model', 'transfer')}: {display_name(record['attack'])}"
