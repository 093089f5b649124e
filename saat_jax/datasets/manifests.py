"""Image lists: reading the two formats, and checking them whole before a run.

Format A has, for each of train, test (the queries) and database, `<split>_img.txt` with a path
per line and `<split>_label.txt` with 0s and 1s per line. Format B has `<split>.txt`, path and
labels on one line. Paths count from the folder of the lists. An optional `classes.txt` names
the label columns.

Reference:
    A is the format of SAAT, ProS-GAN, THA and CgAT; B that of HashNet, CSQ and DHTA.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from saat_jax import parallel
from saat_jax.datasets import images, lazy
from saat_jax.datasets.records import Dataset, Split

# The name that a split has in the files.
_FILE_NAMES = {"train": "train", "query": "test", "database": "database"}
_REMAP = "--remap OLD=NEW, in a config data.remap"


class ManifestError(ValueError):
    """Unsound data, with every problem found.

    Attributes:
        problems: what must be mended.
        warnings: what is odd and yet no reason to stop.
    """

    def __init__(self, place: str, problems: Sequence[str], warnings: Sequence[str] = ()):
        """Joins the problems into one numbered report on `place`."""
        self.problems, self.warnings = tuple(problems), tuple(warnings)
        count = f"{len(problems)} problem" + "s" * (len(problems) != 1)
        lines = [f"  {number}. {text}" for number, text in enumerate(problems, 1)]
        super().__init__("\n".join([f"{count} in {place}:", *lines]))


@dataclasses.dataclass
class _Listing:
    """A split and what to call it and its rows in a report."""

    split: Split
    file: str
    unit: str
    numbers: np.ndarray

    def describe(self, rows: Iterable[int]) -> list[str]:
        """Names rows by number and path."""
        paths = self.split.paths
        return [f"{self.unit} {self.numbers[i]}" + (f": {paths[i]}" if paths else "") for i in rows]

    def among(self, paths: Container[str]) -> list[str]:
        """Names the rows whose image is one of `paths`."""
        return self.describe(i for i, path in enumerate(self.split.paths or ()) if path in paths)

    def without(self, dropped: Container[str]) -> "_Listing":
        """Leaves out the rows whose image is one of `dropped`."""
        paths = self.split.paths or ()
        kept = [i for i, path in enumerate(paths) if path not in dropped]
        split = Split(self.split.name, self.split.labels[kept], tuple(paths[i] for i in kept))
        return dataclasses.replace(self, split=split, numbers=self.numbers[kept])


def _note(notes: list[str], place: str, what: str, examples: Sequence[str], remedy: str) -> None:
    """Adds a note with a count and the first examples, if there are any."""
    if examples:
        shown = "; ".join(examples[:3]) + "; ..." * (len(examples) > 3)
        notes.append(f"{place}: {len(examples)} {what} ({shown}). {remedy}")


def load_lists(
    *,
    image_size: int,
    root: str,
    resize: int | None = None,
    remap: Mapping[str, str] | None = None,
    skip_corrupt: bool = False,
    decode: bool = True,
    seed: int = 0,
) -> Dataset:
    """Reads the image lists of a folder, of format A where there are any and else of B.

    Args:
        image_size: height and width of the images that the network sees, in pixels.
        root: the folder of the lists, from which their paths count.
        resize: short side before the centre crop; None squeezes the whole image.
        remap: old to new beginnings of paths; the first that fits is used. HashNet's lists need
            it, `{"/home/caozhangjie/run-czj/dataset/coco/": ""}`.
        skip_corrupt: drop undecodable images, with a warning that counts them.
        decode: decode every image once; False only looks whether the files exist.
        seed: unused, since a list leaves nothing to chance.

    Returns:
        The dataset, named after the folder.

    Raises:
        ManifestError: the lists are not sound; lists every problem with its lines.
        ValueError: `skip_corrupt` without `decode`.
    """
    if skip_corrupt and not decode:
        raise ValueError("skip_corrupt needs decode=True: nothing else tells corrupt images")
    root = os.path.abspath(root)
    format_a = any(os.path.isfile(f"{root}/{name}_img.txt") for name in _FILE_NAMES.values())
    names = [f"{name}_img.txt" if format_a else f"{name}.txt" for name in _FILE_NAMES.values()]
    if not any(os.path.isfile(os.path.join(root, name)) for name in names):
        found = sorted(os.listdir(root)) if os.path.isdir(root) else "None, the folder is missing"
        raise ManifestError(root, [f"no lists: found {found}; expected {names} or *_img.txt"])

    problems: list[str] = []
    warnings: list[str] = []
    tables = {
        split: _read_table(root, name, format_a, problems) for split, name in _FILE_NAMES.items()
    }
    class_names = _read_class_names(root, tables)
    listings = {
        split: _parse(root, split, table, len(class_names), remap or {}, problems)
        for split, table in tables.items()
    }
    missing, corrupt = _inspect(listings.values(), decode)
    for split, listing in listings.items() if skip_corrupt else ():
        examples = listing.among(corrupt)
        # A split without a single sound image is left as it is, for the report.
        if len(examples) < len(listing.split):
            _note(warnings, listing.file, "corrupt images dropped", examples, "Restore them.")
            listings[split] = listing.without(corrupt)
    _check(listings, missing, corrupt, problems, warnings)
    if problems:
        raise ManifestError(root, problems, warnings)
    splits = {split: listing.split for split, listing in listings.items()}
    return Dataset(
        os.path.basename(root),
        splits["train"],
        splits["query"],
        splits["database"],
        class_names,
        image_size,
        resize,
        tuple(warnings),
    )


def check_dataset(dataset: Dataset, *, decode: bool = True) -> tuple[str, ...]:
    """Checks a dataset whole; `load_dataset` has done so for what it returns.

    Args:
        dataset: what to check.
        decode: decode every image file once; False only looks whether the files exist.

    Returns:
        What is odd and yet no reason to stop: rows without labels, duplicates, train images
        that are not in the database.

    Raises:
        ManifestError: empty splits, missing or undecodable images, labels other than 0 and 1,
            columns that do not fit the classes, queries that stand in the database or in train.
    """
    problems: list[str] = []
    warnings: list[str] = []
    listings = {}
    for split in (dataset.train, dataset.query, dataset.database):
        listings[split.name] = _Listing(split, f"split {split.name}", "row", np.arange(len(split)))
        if not len(split):
            problems.append(f"split {split.name}: no rows. Give it at least one.")
        if split.labels.shape[1] != dataset.num_classes:
            problems.append(
                f"split {split.name}: {split.labels.shape[1]} label columns for "
                f"{dataset.num_classes} classes. Give every class one column."
            )
    missing, corrupt = _inspect(listings.values(), decode)
    _check(listings, missing, corrupt, problems, warnings)
    if problems:
        raise ManifestError(f"dataset {dataset.name}", problems, warnings)
    return tuple(warnings)


@dataclasses.dataclass
class _Table:
    """The text of a split's lists: row i of both is line i + 1."""

    path_file: str
    label_file: str
    paths: list[str]
    labels: list[list[str]]


