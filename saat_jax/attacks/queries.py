"""Attacks that see answers, not weights: each a generator that asks for images and is told gains.

    game = square_game(images, rng, epsilon=8 / 255, num_queries=1000)
    tried = next(game)
    while True:
        tried = game.send(gains_of(tried))

It yields `[batch, num, height, width, channels]` float32 images in [0, 1], and is sent the
`[batch, num]` gains of them, the higher the better, above zero where the attacker has what is
wanted; -inf where nothing was asked. Whoever drives it counts, and stops. What it asks for depends
on its key and on what it was told, and on nothing else: told the same again, it does the same.
"""

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saat_jax import options
from saat_jax.attacks.balls import project
from saat_jax.attacks.descent import row_keys
from saat_jax.attacks.square import stripes, try_square

Array = jax.Array
Game = Generator[np.ndarray, np.ndarray, None]

# Side of the grid that NES draws its noise on.
_GRID = 32
# Of HopSkipJump: probes of the first round, and of any; halvings of a line, and of a step.
_PROBES, _MAX_PROBES, _HALVINGS, _RETREATS = 20, 200, 8, 6
_LEVEL = 1 / 255


def square_game(images: Array, rng: Array, *, epsilon: float, num_queries: int) -> Game:
    """Square, as `square`: random squares of the ball's corners, one a query.

    Args:
        images: `[batch, height, width, channels]` in [0, 1].
        rng: one key, or `[batch]` keys.
        epsilon: radius of the L-infinity ball in units of [0, 1].
        num_queries: the budget; fixes how the squares shrink.
    """
    keys = row_keys(rng, len(images))
    first_keys, next_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    best = stripes(first_keys, images, epsilon=epsilon)
    highest = (yield np.asarray(best)[:, None])[:, 0]
    propose = jax.jit(
        lambda best, query: try_square(
            best, images, next_keys, query, epsilon=epsilon, num_queries=num_queries
        )
    )
    query = 1
    while True:
        tried = propose(best, query)
        gains = (yield np.asarray(tried)[:, None])[:, 0]
        better = gains > highest
        best = jnp.where(better[:, None, None, None], tried, best)
        highest = np.where(better, gains, highest)
        query += 1


def gradient_game(
    images: Array,
    rng: Array,
    *,
    epsilon: float,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Array, tuple[int, ...]], Array],
    spread: float = 0.5,
    num_pairs: int = 10,
) -> Game:
    """Climbs by gradients that are estimated from pairs of opposite noise.

    `nes_game` and `spsa_game` are this with their noise and step. All images lie in the ball. The
    noise is large, as gains of whole bits do not change by a little; pairs that tell nothing move
    nothing.

    Args:
        images: `[batch, height, width, channels]` in [0, 1].
        rng: one key, or `[batch]` keys.
        epsilon: radius of the L-infinity ball in units of [0, 1].
        optimizer: makes steps of estimates of the gradient that is to be descended.
        draw: makes noise of about unit size of a key, for the shape of an image.
        spread: size of the noise, as a share of `epsilon`.
        num_pairs: pairs of images for an estimate.
    """
    keys, sigma = row_keys(rng, len(images)), spread * epsilon

    @jax.jit
    def probe(at: Array, step: Array) -> tuple[Array, Array]:
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        shape = (num_pairs, *images.shape[1:])
        noise = jax.vmap(lambda key: draw(key, shape))(step_keys)
        signs = jnp.concatenate([noise, -noise], axis=1)
        tried = jax.vmap(functools.partial(project, epsilon=epsilon), (1, None), 1)(
            at[:, None] + sigma * signs, images
        )
        return noise, tried

    @jax.jit
    def move(at: Array, state: Any, noise: Array, gains: Array) -> tuple[Array, Any]:
        ahead, behind = jnp.split(gains, 2, axis=1)
        # What was not asked tells nothing.
        apart = jnp.where(jnp.isfinite(ahead) & jnp.isfinite(behind), ahead - behind, 0)
        slope = jnp.einsum("bp,bphwc->bhwc", apart, noise) / (2 * sigma * num_pairs)
        steps, state = optimizer.update(-slope, state)
        return project(optax.apply_updates(at, steps), images, epsilon=epsilon), state

    at, state = images, optimizer.init(images)
    step = 0
    while True:
        noise, tried = probe(at, step)
        gains = yield np.asarray(tried)
        at, state = move(at, state, noise, jnp.asarray(gains))
        step += 1


