"""Image lists: reading the two formats, and checking them whole before a run.

Format A has, for each of train, test (the queries) and database, `<split>_img.txt` with a path
per line and `<split>_label.txt` with 0s and 1s per line. Format B has `<split>.txt`, path and
labels on one line. Paths count from the folder of the lists. An optional `classes.txt` names
the label columns. Where there is one column, it holds the index of each row's class.

Reference:
    A is the format of SAAT, ProS-GAN, THA and CgAT; B that of HashNet, CSQ and DHTA.
"""

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saat_jax import options
from saat_jax.datasets import images
from saat_jax.datasets.checks import (
    CORRUPT,
    REMAP,
    Listing,
    ManifestError,
    Report,
    check,
    inspect,
    is_utf8,
)
from saat_jax.datasets.splits import Dataset, Split

# The name that a split has in the files.
_FILE_NAMES = {"train": "train", "query": "test", "database": "database"}
_MAX_CLASSES = 2**16
_SAVE_AS_UTF8 = "Save it as UTF-8."


def load_lists(
    *,
    image_size: int,
    root: str,
    resize: int | None = None,
    remap: Mapping[str, str] | Sequence[str] | None = None,
    skip_corrupt: bool = False,
    decode: bool = True,
    exif: bool = False,
    seed: int = 0,
) -> Dataset:
    """Reads the image lists of a folder, of format A or of B.

    Args:
        image_size: height and width of the images that the network sees, in pixels.
        root: the folder of the lists, from which their paths count.
        resize: short side before the centre crop; None squeezes the whole image.
        remap: old to new beginnings of paths, or "OLD=NEW" texts; the first that fits is used.
            HashNet's lists need it, `{"/home/caozhangjie/run-czj/dataset/coco/": ""}`.
        skip_corrupt: drop undecodable images, with a warning that counts them.
        decode: decode every image once; False only looks whether the files exist.
        exif: turn images upright as their EXIF orientation says; the papers do not.
        seed: unused, since a list leaves nothing to chance.

    Returns:
        The dataset, named after the folder.

    Raises:
        ManifestError: the lists are not sound; lists every problem with its lines.
        ValueError: `skip_corrupt` without `decode`, or a `remap` that is none.
    """
    if skip_corrupt and not decode:
        raise ValueError("skip_corrupt needs decode=True: nothing else tells corrupt images")
    prefixes = parse_remap(remap or ())
    root, report = os.path.abspath(root), Report()
    tables = _read_tables(root, report)
    named = _read_class_names(root, report)
    num_classes, indexed = _count_classes(tables.values(), named)
    if not num_classes <= _MAX_CLASSES:
        what = f"{num_classes:,} classes; expected at most {_MAX_CLASSES:,}. Check the labels."
        raise ManifestError(root, [*report.problems, what], report.warnings)
    if indexed:
        report.warnings.append(
            f"one label column: read as the index of each row's class, 0 to {num_classes - 1}. "
            "If it says whether a row is of one class, name that class in classes.txt."
        )
    listings = {
        split: _parse(root, split, table, num_classes, indexed, prefixes, report)
        for split, table in tables.items()
    }
    faults = inspect(listings.values(), decode=decode, exif=exif)
    corrupt = faults[CORRUPT]
    for split, listing in listings.items() if skip_corrupt else ():
        examples = listing.among(corrupt)
        # A split without a single sound image is left as it is, for the report.
        if len(examples) < len(listing.paths):
            report.warning(listing.path_place, "corrupt images dropped", examples, "Restore them.")
            listings[split] = listing.without(corrupt)
    check(listings, faults, report)
    report.stop(root)
    train, query, database = (
        Split(listing.name, listing.labels, tuple(listing.paths), exif=exif)
        for listing in listings.values()
    )
    return Dataset(
        os.path.basename(root),
        train,
        query,
        database,
        named or tuple(map(str, range(num_classes))),
        image_size,
        resize,
        tuple(report.warnings),
    )


