"""Hubs: codes that lie near far more queries than others, as an attacker's inserts would.

`hub_codes` looks for some, as an attacker would for something to aim at. A scan counts for each
code of a database how many of a sample of codes lie within a radius. A hub has many, and of many
kinds: near-duplicates of one picture are near each other alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming, options

Array = jax.Array

# Codes that are compared with the sample at a time; the kinds that the sample is divided into, and
# the rounds of dividing it.
_AT_A_TIME, _NUM_KINDS, _ROUNDS = 4096, 32, 10
# A hub begins at the best of the starts; how softly a limit is meant on the way, in shares of the
# bits; rounds of each; and how many bits are flipped in the end at most.
_NUM_STARTS, _SOFTNESS, _CLIMB_ROUNDS, _NUM_FLIPS = 8, (1 / 8, 1 / 16, 1 / 32), 10, 20
# From the median absolute deviation to a standard deviation.
_MAD = 1.4826


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a scan has found of each code.

    Attributes:
        neighbours: `[num_codes]` how many codes of the sample lie within the radius, itself not.
        score: `[num_codes]` how far that is above the median, in robust deviations.
        spread: `[num_codes]` of how many kinds these are: the exponential of the entropy over
            clusters of the sample; 0 without neighbours.
        suspects: `[num_suspects]` rows of hubs, the worst first.
        num_sampled: codes in the sample.
        radius: bits that may differ.
    """

    neighbours: np.ndarray
    score: np.ndarray
    spread: np.ndarray
    suspects: np.ndarray
    num_sampled: int
    radius: int


def scan(
    packed_codes: np.ndarray,
    *,
    num_bits: int,
    radius: int,
    queries: np.ndarray | None = None,
    num_sampled: int = 5000,
    alert_rate: float = 0.001,
    min_score: float = 6.0,
    min_spread: float = 2.0,
    seed: int = 0,
) -> Scan:
    """Looks for hubs in a database of codes.

    The share of suspects is the alert rate at most. Memory: 4,096 rows of the sample's size in
    float32, the packed codes, and three numbers for each.

    Args:
        packed_codes: `[num_codes, num_bytes]` uint8, lowest bit first, as `retrieval.pack`.
        num_bits: code length.
        radius: bits in which a query and what it finds may differ.
        queries: `[num_queries, num_bytes]` codes of past queries, to be counted near; None for a
            sample of the database itself.
        num_sampled: so many queries, or codes of the database, are drawn at most.
        alert_rate: share of the codes that may be suspects.
        min_score, min_spread: what a suspect has at least.
        seed: of the draw.

    Raises:
        ValueError: if codes are no such array, or a number is none.

    Example:
        >>> codes = np.random.default_rng(0).integers(0, 256, (500, 4), np.uint8)
        >>> scan(codes, num_bits=32, radius=4).suspects.tolist()
        []
    """
    numbers = {"num_sampled": num_sampled, "alert_rate": alert_rate, "seed": seed}
    options.check_numbers(num_bits=num_bits, radius=radius, **numbers)
    codes = _checked(packed_codes, num_bits)
    source = codes if queries is None else _checked(queries, num_bits)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(source))[:num_sampled])
    sample = _unpacked(source[drawn], num_bits)
    kinds = jax.nn.one_hot(cluster(sample, _NUM_KINDS), _NUM_KINDS)
    neighbours, spread = np.zeros(len(codes), np.int64), np.zeros(len(codes))
    own = np.zeros((len(codes), 1), np.int64)
    if queries is None:
        own[drawn] = 1
    for first in range(0, len(codes), _AT_A_TIME):
        part = codes[first : first + _AT_A_TIME]
        padded = np.pad(part, ((0, _AT_A_TIME - len(part)), (0, 0)))
        counts = np.asarray(_count(padded, sample, kinds, num_bits, radius))[: len(part)]
        neighbours[first : first + len(part)] = counts.sum(axis=1)
        spread[first : first + len(part)] = _spread(counts)
    neighbours -= own[:, 0]
    middle = np.median(neighbours)
    # Where most codes have none, chance alone moves the counts by the root of their number.
    width = max(_MAD * np.median(np.abs(neighbours - middle)), np.sqrt(max(middle, 1)))
    score = (neighbours - middle) / width
    suspected = np.flatnonzero((score >= min_score) & (spread >= min_spread))
    worst = suspected[np.argsort(-score[suspected], kind="stable")]
    most = int(alert_rate * len(codes))
    return Scan(neighbours, score, spread, worst[:most], len(sample), radius)


def cluster(codes: np.ndarray, num_kinds: int) -> np.ndarray:
    """Divides codes by the nearest of some majority codes. `[num_codes]` int

    The first ones are far from each other, each the farthest from those before it; then codes go to
    the nearest, and each is made the majority of its own, a few times.

    Args:
        codes: `[num_codes, num_bits]` in {-1, +1}.
        num_kinds: at most so many.
    """
    centers = [codes[0]]
    nearest = codes @ codes[0]
    for _ in range(min(num_kinds, len(codes)) - 1):
        centers.append(codes[np.argmin(nearest)])
        nearest = np.maximum(nearest, codes @ centers[-1])
    found = np.stack(centers)
    for _ in range(_ROUNDS):
        kind = np.argmax(codes @ found.T, axis=1)
        sums = np.zeros_like(found)
        np.add.at(sums, kind, codes)
        found = np.where(sums == 0, found, np.sign(sums))
    return np.argmax(codes @ found.T, axis=1)