def _smooth_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Normal noise on a coarse grid, drawn large. `[num, height, width, channels]`"""
    num, height, width, channels = shape
    grid = (num, min(_GRID, height), min(_GRID, width), channels)
    return jax.image.resize(jax.random.normal(key, grid), shape, "linear")


def nes_game(images: Array, rng: Array, *, epsilon: float, num_queries: int) -> Game:
    """NES: smooth normal noise, signed steps of an eighth of the ball; arguments as `square_game`.

    Reference:
        Ilyas et al., Black-box adversarial attacks with limited queries and information, ICML 2018.
    """
    del num_queries
    optimizer = optax.sign_sgd(epsilon / 8)
    return gradient_game(
        images, rng, epsilon=epsilon, optimizer=optimizer, draw=_smooth_noise, spread=0.5
    )


def spsa_game(images: Array, rng: Array, *, epsilon: float, num_queries: int) -> Game:
    """SPSA: noise of signs, steps of Adam; arguments as of `square_game`.

    Reference:
        Uesato et al., Adversarial risk and the dangers of evaluating against weak attacks, ICML
        2018.
    """
    del num_queries
    optimizer = optax.adam(epsilon / 8)
    return gradient_game(
        images, rng, epsilon=epsilon, optimizer=optimizer, draw=jax.random.rademacher, spread=1.0
    )


def hop_skip_jump_game(images: Array, starts: Array, rng: Array) -> Game:
    """HopSkipJump for the largest change of a pixel: only whether the gain is above zero counts.

    From images that have what is wanted, however far away, towards `images` along the border. Each
    round halves the line to the border, asks on which side of it noisy copies lie, and jumps along
    the estimated normal. Noise is never below two grey levels, which 8-bit images would not show;
    images that were not asked lie on the wrong side.

    Args:
        images: `[batch, height, width, channels]` in [0, 1].
        starts: the same shape, images that have what is wanted.
        rng: one key, or `[batch]` keys.

    Reference:
        Chen et al., HopSkipJumpAttack: a query-efficient decision-based attack, S&P 2020.
    """
    keys = row_keys(rng, len(images))
    origin = np.asarray(images, np.float32)

    def wide(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *(1,) * (origin.ndim - 1))

    def clipped(at: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.clip(at, origin - wide(size), origin + wide(size))

    def size_of(at: np.ndarray) -> np.ndarray:
        return np.abs(at - origin).max(axis=(1, 2, 3))

    def to_border(at: np.ndarray) -> Generator[np.ndarray, np.ndarray, np.ndarray]:
        """Nearer to the images, as long as it has what is wanted."""
        low, high = np.zeros(len(at), np.float32), size_of(at)
        best = at
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried = clipped(at, middle)
            inside = (yield tried[:, None])[:, 0] > 0
            best = np.where(wide(inside), tried, best)
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        return best

    @functools.partial(jax.jit, static_argnums=1)
    def signs(round_number: int, num: int) -> Array:
        def draw(key: Array) -> Array:
            folded = jax.random.fold_in(key, round_number)
            return jax.random.rademacher(folded, (num, *origin.shape[1:]), jnp.float32)

        return jax.vmap(draw)(keys)

    at = np.asarray(starts, np.float32)
    at = yield from to_border(at)
    round_number = 1
    while True:
        num = min(int(_PROBES * np.sqrt(round_number)), _MAX_PROBES)
        noise = np.asarray(signs(round_number, num))
        size = size_of(at)
        reach = np.maximum(0.1 * size, 2 * _LEVEL).astype(np.float32)
        tried = np.clip(at[:, None] + reach[:, None, None, None, None] * noise, 0, 1)
        done = np.where((yield tried) > 0, 1.0, -1.0)
        mean = done.mean(axis=1, keepdims=True)
        # All on one side: towards or away from all of them.
        weights = np.where(np.abs(mean) == 1, done, done - mean).astype(np.float32)
        direction = np.sign(np.einsum("bn,bnhwc->bhwc", weights, noise))
        step = (size / np.sqrt(round_number)).astype(np.float32)
        jumped, landed = at, np.zeros(len(at), bool)
        for _ in range(_RETREATS):
            tried_step = np.clip(at + wide(step) * direction, 0, 1)
            done_now = (yield np.where(wide(landed), jumped, tried_step)[:, None])[:, 0] > 0
            jumped = np.where(wide(done_now & ~landed), tried_step, jumped)
            landed |= done_now
            step = step / 2
        nearer = yield from to_border(jumped)
        at = np.where(wide(size_of(nearer) < size_of(at)), nearer, at)
        round_number += 1


# By name, those that climb gains within a ball.
GAMES: options.Choices[Callable[..., Game]] = options.Choices(
    "query attack", {"square": square_game, "nes": nes_game, "spsa": spsa_game}
)
