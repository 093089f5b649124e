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

from saat_jax import certificates, lazy, options
from saat_jax.datasets.photos import check_photos
from saat_jax.encoders.encoder import Encoder

Array = jax.Array

# PDQ: side of the small image, of the block of its cosine transform, and the least of an image.
_PDQ_SIDE, _PDQ_BLOCK, _PDQ_LEAST = 64, 16, 5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Pillow's: thousandths in 16 bits, and the bits of the weights of its resizing.
_PILLOW_LUMA, _WEIGHT_BITS = (19595, 38470, 7471), 22
_LANCZOS_SUPPORT = 3
_SIDE = 8
_PHASH_SIDE = 32
# By what an output that ties is below zero: less than any two differ by.
_TIE = 1e-20


def pdq() -> Encoder:
    """PDQ: 256 coefficients of a small image's cosine transform above their median.

    Of images `[batch, height, width, 3]` float32 in [0, 1], as the package pdqhash computes it
    and with its order of bits. Where coefficients would be equal but for rounding, the library's
    bits follow from the order of its additions, and those given here may differ:
    `encoders.parity` counts them. So it is of an image of one colour, of stripes, of a drawing
    that repeats or is symmetric, and of 8 or 16 pixels on a side, not of photos or noise.

    Raises:
        ValueError: by the encoder, of images of fewer than 5 pixels on a side: PDQ has no hash.

    Example:
        >>> encoder = pdq()
        >>> encoder.encode_fn({}, jnp.linspace(0, 1, 80 * 90 * 3).reshape(1, 80, 90, 3), 1.0).shape
        (1, 256)

    Reference:
        Facebook, The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm, 2019.
    """
    return _create("pdq", _PDQ_BLOCK**2, _pdq_outputs, _run_pdq, ["pdqhash"])


def phash() -> Encoder:
    """pHash: the 64 lowest coefficients of a cosine transform above their median.

    Of images `[batch, height, width, 3]` float32 in [0, 1] of any size, as the package ImageHash
    computes `phash` and with its order of bits. Of a drawing of a few rectangles, some
    coefficients would be equal but for rounding; their bits may differ, which `encoders.parity`
    counts.

    Example:
        >>> encoder = phash()
        >>> encoder.encode_fn({}, jnp.linspace(0, 1, 80 * 90 * 3).reshape(1, 80, 90, 3), 1.0).shape
        (1, 64)

    Reference:
        Zauner, Implementation and benchmarking of perceptual image hash functions, 2010.
        Differs from it, as ImageHash does: the mean of the image is one of the coefficients.
    """
    return _create("phash", _SIDE**2, _phash_outputs, _run_imagehash("phash"), _IMAGEHASH)


def dhash() -> Encoder:
    """dHash: whether an image of 8 x 9 pixels grows brighter to the right, 64 bits.

    Of images `[batch, height, width, 3]` float32 in [0, 1] of any size, as the package ImageHash
    computes `dhash` and with its order of bits.

    Example:
        >>> encoder = dhash()
        >>> ramp = jnp.tile(jnp.linspace(0, 1, 90)[:, None], (1, 80, 1, 3))
        >>> encoder.encode_fn({}, ramp, 1.0)[0, :8].round().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    Reference:
        Krawetz, Kind of like that, hackerfactor.com, 2013.
    """
    return _create("dhash", _SIDE**2, _dhash_outputs, _run_imagehash("dhash"), _IMAGEHASH)


def ahash() -> Encoder:
    """aHash: which of 8 x 8 pixels are brighter than their mean, 64 bits.

    Of images `[batch, height, width, 3]` float32 in [0, 1] of any size, as the package ImageHash
    computes `average_hash` and with its order of bits.

    Example:
        >>> encoder = ahash()
        >>> codes = encoder.encode_fn({}, jnp.zeros((1, 80, 90, 3)).at[:, :, 45:].set(1.0), 1.0)
        >>> codes[0, :8].tolist()
        [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]

    Reference:
        Krawetz, Looks like it, hackerfactor.com, 2011.
    """
    return _create("ahash", _SIDE**2, _ahash_outputs, _run_imagehash("average_hash"), _IMAGEHASH)


# Pillow, whose resizing changes with its versions, has a part in these hashes.
_IMAGEHASH = ("ImageHash", "pillow")

# By name, what makes the encoder. One of one's own: PERCEPTUAL_HASHES.register.
PERCEPTUAL_HASHES: options.Choices[Callable[[], Encoder]] = options.Choices(
    "perceptual hash", {"pdq": pdq, "phash": phash, "dhash": dhash, "ahash": ahash}
)


def linear_pdq(height: int, width: int) -> certificates.LinearHash:
    """PDQ of images of a size as what it is: linear functions of grey levels above their median.

    The library adds float32 numbers; the slack is a ten-thousandth of what its sums can be.
    """
    _check_pdq_size(height, width)
    rows, columns = (_pdq_matrix(size)[::-1].astype(float) for size in (height, width))
    largest = 255 * np.outer(np.abs(rows).sum(axis=1), np.abs(columns).sum(axis=1)).ravel()
    return certificates.LinearHash(rows, columns, certificates.lower_median, 1e-4 * largest)


