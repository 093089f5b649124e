"""Searches for the worst image of a ball: Auto-PGD and Square, with an eye on what is wanted.

They are called as `pgd` is, and told by a criterion what counts: of all images on the way, the one
whose code has the highest gain is returned. Losses are of logits, what tanh is taken of, divided
by their usual size: so the scale of a network's output does not matter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from saat_jax import hamming, options
from saat_jax.attacks.auto_pgd import Measured, auto_pgd
from saat_jax.attacks.balls import per_image
from saat_jax.attacks.criteria import Criterion
from saat_jax.attacks.descent import (
    checked_images,
    descend,
    row_keys,
    uniform_noise,
)
from saat_jax.attacks.square import square
from saat_jax.hamming import EncodeFn

Array = jax.Array

# How sharp tanh is at the first and at the last step, of logits of a usual size of one.
_SHARPNESS = (2.0, 8.0)
_SOFT_SHARPNESS = (0.4, 4.0)
_SHARP_SHARPNESS = (1.0, 16.0)
# What the given weights count beside the bits' own gains, at the first and at the last step.
_GIVEN_SHARE = (1.0, 0.03)
# A bit that had better stay counts a third of one that had better flip.
_HOLD = 1 / 3
# Steps between two looks at the bits' gains: more often costs time and finds no more.
_LOOK_EVERY = 8
# Sooner, float32 has no gradient of tanh left.
_NEARLY_ONE = 1 - 1e-7


class LogitScale(NamedTuple):
    """How to get logits out of an encoder; see `logits_of`.

    Attributes:
        alpha: the tanh scale to encode with; small, if the encoder follows it.
        size: the usual size of what arctanh then gives.
    """

    alpha: float
    size: float


class Aim(NamedTuple):
    """What steers a search, of a batch of queries.

    Attributes:
        weights: `[batch, num_bits]`; what is negative for a bit wants it positive.
        rows: what the criterion needs of each query.
    """

    weights: Array
    rows: Any


class Found(NamedTuple):
    """What a search has found of a batch of images.

    Attributes:
        images: `[batch, height, width, channels]` of the highest gain.
        gain: `[batch]` that of their codes.
        first_gain: `[batch]` that of the start.
        settled_gain: `[batch]` the highest when nine of ten steps were taken.
        last_gain: `[batch]` that of the last images.
        blind: `[batch]` whether the first gradient was zero or no number.
    """

    images: Array
    gain: Array
    first_gain: Array
    settled_gain: Array
    last_gain: Array
    blind: Array


def logits_of(
    encode_fn: EncodeFn, variables: chex.ArrayTree, images: Array, scale: LogitScale
) -> Array:
    """What a network takes tanh of, in multiples of its usual size. `[batch, num_bits]`"""
    soft_codes = encode_fn(variables, images, scale.alpha)
    return jnp.arctanh(jnp.clip(soft_codes, -_NEARLY_ONE, _NEARLY_ONE)) / scale.size


def measure_logits(encode_fn: EncodeFn, variables: chex.ArrayTree, images: Array) -> LogitScale:
    """Finds a tanh scale at which an encoder does not saturate, and the size of its logits there.

    An encoder that does not follow the tanh scale is taken as it is.

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes; called a few times.
        variables: what it needs.
        images: `[batch, height, width, channels]` untouched images.
    """
    encoder = jax.jit(encode_fn)

    def median(alpha: float) -> float:
        logits = logits_of(encoder, variables, images, LogitScale(alpha, 1.0))
        return float(jnp.median(jnp.abs(logits)))

    alpha, size = 1.0, median(1.0)
    plain = LogitScale(alpha, size or 1.0)
    # Down to a hundredth, where tanh is straight; what is far above it may be saturated.
    for _ in range(20):
        if not size > 0.02:
            break
        alpha *= 0.01 / min(size, 1.0)
        smaller = median(alpha)
        if size < 1 and smaller > 0.5 * size:
            return plain
        size = smaller
    return LogitScale(alpha, size) if 0 < size <= 0.02 else plain


def _between(ends: tuple[float, float], share: Array | float) -> Array:
    """From the first to the last as a share of the steps is taken, by equal factors."""
    first, last = ends
    return first * jnp.power(last / first, jnp.minimum(share, 1.0))


def weighted_loss(logits: Array, weights: Array, *, sharpness: Array | float) -> Array:
    """Mean of the bits' tanh, each by its weight. `[batch]`

    With mainstay codes as weights it is `mean_loss`; with the unrounded votes a bit on which the
    bank agrees counts more.

    Args:
        logits: `[batch, num_bits]`.
        weights: `[batch, num_bits]`; to be lowered is the agreement with them.
        sharpness: slope of tanh at zero.
    """
    options.check_shapes(logits=(logits, "batch num_bits"), weights=(weights, "batch num_bits"))
    return jnp.mean(weights * jnp.tanh(sharpness * logits), axis=-1)


def hinge_loss(logits: Array, weights: Array, *, num_cheapest: int | Array | None = None) -> Array:
    """Mean of what the bits lack to be on the other side by a margin of one. `[batch]`

    Args:
        logits: `[batch, num_bits]`.
        weights: `[batch, num_bits]`; a bit is won when its logit is of the other sign.
        num_cheapest: only so many bits count, those that lack least; None for all.
    """
    options.check_shapes(logits=(logits, "batch num_bits"), weights=(weights, "batch num_bits"))
    lacking = jax.nn.relu(1 + jnp.sign(weights) * logits)
    if num_cheapest is None:
        return jnp.mean(lacking, axis=-1)
    counts = jnp.arange(lacking.shape[-1]) < num_cheapest
    return jnp.sum(jnp.sort(lacking, axis=-1) * counts, axis=-1) / num_cheapest


def soft_gain_loss(logits: Array, criterion: Criterion, *, sharpness: Array | float) -> Array:
    """The criterion's gain of soft codes, negated. `[batch]`"""
    return -criterion.soft_gain(jnp.tanh(sharpness * logits))


