"""Square: random squares of the ball's corners, kept if the loss falls; no gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from saat_jax.attacks.balls import per_image, project
from saat_jax.attacks.descent import row_keys

Array = jax.Array

# Share of the pixels that a square covers at first, and the queries, of 10,000, that halve it.
_FIRST_SHARE = 0.8
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_OF = 10_000


def stripes(rng: Array, images: Array, *, epsilon: float | Array) -> Array:
    """Images with vertical stripes of ±epsilon, by column and channel. `[batch, ...]`"""

    def draw(key: Array, image: Array) -> Array:
        shape = (1, image.shape[1], image.shape[2])
        return jax.random.rademacher(key, shape, image.dtype)

    signs = jax.vmap(draw)(row_keys(rng, len(images)), images)
    return project(images + per_image(epsilon) * signs, images, epsilon=epsilon)


def square(
    loss_fn: Callable[[Array], Array],
    images: Array,
    rng: Array,
    *,
    epsilon: float | Array,
    num_queries: int,
) -> tuple[Array, Array]:
    """Lowers a loss by random squares within the L-infinity ball.

    Args:
        loss_fn: maps images to `[batch]` losses; is never differentiated.
        images: `[batch, height, width, channels]` in [0, 1].
        rng: one key, or `[batch]` keys, which make all draws of an image its own.
        epsilon: radius of the ball in units of [0, 1], or `[batch]` of each image.
        num_queries: how often the loss is asked for; fixes how the squares shrink.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1], and
        their `[batch]` losses.

    Reference:
        Andriushchenko et al., Square attack: a query-efficient black-box adversarial attack via
        random search, ECCV 2020.
    """
    first_keys, next_keys = jax.vmap(jax.random.split, out_axes=1)(row_keys(rng, len(images)))

    def ask(query: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        best, lowest = at
        tried = try_square(best, images, next_keys, query, epsilon=epsilon, num_queries=num_queries)
        losses = loss_fn(tried)
        better = losses < lowest
        return jnp.where(per_image(better), tried, best), jnp.where(better, losses, lowest)

    start = stripes(first_keys, images, epsilon=epsilon)
    return jax.lax.fori_loop(1, num_queries, ask, (start, loss_fn(start)))


def try_square(
    best: Array,
    images: Array,
    keys: Array,
    query: Array | int,
    *,
    epsilon: float | Array,
    num_queries: int,
) -> Array:
    """The images so far, each with another square. `[batch, height, width, channels]`

    Args:
        best: `[batch, height, width, channels]` the images so far.
        images: the same shape, the centres of the balls.
        keys: `[batch]` keys.
        query: its number, from 1.
        epsilon, num_queries: as of `square`.
    """
    height, width, channels = images.shape[1:]
    halved_at = jnp.array(_HALVED_AT) * num_queries / _OF

    def cover(key: Array) -> Array:
        """A square of ±1 by channel on zeros. `[height, width, channels]`"""
        share = _FIRST_SHARE * 0.5 ** jnp.sum(query > halved_at)
        side = jnp.clip(jnp.round(jnp.sqrt(share * height * width)), 1, min(height, width) - 1)
        place_key, sign_key = jax.random.split(jax.random.fold_in(key, query))
        top, left = jnp.floor(
            jax.random.uniform(place_key, (2,)) * (jnp.array([height, width]) - side + 1)
        )
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        signs = jax.random.rademacher(sign_key, (channels,), images.dtype)
        return inside[..., None] * signs

    return project(best + 2 * per_image(epsilon) * jax.vmap(cover)(keys), images, epsilon=epsilon)
