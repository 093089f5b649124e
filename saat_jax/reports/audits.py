"""The page and the table of an audit: how a matcher is evaded and made to collide."""

import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from saat_jax import files
from saat_jax.reports import (
    certify,
    charts,
    edited,
    gallery,
    inserts,
    page,
    queries,
    tables,
    universal,
)
from saat_jax.reports.charts import Chart, Line
from saat_jax.reports.sections import (
    Record,
    Section,
    Table,
    apart_in,
    kind_of,
    number,
    rate,
    subject,
)

# By the name of the task: what the attacker does, in words.
TASKS = {
    "evade": "evades its original",
    "collide": "matches a chosen victim",
    "collide_any": "matches any of the nearest listed",
}
_SENT = {"png": "as PNG", "jpeg_95": "as JPEG 95", "jpeg_75": "as JPEG 75"}
_CURE = "delete it and audit again"
_NUM_BINS = 24
_FIELDS = {"point": dict, "encoder": dict, "images": dict}


# The parts of an audit, in the order of the page: what each record is shown as.
PARTS: dict[str, Callable[[Record, Mapping[str, np.ndarray]], Section]] = {
    "audit": lambda record, arrays: section(record, arrays),
    "edits": edited.section,
    "queries": queries.section,
    "universal": universal.section,
    "inserts": inserts.section,
    "transfer": universal.transfer_section,
    "certify": certify.section,
}


def show_audit(workdir: str | os.PathLike[str]) -> None:
    """Writes the page of an audit, `report.html`, and prints its tables.

    Args:
        workdir: folder of the audit, with the record of one part of it or more.

    Raises:
        ModuleNotFoundError: if a package that the page takes is not installed; the tables are
            printed all the same.
        ValueError: if there is no record, or one is damaged.
    """
    folder = pathlib.Path(workdir)
    parts = _load(folder)
    shown = {name: PARTS[name](*part) for name, part in parts.items()}
    first, _ = next(iter(parts.values()))
    lines = [subject(first)]
    for part in shown.values():
        lines += [*([part.title] if len(shown) > 1 else []), *part.lines()]
    try:
        path = _write(folder, parts, shown)
    finally:
        print(tables.for_terminal("\n".join(lines), sys.stdout.encoding))
    print(tables.for_terminal(f"report: {path}", sys.stdout.encoding))


def _load(folder: pathlib.Path) -> dict[str, tuple[Record, dict[str, np.ndarray]]]:
    """Records and arrays of the parts that are there."""
    parts = {
        name: (
            files.read_json(folder / f"{name}.json", cure=_CURE, fields=_FIELDS),
            files.read_arrays(folder / f"{name}.npz", cure=_CURE),
        )
        for name in PARTS
        if (folder / f"{name}.json").is_file()
    }
    if not parts:
        raise ValueError(f"no audit in {str(folder)!r}; name the --workdir of one")
    return parts


def audit_table(record: Record) -> str:
    """What the terminal shows of the record of a part of an audit."""
    return "\n".join([subject(record), *PARTS[record["part"]](record, {}).lines()])


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """How often each task is done within balls of several sizes."""
    flags = {"model": record["encoder"]["name"], "attack": "audit", "flags": record["flags"]}
    return Section(
        title="Success by the size of the change",
        note="What counts is the attacked image as it is sent, with 8 bits a channel, encoded by "
        "the matcher's own runtime. An image that is fooled within a small change is fooled within "
        "a larger one too.",
        tables=[
            Table(
                "Share of images, with its 95 % interval (Clopper and Pearson), by the largest "
                "change of a pixel.",
                *_rates(record),
            ),
            Table("What common edits do to the same images, without an attacker.", *_edits(record)),
        ],
        sentences=_sentences(record),
        charts=_charts(record, arrays) if arrays else [],
        flags=tables.flag_lines([flags]),
    )


