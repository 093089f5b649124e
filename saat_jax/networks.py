"""Hash networks: images in [0, 1] in, soft codes `tanh(alpha * f(x))` out.

Each network is a Flax module called as `model.apply(variables, images, alpha, training=None)`.
ImageNet's mean and standard deviation are subtracted inside, so that attacks work on pixels.
Modules are named after torchvision's layers (`features_0`, `classifier_1`), which is how
weights find their place.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
EncodeFn = Callable[[chex.ArrayTree, Array, Array | float], Array]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LAYOUT = ("NHWC", "HWIO", "NHWC")


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv(
    images: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...]
) -> Array:
    """A convolution whose two gradients are themselves written as NHWC/HWIO convolutions.

    XLA's CPU compiler rewrites other layouts only at the top of a program; in the body of a
    loop, where every attack lives, it compiles them to loop nests 4 to 60 times slower.
    """
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _cpu_conv_forward(
    images: Array, kernel: Array, strides: tuple[int, int], padding: tuple[tuple[int, int], ...]
) -> tuple[Array, tuple[Array, Array]]:
    return _cpu_conv(images, kernel, strides, padding), (images, kernel)


def _cpu_conv_backward(
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
    residuals: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    images, kernel = residuals
    image_padding, kernel_padding = [], []
    for axis in (0, 1):
        size, window = images.shape[1 + axis], kernel.shape[axis]
        low = padding[axis][0]
        span = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
        image_padding.append((window - 1 - low, size - span + low))
        kernel_padding.append((low, span + window - 1 - size - low))
    # The input's gradient: the flipped kernel over the gradient, spread by the stride.
    image_gradient = lax.conv_general_dilated(
        gradient,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        image_padding,
        lhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    # The kernel's: the gradient as a kernel over the images, the batch as their channels.
    kernel_gradient = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        kernel_padding,
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    return image_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


def convolve(images: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    """Convolves `[batch, height, width, in]` with `[rows, columns, in, out]`, zero-padded.

    The one switch between the CPU's fast form and the plain one that GPU and TPU compilers
    recognise; both agree to rounding.
    """
    strides, pads = (stride, stride), ((padding, padding),) * 2
    if jax.default_backend() == "cpu":
        return _cpu_conv(images, kernel, strides, pads)
    return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=_LAYOUT)


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for weights and biases: uniform in ±1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Square convolution with PyTorch's arguments, defaults and explicit padding."""

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[batch, height, width, in]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        init = torch_uniform(self.size**2 * images.shape[-1])
        output = convolve(
            images,
            self.param("kernel", init, shape),
            stride=self.stride,
            padding=self.padding,
        )
        return output + self.param("bias", init, (self.features,)) if self.use_bias else output


class Dense(nn.Module):
    """Linear layer with PyTorch's default initialisation."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[batch, in]` to `[batch, features]`."""
        init = torch_uniform(inputs.shape[-1])
        kernel = self.param("kernel", init, (inputs.shape[-1], self.features))
        return inputs @ kernel + self.param("bias", init, (self.features,))


