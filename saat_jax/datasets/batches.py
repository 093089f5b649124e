"""Batches that depend on (seed, epoch, batch number) alone, so that any step can be resumed."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from saat_jax import lazy, options, parallel
from saat_jax.datasets import images
from saat_jax.datasets.splits import Split

Batch = dict[str, np.ndarray]
# Rows of the split, and for each three draws in [0, 1) that place and mirror its crop.
Rows = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
Stream = Iterator[tuple[np.ndarray, np.ndarray]]
# One row's pixels, from the row and its draws.
Load = Callable[[int, np.ndarray], np.ndarray]
# Half the cores, but two at least: the rest belong to the network when it runs on the CPU.
_NUM_THREADS = max(2, parallel.num_cpus() // 2)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the batches of one epoch, the last short one included."""
    options.check_numbers(batch_size=batch_size)
    return -(-len(split) // batch_size)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    num_epochs: int,
    start_step: int = 0,
    image_size: int,
    resize: int | None,
    augment: bool = False,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Iterates over the shuffled batches of all epochs, from any step on.

    Every epoch has its own order, fixed by `seed` and its number. The last, short batch of an
    epoch is padded, and so is every batch that does not divide by the devices: extra rows have
    mask 0, zero image and label, and index `len(split)`, which a scatter with mode="drop" ignores.

    Args:
        split: where the images are.
        batch_size: real rows of a global batch, over all processes.
        seed: of the orders; not negative.
        num_epochs: number of passes from step 0.
        start_step: number of batches to leave out, those a resumed run has already seen.
        image_size: height and width of the images, in pixels.
        resize: short side before the centre crop; None squeezes the whole image.
        augment: whether crops lie anywhere in the image instead of at its centre, and half of
            them are mirrored, by chance that `seed` and the epoch fix.
        num_devices: of all processes.
        process_index: which share of each global batch to yield.
        process_count: number of equal, contiguous shares; the devices divide by it.

    Returns:
        Iterator of dicts: "image" [batch, image_size, image_size, 3] float32 in [0, 1],
        "label" [batch, num_classes] float32, "index" [batch] int32 row of the split,
        "mask" [batch] float32, 1 for a real row.

    Raises:
        ValueError: an empty split, a batch that cannot be shared, a value out of range; while
            iterating, an image that cannot be read.
    """
    options.check_numbers(seed=seed, start_step=start_step)
    padding = -batch_size % num_devices
    share = _share(split, batch_size + padding, process_index, process_count)
    num_steps = steps_per_epoch(split, batch_size)

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for epoch in range(start_step // num_steps, num_epochs):
            rng = np.random.default_rng((seed, epoch))
            order = _pad(rng.permutation(len(split)), batch_size, padding)
            draws = rng.random((num_steps, batch_size, 3), np.float32)
            draws = np.pad(draws, ((0, 0), (0, padding), (0, 0)))
            for step in range(max(start_step - epoch * num_steps, 0), num_steps):
                yield order[step, share], draws[step, share]

    size = share.stop - share.start
    # The same pixels by either.
    reader = _by_tf_data if lazy.has("tensorflow") else _in_threads
    return _read(split, rows, size, reader, image_size=image_size, resize=resize, augment=augment)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int,
    resize: int | None,
    start_step: int = 0,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Iterates once over a split in the order of its rows; otherwise as `train_batches`."""
    padding = -batch_size % num_devices
    share = _share(split, batch_size + padding, process_index, process_count)

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in _pad(np.arange(len(split)), batch_size, padding)[start_step:, share]:
            yield index, np.empty((len(index), 3), np.float32)

    size = share.stop - share.start
    return _read(split, rows, size, _in_threads, image_size=image_size, resize=resize)


def _share(split: Split, batch_size: int, process_index: int, process_count: int) -> slice:
    """The columns of a global batch that belong to one process."""
    if not len(split):
        raise ValueError(f"split {split.name!r} has no rows; check its lists")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in 0 to process_count - 1 = {process_count - 1}, "
            f"got {process_index}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a positive multiple of the {process_count} processes, got "
            f"{batch_size}; try {max(batch_size - batch_size % process_count, process_count)}"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _pad(order: np.ndarray, batch_size: int, padding: int) -> np.ndarray:
    """Cuts an order of rows into [steps, batch_size + padding] int32, padded with their number."""
    missing = np.full(-len(order) % batch_size, len(order))
    batches = np.concatenate([order, missing]).astype(np.int32).reshape(-1, batch_size)
    return np.pad(batches, ((0, 0), (0, padding)), constant_values=len(order))


def _read(
    split: Split,
    rows: Rows,
    size: int,
    reader: Callable[[Load, Rows, int], Stream],
    *,
    image_size: int,
    resize: int | None,
    augment: bool = False,
) -> Iterator[Batch]:
    """Finishes the rows' batches, read by `reader` unless they lie ready."""
    images.check_sizes(image_size, resize)

    def load(index: int, draw: np.ndarray) -> np.ndarray:
        if index == len(split):
            return np.zeros((image_size, image_size, 3), np.uint8)
        chance = draw if augment else None
        return images.read_row(split, index, chance, image_size=image_size, resize=resize)

    if images.is_fitted(split, image_size, resize) and not augment:
        return _finish(split, _gather(split, rows))
    return _finish(split, reader(load, rows, size))


def _finish(split: Split, stream: Stream) -> Iterator[Batch]:
    for index, pixels in stream:
        real = index < len(split)
        image = images.to_unit_range(pixels)
        image[~real] = 0
        label = split.labels[np.minimum(index, len(split) - 1)] * real[:, None]
        yield {
            "image": image,
            "label": label.astype(np.float32),
            "index": index,
            "mask": real.astype(np.float32),
        }


def _gather(split: Split, rows: Rows) -> Stream:
    """Picks the images of each batch from memory; padding repeats the last row."""
    assert split.images is not None
    for index, _ in rows():
        yield index, split.images[np.minimum(index, len(split) - 1)]


def _in_threads(load: Load, rows: Rows, size: int) -> Stream:
    """Reads the images of each batch two batches ahead, by nothing but Pillow."""
    items = (item for batch in rows() for item in zip(*batch, strict=True))
    pixels = images.ahead(lambda item: load(*item), items, threads=_NUM_THREADS, by=2 * size)
    for index, _ in rows():
        yield index, np.stack(list(itertools.islice(pixels, size)))


def _by_tf_data(load: Load, rows: Rows, size: int) -> Stream:
    """Reads the images of each batch two batches ahead, by a tf.data pipeline."""
    tf = lazy.tensorflow()
    failures = []

    def load_row(index: np.ndarray, draw: np.ndarray) -> np.ndarray:
        try:
            return load(int(index), draw)
        except Exception as error:
            failures.append(error)
            raise

    def read(index: Any, draw: Any) -> Any:
        return index, tf.numpy_function(load_row, [index, draw], tf.uint8, stateful=False)

    signature = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 3], tf.float32)
    data = tf.data.Dataset.from_generator(rows, output_signature=signature)
    data = data.unbatch().map(read, num_parallel_calls=_NUM_THREADS)
    data = data.batch(size).prefetch(2)
    settings = tf.data.Options()
    settings.deterministic = True
    settings.threading.private_threadpool_size = _NUM_THREADS
    try:
        yield from data.with_options(settings).as_numpy_iterator()
    except tf.errors.OpError as error:
        # TensorFlow's own tells of the pipeline, not of the image.
        raise (failures[0] if failures else error) from None
