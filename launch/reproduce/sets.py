"""The papers' data sets: how large each is, and whether a folder holds it."""

import dataclasses
import functools
import json

import numpy as np

from saat_jax import datasets
from saat_jax.pipeline.parts import Config, load_data


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a set is.

    Attributes:
        query, database, train: images of each split.
        num_classes: label columns.
        unlabelled: queries without a label; None where a paper does not say.
    """

    query: int
    database: int
    train: int
    num_classes: int
    unlabelled: int | None = None

    def __str__(self) -> str:
        without = "" if self.unlabelled is None else f" ({self.unlabelled:,} without labels)"
        return (
            f"{self.query:,} queries{without}, {self.database:,} database and {self.train:,} "
            f"training images, {self.num_classes} classes"
        )


# By paper and set.
PUBLISHED = {
    ("saat", "flickr25k"): Sizes(1000, 24_000, 5000, 38),
    ("saat", "nuswide"): Sizes(2100, 193_734, 10_500, 21),
    ("saat", "coco"): Sizes(5000, 118_287, 10_000, 80),
    ("prosgan", "flickr25k"): Sizes(1700, 23_300, 5000, 38),
    ("prosgan", "nuswide"): Sizes(2100, 193_734, 10_500, 21),
    ("prosgan", "coco"): Sizes(5000, 117_218, 10_000, 80),
}


def load_undecoded(config: Config) -> datasets.Dataset:
    """The data of a config, of which no image is decoded; each is read once.

    Raises:
        ValueError: if the lists are not sound.
    """
    data = config["data"]
    return _load(json.dumps(data | {"decode": False} if "decode" in data else data), config["seed"])


@functools.cache
def _load(data: str, seed: int) -> datasets.Dataset:
    return load_data({"data": json.loads(data), "seed": seed})


def sizes_of(config: Config) -> Sizes:
    """The sizes of the data of a config; raises as `load_undecoded`."""
    found = load_undecoded(config)
    return Sizes(
        len(found.query),
        len(found.database),
        len(found.train),
        found.num_classes,
        int(np.sum(~found.query.labels.any(axis=1))),
    )


def difference(paper: str, dataset: str, found: Sizes) -> str:
    """What of a set is not as the paper has it, in words; empty for nothing."""
    published = dataclasses.asdict(PUBLISHED[paper, dataset])
    own = dataclasses.asdict(found)
    return ", ".join(
        f"{own[name]:,} for {value:,} ({name.replace('num_', '')})"
        for name, value in published.items()
        if value is not None and value != own[name]
    )
