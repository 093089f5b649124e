"""The layers of hash networks, with PyTorch's arguments, statistics and initial values.

Parameters, batch statistics and normalisation are float32. A layer's `dtype` ("float32" or
"bfloat16") is that of its products and of its output.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import options, parallel
from saat_jax.networks import cpu

Array = jax.Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Mean and standard deviation of the pixels, by whose they are.
STATISTICS = options.Choices(
    "statistics",
    {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        # Of Inception, of the first vision transformers and of SigLIP.
        "half": ((0.5,) * 3, (0.5,) * 3),
        "clip": (
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    },
)


@flax.struct.dataclass
class Training:
    """What a forward pass in training mode needs besides the images.

    Attributes:
        keys: `[batch]` random keys of the rows, for dropout; so a row's mask depends neither
            on its batch mates nor on the device that holds it.
        mask: `[batch]` 1 for real rows, 0 for padding, which no statistic must see.
        axis_name: the mapped axis over which batch statistics are shared, if any.
    """

    keys: Array
    mask: Array
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)


def convolve(images: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    """Convolves `[batch, height, width, in]` with `[rows, columns, in, out]`, zero-padded.

    `parallel.on_cpu` switches, here, in `dense` and in `max_pool`, between the CPU's fast forms
    and the plain ones, which GPU and TPU compilers recognise; they agree to rounding.
    """
    if kernel.shape[:2] == (stride, stride) and padding == 0:
        return _convolve_patches(images, kernel)
    if parallel.on_cpu():
        return cpu.convolve(images, kernel, stride, padding)
    pads, layout = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=layout
    )


def _convolve_patches(images: Array, kernel: Array) -> Array:
    """A convolution whose windows lie side by side: one product for all of them."""
    size, _, channels, features = kernel.shape
    batch, rows, columns = len(images), images.shape[1] // size, images.shape[2] // size
    whole = images[:, : rows * size, : columns * size]
    patches = whole.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    products = dense(patches.reshape(batch * rows * columns, -1), kernel.reshape(-1, features))
    return products.reshape(batch, rows, columns, features)


def dense(inputs: Array, kernel: Array) -> Array:
    """Multiplies `[..., in]` by `[in, out]`."""
    if not parallel.on_cpu():
        return inputs @ kernel
    rows = inputs.reshape(-1, inputs.shape[-1])
    return cpu.dense(rows, kernel).reshape(*inputs.shape[:-1], kernel.shape[1])


def avg_pool(images: Array) -> Array:
    """Averages 2x2 windows of `[batch, height, width, channels]`; an odd last line is left out."""
    batch, height, width, channels = images.shape
    rows, columns = height // 2, width // 2
    even = images[:, : 2 * rows, : 2 * columns]
    # Not nn.avg_pool, whose gradient is a fifth of an attack's step on a CPU.
    return even.reshape(batch, rows, 2, columns, 2, channels).mean((2, 4))


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for weights and biases: uniform in ±1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


Initializers = tuple[nn.initializers.Initializer, nn.initializers.Initializer]
# By name, of a weight and a bias, from the number of inputs of an output.
INITIALIZERS: options.Choices[Callable[[int], Initializers]] = options.Choices(
    "initialisation",
    {
        "torch": lambda fan_in: (torch_uniform(fan_in), torch_uniform(fan_in)),
        "normal": lambda _: (nn.initializers.normal(0.01), nn.initializers.zeros),
        "he": lambda _: (
            nn.initializers.variance_scaling(2, "fan_out", "normal"),
            nn.initializers.zeros,
        ),
        "vit": lambda _: (nn.initializers.truncated_normal(0.02), nn.initializers.zeros),
    },
)


def weight_and_bias_init(name: str, shape: Sequence[int]) -> Initializers:
    """The initialisers of a layer's weight and bias.

    Args:
        name: "torch", PyTorch's default for both; "normal", N(0, 0.01^2) and zeros, as in
            torchvision's VGG classifier and in many hash layers; "he", N(0, 2 / fan_out) and
            zeros, as in torchvision's VGG and ResNet convolutions; or "vit", N(0, 0.02^2) within
            two deviations and zeros, as in timm's vision transformers.
        shape: of the weight, inputs before outputs: (in, out) or (rows, columns, in, out).

    Raises:
        ValueError: if there is no such name.
    """
    return INITIALIZERS[name](math.prod(shape[:-1]))


class Conv(nn.Module):
    """Square convolution with PyTorch's arguments and explicit padding.

    Attributes:
        features: output channels.
        size: rows and columns of the kernel.
        stride: step between windows.
        padding: zeros on every side.
        use_bias: whether a bias is added.
        initializer: a name that `weight_and_bias_init` knows.
        dtype: "float32" or "bfloat16".
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    initializer: str = "torch"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[batch, height, width, in]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel_init, bias_init = weight_and_bias_init(self.initializer, shape)
        output = convolve(
            images.astype(self.dtype),
            self.param("kernel", kernel_init, shape).astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )
        if not self.use_bias:
            return output
        return output + self.param("bias", bias_init, (self.features,)).astype(self.dtype)


