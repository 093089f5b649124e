"""The page and the table of an audit: how a matcher is evaded and made to collide."""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from saat_jax import files
from saat_jax.reports import charts, gallery, page, tables
from saat_jax.reports.charts import Chart, Line

# By the name of the task: what the attacker does, in words.
TASKS = {
    "evade": "evades its original",
    "collide": "matches a chosen victim",
    "collide_any": "matches any of the nearest listed",
}
_SENT = {"png": "as PNG", "jpeg_95": "as JPEG 95", "jpeg_75": "as JPEG 75"}
_CURE = "delete it and audit again"
_NUM_BINS = 24
Record = dict[str, Any]


def show_audit(workdir: str | os.PathLike[str]) -> None:
    """Writes the page of an audit, `report.html`, and prints its table.

    Args:
        workdir: folder of the audit.

    Raises:
        ModuleNotFoundError: if a package that the page takes is not installed; the table is
            printed all the same.
        ValueError: if the record is absent or damaged.
    """
    folder = pathlib.Path(workdir)
    record = files.read_json(
        folder / "audit.json", cure=_CURE, fields={"tasks": dict, "point": dict, "encoder": dict}
    )
    try:
        path = _write(folder, record)
    finally:
        print(tables.for_terminal(audit_table(record), sys.stdout.encoding))
    print(tables.for_terminal(f"report: {path}", sys.stdout.encoding))


def audit_table(record: Record) -> str:
    """The table of an audit for the terminal."""
    heads, rows = _rates(record)
    return "\n".join(
        [
            _subject(record),
            *tables.aligned([heads, *rows]),
            *_sentences(record),
            *tables.flag_lines([_as_record(record)]),
        ]
    )


def _as_record(record: Record) -> Record:
    return {"model": record["encoder"]["name"], "attack": "audit", "flags": record["flags"]}


def _subject(record: Record) -> str:
    encoder, kind = record["encoder"], _kind(record)
    return (
        f"{encoder['name']}, {encoder['num_bits']} bits, {kind} {record['point'][kind]:g}, "
        f"{record['images']['number']} images, judged by {encoder['runtime']}"
    )


def _kind(record: Record) -> str:
    return next(kind for kind in ("radius", "cosine", "top_k") if kind in record["point"])


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = (f"{100 * end:.0f}" for end in rate["interval"])
    return f"{100 * rate['rate']:.1f} % ({low}-{high})"


def _rates(record: Record) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: how often each task is done, by radius and as what the image is sent."""
    some = next(iter(record["tasks"].values()))
    heads = ["an attacked image", *(f"{255 * line['epsilon']:g}/255" for line in some)]
    rows = []
    for task, lines in record["tasks"].items():
        for sent, words in _SENT.items():
            first = TASKS[task] if sent == "png" else f"  {words}"
            rows.append([first, *(_rate(line[sent]) for line in lines)])
        for index in lines[0].get("indexes", {}):
            rows.append([f"  by {index}", *(_rate(line["indexes"][index]) for line in lines)])
        rows.append([f"  {_apart(record)}, median", *(_number(line["changed"]) for line in lines)])
    return heads, rows


def _apart(record: Record) -> str:
    return "1 - cosine" if _kind(record) == "cosine" else "bits apart"


def _number(quartiles: Mapping[str, Any]) -> str:
    value = quartiles.get("median")
    return "-" if value is None else f"{value:.3g}"


def _sentences(record: Record) -> list[str]:
    """What stands below the table."""
    found = []
    if rate := record["point"].get("false_match"):
        low, high = (100 * end for end in rate["interval"])
        found.append(
            f"false matches: {rate['count']} of {rate['trials']} pairs of different images "
            f"(95 % interval {low:.2g} to {high:.2g} %); so few pairs show no rate below "
            f"{100 * rate['least']:.2g} %"
        )
    if number := record.get("near_duplicates"):
        found.append(
            f"{number} of {record['listed']} listed images are near-duplicates of others; an "
            "attacked image evades if it matches neither its original nor one of these"
        )
    for task, quartiles in record["smallest_epsilon"].items():
        ends = [
            f"{quartiles[name]:g}/255" if quartiles.get(name) is not None else "more than tried"
            for name in ("low", "median", "high")
        ]
        found.append(f"smallest epsilon, {TASKS[task]}: quartiles {', '.join(ends)}")
    for index, rate in record.get("indexes", {}).items():
        found.append(
            f"{index} returns {rate['count']} of {rate['trials']} untouched images for themselves"
        )
    parity = record["parity"]
    found.append(
        f"what is attacked differs from the encoder's own runtime in {parity['bits_differ']} of "
        f"{parity['num_bits']:,} bits"
    )
    return found


def _edits(record: Record) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what happens without an attacker."""
    rows = [
        [name, _rate(edit["unmatched"]), _number(edit["changed"])]
        for name, edit in record["edits"].items()
    ]
    return ["edit", "no match any more", f"{_apart(record)}, median"], rows


