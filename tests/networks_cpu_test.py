"""The CPU's forms of convolution and pooling against the plain ones, and what XLA makes of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saat_jax import attacks, networks
from saat_jax.networks import cpu


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values_and_gradients(function, options, *arrays):
    """Values, and the gradients by all arrays of their product with fixed noise."""
    values, backward = jax.vjp(lambda *x: function(*x, *options), *arrays)
    return values, *backward(jax.random.normal(jax.random.key(0), values.shape, values.dtype))


def _assert_close(ours, theirs, rtol):
    for x, y in zip(ours, theirs, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * float(np.abs(y).max()))


# (height and width, kernel, channels, features, stride, padding): AlexNet's and ResNet's first
# convolution, with rows left over and with none; VGG's; a kernel smaller than its stride, and
# as large; and Winograd's tiles of odd and even sizes, of one output, of padding 0 to 2.
@pytest.mark.parametrize(
    "problem",
    [
        ((31, 34), 11, 3, 4, 4, 2),
        ((35, 35), 11, 3, 4, 4, 0),
        ((15, 16), 7, 3, 4, 2, 3),
        ((7, 8), 3, 3, 4, 1, 1),
        ((7, 8), 5, 2, 4, 1, 0),
        ((9, 8), 2, 3, 4, 3, 1),
        ((9, 8), 2, 3, 4, 2, 1),
        ((7, 8), 3, 128, 160, 1, 1),
        ((4, 3), 3, 128, 128, 1, 0),
        ((3, 5), 3, 160, 128, 1, 2),
        ((7, 8), 3, 128, 128, 2, 1),
    ],
)
def test_convolution_is_the_plain_one(problem):
    size, kernel, channels, features, stride, padding = problem
    images = _random(0, 2, *size, channels)
    weights = _random(1, kernel, kernel, channels, features)
    ours, theirs = (
        _values_and_gradients(function, (stride, padding), images, weights)
        for function in (cpu.convolve, _plain_convolve)
    )
    _assert_close(ours, theirs, 3e-6)


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


@pytest.mark.parametrize("group", [1, 30, 10**6])
def test_winograd_in_groups(monkeypatch, group):
    # 9 tiles an image: one image at once, then three of six, then all.
    monkeypatch.setattr(cpu, "_GROUP_TILES", group)
    images, kernel = _random(2, 6, 5, 6, 3), _random(3, 3, 3, 3, 4)
    actual = cpu._winograd(jnp.asarray(images), jnp.asarray(kernel), 1)
    _assert_close([actual], [_plain_convolve(images, kernel, 1, 1)], 3e-6)


def test_winograd_is_for_many_channels_of_float32():
    def products(channels, features, dtype="float32", stride=1, size=3):
        images = jax.ShapeDtypeStruct((1, 6, 6, channels), dtype)
        kernel = jax.ShapeDtypeStruct((size, size, channels, features), dtype)
        return str(jax.make_jaxpr(lambda x, y: cpu.convolve(x, y, stride, 1))(images, kernel)).count(
            "dot_general"
        )

    assert products(128, 128) == 16
    assert products(128, 127) == products(127, 128) == products(128, 128, "bfloat16") == 0
    assert products(128, 128, stride=2) == products(128, 128, size=5) == 0


@pytest.mark.parametrize(
    "shape, size, stride, padding",
    [
        ((6, 6), 2, 2, 0),
        ((7, 5), 2, 2, 0),
        ((13, 12), 3, 2, 0),
        ((8, 9), 3, 2, 1),
        ((5, 6), 3, 1, 1),
        ((9, 8), 2, 3, 1),
    ],
)
def test_pool_is_the_plain_one(shape, size, stride, padding):
    # Whole numbers tie often: the gradient goes to the first maximum, as in lax and PyTorch.
    for images in (_random(4, 2, *shape, 3), np.round(_random(5, 2, *shape, 3))):
        ours, theirs = (
            _values_and_gradients(function, (size, stride, padding), images)
            for function in (cpu.max_pool, _plain_pool)
        )
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6, atol=1e-6)


def test_pool_worked_by_hand():
    images = jnp.array([[1.0, 3, 3], [3, 0, 2]]).reshape(1, 2, 3, 1)
    values, backward = jax.vjp(lambda x: cpu.max_pool(x, 2, 1, 0), images)
    np.testing.assert_array_equal(values.ravel(), [3, 3])
    # Both windows take the 3 in the middle of the first row, which is the first in each.
    (gradient,) = backward(jnp.array([10.0, 1]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 11, 0], [0, 0, 0]])


def test_bfloat16():
    images, kernel = (_random(6, 2, 9, 8, 3), _random(7, 3, 3, 3, 4))
    exact = _values_and_gradients(cpu.convolve, (1, 1), images, kernel)
    rough = _values_and_gradients(
        cpu.convolve, (1, 1), *(jnp.asarray(x, "bfloat16") for x in (images, kernel))
    )
    noise = jax.random.normal(jax.random.key(0), rough[0].shape, "bfloat16")
    assert {x.dtype for x in rough} == {jnp.dtype("bfloat16")} and noise.shape == exact[0].shape
    np.testing.assert_allclose(rough[0].astype("float32"), exact[0], atol=0.15)
    values, gradient = _values_and_gradients(cpu.max_pool, (3, 2, 1), rough[0])
    assert values.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(values, _plain_pool(rough[0], 3, 2, 1))


def test_forms_map_over_a_batch():
    images, kernel = _random(8, 3, 2, 8, 8, 3), _random(9, 3, 3, 3, 4)

    def energy(images):
        return jnp.sum(cpu.max_pool(cpu.convolve(images, kernel, 1, 1), 2, 2, 0) ** 2)

    together = jax.jit(jax.vmap(jax.grad(energy)))(images)
    alone = jnp.stack([jax.jit(jax.grad(energy))(one) for one in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_loop_of_an_attack_has_no_slow_operation(name):
    model = networks.create_network(name, num_bits=4, widths=(4, 4, 128, 128, 4), hidden=8)
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
