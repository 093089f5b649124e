"""Whether data are sound: every problem in one report, before any work is done."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from saat_jax import lazy, options, parallel
from saat_jax.datasets import images
from saat_jax.datasets.splits import Dataset

REMAP = "--remap OLD=NEW, in a config data.remap"
CORRUPT = "undecodable images"
# What can be wrong with the file of an image, and the remedy.
_REMEDIES = {
    "missing images": f"Restore the files, or mend their paths with {REMAP}.",
    "images that cannot be read": "Mend that: the images themselves may be sound.",
    CORRUPT: "Restore them, or leave them out: in a config data.skip_corrupt=True.",
}
# By the fault, what is said of the images at these paths.
Faults = Mapping[str, Mapping[str, str]]


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
        super().__init__("\n".join([f"{count} in {options.shortened(place)}:", *lines]))


@dataclasses.dataclass
class Report:
    """What is found to be wrong, and what is odd."""

    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def problem(self, place: str, what: str, examples: Sequence[str], remedy: str) -> None:
        """Adds a problem with a count and the first examples, if there are any."""
        self.problems += _note(place, what, examples, remedy)

    def warning(self, place: str, what: str, examples: Sequence[str], remedy: str) -> None:
        """Adds a warning in the same way."""
        self.warnings += _note(place, what, examples, remedy)

    def stop(self, place: str) -> None:
        """Raises ManifestError if there are problems."""
        if self.problems:
            raise ManifestError(place, self.problems, self.warnings)


def _note(place: str, what: str, examples: Sequence[str], remedy: str) -> list[str]:
    shown = "; ".join(examples[:3]) + "; ..." * (len(examples) > 3)
    return [f"{place}: {len(examples)} {what} ({shown}). {remedy}"] if examples else []


@dataclasses.dataclass
class Listing:
    """The rows of a split that can be understood, and what to call them in a report."""

    name: str
    paths: Sequence[str]
    labels: np.ndarray
    path_place: str
    label_place: str
    unit: str
    numbers: np.ndarray

    def describe(self, rows: Iterable[int]) -> list[str]:
        """Names rows by number and path."""
        paths = [options.shortened(self.paths[i]) for i in rows] if self.paths else None
        heads = [f"{self.unit} {self.numbers[i]}" for i in rows]
        return [f"{a}: {b}" for a, b in zip(heads, paths, strict=True)] if paths else heads

    def among(self, found: Mapping[str, str]) -> list[str]:
        """Names the rows whose image is one of those found, each with what is said of it."""
        rows = [i for i, path in enumerate(self.paths) if path in found]
        said = [found[self.paths[i]] for i in rows]
        return [f"{a}: {b}" if b else a for a, b in zip(self.describe(rows), said, strict=True)]

    def without(self, dropped: Mapping[str, str]) -> "Listing":
        """Leaves out the rows whose image is one of `dropped`."""
        kept = [i for i, path in enumerate(self.paths) if path not in dropped]
        return dataclasses.replace(
            self,
            paths=[self.paths[i] for i in kept],
            labels=self.labels[kept],
            numbers=self.numbers[kept],
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
    report = Report()
    listings = {}
    for split in (dataset.train, dataset.query, dataset.database):
        place = f"split {split.name}"
        listings[split.name] = Listing(
            split.name, split.paths or (), split.labels, place, place, "row", np.arange(len(split))
        )
        if not len(split):
            report.problems.append(f"{place}: no rows. Give it at least one.")
        if split.labels.shape[1] != dataset.num_classes:
            report.problems.append(
                f"{place}: {split.labels.shape[1]} label columns for "
                f"{dataset.num_classes} classes. Give every class one column."
            )
    faults = inspect(listings.values(), decode=decode, exif=dataset.train.exif)
    check(listings, faults, report)
    report.stop(f"dataset {dataset.name}")
    return tuple(report.warnings)


def is_utf8(text: str) -> bool:
    """Whether what was decoded with "surrogateescape" was UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def inspect(listings: Iterable[Listing], *, decode: bool, exif: bool) -> Faults:
    """Finds files that are missing, cannot be read or, if asked to, decoded, and says why."""
    paths = sorted({path for listing in listings for path in listing.paths})
    missing: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    corrupt: dict[str, str] = {}

    def look(path: str) -> None:
        try:
            if decode:
                images.open_image(path, exif=exif)
            else:
                images.check_file(path)
        except FileNotFoundError:
            missing[path] = ""
        except OSError as error:
            unreadable[path] = images.reason(error)
        except ValueError as error:
            if decode:
                corrupt[path] = images.reason(error)

    threads = parallel.num_cpus()
    done = (
        images.ahead(look, paths, threads=threads, by=4 * threads) if decode else map(look, paths)
    )
    # A bar only for those who have to wait.
    for _ in lazy.require("tqdm").tqdm(done, "checking images", len(paths), delay=3, leave=False):
        pass
    return dict(zip(_REMEDIES, (missing, unreadable, corrupt), strict=True))


def check(listings: Mapping[str, Listing], faults: Faults, report: Report) -> None:
    """Adds what is wrong and what is odd about understood rows."""
    paths = {name: dict.fromkeys(listing.paths, "") for name, listing in listings.items()}
    for name, listing in listings.items():
        place, labels = listing.path_place, listing.labels
        for what, found in faults.items():
            wrong = [path for path in listing.paths if path in found]
            remedy = _REMEDIES[what]
            if any("\\" in path for path in wrong):
                remedy += " In a path write / in place of \\."
            if not all(map(is_utf8, wrong)):
                remedy += " The names in the list are no UTF-8: are those of the files?"
            report.problem(place, what, listing.among(found), remedy)
        cells = np.argwhere((labels != 0) & (labels != 1))
        examples = [
            f"{listing.unit} {listing.numbers[row]}, column {column + 1}: {labels[row, column]:g}"
            for row, column in cells
        ]
        report.problem(listing.label_place, "labels other than 0 and 1", examples, "Use 0 and 1.")
        if name == "query":
            remedy = "Remove them from one of the two: a query must not find itself."
            for other in ("database", "train"):
                what = f"queries that also stand in {other}"
                report.problem(place, what, listing.among(paths[other]), remedy)
        blank = listing.describe(np.flatnonzero(~labels.any(axis=1)))
        remedy = "They are relevant to nothing."
        report.warning(listing.label_place, "rows without any label", blank, remedy)
        first = {path: row for row, path in reversed(list(enumerate(listing.paths)))}
        again = [row for row, path in enumerate(listing.paths) if first[path] != row]
        what = "rows that repeat an earlier one"
        report.warning(place, what, listing.describe(again), "They count each time.")
        if name == "train":
            strange = {path: "" for path in paths["train"] if path not in paths["database"]}
            remedy = "The papers train on a part of the database."
            what = "train images not in the database"
            report.warning(place, what, listing.among(strange), remedy)
