"""Labelled images: where they come from, whether they are sound, and batches of them.

A `Dataset` has three splits. The *query* images are searched for in the *database*; the
*train* images, mostly a part of the database, teach the network. A split holds the paths of
JPEG and PNG files, or the pixels themselves. Row i of a split is the "index" that the code
bank uses. Knows nothing of codes, networks or attacks; TensorFlow is imported on first use.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from saat_jax.datasets.batches import eval_batches, steps_per_epoch, train_batches
from saat_jax.datasets.digits import load_digits
from saat_jax.datasets.images import check_sizes, load_images, resize_crop_geometry
from saat_jax.datasets.manifests import ManifestError, check_dataset, load_lists
from saat_jax.datasets.named import load_tfds
from saat_jax.datasets.packed import load_packed, pack_images
from saat_jax.datasets.records import Dataset, Split, relevant_share

__all__ = [
    "SOURCES",
    "Dataset",
    "ManifestError",
    "Split",
    "check_dataset",
    "eval_batches",
    "load_dataset",
    "load_digits",
    "load_images",
    "load_lists",
    "load_packed",
    "load_tfds",
    "pack_images",
    "relevant_share",
    "resize_crop_geometry",
    "steps_per_epoch",
    "train_batches",
]

# The names a config may use. Add a source by adding a line.
SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "lists": load_lists,
    "packed": load_packed,
    "tfds": load_tfds,
}


def load_dataset(
    *,
    source: str,
    image_size: int,
    resize: int | None = None,
    root: str | None = None,
    remap: Mapping[str, str] | None = None,
    skip_corrupt: bool = False,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Loads a checked dataset of one of the `SOURCES`.

    Args:
        source: "digits" (bundled, no download), "lists" (your own images), "packed" (shards of
            them) or "tfds".
        image_size: height and width of the images that the network sees, in pixels.
        resize: length of the short side before the centre crop, in pixels; None squeezes
            the whole image into the square.
        root: the folder of the lists or shards. Only "lists" and "packed".
        remap: old to new beginnings of the paths in the lists. Only "lists".
        skip_corrupt: drop undecodable images with a warning. Only "lists".
        seed: fixes what is drawn by chance: the digits, the TFDS rows.
        **options: further options of the source; see `load_digits`, `load_lists`,
            `load_packed`, `load_tfds`.

    Returns:
        The dataset; its `warnings` say what is odd and yet no reason to stop.

    Raises:
        ValueError: an unknown source or option, or a value out of range.
        ManifestError: the data are not sound; lists every problem.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; expected one of {sorted(SOURCES)}")
    check_sizes(image_size, resize)
    shared = {"resize": resize, "root": root, "remap": remap, "skip_corrupt": skip_corrupt}
    options |= {name: value for name, value in shared.items() if value}
    accepted = inspect.signature(SOURCES[source]).parameters
    if unknown := sorted(options.keys() - accepted):
        raise ValueError(
            f"source {source!r} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}"
        )
    required = {name for name, item in accepted.items() if item.default is item.empty}
    if missing := sorted(required - options.keys() - {"image_size", "seed"}):
        raise ValueError(f"source {source!r} needs {', '.join(missing)}; none was given")
    return SOURCES[source](image_size=image_size, seed=seed, **options)
