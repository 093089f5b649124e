"""Operating points: when a matcher says that two images match, and how often it errs.

Outputs of an encoder are `[rows, num_bits]` numbers whose signs are the code. A point looks at the
codes' Hamming distance, at the outputs' cosine, or at the ranks of a returned list.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from saat_jax import hamming, options

Array = jax.Array
ArrayLike = jax.Array | np.ndarray

# By the name of a point's kind, what its value may be.
KINDS: options.Choices[options.Range] = options.Choices(
    "kind of operating point",
    {
        "radius": options.Range(0, 2**16, whole=True),
        "cosine": options.Range(-1, 1),
        "top_k": options.Range(1, 10**9, whole=True),
    },
)
# Pairs whose similarities are in work at a time: rows against all.
_AT_A_TIME = 1024


@flax.struct.dataclass
class OperatingPoint:
    """When two images match.

    Made by `OperatingPoint.create`; "radius": their codes differ in at most `value` bits;
    "cosine": that of their outputs is at least `value`; "top_k": the one is among the `value` of
    a database whose codes are nearest to the other's.

    Attributes:
        kind: one of `KINDS`.
        value: the threshold.

    Example:
        >>> point = OperatingPoint.create(radius=1)
        >>> codes = jnp.array([[[1.0, 1, 1, -1], [1, 1, -1, -1]]])
        >>> (point.margins(jnp.ones((1, 4)), codes, None) > 0).tolist()
        [[True, False]]
    """

    kind: str = flax.struct.field(pytree_node=False)
    value: Any

    @classmethod
    def create(cls, **given: float) -> "OperatingPoint":
        """A point of one kind, such as `create(radius=31)`, `create(cosine=0.9)`.

        Raises:
            ValueError: if there is not exactly one, or its value is none that the kind can have.
        """
        if len(given) != 1:
            raise ValueError(
                f"an operating point must have one of {[*KINDS]}, such as radius=31, got {given}"
            )
        ((kind, value),) = given.items()
        if KINDS[kind].whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        if problem := KINDS[kind].problem(value):
            raise ValueError(f"{kind} {problem}")
        return cls(kind, value)

    def asdict(self) -> dict[str, float]:
        """As `create` takes it."""
        return {self.kind: np.asarray(self.value).item()}

    def similarity(self, outputs: Array, listed: Array) -> Array:
        """What a match goes by, from -1 to 1: cosine, or mean agreement with the listed codes.

        Args:
            outputs: `[batch, num_bits]`; soft codes have a gradient.
            listed: `[batch, num_listed, num_bits]`, or without "batch" the same for all.
        """
        if self.kind == "cosine":
            outputs, listed = _unit(outputs), _unit(listed)
        else:
            listed = hamming.binarize(listed) / outputs.shape[-1]
        axes = "bk,lk->bl" if listed.ndim == 2 else "bk,blk->bl"
        return jnp.einsum(axes, outputs, listed, precision=jax.lax.Precision.HIGHEST)

    def apart(self, outputs: ArrayLike, listed: ArrayLike) -> np.ndarray:
        """Hamming distances, or what cosines lack of one. `[batch, num_listed]`

        Args:
            outputs: `[batch, num_bits]`.
            listed: as of `similarity`.
        """
        return np.asarray(self._apart(jnp.asarray(outputs), jnp.asarray(listed)))

    def _apart(self, outputs: Array, listed: Array) -> Array:
        if self.kind == "cosine":
            return 1 - self.similarity(outputs, listed)
        agreement = self.similarity(hamming.binarize(outputs), listed)
        return _distances(agreement, outputs.shape[-1])

    def margins(self, outputs: Array, listed: Array, database: ArrayLike | None) -> Array:
        """How far inside the threshold, above zero for a match. `[batch, num_listed]`

        In bits, cosine or ranks. Of equally near ones a list has first what is not wanted.

        Args:
            outputs: `[batch, num_bits]`.
            listed: as of `similarity`.
            database: `[num_database, num_bits]` outputs of all that is searched, for "top_k".
        """
        if self.kind == "cosine":
            # float32 has about seven digits.
            return self.similarity(outputs, listed) - self.value + 1e-6
        distances = self._apart(outputs, listed)
        if self.kind == "radius":
            return self.value + 0.5 - distances
        if database is None:
            raise ValueError("a point of kind 'top_k' needs the database that is ranked, got None")
        others = self._apart(outputs, jnp.asarray(database))
        rank = jnp.sum(others[:, None] <= distances[..., None], axis=-1)
        return self.value + 0.5 - rank

    def within(self, apart: np.ndarray) -> np.ndarray:
        """Which distances, as of `apart`, are a match; of a point with a threshold."""
        if self.kind == "cosine":
            return apart <= 1 - self.value + 1e-6
        return apart <= self.value

    def num_agreeing(self, num_bits: int) -> Any:
        """How many bits must agree for a match; half of them where no distance says so."""
        return num_bits - self.value if self.kind == "radius" else num_bits // 2


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of trials, with its 95 % interval (Clopper and Pearson).

    Attributes:
        count: how many of the trials.
        trials: their number.

    Example:
        >>> rate = Rate(2, 100)
        >>> rate.value, [round(end, 4) for end in rate.interval]
        (0.02, [0.0024, 0.0704])
    """

    count: int
    trials: int

    @property
    def value(self) -> float:
        """The share; NaN of no trials."""
        return self.count / self.trials if self.trials else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """`(low, high)`."""
        if not self.trials:
            return 0.0, 1.0
        low, high = stats.binomtest(self.count, self.trials).proportion_ci(method="exact")
        return float(low), float(high)

    @property
    def least(self) -> float:
        """No rate below it can be told from none by so many trials: 3 in all of them."""
        return min(1.0, 3 / max(self.trials, 1))

    def asdict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "count": self.count,
            "trials": self.trials,
            "rate": self.value,
            "interval": list(self.interval),
        }