def _read_lines(root: str, name: str, problems: list[str]) -> list[str] | None:
    """Reads stripped lines; blank ones at the end do not count. None if the file is missing."""
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        problems.append(f"{name}: missing. Put it beside the other lists.")
        return None
    # File names need not be UTF-8; a byte order mark is no part of the first one.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        problems.append(f"{name}: empty. Give it at least one line.")
    return lines


def _read_table(root: str, name: str, format_a: bool, problems: list[str]) -> _Table:
    if not format_a:
        fields = [line.split() for line in _read_lines(root, f"{name}.txt", problems) or ()]
        paths, labels = [" ".join(line[:1]) for line in fields], [line[1:] for line in fields]
        return _Table(f"{name}.txt", f"{name}.txt", paths, labels)
    table = _Table(f"{name}_img.txt", f"{name}_label.txt", [], [])
    path_lines = _read_lines(root, table.path_file, problems)
    label_lines = _read_lines(root, table.label_file, problems)
    if path_lines and label_lines and len(path_lines) != len(label_lines):
        problems.append(
            f"{table.path_file}: {len(path_lines)} rows, but {len(label_lines)} in "
            f"{table.label_file}. Line i of both must speak of the same image."
        )
    table.paths, table.labels = path_lines or [], [line.split() for line in label_lines or ()]
    return table


def _read_class_names(root: str, tables: Mapping[str, _Table]) -> tuple[str, ...]:
    """The names in classes.txt, or the numbers of as many columns as most rows have."""
    if os.path.isfile(os.path.join(root, "classes.txt")):
        return tuple(_read_lines(root, "classes.txt", []) or ())
    widths = collections.Counter(
        len(fields) for table in tables.values() for fields in table.labels if fields
    )
    return tuple(map(str, range(widths.most_common(1)[0][0] if widths else 0)))


