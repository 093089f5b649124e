"""Projected gradient descent within the L-infinity ball, and what every attack shares."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax.attacks.code_losses import code_loss

Array = jax.Array
EncodeFn = Callable[[chex.ArrayTree, Array, Array | float], Array]


def project(adversarial: Array, images: Array, *, epsilon: float) -> Array:
    """Moves images to the nearest point in the L-infinity ball and in [0, 1]."""
    return jnp.clip(jnp.clip(adversarial, images - epsilon, images + epsilon), 0, 1)


def row_keys(rng: Array, num_rows: int) -> Array:
    """One key for each row: `rng` itself if it is `[num_rows]` keys, else folded by row.

    Keys that belong to rows, not to batches, make a random start independent of how the
    images are batched and over how many devices they are spread.
    """
    if rng.ndim == 1 and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(num_rows))


def uniform_noise(rng: Array, images: Array, *, epsilon: float) -> Array:
    """Noise uniform in [-epsilon, epsilon], drawn with one key for each image.

    Args:
        rng: one key, or `[batch]` keys.
        images: `[batch, height, width, channels]`; gives shape and dtype.
        epsilon: largest magnitude.
    """

    def draw(key: Array) -> Array:
        return jax.random.uniform(key, images.shape[1:], images.dtype, -epsilon, epsilon)

    return jax.vmap(draw)(row_keys(rng, images.shape[0]))


def sign_descent(
    loss_fn: Callable[[Array, Array, Any], tuple[Array, Any]],
    images: Array,
    start: Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int | Array,
    carry: Any = None,
) -> tuple[Array, Any]:
    """Minimises a loss over the L-infinity ball by projected steps along the gradient's sign.

    One `lax.fori_loop`; only the gradient with respect to the images is taken.

    Args:
        loss_fn: maps (images, step index, carry) to (scalar loss, new carry).
        images: `[batch, height, width, channels]` centres of the ball.
        start: same shape, where to begin; projected first.
        epsilon: radius of the ball.
        step_size: change of a pixel in one step.
        num_steps: number of steps; a traced number compiles once for all values.
        carry: what the loss keeps from step to step, such as running statistics.

    Returns:
        The final images and the final carry, both constants for differentiation.
    """

    def body(step: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        adversarial, carry = state
        gradient, carry = jax.grad(loss_fn, has_aux=True)(adversarial, step, carry)
        adversarial = adversarial - step_size * jnp.sign(gradient)
        return project(adversarial, images, epsilon=epsilon), carry

    state = (project(start, images, epsilon=epsilon), carry)
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, body, state))


def pgd(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    targeted: bool,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
    random_start: bool = True,
    start: Array | None = None,
) -> Array:
    """Perturbs images within a ball so that their codes leave, or reach, the target codes.

    With mainstay codes as target codes this is the attack of SAAT: the own labels' codes for
    a non-targeted attack, the wanted labels' codes for a targeted one.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs, usually a network's parameters.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        target_codes: `[batch, num_bits]` in {-1, 0, +1}; a zero bit takes no part.
        rng: one key, or `[batch]` keys, which make the start of an image its own.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`.
        step_size: change of a pixel in one step, such as `1 / 255`.
        num_steps: number of steps.
        targeted: whether to approach the target codes rather than to leave them.
        loss: "focused" as in the released code, or "mean" as in the paper.
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        random_start: whether to begin at a uniformly random point of the ball (released
            code) or at the images (Eq. 15).
        start: `[batch, height, width, channels]` to begin there instead.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Raises:
        ValueError: if the loss is unknown, the images are not floats or `alphas` has another
            length than `num_steps`.

    Reference:
        SAAT, Eq. 15 and Section IV-A.
    """
    chex.assert_rank([images, target_codes], [4, 2])
    chex.assert_equal_shape_prefix([images, target_codes], 1)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")
    schedule = jnp.ones(num_steps) if alphas is None else jnp.asarray(alphas)
    if schedule.shape != (num_steps,):
        raise ValueError(
            f"alphas must hold one scale for each of the {num_steps} steps, "
            f"got shape {schedule.shape}; try alpha_schedule({num_steps})"
        )
    # No steps leave the start as it is: the loop's body is traced all the same.
    schedule = jnp.append(schedule, 1)
    loss_fn = code_loss(loss, targeted=targeted)

    def total_loss(adversarial: Array, step: Array, _: None) -> tuple[Array, None]:
        soft_codes = encode_fn(variables, adversarial, schedule[step])
        return jnp.sum(loss_fn(soft_codes, target_codes)), None

    if start is None:
        start = images + uniform_noise(rng, images, epsilon=epsilon) if random_start else images
    adversarial, _ = sign_descent(
        total_loss, images, start, epsilon=epsilon, step_size=step_size, num_steps=num_steps
    )
    return adversarial