def distances_of_pairs(outputs: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
    """How many pairs of different images have each Hamming distance. `[num_bits + 1]` int64

    Args:
        outputs: `[rows, num_bits]`, one for each image.
        groups: `[rows]` numbers: images that share one are not different; None if all are.
    """
    groups = np.arange(len(outputs)) if groups is None else np.asarray(groups)
    codes = np.asarray(hamming.binarize(jnp.asarray(outputs)))
    counts = np.zeros(codes.shape[1] + 1, np.int64)
    for row in range(0, len(codes), _AT_A_TIME):
        found = np.asarray(hamming.hamming_distance(codes[row : row + _AT_A_TIME], codes[row:]))
        pairs = np.triu(groups[row : row + _AT_A_TIME, None] != groups[row:], k=1)
        counts += np.bincount(found[pairs].astype(int), minlength=len(counts))
    return counts


def false_match_rate(
    point: OperatingPoint, outputs: ArrayLike, groups: ArrayLike | None = None
) -> Rate:
    """How often different images match at a point.

    Pairs that share an image are counted as if they did not; the interval of many pairs of few
    images is too narrow.

    Args:
        point: of kind "radius" or "cosine".
        outputs: `[rows, num_bits]`, one for each image.
        groups: as of `distances_of_pairs`.

    Raises:
        ValueError: if a list of a fixed length always returns something.
    """
    _check_pairs(point.kind)
    if point.kind == "radius":
        counts = distances_of_pairs(outputs, groups)
        return Rate(int(counts[: int(point.value) + 1].sum()), int(counts.sum()))
    cosines = _cosines_of_pairs(outputs, groups)
    return Rate(int(np.sum(cosines >= point.value)), len(cosines))


def choose_point(
    outputs: ArrayLike, *, rate: float, kind: str = "radius", groups: ArrayLike | None = None
) -> OperatingPoint:
    """The loosest point at which no more than a share of the pairs of different images match.

    Args:
        outputs: `[rows, num_bits]`, one for each image.
        rate: the wanted false-match rate, such as 0.001.
        kind: "radius" or "cosine".
        groups: as of `distances_of_pairs`.

    Raises:
        ValueError: if there are too few images for the rate, or even radius 0 has more.

    Example:
        >>> codes = np.where(np.random.default_rng(0).random((200, 32)) < 0.5, -1.0, 1.0)
        >>> choose_point(codes, rate=0.01).asdict()
        {'radius': 8}
    """
    _check_pairs(kind)
    distances = (distances_of_pairs if kind == "radius" else _cosines_of_pairs)(outputs, groups)
    pairs = int(distances.sum()) if kind == "radius" else len(distances)
    least = Rate(0, pairs).least
    if not least <= rate < 1:
        raise ValueError(
            f"rate must be from {least:.2g} to 1, got {rate:g}: {len(outputs)} images make "
            f"{pairs} pairs, which show no rate below 3 in {pairs}; give more images"
        )
    if kind == "radius":
        below = np.cumsum(distances) <= rate * pairs
        if not below[0]:
            raise ValueError(
                f"more than {rate:g} of the pairs have the same code, so that no radius has so low "
                "a false-match rate; are there copies among the images?"
            )
        return OperatingPoint.create(radius=int(np.sum(np.cumprod(below))) - 1)
    cosines = np.sort(distances)[::-1]
    # Just above the nearest pair that is one too many.
    return OperatingPoint.create(cosine=float(np.nextafter(cosines[int(rate * pairs)], 2)))


def _cosines_of_pairs(outputs: ArrayLike, groups: ArrayLike | None) -> np.ndarray:
    """Of every pair of different images."""
    groups = np.arange(len(outputs)) if groups is None else np.asarray(groups)
    unit = np.asarray(_unit(jnp.asarray(outputs, jnp.float32)))
    found = [(unit[row:] @ unit[row])[groups[row:] != groups[row]] for row in range(len(unit))]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _check_pairs(kind: str) -> None:
    if kind == "top_k":
        raise ValueError("a point of kind 'top_k' has no false-match rate: a list always returns")
    KINDS[kind]


def _unit(vectors: ArrayLike) -> Array:
    squares = jnp.sum(jnp.square(jnp.asarray(vectors)), axis=-1, keepdims=True)
    return jnp.asarray(vectors) / jnp.sqrt(jnp.maximum(squares, 1e-24))


def _distances(agreement: Array, num_bits: int) -> Array:
    """Hamming distances from mean agreement, whole numbers."""
    return jnp.round((1 - agreement) * num_bits / 2)


def point_of(
    given: "OperatingPoint | Mapping[str, Any]",
    outputs: ArrayLike,
    groups: ArrayLike | None = None,
) -> OperatingPoint:
    """A point as it is, or made of a mapping: by `create`, or chosen by a false-match rate.

    Args:
        given: a point, or such as `{"radius": 31}` or `{"false_match_rate": 0.001}`, the latter
            with "kind" if it is not to be a radius.
        outputs: `[rows, num_bits]` of images, by which it is chosen.
        groups: as of `distances_of_pairs`.
    """
    if isinstance(given, OperatingPoint):
        return given
    if "false_match_rate" not in given:
        return OperatingPoint.create(**given)
    known = {"false_match_rate": ..., "kind": "radius"}
    options.check_given("the operating point", known, given)
    kind = given.get("kind", "radius")
    return choose_point(outputs, rate=given["false_match_rate"], kind=kind, groups=groups)
