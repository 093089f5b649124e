"""Perceptual hashes in differentiable JAX, bit for bit what their own libraries give.

Their resizing is inside, so that images have any size. What a library rounds is rounded here too,
with the gradient of what is not rounded.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options
from saat_jax.encoders.encoder import Encoder, check_photos, require

Array = jax.Array

# PDQ: side of the small image, of the block of its cosine transform, and how many box filters.
_PDQ_SIDE, _PDQ_BLOCK, _PDQ_BOXES = 64, 16, 2
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Pillow's: thousandths in 16 bits, and the bits of the weights of its resizing.
_PILLOW_LUMA, _WEIGHT_BITS = (19595, 38470, 7471), 22
_LANCZOS_SUPPORT = 3
_SIDE = 8
_PHASH_SIDE = 32


def pdq() -> Encoder:
    """PDQ, 256 bits, as the package pdqhash computes it.

    Example:
        >>> import jax.numpy as jnp
        >>> encoder = pdq()
        >>> encoder.encode_fn({}, jnp.linspace(0, 1, 80 * 90 * 3).reshape(1, 80, 90, 3), 1.0).shape
        (1, 256)

    Reference:
        Facebook, The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm, 2019.
    """
    return _create("pdq", _PDQ_BLOCK**2, _pdq_outputs, _run_pdq, "pdqhash")


def phash() -> Encoder:
    """The cosine transform's 64 lowest coefficients above their median, as ImageHash's `phash`.

    Where coefficients would be zero but for rounding, as of an image of one colour, the bits are
    the rounding's, and differ from the library's; so are those of `pdq`.
    """
    return _create("phash", _SIDE**2, _phash_outputs, _run_imagehash("phash"), "ImageHash")


def dhash() -> Encoder:
    """Whether an 8 x 9 image grows brighter to the right, 64 bits, as ImageHash's `dhash`."""
    return _create("dhash", _SIDE**2, _dhash_outputs, _run_imagehash("dhash"), "ImageHash")


def ahash() -> Encoder:
    """An 8 x 8 image above its mean, 64 bits, as ImageHash's `average_hash`."""
    return _create("ahash", _SIDE**2, _ahash_outputs, _run_imagehash("average_hash"), "ImageHash")


# By name, what makes the encoder. One of one's own: PERCEPTUAL_HASHES.register.
PERCEPTUAL_HASHES: options.Choices[Callable[[], Encoder]] = options.Choices(
    "perceptual hash", {"pdq": pdq, "phash": phash, "dhash": dhash, "ahash": ahash}
)


def _create(
    name: str,
    num_bits: int,
    outputs_fn: Callable[[Array], Array],
    run: Callable[[Sequence[np.ndarray]], np.ndarray],
    package: str,
) -> Encoder:
    try:
        runtime = f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        runtime = f"{package}, not installed"
    return Encoder(
        name=name,
        num_bits=num_bits,
        encode_fn=lambda variables, images, alpha: jnp.tanh(alpha * outputs_fn(images)),
        variables={},
        run=run,
        runtime=runtime,
        fingerprint=hashlib.sha256(f"{name} by {runtime}".encode()).hexdigest(),
    )


def _run_pdq(images: Sequence[np.ndarray]) -> np.ndarray:
    library = require("pdqhash", "hashes")
    check_photos(images)
    bits = [library.compute(np.ascontiguousarray(image))[0] for image in images]
    return 2 * np.asarray(bits, np.float32) - 1


