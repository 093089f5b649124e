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
    # A key of JAX's old style is itself an array, of words.
    if rng.ndim > (0 if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else 1):
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


def descend(
    change_fn: Callable[[Array, Array, Any], tuple[Array, Any]],
    images: Array,
    start: Array,
    *,
    epsilon: float,
    num_steps: int | Array,
    carry: Any = None,
) -> tuple[Array, Any]:
    """Subtracts one change after another, each time projected to the L-infinity ball and [0, 1].

    The one `lax.fori_loop` of all attacks that project after every step.

    Args:
        change_fn: maps (images, step index, carry) to (change to subtract, new carry).
        images: `[batch, height, width, channels]` centres of the ball.
        start: same shape, where to begin; projected first.
        epsilon: radius of the ball.
        num_steps: number of steps; a traced number compiles once for all values.
        carry: what is kept from step to step, such as momentum.

    Returns:
        The final images and the final carry, both constants for differentiation.

    Raises:
        ValueError: if the start is of another shape, or the radius negative.
    """
    if start.shape != images.shape:
        raise ValueError(f"start must be of the images' shape {images.shape}, got {start.shape}")
    if isinstance(epsilon, int | float) and epsilon < 0:
        raise ValueError(f"epsilon must be 0 or more, such as 8 / 255, got {epsilon}")

    def body(step: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        adversarial, carry = state
        change, carry = change_fn(adversarial, step, carry)
        return project(adversarial - change, images, epsilon=epsilon), carry

    state = (project(start, images, epsilon=epsilon), carry)
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, body, state))


def gradient_sign(gradient: Array) -> Array:
    """The sign, and zero where the gradient is not a number, as released: no image is lost."""
    return jnp.where(jnp.isnan(gradient), 0, jnp.sign(gradient))


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

    Only the gradient with respect to the images is taken.

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

    def change_fn(adversarial: Array, step: Array, carry: Any) -> tuple[Array, Any]:
        gradient, carry = jax.grad(loss_fn, has_aux=True)(adversarial, step, carry)
        return step_size * gradient_sign(gradient), carry

    return descend(change_fn, images, start, epsilon=epsilon, num_steps=num_steps, carry=carry)


def check_inputs(images: Array, alphas: Array | np.ndarray | None, num_steps: int) -> Array:
    """Refuses images that are not floats in [0, 1] and scales of another number than steps.

    Returns:
        The tanh scale by step, 1 without `alphas`; and one beyond the last, since the body of a
        loop without steps is traced all the same.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")
    # Of traced images the values are not known.
    if images.size and not isinstance(images, jax.core.Tracer):
        least, most = float(images.min()), float(images.max())
        if least < 0 or most > 1:
            raise ValueError(
                f"images must be floats in [0, 1], got values from {least:g} to {most:g}; divide "
                "by 255, and leave mean and deviation to the encoder"
            )
    schedule = jnp.ones(num_steps) if alphas is None else jnp.asarray(alphas)
    if schedule.shape != (num_steps,):
        raise ValueError(
            f"alphas must hold one scale for each of the {num_steps} steps, "
            f"got shape {schedule.shape}; try alpha_schedule({num_steps})"
        )
    return jnp.append(schedule, 1)


def image_gradient(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    *,
    num_steps: int,
    targeted: bool,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
) -> Callable[[Array, Array], Array]:
    """Builds the gradient of a code loss, as a function of (adversarial images, step index).

    Each image's gradient is that of its own loss. The arguments are checked and described as
    in `pgd`; `images` serve for the check only.
    """
    chex.assert_rank([images, target_codes], [4, 2])
    chex.assert_equal_shape_prefix([images, target_codes], 1)
    schedule = check_inputs(images, alphas, num_steps)
    loss_fn = code_loss(loss, targeted=targeted)

    def total_loss(adversarial: Array, step: Array) -> Array:
        return jnp.sum(loss_fn(encode_fn(variables, adversarial, schedule[step]), target_codes))

    return jax.grad(total_loss)


def _unit(gradient: Array) -> Array:
    """Scales each image's gradient to an L2 norm of 1; a zero gradient stays zero."""
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    return gradient / jnp.where(norms > 0, norms, 1)


