"""The hash networks: one class for each family, with torchvision's layers.

Each is a Flax module called as `model.apply(variables, images, alpha, training=None)`. Images
are in [0, 1]: ImageNet's mean and standard deviation are applied inside, so that attacks work
on pixels. The codes are `tanh(alpha * y)` of the hash layer's output y, in float32. Modules are
named after torchvision's layers (`features_0`, `classifier_1`, `layer1_0`), which is how
weights find their place.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from saat_jax.networks import layers
from saat_jax.networks.layers import BatchNorm, Conv, Dense, Training

Array = jax.Array


def _check_size(images: Array, network: str, smallest: int) -> None:
    if min(images.shape[1:3]) < smallest:
        raise ValueError(
            f"{network} needs images of at least {smallest} x {smallest} pixels, got "
            f"{images.shape[1]} x {images.shape[2]}; use the network 'convnet' or a larger "
            "image_size"
        )


def _remat(network: nn.Module, function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a part of a network; with `remat` its gradient computes its activations anew."""
    if not network.remat:
        return function(x)
    return nn.remat(lambda _, x: function(x))(network, x)


class ConvNet(nn.Module):
    """A small network for small images: normalised convolutions and a global maximum.

    The pooled features are normalised once more before the hash layer: they are all positive,
    and what they have in common would otherwise make all codes alike (on the bundled digits
    MAP then stays near that of random codes).

    Attributes:
        num_bits: code length.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        hash_init: initial values of the hash layer: "torch" or "normal".
        dtype: of all before the hash layer: "float32" or "bfloat16".
        remat: whether gradients compute most of the activations anew instead of keeping them.
        widths: channels of the convolutions; all but the last are followed by average pooling.
    """

    num_bits: int
    input_norm: bool = True
    hash_init: str = "torch"
    dtype: str = "float32"
    remat: bool = False
    widths: Sequence[int] = (16, 32, 64, 128)

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        _check_size(images, "ConvNet", 2 ** (len(self.widths) - 1))
        x = layers.normalize(images, self.input_norm)

        def stage(x: Array, number: int, width: int) -> Array:
            conv = Conv(
                width, 3, padding=1, use_bias=False, dtype=self.dtype, name=f"conv_{number}"
            )
            x = nn.relu(BatchNorm(name=f"norm_{number}")(conv(x), training))
            return layers.avg_pool(x) if number < len(self.widths) - 1 else x

        for number, width in enumerate(self.widths):
            x = _remat(self, functools.partial(stage, number=number, width=width), x)
        x = BatchNorm(name="norm")(jnp.max(x, axis=(1, 2)), training)
        return jnp.tanh(alpha * Dense(self.num_bits, self.hash_init, name="hash")(x))


class AlexNet(nn.Module):
    """torchvision's AlexNet with a hash layer in place of the classifier's last.

    Attributes:
        num_bits: code length.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        hash_init: initial values of the hash layer: "torch" or "normal".
        dtype: of all before the hash layer: "float32" or "bfloat16".
        remat: whether gradients compute most of the activations anew instead of keeping them.
        dropout_rate: share of units dropped before the two hidden linear layers.
        widths: channels of the five convolutions.
        hidden: units of the two hidden linear layers.

    Reference:
        Released with SAAT and ProS-GAN. Images of other sizes than 224 pass through
        torchvision's adaptive average pool, which the released code leaves out; at 224 it is
        the identity.
    """

    num_bits: int
    input_norm: bool = True
    hash_init: str = "torch"
    dtype: str = "float32"
    remat: bool = False
    dropout_rate: float = 0.5
    widths: Sequence[int] = (64, 192, 384, 256, 256)
    hidden: int = 4096

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        _check_size(images, "AlexNet", 63)
        conv = functools.partial(Conv, dtype=self.dtype)
        dense = functools.partial(Dense, dtype=self.dtype)
        dropout = functools.partial(layers.dropout, training=training, rate=self.dropout_rate)
        widths = self.widths
        x = layers.normalize(images, self.input_norm)

        def stage_0(x: Array) -> Array:
            x = conv(widths[0], 11, stride=4, padding=2, name="features_0")(x)
            return nn.relu(layers.max_pool(x, size=3, stride=2))

        def stage_1(x: Array) -> Array:
            x = conv(widths[1], 5, padding=2, name="features_3")(x)
            return nn.relu(layers.max_pool(x, size=3, stride=2))

        def stage_2(x: Array) -> Array:
            x = nn.relu(conv(widths[2], 3, padding=1, name="features_6")(x))
            x = nn.relu(conv(widths[3], 3, padding=1, name="features_8")(x))
            x = conv(widths[4], 3, padding=1, name="features_10")(x)
            return nn.relu(layers.max_pool(x, size=3, stride=2))

        for stage in (stage_0, stage_1, stage_2):
            x = _remat(self, stage, x)
        x = layers.flatten_channels_first(layers.adaptive_average_pool(x, 6))
        x = nn.relu(dense(self.hidden, name="classifier_1")(dropout(x, layer=0)))
        x = nn.relu(dense(self.hidden, name="classifier_4")(dropout(x, layer=1)))
        return jnp.tanh(alpha * Dense(self.num_bits, self.hash_init, name="classifier_6")(x))


