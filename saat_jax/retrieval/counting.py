"""Distances and relevance of query-item pairs, counted or ranked, in bounded memory.

Histograms of distances are counted on planes of bits (`planes`). A ranking needs every pair's key,
an integer: twice the distance of the codes, plus one if a label is shared. That takes one XOR and
one population count for 32 bits of code and one AND for 32 classes; the rest is sorting.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import parallel
from saat_jax.retrieval import planes

Array = jax.Array | np.ndarray

TIES = ("average", "index")

MAX_WORKING_BYTES = 256 * 2**20
# The key of a pair, in two widths, and what XLA makes of it.
_BYTES_PER_PAIR = 8
# Per query and distance: the float64 terms of the average precision.
_BYTES_PER_LEVEL = 256
# Rows that are checked and packed at a time: few enough to stay in a processor's cache.
_ROWS_AT_A_TIME = 2**12

# Every how many items a sample takes one.
_SAMPLE = 32

# What an entry of a code is compared with to become bits. A code without zeros needs one bit an
# entry. Of four bits, +1 sets all and -1 none, and a zero sets two: those of a query and those of
# an item have one in common, so that a zero is half way to everything, another zero included.
_ONE_BIT = (0.0,), (0.0,)
_FOUR_BITS = (0.0, 0.0, -0.5, -0.5), (0.0, -0.5, 0.0, -0.5)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Codes and labels as the bits of uint32 words.

    Attributes:
        queries: `[num_queries, num_words]` codes.
        database: `[num_words, num_database]` codes.
        query_labels: `[num_queries, num_label_words]` multi-hot.
        database_labels: `[num_label_words, num_database]` multi-hot.
        num_bits: number of entries of a code.
        bits_per_entry: one, or four where codes have zeros.
    """

    queries: np.ndarray
    database: np.ndarray
    query_labels: np.ndarray
    database_labels: np.ndarray
    num_bits: int
    bits_per_entry: int

    @property
    def num_levels(self) -> int:
        """Number of distances between the packed codes."""
        return self.num_bits * self.bits_per_entry + 1

    @property
    def num_database(self) -> int:
        """Number of items."""
        return self.database.shape[1]


