"""JAX functions and Flax networks as encoders."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks, networks
from saat_jax.encoders.encoder import STRAIGHT, Encoder, by_shape
from saat_jax.hamming import EncodeFn

Array = jax.Array


def from_jax(
    function: Callable[[Array], Array], *, image_size: tuple[int, int], name: str = "jax"
) -> Encoder:
    """A traceable function as an encoder.

    Args:
        function: maps `[batch, height, width, 3]` float32 images in [0, 1] to `[batch, num_bits]`
            outputs, whose signs are the code.
        image_size: `(height, width)` that it takes.
        name: for tables and records.

    Raises:
        ValueError: if it gives no such outputs.

    Example:
        >>> encoder = from_jax(lambda images: images.mean(axis=(1, 3)) - 0.5, image_size=(8, 8))
        >>> encoder.num_bits, encoder.run([np.zeros((8, 8, 3), np.uint8)])[0, :2].tolist()
        (8, [-0.5, -0.5])
    """
    outputs = jax.jit(function)
    return _create(
        lambda variables, images, alpha: jnp.tanh(alpha * function(images)),
        {},
        lambda variables, images: outputs(images),
        image_size=image_size,
        name=name,
    )


def from_network(
    model: nn.Module, variables: Any, *, image_size: int, name: str = "network"
) -> Encoder:
    """A hash network of Flax as an encoder; its outputs are what tanh is taken of.

    Args:
        model: such as `networks.create_network` gives.
        variables: its parameters and batch statistics.
        image_size: height and width of its images, in pixels.
        name: for tables and records.
    """
    encode_fn = networks.make_encode_fn(model)
    return from_encode_fn(encode_fn, variables, image_size=(image_size, image_size), name=name)


def from_encode_fn(
    encode_fn: EncodeFn, variables: Any, *, image_size: tuple[int, int], name: str
) -> Encoder:
    """What follows the convention of `encode_fn`; its outputs are what tanh is taken of.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what it needs.
        image_size: `(height, width)` that it takes.
        name: for tables and records.
    """
    outputs = jax.jit(lambda v, images: attacks.logits_of(encode_fn, v, images, STRAIGHT))
    return _create(
        encode_fn,
        variables,
        outputs,
        image_size=image_size,
        name=name,
    )


def _create(
    encode_fn: EncodeFn,
    variables: Any,
    outputs_fn: Callable[[Any, Any], Array],
    *,
    image_size: tuple[int, int],
    name: str,
) -> Encoder:
    shape = (1, *image_size, 3)
    grey = jnp.full(shape, 0.5)
    outputs = np.asarray(outputs_fn(variables, grey))
    if outputs.ndim != 2 or len(outputs) != 1 or not np.issubdtype(outputs.dtype, np.floating):
        raise ValueError(
            f"encoder {name!r} must map images {shape} to floats [1, num_bits], got "
            f"{outputs.dtype} {outputs.shape}"
        )

    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        return by_shape(images, lambda batch: outputs_fn(variables, batch), image_size=image_size)

    # A function is known by what it does.
    probe = np.random.default_rng(0).random(shape, np.float32)
    told = [np.asarray(outputs_fn(variables, image)).tobytes() for image in (grey, probe)]
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)]
    return Encoder(
        name=name,
        num_bits=outputs.shape[1],
        encode_fn=encode_fn,
        variables=variables,
        run=run,
        runtime=f"jax {jax.__version__}",
        fingerprint=hashlib.sha256(b"".join([*leaves, *told])).hexdigest(),
        image_size=image_size,
    )
