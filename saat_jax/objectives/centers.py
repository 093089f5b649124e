"""Objectives on classes: soft codes against a fixed code for every class.

Labels may be multi-hot or one-hot. Of a one-hot label every formula here is the one that the
released code keeps for data sets with a single label.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax.objectives.state import (
    BATCH_NORM_EPSILON,
    ArrayLike,
    Context,
    Objective,
    State,
    batch_moments,
    init_bank,
)

Array = jax.Array


def hadamard(order: int) -> np.ndarray:
    """Sylvester's Hadamard matrix: rows that differ in half of their bits. `[order, order]` ±1

    Raises:
        ValueError: if `order` is not a power of two.
    """
    if order < 1 or order & (order - 1):
        raise ValueError(f"a Hadamard matrix needs an order that is a power of two, got {order}")
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _balanced_codes(rng: Array, count: int, num_bits: int) -> Array:
    """Random codes of which half the bits, rounded down, are -1. `[count, num_bits]`"""
    code = jnp.where(jnp.arange(num_bits) < num_bits // 2, -1.0, 1.0)
    return jax.random.permutation(rng, jnp.tile(code, (count, 1)), axis=1, independent=True)


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
            until all codes are far apart.

    Returns:
        `[num_classes, num_bits]` of ±1.

    Raises:
        ValueError: if there are too few rows and `random_centers` is False.

    Reference:
        Yuan et al., Central similarity quantization, CVPR 2020; random codes as in CgAT and
        DeepHash.
    """
    has_matrix = num_bits & (num_bits - 1) == 0
    rows = np.concatenate([hadamard(num_bits), -hadamard(num_bits)]) if has_matrix else None
    fixed = np.zeros((0, num_bits), np.float32) if rows is None else rows[:num_classes]
    missing = num_classes - len(fixed)
    if missing and not random_centers:
        raise ValueError(
            f"csq has {len(fixed)} Hadamard codes of {num_bits} bits for {num_classes} classes; "
            f"use a power of two of at least {max(num_classes / 2, 1):g} bits, or "
            "random_centers=True to fill up with random balanced codes"
        )
    codes = jnp.asarray(fixed)
    for redraw_rng in jax.random.split(rng, 20) if missing else ():
        codes = jnp.concatenate([fixed, _balanced_codes(redraw_rng, missing, num_bits)])
        distances = (num_bits - np.asarray(codes @ codes.T)) / 2
        distances = distances[np.triu_indices(num_classes, 1)]
        if not distances.size:
            break
        if distances.min() > num_bits / 4 and distances.mean() >= num_bits / 2:
            break
    return codes


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
    mean, var, _ = batch_moments(soft_codes, mask, axis_name)
    codes = (soft_codes - mean) * lax.rsqrt(var + BATCH_NORM_EPSILON)
    codes = codes * params["scale"] + params["bias"]
    # Bounded, because the code of a batch of one row is zero.
    codes *= lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(codes), -1, keepdims=True), 1e-16))
    cosines = jnp.matmul(codes, codebook.T, precision=lax.Precision.HIGHEST)
    cosines /= codebook.shape[-1] ** 0.5
    shares = labels / jnp.maximum(jnp.sum(labels, axis=-1, keepdims=True), 1)
    return -jnp.sum(shares * jax.nn.log_softmax(scale * (cosines - margin * labels)), axis=-1)


def make_csq(*, quantization_weight: float = 0.05, random_centers: bool = False) -> Objective:
    """Builds CSQ: `csq` against `class_codes`, with a random tie code.

    Args:
        quantization_weight: see `csq`.
        random_centers: see `class_codes`.
    """

    def init(rng: Array, labels: ArrayLike, num_bits: int) -> State:
        codes_rng, tie_rng = jax.random.split(rng)
        return State(
            class_codes=class_codes(
                codes_rng, labels.shape[1], num_bits, random_centers=random_centers
            ),
            tie_code=jax.random.rademacher(tie_rng, (num_bits,), jnp.float32),
        )

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        centers = class_centers(labels, state.class_codes, state.tie_code)
        return csq(soft_codes, centers, quantization_weight=quantization_weight)

    return Objective(init, loss)


def make_dpn(*, margin: float = 1.0) -> Objective:
    """Builds DPN: `dpn` against random balanced codes of the classes, with a random tie code.

    Its loss reads no bank; it keeps one because the released code does, and so takes part in
    SAAT's aliasing (`defenses.make_saat_update`).

    Args:
        margin: see `dpn`.
    """

    def init(rng: Array, labels: ArrayLike, num_bits: int) -> State:
        codes_rng, tie_rng = jax.random.split(rng)
        return State(
            bank=init_bank(labels, num_bits),
            class_codes=_balanced_codes(codes_rng, labels.shape[1], num_bits),
            tie_code=jax.random.rademacher(tie_rng, (num_bits,), jnp.float32),
        )

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        centers = class_centers(labels, state.class_codes, state.tie_code)
        return dpn(soft_codes, centers, margin=margin)

    return Objective(init, loss)


def make_orthohash(*, margin: float = 0.2, scale: float = 8.0) -> Objective:
    """Builds OrthoHash: `orthohash` with a random codebook.

    Args:
        margin: see `orthohash`.
        scale: see `orthohash`.
    """

    def init(rng: Array, labels: ArrayLike, num_bits: int) -> State:
        zeros, ones = jnp.zeros(num_bits), jnp.ones(num_bits)
        return State(
            params={"scale": ones, "bias": zeros},
            class_codes=jax.random.rademacher(rng, (labels.shape[1], num_bits), jnp.float32),
            mean=zeros,
            var=ones,
        )

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return orthohash(
            soft_codes,
            labels,
            state.class_codes,
            state.params,
            context.mask,
            margin=margin,
            scale=scale,
            axis_name=context.axis_name,
        )

    return Objective(init, loss)