class BatchNorm(nn.Module):
    """Batch normalisation over the real rows of all devices, with PyTorch's statistics.

    Differs from `flax.linen.BatchNorm`: padding is left out by the mask, however unevenly it
    lies over the devices, and the running variance is the unbiased one (SPEC 2.4).
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: Array, training: Training | None) -> Array:
        """Normalises `[batch, height, width, channels]` over all but the last axis."""
        shape = images.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if training is None:
            mean, var = running_mean.value, running_var.value
        else:
            weights = training.mask.reshape(-1, *(1,) * (images.ndim - 1))

            def total(values: Array) -> Array:
                local = jnp.sum(values * weights, axis=tuple(range(images.ndim - 1)))
                return lax.psum(local, training.axis_name) if training.axis_name else local

            count = total(jnp.ones_like(images[..., :1]))
            mean = total(images) / count
            var = total(jnp.square(images - mean)) / count
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        return (images - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias


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


def max_pool(images: Array, *, size: int, stride: int) -> Array:
    """Maximum over square windows, without padding."""
    return nn.max_pool(images, (size, size), (stride, stride))


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


def normalize(images: Array, input_norm: bool) -> Array:
    """Subtracts ImageNet's mean and divides by its standard deviation, if `input_norm`."""
    if not input_norm:
        return images
    return (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


class ConvNet(nn.Module):
    """A small network for small images: normalised convolutions and a global maximum.

    The pooled features are normalised once more before the hash layer: they are all positive,
    and what they have in common would otherwise make all codes alike (on the bundled digits
    MAP then stays near that of random codes).

    Attributes:
        num_bits: code length.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        widths: channels of the convolutions; all but the last are followed by a halving.
    """

    num_bits: int
    input_norm: bool = True
    widths: Sequence[int] = (16, 32, 64, 128)

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        x = normalize(images, self.input_norm)
        for layer, width in enumerate(self.widths):
            x = Conv(width, 3, padding=1, use_bias=False, name=f"conv_{layer}")(x)
            x = nn.relu(BatchNorm(name=f"norm_{layer}")(x, training))
            if layer < len(self.widths) - 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = BatchNorm(name="norm")(jnp.max(x, axis=(1, 2)), training)
        return jnp.tanh(alpha * Dense(self.num_bits, name="hash")(x))


class AlexNet(nn.Module):
    """torchvision's AlexNet with a hash layer in place of the classifier's last.

    Attributes:
        num_bits: code length.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        dropout_rate: share of units dropped before the two hidden linear layers.

    Reference:
        SPEC 2.2. Images of other sizes than 224 pass through torchvision's adaptive average
        pool, which the released code leaves out; at 224 it is the identity.
    """

    num_bits: int
    input_norm: bool = True
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        if min(images.shape[1:3]) < 63:
            raise ValueError(
                f"AlexNet needs images of at least 63 x 63 pixels, got {images.shape[1]} x "
                f"{images.shape[2]}; use the network 'convnet' or a larger image_size"
            )
        x = normalize(images, self.input_norm)
        x = nn.relu(Conv(64, 11, stride=4, padding=2, name="features_0")(x))
        x = max_pool(x, size=3, stride=2)
        x = nn.relu(Conv(192, 5, padding=2, name="features_3")(x))
        x = max_pool(x, size=3, stride=2)
        x = nn.relu(Conv(384, 3, padding=1, name="features_6")(x))
        x = nn.relu(Conv(256, 3, padding=1, name="features_8")(x))
        x = nn.relu(Conv(256, 3, padding=1, name="features_10")(x))
        x = max_pool(x, size=3, stride=2)
        x = flatten_channels_first(adaptive_average_pool(x, 6))
        x = dropout(x, training, rate=self.dropout_rate, layer=0)
        x = nn.relu(Dense(4096, name="classifier_1")(x))
        x = dropout(x, training, rate=self.dropout_rate, layer=1)
        x = nn.relu(Dense(4096, name="classifier_4")(x))
        return jnp.tanh(alpha * Dense(self.num_bits, name="classifier_6")(x))


# The networks a config may name.
NETWORKS: dict[str, type[nn.Module]] = {"alexnet": AlexNet, "convnet": ConvNet}


def create_network(name: str, *, num_bits: int, **options: Any) -> nn.Module:
    """Makes a hash network by name.

    Args:
        name: one of `NETWORKS`.
        num_bits: code length.
        **options: attributes of the network, such as `input_norm` (default True).

    Raises:
        ValueError: if there is no such network or no such option.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {sorted(NETWORKS)}")
    if num_bits < 1:
        raise ValueError(f"num_bits must be at least 1, got {num_bits}")
    known = set(NETWORKS[name].__dataclass_fields__) - {"num_bits", "parent", "name"}
    if unknown := set(options) - known:
        raise ValueError(f"{name} has no option {sorted(unknown)}; it has {sorted(known)}")
    return NETWORKS[name](num_bits=num_bits, **options)


def init_variables(model: nn.Module, rng: Array, *, image_size: int) -> dict[str, Any]:
    """Draws a network's initial "params" and, if it has any, "batch_stats"."""
    return jax.jit(model.init)(rng, jnp.zeros((1, image_size, image_size, 3)))


def make_encode_fn(model: nn.Module) -> EncodeFn:
    """Builds `encode_fn(variables, images, alpha=1.0)`, a network in evaluation mode."""

    def encode_fn(variables: chex.ArrayTree, images: Array, alpha: Array | float = 1.0) -> Array:
        codes: Any = model.apply(variables, images, alpha)
        return codes

    return encode_fn


def forward(
    model: nn.Module,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    images: Array,
    training: Training | None,
) -> tuple[Array, chex.ArrayTree]:
    """Encodes images and returns (soft codes, running statistics after the pass).

    Args:
        model: a hash network.
        params: its parameters.
        batch_stats: its running statistics, empty if it has none.
        images: `[batch, height, width, channels]` in [0, 1].
        training: None for evaluation mode, which leaves the statistics as they are.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    if training is None:
        return make_encode_fn(model)(variables, images, 1.0), batch_stats
    codes: Any
    codes, updated = model.apply(variables, images, training=training, mutable=["batch_stats"])
    return codes, updated.get("batch_stats", batch_stats)


class LoadReport(NamedTuple):
    """What became of a weight file: names of tensors in PyTorch's spelling."""

    loaded: tuple[str, ...]
    left_random: tuple[str, ...]
    unused: tuple[str, ...]


def _from_torch(name: str, weight: np.ndarray) -> np.ndarray:
    """Reorders a tensor: convolutions OIHW to HWIO, linear layers (out, in) to (in, out)."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def load_torch_weights(
    variables: Mapping[str, Any], weights: str | pathlib.Path | Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], LoadReport]:
    """Puts torchvision-style weights into a network's parameters.

    Args:
        variables: the network's variables, such as `init_variables` draws.
        weights: a `.npz` file, or a mapping, from PyTorch names ("features.0.weight", OIHW)
            to arrays of any float dtype; a part of the network, such as its convolutions
            alone, will do.

    Returns:
        New variables in which every tensor found is replaced, and a report of what was
        loaded, what was left at its initial values and what had no place.

    Raises:
        ValueError: if a tensor has another shape than its place, if no tensor fits, or if
            the file is of an unknown kind.
    """
    if not isinstance(weights, Mapping):
        path = pathlib.Path(weights)
        if path.suffix != ".npz":
            raise ValueError(f"expected a .npz file of weights, got {path}")
        with np.load(path) as file:
            weights = dict(file)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    loaded = {}
    for place, value in flat.items():
        name = torch_name(place)
        if name in weights:
            weight = _from_torch(name, np.asarray(weights[name], np.float32))
            if weight.shape != value.shape:
                raise ValueError(
                    f"{name} has shape {weight.shape} in this library's order, the network "
                    f"expects {value.shape}; is it another network, or another num_bits?"
                )
            loaded[place] = jnp.asarray(weight)
    names = {torch_name(place) for place in loaded}
    if not names:
        raise ValueError(
            f"no tensor fits: the weights hold {sorted(weights)[:3]} ..., the network expects "
            f"{sorted(map(torch_name, flat))[:3]} ..."
        )
    report = LoadReport(
        tuple(sorted(names)),
        tuple(sorted(torch_name(place) for place in flat if place not in loaded)),
        tuple(sorted(set(weights) - names)),
    )
    params = flax.traverse_util.unflatten_dict({**flat, **loaded})
    return {**variables, "params": params}, report


def torch_name(place: tuple[str, ...]) -> str:
    """The PyTorch name of a parameter: ("features_0", "kernel") is "features.0.weight"."""
    *modules, leaf = place
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    return ".".join([*(module.replace("_", ".") for module in modules), leaf])