# By the name of `loss`, of (logits, weights, criterion, share of the steps taken). One of one's
# own: SEARCH_LOSSES.register.
SEARCH_LOSSES: options.Choices[Callable[..., Array]] = options.Choices(
    "search loss",
    {
        "weighted": lambda logits, weights, criterion, share: weighted_loss(
            logits, weights, sharpness=_between(_SHARPNESS, share)
        ),
        "hinge": lambda logits, weights, criterion, share: hinge_loss(logits, weights),
        "cheapest": lambda logits, weights, criterion, share: hinge_loss(
            logits, weights, num_cheapest=criterion.num_flips(logits.shape[-1])
        ),
        "plain_gain": lambda logits, weights, criterion, share: -criterion.soft_gain(logits),
        "soft_gain": lambda logits, weights, criterion, share: soft_gain_loss(
            logits, criterion, sharpness=_between(_SOFT_SHARPNESS, share)
        ),
        "sharp_gain": lambda logits, weights, criterion, share: soft_gain_loss(
            logits, criterion, sharpness=_between(_SHARP_SHARPNESS, share)
        ),
    },
)


def flip_weights(criterion: Criterion, codes: Array) -> Array:
    """Weights of bits by what flipping each would gain, at most one in size. `[batch, num_bits]`

    The gradient of the gain in the space of codes, where it is a step function.
    """
    gains = criterion.flip_gains(codes)
    gains = jnp.where(gains < 0, _HOLD * gains, gains)
    return codes * gains / jnp.maximum(jnp.max(jnp.abs(gains), axis=1, keepdims=True), 1e-9)


