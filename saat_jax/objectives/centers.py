"""Objectives on classes: soft codes against a fixed code for every class.

Labels may be multi-hot or one-hot. Of a one-hot label every formula here is the one that the
released code keeps for data sets with a single label.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import hamming, options, parallel
from saat_jax.objectives.state import (
    BATCH_NORM_EPSILON,
    ArrayLike,
    Context,
    Objective,
    State,
    init_bank,
)

Array = jax.Array


def hadamard(order: int) -> np.ndarray:
    """Sylvester's Hadamard matrix: rows that differ in half of their bits. `[order, order]` ±1

    Raises:
        ValueError: if `order` is not a power of two, or above 2^16.

    Example:
        >>> hadamard(2).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    return _hadamard_rows(order, order)


def _hadamard_rows(order: int, count: int) -> np.ndarray:
    """The first rows of the matrix. `[count, order]`"""
    options.check_numbers(order=order)
    if order & (order - 1):
        raise ValueError(f"a Hadamard matrix needs an order that is a power of two, got {order}")
    odd = np.bitwise_count(np.arange(count)[:, None] & np.arange(order)) % 2
    return np.where(odd, -1, 1).astype(np.float32)


def _balanced_code(num_bits: int) -> np.ndarray:
    """The code of which half the bits, rounded down, are -1, those first. `[num_bits]`"""
    return np.where(np.arange(num_bits) < num_bits // 2, -1.0, 1.0).astype(np.float32)


def _balanced_codes(rng: Array, count: int, num_bits: int) -> Array:
    """Random codes of which half the bits, rounded down, are -1. `[count, num_bits]`"""
    codes = jnp.tile(_balanced_code(num_bits), (count, 1))
    return jax.random.permutation(rng, codes, axis=1, independent=True)


def _distinct(
    rng: Array, codes: ArrayLike, num_codes: int, draw: Callable[[np.random.Generator], np.ndarray]
) -> Array:
    """Draws codes that stand in an earlier row too anew, on the host, until all differ.

    Args:
        rng: key of the redraws.
        codes: `[num_classes, num_bits]` of ±1.
        num_codes: how many codes there are to choose from.
        draw: one of them.

    Raises:
        ValueError: if these are fewer than classes.
    """
    codes = np.array(codes)
    num_classes, num_bits = codes.shape
    if num_classes > num_codes:
        raise ValueError(
            f"{num_bits} bits have {num_codes} codes of the kind that the {num_classes} classes "
            "need, each its own; set num_bits higher"
        )
    _, first = np.unique(np.packbits(codes > 0, axis=1), axis=0, return_index=True)
    taken = {codes[row].tobytes() for row in first}
    generator = np.random.default_rng(np.asarray(jax.random.bits(rng, (4,))))
    for row in np.setdiff1d(np.arange(num_classes), first):
        while codes[row].tobytes() in taken:
            codes[row] = draw(generator)
        taken.add(codes[row].tobytes())
    return jnp.asarray(codes)


def _distinct_balanced(rng: Array, codes: ArrayLike) -> Array:
    """`_distinct` for balanced codes, of which some rows at the beginning may be others."""
    codes = np.asarray(codes)
    num_bits = codes.shape[1]
    others = np.sum(np.sum(codes < 0, axis=1) != num_bits // 2)
    num_codes = math.comb(num_bits, num_bits // 2) + int(others)
    code = _balanced_code(num_bits)
    return _distinct(rng, codes, num_codes, lambda generator: generator.permutation(code))


def _far_apart(codes: np.ndarray) -> bool:
    """Whether all pairs differ in more than a quarter of the bits, and half of them on average."""
    num_codes, num_bits = codes.shape
    total = codes.sum(axis=0, dtype=np.float64)
    # Sums of the pairs' products, <b, b'> = num_bits - 2 distance, without a matrix of pairs.
    if total @ total > num_codes * num_bits:
        return False
    for start in range(0, num_codes, 1024):
        products = codes[start : start + 1024] @ codes[start:].T
        np.fill_diagonal(products, -num_bits)
        if products.max() >= num_bits / 2:
            return False
    return True


def class_codes(
    rng: Array, num_classes: int, num_bits: int, *, random_centers: bool = False
) -> Array:
    """CSQ's codes of the classes: rows of a Hadamard matrix, then of its negative.

    Args:
        rng: of the random codes.
        num_classes: number of classes.
        num_bits: length of the codes.
        random_centers: what to do where such rows are too few, or the number of bits has no
            such matrix: True fills up with random balanced codes, redrawn up to twenty times
            (up to 20,000 of them; more are drawn once) until all codes are far apart; a code
            that stands there twice even then is redrawn by itself.

    Returns:
        `[num_classes, num_bits]` of ±1, all distinct.

    Raises:
        ValueError: if there are too few rows and `random_centers` is False, or too few codes at
            all.

    Example:
        >>> class_codes(jax.random.key(0), 3, 2).tolist()
        [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]

    Reference:
        Yuan et al., Central similarity quantization, CVPR 2020; random codes as in CgAT and
        DeepHash. Differs from the released code where its codes of two classes are the same.
    """
    options.check_numbers(num_classes=num_classes, num_bits=num_bits)
    fixed = np.zeros((0, num_bits), np.float32)
    if not num_bits & (num_bits - 1):
        rows = _hadamard_rows(num_bits, min(num_bits, num_classes))
        fixed = np.concatenate([rows, -rows])[:num_classes]
    missing = num_classes - len(fixed)
    if not missing:
        return jnp.asarray(fixed)
    if not random_centers:
        raise ValueError(
            f"csq has {len(fixed)} Hadamard codes of {num_bits} bits for {num_classes} classes; "
            f"use a power of two of at least {max(num_classes / 2, 1):g} bits, or "
            "random_centers=True to fill up with random balanced codes"
        )
    # So many are hardly ever far apart, and the twentieth draw would take minutes.
    rngs = jax.random.split(rng, 20)[-1:] if missing > 20_000 else jax.random.split(rng, 20)
    for redraw_rng in rngs:
        codes = np.concatenate([fixed, _balanced_codes(redraw_rng, missing, num_bits)])
        if _far_apart(codes):
            break
    return _distinct_balanced(rng, codes)


def class_centers(labels: Array, codes: Array, tie_code: Array) -> Array:
    """The code each label vector stands for: the majority of its classes' codes.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        codes: `[num_classes, num_bits]` of ±1.
        tie_code: `[num_bits]` takes the bits on which the classes are split; so an image
            without a label gets it whole.

    Returns:
        `[batch, num_bits]` of ±1.
    """
    options.check_shapes(
        labels=(labels, "batch num_classes"),
        codes=(codes, "num_classes num_bits"),
        tie_code=(tie_code, "num_bits"),
    )
    votes = jnp.matmul(labels, codes, precision=lax.Precision.HIGHEST)
    return jnp.where(jnp.where(votes == 0, tie_code, votes) > 0, 1.0, -1.0)


def csq(soft_codes: Array, centers: Array, *, quantization_weight: float = 0.05) -> Array:
    """Cross-entropy of the bits to those of the centre, plus quantisation. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in [-1, 1].
        centers: `[batch, num_bits]` of ±1, from `class_centers`.
        quantization_weight: of the mean squared distance of |soft code| to 1. SAAT has 0.05,
            CgAT and DeepHash 0.0001.

    Reference:
        Yuan et al., CSQ, CVPR 2020. As released, a bit that is wholly wrong costs 100 rather
        than infinity.
    """
    hamming.check_aligned(soft_codes=soft_codes, centers=centers)
    # Rounded in the order of the released code: 1 - u loses digits where u is near 1.
    positive = (soft_codes + 1) / 2
    right = jnp.where(centers > 0, positive, 1 - positive)
    # The inner choice keeps the gradient of the unused logarithm finite.
    logs = jnp.where(right > 0, jnp.log(jnp.where(right > 0, right, 1)), -100)
    distances = jnp.square(jnp.abs(soft_codes) - 1)
    return jnp.mean(quantization_weight * distances - logs, axis=-1)


def dpn(soft_codes: Array, centers: Array, *, margin: float = 1.0) -> Array:
    """Mean over the bits of what each lacks to agree with the centre by a margin. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        centers: `[batch, num_bits]` of ±1, from `class_centers`.
        margin: of the agreement.

    Reference:
        Fan et al., Deep polarized network, IJCAI 2020. The released re-estimation of
        the class codes is never called there, and is left out.
    """
    hamming.check_aligned(soft_codes=soft_codes, centers=centers)
    return jnp.mean(jax.nn.relu(margin - soft_codes * centers), axis=-1)


def orthohash(
    soft_codes: Array,
    labels: Array,
    codebook: Array,
    params: dict[str, Array],
    mask: Array,
    *,
    margin: float = 0.2,
    scale: float = 8.0,
    axis_name: str | None = None,
) -> Array:
    """Cross-entropy of the cosines to the class codes, after batch normalisation. `[batch]`

    The moments are those of the real rows on all devices; the labels of an image share its
    weight, and one without labels costs nothing.

    Args:
        soft_codes: `[batch, num_bits]`.
        labels: `[batch, num_classes]` multi-hot.
        codebook: `[num_classes, num_bits]` of ±1.
        params: "scale" and "bias" `[num_bits]` of the normalisation.
        mask: `[batch]` 1 for real rows, 0 for padding.
        margin: taken off the cosine to each class of the image.
        scale: of the cosines as logits.
        axis_name: the mapped axis of the devices, if any.

    Reference:
        Hoe et al., One loss for all, NeurIPS 2021.
    """
    options.check_shapes(
        soft_codes=(soft_codes, "batch num_bits"),
        labels=(labels, "batch num_classes"),
        codebook=(codebook, "num_classes num_bits"),
        mask=(mask, "batch"),
    )
    mean, var, _ = parallel.batch_moments(soft_codes, mask, axis_name)
    codes = (soft_codes - mean) * lax.rsqrt(var + BATCH_NORM_EPSILON)
    codes = codes * params["scale"] + params["bias"]
    # Bounded, because the code of a batch of one row is zero.
    codes *= lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(codes), -1, keepdims=True), 1e-16))
    cosines = jnp.matmul(codes, codebook.T, precision=lax.Precision.HIGHEST)
    cosines /= codebook.shape[-1] ** 0.5
    shares = labels / jnp.maximum(jnp.sum(labels, axis=-1, keepdims=True), 1)
    return -jnp.sum(shares * jax.nn.log_softmax(scale * (cosines - margin * labels)), axis=-1)


