"""The bundled default: multi-label images composed from real handwritten digits.

Reference:
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998: 1,797
    scans of 8 by 8 pixels, shipped with scikit-learn.
"""

import numpy as np

from saat_jax import lazy, options
from saat_jax.datasets.splits import Dataset, Split

_CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The queries' share of the scans; with fewer, each scan would recur in too many queries.
_QUERY_SHARE = 0.3


def load_digits(
    *,
    image_size: int = 32,
    seed: int = 0,
    num_query: int = 500,
    num_database: int = 2000,
    num_train: int = 1000,
    contrast: float = 1.0,
) -> Dataset:
    """Composes images of one to three digits, labelled with the digits that appear.

    Each image is a 2 by 2 grid with one to three of its cells filled. Queries are composed from
    other scans than the database, of which the train images are the first rows.

    Args:
        image_size: height and width of an image, in pixels.
        seed: fixes the scans' division and every image.
        num_query: number of query images.
        num_database: number of database images.
        num_train: number of train images, at most `num_database`.
        contrast: scales how far the digits' grey stands off the background's.

    Returns:
        The dataset, with 10 classes and its pixels in memory.

    Raises:
        ValueError: a value out of range.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    options.check_numbers(
        image_size=image_size,
        num_query=num_query,
        num_database=num_database,
        num_train=num_train,
        contrast=contrast,
    )
    if image_size < 16:
        raise ValueError(f"image_size must be at least 16 for a grid of digits, got {image_size}")
    if num_train > num_database:
        raise ValueError(
            f"num_train must be between 1 and num_database = {num_database}, got {num_train}"
        )
    rng = np.random.default_rng(seed)
    data = lazy.require("sklearn.datasets").load_digits()
    query_scans, database_scans = divide_scans(len(data.target), rng)

    def make_split(name: str, scans: np.ndarray, size: int) -> Split:
        ink, digits = data.images[scans] / 16, data.target[scans]
        images, labels = compose(ink, digits, size, rng, image_size=image_size, contrast=contrast)
        return Split(name, labels, images=images)

    query = make_split("query", query_scans, num_query)
    database = make_split("database", database_scans, num_database)
    assert database.images is not None
    train = Split("train", database.labels[:num_train], images=database.images[:num_train])
    return Dataset("digits", train, query, database, _CLASS_NAMES, image_size, resize=None)


def divide_scans(num_scans: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divides the scans at random into those of the queries and those of the database."""
    order = rng.permutation(num_scans)
    first = round(num_scans * _QUERY_SHARE)
    return order[:first], order[first:]


def compose(
    ink: np.ndarray,
    digits: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    image_size: int,
    contrast: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images from scans.

    Args:
        ink: [num_scans, 8, 8] float in [0, 1], the share of ink in each pixel of a scan.
        digits: [num_scans] int, the digit that each scan shows.
        size: number of images.
        rng: advanced by the call.
        image_size: height and width of an image, in pixels.
        contrast: factor of the difference between digit and background.

    Returns:
        [size, image_size, image_size, 3] uint8 grey images, [size, 10] float32 labels.
    """
    cell = image_size // 2
    side = cell * 7 // 8
    grow = _enlargement(ink.shape[1], side)
    large = (grow @ ink @ grow.T).astype(np.float32)
    chosen = rng.integers(len(ink), size=(size, 4))
    # A random order of the four cells, of which the first one to three are filled.
    filled = rng.permuted(np.tile(np.arange(4), (size, 1)), axis=1) < rng.integers(1, 4, (size, 1))
    shift = rng.integers(cell - side + 1, size=(size, 4, 2))
    background, digit = rng.uniform(0.1, 0.4, size), rng.uniform(0.6, 0.9, size)

    coverage = np.zeros((size, image_size, image_size), np.float32)
    labels = np.zeros((size, len(_CLASS_NAMES)), np.float32)
    for place in range(4):
        images = np.flatnonzero(filled[:, place])
        scans = chosen[images, place]
        corner = np.array([place // 2, place % 2]) * cell + shift[images, place]
        rows, columns = (corner[:, axis, None] + np.arange(side) for axis in (0, 1))
        coverage[images[:, None, None], rows[:, :, None], columns[:, None, :]] = large[scans]
        labels[images, digits[scans]] = 1
    step = (contrast * (digit - background)).astype(np.float32)
    grey = background.astype(np.float32)[:, None, None] + step[:, None, None] * coverage
    grey = np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), labels


def _enlargement(old: int, new: int) -> np.ndarray:
    """The [new, old] matrix that enlarges a row of pixels bilinearly, edges held."""
    center = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(center[:, None] - np.arange(old)))
