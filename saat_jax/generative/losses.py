"""Losses of generator and discriminator, one value per example."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from saat_jax import options

Array = jax.Array
LossFn = Callable[[Array, Array], Array]
Reduction = Literal["mean", "sum"]


def score_loss(
    scores: Array, labels: Array, *, generated: bool, reduction: Reduction = "mean"
) -> Array:
    """Mean squared distance of scores from what they should be. `[batch]`

    Args:
        scores: `[batch, num_classes + 1]` of the discriminator, or `[batch, 1]` without
            class nodes.
        labels: `[batch, num_classes]` multi-hot float.
        generated: what the last score should say.
        reduction: the "mean" over the scores as released, or their "sum", as in the paper.

    Raises:
        ValueError: if the scores fit neither way, or the reduction is unknown.
    """
    options.check_word("reduction", reduction, ("mean", "sum"))
    num_classes, num_scores = labels.shape[-1], scores.shape[-1]
    if num_scores not in (1, num_classes + 1):
        raise ValueError(
            f"{num_classes} classes go with 1 or {num_classes + 1} scores, got {num_scores}; "
            "set the discriminator's num_classes"
        )
    squares = jnp.square(scores[:, -1:] - generated)
    if num_scores > 1:
        squares = jnp.append(jnp.square(scores[:, :-1] - labels), squares, axis=-1)
    return (jnp.mean if reduction == "mean" else jnp.sum)(squares, axis=-1)


def discriminator_loss(
    real_scores: Array,
    generated_scores: Array,
    labels: Array,
    target_labels: Array,
    *,
    reduction: Reduction = "mean",
) -> Array:
    """The discriminator's loss. `[batch]`

    Args:
        real_scores: scores of the real images, as `score_loss` takes them.
        generated_scores: scores of the generated images.
        labels: `[batch, num_classes]` of the real images.
        target_labels: `[batch, num_classes]` that the generated images aim at.
        reduction: as of `score_loss`.

    Reference:
        As released with ProS-GAN.
    """
    real = score_loss(real_scores, labels, generated=False, reduction=reduction)
    generated = score_loss(generated_scores, target_labels, generated=True, reduction=reduction)
    return 0.5 * (real + generated)


def mean_reconstruction(generated: Array, images: Array) -> Array:
    """Mean squared distance of signed images, as released. `[batch]`"""
    return jnp.mean(jnp.square(generated - images), axis=(1, 2, 3))


def sum_reconstruction(generated: Array, images: Array) -> Array:
    """Squared L2 distance of signed images in units of [0, 1], as in the paper. `[batch]`"""
    return jnp.sum(jnp.square((generated - images) / 2), axis=(1, 2, 3))


def linear_hash_loss(soft_codes: Array, target_codes: Array) -> Array:
    """One less the mean agreement of codes and target codes. `[batch]` in [0, 2]"""
    return 1 - jnp.mean(soft_codes * target_codes, axis=-1)


def focused_hash_loss(soft_codes: Array, target_codes: Array) -> Array:
    """Mean of s (s - 2) + 1 over the bits' agreements s: settled bits pull less. `[batch]`

    Reference:
        ProS-GAN's journal version.
    """
    return jnp.mean(jnp.square(1 - soft_codes * target_codes), axis=-1)


# The terms a config may name.
RECONSTRUCTION_LOSSES: options.Choices[LossFn] = options.Choices(
    "reconstruction loss", {"mse": mean_reconstruction, "l2sum": sum_reconstruction}
)
HASH_LOSSES: options.Choices[LossFn] = options.Choices(
    "hash loss", {"linear": linear_hash_loss, "focused": focused_hash_loss}
)