def auto_pgd_search(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    aim: Aim,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float | Array,
    num_steps: int,
    criterion: Callable[[Any, Any], Criterion],
    shared: Any,
    scale: LogitScale,
    restart: Array | int = 0,
    loss: str = "weighted",
    flips: bool = False,
) -> Found:
    """Takes Auto-PGD's steps from a random point, and keeps the image of the highest gain.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        aim: what steers the search.
        rng: one key, or `[batch]` keys, which make the start of an image its own.
        targeted: not used; the criterion says it.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`; or `[batch]`
            of each image, traced.
        num_steps: number of steps; one more forward and backward pass looks at the last images.
        criterion: makes one, of what all queries share and the aim's rows.
        shared: what it needs beside the rows.
        scale: as of `measure_logits`.
        restart: number of the start.
        loss: one of `SEARCH_LOSSES`.
        flips: whether bits are weighted more and more by what flipping each would gain.

    Reference:
        `auto_pgd` for the steps.
    """
    images, wanted = checked_images(images, epsilon=epsilon), criterion(shared, aim.rows)
    keys = _restart_keys(rng, len(images), restart)
    loss_fn = SEARCH_LOSSES[loss]

    def total_loss(adversarial: Array, step: Array, gains: Array) -> tuple[Array, Any]:
        share = step / max(num_steps, 1)
        logits = logits_of(encode_fn, variables, adversarial, scale)
        weights = aim.weights
        if flips:
            codes = jax.lax.stop_gradient(hamming.binarize(logits))
            look = step % _LOOK_EVERY == 0
            gains = jax.lax.cond(look, lambda: flip_weights(wanted, codes), lambda: gains)
            weights = gains + _between(_GIVEN_SHARE, share) * weights
        losses = loss_fn(logits, weights, wanted, share)
        return jnp.sum(losses), (losses, logits, gains)

    gradient_fn = jax.grad(total_loss, has_aux=True)

    def estimate(adversarial: Array, step: Array, _: Any, carry: Any) -> tuple[Any, Any]:
        found, gains = carry
        gradient, (losses, logits, gains) = gradient_fn(adversarial, step, gains)
        size = jnp.max(jnp.abs(gradient), axis=(1, 2, 3))
        seen = _look(found, adversarial, wanted.gain(logits), step == 0)
        seen = seen._replace(
            settled_gain=jnp.where(step <= 0.9 * num_steps, seen.gain, found.settled_gain),
            blind=jnp.where(step == 0, ~((size > 0) & jnp.isfinite(size)), found.blind),
        )
        return Measured(gradient, losses), (seen, gains)

    carry = _nothing(images), jnp.zeros_like(aim.weights)
    return descend(
        estimate,
        images,
        images + uniform_noise(keys, images, epsilon=epsilon),
        rule=auto_pgd(images, epsilon=epsilon, num_steps=num_steps),
        epsilon=epsilon,
        # The last images are looked at, and what follows them is not.
        num_steps=num_steps + 1,
        carry=carry,
    ).carry[0]


def square_search(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    aim: Aim,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float | Array,
    num_queries: int,
    criterion: Callable[[Any, Any], Criterion],
    shared: Any,
    scale: LogitScale,
    restart: Array | int = 0,
) -> Found:
    """Square on the weighted agreement of logits: what no gradient is needed for.

    Its arguments are those of `auto_pgd_search`, and:

    Args:
        num_queries: how often an image is encoded.
    """
    images, wanted = checked_images(images, epsilon=epsilon), criterion(shared, aim.rows)
    keys = _restart_keys(rng, len(images), restart)

    def loss_fn(adversarial: Array) -> Array:
        logits = logits_of(encode_fn, variables, adversarial, scale)
        return weighted_loss(logits, aim.weights, sharpness=_SHARPNESS[0])

    adversarial, _ = square(loss_fn, images, keys, epsilon=epsilon, num_queries=num_queries)
    gain = wanted.gain(logits_of(encode_fn, variables, adversarial, scale))
    return _look(_nothing(images), adversarial, gain, True)._replace(settled_gain=gain)


def _restart_keys(rng: Array, num_rows: int, restart: Array | int) -> Array:
    """The keys of a start, one for each row."""
    return jax.vmap(jax.random.fold_in, (0, None))(row_keys(rng, num_rows), restart)


def _nothing(images: Array) -> Found:
    none = jnp.full(len(images), -jnp.inf)
    return Found(images, none, none, none, none, none > 0)


def _look(found: Found, images: Array, gain: Array, first: Array | bool) -> Found:
    """What is known after a look at some images."""
    better = gain > found.gain
    return found._replace(
        images=jnp.where(per_image(better), images, found.images),
        gain=jnp.where(better, gain, found.gain),
        first_gain=jnp.where(first, gain, found.first_gain),
        last_gain=gain,
    )
