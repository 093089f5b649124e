"""What every data source returns: a dataset of three splits."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Protocol

import numpy as np

from saat_jax.labels import check_labels, share_label


class StoredImages(Protocol):
    """Pixels that are read when they are asked for."""

    dtype: np.dtype
    ndim: int
    shape: tuple[int, ...]
    # Stands for the pixels in a fingerprint.
    digest: bytes

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: files or pixels, never both.

    Attributes:
        name: "train", "query" or "database".
        labels: [rows, num_classes] float32 multi-hot.
        paths: the image files, one per row.
        images: [rows, height, width, 3] uint8, in memory or stored.
        exif: whether files are turned upright as their EXIF orientation says. The papers' are
            not: the pixels are taken as they are stored.
    """

    name: str
    labels: np.ndarray
    paths: tuple[str, ...] | None = None
    images: np.ndarray | StoredImages | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        check_labels(f"the labels of split {self.name!r}", self.labels)
        rows = self.paths if self.images is None else self.images
        if rows is None or (self.paths is not None and self.images is not None):
            raise ValueError(f"split {self.name!r} needs either paths or images, and not both")
        if len(rows) != len(self.labels):
            raise ValueError(
                f"split {self.name!r} has {len(rows)} images and labels of shape "
                f"{self.labels.shape}; expected ({len(rows)}, num_classes)"
            )
        if self.images is not None and (
            self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3
        ):
            raise ValueError(
                f"split {self.name!r} has images of {self.images.dtype} {self.images.shape}; "
                "expected uint8 (rows, height, width, 3)"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits over the same classes, and how their images are brought to size.

    Attributes:
        name: what reports call it.
        train: the images that teach the network.
        query: the images that are searched for.
        database: the images that are searched through.
        class_names: one name per label column.
        image_size: height and width of the images that the network sees, in pixels.
        resize: short side before the centre crop, in pixels; None if there is no crop.
        warnings: what is odd about the data and yet no reason to stop.
    """

    name: str
    train: Split
    query: Split
    database: Split
    class_names: tuple[str, ...]
    image_size: int
    resize: int | None
    warnings: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of label columns."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """Digests names, labels, sizes, pixels and paths: a key for what is computed from them.

        Paths count from the folder that all images share, so moving that folder as a whole
        changes nothing. The content of image files is not read.

        Returns:
            SHA-256 as 64 hexadecimal digits.
        """
        splits = (self.train, self.query, self.database)
        paths = [path for split in splits for path in split.paths or ()]
        start = len(os.path.commonpath(map(os.path.dirname, paths))) if paths else 0
        sizes = [self.name, self.class_names, self.image_size, self.resize]
        # Only if it is, so that it left all other digests as they were.
        sizes += ["exif"] * any(split.exif for split in splits)
        digest = hashlib.sha256(json.dumps(sizes).encode())
        for split in splits:
            relative = [path[start:] for path in split.paths or ()]
            shape = None if split.images is None else split.images.shape
            digest.update(json.dumps([split.name, split.labels.shape, relative, shape]).encode())
            digest.update(np.ascontiguousarray(split.labels, np.float32).data)
            if isinstance(split.images, np.ndarray):
                digest.update(np.ascontiguousarray(split.images).data)
            elif split.images is not None:
                digest.update(split.images.digest)
        return digest.hexdigest()


def relevant_share(labels: np.ndarray, other_labels: np.ndarray, *, rows: int = 256) -> float:
    """The share of pairs with a common label: about the MAP of random codes.

    Args:
        labels: `[num_queries, num_classes]` multi-hot.
        other_labels: `[num_database, num_classes]` multi-hot.
        rows: how many of `labels` to count at a time, which bounds the memory.
    """
    others = np.asarray(other_labels, np.float32)
    parts = (labels[i : i + rows] for i in range(0, len(labels), rows))
    shared = sum(np.count_nonzero(share_label(part, others)) for part in parts)
    return shared / (len(labels) * len(other_labels))
