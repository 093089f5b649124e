"""A smoothed encoder: each bit is what most of an image's noisy copies have."""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options, parallel
from saat_jax.encoders.encoder import STRAIGHT, Encoder

Array = jax.Array

# Noisy copies of an image that are encoded together, and those that a gradient goes through.
_AT_A_TIME, _NUM_SOFT = 64, 8


def draw_outputs(
    encoder: Encoder, *, sigma: float
) -> Callable[[np.ndarray, Array, int], Iterator[np.ndarray]]:
    """Builds what encodes noisy copies of an image, on all devices.

    Args:
        encoder: the encoder; its own JAX function is used, as runtimes take 8-bit images only.
        sigma: deviation of the noise, in units of [0, 1].

    Returns:
        A function of a `[height, width, 3]` uint8 image, its key and the number of draws, which
        yields `[some, num_bits]` outputs. Each draw has a key of its own: neither the number of
        devices nor that of draws changes any.
    """

    @jax.jit
    def encode(variables: Any, image: Array, keys: Array) -> Array:
        noise = jax.vmap(lambda key: jax.random.normal(key, image.shape))(keys)
        copies = image + sigma * noise
        return encoder.encode_fn(variables, copies, STRAIGHT.alpha)

    def draw(image: np.ndarray, key: Array, num_draws: int) -> Iterator[np.ndarray]:
        fold = jax.vmap(functools.partial(jax.random.fold_in, key))
        for first in range(0, num_draws, _AT_A_TIME):
            keys = parallel.split_rows(fold(jnp.arange(first, first + _AT_A_TIME)))
            outputs = encode(encoder.variables, jnp.asarray(image / np.float32(255)), keys)
            yield np.asarray(outputs)[: num_draws - first]

    return draw


def match_votes(
    encoder: Encoder,
    images: Sequence[np.ndarray],
    listed: np.ndarray,
    *,
    radius: int,
    sigma: float,
    num_draws: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The smoothed matcher, of which `certificates.evasion_radius` speaks: it matches above a half.

    Args:
        encoder: the encoder.
        images: each `[height, width, 3]` uint8.
        listed: `[num_listed, num_bits]` outputs for what is listed.
        radius: bits that may differ.
        sigma: deviation of the noise, in units of [0, 1].
        num_draws: noisy copies of an image.
        seed: of the draws, beside the image itself.

    Returns:
        `[num_images, num_listed]` the share of noisy copies within the radius.
    """
    options.check_numbers(sigma=sigma, num_draws=num_draws, seed=seed)
    draw, votes = draw_outputs(encoder, sigma=sigma), []
    codes = np.where(np.asarray(listed) >= 0, 1.0, -1.0).astype(np.float32)
    for image in images:
        outputs = np.concatenate([*draw(image, _key(seed, image), num_draws)])
        agreement = np.where(outputs >= 0, 1.0, -1.0).astype(np.float32) @ codes.T
        votes.append(np.mean((codes.shape[1] - agreement) / 2 <= radius + 0.25, axis=0))
    return np.asarray(votes)


def _key(seed: int, image: np.ndarray) -> Array:
    """The key of an image's draws, by its content."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(image.tobytes()))


def smoothed(encoder: Encoder, *, sigma: float, num_draws: int = 1000, seed: int = 0) -> Encoder:
    """An encoder that answers with the vote of noisy copies: what a certificate of bits is about.

    Its outputs are the share of copies that have a bit less that of those that have not. Slow: an
    image is encoded `num_draws` times. The gradient goes through a few copies.

    Args:
        encoder: the encoder.
        sigma: deviation of the noise, in units of [0, 1].
        num_draws: noisy copies of an image.
        seed: of the draws, beside the image itself.

    Example:
        >>> from saat_jax import encoders
        >>> plain = encoders.from_jax(lambda x: x.mean(axis=(1, 2)) - 0.5, image_size=(4, 4))
        >>> image = np.full((4, 4, 3), 200, np.uint8)
        >>> smoothed(plain, sigma=0.1, num_draws=50).run([image]).tolist()
        [[1.0, 1.0, 1.0]]
    """
    options.check_numbers(sigma=sigma, num_draws=num_draws, seed=seed)
    draw = draw_outputs(encoder, sigma=sigma)

    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        votes = []
        for image in images:
            bits = np.concatenate([*draw(image, _key(seed, image), num_draws)]) >= 0
            votes.append(2 * bits.mean(axis=0) - 1)
        return np.asarray(votes, np.float32)

    def encode_fn(variables: Any, images: Array, alpha: Any) -> Array:
        noise = sigma * jax.random.normal(jax.random.key(seed), (_NUM_SOFT, *images.shape[1:]))
        copies = jax.vmap(lambda one: encoder.encode_fn(variables, images + one, alpha))(noise)
        return jnp.mean(copies, axis=0)

    told = f"{encoder.fingerprint} smoothed by {sigma} {num_draws} {seed}"
    return dataclasses.replace(
        encoder,
        name=f"{encoder.name}, smoothed",
        encode_fn=encode_fn,
        run=run,
        runtime=f"the vote of {num_draws} copies with noise of {sigma:g}",
        fingerprint=hashlib.sha256(told.encode()).hexdigest(),
    )
