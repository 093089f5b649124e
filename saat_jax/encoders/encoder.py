"""What every encoder is: images in, codes out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from saat_jax import attacks
from saat_jax.datasets.photos import check_photos
from saat_jax.hamming import EncodeFn

Array = jax.Array

_AT_A_TIME = 32
# A tanh scale at which tanh is nearly straight, of outputs that are not large.
STRAIGHT = attacks.LogitScale(1e-3, 1e-3)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An image -> code function, with the runtime that has the last word on it.

    Its outputs f(x) are numbers whose signs are the code: logits of a network, coefficients above
    their median, or what is compared by cosine.

    Attributes:
        name: for tables and records.
        num_bits: length of its codes.
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes
            `tanh(alpha * f(x))`; images are `[batch, height, width, 3]` float32 in [0, 1] of one
            size.
        variables: what `encode_fn` needs.
        run: maps images, each `[height, width, 3]` uint8, to `[num_images, num_bits]` float32
            outputs f(x) by the encoder's own runtime; a hash that gives bits gives ±1.
        runtime: name and version of that runtime.
        fingerprint: digest of what the codes depend on, in hexadecimal.
        image_size: `(height, width)` that it takes; None for any, also within one call of `run`.
        differentiable: whether `encode_fn` has a gradient.
    """

    name: str
    num_bits: int
    encode_fn: EncodeFn
    variables: Any
    run: Callable[[Sequence[np.ndarray]], np.ndarray]
    runtime: str
    fingerprint: str
    image_size: tuple[int, int] | None = None
    differentiable: bool = True


def by_shape(
    images: Sequence[np.ndarray],
    outputs_fn: Callable[[np.ndarray], Any],
    *,
    image_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Encodes images of one size together, some at a time.

    Args:
        images: each `[height, width, 3]` uint8.
        outputs_fn: maps `[batch, height, width, 3]` float32 images in [0, 1] to outputs.
        image_size: the only size; None for any.

    Returns:
        `[num_images, num_bits]` float32.

    Raises:
        ValueError: if an image is of another size, or no image, or an output is no number.
    """
    check_photos(images, image_size=image_size)
    shapes = [image.shape for image in images]
    found: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(shapes):
        rows = [row for row, other in enumerate(shapes) if other == shape]
        for first in range(0, len(rows), _AT_A_TIME):
            part = rows[first : first + _AT_A_TIME]
            batch = np.stack([images[row] for row in part]) / np.float32(255)
            found |= zip(part, np.asarray(outputs_fn(batch), np.float32), strict=True)
    outputs = np.stack([found[row] for row in range(len(images))])
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"the encoder gives {np.sum(~np.isfinite(outputs))} values that are no number"
        )
    return outputs


@dataclasses.dataclass(frozen=True)
class Parity:
    """How what is attacked agrees with the encoder's own runtime.

    Attributes:
        num_images: images compared.
        num_bits: bits compared, of all images together.
        bits_differ: of these, how many are not the same.
        images_differ: images with such a bit.
        largest_difference: of the outputs, where the runtime gives more than bits; None else.
    """

    num_images: int
    num_bits: int
    bits_differ: int
    images_differ: int
    largest_difference: float | None


def parity(
    encoder: Encoder, images: Sequence[np.ndarray], outputs: np.ndarray | None = None
) -> Parity:
    """Compares the codes that are attacked with those of the encoder's own runtime.

    Args:
        encoder: the encoder.
        images: each `[height, width, 3]` uint8.
        outputs: what `encoder.run` gives for them, where it is known.
    """
    own = encoder.run(images) if outputs is None else outputs
    encode_fn = jax.jit(encoder.encode_fn)
    # Small, so that tanh is straight.
    alpha = 1e-3 / max(1e-6, float(np.median(np.abs(own))))
    attacked = by_shape(images, lambda batch: encode_fn(encoder.variables, batch, alpha))
    differ = (own >= 0) != (attacked >= 0)
    only_bits = bool(np.all(np.abs(own) == 1))
    found = np.arctanh(np.clip(attacked.astype(np.float64), -1 + 1e-12, 1 - 1e-12)) / alpha
    return Parity(
        num_images=len(images),
        num_bits=differ.size,
        bits_differ=int(differ.sum()),
        images_differ=int(differ.any(axis=1).sum()),
        largest_difference=None if only_bits else float(np.abs(found - own).max()),
    )