# By name, what makes of a size the linear functions; the others clip and round on the way.
LINEAR_HASHES: options.Choices[Callable[[int, int], certificates.LinearHash]] = options.Choices(
    "linear hash", {"pdq": linear_pdq}
)


def _create(
    name: str,
    num_bits: int,
    outputs_fn: Callable[[Array], Array],
    run: Callable[[Sequence[np.ndarray]], np.ndarray],
    packages: Sequence[str],
) -> Encoder:
    runtime = ", ".join(map(_version, packages))
    return Encoder(
        name=name,
        num_bits=num_bits,
        encode_fn=lambda variables, images, alpha: jnp.tanh(alpha * outputs_fn(images)),
        variables={},
        run=run,
        runtime=runtime,
        fingerprint=hashlib.sha256(f"{name} by {runtime}".encode()).hexdigest(),
    )


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def _run_pdq(images: Sequence[np.ndarray]) -> np.ndarray:
    library = lazy.require("pdqhash")
    check_photos(images)
    for image in images:
        _check_pdq_size(*image.shape[:2])
    bits = [library.compute(np.ascontiguousarray(image))[0] for image in images]
    return 2 * np.asarray(bits, np.float32) - 1


def _run_imagehash(function: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        library, pillow = lazy.require("imagehash"), lazy.require("PIL.Image")
        check_photos(images)
        hashes = [getattr(library, function)(pillow.fromarray(image)) for image in images]
        return 2 * np.asarray([found.hash.ravel() for found in hashes], np.float32) - 1

    return run


def _matmul(a: Any, b: Any) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _above(values: Array, limit: Array) -> Array:
    """What is zero or more exactly where a value lies above the limit, not where it is equal."""
    # No step to the next float: of zero it is so small that processors make it zero again.
    return values - jax.lax.stop_gradient(limit) - _TIE


@jax.custom_jvp
def _through(rounded: Array, smooth: Array) -> Array:
    """The rounded values, with the gradient of the smooth ones.

    By a rule, since the sum of the smooth ones and what rounding adds may be next to a whole
    number.
    """
    return rounded


_through.defjvp(lambda values, tangents: (values[0], tangents[1]))


def _pdq_outputs(images: Array) -> Array:
    """Coefficients above their median. `[batch, 256]`"""
    _check_pdq_size(*images.shape[1:3])
    # Of what is sent, in whole levels.
    levels = _through(jnp.round(255 * images), 255 * images)
    luma = jnp.einsum("bhwc,c->bhw", levels, _LUMA, precision=jax.lax.Precision.HIGHEST)
    rows, columns = _pdq_matrix(images.shape[1]), _pdq_matrix(images.shape[2])
    block = _matmul(_matmul(rows, luma), columns.T).reshape(len(images), -1)
    # Of an even number the lower of the two in the middle.
    median = jnp.sort(block, axis=1)[:, (block.shape[1] - 1) // 2, None]
    # The package gives the last bit first.
    return _above(block, median)[:, ::-1]


def _check_pdq_size(height: int, width: int) -> None:
    if min(height, width) < _PDQ_LEAST:
        raise ValueError(
            f"pdq hashes images of at least {_PDQ_LEAST} x {_PDQ_LEAST} pixels, got {height} x "
            f"{width}"
        )


@functools.cache
def _pdq_matrix(size: int) -> np.ndarray:
    """From pixels along one side to cosine coefficients: all of it is linear. `[16, size]`"""
    box = _box_matrix(size, -(-size // (2 * _PDQ_SIDE)))
    middles = ((np.arange(_PDQ_SIDE) + 0.5) * size / _PDQ_SIDE).astype(int)
    # Twice, as a tent has it; only the rows that are kept.
    small = np.eye(size)[middles] @ box @ box
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
    columns = jnp.swapaxes(_pillow_resized(images, _PHASH_SIDE, _PHASH_SIDE), 1, 2)
    block = _transformed(jnp.swapaxes(_transformed(columns), 1, 2)).reshape(len(images), -1)
    middle = jnp.sort(block, axis=1)[:, block.shape[1] // 2 - 1 : block.shape[1] // 2 + 1]
    return _above(block, jnp.mean(middle, axis=1, keepdims=True))


def _transformed(values: Array) -> Array:
    """The first 8 cosine coefficients along the last axis.

    Of sums and differences of what lies opposite: where nothing varies or all is symmetric, the
    library finds coefficients that are exactly zero, and so they are here.
    """
    half = values.shape[-1] // 2
    cosines = _cosines(_SIDE, 2 * half)[:, :half].T.astype(np.float32)
    mirrored = values[..., ::-1]
    even, odd = (values + mirrored)[..., :half], (values - mirrored)[..., :half]
    # Only the first coefficient knows how bright all is.
    level = even[..., :1]
    brightness = cosines[:, 0].sum() * np.eye(1, _SIDE // 2, dtype=np.float32)
    evens = _matmul(even - level, cosines[:, ::2]) + level * brightness
    both = jnp.stack([evens, _matmul(odd, cosines[:, 1::2])], axis=-1)
    return both.reshape(*values.shape[:-1], _SIDE)


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
    passes = [(2, width), (1, height)]
    # Pillow begins with what makes a tall image smaller, since its version 13.
    if images.shape[1] - height > max(0, 2 * (images.shape[2] - width)):
        passes.reverse()
    for axis, size in passes:
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