def pack(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> Packed:
    """Checks and packs codes and labels; arguments and errors are `average_precision`'s."""
    queries, database = np.asarray(query_codes), np.asarray(database_codes)
    labels, item_labels = np.asarray(query_labels), np.asarray(database_labels)
    shapes = [array.shape for array in (queries, database, labels, item_labels)]
    if (
        {len(shape) for shape in shapes} != {2}
        or not len(queries) == len(labels) > 0
        or not len(database) == len(item_labels) > 0
        or not queries.shape[1] == database.shape[1] > 0
        or not labels.shape[1] == item_labels.shape[1] > 0
    ):
        raise ValueError(
            "expected query_codes [num_queries, num_bits], database_codes [num_database, "
            "num_bits], query_labels [num_queries, num_classes] and database_labels "
            "[num_database, num_classes], none empty, got shapes "
            f"{', '.join(map(str, shapes))}; every code needs its row of multi-hot labels"
        )
    for name, codes in (("query_codes", queries), ("database_codes", database)):
        if codes.dtype.kind in "bu":
            raise ValueError(
                f"{name} must hold -1 and +1, got dtype {codes.dtype}; "
                "turn packed codes into codes with unpack_codes, and bits with 2.0 * bits - 1"
            )
        _check_values(name, codes, (-1, 0, 1), "round soft codes with binarize first")
    for name, rows in (("query_labels", labels), ("database_labels", item_labels)):
        _check_values(name, rows, (0, 1), "make the labels multi-hot")
    query_bits, item_bits = _ONE_BIT if queries.all() and database.all() else _FOUR_BITS
    return Packed(
        queries=_pack_rows(queries, query_bits).T,
        database=_pack_rows(database, item_bits),
        query_labels=_pack_rows(labels).T,
        database_labels=_pack_rows(item_labels),
        num_bits=queries.shape[1],
        bits_per_entry=len(query_bits),
    )


def distance_histograms(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the items, and the relevant items, at every distance of every query.

    Level i holds the items with <query, item> = num_bits - i, that is at Hamming distance
    i / 2: only even levels occur unless codes have zeros. The histograms of the shards of a
    database add up to those of the whole.

    Args:
        query_codes, database_codes, query_labels, database_labels: as `average_precision`.

    Returns:
        Items and relevant items: `[num_queries, 2 * num_bits + 1]` int64 each.

    Raises:
        ValueError: on the inputs `average_precision` refuses.
    """
    packed = pack(query_codes, database_codes, query_labels, database_labels)
    counted = np.zeros((len(packed.queries), 2 * packed.num_bits + 1, 2), np.int64)
    histograms = np.concatenate(list(_histograms(packed)))
    if packed.bits_per_entry == 1:
        counted[:, ::2] = histograms
    else:
        counted[:] = histograms[:, ::2]
    return counted.sum(axis=-1), counted[..., 1]


def tie_groups(packed: Packed, *, ties: str, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the items and the relevant items of each group of ties, nearest first.

    With `ties="index"` what lies behind the first k items is one more group.

    Args:
        packed: codes and labels.
        ties: "average" or "index".
        k: number of items whose order is of interest, at most `num_database`.

    Yields:
        `[rows, num_groups]` int64 each, some queries at a time, in their order.
    """
    check_name("ties", ties, TIES)
    if ties == "average":
        for histogram in _histograms(packed):
            yield histogram.sum(axis=-1), histogram[..., 1]
        return
    counts = np.append(np.ones(k, np.int64), packed.num_database - k)
    for hits, num_relevant in rankings(packed, k=k):
        yield counts[None], np.append(hits, num_relevant - hits.sum())[None]


def rankings(packed: Packed, *, k: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields, query by query, the hits among the k nearest items, ties by index.

    Yields:
        `[k]` bool, whether the item is relevant, in rank order; and the relevant items in all.
    """
    items = parallel.on_every_device((packed.database, packed.database_labels))
    size = max(1, MAX_WORKING_BYTES // (_BYTES_PER_PAIR * packed.num_database))
    for rows, num_rows in _chunks((packed.queries, packed.query_labels), size):
        chunk = np.asarray(_keys(*rows, *items, num_levels=packed.num_levels))
        for keys in chunk[:num_rows]:
            near = _nearest(keys, k)
            # NumPy's stable sort of integers this small is a radix sort.
            order = np.argsort(near >> 1, kind="stable")[:k]
            yield (near & 1).astype(bool)[order], int(np.count_nonzero(keys & 1))


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raises ValueError if the name is not among those known."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")


def _histograms(packed: Packed) -> Iterator[np.ndarray]:
    """Irrelevant and relevant items per distance. `[rows, num_levels, 2]` int64 each"""
    codes = planes.segments(planes.transpose(packed.database), packed.num_levels - 1)
    labels = planes.transpose(packed.database_labels)
    num_padding = 32 * codes.shape[0] * codes.shape[-1] - packed.num_database
    size = jax.local_device_count() * planes.rows_at_a_time(codes)
    items = parallel.on_every_device((codes, labels))
    at_a_time = max(1, MAX_WORKING_BYTES // (_BYTES_PER_LEVEL * packed.num_levels))
    for part in planes.slices(len(packed.queries), at_a_time):
        queries = packed.queries[part]
        classes, most = planes.positions(packed.query_labels[part])
        counts = [
            (planes.count(*rows, most, *items, num_levels=packed.num_levels), num_rows)
            for rows, num_rows in _chunks((queries, classes), size)
        ]
        whole = [np.asarray(counted)[:num_rows] for counted, num_rows in counts]
        histogram = np.concatenate(whole, dtype=np.int64)
        # An item of padding is a code of -1 without a label.
        distance = np.bitwise_count(queries).sum(axis=1)
        histogram[np.arange(len(queries)), distance, 0] -= num_padding
        yield histogram


def _nearest(keys: np.ndarray, k: int) -> np.ndarray:
    """The keys up to some distance, k of them at least, in the order of the items."""
    # A guess from a sample costs less than an exact radius; it decides about time only.
    sample = np.cumsum(np.bincount(keys[::_SAMPLE] >> 1))
    radius = int(np.searchsorted(sample, k / _SAMPLE))
    # Indices first: NumPy takes longer to select by a mask.
    while len(items := np.flatnonzero(keys < 2 * radius + 2)) < k:
        radius += 1
    return keys[items]


def _chunks(rows: tuple[np.ndarray, ...], size: int) -> Iterator[tuple[list[Array], int]]:
    """Rows of arrays, spread over the local devices, and how many are no padding.

    Chunks are even, and so are the shares of the devices: little is padding. A short last chunk
    is not compiled anew.
    """
    num_rows, num_devices = len(rows[0]), jax.local_device_count()
    num_chunks = -(-num_rows // size)
    size = num_devices * -(-num_rows // (num_chunks * num_devices))
    for part in planes.slices(num_rows, size):
        chunk = [array[part] for array in rows]
        missing = size - len(chunk[0])
        padded = [np.pad(array, ((0, missing), (0, 0))) for array in chunk]
        yield parallel.split_rows(padded), size - missing


@functools.partial(jax.jit, static_argnames="num_levels")
def _keys(
    queries: Array, labels: Array, database: Array, item_labels: Array, *, num_levels: int
) -> jax.Array:
    """Twice the distance, plus one where a label is shared. `[num_queries, num_items]`"""
    dtype = np.min_scalar_type(2 * num_levels - 1)
    differing = lax.population_count(queries[:, :, None] ^ database[None]).astype(dtype)
    shared = lax.reduce_or(labels[:, :, None] & item_labels[None], axes=(1,)) != 0
    return 2 * jnp.sum(differing, axis=1, dtype=dtype) + shared.astype(dtype)


def _pack_rows(rows: np.ndarray, thresholds: tuple[float, ...] = (0.0,)) -> np.ndarray:
    """Bits of whether entries exceed the thresholds. `[num_words, num_rows]` uint32"""
    num_bits = rows.shape[1] * len(thresholds)
    num_words = -(-num_bits // 32)
    packed = np.empty((num_words, len(rows)), np.uint32)
    for part in planes.slices(len(rows), _ROWS_AT_A_TIME):
        block = rows[part, :, None] > np.array(thresholds, np.float32)
        # Whole words: NumPy packs a flat array several times faster than rows.
        bits = np.zeros((len(block), 32 * num_words), bool)
        bits[:, :num_bits] = block.reshape(len(block), -1)
        packed[:, part] = (
            np.packbits(bits, bitorder="little").view(np.uint32).reshape(-1, num_words).T
        )
    return packed


def _check_values(name: str, rows: np.ndarray, known: tuple[int, ...], remedy: str) -> None:
    for part in planes.slices(len(rows), _ROWS_AT_A_TIME):
        block = rows[part]
        is_known = functools.reduce(operator.or_, (block == value for value in known))
        if not is_known.all():
            wrong = block[~is_known]
            raise ValueError(f"{name} must hold only {known}, got {wrong.flat[0]}; {remedy}")
