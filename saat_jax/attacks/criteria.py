"""What an attacker wants of a query's code: hard tests of codes, and soft ones that lead there.

A criterion has, for a batch of queries, the higher the better for the attacker,

    gain(outputs)           of what an encoder gives, whose signs are the code
    flip_gains(codes)       how the gain changes if one bit of a code is flipped, for each bit
    soft_gain(soft_codes)   which follows the gain, and has a gradient

`Displace` and `Reach` are about average precision: that to the own labels is to fall, that to
other labels to rise. `Evade` and `Collide` are about a match at an operating point: an image is to
match no more what is listed of it, or is to match what is listed of others.
"""

import functools
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming
from saat_jax.labels import share_label

Array = jax.Array
ArrayLike = jax.Array | np.ndarray

# Distances at which a soft ranking is cut, and how softly, in their spacing.
_NUM_CUTS = 16
_SOFTNESS = 0.5


class Criterion(Protocol):
    """What an attacker wants; see the module."""

    def gain(self, outputs: Array) -> Array:
        """How far `[batch, num_bits]` outputs, or codes, are what is wanted. `[batch]`"""

    def flip_gains(self, codes: Array) -> Array:
        """What the gain changes by if a bit is flipped. `[batch, num_bits]`"""

    def soft_gain(self, soft_codes: Array) -> Array:
        """The gain of soft codes, with a gradient. `[batch]`"""

    def num_flips(self, num_bits: int) -> int | Array:
        """How many bits of the wanted side are enough."""


@flax.struct.dataclass
class Ranking:
    """What queries are ranked against: the distinct codes of a database.

    Attributes:
        codes: `[num_codes, num_bits]` in {-1, +1}, all distinct.
        counts: `[num_codes]` how many items have the code.
        k: length of the returned list.
        normalizer: as of `retrieval.average_precision`.
    """

    codes: ArrayLike
    counts: ArrayLike
    k: int = flax.struct.field(pytree_node=False)
    normalizer: str = flax.struct.field(pytree_node=False)

    def average_precision(self, codes: Array, relevant: ArrayLike) -> Array:
        """Average precision at k of codes, ties averaged. `[batch]` float32

        As `retrieval.average_precision`, but where the list ends within a group of ties it takes
        the mean number of the group's hits for each number there may be.

        Args:
            codes: `[batch, num_bits]` in {-1, +1}.
            relevant: `[batch, num_codes]` how many of the items of a code are relevant.
        """
        distances = self._distances(codes)
        levels = jnp.arange(codes.shape[1] + 1)

        def count(distance: Array) -> tuple[Array, Array]:
            at = (distances == distance).astype(jnp.float32)
            return _matmul(at, self.counts), jnp.sum(at * relevant, axis=1)

        items, hits = jax.lax.map(count, levels)
        return self._of_histograms(items.T, hits.T)

    def average_precision_flipped(self, codes: Array, relevant: ArrayLike) -> Array:
        """Average precision if one bit of a code is flipped, for each bit. `[batch, num_bits]`"""
        levels = jnp.arange(codes.shape[1] + 1)[:, None]

        def count(row: tuple[Array, Array, Array]) -> Array:
            """Items and relevant items by distance, with each bit flipped. `[2, bits, levels]`"""
            code, distances, hits = row
            weights = jnp.stack([self.counts, hits])
            at = (distances == levels).astype(jnp.float32)
            everything = _matmul(at, weights.T).T[:, None]
            signed = _matmul(at, jnp.concatenate([w[:, None] * self.codes for w in weights], 1))
            signed = code[:, None] * signed.T.reshape(2, len(code), -1)
            # What agrees in the bit goes one farther, all else comes one nearer.
            none = ((0, 0), (0, 0))
            farther = jnp.pad((everything + signed)[..., :-1] / 2, (*none, (1, 0)))
            nearer = jnp.pad((everything - signed)[..., 1:] / 2, (*none, (0, 1)))
            return farther + nearer

        histograms = jax.lax.map(count, (codes, self._distances(codes), relevant))
        return self._of_histograms(histograms[:, 0], histograms[:, 1])

    def soft_average_precision(self, soft_codes: Array, relevant: ArrayLike) -> Array:
        """Average precision of soft codes, with a gradient. `[batch]`

        The precision among the items within a distance, summed over distances by what each adds
        to recall; an item falls on either side of a distance softly. The distances are spaced
        evenly from the nearest to the farthest code, so that the scale of the soft codes does not
        matter.
        """
        num_bits = self.codes.shape[1]
        distances = (num_bits - _matmul(soft_codes, self.codes.T)) / 2
        fixed = jax.lax.stop_gradient(distances)
        low = jnp.min(fixed, axis=1, keepdims=True)
        spacing = (jnp.max(fixed, axis=1, keepdims=True) - low) / (_NUM_CUTS - 1)
        place = (distances - low) / jnp.maximum(spacing, 1e-12)

        def within(cut: Array) -> tuple[Array, Array]:
            inside = jax.nn.sigmoid((cut - place) / _SOFTNESS)
            return _matmul(inside, self.counts), jnp.sum(inside * relevant, axis=1)

        items, hits = jax.vmap(within, out_axes=1)(jnp.arange(_NUM_CUTS) + 0.5)
        added = jnp.diff(hits, axis=1, prepend=0)
        # Half of what a cut adds is ahead of the other half.
        middle = items - jnp.diff(items, axis=1, prepend=0) / 2
        precision = (hits - added / 2) / jnp.maximum(middle, 1e-9)
        listed = jnp.where(middle <= self.k, added, 0)
        best = self._best(jnp.sum(listed, axis=1), jnp.sum(relevant, axis=1))
        return jnp.sum(listed * precision, axis=1) / jnp.maximum(best, 1e-9)

    def _of_histograms(self, items: Array, relevant: Array) -> Array:
        """Average precision from what is at each distance. `[...]` of `[..., num_bits + 1]`"""
        ends = jnp.cumsum(items, axis=-1)
        starts = jnp.minimum(ends - items, self.k)
        places = jnp.minimum(ends, self.k) - starts
        share = relevant / jnp.maximum(items, 1)
        hits = share * places
        before = jnp.cumsum(hits, axis=-1) - hits
        harmonic = jnp.asarray(_harmonic(self.k))
        inverse_ranks = harmonic[(starts + places).astype(int)] - harmonic[starts.astype(int)]
        # A group's own hits ahead of one of its hits, by place.
        growth = (relevant - 1) / jnp.maximum(items - 1, 1)
        ahead = growth * (places - (starts + 1) * inverse_ranks)
        gain = jnp.sum(share * ((before + 1) * inverse_ranks + ahead), axis=-1)
        best = self._best(jnp.sum(hits, axis=-1), jnp.sum(relevant, axis=-1))
        return gain / jnp.maximum(best, 1e-9)

    def _best(self, hits: Array, relevant: Array) -> Array:
        return hits if self.normalizer == "hits" else jnp.minimum(self.k, relevant)

    def _distances(self, codes: Array) -> Array:
        """Hamming distances, whole numbers. `[batch, num_codes]`"""
        return jnp.round((codes.shape[1] - _matmul(codes, self.codes.T)) / 2)


