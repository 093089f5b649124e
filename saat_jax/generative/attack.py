"""The attack of a trained generator."""

from typing import Any

import chex
import jax

from saat_jax import attacks, networks, options
from saat_jax.generative.models import Generator

Array = jax.Array


def generate(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    semantics: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float | None,
    generator: Generator,
    generator_params: chex.ArrayTree,
) -> Array:
    """Makes adversarial images in one pass of a trained generator.

    Called as every attack is; but the hash network was attacked in training, so that
    `encode_fn`, `variables` and `rng` are not used.

    Args:
        encode_fn: not used.
        variables: not used.
        images: `[batch, height, width, 3]` float32 in [0, 1].
        semantics: `[batch, semantics]` float, the target labels' semantic vectors.
        rng: not used.
        targeted: must be True.
        epsilon: radius of the L-infinity ball to move the images into, in units of [0, 1]; None,
            as published, does not, and only the reconstruction loss keeps them near.
        generator: the generator.
        generator_params: its parameters.

    Returns:
        `[batch, height, width, 3]` images in [0, 1]; NaN as those of `attacks.pgd`.

    Raises:
        ValueError: if not targeted, an argument is not as above, or the images are of a size
            that the generator does not take.

    Reference:
        As released with ProS-GAN.
    """
    if not targeted:
        raise ValueError("ProS-GAN is a targeted attack, got targeted=False; choose another one")
    images = attacks.checked_images(images, epsilon=epsilon)
    options.check_shapes(
        images=(images, "batch height width channels"), semantics=(semantics, "batch semantics")
    )
    signed: Any = generator.apply({"params": generator_params}, 2 * images - 1, semantics)
    adversarial = (signed + 1) / 2
    if epsilon is None:
        return adversarial
    return attacks.project(adversarial, images, epsilon=epsilon)