class Dense(nn.Module):
    """Linear layer; attributes as those of `Conv`."""

    features: int
    initializer: str = "torch"
    dtype: str = "float32"
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[..., in]` to `[..., features]`."""
        shape = (inputs.shape[-1], self.features)
        kernel_init, bias_init = weight_and_bias_init(self.initializer, shape)
        kernel = self.param("kernel", kernel_init, shape).astype(self.dtype)
        output = dense(inputs.astype(self.dtype), kernel)
        if not self.use_bias:
            return output
        return output + self.param("bias", bias_init, (self.features,)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over the real rows of all devices, with PyTorch's statistics.

    Differs from `flax.linen.BatchNorm`: padding is left out by the mask, however unevenly it
    lies over the devices, and the running variance is the unbiased one.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: Array, training: Training | None) -> Array:
        """Normalises `[batch, height, width, channels]` over all but the last axis.

        The output has the dtype of the input; what lies between is float32.
        """
        dtype, images = images.dtype, images.astype(jnp.float32)
        shape = images.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if training is None:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var, unbiased = parallel.batch_moments(images, training.mask, training.axis_name)
            if not self.is_initializing():
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        output = (images - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
        return output.astype(dtype)


def dropout(inputs: Array, training: Training | None, *, rate: float, layer: int) -> Array:
    """Zeroes a share `rate` of each row and scales up the rest; identity in evaluation.

    Args:
        inputs: `[batch, ...]`.
        training: gives the rows' keys; None for evaluation mode.
        rate: share of entries set to zero, in [0, 1).
        layer: number of the dropout layer in its network, which makes masks differ.
    """
    if training is None or rate == 0:
        return inputs

    def keep(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, inputs.shape[1:])

    return jnp.where(jax.vmap(keep)(training.keys), inputs / (1 - rate), 0)


def max_pool(images: Array, *, size: int, stride: int, padding: int = 0) -> Array:
    """Maximum over square windows; what lies outside is minus infinity."""
    if parallel.on_cpu():
        return cpu.max_pool(images, size, stride, padding)
    return nn.max_pool(images, (size, size), (stride, stride), ((padding, padding),) * 2)


def adaptive_average_pool(images: Array, size: int) -> Array:
    """Averages `[batch, height, width, channels]` to `size` by `size` as torchvision does.

    Cell i of an axis of n covers rows floor(i n / size) up to ceil((i + 1) n / size); at
    `size` rows it is the identity.
    """

    def weights(length: int) -> np.ndarray:
        cells = np.zeros((size, length), np.float32)
        for cell in range(size):
            rows = slice(cell * length // size, -(-(cell + 1) * length // size))
            cells[cell, rows] = 1 / (rows.stop - rows.start)
        return cells

    if images.shape[1:3] == (size, size):
        return images
    _, height, width, _ = images.shape
    return jnp.einsum("bhwc,ih,jw->bijc", images, weights(height), weights(width))


def flatten_channels_first(images: Array) -> Array:
    """Flattens `[batch, height, width, channels]` in PyTorch's order of (C, H, W)."""
    return images.transpose(0, 3, 1, 2).reshape(images.shape[0], -1)


def normalize(images: Array, input_norm: bool, statistics: str = "imagenet") -> Array:
    """Subtracts the mean and divides by the deviation of `STATISTICS`, if `input_norm`."""
    if not input_norm:
        return images
    mean, std = STATISTICS[statistics]
    return (images - jnp.array(mean)) / jnp.array(std)
