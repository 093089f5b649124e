"""Sign steps along a momentum of gradients: NI-, SI-NI-, VMI- and DI-FGSM, and their estimators.

Called as `pgd` is, whose docstring describes the arguments that they share. All of them begin at
the images but DI-FGSM, which begins at a random point of the ball.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options
from saat_jax.attacks.code_losses import target_loss
from saat_jax.attacks.descent import (
    Estimate,
    GradientFn,
    MomentumState,
    checked_images,
    minimize,
    momentum_sign,
    row_keys,
    uniform_noise,
)
from saat_jax.hamming import EncodeFn

Array = jax.Array
_fold_rows = jax.vmap(jax.random.fold_in, in_axes=(0, None))


def look_ahead(gradient_fn: GradientFn, *, reach: float, num_scales: int) -> Estimate:
    """The estimate of SI-NI-FGSM: a mean over ever darker copies of a point ahead; NI-FGSM has one.

    The point lies `reach` times the momentum ahead. Every copy divides the one before, by 1, 2,
    4, 8, ...: the scales are 1, 1/2, 1/8, 1/64, 1/1024, ... .
    """
    scales = 0.5 ** np.cumsum(np.arange(num_scales, dtype=np.float32))

    def estimate(
        adversarial: Array, step: Array, rule: MomentumState, carry: Any
    ) -> tuple[Array, Any]:
        ahead = adversarial - reach * rule.momentum
        gradients = jax.lax.map(lambda scale: gradient_fn(scale * ahead, step), scales)
        return jnp.mean(gradients, axis=0), carry

    return estimate


def tune_variance(
    gradient_fn: GradientFn, offset_fn: Callable[[Array, Array], Array], *, num_neighbors: int
) -> Estimate:
    """The estimate of VMI-FGSM: here, plus what it lacked of its neighbours' the last time.

    `offset_fn` maps (step index, neighbour index) to the way to the neighbours; the carry
    starts at zero.
    """

    def estimate(adversarial: Array, step: Array, _: Any, variance: Any) -> tuple[Array, Any]:
        here = gradient_fn(adversarial, step)
        around = jax.lax.map(
            lambda neighbor: gradient_fn(adversarial + offset_fn(step, neighbor), step),
            jnp.arange(num_neighbors),
        )
        return here + variance, jnp.mean(around, axis=0) - here

    return estimate


def transform_input(
    gradient_fn: GradientFn, transform_fn: Callable[[Array, Array], Array]
) -> Estimate:
    """The estimate of DI-FGSM: through `transform_fn`, of (images, step index)."""

    def estimate(adversarial: Array, step: Array, _: Any, carry: Any) -> tuple[Array, Any]:
        transformed, pull_back = jax.vjp(lambda x: transform_fn(x, step), adversarial)
        return pull_back(gradient_fn(transformed, step))[0], carry

    return estimate


def resize_and_pad(image: Array, size: Array | int, top: Array | int, left: Array | int) -> Array:
    """Shrinks an image bilinearly to a square and puts it on a black image of its own size.

    Args:
        image: `[height, width, channels]`.
        size: side of the square in pixels; may be traced, as the next two.
        top: rows above the square.
        left: columns to the left of it.
    """
    return jax.image.scale_and_translate(
        image,
        image.shape,
        (0, 1),
        size / jnp.array(image.shape[:2], image.dtype),
        jnp.array([top, left], image.dtype),
        "linear",
        antialias=False,
    )


def si_ni_fgsm(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    step_size: float,
    num_steps: int,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
    decay: float = 1.0,
    num_scales: int = 5,
) -> Array:
    """Perturbs images along a momentum of gradients at darker copies of the point ahead.

    Its arguments are those of `pgd`, and:

    Args:
        rng: not used.
        decay: share of the momentum that is kept.
        num_scales: number of copies, see `look_ahead`.

    Reference:
        Lin et al., Nesterov accelerated gradient and scale invariance for adversarial attacks,
        ICLR 2020, where the copies are 1, 1/2, 1/4, 1/8, ... of the image. Differs from the
        released code: the loss of each copy is divided by the image's own number of unsettled
        bits, not by the batch's, so that images do not influence each other; `loss="pooled"`
        divides as released.
    """
    del rng
    options.check_numbers(decay=decay, num_scales=num_scales)
    return minimize(
        target_loss(target_codes, loss=loss, targeted=targeted),
        encode_fn,
        variables,
        checked_images(images, step_size=step_size),
        rule=momentum_sign(step_size, decay=decay),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
        estimator=functools.partial(look_ahead, reach=decay * step_size, num_scales=num_scales),
    )


# Nesterov's momentum alone: a single copy; called as `si_ni_fgsm`.
ni_fgsm = functools.partial(si_ni_fgsm, num_scales=1)


def vmi_fgsm(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    step_size: float,
    num_steps: int,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
    decay: float = 1.0,
    num_neighbors: int = 5,
    beta: float = 1.5,
) -> Array:
    """Perturbs images along a momentum of gradients, each mended by its neighbours' last one.

    Its arguments are those of `pgd`, and:

    Args:
        rng: one key, or `[batch]` keys, which make the neighbours of an image its own.
        decay: share of the momentum that is kept.
        num_neighbors: number of random points around an image in each step.
        beta: radius of their neighbourhood, in multiples of `epsilon`.

    Reference:
        Wang and He, Enhancing the transferability of adversarial attacks through variance
        tuning, CVPR 2021. Differs from the released code as `si_ni_fgsm` does.
    """
    options.check_numbers(decay=decay, num_neighbors=num_neighbors, beta=beta)
    images = checked_images(images, epsilon=epsilon, step_size=step_size)
    keys = row_keys(rng, len(images))

    def offset_fn(step: Array, neighbor: Array) -> Array:
        draw_keys = _fold_rows(keys, step * num_neighbors + neighbor)
        return uniform_noise(draw_keys, images, epsilon=beta * epsilon)

    return minimize(
        target_loss(target_codes, loss=loss, targeted=targeted),
        encode_fn,
        variables,
        images,
        rule=momentum_sign(step_size, decay=decay),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
        estimator=functools.partial(
            tune_variance, offset_fn=offset_fn, num_neighbors=num_neighbors
        ),
        carry=jnp.zeros_like(images),
    )


def di_fgsm(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    step_size: float,
    num_steps: int,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
    decay: float = 0.0,
    probability: float = 0.5,
    resize_rate: float = 0.9,
) -> Array:
    """Perturbs images, from a random start, along gradients at randomly shrunk and padded copies.

    Its arguments are those of `pgd`, and:

    Args:
        rng: one key, or `[batch]` keys, which make all draws of an image its own.
        decay: share of the momentum that is kept.
        probability: of a copy rather than the image itself.
        resize_rate: least side of a copy as a share of the shorter side of the image, rounded
            down: 201 of 224. All sides from there up to one below the whole are as likely, and
            all places that leave a black line below and at the right.

    Raises:
        ValueError: as `pgd`, or if `resize_rate` leaves nothing to choose from.

    Reference:
        Xie et al., Improving transferability of adversarial examples with input diversity,
        CVPR 2019. Differs from the released code: every image has draws of its own, there a
        batch shares them.
    """
    options.check_numbers(decay=decay, probability=probability, resize_rate=resize_rate)
    images = checked_images(images, epsilon=epsilon, step_size=step_size)
    height, width = images.shape[1:3]
    side = min(height, width)
    smallest = int(resize_rate * side)
    if not 0 < smallest < side:
        raise ValueError(
            f"resize_rate must leave 1 to {side - 1} pixels of images of {height} x {width}, "
            f"got {resize_rate} and so {smallest}; try 0.9 and images of 2 x 2 or more"
        )

    def transform(key: Array, image: Array) -> Array:
        choice, *places = jax.random.uniform(key, (4,), image.dtype)
        size = smallest + jnp.floor(places[0] * (side - smallest))
        top = jnp.floor(places[1] * (height - size))
        left = jnp.floor(places[2] * (width - size))
        copy = resize_and_pad(image, size, top, left)
        return jnp.where(choice < probability, copy, image)

    start_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(row_keys(rng, len(images)))

    def transform_fn(adversarial: Array, step: Array) -> Array:
        return jax.vmap(transform)(_fold_rows(step_keys, step), adversarial)

    return minimize(
        target_loss(target_codes, loss=loss, targeted=targeted),
        encode_fn,
        variables,
        images,
        rule=momentum_sign(step_size, decay=decay),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
        start=images + uniform_noise(start_keys, images, epsilon=epsilon),
        estimator=functools.partial(transform_input, transform_fn=transform_fn),
    )