def rank(
    labels: ArrayLike,
    database_codes: ArrayLike,
    database_labels: ArrayLike,
    *,
    k: int | None,
    normalizer: str = "hits",
    max_codes: int | None = None,
) -> tuple[Ranking, np.ndarray]:
    """Counts a database by its distinct codes, on the host.

    Args:
        labels: `[num_queries, num_classes]` multi-hot: with these an item must share one.
        database_codes: `[num_database, num_bits]` in {-1, +1}.
        database_labels: `[num_database, num_classes]` multi-hot.
        k: length of the returned list; None for the whole database.
        normalizer: as of `retrieval.average_precision`.
        max_codes: of more distinct codes, so many, evenly spaced, stand for all.

    Returns:
        The ranking, and `[num_queries, num_codes]` float32 how many items of a code are relevant.
    """
    codes, group, counts = np.unique(
        np.asarray(database_codes) > 0, axis=0, return_inverse=True, return_counts=True
    )
    group, size = group.reshape(-1), len(group)
    kept = np.arange(len(codes))
    if max_codes is not None and len(codes) > max_codes:
        kept = np.linspace(0, len(codes) - 1, max_codes).astype(int)
    relevant = np.zeros((len(labels), len(kept)), np.float32)
    for query, row in enumerate(np.asarray(labels)):
        shares = np.asarray(share_label(row[None], database_labels))[0]
        relevant[query] = np.bincount(group, shares, len(codes))[kept]
    # Of a part of the database, as large a part of the list.
    part = int(counts[kept].sum())
    length = part if k is None else max(1, min(part, k * part // size))
    signs = np.where(codes[kept], 1, -1).astype(np.float32)
    return Ranking(signs, counts[kept].astype(np.float32), length, normalizer), relevant


@flax.struct.dataclass
class AveragePrecision:
    """The average precision of each query is to rise, or to fall; see `Displace` and `Reach`.

    Attributes:
        ranking: what queries are ranked against.
        relevant: `[batch, num_codes]` how many items of a code count as hits of each query.
        sign: +1 if it is to rise, -1 if it is to fall.
    """

    ranking: Ranking
    relevant: ArrayLike
    sign: Any

    def gain(self, outputs: Array) -> Array:
        """Average precision of the codes, with the sign. `[batch]`"""
        codes = hamming.binarize(outputs)
        return self.sign * self.ranking.average_precision(codes, self.relevant)

    def flip_gains(self, codes: Array) -> Array:
        """What the gain changes by if a bit is flipped. `[batch, num_bits]`"""
        flipped = self.ranking.average_precision_flipped(codes, self.relevant)
        return self.sign * flipped - self.gain(codes)[:, None]

    def soft_gain(self, soft_codes: Array) -> Array:
        """Soft average precision, with the sign. `[batch]`"""
        return self.sign * self.ranking.soft_average_precision(soft_codes, self.relevant)

    def num_flips(self, num_bits: int) -> int:
        """All of them."""
        return num_bits


def Displace(ranking: Ranking, relevant: ArrayLike) -> AveragePrecision:
    """The average precision of each query is to fall.

    Args:
        ranking: what queries are ranked against; `rank` counts it.
        relevant: `[batch, num_codes]` how many items of a code share a label with each query.

    Example:
        >>> database = np.array([[1, 1], [-1, -1]])
        >>> wanted = Displace(*rank(np.array([[1, 0]]), database, np.eye(2), k=None))
        >>> wanted.gain(jnp.array([[-1.0, -1.0]])).tolist()
        [-0.5]
    """
    return AveragePrecision(ranking, relevant, np.float32(-1))


def Reach(ranking: Ranking, relevant: ArrayLike) -> AveragePrecision:
    """The average precision of each query to labels of the attacker's choice is to rise.

    Args:
        ranking: what queries are ranked against.
        relevant: `[batch, num_codes]` how many items of a code have one of these labels.
    """
    return AveragePrecision(ranking, relevant, np.float32(1))


class Point(Protocol):
    """What makes two encoder outputs a match; `retrieval.OperatingPoint` is one."""

    def margins(self, outputs: Array, listed: Array, database: Array | None) -> Array:
        """Above zero for a match. `[batch, num_listed]`"""

    def similarity(self, outputs: Array, listed: Array) -> Array:
        """What a match goes by, with a gradient, from -1 to 1. `[batch, num_listed]`"""

    def num_agreeing(self, num_bits: int) -> int | Array:
        """How many bits must agree for a match."""


@flax.struct.dataclass
class Match:
    """Each image is to match what is listed for it, or to match it no more; see `Evade`.

    Attributes:
        point: what counts as a match.
        listed: `[batch, num_listed, num_bits]` outputs of the encoder.
        database: `[num_database, num_bits]` outputs of what else is searched; None if the point
            does not need them.
        sign: +1 if any match will do, -1 if none may be left.
    """

    point: Any
    listed: ArrayLike
    database: ArrayLike | None
    sign: Any

    def gain(self, outputs: Array) -> Array:
        """Above zero if the attacker has what is wanted; in the point's units. `[batch]`"""
        margins = self.point.margins(outputs, self.listed, self.database)
        return self.sign * jnp.max(margins, axis=1)

    def flip_gains(self, codes: Array) -> Array:
        """One distance more or less to what is nearest. `[batch, num_bits]`"""
        return -self.sign * codes * jnp.where(self.nearest(codes) >= 0, 1, -1)

    def soft_gain(self, soft_codes: Array) -> Array:
        """Similarity to what is nearest, with the sign. `[batch]`"""
        return self.sign * jnp.max(self.point.similarity(soft_codes, self.listed), axis=1)

    def num_flips(self, num_bits: int) -> int | Array:
        """To match, as many must agree; to evade, one too many must not."""
        agreeing = self.point.num_agreeing(num_bits)
        return jnp.where(self.sign > 0, agreeing, num_bits + 1 - agreeing)

    def nearest(self, outputs: Array) -> Array:
        """Of what is listed the nearest. `[batch, num_bits]`"""
        row = jnp.argmax(self.point.similarity(outputs, self.listed), axis=1)
        return jnp.take_along_axis(jnp.asarray(self.listed), row[:, None, None], axis=1)[:, 0]


def Evade(point: Point, listed: ArrayLike, database: ArrayLike | None = None) -> Match:
    """Each image is to match nothing that is listed of it: its original, near-duplicates.

    Args:
        point: what counts as a match, a `retrieval.OperatingPoint`.
        listed: `[batch, num_listed, num_bits]` outputs of the encoder.
        database: `[num_database, num_bits]`, for a point that ranks.
    """
    return Match(point, listed, database, np.float32(-1))


def Collide(point: Point, listed: ArrayLike, database: ArrayLike | None = None) -> Match:
    """Each image is to match some of what is listed: the chosen victim, or any.

    Args:
        point: what counts as a match, a `retrieval.OperatingPoint`.
        listed: `[batch, num_listed, num_bits]` outputs of the encoder.
        database: `[num_database, num_bits]`, for a point that ranks.
    """
    return Match(point, listed, database, np.float32(1))


def best_codes(criterion: Criterion, codes: ArrayLike, *, num_flips: int = 20) -> Array:
    """Climbs from codes to ones that no flip of a single bit makes better. `[batch, num_bits]`

    Args:
        criterion: what is wanted.
        codes: `[batch, num_bits]` in {-1, +1}, where to begin.
        num_flips: at most so many bits are flipped, the most gainful first.
    """

    def flip(_: Array, codes: Array) -> Array:
        gains = criterion.flip_gains(codes)
        # Less is rounding.
        chosen = (gains > 1e-6) & (gains == jnp.max(gains, axis=1, keepdims=True))
        first = chosen & (jnp.cumsum(chosen, axis=1) == 1)
        return jnp.where(first, -codes, codes)

    hamming.check_codes("codes", codes)
    return jax.lax.fori_loop(0, num_flips, flip, jnp.asarray(codes, jnp.float32))


def _matmul(a: ArrayLike, b: ArrayLike) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def _harmonic(k: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))]).astype(np.float32)