def _rates(record: Record) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: how often each task is done, by radius and as what the image is sent."""
    some = next(iter(record["tasks"].values()))
    heads = ["an attacked image", *(f"{255 * line['epsilon']:g}/255" for line in some)]
    rows = []
    for task, lines in record["tasks"].items():
        for sent, words in _SENT.items():
            first = TASKS[task] if sent == "png" else f"  {words}"
            rows.append([first, *(rate(line[sent]) for line in lines)])
        for index in lines[0].get("indexes", {}):
            rows.append([f"  by {index}", *(rate(line["indexes"][index]) for line in lines)])
        rows.append([f"  {apart_in(record)}, median", *(number(line["changed"]) for line in lines)])
    return heads, rows


def _sentences(record: Record) -> list[str]:
    """What stands below the table."""
    found = []
    if share := record["false_match"]:
        low, high = (100 * end for end in share["interval"])
        found.append(
            f"false matches: {share['count']} of {share['trials']} pairs of different images "
            f"(95 % interval {low:.2g} to {high:.2g} %); so few pairs show no rate below "
            f"{100 * share['least']:.2g} %"
        )
    if copies := record.get("near_duplicates"):
        found.append(
            f"{copies} of {record['listed']} listed images are near-duplicates of others; an "
            "attacked image evades if it matches neither its original nor one of these"
        )
    for task, quartiles in record["smallest_epsilon"].items():
        ends = [
            f"{quartiles[name]:g}/255" if quartiles.get(name) is not None else "more than tried"
            for name in ("low", "median", "high")
        ]
        found.append(f"smallest epsilon, {TASKS[task]}: quartiles {', '.join(ends)}")
    for index, share in record.get("indexes", {}).items():
        found.append(
            f"{index} returns {share['count']} of {share['trials']} untouched images for themselves"
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
        [name.replace("_", " "), rate(edit["unmatched"]), number(edit["changed"])]
        for name, edit in record["edits"].items()
    ]
    return ["edit", "no match any more", f"{apart_in(record)}, median"], rows


def _charts(record: Record, arrays: Mapping[str, np.ndarray]) -> list[Chart]:
    """Rates by radius, and how far apart images are."""
    lines = []
    for place, (task, told) in enumerate(record["tasks"].items()):
        rates = [line["png"] for line in told]
        xs = [255 * line["epsilon"] for line in told]
        band = tuple([rate["interval"][end] for rate in rates] for end in (0, 1))
        look = charts.look(place) | {"mark": "o"}
        lines.append(Line(TASKS[task], xs, [r["rate"] for r in rates], **look, band=band))
    rates_chart = Chart(
        "rates", "rates", "Success by the size of the change", "largest change, of 255",
        "share of images", lines, True,
    )  # fmt: skip
    groups = {"different images": arrays["pairs"], "edited copies": arrays["edited"]}
    groups |= {f"attacked: {TASKS[task]}": arrays[f"{task}/apart"][-1] for task in record["tasks"]}
    farthest = max(float(values.max(initial=0)) for values in groups.values())
    edges = np.linspace(0, max(farthest, 1e-6), _NUM_BINS + 1)
    if kind_of(record) != "cosine":
        edges = np.arange(0, farthest + 2, max(1, int(farthest // _NUM_BINS))) - 0.5
    middles = (edges[:-1] + edges[1:]) / 2
    shares = []
    for place, (label, values) in enumerate(groups.items()):
        counts = np.histogram(values, edges)[0]
        look = charts.look(place + 3)
        shares.append(
            Line(label, middles.tolist(), (counts / max(len(values), 1)).tolist(), **look)
        )
    at = charts.look(0) | {"dash": ":", "mark": ""}
    kind = kind_of(record)
    if kind != "top_k":
        limit = record["point"][kind]
        limit = 1 - limit if kind == "cosine" else limit + 0.5
        shares.append(Line("the threshold", [limit, limit], [0, 1], **at))
    apart = Chart(
        "apart", "rates", "How far apart", apart_in(record), "share", shares, True,
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


def _write(
    folder: pathlib.Path,
    parts: Mapping[str, tuple[Record, dict[str, np.ndarray]]],
    shown: Mapping[str, Section],
) -> pathlib.Path:
    page.check_packages()
    drawings = {
        name: [(chart, gallery.drawn(chart)) for chart in part.charts]
        for name, part in shown.items()
    }
    record, arrays = next(iter(parts.values()))
    tasks = record.get("tasks", {})
    content = (
        page.environment()
        .get_template("audit.html")
        .render(
            record=record,
            shown=shown,
            drawings=drawings,
            largest={task: lines[-1] for task, lines in tasks.items()},
            titles=TASKS,
            subject=subject(record),
            flags=[line for part in shown.values() for line in part.flags],
            examples=_examples(record, arrays) if tasks else [],
            apart=apart_in(record),
        )
    )
    path = folder / "report.html"
    files.write_bytes(path, content.encode())
    return path
