"""Convolution, pooling and linear layers in the forms that XLA's CPU compiler runs fast.

Values and gradients are those of the plain operations, to rounding. `parallel.on_cpu` switches
between the two, in `layers`. Each form says for which jaxlib it was needed, and why: when a newer
one runs `benchmarks.pgd_step` as fast with the plain operation, the form may go.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Below it a pixel's channels do not fill a vector register.
_FEW_CHANNELS = 8
# Below it a convolution to these channels is slower than one to several times as many.
_NARROW_CHANNELS = 16
# Up to so many values of a kernel for one output, its products take little memory: 3x3 of RGB.
_SHIFTED_VALUES = 32
# From here on, Winograd's transforms cost less than the multiplications that they save.
_WINOGRAD_CHANNELS = 128
# From here on, a plain product is the fastest: the tokens of a transformer.
_MANY_ROWS = 512
# Tiles that are worked on at once, so that what lies between the stages stays in the cache.
_GROUP_TILES = 1600


def _convolve(
    images: Array,
    kernel: Array,
    padding: Sequence[tuple[int, int]],
    *,
    stride: int = 1,
    image_dilation: int = 1,
    kernel_dilation: int = 1,
) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(image_dilation, image_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _flip(kernel: Array) -> Array:
    """The kernel that takes gradients of the outputs to those of the inputs."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _suits_winograd(images: Array, kernel: Array, stride: int) -> bool:
    return (
        kernel.shape[:2] == (3, 3)
        and stride == 1
        and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
        and images.dtype == jnp.float32
    )


def _map_groups(function: Callable[[Array], Any], images: Array, size: int) -> Any:
    """Maps a function over groups of at most `size` images, as large as divide the batch."""
    batch = len(images)
    size = max(1, min(batch, size))
    while batch % size:
        size -= 1
    if size >= batch:
        return function(images)
    outputs = lax.map(function, images.reshape(-1, size, *images.shape[1:]))
    return jax.tree.map(lambda values: values.reshape(batch, *values.shape[2:]), outputs)


def _transform_kernel(a: Array, b: Array, c: Array) -> tuple[Array, ...]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _transform_images(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, ...]:
    return a - c, b + c, c - b, b - d


def _transform_outputs(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, ...]:
    return a + b + c, b - c - d


