"""Embeddings as vector databases shorten them: centred, rotated, and the signs kept."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks
from saat_jax.encoders.encoder import STRAIGHT, Encoder

Array = jax.Array


def sign_quantized(
    encoder: Encoder,
    *,
    center: np.ndarray | None = None,
    rotation: np.ndarray | None = None,
) -> Encoder:
    """An embedding of which only the signs are stored: those of `(f(x) - center) @ rotation`.

    Its outputs are these numbers, so that `retrieval.rescored` puts a shortlist in order by their
    cosine; a rotation changes no cosine.

    Args:
        encoder: gives the embedding as its outputs.
        center: `[num_dimensions]`, usually the mean over a database; None for zero.
        rotation: `[num_dimensions, num_bits]`; None for none.

    Raises:
        ValueError: if a shape is another.

    Example:
        >>> from saat_jax.encoders import from_jax
        >>> embedding = from_jax(lambda images: images.mean(axis=(1, 2)), image_size=(4, 4))
        >>> signs = sign_quantized(embedding, center=np.array([0.5, 0.5, 0.5]))
        >>> signs.run([np.full((4, 4, 3), (0, 255, 0), np.uint8)])[0].tolist()
        [-0.5, 0.5, -0.5]
    """
    size = encoder.num_bits
    shift = np.zeros(size, np.float32) if center is None else np.asarray(center, np.float32)
    turn = np.eye(size, dtype=np.float32) if rotation is None else np.asarray(rotation, np.float32)
    if shift.shape != (size,) or turn.ndim != 2 or len(turn) != size:
        raise ValueError(
            f"center must be [{size}] and rotation [{size}, num_bits], as the embedding has {size} "
            f"dimensions, got {list(shift.shape)} and {list(turn.shape)}"
        )

    def turned(outputs: Any) -> Any:
        shifted = outputs - shift
        return (
            shifted
            if rotation is None
            else jnp.matmul(shifted, turn, precision=jax.lax.Precision.HIGHEST)
        )

    def encode_fn(variables: Any, images: Array, alpha: Array | float) -> Array:
        embedding = attacks.logits_of(encoder.encode_fn, variables, images, STRAIGHT)
        return jnp.tanh(alpha * turned(embedding))

    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(turned(encoder.run(images)), np.float32)

    made_from = encoder.fingerprint.encode() + shift.tobytes() + turn.tobytes()
    return dataclasses.replace(
        encoder,
        name=f"{encoder.name}, signs",
        num_bits=turn.shape[1],
        encode_fn=encode_fn,
        run=run,
        fingerprint=hashlib.sha256(made_from).hexdigest(),
    )
