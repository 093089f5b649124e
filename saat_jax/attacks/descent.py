"""Descent within a ball: the one loop of all attacks, and those by plain gradients.

An attack is put together by `minimize` of

    a loss       of (soft codes, images), one value per example
    an estimator what it makes of the loss's gradient, such as a mean over neighbours
    a step rule  an optax.GradientTransformation: the sign, a momentum's sign, SGD, Adam, ...
    a start      the images, a random point of the ball, or one that is given

and `descend` is its loop. A rule and an estimator keep what they like from step to step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from saat_jax import options, perturbation
from saat_jax.attacks.balls import per_image, project
from saat_jax.attacks.code_losses import check_steps, target_loss
from saat_jax.hamming import EncodeFn

Array = jax.Array
# Of (soft codes, adversarial images), `[batch]`.
LossFn = Callable[[Array, Array], Array]
# Of (images, step index).
GradientFn = Callable[[Array, Array], Array]
# Of (images, step index, the rule's state, carry), with the new carry.
Estimate = Callable[[Array, Array, Any, Any], tuple[Array, Any]]


def checked_images(images: Array, **numbers: Any) -> Array:
    """Refuses what is no batch of images, and numbers out of their range, by argument.

    The values of traced images are not known: there an image that is not within [0, 1] becomes
    NaN, and so does what an attack makes of it. The others stay as they are.

    Raises:
        ValueError: naming the argument.
    """
    options.check_numbers(**numbers)
    perturbation.check_images("images", images)
    inside = jnp.all((images >= 0) & (images <= 1), axis=(1, 2, 3), keepdims=True)
    return jnp.where(inside, images, jnp.nan)


def row_keys(rng: Array, num_rows: int) -> Array:
    """One key for each row: `rng` itself if it is `[num_rows]` keys, else folded by row.

    Keys that belong to rows, not to batches, make a random start independent of how the
    images are batched and over how many devices they are spread.

    Raises:
        ValueError: if it is no key, or keys of another number.
    """
    dtype = getattr(rng, "dtype", None)
    new_style = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # A key of JAX's old style is itself an array, of words.
    is_keys = new_style or (dtype == np.uint32 and rng.ndim > 0)
    shape = rng.shape[: rng.ndim - (not new_style)] if is_keys else ()
    if not is_keys or shape not in ((), (num_rows,)):
        got = f"{type(rng).__name__} {rng!r}" if not is_keys else f"keys of shape {shape}"
        raise ValueError(
            "rng must be a key, such as jax.random.key(0), or one key for each of the "
            f"{num_rows} images, got {options.shortened(got, 80)}"
        )
    if shape:
        return rng
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(num_rows))


def uniform_noise(rng: Array, images: Array, *, epsilon: float | Array) -> Array:
    """Noise uniform in [-epsilon, epsilon], drawn with one key for each image.

    Args:
        rng: one key, or `[batch]` keys.
        images: `[batch, height, width, channels]`; gives shape and dtype.
        epsilon: largest magnitude, or `[batch]` of each image.
    """

    def draw(key: Array, radius: float | Array) -> Array:
        return jax.random.uniform(key, images.shape[1:], images.dtype, -radius, radius)

    keys = row_keys(rng, images.shape[0])
    return jax.vmap(draw, (0, 0 if jnp.ndim(epsilon) else None))(keys, epsilon)


def gradient_sign(gradient: Array) -> Array:
    """The sign, and zero where the gradient is not a number, as released: no image is lost."""
    return jnp.where(jnp.isnan(gradient), 0, jnp.sign(gradient))


def _unit(gradient: Array) -> Array:
    """Scales each image's gradient to an L2 norm of 1; a zero gradient stays zero."""
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    return gradient / jnp.where(norms > 0, norms, 1)


class MomentumState(NamedTuple):
    """The momentum of `[batch, ...]` images, and which of them have had a gradient all along."""

    momentum: Array
    moving: Array