def _winograd(images: Array, kernel: Array, padding: int, *, transposed: bool = False) -> Array:
    """A 3x3 convolution by 16 products for each 2x2 tile of outputs, which directly take 36.

    jaxlib 0.10.2: 3x3 convolutions of many channels are bound by their multiplications, of which
    this has 2.25 times fewer.

    Args:
        images: `[batch, height, width, in]`.
        kernel: `[3, 3, in, out]`, or if `transposed` `[3, 3, out, in]`, whose flip is applied.
        padding: zeros on every side.
        transposed: whether it is the gradient of a convolution with the kernel.

    Reference:
        Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016: F(2x2, 3x3).
    """
    _, height, width, _ = images.shape
    tile_rows, tile_columns = ((size + 2 * padding - 1) // 2 for size in (height, width))
    kernel = kernel[::-1, ::-1] if transposed else kernel
    columns = [_transform_kernel(*kernel[:, column]) for column in range(3)]
    weights = [_transform_kernel(*row) for row in zip(*columns, strict=True)]
    contraction = (((3,), (1 if transposed else 0,)), ((), ()))

    def convolve(images: Array) -> Array:
        sizes = 2 * tile_rows + 2, 2 * tile_columns + 2
        padded = _pad(images, (padding, padding), sizes)
        rows = [padded[:, first:][:, : 2 * tile_rows - 1 : 2] for first in range(4)]
        products = []
        for row, row_weights in zip(_transform_images(*rows), weights, strict=True):
            pixels = [row[:, :, first:][:, :, : 2 * tile_columns - 1 : 2] for first in range(4)]
            products.append(
                [
                    lax.dot_general(values, weight, contraction)
                    for values, weight in zip(_transform_images(*pixels), row_weights, strict=True)
                ]
            )
        halves = [_transform_outputs(*column) for column in zip(*products, strict=True)]
        outputs = [_transform_outputs(*row) for row in zip(*halves, strict=True)]
        # [group, tile row, row of the tile, tile column, column of the tile, out]
        tiles = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
        whole = tiles.reshape(len(images), 2 * tile_rows, 2 * tile_columns, -1)
        return whole[:, : height + 2 * padding - 2, : width + 2 * padding - 2]

    outputs: Array = _map_groups(convolve, images, _GROUP_TILES // (tile_rows * tile_columns))
    return outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Convolves `[batch, height, width, in]` with `[rows, columns, in, out]`, zero-padded.

    jaxlib 0.10.2: only at the top of a program are convolutions rewritten to the one layout, NHWC
    and HWIO, that has a fast kernel. In the body of a loop, where every attack lives, the
    transposed layouts of automatic gradients become loop nests 4 to 60 times slower. So gradients
    are written out.
    """
    if _suits_winograd(images, kernel, stride):
        return _winograd(images, kernel, padding)
    return _convolve(images, kernel, ((padding, padding),) * 2, stride=stride)


def _convolve_forward(
    images: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(images, kernel, stride, padding), (images, kernel)


def _convolve_backward(
    stride: int, padding: int, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    images, kernel = residuals
    # The kernel's: the gradient as a kernel over the images, the batch as their channels.
    ends = []
    for axis in (1, 2):
        span = (gradient.shape[axis] - 1) * stride + kernel.shape[axis - 1]
        ends.append((padding, span - images.shape[axis] - padding))
    kernel_gradient = _convolve(
        images.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        ends,
        kernel_dilation=stride,
    ).transpose(1, 2, 0, 3)
    return _image_gradient(images.shape, kernel, gradient, stride, padding), kernel_gradient


convolve.defvjp(_convolve_forward, _convolve_backward)


def _image_gradient(
    shape: Sequence[int], kernel: Array, gradient: Array, stride: int, padding: int
) -> Array:
    size = kernel.shape[0]
    if _suits_winograd(gradient, kernel, stride):
        return _winograd(gradient, kernel, size - 1 - padding, transposed=True)
    if stride == 1 and kernel[..., 0].size <= _SHIFTED_VALUES:
        return _shift_and_add_gradient(shape, kernel, gradient, padding)
    if shape[3] < _FEW_CHANNELS and size > stride:
        return _space_to_depth_gradient(shape, kernel, gradient, stride, padding)
    # The flipped kernel over the gradient, spread by the stride.
    low = size - 1 - padding
    ends = [
        (low, shape[axis] + size - 1 - low - (gradient.shape[axis] - 1) * stride - 1)
        for axis in (1, 2)
    ]
    return _convolve(gradient, _flip(kernel), ends, image_dilation=stride)


def _shift_and_add_gradient(
    shape: Sequence[int], kernel: Array, gradient: Array, padding: int
) -> Array:
    """One product for all positions in the kernel, whose results are shifted and added up.

    jaxlib 0.10.2: a convolution to few channels leaves most of a vector register empty.
    """
    rows, columns, channels, features = kernel.shape
    weights = kernel.transpose(3, 0, 1, 2).reshape(features, -1)
    products = (gradient @ weights).reshape(*gradient.shape[:3], rows, columns, channels)
    return _add(
        _pad(products[..., row, column, :], (row - padding, column - padding), shape[1:3])
        for row in range(rows)
        for column in range(columns)
    )


def _space_to_depth_gradient(
    shape: Sequence[int], kernel: Array, gradient: Array, stride: int, padding: int
) -> Array:
    """Space to depth: stride x stride pixels become one pixel of as many times the channels.

    There the convolution has stride 1. jaxlib 0.10.2: the gradient of a strided convolution
    multiplies the zeros between its values, and one to few channels leaves most of a vector
    register empty.
    """
    batch, height, width, channels = shape
    size = -(-kernel.shape[0] // stride)
    spare = size * stride - kernel.shape[0]
    deep = jnp.pad(kernel, ((0, spare), (0, spare), (0, 0), (0, 0)))
    deep = deep.reshape(size, stride, size, stride, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    deep = deep.reshape(size, size, stride * stride * channels, -1)
    if deep.shape[2] < _NARROW_CHANNELS:
        output = _convolve_by_columns(deep, gradient)
    else:
        output = _convolve(gradient, _flip(deep), ((size - 1, size - 1),) * 2)
    _, rows, columns, _ = output.shape
    output = output.reshape(batch, rows, columns, stride, stride, channels)
    output = output.transpose(0, 1, 3, 2, 4, 5)
    output = output.reshape(batch, rows * stride, columns * stride, channels)
    # What lay in the padding goes, and pixels that no window reached come.
    return _pad(output, (-padding, -padding), (height, width))


def _convolve_by_columns(kernel: Array, gradient: Array) -> Array:
    """One convolution along the columns of pixels for all columns of the kernel, as channels.

    Its results are shifted and added up. jaxlib 0.10.2: as for `_space_to_depth_gradient`, which
    calls this where even its channels are few.
    """
    size, _, channels, features = kernel.shape
    weights = kernel[::-1].transpose(0, 3, 1, 2).reshape(size, 1, features, -1)
    output = _convolve(gradient, weights, ((size - 1, size - 1), (0, 0)))
    batch, rows, columns, _ = output.shape
    output = output.reshape(batch, rows, columns, size, channels)
    shape = rows, columns + size - 1
    return _add(_pad(output[..., i, :], (0, i), shape) for i in range(size))


def _add(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _pad(values: Array, first: tuple[int, int], sizes: Sequence[int], *, step: int = 1) -> Array:
    """Zeros of this height and width with every `step`-th from `first` on a value, cut to fit."""
    config = [
        (low, size - low - (length - 1) * step - 1, step - 1)
        for length, low, size in zip(values.shape[1:3], first, sizes, strict=True)
    ]
    return lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def dense(inputs: Array, kernel: Array) -> Array:
    """Multiplies `[batch, in]` by `[in, out]`; few rows as a convolution of single pixels.

    jaxlib 0.10.2: the product of a small batch and a large matrix takes twice as long, but in a
    loop the convolution of a ViT-S's tokens takes more than twice as long as the product.
    """
    return inputs @ kernel if len(inputs) >= _MANY_ROWS else _dense(inputs, kernel)


@jax.custom_vjp
def _dense(inputs: Array, kernel: Array) -> Array:
    return _convolve(inputs[:, None, None], kernel[None, None], ((0, 0),) * 2)[:, 0, 0]


def _dense_forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dense(inputs, kernel), (inputs, kernel)


def _dense_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    return gradient @ kernel.T, inputs.T @ gradient


_dense.defvjp(_dense_forward, _dense_backward)


def max_pool(images: Array, size: int, stride: int, padding: int) -> Array:
    """Maximum over square windows; what lies outside is minus infinity.

    The gradient goes to a window's first maximum, whose position is kept as one byte. jaxlib
    0.10.2: the plain gradient searches each window once more, one value at a time.
    """
    _, height, width, _ = images.shape
    return _max_pool(images, (height, width), size, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(images: Array, shape: tuple[int, int], size: int, stride: int, padding: int) -> Array:
    return _max_and_argmax(images, shape, size, stride, padding)[0]


def _max_and_argmax(
    images: Array, shape: tuple[int, int], size: int, stride: int, padding: int
) -> tuple[Array, Array]:
    del shape
    ends = (padding, padding, 0)
    rows, columns = (
        (length + 2 * padding - size) // stride * stride + 1 for length in images.shape[1:3]
    )

    def search(images: Array) -> tuple[Array, Array]:
        lowest = jnp.array(-jnp.inf, images.dtype)
        padded = lax.pad(images, lowest, ((0, 0, 0), ends, ends, (0, 0, 0)))
        windows = [
            padded[:, row : row + rows : stride, column : column + columns : stride]
            for row in range(size)
            for column in range(size)
        ]
        maximum = functools.reduce(jnp.maximum, windows)
        argmax = jnp.full(maximum.shape, len(windows) - 1, jnp.uint8)
        for number in reversed(range(len(windows) - 1)):
            argmax = jnp.where(windows[number] == maximum, jnp.uint8(number), argmax)
        return maximum, argmax

    # What a loop puts out is kept. Without one the compiler fuses the search into the gradient and
    # repeats it for every window of every pixel, which costs much where windows overlap.
    group = len(images) // 2 if size > stride else len(images)
    maximum, argmax = _map_groups(search, images, group)
    return maximum, argmax


def _max_pool_backward(
    shape: tuple[int, int], size: int, stride: int, padding: int, argmax: Array, gradient: Array
) -> tuple[Array]:
    total = _add(
        _pad(
            jnp.where(argmax == row * size + column, gradient, 0),
            (row - padding, column - padding),
            shape,
            step=stride,
        )
        for row in range(size)
        for column in range(size)
    )
    return (total,)


_max_pool.defvjp(_max_and_argmax, _max_pool_backward)
