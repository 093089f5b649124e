"""The CPU's forms of convolution and pooling against the plain ones, and what XLA makes of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saat_jax import attacks, networks
from saat_jax.networks import cpu, layers


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _plain_convolve(images, kernel, stride, padding):
    pads, layout = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=layout
    )


def _plain_pool(images, size, stride, padding):
    pads = ((padding, padding),) * 2
    return nn.max_pool(images, (size, size), (stride, stride), pads)


def _compare(ours, theirs, *arrays):
    """Values, and gradients by all arrays of their product with fixed noise, of two functions."""

    @jax.jit
    def results(*arrays):
        noise = jax.random.normal(jax.random.key(0), jax.eval_shape(ours, *arrays).shape)
        pairs = [jax.vjp(function, *arrays) for function in (ours, theirs)]
        return [(values, *backward(noise)) for values, backward in pairs]

    for x, y in zip(*results(*arrays), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=3e-6 * float(np.abs(y).max()))


# Winograd's tiles of odd and even sizes, of padding 1 and 2; space to depth that leaves rows
# over, of many channels and of few; and few channels. The others are in networks_test.
@pytest.mark.parametrize(
    ("size", "kernel", "channels", "features", "stride", "padding"),
    [
        ((7, 8), 3, 128, 160, 1, 1),
        ((3, 5), 3, 160, 128, 1, 2),
        ((36, 35), 11, 3, 4, 4, 0),
        ((12, 13), 7, 3, 4, 2, 3),
        ((7, 6), 3, 3, 5, 1, 1),
        ((8, 9), 5, 1, 3, 1, 0),
    ],
)
def test_convolution_is_the_plain_one(size, kernel, channels, features, stride, padding):
    images = _random(0, 2, *size, channels)
    weights = _random(1, kernel, kernel, channels, features)
    _compare(
        lambda *x: cpu.convolve(*x, stride, padding),
        lambda *x: _plain_convolve(*x, stride, padding),
        images,
        weights,
    )


def test_winograd_worked_by_hand():
    # Rows, then columns, of the differences that a tile's first output is made of.
    images, kernel = np.arange(16.0).reshape(1, 4, 4, 1), np.zeros((3, 3, 1, 1))
    kernel[0, 0], kernel[2, 2], kernel[0, 1] = 1, 10, 100
    # The pixel itself, ten times that two rows and two columns on, a hundred times the next.
    expected = [[0 + 100 + 100, 1 + 110 + 200], [4 + 140 + 500, 5 + 150 + 600]]
    actual = cpu._winograd(jnp.asarray(images), jnp.asarray(kernel), 0)
    np.testing.assert_allclose(actual[0, ..., 0], expected, rtol=1e-6)
    # As the gradient of another convolution, with the kernel's flip and its axes swapped.
    flipped = jnp.asarray(kernel)[::-1, ::-1].swapaxes(2, 3)
    actual = cpu._winograd(jnp.asarray(images), flipped, 0, transposed=True)
    np.testing.assert_allclose(actual[0, ..., 0], expected, rtol=1e-6)


def test_winograd_in_groups(monkeypatch):
    # Nine tiles an image: three of the six images at once.
    monkeypatch.setattr(cpu, "_GROUP_TILES", 30)
    _compare(
        lambda *x: cpu._winograd(*x, 1),
        lambda *x: _plain_convolve(*x, 1, 1),
        _random(2, 6, 5, 6, 3),
        _random(3, 3, 3, 3, 4),
    )


def test_winograd_is_for_many_channels_of_float32():
    def products(channels, features, dtype="float32", stride=1, size=3):
        images = jax.ShapeDtypeStruct((1, 6, 6, channels), dtype)
        kernel = jax.ShapeDtypeStruct((size, size, channels, features), dtype)
        return str(
            jax.make_jaxpr(lambda x, y: cpu.convolve(x, y, stride, 1))(images, kernel)
        ).count("dot_general")

    assert products(128, 128) == 16
    assert products(128, 127) == products(127, 128) == products(128, 128, "bfloat16") == 0
    assert products(128, 128, stride=2) == products(128, 128, size=5) == 0


def test_product_is_the_plain_one():
    _compare(cpu.dense, jnp.matmul, _random(0, 5, 12), _random(1, 12, 7))


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [((7, 6), 2, 2, 0), ((13, 12), 3, 2, 0), ((8, 9), 3, 2, 1), ((9, 8), 2, 3, 1)],
)
def test_pool_is_the_plain_one(shape, size, stride, padding):
    # Whole numbers tie often: the gradient goes to the first maximum, as in lax and PyTorch.
    images = jnp.round(_random(4, 4, *shape, 3))
    options = size, stride, padding
    _compare(lambda x: cpu.max_pool(x, *options), lambda x: _plain_pool(x, *options), images)


def test_pool_worked_by_hand():
    images = jnp.array([[1.0, 3, 3], [3, 0, 2]]).reshape(1, 2, 3, 1)
    values, backward = jax.vjp(lambda x: cpu.max_pool(x, 2, 1, 0), images)
    np.testing.assert_array_equal(values.ravel(), [3, 3])
    # Both windows take the 3 in the middle of the first row, which is the first in each.
    (gradient,) = backward(jnp.array([10.0, 1]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 11, 0], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(8, 6), (7, 6), (5, 3)])
def test_average_pool_is_the_plain_one(shape):
    _compare(layers.avg_pool, lambda x: nn.avg_pool(x, (2, 2), (2, 2)), _random(6, 2, *shape, 3))


def test_bfloat16_stays():
    images = jax.ShapeDtypeStruct((2, 9, 8, 128), "bfloat16")
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), "bfloat16")

    def total(images, kernel):
        return jnp.sum(cpu.max_pool(cpu.convolve(images, kernel, 1, 1), 3, 2, 1))

    gradients = jax.eval_shape(jax.grad(total, argnums=(0, 1)), images, kernel)
    assert gradients == (images, kernel)


def test_forms_map_over_a_batch():
    images, kernel = _random(8, 3, 2, 8, 8, 3), _random(9, 3, 3, 3, 4)

    def energy(images):
        return jnp.sum(cpu.max_pool(cpu.convolve(images, kernel, 1, 1), 2, 2, 0) ** 2)

    together = jax.jit(jax.vmap(jax.grad(energy)))(images)
    alone = lax.map(jax.grad(energy), images)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_loop_of_an_attack_has_no_slow_operation():
    model = networks.create_network("alexnet", num_bits=4, widths=(4, 4, 128, 128, 4), hidden=8)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    codes = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def attack(variables, images, codes):
        return attacks.pgd(
            networks.make_encode_fn(model),
            variables,
            images,
            codes,
            jax.random.key(0),
            epsilon=8 / 255,
            step_size=1 / 255,
            num_steps=3,
            targeted=False,
        )

    text = jax.jit(attack).lower(variables, images, codes).compile().as_text()
    assert "while" in text and "dot" in text
    assert "select-and-scatter" not in text
    # Kernels with outputs before inputs, and images with the batch last, as autodiff has them.
    assert "01oi" not in text and "f01b" not in text