def momentum_sign(step_size: float, *, decay: float = 1.0) -> optax.GradientTransformation:
    """Steps along the sign of a momentum of scaled gradients (MI-FGSM).

    In a step, momentum m becomes `decay * m + g / mean|g|`, the mean over the image. An image
    whose gradient is zero once stops there for good: the momentum is 0/0 in the released code,
    whose sign counts as zero.
    """

    def init(images: Array) -> MomentumState:
        return MomentumState(jnp.zeros_like(images), jnp.ones((len(images), 1, 1, 1), bool))

    def update(
        gradient: Array, state: MomentumState, images: Array | None = None
    ) -> tuple[Array, MomentumState]:
        size = jnp.mean(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        moving = state.moving & (size > 0)
        momentum = decay * state.momentum + gradient / jnp.where(moving, size, 1)
        momentum = jnp.where(moving, momentum, 0)
        return -step_size * jnp.sign(momentum), MomentumState(momentum, moving)

    return optax.GradientTransformation(init, update)


def _along(
    direction_fn: Callable[[Array], Array],
) -> Callable[[float], optax.GradientTransformation]:
    """Steps along what a function makes of the gradient."""
    return lambda step_size: optax.stateless(
        lambda gradient, _: -step_size * direction_fn(gradient)
    )


def steepest_l1(step_size: float) -> optax.GradientTransformation:
    """Moves the numbers of steepest gradient to the end of [0, 1], as far as the step lasts.

    Of all steps of a mean size of at most `step_size` that stay in [0, 1], no other lowers a
    straight loss more.
    """

    def update(gradient: Array, state: Any, images: Array | None = None) -> tuple[Array, Any]:
        assert images is not None, "the rooms to the ends of [0, 1] are the images'"
        signs = gradient_sign(gradient)
        flat = (len(images), -1)
        rooms = jnp.where(signs > 0, images, jnp.where(signs < 0, 1 - images, 0)).reshape(flat)
        order = jnp.argsort(-jnp.abs(signs * gradient).reshape(flat))
        sorted_rooms = jnp.take_along_axis(rooms, order, axis=1)
        left = step_size * rooms.shape[1] - (jnp.cumsum(sorted_rooms, axis=1) - sorted_rooms)
        moves = jnp.take_along_axis(jnp.clip(left, 0, sorted_rooms), jnp.argsort(order), axis=1)
        return -signs * moves.reshape(images.shape), state

    return optax.GradientTransformation(lambda images: optax.EmptyState(), update)


def _root_mean_square(gradient: Array) -> Array:
    """Scales each image's gradient to a root mean square of 1; a zero gradient stays zero."""
    return _unit(gradient) * np.sqrt(gradient[0].size)


# By the name of `direction`, the rule of a step size. One of one's own: STEP_RULES.register.
STEP_RULES: options.Choices[Callable[[float], optax.GradientTransformation]] = options.Choices(
    "direction",
    {
        "sign": _along(gradient_sign),
        "raw": _along(lambda gradient: gradient),
        "unit": _along(_unit),
        "momentum": momentum_sign,
        "steepest_l2": _along(_root_mean_square),
        "steepest_l1": steepest_l1,
    },
)


def scaled_rule(
    rule: optax.GradientTransformation, share: float | Array
) -> optax.GradientTransformation:
    """A step rule whose steps are a share as long; or `[batch]` shares, one for each image."""

    def update(gradient: Array, state: Any, images: Any = None) -> tuple[Array, Any]:
        change, state = rule.update(gradient, state, images)
        return change * per_image(share), state

    return optax.GradientTransformation(rule.init, update)


class Descent(NamedTuple):
    """Where a descent is: images, and the state of its rule and of its estimator."""

    images: Array
    rule: Any
    carry: Any


def descend(
    estimate: Estimate,
    images: Array,
    start: Array,
    *,
    rule: optax.GradientTransformation,
    epsilon: float | Array,
    num_steps: int | Array,
    carry: Any = None,
    norm: str = "linf",
) -> Descent:
    """Takes one step after another, each time projected to the ball and [0, 1].

    The one `lax.fori_loop` of all attacks.

    Args:
        estimate: maps (images, step index, the rule's state, carry) to (gradient, new carry).
        images: `[batch, height, width, channels]` centres of the ball.
        start: same shape, where to begin; projected first.
        rule: maps (gradient, its state, images) to (what to add to the images, its new state).
        epsilon: radius of the ball.
        num_steps: number of steps; a traced number compiles once for all values.
        carry: what the estimate keeps from step to step, such as running statistics.
        norm: of the ball, see `project`.

    Returns:
        The final images, the rule's state and the carry: constants for differentiation.

    Raises:
        ValueError: if the start is of another shape, or a number out of its range.
    """
    options.check_numbers(epsilon=epsilon, num_steps=num_steps)
    if np.shape(start) != images.shape or not jnp.issubdtype(start.dtype, jnp.floating):
        raise ValueError(
            f"start must be floats of the images' shape {images.shape}, got {np.shape(start)} of "
            f"{getattr(start, 'dtype', type(start).__name__)}"
        )

    into_ball = functools.partial(project, epsilon=epsilon, norm=norm)

    def body(step: Array, at: Descent) -> Descent:
        gradient, carry = estimate(at.images, step, at.rule, at.carry)
        change, state = rule.update(gradient, at.rule, at.images)
        return Descent(into_ball(at.images + change, images), state, carry)

    start = into_ball(start, images)
    first = Descent(start, rule.init(start), carry)
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, body, first))


def plain(gradient_fn: GradientFn) -> Estimate:
    """The estimate that is the gradient itself."""
    return lambda adversarial, step, _, carry: (gradient_fn(adversarial, step), carry)