class VGG(nn.Module):
    """torchvision's VGG with a hash layer in place of the classifier's last.

    Attributes:
        num_bits: code length.
        stages: for each of five stages, its number of convolutions; max pooling ends it.
        batch_norm: whether convolutions are followed by batch normalisation.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        hash_init: initial values of the hash layer: "torch" or "normal".
        dtype: of all before the hash layer: "float32" or "bfloat16".
        remat: whether gradients compute most of the activations anew instead of keeping them.
        dropout_rate: share of units dropped after the two hidden linear layers.
        widths: channels of the stages.
        hidden: units of the two hidden linear layers.

    Reference:
        Released with SAAT and ProS-GAN. Images of other sizes than 224 pass through
        torchvision's adaptive average pool, which the released code leaves out; at 224 it is
        the identity.
    """

    num_bits: int
    stages: Sequence[int]
    batch_norm: bool = False
    input_norm: bool = True
    hash_init: str = "torch"
    dtype: str = "float32"
    remat: bool = False
    dropout_rate: float = 0.5
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    hidden: int = 4096

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        _check_size(images, "VGG", 32)
        conv = functools.partial(Conv, size=3, padding=1, initializer="he", dtype=self.dtype)
        dense = functools.partial(Dense, self.hidden, "normal", self.dtype)
        dropout = functools.partial(layers.dropout, training=training, rate=self.dropout_rate)
        x = layers.normalize(images, self.input_norm)

        def stage(x: Array, number: int, num_convs: int, width: int) -> Array:
            for index in range(num_convs):
                x = nn.relu(x) if index > 0 else x
                x = conv(width, name=f"features_{number}")(x)
                if self.batch_norm:
                    number += 1
                    x = BatchNorm(name=f"features_{number}")(x, training)
                number += 2
            return nn.relu(layers.max_pool(x, size=2, stride=2))

        number = 0
        for num_convs, width in zip(self.stages, self.widths, strict=True):
            part = functools.partial(stage, number=number, num_convs=num_convs, width=width)
            x = _remat(self, part, x)
            number += num_convs * (3 if self.batch_norm else 2) + 1
        x = layers.flatten_channels_first(layers.adaptive_average_pool(x, 7))
        x = dropout(nn.relu(dense(name="classifier_0")(x)), layer=0)
        x = dropout(nn.relu(dense(name="classifier_3")(x)), layer=1)
        return jnp.tanh(alpha * Dense(self.num_bits, self.hash_init, name="classifier_6")(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, beside a shortcut.

    Attributes:
        width: channels of the 3x3 convolutions; a bottleneck puts out four times as many.
        stride: of the first 3x3 convolution and of the shortcut.
        bottleneck: which of the two kinds it is.
        dtype: "float32" or "bfloat16".
    """

    width: int
    stride: int
    bottleneck: bool
    dtype: str

    @nn.compact
    def __call__(self, images: Array, training: Training | None) -> Array:
        """Maps `[batch, height, width, in]` to `[batch, height', width', out]`."""
        conv = functools.partial(Conv, use_bias=False, initializer="he", dtype=self.dtype)
        width, stride = self.width, self.stride
        convs = [(width, 3, stride), (width, 3, 1)]
        if self.bottleneck:
            convs = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        x = images
        for number, (features, size, step) in enumerate(convs, start=1):
            x = nn.relu(x) if number > 1 else x
            x = conv(features, size, step, size // 2, name=f"conv{number}")(x)
            x = BatchNorm(name=f"bn{number}")(x, training)
        if images.shape != x.shape:
            images = conv(x.shape[-1], 1, stride, name="downsample_0")(images)
            images = BatchNorm(name="downsample_1")(images, training)
        return nn.relu(x + images)


class ResNet(nn.Module):
    """torchvision's ResNet (v1.5) with a hash layer in place of its linear layer.

    Attributes:
        num_bits: code length.
        stages: for each of four stages, its number of blocks.
        bottleneck: whether the blocks are bottlenecks.
        input_norm: whether ImageNet's mean and deviation are applied inside.
        hash_init: initial values of the hash layer: "torch" or "normal".
        dtype: of all before the hash layer: "float32" or "bfloat16".
        remat: whether gradients compute most of the activations anew instead of keeping them.
        width: channels of the first stage; each of the others doubles them.

    Reference:
        Released with SAAT and ProS-GAN. The features are averaged over all positions, so that
        images of any size pass.
    """

    num_bits: int
    stages: Sequence[int]
    bottleneck: bool
    input_norm: bool = True
    hash_init: str = "normal"
    dtype: str = "float32"
    remat: bool = False
    width: int = 64

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes."""
        x = layers.normalize(images, self.input_norm)

        def stem(x: Array) -> Array:
            x = Conv(self.width, 7, 2, 3, False, "he", self.dtype, name="conv1")(x)
            x = BatchNorm(name="bn1")(x, training)
            return nn.relu(layers.max_pool(x, size=3, stride=2, padding=1))

        x = _remat(self, stem, x)
        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for stage, num_blocks in enumerate(self.stages):
            for block in range(num_blocks):
                x = residual_block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{block}",
                )(x, training)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return jnp.tanh(alpha * Dense(self.num_bits, self.hash_init, name="hash_layer")(x))
