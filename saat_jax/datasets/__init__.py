"""Labelled images: where they come from, whether they are sound, and batches of them.

A `Dataset` has three splits. The *query* images are searched for in the *database*; the
*train* images, mostly a part of the database, teach the network. A split holds the paths of
JPEG and PNG files, or the pixels themselves. Row i of a split is the "index" that the code
bank uses. Knows nothing of codes, networks or attacks; TensorFlow is needed by TFDS, and by the
tf.data pipelines that read images for training.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from saat_jax import options
from saat_jax.datasets.batches import eval_batches, steps_per_epoch, train_batches
from saat_jax.datasets.checks import ManifestError, check_dataset
from saat_jax.datasets.digits import load_digits
from saat_jax.datasets.images import check_sizes, load_images, resize_crop_geometry, write_png
from saat_jax.datasets.lists import load_lists, parse_remap
from saat_jax.datasets.named import load_tfds
from saat_jax.datasets.packed import load_packed, pack_images
from saat_jax.datasets.splits import Dataset, Split, relevant_share

__all__ = [
    "SOURCES",
    "Dataset",
    "ManifestError",
    "Split",
    "check_dataset",
    "check_options",
    "eval_batches",
    "load_dataset",
    "load_digits",
    "load_images",
    "load_lists",
    "load_packed",
    "load_tfds",
    "pack_images",
    "parse_remap",
    "relevant_share",
    "resize_crop_geometry",
    "steps_per_epoch",
    "train_batches",
    "write_png",
]

# The names a config may use; `register` adds a source of one's own, whose options are its keywords.
SOURCES: options.Choices[Callable[..., Dataset]] = options.Choices(
    "source",
    {"digits": load_digits, "lists": load_lists, "packed": load_packed, "tfds": load_tfds},
)


def _folder(place: str, value: Any) -> None:
    options.check_tree(place, os.fspath(value) if isinstance(value, os.PathLike) else value, str)


# Of which kind the options are; the others are numbers, if they have a range.
_SHAPES = {
    "root?": _folder,
    "remap?": lambda _, value: parse_remap(value),
    "skip_corrupt?": bool,
    "decode?": bool,
    "exif?": bool,
    "name?": str,
    "data_dir?": _folder,
    "*": options.anything,
}
# These every config may have, as long as they say nothing.
_SHARED = ("resize", "root", "remap", "skip_corrupt")


def load_dataset(
    *,
    source: str,
    image_size: int,
    resize: int | None = None,
    root: str | None = None,
    remap: Mapping[str, str] | Sequence[str] | None = None,
    skip_corrupt: bool = False,
    seed: int = 0,
    **others: Any,
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
        **others: further options of the source; see `load_digits`, `load_lists`,
            `load_packed`, `load_tfds`.

    Returns:
        The dataset; its `warnings` say what is odd and yet no reason to stop.

    Raises:
        ValueError: an unknown source or option, or a value out of range.
        ManifestError: the data are not sound; lists every problem.
    """
    shared = {"resize": resize, "root": root, "remap": remap, "skip_corrupt": skip_corrupt}
    given = check_options(source, image_size=image_size, seed=seed, **shared, **others)
    return SOURCES[source](**given)


def check_options(source: str, **given: Any) -> dict[str, Any]:
    """Checks what can be known of `load_dataset`'s arguments before anything is read.

    Args:
        source: one of `SOURCES`.
        **given: its options.

    Returns:
        The options that it takes.

    Raises:
        ValueError: naming the option that is wrong, what it is, and what it may be.

    Example:
        >>> check_options("lists", image_size=32, root="photos", remap=["/home/me"])
        Traceback (most recent call last):
        ValueError: remap expects OLD=NEW, beginnings of paths, got '/home/me'
    """
    parameters = inspect.signature(SOURCES[source]).parameters
    known = {
        name: ... if item.default is item.empty else item.default
        for name, item in parameters.items()
        if item.kind is item.KEYWORD_ONLY
    }
    given = {
        name: value
        for name, value in given.items()
        if name not in _SHARED or not (value is None or value is False or _is_empty(value))
    }
    options.check_given(f"source {source!r}", known, given)
    options.check_tree("", given, _SHAPES)
    check_sizes(given.get("image_size", known["image_size"]), given.get("resize"))
    return given


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sized) and not len(value)
