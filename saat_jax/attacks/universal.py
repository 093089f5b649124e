"""One perturbation, or one patch, for all images."""

import chex
import jax
import jax.numpy as jnp

from saat_jax import options
from saat_jax.attacks.balls import project
from saat_jax.attacks.search import LogitScale, logits_of, weighted_loss
from saat_jax.hamming import EncodeFn

Array = jax.Array

# How sharp tanh is, of logits of a usual size of one; the first step, as a share of the ball.
_SHARPNESS, _FIRST_STEP = 2.0, 0.25


def patch_mask(height: int, width: int, *, share: float) -> Array:
    """Where a patch in the lower right corner lies, one pixel from the edges. `[height, width, 1]`

    Args:
        height, width: of the image in pixels.
        share: of the image's area; its sides are in the image's proportion.

    Example:
        >>> int(patch_mask(8, 8, share=0.25).sum())
        16
    """
    tall, wide = (max(1, round(side * share**0.5)) for side in (height, width))
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    below = (rows >= height - 1 - tall) & (rows < height - 1)
    return (below & (columns >= width - 1 - wide) & (columns < width - 1))[..., None]


def put_on(images: Array, perturbation: Array, *, epsilon: float, mask: Array | None) -> Array:
    """Images with a perturbation added within the ball, or with a patch. `[batch, ...]`

    Args:
        images: `[batch, height, width, channels]` in [0, 1].
        perturbation: `[height, width, channels]`: what is added, or the patch's own pixels.
        epsilon: radius of the L-infinity ball; not used with a patch.
        mask: `[height, width, 1]` where the patch lies; None if there is none.
    """
    if mask is None:
        return project(images + perturbation, images, epsilon=epsilon)
    return jnp.where(mask, perturbation, images)


def universal(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    weights: Array,
    rng: Array,
    *,
    epsilon: float,
    num_steps: int,
    batch_size: int,
    scale: LogitScale,
    mask: Array | None = None,
) -> Array:
    """Learns one perturbation that lowers the agreement of all images' codes with their weights.

    Signed steps of the mean gradient over images that are drawn for each step, with a momentum of
    nine tenths; steps shrink to nothing.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs.
        images: `[num, height, width, channels]` in [0, 1], to learn on.
        weights: `[num, num_bits]`: codes to leave, or those to reach with the other sign.
        rng: a key, for the start and the draws.
        epsilon: radius of the L-infinity ball in units of [0, 1]; not used with a mask.
        num_steps: steps.
        batch_size: images of a step.
        scale: as of `measure_logits`.
        mask: `[height, width, 1]` where a patch lies, for one in place of a perturbation.

    Returns:
        `[height, width, channels]` for `put_on`.

    Reference:
        Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017; by plain gradients
        as Shafahi et al., Universal adversarial training, AAAI 2020.
    """
    options.check_numbers(epsilon=epsilon, num_steps=num_steps, batch_size=batch_size)
    first_key, draw_key = jax.random.split(rng)
    low, high = (-epsilon, epsilon) if mask is None else (0.0, 1.0)
    start = jax.random.uniform(first_key, images.shape[1:], images.dtype, low, high)

    def loss_fn(perturbation: Array, rows: Array) -> Array:
        changed = put_on(images[rows], perturbation, epsilon=epsilon, mask=mask)
        logits = logits_of(encode_fn, variables, changed, scale)
        return jnp.mean(weighted_loss(logits, weights[rows], sharpness=_SHARPNESS))

    def move(step: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        perturbation, trend = at
        key = jax.random.fold_in(draw_key, step)
        rows = jax.random.choice(key, len(images), (min(batch_size, len(images)),), replace=False)
        gradient = jax.grad(loss_fn)(perturbation, rows)
        size = jnp.maximum(jnp.mean(jnp.abs(gradient)), 1e-20)
        trend = 0.9 * trend + gradient / size
        length = _FIRST_STEP * (high - low) / 2 * (1 - step / num_steps)
        return jnp.clip(perturbation - length * jnp.sign(trend), low, high), trend

    found, _ = jax.lax.fori_loop(0, num_steps, move, (start, jnp.zeros_like(start)))
    return found
