"""The tiny hash network of the golden vectors, and its weights in PyTorch's layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import networks

Array = jax.Array


class TinyNet(nn.Module):
    """Two strided convolutions and a linear layer; called as the networks of the library.

    It has no dropout, no batch statistics and no input normalisation.
    """

    num_bits: int
    widths: Sequence[int] = (8, 16)

    @nn.compact
    def __call__(
        self,
        images: Array,
        alpha: Array | float = 1.0,
        *,
        training: networks.Training | None = None,
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        x = images
        for layer, width in enumerate(self.widths, start=1):
            x = nn.relu(networks.Conv(width, 3, stride=2, padding=1, name=f"conv{layer}")(x))
        # As the golden linear weights expect it: (C, H, W) order.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        return jnp.tanh(alpha * networks.Dense(self.num_bits, name="fc")(x))


def tiny_net(weights: Mapping[str, np.ndarray]) -> TinyNet:
    """The network that has weights of these shapes."""
    widths = tuple(weights[f"conv{layer}.bias"].size for layer in (1, 2))
    return TinyNet(weights["fc.bias"].size, widths)


def tiny_variables(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables from weights such as `case.group("w0.")`: "conv1.weight" OIHW, ... ."""
    params: dict[str, dict[str, Array]] = {}
    for name, value in weights.items():
        layer, kind = name.split(".")
        order = (2, 3, 1, 0) if value.ndim == 4 else tuple(range(value.ndim))[::-1]
        leaf = {"weight": "kernel", "bias": "bias"}[kind]
        params.setdefault(layer, {})[leaf] = jnp.asarray(value.transpose(order))
    return {"params": params}


def tiny_weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The way back of `tiny_variables`, for parameters or gradients."""
    weights = {}
    for (layer, leaf), value in flax.traverse_util.flatten_dict(dict(params)).items():
        value = np.asarray(value)
        order = (3, 2, 0, 1) if value.ndim == 4 else tuple(range(value.ndim))[::-1]
        kind = {"kernel": "weight", "bias": "bias"}[leaf]
        weights[f"{layer}.{kind}"] = value.transpose(order)
    return weights


def random_weights(seed: int, *, num_bits: int, image_size: int) -> dict[str, np.ndarray]:
    """Weights of a `TinyNet` for square images of this size, without compiling an `init`."""
    rng = np.random.default_rng(seed)
    flat = 16 * (-(-image_size // 4)) ** 2
    shapes = {"conv1": (8, 3, 3, 3), "conv2": (16, 8, 3, 3), "fc": (num_bits, flat)}
    weights = {}
    for name, shape in shapes.items():
        bound = float(np.prod(shape[1:])) ** -0.5
        weights[f"{name}.weight"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights[f"{name}.bias"] = rng.uniform(-bound, bound, shape[0]).astype(np.float32)
    return weights