def _parse(
    root: str,
    split: str,
    table: _Table,
    num_classes: int,
    remap: Mapping[str, str],
    problems: list[str],
) -> _Listing:
    """Turns text into a split of the rows that can be understood; the others are problems."""
    faults: dict[tuple[str, str, str], list[str]] = {}
    pathless = (table.path_file, "lines without a path", "Remove them or name the image.")
    outside = (
        table.path_file,
        f"paths that leave {root}",
        f"Paths must stay in that folder; replace their beginning with {_REMAP}.",
    )
    bare = (table.label_file, "lines without labels", "Give them 0s and 1s.")
    ragged = (
        table.label_file,
        f"rows with other than {num_classes} label columns",
        "Every row needs as many as classes.txt names or, without it, most rows have.",
    )
    wordy = (table.label_file, "rows with labels that are no numbers", "Use 0 and 1.")
    paths, labels, numbers = [], [], []
    prefix = os.path.join(root, "")
    for number, (text, fields) in enumerate(zip(table.paths, table.labels, strict=False), 1):
        old = next((old for old in remap if text.startswith(old)), None)
        mapped = text if old is None else remap[old] + text[len(old) :]
        path = os.path.normpath(os.path.join(root, mapped))
        found = []
        if not text or not path.startswith(prefix):
            found.append((outside if text else pathless, mapped))
        if len(fields) != num_classes:
            found.append((ragged, f"{len(fields)} columns") if fields else (bare, text))
        try:
            label = np.array(fields, np.float32)
        except ValueError:
            found.append((wordy, " ".join(fields)[:60]))
        for fault, detail in found:
            faults.setdefault(fault, []).append(f"line {number}" + f": {detail}" * bool(detail))
        if not found:
            paths.append(path)
            labels.append(label)
            numbers.append(number)
    for (file, what, remedy), examples in faults.items():
        _note(problems, file, what, examples, remedy)
    return _Listing(
        Split(split, np.array(labels, np.float32).reshape(-1, num_classes), tuple(paths)),
        table.path_file,
        "line",
        np.array(numbers, np.int64),
    )


def _inspect(listings: Iterable[_Listing], decode: bool) -> tuple[set[str], set[str]]:
    """Finds the missing files and, if asked to, the undecodable ones."""
    paths = sorted({path for listing in listings for path in listing.split.paths or ()})
    missing = {path for path in paths if not os.path.isfile(path)}
    if not decode or not paths:
        return missing, set()
    tf, tqdm = lazy.tensorflow(), lazy.require("tqdm").tqdm

    def is_corrupt(path: str) -> bool:
        try:
            images.decode_image(tf.io.read_file(os.fsencode(path)))
        except tf.errors.OpError:
            return True
        return False

    present = [path for path in paths if path not in missing]
    with concurrent.futures.ThreadPoolExecutor(parallel.num_cpus()) as pool:
        found = pool.map(is_corrupt, present)
        # A bar only for those who have to wait.
        progress = tqdm(found, "checking images", len(present), delay=3, leave=False)
        return missing, {path for path, bad in zip(present, progress, strict=True) if bad}


def _check(
    listings: Mapping[str, _Listing],
    missing: set[str],
    corrupt: set[str],
    problems: list[str],
    warnings: list[str],
) -> None:
    """Adds what is wrong and what is odd about understood rows."""
    paths = {name: set(listing.split.paths or ()) for name, listing in listings.items()}
    for name, listing in listings.items():
        file, split = listing.file, listing.split
        remedy = f"Restore the files, or mend their paths with {_REMAP}."
        _note(problems, file, "missing images", listing.among(missing), remedy)
        remedy = "Restore them, or leave them out: in a config data.skip_corrupt=True."
        _note(problems, file, "undecodable JPEG or PNG images", listing.among(corrupt), remedy)
        cells = np.argwhere((split.labels != 0) & (split.labels != 1))
        examples = [
            f"{listing.unit} {listing.numbers[row]}, column {column + 1}: "
            f"{split.labels[row, column]:g}"
            for row, column in cells
        ]
        _note(problems, file, "labels other than 0 and 1", examples, "Use 0 and 1.")
        if name == "query":
            remedy = "Remove them from one of the two: a query must not find itself."
            for other in ("database", "train"):
                what = f"queries that also stand in {other}"
                _note(problems, file, what, listing.among(paths[other]), remedy)
        blank = listing.describe(np.flatnonzero(~split.labels.any(axis=1)))
        _note(warnings, file, "rows without any label", blank, "They are relevant to nothing.")
        own = split.paths or ()
        first = {path: row for row, path in reversed(list(enumerate(own)))}
        twice = listing.describe(row for row, path in enumerate(own) if first[path] != row)
        _note(warnings, file, "rows that repeat an earlier one", twice, "They count each time.")
        if name == "train":
            strange = listing.among(paths["train"] - paths["database"])
            remedy = "The papers train on a part of the database."
            _note(warnings, file, "train images not in the database", strange, remedy)
