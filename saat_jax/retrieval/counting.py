"""Distances and relevance of query-item pairs, counted or ranked, in bounded memory.

Histograms of distances are counted on planes of bits (`planes`). A ranking needs every pair's key,
an integer: the distance of the codes and, in its lowest bits, how many labels are shared. That
takes one XOR and one population count for 32 bits of code and one AND for 32 classes; the rest is
sorting. Shared labels are told apart up to a number of grades; one grade tells whether an item is
relevant.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import hamming, labels, options, parallel
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

    @property
    def num_grades(self) -> int:
        """How many labels a query and an item may share at most, and one at least."""
        each = (self.query_labels.T, self.database_labels)
        return int(max(1, min(np.bitwise_count(words).sum(axis=0).max() for words in each)))


def pack(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> Packed:
    """Checks and packs codes and labels; arguments and errors are `average_precision`'s."""
    queries, database = np.asarray(query_codes), np.asarray(database_codes)
    classes, item_classes = np.asarray(query_labels), np.asarray(database_labels)
    hamming.check_codes("query_codes", queries)
    hamming.check_codes("database_codes", database, num_bits=queries.shape[1])
    labels.check_labels("query_labels", classes)
    labels.check_labels("database_labels", item_classes, num_classes=classes.shape[1])
    for name, codes, rows in (
        ("query", queries, classes),
        ("database", database, item_classes),
    ):
        if not rows.size or len(rows) != len(codes):
            raise ValueError(
                f"{name}_labels must have one row for each of {name}_codes, and none may be empty, "
                f"got shapes {rows.shape} and {codes.shape}"
            )
        _check_values(f"{name}_codes", codes, (-1, 0, 1), "round soft codes with binarize first")
        _check_values(f"{name}_labels", rows, (0, 1), "make the labels multi-hot")
    query_bits, item_bits = _ONE_BIT if queries.all() and database.all() else _FOUR_BITS
    return Packed(
        queries=_pack_rows(queries, query_bits).T,
        database=_pack_rows(database, item_bits),
        query_labels=_pack_rows(classes).T,
        database_labels=_pack_rows(item_classes),
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
    return counted[..., 0], counted[..., 1]


def tie_groups(
    packed: Packed, *, ties: str, k: int, num_grades: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the items of each group of ties by shared labels, nearest group first.

    With `ties="index"` what lies behind the first k items is one more group.

    Args:
        packed: codes and labels.
        ties: "average" or "index".
        k: number of items whose order is of interest, at most `num_database`.
        num_grades: up to how many shared labels are told apart.

    Yields:
        Items, `[rows, num_groups]`, and items that share one label at least, two, and so on,
        `[rows, num_groups, num_grades]`; int64 each, some queries at a time, in their order.
    """
    options.check_word("ties", ties, TIES)
    if ties == "average":
        for histogram in _histograms(packed, num_grades):
            yield histogram[..., 0], histogram[..., 1:]
        return
    counts = np.append(np.ones(k, np.int64), packed.num_database - k)
    for shared, totals in rankings(packed, k=k, num_grades=num_grades):
        near = (shared[:, None] > np.arange(num_grades)).astype(np.int64)
        yield counts[None], np.vstack([near, totals - near.sum(axis=0)])[None]


def rankings(
    packed: Packed, *, k: int, num_grades: int = 1
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yields, query by query, what the k nearest items share, ties by index.

    Yields:
        `[k]` labels that the item shares, in rank order, `num_grades` for more; and of all items
        how many share one at least, two, and so on.
    """
    items = parallel.on_every_device((packed.database, packed.database_labels))
    size = max(1, MAX_WORKING_BYTES // (_BYTES_PER_PAIR * packed.num_database))
    sizes = {"num_levels": packed.num_levels, "num_grades": num_grades}
    shift = num_grades.bit_length()
    for rows, num_rows in _chunks((packed.queries, packed.query_labels), size):
        chunk = np.asarray(_keys(*rows, *items, **sizes))
        for keys in chunk[:num_rows]:
            near = _nearest(keys, k, shift)
            # NumPy's stable sort of integers this small is a radix sort.
            order = np.argsort(near >> shift, kind="stable")[:k]
            shared = keys & (2**shift - 1)
            totals = [int(np.count_nonzero(shared > grade)) for grade in range(num_grades)]
            yield (near & (2**shift - 1))[order], totals


def _histograms(packed: Packed, num_grades: int = 1) -> Iterator[np.ndarray]:
    """Items per distance by shared labels. `[rows, num_levels, 1 + num_grades]` int64 each"""
    codes = planes.segments(planes.transpose(packed.database), packed.num_levels - 1)
    labels = planes.transpose(packed.database_labels)
    num_padding = 32 * codes.shape[0] * codes.shape[-1] - packed.num_database
    size = jax.local_device_count() * planes.rows_at_a_time(codes)
    items = parallel.on_every_device((codes, labels))
    at_a_time = max(1, MAX_WORKING_BYTES // (_BYTES_PER_LEVEL * packed.num_levels * num_grades))
    sizes = {"num_levels": packed.num_levels, "num_grades": num_grades}
    count = functools.partial(planes.count, **sizes)
    for part in planes.slices(len(packed.queries), at_a_time):
        queries = packed.queries[part]
        classes, most = planes.positions(packed.query_labels[part])
        counts = [
            (count(*rows, most, *items), num_rows)
            for rows, num_rows in _chunks((queries, classes), size)
        ]
        whole = [np.asarray(counted)[:num_rows] for counted, num_rows in counts]
        histogram = np.concatenate(whole, dtype=np.int64)
        # An item of padding is a code of -1 without a label.
        distance = np.bitwise_count(queries).sum(axis=1)
        histogram[np.arange(len(queries)), distance, 0] -= num_padding
        yield histogram


def _nearest(keys: np.ndarray, k: int, shift: int) -> np.ndarray:
    """The keys up to some distance, k of them at least, in the order of the items."""
    # A guess from a sample costs less than an exact radius; it decides about time only.
    sample = np.cumsum(np.bincount(keys[::_SAMPLE] >> shift))
    radius = int(np.searchsorted(sample, k / _SAMPLE))
    # Indices first: NumPy takes longer to select by a mask.
    while len(items := np.flatnonzero(keys < ((radius + 1) << shift))) < k:
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


@functools.partial(jax.jit, static_argnames=("num_levels", "num_grades"))
def _keys(
    queries: Array,
    classes: Array,
    database: Array,
    item_classes: Array,
    *,
    num_levels: int,
    num_grades: int = 1,
) -> jax.Array:
    """The distance above, the shared labels in the lowest bits. `[num_queries, num_items]`"""
    shift = num_grades.bit_length()
    dtype = np.min_scalar_type((num_levels << shift) - 1)
    differing = lax.population_count(queries[:, :, None] ^ database[None]).astype(dtype)
    common = classes[:, :, None] & item_classes[None]
    if num_grades == 1:
        shared = lax.reduce_or(common, axes=(1,)) != 0
    else:
        shared = jnp.minimum(jnp.sum(lax.population_count(common), axis=1), num_grades)
    return (jnp.sum(differing, axis=1, dtype=dtype) << shift) + shared.astype(dtype)


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