def hub_codes(codes: np.ndarray, limits: np.ndarray, *, num_hubs: int) -> np.ndarray:
    """Looks for codes that lie near as many others as possible. `[num_hubs, num_bits]`

    One after the other, each for what those before it do not reach; when all is reached, for all
    again. Each begins at the best of the codes and of the majorities of clusters, goes to the
    majority of what it reaches or almost reaches, and then flips single bits while that helps. No
    more is claimed than that: there may be better ones. Memory: the distances of all pairs.

    Args:
        codes: `[num_codes, num_bits]` in {-1, +1}.
        limits: `[num_codes]` within how many bits of each a hub has to be.
        num_hubs: how many to look for.

    Raises:
        ValueError: if an array is of another shape, or there is no code.

    Example:
        >>> codes = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
        >>> hub_codes(codes, np.ones(4), num_hubs=1).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    options.check_numbers(num_hubs=num_hubs)
    hamming.check_codes("codes", codes)
    codes, limits = np.asarray(codes, np.float32), np.asarray(limits, np.float32)
    options.check_shapes(codes=(codes, "num_codes num_bits"), limits=(limits, "num_codes"))
    kinds = cluster(codes, _NUM_KINDS)
    majorities = [np.sum(codes[kinds == kind], axis=0) for kind in np.unique(kinds)]
    starts = np.concatenate([codes, _signs(np.stack([*majorities, np.sum(codes, axis=0)]))])
    apart = _apart(starts, codes)
    found, left = [], np.ones(len(codes), bool)
    for _ in range(num_hubs):
        worth = _worth(apart[:, left], limits[left], codes.shape[1])
        best = np.argsort(-worth, kind="stable")[:_NUM_STARTS]
        hub = _flipped(_climbed(starts[best], codes[left], limits[left]), codes[left], limits[left])
        found.append(hub)
        left &= _apart(hub[None], codes)[0] > limits
        if not left.any():
            left[:] = True
    return np.stack(found)


def _climbed(starts: np.ndarray, codes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The best code on the way from starts to the majorities of what they reach. `[num_bits]`"""
    tried = [starts]
    for softness in _SOFTNESS:
        hubs = starts
        for _ in range(_CLIMB_ROUNDS):
            hubs = _signs(_soft(_apart(hubs, codes), limits, softness * codes.shape[1]) @ codes)
            tried.append(hubs)
    everything = np.unique(np.concatenate(tried), axis=0)
    return everything[np.argmax(_worth(_apart(everything, codes), limits, codes.shape[1]))]


def _flipped(hub: np.ndarray, codes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """A code after the flips of single bits that make it reach more. `[num_bits]`"""
    for _ in range(_NUM_FLIPS):
        # Whoever agrees in the bit comes one farther, all others one nearer.
        apart = _apart(hub[None], codes) + (codes * hub).T
        worth = _worth(apart, limits, codes.shape[1])
        bit = np.argmax(worth)
        if worth[bit] <= _worth(_apart(hub[None], codes), limits, codes.shape[1])[0] + 1e-6:
            break
        hub = np.where(np.arange(len(hub)) == bit, -hub, hub)
    return hub


def _worth(apart: np.ndarray, limits: np.ndarray, num_bits: int) -> np.ndarray:
    """How many codes lie within their limits, and, below one, how nearly others do. `[num]`"""
    near = _soft(apart, limits, _SOFTNESS[-1] * num_bits)
    return np.sum(apart <= limits, axis=1) + np.mean(near, axis=1)


def _soft(apart: np.ndarray, limits: np.ndarray, softness: float) -> np.ndarray:
    """How far distances are within their limits, from 0 to 1. `[num, num_codes]`"""
    return 0.5 + 0.5 * np.tanh((limits + 0.5 - apart) / (2 * softness))


def _signs(sums: np.ndarray) -> np.ndarray:
    return np.where(sums >= 0, 1, -1).astype(np.float32)


def _apart(hubs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Hamming distances, whole numbers. `[num, num_codes]`"""
    return np.round((codes.shape[1] - hubs @ codes.T) / 2)


def _checked(packed: np.ndarray, num_bits: int) -> np.ndarray:
    packed = np.asarray(packed)
    width = -(-num_bits // 8)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != width or not len(packed):
        raise ValueError(
            f"packed codes of {num_bits} bits must be uint8 [num_codes, {width}], got "
            f"{packed.dtype} {list(packed.shape)}"
        )
    return packed


def _unpacked(packed: np.ndarray, num_bits: int) -> np.ndarray:
    return np.asarray(hamming.unpack_codes(packed, num_bits=num_bits), np.float32)


@functools.partial(jax.jit, static_argnums=3)
def _count(packed: Array, sample: Array, kinds: Array, num_bits: int, radius: Array) -> Array:
    """How many of each kind lie within the radius of each code. `[rows, num_kinds]`"""
    codes = hamming.unpack_codes(packed, num_bits=num_bits)
    agreement = jnp.matmul(codes, sample.T, precision=jax.lax.Precision.HIGHEST)
    within = (num_bits - agreement <= 2 * radius + 0.5).astype(jnp.float32)
    return jnp.matmul(within, kinds, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


def _spread(counts: np.ndarray) -> np.ndarray:
    """The exponential of the entropy of counts; 0 of none. `[rows]`"""
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0)
    return np.where(total[:, 0] > 0, np.exp(-terms.sum(axis=1)), 0.0)