def parse_remap(remap: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Old to new beginnings of paths, of a mapping or of "OLD=NEW" texts.

    Raises:
        ValueError: if there is another thing among them.

    Example:
        >>> parse_remap(["/home/me/coco/="])
        {'/home/me/coco/': ''}
    """
    if isinstance(remap, Mapping) and all(isinstance(t, str) for p in remap.items() for t in p):
        return dict(remap)
    texts: Sequence[Any] = remap if isinstance(remap, list | tuple) else [remap]
    if wrong := [text for text in texts if not isinstance(text, str) or "=" not in text]:
        got = options.shortened(wrong[0])
        raise ValueError(f"remap expects OLD=NEW, beginnings of paths, got {got!r}")
    return {text.split("=", 1)[0]: text.split("=", 1)[1] for text in texts}


@dataclasses.dataclass
class _Table:
    """The text of a split's lists: row i of both is line i + 1."""

    path_file: str
    label_file: str
    paths: list[str]
    labels: list[list[str]]


def _read_tables(root: str, report: Report) -> dict[str, _Table]:
    """The lists as text, of the format that they have; ManifestError if there are none."""
    try:
        found = sorted(os.listdir(root))
    except OSError as error:
        what = f"no lists: the folder cannot be read, {images.reason(error)}"
        raise ManifestError(root, [f"{what}. Name the folder of the lists."]) from error
    there = options.shortened(", ".join(found[:12]) or "nothing")
    there += f", ... ({len(found):,} files)" * (len(found) > 12)
    format_a = [f"{name}_img.txt" for name in _FILE_NAMES.values()]
    format_b = [f"{name}.txt" for name in _FILE_NAMES.values()]
    in_a, in_b = ([name for name in names if name in found] for names in (format_a, format_b))
    if not in_a and not in_b:
        what = f"no lists: found {there}; expected {format_b} or *_img.txt"
        raise ManifestError(root, [what])
    if in_a and in_b:
        what = f"{', '.join(in_b)}: of format B, beside {', '.join(in_a)} of format A"
        report.problems.append(f"{what}. Write all in one format, and move the others away.")
    tables = {}
    for split, name in _FILE_NAMES.items():
        if in_a:
            tables[split] = _read_pair(root, name, there, report)
        else:
            file = f"{name}.txt"
            fields = [line.split() for line in _read_lines(root, file, there, report)]
            paths, labels = [" ".join(line[:1]) for line in fields], [line[1:] for line in fields]
            tables[split] = _Table(file, file, paths, labels)
    return tables


def _read_pair(root: str, name: str, there: str, report: Report) -> _Table:
    """A split's two lists of format A; without rows if one cannot be the other's."""
    table = _Table(f"{name}_img.txt", f"{name}_label.txt", [], [])
    paths = _read_lines(root, table.path_file, there, report)
    labels = _read_lines(root, table.label_file, there, report)
    if paths and labels and len(paths) != len(labels):
        report.problems.append(
            f"{table.path_file}: {len(paths)} rows, but {len(labels)} in "
            f"{table.label_file}. Line i of both must speak of the same image."
        )
    if paths and labels and all(map(_is_labels, paths)) and not any(map(_is_labels, labels)):
        report.problems.append(
            f"{table.path_file}: holds labels, and {table.label_file} the paths. Swap them."
        )
    else:
        table.paths, table.labels = paths, [line.split() for line in labels]
    return table


def _is_labels(line: str) -> bool:
    return line.replace(" ", "").replace("\t", "").isdecimal()


def _read_lines(root: str, name: str, there: str, report: Report) -> list[str]:
    """Reads stripped lines; blank ones at the end do not count. None if there is a problem."""
    try:
        # File names need not be UTF-8; a byte order mark is no part of the first one.
        with open(os.path.join(root, name), encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        report.problems.append(f"{name}: missing. Put it beside the other lists: there is {there}.")
        return []
    except OSError as error:
        report.problems.append(f"{name}: cannot be read, {images.reason(error)}. Mend that.")
        return []
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        report.problems.append(f"{name}: empty. Give it at least one line.")
    if any("\0" in line for line in lines):
        what = "of another encoding than UTF-8, UTF-16 perhaps, or no text"
        report.problems.append(f"{name}: {what}. {_SAVE_AS_UTF8}")
        return []
    return lines


def _read_class_names(root: str, report: Report) -> tuple[str, ...] | None:
    """The names in classes.txt; None if there is none, or none that can be used."""
    file = "classes.txt"
    if not os.path.lexists(os.path.join(root, file)):
        return None
    names = _read_lines(root, file, "", report)
    numbers = {name: number for number, name in reversed(list(enumerate(names, 1)))}

    def lines(wrong: Iterable[int]) -> list[str]:
        return [f"line {i}: {options.shortened(names[i - 1], 60)}" for i in wrong]

    rows = range(1, len(names) + 1)
    foreign = lines(i for i in rows if not is_utf8(names[i - 1]))
    remedy = f"{_SAVE_AS_UTF8} Now it may be Latin-1."
    report.problem(file, "lines in another encoding than UTF-8", foreign, remedy)
    remedy = "One line is one class: name it shortly."
    long = lines(i for i in rows if len(names[i - 1]) > 200)
    report.problem(file, "names of more than 200 characters", long, remedy)
    blank = lines(i for i in rows if not names[i - 1])
    report.warning(file, "classes without a name", blank, "Each line names a column.")
    twice = lines(i for i in rows if names[i - 1] and numbers[names[i - 1]] != i)
    report.warning(file, "names that stand there before", twice, "They count as other classes.")
    return tuple(names) or None


def _count_classes(tables: Iterable[_Table], named: Sequence[str] | None) -> tuple[int, bool]:
    """How many classes there are, and whether each row gives the index of its class.

    A single column is never taken for the labels of one class, whose rows with 0 would be
    relevant to nothing, unless classes.txt names one class or every row has it.
    """
    rows = [fields for table in tables for fields in table.labels if fields]
    widths = collections.Counter(map(len, rows))
    width = widths.most_common(1)[0][0] if widths else 0
    words = {fields[0] for fields in rows if len(fields) == 1}
    if width != 1 or words == {"1"} or len(named or ()) == 1:
        return len(named or range(width)), False
    indices = [int(word) for word in words if _is_index(word)]
    return len(named or range(max(indices, default=0) + 1)), True


def _is_index(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


# What can be wrong with a row by itself: the list at fault, the fault, and its remedy.
_FAULTS = {
    "pathless": ("path", "lines without a path", "Remove them or name the image."),
    "outside": (
        "path",
        "paths that leave {root}",
        f"Paths must stay in that folder; replace their beginning with {REMAP}.",
    ),
    "commas": (
        "label",
        "rows with commas",
        "Separate labels, and in format B the path, by spaces.",
    ),
    "bare": ("label", "lines without labels", "Give them 0s and 1s, or the index of a class."),
    "spaces": (
        "path",
        "rows with words between path and labels",
        "Format B allows no spaces in paths: rename the files, or use format A.",
    ),
    "ragged": (
        "label",
        "rows with other than {num_columns} label columns",
        "Every row needs as many as classes.txt names or, without it, most rows have.",
    ),
    "wordy": ("label", "rows with labels that are no numbers", "Use 0 and 1."),
    "index": (
        "label",
        "rows with other than the index of a class",
        "There are {num_classes} classes, which count from 0.",
    ),
}


def _label(fields: list[str], num_classes: int, indexed: bool) -> np.ndarray | None:
    """The label vector of a row's fields; None if they are none."""
    if indexed and len(fields) == 1 and _is_index(fields[0]) and int(fields[0]) < num_classes:
        return np.eye(1, num_classes, int(fields[0]), dtype=np.float32)[0]
    if indexed or len(fields) != num_classes:
        return None
    try:
        return np.array(fields, np.float32)
    except ValueError:
        return None


def _label_fault(
    text: str, fields: list[str], num_columns: int, indexed: bool, in_b: bool
) -> tuple[str, str]:
    """Why fields are no label vector, and what they are."""
    shown = options.shortened(" ".join(fields[:30]), 60)
    if any("," in field for field in fields) or (in_b and not fields and "," in text):
        return "commas", shown or options.shortened(text)
    if not fields:
        return "bare", options.shortened(text)
    if in_b and not _is_number(fields[0]) and _is_number(fields[-1]):
        return "spaces", options.shortened(f"{text} {shown}")
    if len(fields) != num_columns:
        return "ragged", f"{len(fields)} columns"
    return "index" if indexed else "wordy", shown


def _is_number(word: str) -> bool:
    return word.isascii() and word.replace(".", "", 1).isdigit()


# A number too large becomes infinity, which is no label: the report names its column.
@np.errstate(over="ignore")
def _parse(
    root: str,
    split: str,
    table: _Table,
    num_classes: int,
    indexed: bool,
    remap: Mapping[str, str],
    report: Report,
) -> Listing:
    """Turns text into the rows that can be understood; the others are problems."""
    faults: dict[str, list[str]] = {}
    moved: list[str] = []
    paths, labels, numbers = [], [], []
    prefix, num_columns = os.path.join(root, ""), 1 if indexed else num_classes
    in_b = table.path_file == table.label_file
    for number, (text, fields) in enumerate(zip(table.paths, table.labels, strict=False), 1):
        old = next((old for old in remap if text.startswith(old)), None)
        mapped = text if old is None else remap[old] + text[len(old) :]
        path = os.path.normpath(os.path.join(root, mapped))
        label, found = _label(fields, num_classes, indexed), []
        if label is None:
            found.append(_label_fault(text, fields, num_columns, indexed, in_b))
        if not text or not path.startswith(prefix):
            found.append(("outside", options.shortened(mapped)) if text else ("pathless", ""))
        for fault, detail in found:
            faults.setdefault(fault, []).append(f"line {number}" + f": {detail}" * bool(detail))
        if found:
            continue
        paths.append(_as_on_disk(path))
        if paths[-1] != path:
            moved.append(f"line {number}: {options.shortened(path)}")
        labels.append(label)
        numbers.append(number)
    place = {"path": table.path_file, "label": table.label_file}
    words = {
        "root": options.shortened(root),
        "num_classes": num_classes,
        "num_columns": num_columns,
    }
    for fault, examples in faults.items():
        where, what, remedy = _FAULTS[fault]
        report.problem(place[where], what.format(**words), examples, remedy.format(**words))
    what = "names in another Unicode form than their files have"
    report.warning(table.path_file, what, moved, "The files were found; write the lists anew.")
    matrix = np.array(labels, np.float32).reshape(len(labels), num_classes)
    lines = np.array(numbers, np.int64)
    return Listing(split, paths, matrix, table.path_file, table.label_file, "line", lines)


def _as_on_disk(path: str) -> str:
    """The path in the Unicode form that there is a file of: macOS writes é as two characters."""
    if path.isascii() or os.path.lexists(path):
        return path
    forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
    return next(filter(os.path.lexists, forms), path)
