"""Datasets by name from TensorFlow Datasets, as COCO, VOC and CIFAR."""

import dataclasses
import functools
from typing import Any

import numpy as np

from saat_jax import lazy
from saat_jax.datasets import images
from saat_jax.datasets.checks import check_dataset
from saat_jax.datasets.splits import Dataset, Split


def load_tfds(
    *,
    image_size: int,
    seed: int = 0,
    name: str,
    resize: int | None = None,
    num_query: int = 500,
    num_database: int = 2000,
    num_train: int = 1000,
    data_dir: str | None = None,
) -> Dataset:
    """Draws the three splits from a TFDS dataset, downloading it if need be.

    Queries come from the "validation" split, or from "test" where there is none (the test
    splits of COCO and VOC 2012 carry no labels); the database from "train", and the train images
    from the database. A class is present if any object of the image has it.

    Args:
        image_size: height and width of the images, in pixels.
        seed: fixes which rows are drawn.
        name: TFDS name, such as "coco/2017", "voc/2007" or "cifar10".
        resize: short side before the centre crop; None squeezes the whole image.
        num_query: number of query images.
        num_database: number of database images.
        num_train: number of train images, at most `num_database`.
        data_dir: folder of the prepared datasets; None means that of TFDS.

    Returns:
        The dataset, with its pixels at their final size in memory, so `resize` is None.

    Raises:
        ValueError: more rows asked for than there are, or a dataset without class labels.
        ModuleNotFoundError: TensorFlow or TFDS is not installed.
    """
    if not 1 <= num_train <= num_database:
        raise ValueError(
            f"num_train must be between 1 and num_database = {num_database}, got {num_train}"
        )
    lazy.tensorflow()
    builder = lazy.require("tensorflow_datasets").builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    query_split = "validation" if "validation" in builder.info.splits else "test"
    rng = np.random.default_rng(seed)
    read = functools.partial(_read, builder, rng=rng, image_size=image_size, resize=resize)
    query_images, query_labels = read(query_split, num_query)
    database_images, database_labels = read("train", num_database)
    rows = np.sort(rng.choice(num_database, num_train, replace=False))
    dataset = Dataset(
        name,
        Split("train", database_labels[rows], images=database_images[rows]),
        Split("query", query_labels, images=query_images),
        Split("database", database_labels, images=database_images),
        tuple(_class_feature(builder)[1].names),
        image_size,
        resize=None,
    )
    return dataclasses.replace(dataset, warnings=check_dataset(dataset))


def _class_feature(builder: Any) -> tuple[dict[str, Any], Any]:
    """Where the labels of an example are, as TFDS names parts of it, and their classes."""
    features = builder.info.features
    if "objects" in features and "label" in features["objects"].feature:
        return {"objects": {"label"}}, features["objects"].feature["label"]
    if "labels" in features:
        return {"labels": True}, features["labels"].feature
    if "label" in features:
        return {"label": True}, features["label"]
    raise ValueError(
        f"TFDS dataset {builder.info.full_name!r} has the features {sorted(features)}; "
        "expected one of objects.label, labels or label"
    )


def _read(
    builder: Any,
    split: str,
    size: int,
    *,
    rng: np.random.Generator,
    image_size: int,
    resize: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads `size` random rows of a TFDS split: uint8 images and float32 labels."""
    tf, tfds = lazy.tensorflow(), lazy.require("tensorflow_datasets")
    part, classes = _class_feature(builder)
    # Images stay undecoded until their row is chosen.
    decoders = tfds.decode.PartialDecoding(
        {"image": True, **part}, decoders={"image": tfds.decode.SkipDecoding()}
    )
    data = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    available = int(data.cardinality())
    if not 1 <= size <= available:
        raise ValueError(
            f"{size} rows asked of split {split!r} of {builder.info.full_name}, which has "
            f"{available}; lower num_query or num_database"
        )
    chosen = np.zeros(available, bool)
    chosen[rng.choice(available, size, replace=False)] = True
    is_chosen = tf.constant(chosen)

    def read(content: bytes) -> np.ndarray:
        image = images.decode_image(content)
        return images.fit_image(image, image_size=image_size, resize=resize)

    def load_row(_: Any, example: Any) -> Any:
        image = tf.numpy_function(read, [example["image"]], tf.uint8, stateful=False)
        (labels,) = tf.nest.flatten({key: example[key] for key in part})
        present = tf.reduce_sum(tf.one_hot(tf.reshape(labels, [-1]), classes.num_classes), axis=0)
        return image, tf.minimum(present, 1)

    data = data.enumerate().filter(lambda row, _: is_chosen[row])
    data = data.map(load_row, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    pixels = np.empty((size, image_size, image_size, 3), np.uint8)
    labels = np.empty((size, classes.num_classes), np.float32)
    for row, (image, label) in enumerate(data.as_numpy_iterator()):
        pixels[row], labels[row] = image, label
    return pixels, labels