def _charts(record: Record, arrays: Mapping[str, np.ndarray]) -> list[Chart]:
    """Rates by radius, and how far apart images are."""
    lines = []
    for number, (task, told) in enumerate(record["tasks"].items()):
        rates = [line["png"] for line in told]
        xs = [255 * line["epsilon"] for line in told]
        band = tuple([rate["interval"][end] for rate in rates] for end in (0, 1))
        look = charts.look(number) | {"mark": "o"}
        lines.append(Line(TASKS[task], xs, [r["rate"] for r in rates], **look, band=band))
    rates_chart = Chart(
        "rates", "rates", "Success by the size of the change", "largest change, of 255",
        "share of images", lines, True,
    )  # fmt: skip
    groups = {"different images": arrays["pairs"], "edited copies": arrays["edited"]}
    groups |= {f"attacked: {TASKS[task]}": arrays[f"{task}/apart"][-1] for task in record["tasks"]}
    farthest = max(float(values.max(initial=0)) for values in groups.values())
    edges = np.linspace(0, max(farthest, 1e-6), _NUM_BINS + 1)
    if _kind(record) != "cosine":
        edges = np.arange(0, farthest + 2, max(1, int(farthest // _NUM_BINS))) - 0.5
    middles = (edges[:-1] + edges[1:]) / 2
    shares = []
    for number, (label, values) in enumerate(groups.items()):
        counts = np.histogram(values, edges)[0]
        look = charts.look(number + 3)
        shares.append(
            Line(label, middles.tolist(), (counts / max(len(values), 1)).tolist(), **look)
        )
    at = charts.look(0) | {"dash": ":", "mark": ""}
    kind = _kind(record)
    if kind != "top_k":
        limit = record["point"][kind]
        limit = 1 - limit if kind == "cosine" else limit + 0.5
        shares.append(Line("the threshold", [limit, limit], [0, 1], **at))
    apart = Chart(
        "apart", "rates", "How far apart", _apart(record), "share", shares, True,
    )  # fmt: skip
    return [rates_chart, apart]


def _examples(record: Record, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Images, of each task those that take the smallest change first."""
    shown = []
    for task in record["tasks"]:
        images = []
        number = 0
        while f"{task}/example_{number}/original" in arrays:
            found = {
                name: arrays[f"{task}/example_{number}/{name}"]
                for name in ("original", "attacked", "wanted")
            }
            change = (found["attacked"].astype(np.float32) - found["original"]) / 255
            factor = gallery.magnification([change])
            told = arrays[f"{task}/example_{number}/told"]
            images.append(
                {
                    **found,
                    "change": 0.5 + factor * change,
                    "factor": factor,
                    "name": str(arrays[f"{task}/example_{number}/name"]),
                    "level": int(told[0]),
                    "before": float(told[1]),
                    "after": float(told[2]),
                    "done": bool(told[3]),
                }
            )
            number += 1
        shown.append({"task": task, "title": TASKS[task], "images": images})
    return shown


def _write(folder: pathlib.Path, record: Record) -> pathlib.Path:
    page.check_packages()
    arrays = files.read_arrays(folder / "audit.npz", cure=_CURE, names=("pairs", "edited"))
    drawings = []
    for chart in _charts(record, arrays):
        images = {theme: charts.draw(chart, theme=theme) for theme in charts.THEMES}
        drawings.append((chart, {theme: gallery.address(image) for theme, image in images.items()}))
    largest = {task: lines[-1] for task, lines in record["tasks"].items()}
    content = (
        page.environment()
        .get_template("audit.html")
        .render(
            record=record,
            drawings=drawings,
            largest=largest,
            titles=TASKS,
            subject=_subject(record),
            rates=_rates(record),
            edits=_edits(record),
            sentences=_sentences(record),
            flags=tables.flag_lines([_as_record(record)]),
            examples=_examples(record, arrays),
            apart=_apart(record),
        )
    )
    path = folder / "report.html"
    files.write_bytes(path, content.encode())
    return path
