"""Items counted by distance, 32 at a time, with one bit of 32 items in a word.

A plane holds the same bit of every item. Where it differs from a query's bit is a plane too, and
planes are added up, digit by digit, as a circuit of adders does: the sum is the distance of every
item, as planes of binary digits. The items at a distance are those with its digits, and
population counts tell how many they are. Nothing is sorted, and no table is filled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import parallel

Array = jax.Array
# Planes of binary digits, the lowest first.
Numbers = tuple[Array, ...]

# Words of a plane that are worked on at once; two counts of their 8,192 items fit one word.
_MAX_BLOCK = 256
# Words of a register or two, by which blocks are counted.
_LANES = 16
# Planes that are added at once: the sum has four digits, and none is wasted.
_ADDENDS = 15
# Sums that are added at once: the digits of their sum are computed each by itself, and of more
# than these that is longer than keeping sums in between.
_SUMS = 4
# Planes that are added without a loop.
_MAX_SEGMENT = 128


def slices(length: int, size: int) -> list[slice]:
    """Cuts a length into parts of a size, the last of which may be shorter."""
    return [slice(first, first + size) for first in range(0, length, size)]


def transpose(words: np.ndarray) -> np.ndarray:
    """Turns the bits of items into planes, and cuts these into blocks.

    Args:
        words: `[num_words, num_items]` uint32.

    Returns:
        `[num_blocks, 32 * num_words, block]` uint32; bits of items beyond the last are zero.
    """
    num_words, num_items = words.shape
    registers = -(-num_items // (32 * _LANES))
    num_blocks = -(-registers * _LANES // _MAX_BLOCK)
    block = _LANES * -(-registers // num_blocks)
    items = np.zeros((num_words, num_blocks * block, 32), np.uint32)
    items.reshape(num_words, -1)[:, :num_items] = words
    planes = np.ascontiguousarray(items.transpose(2, 0, 1))
    # Squares of 32 items and 32 bits: the halves that lie across the diagonal change places, then
    # those of the quarters, and so on.
    for size in (16, 8, 4, 2, 1):
        low = np.uint32((2**32 - 1) // (2**size + 1))
        first, second = planes.reshape(-1, 2, size, *planes.shape[1:]).swapaxes(0, 1)
        differ = (first >> size ^ second) & low
        second ^= differ
        first ^= differ << size
    planes = planes.reshape(32, num_words, num_blocks, block).transpose(2, 1, 0, 3)
    return planes.reshape(num_blocks, 32 * num_words, block)


def segments(planes: np.ndarray, num_bits: int) -> np.ndarray:
    """Cuts the planes of codes into parts that are added up one after another.

    Args:
        planes: `[num_blocks, num_planes, block]`, as from `transpose`.
        num_bits: how many of the planes are bits of the codes.

    Returns:
        `[num_blocks, num_segments, segment, block]`; planes beyond the last bit are zero.
    """
    num_segments = -(-num_bits // _MAX_SEGMENT)
    segment = -(-num_bits // num_segments)
    missing = max(num_segments * segment - planes.shape[1], 0)
    padded = np.pad(planes, ((0, 0), (0, missing), (0, 0)))[:, : num_segments * segment]
    return padded.reshape(len(planes), num_segments, segment, -1)


def positions(words: np.ndarray) -> tuple[np.ndarray, np.int32]:
    """Lists the bits that are set.

    Args:
        words: `[rows, num_words]` uint32.

    Returns:
        `[rows, 32 * num_words]` int32, the numbers of a row's bits and then `32 * num_words`,
        which is none; and `[]` int32, how many bits a row has at most.
    """
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    counts = np.count_nonzero(bits, axis=1)
    numbers = np.arange(bits.shape[1])
    found = np.full(bits.shape, bits.shape[1], np.int32)
    found[numbers < counts[:, None]] = np.nonzero(bits)[1]
    return found, np.int32(counts.max())


def rows_at_a_time(planes: np.ndarray) -> int:
    """Queries for which a device counts at once: on a CPU as many as its cache has room for."""
    words = 2**14 if parallel.on_cpu() else 2**20
    return words // planes.shape[-1]


@functools.partial(jax.jit, static_argnames=("num_levels", "num_grades"))
def count(
    queries: Array,
    classes: Array,
    most: Array,
    codes: Array,
    labels: Array,
    *,
    num_levels: int,
    num_grades: int = 1,
) -> Array:
    """Counts items by distance and by how many classes they share.

    Args:
        queries: `[rows, num_words]` uint32 codes.
        classes: `[rows, num_positions]` int32 classes of the queries, as from `positions`.
        most: `[]` int32, how many classes a query has at most.
        codes: `[num_blocks, num_segments, segment, block]` uint32 planes of the items' codes.
        labels: `[num_blocks, num_classes, block]` uint32 planes of the items' labels.
        num_levels: number of distances, from zero on.
        num_grades: up to how many shared classes are told apart.

    Returns:
        `[rows, num_levels, 1 + num_grades]` int32: items, items that share one class with the
        query at least, two, and so on.
    """
    rows, (num_segments, segment) = len(queries), codes.shape[1:3]
    # Two at least, as they are halved below.
    num_digits = max(2, (num_levels - 1).bit_length())
    bits = (queries[:, :, None] >> np.arange(32, dtype=np.uint32) & 1).reshape(rows, -1)
    bits = jnp.pad(bits, ((0, 0), (0, max(num_segments * segment - bits.shape[1], 0))))
    # All ones where a query's bit is set.
    masks = (-bits[:, : num_segments * segment]).reshape(rows, num_segments, segment)
    keep = functools.partial(_keep, most >= 0)

    def add_segment(total: Numbers, part: tuple[Array, Array]) -> tuple[Numbers, None]:
        planes, mask = part

        def differ(some: slice) -> Numbers:
            return _add([(planes[i] ^ mask[:, i, None],) for i in range(segment)[some]])

        sums = [keep(functools.partial(differ, some)) for some in slices(segment, _ADDENDS)]
        if len(sums) > _SUMS:
            parts = slices(len(sums), _SUMS)
            sums = [keep(functools.partial(_add, sums[some])) for some in parts]
        return keep(lambda: _add([total, *sums])[:num_digits]), None

    def add_block(counts: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        codes, labels = block
        nothing = jnp.zeros((rows, codes.shape[-1]), jnp.uint32)

        def share_class(i: Array, at_least: Array) -> Array:
            has_class = labels.at[classes[:, i]].get(mode="fill", fill_value=0)
            one_less = jnp.concatenate([~nothing[:, None], at_least[:, :-1]], axis=1)
            return at_least | (one_less & has_class[:, None])

        # Items that share one class, two, and so on, each grade a plane.
        at_least = jnp.zeros((rows, num_grades, codes.shape[-1]), jnp.uint32)
        at_least = lax.fori_loop(0, most, share_class, at_least)
        distances = (nothing,) * num_digits
        distances, _ = lax.scan(add_segment, distances, (codes, masks.swapaxes(0, 1)))
        half = num_digits // 2
        low = keep(lambda: _where(distances[:half], 2**half))
        high = keep(lambda: _where(distances[half:], (num_levels - 1 >> half) + 1))

        even = jnp.concatenate([~nothing[:, None], at_least[:, 1::2]], axis=1)
        odd = jnp.pad(at_least[:, ::2], ((0, 0), (0, 1 - num_grades % 2), (0, 0)))

        def count_lanes(lanes: slice) -> Array:
            items = high[:, :, None, None, lanes] & low[:, None, :, None, lanes]
            evens, odds = (items & planes[:, None, None, :, lanes] for planes in (even, odd))
            return lax.population_count(evens) + (lax.population_count(odds) << 16)

        counted = [count_lanes(lanes) for lanes in slices(codes.shape[-1], _LANES)]
        both = functools.reduce(jnp.add, counted).sum(axis=-1)
        both = both.reshape(rows, -1, both.shape[-1])[:, :num_levels]
        added = jnp.stack([both & 0xFFFF, both >> 16], axis=-1).reshape(rows, num_levels, -1)
        return counts + added[..., : 1 + num_grades].astype(jnp.int32), None

    nobody = jnp.zeros((rows, num_levels, 1 + num_grades), jnp.int32)
    return lax.scan(add_block, nobody, (codes, labels))[0]


def _add(numbers: Sequence[Numbers]) -> Numbers:
    """The sum of numbers."""
    columns: dict[int, list[Array]] = {}
    for number in numbers:
        for place, digit in enumerate(number):
            columns.setdefault(place, []).append(digit)
    place = 0
    while place in columns:
        column = columns[place]
        while len(column) > 1:
            a, b, *rest = column
            differ, both = a ^ b, a & b
            if not rest:
                column, carry = [differ], both
            else:
                c, *rest = rest
                column, carry = [*rest, differ ^ c], both | differ & c
            columns.setdefault(place + 1, []).append(carry)
        columns[place] = column
        place += 1
    return tuple(column[0] for column in columns.values())


def _where(digits: Numbers, num_numbers: int) -> Array:
    """Planes of where a number is 0, 1, 2 and so on. `[rows, num_numbers, words]`"""
    numbers = np.arange(num_numbers)[None, :, None]
    planes = []
    for place, digit in enumerate(digits):
        unlike = np.where(numbers >> place & 1, 0, 2**32 - 1).astype(np.uint32)
        planes.append(digit[:, None] ^ unlike)
    return functools.reduce(jnp.bitwise_and, planes)


def _keep(is_true: Array, function: Callable[[], Any]) -> Any:
    """What a function returns, computed once.

    XLA's CPU compiler fuses what is cheap into all that use it, and so computes sums anew for each
    digit of the next. It keeps what a branch puts out, if it does not know the branch.
    """
    if not parallel.on_cpu():
        return function()
    shapes = jax.eval_shape(function)
    return lax.cond(
        is_true,
        function,
        lambda: jax.tree.map(lambda kept: jnp.zeros(kept.shape, kept.dtype), shapes),
    )