def _run_imagehash(function: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        library, pillow = require("imagehash", "hashes"), require("PIL.Image", "hashes")
        check_photos(images)
        hashes = [getattr(library, function)(pillow.fromarray(image)) for image in images]
        return 2 * np.asarray([found.hash.ravel() for found in hashes], np.float32) - 1

    return run


def _matmul(a: Any, b: Any) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _above(values: Array, limit: Array) -> Array:
    """What is zero or more exactly where a value lies above the limit, not where it is equal."""
    return values - jnp.nextafter(jax.lax.stop_gradient(limit), jnp.inf)


def _through(rounded: Array, smooth: Array) -> Array:
    """The rounded values, with the gradient of the smooth ones."""
    return smooth + jax.lax.stop_gradient(rounded - smooth)


def _pdq_outputs(images: Array) -> Array:
    """Coefficients above their median. `[batch, 256]`"""
    # Of what is sent, in whole levels.
    levels = _through(jnp.round(255 * images), 255 * images)
    luma = jnp.einsum("bhwc,c->bhw", levels, _LUMA, precision=jax.lax.Precision.HIGHEST)
    rows, columns = _pdq_matrix(images.shape[1]), _pdq_matrix(images.shape[2])
    block = _matmul(_matmul(rows, luma), columns.T).reshape(len(images), -1)
    # Of an even number the lower of the two in the middle.
    median = jnp.sort(block, axis=1)[:, (block.shape[1] - 1) // 2, None]
    # The package gives the last bit first.
    return _above(block, median)[:, ::-1]


@functools.cache
def _pdq_matrix(size: int) -> np.ndarray:
    """From pixels along one side to cosine coefficients: all of it is linear. `[16, size]`"""
    box = _box_matrix(size, -(-size // (2 * _PDQ_SIDE)))
    middles = ((np.arange(_PDQ_SIDE) + 0.5) * size / _PDQ_SIDE).astype(int)
    small = np.linalg.matrix_power(box, _PDQ_BOXES)[middles]
    return (_cosines(_PDQ_BLOCK + 1, _PDQ_SIDE)[1:] @ small).astype(np.float32)


def _box_matrix(size: int, window: int) -> np.ndarray:
    """The mean of a window around each place, of as much of it as is there."""
    behind = (window + 2) // 2
    places = np.arange(size)
    first = np.maximum(places + behind - window, 0)
    last = np.minimum(places + behind, size)
    inside = (places >= first[:, None]) & (places < last[:, None])
    return inside / inside.sum(axis=1, keepdims=True)


def _cosines(num: int, size: int) -> np.ndarray:
    """Rows of the cosine transform, each of a length of one but for the first. `[num, size]`"""
    angles = np.pi / size * np.outer(np.arange(num), np.arange(size) + 0.5)
    return np.sqrt(2 / size) * np.cos(angles)


def _phash_outputs(images: Array) -> Array:
    """Coefficients above their median. `[batch, 64]`"""
    pixels = _pillow_resized(images, _PHASH_SIDE, _PHASH_SIDE)
    # Without the mean, of which only the first coefficient knows, float32 has digits to spare.
    mean = jnp.mean(pixels, axis=(1, 2), keepdims=True)
    cosines = _cosines(_SIDE, _PHASH_SIDE).astype(np.float32)
    block = _matmul(_matmul(cosines, pixels - mean), cosines.T)
    block = block.at[:, 0, 0].set(2 * _PHASH_SIDE * mean[:, 0, 0]).reshape(len(images), -1)
    middle = jnp.sort(block, axis=1)[:, block.shape[1] // 2 - 1 : block.shape[1] // 2 + 1]
    return _above(block, jnp.mean(middle, axis=1, keepdims=True))


def _dhash_outputs(images: Array) -> Array:
    """How much brighter the right one of two neighbours is. `[batch, 64]`"""
    pixels = _pillow_resized(images, _SIDE, _SIDE + 1)
    # Whole levels: as bright is not brighter.
    return (pixels[:, :, 1:] - pixels[:, :, :-1] - 0.5).reshape(len(images), -1)


def _ahash_outputs(images: Array) -> Array:
    """Pixels above their mean. `[batch, 64]`"""
    pixels = _pillow_resized(images, _SIDE, _SIDE).reshape(len(images), -1)
    return _above(pixels, jnp.mean(pixels, axis=1, keepdims=True))


def _pillow_resized(images: Array, height: int, width: int) -> Array:
    """Grey levels as Pillow's conversion and its Lanczos resizing round them.

    Returns:
        `[batch, height, width]` float32 whole numbers.
    """
    levels = 255 * images
    whole = jnp.round(levels).astype(jnp.int32)
    luma = whole @ np.array(_PILLOW_LUMA, np.int32) + (1 << 15) >> 16
    smooth = jnp.einsum("bhwc,c->bhw", levels, _LUMA, precision=jax.lax.Precision.HIGHEST)
    for axis, size in ((2, width), (1, height)):
        if images.shape[axis] == size:
            continue
        weights = _lanczos_weights(images.shape[axis], size)
        half, bits = 1 << (_WEIGHT_BITS - 1), _WEIGHT_BITS
        along = jnp.moveaxis(luma, axis, 2) @ weights.T + half >> bits
        luma = jnp.moveaxis(jnp.clip(along, 0, 255), 2, axis)
        smooth = jnp.moveaxis(
            _matmul(jnp.moveaxis(smooth, axis, 2), weights.T.astype(np.float32) / (1 << bits)),
            2,
            axis,
        )
    return _through(luma.astype(jnp.float32), smooth)


@functools.cache
def _lanczos_weights(size: int, new_size: int) -> np.ndarray:
    """Weights of pixels along one side, as Pillow rounds them. `[new_size, size]` int32"""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = _LANCZOS_SUPPORT * stretch
    centers = (np.arange(new_size)[:, None] + 0.5) * scale
    places = np.arange(size)
    first = np.maximum((centers - support + 0.5).astype(int), 0)
    last = np.minimum((centers + support + 0.5).astype(int), size)
    at = (places + 0.5 - centers) / stretch
    inside = (places >= first) & (places < last) & (np.abs(at) < _LANCZOS_SUPPORT)
    weights = np.where(inside, np.sinc(at) * np.sinc(at / _LANCZOS_SUPPORT), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    scaled = weights * (1 << _WEIGHT_BITS)
    return np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)
