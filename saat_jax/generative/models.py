"""ProS-GAN's generator and discriminator, and their layers, with PyTorch's initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from saat_jax import networks

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def instance_norm(images: Array) -> Array:
    """Standardises every channel of every image over its pixels. Shape stays.

    The variance is the biased one, plus 1e-5; nothing is learnt or remembered.
    """
    variance = jnp.var(images, axis=(1, 2), keepdims=True)
    return jax.nn.standardize(images, axis=(1, 2), variance=variance, epsilon=1e-5)


@jax.custom_vjp
def double_size(images: Array, kernel: Array) -> Array:
    """Transposed convolution of stride 2 and padding 1, to twice the height and width.

    Args:
        images: `[batch, height, width, in]`.
        kernel: `[4, 4, out, in]`: PyTorch's (in, out, rows, columns), moved as the kernel of a
            plain convolution is.

    Returns:
        `[batch, 2 height, 2 width, out]`.
    """
    return lax.conv_transpose(
        images, kernel, (2, 2), [(2, 2)] * 2, dimension_numbers=_LAYOUT, transpose_kernel=True
    )


def _double_size_forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return double_size(images, kernel), (images, kernel)


def _double_size_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # It is the transpose of a plain convolution, whose own gradients serve here. Those of
    # lax.conv_transpose took 17 times as long or more on the CPU, for the kernel alone.
    images, kernel = residuals
    image_gradient, pull_back = jax.vjp(
        lambda kernel: networks.convolve(gradient, kernel, stride=2, padding=1), kernel
    )
    return image_gradient, pull_back(images)[0]


double_size.defvjp(_double_size_forward, _double_size_backward)


class Upsample(nn.Module):
    """`double_size` by a learnt kernel, without a bias."""

    features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[batch, height, width, in]` to `[batch, 2 height, 2 width, features]`."""
        # PyTorch's fan-in of a transposed convolution counts the outputs, which stand here
        # where the inputs stand in a plain kernel.
        shape = (4, 4, self.features, images.shape[-1])
        kernel_init, _ = networks.weight_and_bias_init("torch", shape)
        return double_size(images, self.param("kernel", kernel_init, shape))


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[batch, height, width, channels]` to the same shape."""
        x = images
        for activation in (nn.relu, lambda x: x):
            x = networks.Conv(images.shape[-1], 3, padding=1, use_bias=False)(x)
            x = activation(instance_norm(x))
        return images + x


class LabelDecoder(nn.Module):
    """Draws a semantic vector as a picture of three channels, to be laid beside the image.

    Attributes:
        base_width: channels, from which the others follow; a multiple of 8, 64 in the paper.
    """

    base_width: int = 64

    @nn.compact
    def __call__(self, semantics: Array, height: int, width: int) -> Array:
        """Maps `[batch, semantics]` to `[batch, height, width, 3]`; sizes of multiples of 16."""
        channels, rows, columns = 2 * self.base_width, height // 16, width // 16
        x = nn.relu(networks.Dense(channels * rows * columns)(semantics))
        # In PyTorch's order, so that its weights fit.
        x = x.reshape(-1, channels, rows, columns).transpose(0, 2, 3, 1)
        for divisor in (1, 2, 4, 8):
            x = nn.relu(instance_norm(Upsample(self.base_width // divisor)(x)))
        return networks.Conv(3, 3, padding=1, use_bias=False)(x)


class Generator(nn.Module):
    """ProS-GAN's generator: label decoder, encoder, six residual blocks and decoder.

    It acts alike in training and in evaluation, and on each image by itself. The label
    decoder's first layer grows with the image, so parameters belong to one image size.

    Attributes:
        base_width: channels of the first layer, from which the others follow; a multiple of 8,
            64 in the paper.

    Reference:
        Released with ProS-GAN. 21,454,121 parameters for images of 224 pixels.
    """

    base_width: int = 64

    @nn.compact
    def __call__(self, images: Array, semantics: Array) -> Array:
        """Generates signed images of the wanted semantics.

        Args:
            images: `[batch, height, width, 3]` in [-1, 1].
            semantics: `[batch, semantics]` float, 512 numbers in the paper.

        Returns:
            `[batch, height, width, 3]` in [-1, 1].

        Raises:
            ValueError: if height or width is no multiple of 16, or `base_width` none of 8.
        """
        _, height, width, _ = images.shape
        if height % 16 or width % 16:
            raise ValueError(
                "the generator needs height and width in multiples of 16 pixels, "
                f"got {height} x {width}; resize the images"
            )
        if self.base_width < 8 or self.base_width % 8:
            raise ValueError(f"base_width must be a multiple of 8, got {self.base_width}")
        label_map = LabelDecoder(self.base_width)(semantics, height, width)
        x = jnp.concatenate([label_map, images], axis=-1)
        x = nn.relu(instance_norm(networks.Conv(self.base_width, 7, padding=3)(x)))
        for factor in (2, 4):
            x = networks.Conv(factor * self.base_width, 4, stride=2, padding=1)(x)
            x = nn.relu(instance_norm(x))
        for _ in range(6):
            x = ResidualBlock()(x)
        for factor in (2, 1):
            x = nn.relu(instance_norm(Upsample(factor * self.base_width)(x)))
        x = jnp.concatenate([x, images], axis=-1)
        return jnp.tanh(networks.Conv(3, 3, padding=1, use_bias=False)(x))


def power_iteration(matrix: Array, left: Array) -> tuple[Array, Array]:
    """One step towards the first singular vectors of a matrix, as constants.

    Args:
        matrix: `[inputs, outputs]`.
        left: `[outputs]` u, the current singular vector on the side of the outputs.

    Returns:
        The new (u `[outputs]`, v `[inputs]`), each of length one.
    """
    matrix = lax.stop_gradient(matrix)

    def normalized(vector: Array) -> Array:
        return vector / (jnp.linalg.norm(vector) + 1e-12)

    right = normalized(jnp.matmul(matrix, left, precision=lax.Precision.HIGHEST))
    left = normalized(jnp.matmul(right, matrix, precision=lax.Precision.HIGHEST))
    return left, right


class SpectralConv(nn.Module):
    """4x4 convolution of stride 2 whose kernel is divided by its largest singular value.

    The value is u . W v, with u and v of the collection "spectral" moved on by one power
    iteration in every pass; they are constants of the gradient. The moved ones are kept where
    the collection is mutable. They do not depend on the images, so all devices agree.

    Differs from the released code: u and v are no parameters, where its optimizer moves them
    too, by about a learning rate in each step; and the gradient of a pass is taken with the u
    and v of that pass, where its next pass overwrites them first.
    """

    features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[batch, height, width, in]` to `[batch, height / 2, width / 2, features]`."""
        shape = (4, 4, images.shape[-1], self.features)
        kernel_init, bias_init = networks.weight_and_bias_init("torch", shape)
        kernel = self.param("kernel", kernel_init, shape)
        bias = self.param("bias", bias_init, (self.features,))
        matrix = kernel.reshape(-1, self.features)

        def first() -> tuple[Array, Array]:
            noise = jax.random.normal(self.make_rng("params"), (self.features,))
            return power_iteration(matrix, noise)

        vectors = self.variable("spectral", "vectors", first)
        left, right = power_iteration(matrix, vectors.value[0])
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            vectors.value = left, right
        norm = jnp.einsum("i,io,o", right, matrix, left, precision=lax.Precision.HIGHEST)
        return networks.convolve(images, kernel / norm, stride=2, padding=1) + bias


class Discriminator(nn.Module):
    """ProS-GAN's discriminator: scores of the classes, and of being generated.

    Attributes:
        num_classes: number of classes; not looked at without `class_nodes`.
        class_nodes: whether the classes have scores. Without, the ablation ProS-GAN1.
        sigmoid: whether scores pass a sigmoid, as drawn in the paper; not so as released.
        base_width: channels of the first layer, 64 in the paper.

    Reference:
        Released with ProS-GAN. 12,250,048 parameters for images of 224 pixels and
        21 classes.
    """

    num_classes: int
    class_nodes: bool = True
    sigmoid: bool = False
    base_width: int = 64

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Judges signed images.

        Args:
            images: `[batch, height, width, 3]` in [-1, 1].

        Returns:
            `[batch, num_classes + 1]` scores, the last of being generated; or that one alone.

        Raises:
            ValueError: if height or width is less than 32.
        """
        _, height, width, _ = images.shape
        if min(height, width) < 32:
            raise ValueError(
                "the discriminator needs height and width of at least 32 pixels, "
                f"got {height} x {width}; resize the images"
            )
        x = images
        for factor in (1, 2, 4, 8, 16):
            x = nn.leaky_relu(SpectralConv(factor * self.base_width)(x))
        # PyTorch's last convolution, whose window is the whole map.
        shape = (*x.shape[1:], self.num_classes * self.class_nodes + 1)
        kernel = self.param("kernel", networks.weight_and_bias_init("torch", shape)[0], shape)
        scores = jnp.einsum("bhwc,hwco->bo", x, kernel)
        return nn.sigmoid(scores) if self.sigmoid else scores
