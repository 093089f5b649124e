"""Images of one's own, by folders or a table of labels, and what looks alike among them."""

import csv
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from saat_jax import hamming, lazy
from saat_jax.datasets.checks import ManifestError
from saat_jax.datasets.images import load_images, open_image
from saat_jax.datasets.originals import Original
from saat_jax.datasets.splits import Dataset

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
# Heads of the column of paths, and of that of labels, of which one cell may have several.
_PATHS, _LABELS, _SEPARATOR = ("path", "image", "file", "filename"), ("label", "labels"), ";"
# Bits of the 64 of dHash in which copies of a picture may differ.
_ALIKE = 2
# Of the picture of a set: classes, images of each, and their side in pixels.
_ROWS, _COLUMNS, _SIDE = 12, 8, 96


def read_own(source: pathlib.Path, table: pathlib.Path | None = None) -> Original:
    """Reads images of one's own.

    Args:
        source: folder of the images; without a table it holds a folder for each class.
        table: CSV or JSON of labels. CSV has a head: a column "path" (or "image", "file"), and
            either "labels", in which several are separated by ";", or a column of 0 and 1 for each
            class. JSON maps paths to lists of labels. Paths are from the folder.

    Raises:
        ManifestError: if there are no images or classes, or the table cannot be understood.
    """
    labels = _by_folder(source) if table is None else _by_table(table)
    names = sorted({name for found in labels.values() for name in found})
    if not labels or not names:
        raise ManifestError(
            str(table or source),
            [
                f"{len(labels)} images with {len(names)} labels found; expected a folder for each "
                "class with images in it, or a table of labels"
            ],
        )
    paths = sorted(labels)
    rows = [[name in labels[path] for name in names] for path in paths]
    counts = {"images": len(paths), "classes": len(names)}
    read = [] if table is None else [table]
    return Original(source, paths, np.array(rows, np.uint8), names, read, counts)


def _by_folder(source: pathlib.Path) -> dict[str, set[str]]:
    found = {}
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        if path.suffix.lower() in _ENDINGS and len(inside.parts) > 1 and path.is_file():
            found[inside.as_posix()] = {inside.parts[0]}
    return found


def _by_table(table: pathlib.Path) -> dict[str, set[str]]:
    try:
        if table.suffix.lower() == ".json":
            tree = json.loads(table.read_bytes())
            found = {str(path): set(_words(labels)) for path, labels in dict(tree).items()}
        else:
            with open(table, encoding="utf-8-sig", newline="") as file:
                found = _of_rows([*csv.DictReader(file, strict=True)])
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ManifestError(str(table), [f"no table of labels: {error}"]) from error
    return found


def _words(labels: Any) -> list[str]:
    words = [labels] if isinstance(labels, str) else list(labels)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"labels must be texts, got {labels!r}")
    return words


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    heads = [*rows[0]] if rows else []
    paths = [head for head in heads if str(head).strip().lower() in _PATHS]
    if len(paths) != 1:
        raise ValueError(f"expected one column of {_PATHS}, got the columns {heads}")
    others = [head for head in heads if head not in paths]
    lists = [head for head in others if str(head).strip().lower() in _LABELS]
    found: dict[str, set[str]] = {}
    for number, row in enumerate(rows, 2):
        path = row[paths[0]]
        if None in row or None in row.values() or not path:
            raise ValueError(f"line {number} has not the {len(heads)} cells of the head")
        if path in found:
            raise ValueError(f"line {number} has {path!r} again")
        if lists:
            words = row[lists[0]].split(_SEPARATOR)
            found[path] = {word.strip() for word in words if word.strip()}
            continue
        if wrong := [row[head] for head in others if row[head].strip() not in ("0", "1")]:
            raise ValueError(f"line {number} has {wrong[0]!r} where 0 or 1 is expected")
        found[path] = {head for head in others if row[head].strip() == "1"}
    return found


def difference_hashes(paths: Sequence[pathlib.Path | str]) -> np.ndarray:
    """DHash of image files, by which copies of a picture are known. `[num, 64]` in {-1, +1}"""
    pillow = lazy.require("PIL.Image")
    codes = np.empty((len(paths), 64), np.float32)
    shown = tqdm(paths, desc="look-alikes", unit="image", leave=False)
    for row, path in enumerate(shown):
        grey = open_image(str(path), exif=True).convert("L").resize((9, 8), pillow.LANCZOS)
        levels = np.asarray(grey).astype(int)
        codes[row] = np.where(np.diff(levels, axis=1) > 0, 1, -1).reshape(-1)
    return codes


def look_alikes(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pairs of images that look alike, by their dHash. `[num_pairs, 2]` rows of either.

    Args:
        codes: `[num, 64]` in {-1, +1}.
        others: `[num_others, 64]`.

    Example:
        >>> codes = np.ones((2, 64))
        >>> codes[1, :9] = -1
        >>> look_alikes(codes, codes[1:]).tolist()
        [[1, 0]]
    """
    if not len(codes) or not len(others):
        return np.zeros((0, 2), int)
    found = []
    for first in range(0, len(codes), 1024):
        apart = np.asarray(hamming.hamming_distance(codes[first : first + 1024], others))
        found.append(np.argwhere(apart <= _ALIKE) + [first, 0])
    return np.concatenate(found)


def picture(dataset: Dataset) -> np.ndarray:
    """A few images of each class in a row, to look at before training. `[height, width, 3]` uint8

    Args:
        dataset: of files or of pixels; the database is shown.
    """
    split = dataset.database
    shown = [column for column in range(dataset.num_classes) if split.labels[:, column].any()]
    lines = []
    for column in shown[:_ROWS]:
        rows = np.flatnonzero(split.labels[:, column])
        rows = rows[np.linspace(0, len(rows) - 1, min(_COLUMNS, len(rows))).astype(int)]
        line = np.ones((_SIDE, _COLUMNS * _SIDE, 3), np.float32)
        images = load_images(split, rows, image_size=_SIDE, resize=_SIDE)
        line[:, : len(rows) * _SIDE] = np.concatenate([*images], axis=1)
        lines.append(line)
    return np.round(255 * np.concatenate(lines)).astype(np.uint8)


def sizes_of(num_images: int) -> tuple[int, int]:
    """How many queries and training images so many images give, where nothing is said.

    Example:
        >>> sizes_of(1000), sizes_of(100_000)
        ((100, 900), (1000, 10000))
    """
    num_query = min(1000, math.ceil(0.1 * num_images))
    return num_query, min(10_000, num_images - num_query)