class _OnCenters(Objective):
    """Has codes of the classes, of which an image's centre is made, and a random tie code."""

    def class_codes(self, rng: Array, num_classes: int, num_bits: int) -> Array:
        """The codes of the classes. `[num_classes, num_bits]`"""
        return _distinct_balanced(rng, _balanced_codes(rng, num_classes, num_bits))

    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        codes_rng, tie_rng = jax.random.split(rng)
        return State(
            class_codes=self.class_codes(codes_rng, labels.shape[1], num_bits),
            tie_code=jax.random.rademacher(tie_rng, (num_bits,), jnp.float32),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csq(_OnCenters):
    """CSQ: `csq` against `class_codes`, with a random tie code.

    Attributes:
        quantization_weight: see `csq`.
        random_centers: see `class_codes`.
    """

    quantization_weight: float = 0.05
    random_centers: bool = False

    def class_codes(self, rng: Array, num_classes: int, num_bits: int) -> Array:
        return class_codes(rng, num_classes, num_bits, random_centers=self.random_centers)

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        centers = class_centers(labels, state.class_codes, state.tie_code)
        return csq(soft_codes, centers, quantization_weight=self.quantization_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpn(_OnCenters):
    """DPN: `dpn` against random balanced codes of the classes, with a random tie code.

    Its loss reads no bank; it keeps one because the released code does, and so takes part in
    SAAT's aliasing (`defenses.Saat`).

    Attributes:
        margin: see `dpn`.
    """

    margin: float = 1.0

    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        state = super().init(rng, labels, num_bits)
        return dataclasses.replace(state, bank=init_bank(labels, num_bits))

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        centers = class_centers(labels, state.class_codes, state.tie_code)
        return dpn(soft_codes, centers, margin=self.margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthoHash(Objective):
    """OrthoHash: `orthohash` with a random codebook.

    Attributes:
        margin: see `orthohash`.
        scale: see `orthohash`.
    """

    margin: float = 0.2
    scale: float = 8.0

    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        zeros, ones = jnp.zeros(num_bits), jnp.ones(num_bits)
        codes = jax.random.rademacher(rng, (labels.shape[1], num_bits), jnp.float32)
        return State(
            params={"scale": ones, "bias": zeros},
            class_codes=_distinct(
                rng, codes, 2**num_bits, lambda generator: generator.choice([-1.0, 1.0], num_bits)
            ),
            mean=zeros,
            var=ones,
        )

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return orthohash(
            soft_codes,
            labels,
            state.class_codes,
            state.params,
            context.mask,
            margin=self.margin,
            scale=self.scale,
            axis_name=context.axis_name,
        )
