"""The balls around an image that an attack keeps to, and the nearest point of each.

All radii are in pixel units of [0, 1], whatever the norm: for "linf" the largest change of a
number, for "l2" the root of the mean square, for "l1" the mean size. Of an image of n numbers the
Euclidean norm is that times the root of n, and the sum of sizes that times n. So the ball of "linf"
lies in that of "l2", and this in that of "l1", of the same radius.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from saat_jax import options

Array = jax.Array
# Halvings of an interval: as fine as float32 is.
_HALVINGS = 40


def per_image(values: Any) -> Any:
    """`[batch]` values against `[batch, height, width, channels]`; a single one stays."""
    return values if jnp.ndim(values) == 0 else jnp.reshape(values, (-1, 1, 1, 1))


def _reduce(function: Callable[..., Array], change: Array) -> Array:
    """Over the numbers of each image; kept as dimensions."""
    return function(change, axis=tuple(range(1, change.ndim)), keepdims=True)


# By the name of `norm`, the size of `[batch, ...]` changes, `[batch, 1, ...]`.
NORMS: options.Choices[Callable[[Array], Array]] = options.Choices(
    "norm",
    {
        "linf": lambda change: _reduce(jnp.max, jnp.abs(change)),
        "l2": lambda change: jnp.sqrt(_reduce(jnp.mean, jnp.square(change))),
        "l1": lambda change: _reduce(jnp.mean, jnp.abs(change)),
    },
)


def project(
    adversarial: Array, images: Array, *, epsilon: float | Array, norm: str = "linf"
) -> Array:
    """Moves images to the nearest point, by the Euclidean distance, of the ball and of [0, 1].

    Args:
        adversarial: `[batch, height, width, channels]`.
        images: same shape, in [0, 1]: the centres.
        epsilon: radius in units of [0, 1], see above; or `[batch]`, one for each image.
        norm: one of `NORMS`.

    Raises:
        ValueError: if there is no such norm.

    Example:
        >>> project(jnp.array([0.75, -0.25]), jnp.array([0.5, 0.125]), epsilon=0.125).tolist()
        [0.625, 0.0]
        >>> far, images = jnp.array([[0.8, 0.1]]), jnp.array([[0.4, 0.4]])
        >>> [round(x, 3) for x in project(far, images, epsilon=0.25, norm="l2")[0].tolist()]
        [0.683, 0.188]
        >>> [round(x, 3) for x in project(far, images, epsilon=0.25, norm="l1")[0].tolist()]
        [0.7, 0.2]
    """
    size, radius = NORMS[norm], per_image(epsilon)
    if norm == "linf":
        return jnp.clip(jnp.clip(adversarial, images - radius, images + radius), 0, 1)
    change = adversarial - images
    largest = _reduce(jnp.max, jnp.abs(change))

    def shrunk(share: Array) -> Array:
        """A share of the change less; of "l1", a share of the largest change off each."""
        off = share * largest
        less = share * change if norm == "l2" else jnp.clip(change, -off, off)
        return jnp.clip(images + (change - less), 0, 1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        inside = size(shrunk(middle) - images) <= radius
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    ends = jnp.zeros_like(largest), jnp.ones_like(largest)
    _, share = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    whole = jnp.clip(adversarial, 0, 1)
    return jnp.where(size(whole - images) <= radius, whole, shrunk(share))