# What `pgd` makes of a gradient before it takes a step.
_DIRECTIONS: dict[str, Callable[[Array], Array]] = {
    "sign": gradient_sign,
    "raw": lambda gradient: gradient,
    "unit": _unit,
}


def check_direction(name: str) -> None:
    """Refuses an unknown `direction` of `pgd` with a ValueError that names the known."""
    if name not in _DIRECTIONS:
        raise ValueError(f"unknown direction {name!r}; expected one of {sorted(_DIRECTIONS)}")


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
    direction: str = "sign",
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
        step_size: length of one step, such as `1 / 255`; see `direction`.
        num_steps: number of steps.
        targeted: whether to approach the target codes rather than to leave them.
        loss: "focused" as in the released code, "mean" as in the paper, or "pooled", which
            weighs the images of a batch as released (`code_losses`).
        direction: "sign" moves every pixel by `step_size` (SAAT's code); "raw" subtracts
            `step_size` times the gradient of the image's own loss (ProS-GAN's DHTA, whose
            step of 1 on the mean over a batch of 32 is a `step_size` of 1 / 32); "unit" moves
            the image by `step_size` in L2 norm (the original DHTA, which counts it in
            normalised pixels).
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        random_start: whether to begin at a uniformly random point of the ball (released
            code) or at the images (Eq. 15).
        start: `[batch, height, width, channels]` to begin there instead.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Raises:
        ValueError: if the loss or the direction is unknown, the images are not floats or
            `alphas` has another length than `num_steps`.

    Reference:
        SAAT, Eq. 15 and Section IV-A; DHTA for the other directions.
    """
    check_direction(direction)
    gradient_fn = image_gradient(
        encode_fn,
        variables,
        images,
        target_codes,
        num_steps=num_steps,
        targeted=targeted,
        loss=loss,
        alphas=alphas,
    )

    def change_fn(adversarial: Array, step: Array, _: None) -> tuple[Array, None]:
        return step_size * _DIRECTIONS[direction](gradient_fn(adversarial, step)), None

    if start is None:
        start = images + uniform_noise(rng, images, epsilon=epsilon) if random_start else images
    adversarial, _ = descend(change_fn, images, start, epsilon=epsilon, num_steps=num_steps)
    return adversarial


# BIM, also called I-FGSM, starts at the images themselves (Kurakin, Goodfellow and Bengio,
# Adversarial examples in the physical world, 2017); called as `pgd`.
bim = functools.partial(pgd, random_start=False)


def fgsm(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    loss: str = "focused",
    alpha: float = 0.1,
) -> Array:
    """`bim` of a single step as long as the radius: FGSM.

    Args, beside those of `pgd`:
        alpha: the tanh scale; 0.1 is that of `alpha_schedule(1)`.

    Reference:
        Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, 2015.
    """
    return bim(
        encode_fn,
        variables,
        images,
        target_codes,
        rng,
        targeted=targeted,
        epsilon=epsilon,
        step_size=epsilon,
        num_steps=1,
        loss=loss,
        alphas=jnp.array([alpha]),
    )


def noise(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
) -> Array:
    """Adds noise uniform in the ball, whatever the encoder and the target codes: a baseline.

    Args:
        encode_fn: not used.
        variables: not used.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        target_codes: not used.
        rng: one key, or `[batch]` keys, which make the noise of an image its own.
        targeted: not used.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Reference:
        The noise rows of ProS-GAN's Tables 1 and 4; the range of pixels is this library's.
    """
    del encode_fn, variables, target_codes, targeted
    return project(images + uniform_noise(rng, images, epsilon=epsilon), images, epsilon=epsilon)