def tanh_scales(alphas: Array | np.ndarray | None, num_steps: int) -> Array:
    """The tanh scale by step, 1 without `alphas`; and one beyond the last, since the body of a
    loop without steps is traced all the same.

    Raises:
        ValueError: if there is not one scale for each step, or one is no number from 0.
    """
    check_steps(num_steps)
    schedule = jnp.ones(num_steps) if alphas is None else jnp.asarray(alphas)
    if schedule.shape != (num_steps,):
        raise ValueError(
            f"alphas must hold one scale for each of the {num_steps} steps, "
            f"got shape {schedule.shape}; try alpha_schedule({num_steps})"
        )
    known = schedule.size and not isinstance(schedule, jax.core.Tracer)
    if known and not (float(schedule.min()) >= 0 and np.isfinite(float(schedule.max()))):
        raise ValueError(f"alphas must be numbers of 0 or more, got {options.shortened(schedule)}")
    return jnp.append(schedule, 1)


def minimize(
    loss_fn: LossFn,
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    *,
    rule: optax.GradientTransformation,
    epsilon: float,
    num_steps: int,
    alphas: Array | np.ndarray | None = None,
    start: Array | None = None,
    estimator: Callable[[GradientFn], Estimate] = plain,
    carry: Any = None,
    norm: str = "linf",
) -> Array:
    """Minimises a loss of each image over its ball: what every attack comes down to.

    Args:
        loss_fn: maps (soft codes, adversarial images) to `[batch]` losses. An image's gradient
            is that of its own.
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs; never differentiated.
        images: what `checked_images` returned.
        rule: how to step, such as `STEP_RULES["sign"](1 / 255)` or `optax.adam(0.01)`.
        epsilon: radius of the ball.
        num_steps: number of steps.
        alphas: `[num_steps]` tanh scale of each step; by default 1 throughout.
        start: where to begin, by default at the images.
        estimator: makes the estimate of `descend` from the gradient.
        carry: what the estimate begins with.
        norm: of the ball, see `project`.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].
    """
    schedule = tanh_scales(alphas, num_steps)

    def total_loss(adversarial: Array, step: Array) -> Array:
        soft_codes = encode_fn(variables, adversarial, schedule[step])
        return jnp.sum(loss_fn(soft_codes, adversarial))

    return descend(
        estimator(jax.grad(total_loss)),
        images,
        images if start is None else start,
        rule=rule,
        epsilon=epsilon,
        num_steps=num_steps,
        carry=carry,
        norm=norm,
    ).images


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
    norm: str = "linf",
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
        epsilon: radius of the ball in units of [0, 1], such as `8 / 255`.
        step_size: length of a step, in the same units; for the direction "raw" in units of the
            gradient.
        num_steps: number of steps; the loop is traced once.
        targeted: whether to approach the target codes rather than to leave them.
        loss: the name of a code loss, see `CODE_LOSSES`.
        direction: along what a step goes, see `STEP_RULES`: "sign" the gradient's sign, "raw"
            the gradient itself, "unit" the gradient scaled to an L2 norm of 1 over the image,
            "momentum" the sign of a momentum. "sign", "steepest_l2" and "steepest_l1" are the
            steepest descents of the three norms, of a step size in the norm's own measure.
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        random_start: whether to begin at a random point of the ball rather than at the images.
        start: `[batch, height, width, channels]` images to begin at instead.
        norm: of the ball: "linf", "l2" or "l1", see `project`.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1]. Where
        the arguments are traced, as by `jax.jit`, an image that is not in [0, 1] gives NaN.

    Raises:
        ValueError: naming the argument, if a name is unknown, a number out of its range, an
            array of another shape or type, or what is no image, code or key; `num_steps` must
            not be traced.

    Example:
        >>> encode_fn = lambda variables, images, alpha: jnp.tanh(alpha * images[:, 0, 0] - 0.5)
        >>> images, codes = jnp.full((1, 8, 8, 3), 0.5), jnp.array([[1.0, 1, -1]])
        >>> settings = dict(epsilon=0.25, step_size=0.125, num_steps=2, targeted=False)
        >>> pgd(encode_fn, {}, images, codes, jax.random.key(0), random_start=False, **settings)[
        ...     0, 0, 0
        ... ].tolist()
        [0.25, 0.25, 0.75]

    Reference:
        SAAT, Eq. 12 and 15 and Section IV-A; DHTA for the directions "raw" and "unit".
    """
    images = checked_images(images, epsilon=epsilon, step_size=step_size)
    if start is None and random_start:
        start = images + uniform_noise(rng, images, epsilon=epsilon)
    return minimize(
        target_loss(target_codes, loss=loss, targeted=targeted),
        encode_fn,
        variables,
        images,
        rule=STEP_RULES[direction](step_size),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
        start=start,
        norm=norm,
    )


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

    Its arguments are those of `pgd`, and:

    Args:
        alpha: the tanh scale; 0.1 is that of `alpha_schedule(1)`.

    Reference:
        Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, 2015.
    """
    options.check_numbers(alpha=alpha)
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
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1]; NaN as
        those of `pgd`.

    Reference:
        The noise rows of ProS-GAN's Tables 1 and 4; the range of pixels is this library's.
    """
    del encode_fn, variables, target_codes, targeted
    images = checked_images(images, epsilon=epsilon)
    return project(images + uniform_noise(rng, images, epsilon=epsilon), images, epsilon=epsilon)
