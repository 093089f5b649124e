"""Layers, networks and weights: by hand, by loops, and against the released networks."""

import dataclasses
import datetime
import functools
import math
import os
import pathlib
import re
import sys
import zipfile
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saat_jax import networks
from saat_jax.networks import transformers
from tests import golden, reference, tiny

WRAPS = [jax.jit, lambda function: function]
SHARED = pathlib.Path(os.environ.get("SHARED_DIR", pathlib.Path(__file__).parents[2] / "shared"))


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _images(seed, *shape):
    return np.random.default_rng(seed).uniform(size=(*shape, 3)).astype(np.float32)


def _training(num_rows, mask=None, axis_name=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_rows)
    mask = jnp.ones(num_rows) if mask is None else jnp.asarray(mask, jnp.float32)
    return networks.Training(keys, mask, axis_name)


def _shapes(model, image_size):
    """A network's variables without their numbers: nothing is computed."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


# --- convolution ---

# Odd and even sizes, so that at a stride some rows are left over; padding 0 to more than half
# the kernel; a kernel smaller than its stride, as in a shortcut; AlexNet's first.
CONVOLUTIONS = [
    (size, kernel, stride, padding)
    for size in ((9, 9), (10, 13))
    for kernel, stride, padding in [
        (3, 1, 1),
        (3, 1, 0),
        (5, 1, 2),
        (3, 1, 2),
        (3, 2, 1),
        (3, 2, 0),
        (7, 2, 3),
        (1, 1, 0),
        (1, 2, 0),
        (4, 4, 0),
        (3, 4, 1),
        (11, 4, 2),
    ]
]


def _convolution_problem(size, kernel):
    return _random(1, 2, *size, 3), _random(2, kernel, kernel, 3, 4)


def test_convolve_worked_by_hand():
    images = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 0], [0, -1]]).reshape(2, 2, 1, 1)
    # Each pixel less its neighbour down and to the right; outside is zero.
    inner = networks.convolve(images, kernel, stride=1, padding=0)
    np.testing.assert_array_equal(inner[0, ..., 0], [[-4, -4], [-4, -4]])
    outer = networks.convolve(images, kernel, stride=2, padding=1)
    np.testing.assert_array_equal(outer[0, ..., 0], [[-1, -3], [-7, -4]])


@pytest.mark.parametrize("size, kernel, stride, padding", CONVOLUTIONS)
def test_convolve_matches_reference(size, kernel, stride, padding):
    images, weights = _convolution_problem(size, kernel)
    actual = jax.jit(networks.convolve, static_argnames=("stride", "padding"))(
        images, weights, stride=stride, padding=padding
    )
    expected = reference.convolve(images, weights, stride, padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, kernel, stride, padding", CONVOLUTIONS)
def test_convolution_gradients_match_plain_ones(size, kernel, stride, padding):
    images, weights = _convolution_problem(size, kernel)

    def plain(images, weights):
        pads = [(padding, padding)] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            images, weights, (stride, stride), pads, dimension_numbers=layout
        )

    def gradients(convolve):
        output, backward = jax.vjp(convolve, images, weights)
        return backward(_random(3, *output.shape))

    actual = jax.jit(
        lambda: gradients(
            lambda *arrays: networks.convolve(*arrays, stride=stride, padding=padding)
        )
    )()
    for ours, theirs in zip(actual, jax.jit(lambda: gradients(plain))(), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


def test_convolution_form_is_chosen_by_backend(monkeypatch):
    images, weights = _convolution_problem((9, 9), 3)
    # Where it is not the CPU, compilers are given the plain form, which they recognise.
    text = {}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        text[backend] = str(
            jax.make_jaxpr(lambda *a: networks.convolve(*a, stride=1, padding=1))(images, weights)
        )
    assert "custom_vjp" in text["cpu"] and "custom_vjp" not in text["gpu"]


def test_convolution_works_under_vmap_and_in_a_loop():
    images, weights = _convolution_problem((8, 8), 3)

    def energy(images):
        return jnp.sum(networks.convolve(images, weights, stride=2, padding=1) ** 2)

    together = jax.grad(energy)(images)
    alone = jax.vmap(jax.grad(lambda image: energy(image[None])))(images)
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4)
    looped = lax.fori_loop(0, 2, lambda _, x: x - 1e-3 * jax.grad(energy)(x), images)
    unrolled = images
    for _ in range(2):
        unrolled = unrolled - 1e-3 * jax.grad(energy)(unrolled)
    np.testing.assert_allclose(looped, unrolled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_layer(use_bias):
    images = _random(4, 2, 7, 7, 3)
    layer = networks.Conv(5, 3, stride=2, padding=1, use_bias=use_bias)
    params = layer.init(jax.random.key(0), images)["params"]
    assert ("bias" in params) == use_bias
    # PyTorch's default: uniform within 1 / sqrt(fan_in).
    assert np.abs(params["kernel"]).max() <= 27**-0.5
    assert np.abs(params["kernel"]).max() > 0.9 * 27**-0.5
    expected = reference.convolve(images, np.asarray(params["kernel"]), 2, 1)
    expected = expected + np.asarray(params.get("bias", 0))
    actual = layer.apply({"params": params}, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_dense_layer():
    inputs = _random(5, 4, 50)
    layer = networks.Dense(20)
    params = layer.init(jax.random.key(0), inputs)["params"]
    for value in params.values():
        assert 0.8 * 50**-0.5 < np.abs(value).max() <= 50**-0.5
    expected = inputs @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, inputs), expected, rtol=1e-4)


def test_torch_uniform_fills_its_interval():
    values = np.asarray(networks.torch_uniform(100)(jax.random.key(0), (4000,)))
    counts = np.histogram(values, 4, (-0.1, 0.1))[0]
    assert counts.sum() == 4000
    np.testing.assert_allclose(counts, 1000, atol=5 * 750**0.5)


# --- normalisation ---


@jax.jit
def _apply_batch_norm(variables, images, training):
    return networks.BatchNorm().apply(variables, images, training, mutable=["batch_stats"])


def _batch_norm(images, training, *, variables=None):
    """Output and updated statistics, from the initial variables if none are given."""
    zeros, ones = jnp.zeros(images.shape[-1]), jnp.ones(images.shape[-1])
    initial = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }
    return _apply_batch_norm(variables or initial, images, training)


def test_batch_norm_initial_variables():
    # Also in training mode, `init` leaves the running statistics where they begin.
    images = jnp.asarray(_random(5, 4, 2, 2, 3))
    variables = networks.BatchNorm().init(jax.random.key(0), images, _training(4))
    for kind, values in {"params": "scale", "batch_stats": "var"}.items():
        np.testing.assert_array_equal(variables[kind][values], 1)
    for kind, values in {"params": "bias", "batch_stats": "mean"}.items():
        np.testing.assert_array_equal(variables[kind][values], 0)


def test_batch_norm_worked_by_hand():
    images = jnp.array([1.0, 3]).reshape(2, 1, 1, 1)
    # Mean 2, variance 1, unbiased 2; the running values move a tenth from 0 and 1.
    output, updated = _batch_norm(images, _training(2))
    np.testing.assert_allclose(output.ravel(), [-1, 1], atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [1.1], rtol=1e-6)


def test_batch_norm_matches_reference():
    images = _random(6, 5, 3, 4, 2) * 3 + 1
    output, updated = _batch_norm(images, _training(5))
    expected, mean, variance = reference.batch_norm(images, 1e-5)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-4)


def test_batch_norm_uses_running_statistics_in_evaluation():
    images = _random(7, 3, 2, 2, 2)
    params = {"scale": jnp.array([2.0, 3]), "bias": jnp.array([0.5, -1])}
    stats = {"mean": jnp.array([1.0, -1]), "var": jnp.array([4.0, 0.25])}
    output, updated = _batch_norm(images, None, variables={"params": params, "batch_stats": stats})
    expected = (images - [1, -1]) / np.sqrt(np.array([4, 0.25]) + 1e-5) * [2, 3] + [0.5, -1]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], stats["mean"])
    np.testing.assert_array_equal(updated["batch_stats"]["var"], stats["var"])


def test_batch_norm_does_not_see_padding():
    images = _random(8, 6, 3, 3, 2)
    mask = np.array([1, 0, 1, 1, 0, 1])
    real = mask.astype(bool)
    images[~real] = 100
    output, updated = _batch_norm(images, _training(6, mask))
    alone, updated_alone = _batch_norm(images[real], _training(4))
    np.testing.assert_allclose(output[real], alone, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, updated_alone)

    def total(images):
        return jnp.sum((_batch_norm(images, _training(6, mask))[0] ** 3)[real])

    gradient = jax.grad(total)(jnp.asarray(images))
    assert np.all(np.isfinite(gradient)) and np.any(gradient[real])
    np.testing.assert_array_equal(gradient[~real], 0)


def test_batch_norm_is_shared_over_devices():
    # Three shards of two rows: full, half padding, all padding.
    images = _random(9, 6, 3, 3, 2)
    mask = np.array([1, 1, 1, 0, 0, 0])
    whole, updated = _batch_norm(images, _training(6, mask))

    def shard(images, keys, mask):
        return _batch_norm(images, networks.Training(keys, mask, "devices"))

    training = _training(6, mask)
    parts = (
        images.reshape(3, 2, 3, 3, 2),
        training.keys.reshape(3, 2),
        training.mask.reshape(3, 2),
    )
    output, shared = jax.vmap(shard, axis_name="devices")(*parts)
    np.testing.assert_allclose(output.reshape(6, 3, 3, 2)[:3], whole[:3], rtol=1e-5, atol=1e-6)
    for name, value in updated["batch_stats"].items():
        for device in range(3):
            np.testing.assert_allclose(shared["batch_stats"][name][device], value, rtol=1e-5)


def test_golden_formula_batchnorm_running():
    formula = golden.formula("batchnorm_running")
    images = np.array(formula.inputs["x"], np.float32)[:, None, None]
    output, updated = _batch_norm(images, _training(len(images)))
    formula.assert_close(output[:, 0, 0], formula.expected["y"])
    formula.assert_close(updated["batch_stats"]["mean"], [formula.expected["running_mean"]])
    formula.assert_close(updated["batch_stats"]["var"], [formula.expected["running_var"]])


# --- the other layers ---


def test_dropout_is_identity_in_evaluation_and_at_rate_zero():
    inputs = jnp.asarray(_random(10, 3, 5))
    assert networks.dropout(inputs, None, rate=0.5, layer=0) is inputs
    assert networks.dropout(inputs, _training(3), rate=0, layer=0) is inputs


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate, wrap):
    inputs = jnp.ones((4, 5000))
    output = np.asarray(
        wrap(lambda x: networks.dropout(x, _training(4), rate=rate, layer=0))(inputs)
    )
    np.testing.assert_allclose(output[output != 0], 1 / (1 - rate), rtol=1e-6)
    # Per row, within 5 standard deviations.
    shares = np.mean(output == 0, axis=1)
    np.testing.assert_allclose(shares, rate, atol=5 * (rate * (1 - rate) / 5000) ** 0.5)
    assert len({row.tobytes() for row in output}) == 4


def test_dropout_of_a_row_is_its_own():
    inputs, training = jnp.asarray(_random(11, 4, 30)), _training(4)
    together = networks.dropout(inputs, training, rate=0.5, layer=1)
    for row in range(4):
        one = networks.Training(training.keys[row : row + 1], training.mask[row : row + 1])
        alone = networks.dropout(inputs[row : row + 1], one, rate=0.5, layer=1)
        np.testing.assert_array_equal(alone[0], together[row])
    other_layer = networks.dropout(inputs, training, rate=0.5, layer=2)
    assert np.any((other_layer == 0) != (together == 0))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (1, 1), (13, 10), (3, 8)])
def test_adaptive_average_pool_matches_reference(shape, size):
    images = _random(12, 2, *shape, 3)
    actual = networks.adaptive_average_pool(jnp.asarray(images), size)
    expected = reference.adaptive_average_pool(images, size)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_adaptive_average_pool_worked_by_hand():
    images = jnp.array([0.0, 1, 2]).reshape(1, 1, 3, 1)
    # Two cells of three columns share the middle one; one row serves both.
    pooled = networks.adaptive_average_pool(images, 2)
    np.testing.assert_allclose(pooled[0, ..., 0], [[0.5, 1.5], [0.5, 1.5]], rtol=1e-6)
    square = jnp.zeros((1, 6, 6, 2))
    assert networks.adaptive_average_pool(square, 6) is square


def test_max_pool_worked_by_hand():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    # Overlapping windows, no padding: the fourth row and column are left over.
    pooled = networks.max_pool(images, size=3, stride=2)
    np.testing.assert_array_equal(pooled[0, ..., 0], [[10]])
    pooled = networks.max_pool(-images, size=2, stride=2)
    np.testing.assert_array_equal(pooled[0, ..., 0], [[0, -2], [-8, -10]])
    # What lies outside never is the largest, even of negative numbers.
    pooled = networks.max_pool(-images - 1, size=3, stride=2, padding=1)
    np.testing.assert_array_equal(pooled[0, ..., 0], [[-1, -2], [-5, -6]])


def test_flatten_channels_first_matches_numpy():
    images = _random(13, 2, 3, 4, 5)
    expected = np.stack(
        [np.concatenate([image[..., c].ravel() for c in range(5)]) for image in images]
    )
    np.testing.assert_array_equal(networks.flatten_channels_first(jnp.asarray(images)), expected)


def test_golden_formula_flatten_order():
    formula = golden.formula("flatten_order")
    images = jnp.array(formula.inputs["x_NHWC"], jnp.float32)
    flat = networks.flatten_channels_first(images)
    expected = np.array(formula.inputs["x_NCHW"]).reshape(len(images), -1)
    np.testing.assert_array_equal(flat, expected)
    formula.assert_close(flat @ np.array(formula.inputs["W"]).T, formula.expected["y"])


def test_normalize():
    images = jnp.asarray(_images(14, 2, 3, 3))
    assert networks.normalize(images, False) is images
    output = networks.normalize(images, True)
    for c, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (np.asarray(images[..., c], np.float64) - mean) / std
        np.testing.assert_allclose(output[..., c], expected, rtol=1e-4, atol=1e-6)


def test_golden_formula_input_norm():
    formula = golden.formula("input_norm")
    image = jnp.array(formula.inputs["rgb"]).reshape(1, 1, 1, 3)
    formula.assert_close(networks.normalize(image, True).ravel(), formula.expected["out"])


# --- networks ---

SMALL = networks.ConvNet(4, widths=(4, 6))


@functools.cache
def _small_variables():
    """Of `SMALL`; made once, as compiling takes seconds."""
    return networks.init_variables(SMALL, jax.random.key(0), image_size=8)


def test_convnet_codes():
    model = networks.create_network("convnet", num_bits=12)
    images = _images(15, 3, 16, 16)
    variables = networks.init_variables(model, jax.random.key(0), image_size=16)
    encode_fn = jax.jit(networks.make_encode_fn(model))
    codes = np.asarray(encode_fn(variables, images))
    assert codes.shape == (3, 12) and codes.dtype == np.float32
    assert np.all(np.abs(codes) < 1) and np.unique(codes, axis=0).shape == codes.shape
    # The scale acts inside the tanh; its default is 1.
    for alpha in (0.1, 1.0, 2.0):
        scaled = encode_fn(variables, images, alpha)
        np.testing.assert_allclose(scaled, np.tanh(alpha * np.arctanh(codes)), rtol=1e-4)


def test_networks_normalise_inside():
    images = _images(16, 2, 8, 8)
    outside = networks.create_network("convnet", num_bits=4, widths=(4, 6), input_norm=False)
    variables = _small_variables()
    apply = jax.jit(outside.apply)
    expected = apply(variables, networks.normalize(jnp.asarray(images), True))
    actual = jax.jit(SMALL.apply)(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(apply(variables, images), expected)


def test_forward():
    model, variables = SMALL, _small_variables()
    images = jnp.asarray(_images(17, 4, 8, 8))
    params, stats = variables["params"], variables["batch_stats"]
    codes, same = networks.forward(model, params, stats, images, None)
    assert same is stats
    np.testing.assert_array_equal(codes, networks.make_encode_fn(model)(variables, images))
    # Training: padding changes neither codes nor statistics of the real rows.
    padded = images.at[-1].set(1)
    results = [
        networks.forward(model, params, stats, x, _training(4, [1, 1, 1, 0]))
        for x in (images, padded)
    ]
    np.testing.assert_allclose(results[0][0][:3], results[1][0][:3], rtol=1e-4, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), results[0][1], results[1][1]
    )
    assert np.any(results[0][1]["norm_0"]["mean"] != stats["norm_0"]["mean"])
    assert jax.tree.structure(results[0][1]) == jax.tree.structure(stats)


def test_forward_without_statistics():
    model = tiny.TinyNet(4)
    images = jnp.asarray(_images(18, 2, 8, 8))
    weights = tiny.random_weights(0, num_bits=4, image_size=8)
    params = tiny.tiny_variables(weights)["params"]
    evaluated, stats = networks.forward(model, params, {}, images, None)
    assert stats == {}
    trained, stats = networks.forward(model, params, {}, images, _training(2))
    assert stats == {}
    np.testing.assert_array_equal(trained, evaluated)


def test_convnet_gradients_are_finite():
    model, variables = SMALL, _small_variables()
    images = jnp.zeros((2, 8, 8, 3))

    def total(params, images):
        codes, _ = networks.forward(
            model, params, variables["batch_stats"], images, _training(2, [1, 0])
        )
        return codes[0].sum()

    # A constant image: every variance is zero.
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(variables["params"], images)
    for leaf in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(leaf))


# SPEC 2.2: parameters without the hash layer, and its inputs.
PARAMETERS = {
    "alexnet": (57_003_840, 4096),
    "vgg11": (128_766_336, 4096),
    "vgg13": (128_950_848, 4096),
    "vgg16": (134_260_544, 4096),
    "vgg19": (139_570_240, 4096),
    "vgg11_bn": (128_771_840, 4096),
    "resnet18": (11_176_512, 512),
    "resnet34": (21_284_672, 512),
    "resnet50": (23_508_032, 2048),
    "resnet101": (42_500_160, 2048),
    "resnet152": (58_143_808, 2048),
}
# Two parameters for each of the channels that are normalised.
PARAMETERS |= {
    f"vgg{depth}_bn": (PARAMETERS[f"vgg{depth}"][0] + 2 * channels, 4096)
    for depth, channels in {11: 2752, 13: 2944, 16: 4224, 19: 5504}.items()
}
# At 224 pixels, two for a multiplication and its addition.
GIGAFLOPS = {"alexnet": 1.42, "vgg11": 15.2, "vgg16": 30.9, "resnet18": 3.63, "resnet50": 8.17}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts(name):
    card = networks.model_card(name, num_bits=33)
    count, features = PARAMETERS[name]
    assert card["backbone_parameters"] == count
    assert card["parameters"] == count + (features + 1) * 33
    if name in GIGAFLOPS:
        np.testing.assert_allclose(card["flops"] / 1e9, GIGAFLOPS[name], rtol=5e-3)


def test_model_card_worked_by_hand():
    card = networks.model_card("convnet", num_bits=4, image_size=16)
    # Kernels of 9 weights for 3-16, 16-32, 32-64 and 64-128 channels, without bias; scale and
    # bias for each of them and for the last 128; a hash layer of 129 by 4.
    kernels = [9 * 3 * 16, 9 * 16 * 32, 9 * 32 * 64, 9 * 64 * 128]
    count = sum(kernels) + 2 * (16 + 32 + 64 + 128 + 128)
    # At 16, 8, 4 and 2 pixels a side.
    flops = 2 * (sum(k * 4**n for k, n in zip(kernels, (4, 3, 2, 1), strict=True)) + 128 * 4)
    assert card == {
        "network": "convnet",
        "num_bits": 4,
        "image_size": 16,
        "parameters": count + 129 * 4,
        "backbone_parameters": count,
        "flops": flops,
    }


@pytest.mark.parametrize("name, smallest", [("alexnet", 63), ("vgg11_bn", 32), ("convnet", 8)])
def test_small_images_are_refused(name, smallest):
    model, small = networks.create_network(name, num_bits=8), smallest - 1
    with pytest.raises(
        ValueError, match=f"at least {smallest} x {smallest} pixels, got {small} x {small}; use"
    ):
        _shapes(model, small)
    with pytest.raises(ValueError, match=f"got 224 x {small}"):
        images = jax.ShapeDtypeStruct((1, 224, small, 3), jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), images)
    # The least it takes, and another size than 224: the parameters are the same.
    shapes = [_shapes(model, size) for size in (smallest, 96, 224)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_resnet_takes_any_size():
    model = networks.create_network("resnet50", num_bits=8)
    shapes = [_shapes(model, size) for size in (1, 33, 224)]
    assert shapes[0] == shapes[1] == shapes[2]


def _tiny(name, **options):
    """A network by name with few channels; its layers and their names are those of the whole."""
    small = {
        "alexnet": {"widths": (4, 5, 6, 5, 4), "hidden": 7},
        "convnet": {"widths": (4, 6)},
        "resnet": {"width": 2},
        "vgg": {"widths": (2, 3, 4, 5, 4), "hidden": 7},
    }[name.split("_")[0].rstrip("0123456789")]
    return networks.create_network(name, num_bits=5, **small, **options)


def _random_variables(model, *, image_size=64, seed=0):
    """Variables of which no two are alike, without compiling an `init`."""
    shapes = flax.traverse_util.flatten_dict(_shapes(model, image_size))
    variables = {}
    for number, (path, leaf) in enumerate(shapes.items()):
        value = _random(seed + number, *leaf.shape) / max(1, math.prod(leaf.shape[:-1])) ** 0.5
        variables[path] = jnp.asarray(1 + value**2 if path[-1] in ("var", "scale") else value)
    return flax.traverse_util.unflatten_dict(variables)


def _dense_layers(model, variables, images, alpha=1.0, training=None):
    """(codes, the linear layers' (input, output) in order, running statistics after)."""
    calls = []

    def record(function, args, kwargs, context):
        output = function(*args, **kwargs)
        if isinstance(context.module, networks.Dense):
            calls.append((args[0], output))
        return output

    with nn.intercept_methods(record):
        codes, updated = model.apply(
            variables, images, alpha, training=training, mutable=["batch_stats"]
        )
    return codes, calls, updated.get("batch_stats", {})


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_dropout_is_where_torchvision_has_it(name):
    model = _tiny(name)
    variables, images = _random_variables(model), _images(19, 2, 64, 64)

    @jax.jit
    def inputs(variables, images, training):
        return [call[0] for call in _dense_layers(model, variables, images, 1.0, training)[1]]

    evaluated = inputs(variables, images, None)
    trained = inputs(variables, images, _training(2))
    # AlexNet drops before each of two layers, and the hash layer sees all units; VGG drops
    # after each of them, so that its first layer sees all.
    first, second, last = map(np.asarray, trained)
    whole = {"alexnet": last, "vgg11": first}[name]
    dropped = {"alexnet": first, "vgg11": last}[name]
    if name == "vgg11":
        np.testing.assert_allclose(whole, evaluated[0], rtol=1e-5)
    else:
        kept = dropped != 0
        np.testing.assert_allclose(
            dropped[kept], 2 * np.asarray(evaluated[0])[kept], rtol=1e-4, atol=1e-6
        )
    assert np.mean(dropped == 0) > np.mean(whole == 0)
    assert np.any(second != evaluated[1])


@pytest.mark.parametrize(
    "name, initializer",
    [("alexnet", "torch"), ("vgg11", "torch"), ("resnet18", "normal"), ("convnet", "torch")],
)
def test_hash_layer_initialisation(name, initializer):
    assert networks.create_network(name, num_bits=8).hash_init == initializer
    other = {"torch": "normal", "normal": "torch"}[initializer]
    for hash_init in (initializer, other):
        hash_layers = []

        def record(function, args, kwargs, context, hash_layers=hash_layers):
            if isinstance(context.module, networks.Dense):
                hash_layers.append(context.module.initializer)
            return function(*args, **kwargs)

        with nn.intercept_methods(record):
            _shapes(_tiny(name, hash_init=hash_init), 64)
        assert hash_layers[-1] == hash_init


def test_weight_and_bias_init():
    key = jax.random.key(0)
    weight, bias = networks.weight_and_bias_init("normal", (30, 40))
    assert abs(np.std(weight(key, (30, 40))) - 0.01) < 1e-3
    np.testing.assert_array_equal(bias(key, (40,)), 0)
    # A kernel of 3 x 3 with 50 outputs has a fan out of 450.
    weight, bias = networks.weight_and_bias_init("he", (3, 3, 20, 50))
    np.testing.assert_allclose(np.std(weight(key, (3, 3, 20, 50))), (2 / 450) ** 0.5, rtol=0.05)
    np.testing.assert_array_equal(bias(key, (50,)), 0)
    with pytest.raises(ValueError, match="unknown initialisation 'xavier'.*'he'"):
        networks.weight_and_bias_init("xavier", (3, 4))


def test_bfloat16_keeps_parameters_statistics_and_codes_in_float32():
    options = {"stages": (1,), "bottleneck": False, "width": 4, "hash_init": "torch"}
    exact = networks.ResNet(5, **options)
    rough = networks.ResNet(5, **options, dtype="bfloat16")
    variables, images = _random_variables(exact), _images(20, 4, 32, 32)
    assert _shapes(rough, 32) == _shapes(exact, 32)

    def step(model):
        def total(params, images):
            codes, stats = networks.forward(
                model, params, variables["batch_stats"], images, _training(4)
            )
            return jnp.sum(codes**2), (codes, stats)

        return jax.grad(total, argnums=(0, 1), has_aux=True)

    text = str(jax.make_jaxpr(step(rough))(variables["params"], images))
    assert "bf16" in text and "bf16" not in str(
        jax.make_jaxpr(step(exact))(variables["params"], images)
    )
    results = [jax.jit(step(model))(variables["params"], images) for model in (exact, rough)]
    for leaf in jax.tree.leaves(results[1]):
        assert leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf))
    (_, (codes, stats)), (_, (rough_codes, rough_stats)) = results
    np.testing.assert_allclose(rough_codes, codes, atol=0.05)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max()),
        rough_stats,
        stats,
    )
    assert np.any(np.asarray(rough_codes) != codes)


@pytest.mark.parametrize("name", ["alexnet", "convnet", "vgg11_bn"])
def test_bfloat16_reaches_the_hash_layer_in_every_family(name):
    model = _tiny(name, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    kinds = []

    def record(function, args, kwargs, context):
        output = function(*args, **kwargs)
        if isinstance(context.module, networks.Conv | networks.Dense):
            kinds.append(output.dtype)
        return output

    with nn.intercept_methods(record):
        codes, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert codes.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(kinds[:-1]) == {jnp.dtype("bfloat16")} and kinds[-1] == jnp.float32


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("lenet", {}, r"unknown network 'lenet'.*'alexnet', 'convnet'"),
        ("convnet", {"num_bits": 0}, "num_bits must be a whole number from 1 to 65536, got 0"),
        ("convnet", {"num_bits": "16"}, "num_bits must be a whole number .*, got '16'"),
        ("convnet", {"num_bits": 16.0}, "num_bits must be a whole number .*, got 16.0"),
        ("convnet", {"num_bits": 10**9}, "num_bits must be .*, got 1000000000"),
        ("alexnet", {"rate": 0.5}, r"no option \['rate'\].*'dropout_rate',.*'input_norm'"),
        ("convnet", {"parent": None}, r"no option \['parent'\]"),
        # What the name says cannot be said otherwise.
        ("vgg11", {"stages": (1, 1, 1, 1, 1)}, r"no option \['stages'\]"),
        ("vgg11", {"dtype": "float16"}, "unknown dtype 'float16'.*'bfloat16', 'float32'"),
        ("resnet18", {"hash_init": "zeros"}, "unknown hash_init 'zeros'.*'normal', 'torch'"),
        ("resnet18", {"remat": "no"}, "remat must be True or False, got 'no'"),
        ("resnet18", {"width": 0}, "width must be a whole number .*, got 0"),
        ("alexnet", {"dropout_rate": 1}, "dropout_rate must be a number from 0 to 0.99, got 1"),
        ("convnet", {"widths": (0, 8)}, "widths must be a whole number .*, got 0"),
        ("convnet", {"widths": ("a",)}, "widths must be a whole number .*, got 'a'"),
        ("convnet", {"widths": 8}, "widths must be a tuple of numbers, such as .16, .*got 8"),
        ("alexnet", {"widths": (8,)}, r"widths must be a tuple .*64, 192.*got \(8,\)"),
    ],
)
def test_create_network_refuses_what_it_does_not_know(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.create_network(name, **{"num_bits": 8} | options)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 8, 8, 3), np.uint8), "images must be floats .* got uint8; divide by 255"),
        (np.zeros((2, 3, 8, 8), np.float32), r"images must be .*channels\], got \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), r"images must be .*, got \(8, 8, 3\)"),
    ],
)
def test_encoders_refuse_what_is_no_batch_of_images(images, message, wrap):
    with pytest.raises(ValueError, match=message):
        wrap(networks.make_encode_fn(SMALL))(_small_variables(), images)


@pytest.mark.parametrize("value", [255.0, -1.0, np.nan])
def test_encoders_refuse_values_that_are_no_pixels(value):
    images = np.full((2, 8, 8, 3), value, np.float32)
    with pytest.raises(ValueError, match=r"images must be floats in \[0, 1\], got values from"):
        networks.make_encode_fn(SMALL)(_small_variables(), images)


def test_every_network_has_its_name():
    depths = {"resnet": (18, 34, 50, 101, 152), "vgg": (11, 13, 16, 19)}
    expected = {"alexnet", "convnet"}
    expected |= {f"{family}{depth}" for family in depths for depth in depths[family]}
    expected |= {f"vgg{depth}_bn" for depth in depths["vgg"]}
    assert set(networks.NETWORKS) == expected | set(transformers.PRESETS)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_create_network(name):
    model = networks.create_network(name, num_bits=8, input_norm=False)
    assert isinstance(model, nn.Module)
    assert model.num_bits == 8 and model.input_norm is False
    assert networks.create_network(name, num_bits=8).input_norm is True


# --- weights ---


def _torch_layout(variables):
    """A network's variables as PyTorch would name and lay them out."""
    weights = {}
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for (_, *modules, leaf), value in flax.traverse_util.flatten_dict(dict(variables)).items():
        value = np.asarray(value)
        if value.ndim == 4:
            value = np.moveaxis(value, (0, 1), (2, 3)).swapaxes(0, 1)
        elif value.ndim == 2:
            value = value.T
        # Digits are indices of PyTorch's lists, but for those inside a name ("conv1").
        name = ".".join(modules)
        for digit in "0123456789":
            name = name.replace(f"_{digit}", f".{digit}")
        weights[f"{name}.{names.get(leaf, leaf)}"] = value
    return weights


def _assert_equal_trees(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("source", ["npz", "safetensors", "pth", "pt", "string", "mapping"])
def test_weights_of_every_kind(tmp_path, source):
    donor, variables = _random_variables(SMALL), _small_variables()
    weights = _torch_layout(donor)
    assert weights["conv.1.weight"].shape == (6, 4, 3, 3) and weights["hash.weight"].shape == (4, 6)
    path = tmp_path / f"weights.{source}"
    if source == "safetensors":
        safetensors = pytest.importorskip("safetensors.numpy")
        safetensors.save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    elif source in ("pth", "pt"):
        torch = pytest.importorskip("torch")
        torch.save({k: torch.tensor(v) for k, v in weights.items()}, path)
    else:
        path = tmp_path / "weights.npz"
        np.savez(path, **weights)
    given = {"string": str(path), "mapping": weights}.get(source, path)
    loaded, report = networks.load_torch_weights(variables, given)
    _assert_equal_trees(loaded, donor)
    assert report.loaded == tuple(sorted(weights))
    assert report.left_random == report.unused == ()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
def test_export_and_import(tmp_path, kind):
    pytest.importorskip({"pth": "torch", "safetensors": "safetensors"}.get(kind, "numpy"))
    model = _tiny("vgg11_bn")
    variables, path = _random_variables(model), tmp_path / f"model.{kind}"
    networks.save_torch_weights(path, variables)
    loaded, report = networks.load_torch_weights(_shapes(model, 64), path)
    _assert_equal_trees(loaded, variables)
    assert report.left_random == report.unused == ()


# Vision transformers have tests of their own.
@pytest.mark.parametrize("name", sorted(networks.NETWORKS.keys() - transformers.PRESETS.keys()))
def test_every_network_goes_home_and_comes_back(name):
    model = _tiny(name)
    variables = _random_variables(model)
    weights = networks.to_torch_weights(variables)
    expected = _torch_layout(variables)
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value)
    # The rest are second names of the same arrays, and counters that PyTorch keeps.
    for key in set(weights) - set(expected):
        if key.endswith("num_batches_tracked"):
            assert weights[key].shape == () and weights[key].dtype == np.int64
        else:
            assert any(weights[key] is weights[other] for other in expected)
    loaded, report = networks.load_torch_weights(jax.eval_shape(lambda: variables), weights)
    _assert_equal_trees(loaded, variables)
    assert report.loaded == tuple(sorted(expected))
    assert report.left_random == report.unused == ()


def test_exported_names_worked_by_hand():
    weights = networks.to_torch_weights(_random_variables(_tiny("resnet50")))
    for name in ("conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.conv3.weight"):
        assert name in weights
    assert weights["feature_layers.5.3.bn2.bias"] is weights["layer2.3.bn2.bias"]
    assert weights["hash_layer.weight"].shape == (5, 64)
    assert not any(name.startswith("conv1.bias") for name in weights)
    weights = networks.to_torch_weights(_random_variables(_tiny("vgg11_bn")))
    assert weights["cl1.weight"] is weights["classifier.0.weight"]
    assert weights["cl1.weight"].shape == (7, 4 * 7 * 7)
    assert {"features.26.running_mean", "features.26.num_batches_tracked"} < set(weights)


def test_part_of_the_weights_is_reported():
    donor, variables = _random_variables(SMALL), _small_variables()
    weights = _torch_layout(donor)
    given = {"conv.0.weight": weights["conv.0.weight"].astype(np.float16)}
    loaded, report = networks.load_torch_weights(variables, given)
    assert report.loaded == ("conv.0.weight",)
    assert report.unused == ()
    assert set(report.left_random) == set(weights) - {"conv.0.weight"}
    kernel = loaded["params"]["conv_0"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, donor["params"]["conv_0"]["kernel"], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(
        loaded["params"]["hash"]["kernel"], variables["params"]["hash"]["kernel"]
    )
    # The variables given are not changed.
    assert np.any(variables["params"]["conv_0"]["kernel"] != kernel)
    # With tensors left over, what is missing may be among them under another name.
    for name, message in (
        ("head.bias", r"no tensor was found for .*hash.bias.* 1 have no place.* head.bias"),
        ("fc.bias", r"fc.bias has shape \(3,\), the network expects \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            networks.load_torch_weights(variables, given | {name: np.ones(3)})


# By network, the names of the hash layer elsewhere.
HASH_LAYERS = {
    "alexnet": ("hash_layer.6", "hash_layer.0", "hash_layer", "fc", "fc.0", "hash_fc"),
    "vgg11_bn": ("hash_fc", "hash_layer", "head.fc"),
    "resnet18": ("fc", "fc.0", "hash_fc.0", "hash_layer.0"),
}
ELSEWHERE = [(name, other) for name, others in HASH_LAYERS.items() for other in others]


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "_orig_mod.", "0.", "0.module."]
)
@pytest.mark.parametrize("wrapper", ["", "model_state_dict", "net", "state_dict_ema"])
def test_what_wraps_a_network_is_no_part_of_its_names(prefix, wrapper):
    donor = _random_variables(SMALL)
    weights = {f"{prefix}{name}": value for name, value in _torch_layout(donor).items()}
    given = {wrapper: weights, "epoch": 3} if wrapper else weights
    loaded, report = networks.load_torch_weights(_small_variables(), given)
    _assert_equal_trees(loaded, donor)
    assert report.left_random == report.unused == ()


@pytest.mark.parametrize(
    ("name", "elsewhere"), [(k, v) for k in HASH_LAYERS for v in HASH_LAYERS[k]]
)
def test_hash_layers_of_other_projects_find_their_place(name, elsewhere):
    model = _tiny(name)
    donor = _random_variables(model)
    own = {"alexnet": "classifier.6", "vgg11_bn": "hash_layer"}.get(name, "hash_layer")
    own = own if f"{own}.weight" in _torch_layout(donor) else "classifier.6"
    weights = {k.replace(f"{own}.", f"{elsewhere}."): v for k, v in _torch_layout(donor).items()}
    loaded, report = networks.load_torch_weights(_shapes(model, 64), weights)
    _assert_equal_trees(loaded, donor)
    assert report.left_random == report.unused == ()


def test_a_normalised_hash_layer_without_bias_is_folded():
    model = _tiny("resnet18")
    donor = _random_variables(model)
    weights = _torch_layout(donor)
    bias, weight = weights.pop("hash_layer.bias"), weights.pop("hash_layer.weight")
    rng = np.random.default_rng(0)
    mean, var, scale = (rng.random(len(bias), np.float32) + 0.5 for _ in range(3))
    after = dict(running_mean=mean, running_var=var, weight=scale, bias=bias)
    weights |= {"hash_fc.0.weight": weight}
    loaded, _ = networks.load_torch_weights(_shapes(model, 64), weights)
    layer = loaded["params"]["hash_layer"]
    np.testing.assert_array_equal(layer["kernel"], weight.T)
    assert not np.any(layer["bias"])
    weights |= {f"hash_fc.1.{leaf}": value for leaf, value in after.items()}
    loaded, report = networks.load_torch_weights(_shapes(model, 64), weights)
    assert report.left_random == report.unused == ()
    layer = loaded["params"]["hash_layer"]
    x = rng.random((3, weight.shape[1]), np.float32)
    expected = (x @ weight.T - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(x @ layer["kernel"] + layer["bias"], expected, rtol=1e-4, atol=1e-5)


def test_torchvision_layout_names_the_hash_layer_fc():
    weights = networks.to_torch_weights(_random_variables(_tiny("resnet18")), layout="torchvision")
    assert "fc.weight" in weights and not any("hash" in k or "feature_layers" in k for k in weights)
    with pytest.raises(ValueError, match="unknown layout 'timm'"):
        networks.to_torch_weights({}, layout="timm")


def _damage(path, what):
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "text": b"weights\n",
            "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
            "a web page": b"<!DOCTYPE html>",
        }[what]
    )


@pytest.mark.parametrize("what", ["empty", "half", "text", "a Git LFS pointer", "a web page"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pth.tar", ".bin", ".ckpt"])
def test_what_is_no_file_of_weights_is_named(tmp_path, suffix, what):
    sound = tmp_path / "sound.npz"
    networks.save_torch_weights(sound, _small_variables())
    path = sound.rename(tmp_path / f"w{suffix}")
    _damage(path, what)
    fault = "damaged or cut short" if what == "half" else f"is {what}, not a"
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} .*{fault}"):
        networks.load_torch_weights(_small_variables(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.int8), "must be of 16-, 32- or 64-bit floats, got int8"),
        (lambda x: x > 0, "got bool"),
        (lambda x: x.astype(np.complex64), "got complex64"),
        (lambda x: x.astype(str), "got str"),
        (lambda x: np.full_like(x, np.nan), "NaN or infinite"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, change, message):
    weights = _torch_layout(_small_variables())
    np.savez(tmp_path / "w.npz", **weights | {"hash.weight": change(weights["hash.weight"])})
    with pytest.raises(ValueError, match=rf"w\.npz: hash.weight .*{message}"):
        networks.load_torch_weights(_small_variables(), tmp_path / "w.npz")


def test_what_has_no_place_is_not_read(tmp_path):
    # Its header promises 4 GB.
    weights = _torch_layout(_small_variables())
    path = tmp_path / "w.npz"
    np.savez(path, **weights)
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**30,)}
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(2**20))
    loaded, report = networks.load_torch_weights(_small_variables(), path)
    _assert_equal_trees(loaded, _small_variables())
    assert report.unused == ("bomb",)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_weights_inside_a_checkpoint(wrapper):
    donor = _random_variables(SMALL)
    weights = {f"module.{name}": value for name, value in _torch_layout(donor).items()}
    weights["module.norm.num_batches_tracked"] = np.int64(7)
    loaded, report = networks.load_torch_weights(
        _small_variables(), {"epoch": 3, wrapper: weights, "optimizer": {"lr": 0.1}}
    )
    _assert_equal_trees(loaded, donor)
    assert report.left_random == report.unused == ()


def test_whole_imagenet_models_leave_the_hash_layer_random():
    # torchvision's names; the last layer tells 1000 classes apart.
    model = _tiny("alexnet")
    weights = _torch_layout(_random_variables(model))
    head = {"classifier.6.weight": np.ones((1000, 7)), "classifier.6.bias": np.ones(1000)}
    _, report = networks.load_torch_weights(_shapes(model, 64), weights | head)
    assert report.left_random == report.unused == tuple(sorted(head))
    model = _tiny("resnet18")
    weights = _torch_layout(_random_variables(model))
    body = {name: value for name, value in weights.items() if not name.startswith("hash")}
    head = {"fc.weight": np.ones((1000, 16)), "fc.bias": np.ones(1000)}
    _, report = networks.load_torch_weights(_shapes(model, 64), body | head)
    assert report.left_random == ("hash_layer.bias", "hash_layer.weight")
    assert report.unused == tuple(sorted(head))


def test_two_names_of_one_tensor_must_agree():
    model = _tiny("vgg11")
    variables = _random_variables(model)
    weights = networks.to_torch_weights(variables)
    del weights["classifier.0.weight"]
    loaded, _ = networks.load_torch_weights(_shapes(model, 64), weights)
    _assert_equal_trees(loaded, variables)
    weights["classifier.0.weight"] = weights["cl1.weight"] + 1
    with pytest.raises(ValueError, match=r"classifier.0.weight and cl1.weight .* differ"):
        networks.load_torch_weights(_shapes(model, 64), weights)


def test_unfit_weights_are_refused(tmp_path):
    variables = _small_variables()
    weights = _torch_layout(variables)
    with pytest.raises(ValueError, match=r"hash.weight has shape \(9, 6\).*\(4, 6\).*num_bits"):
        networks.load_torch_weights(variables, weights | {"hash.weight": np.ones((9, 6))})
    with pytest.raises(ValueError, match=r"conv.0.weight has shape \(4, 3, 5, 5\)"):
        networks.load_torch_weights(variables, weights | {"conv.0.weight": np.ones((4, 3, 5, 5))})
    with pytest.raises(ValueError, match="no tensor fits; it holds other.weight, and"):
        networks.load_torch_weights(variables, {"other.weight": np.ones((4, 6))})
    for name in ("weights.h5", "weights"):
        with pytest.raises(ValueError, match=rf"file of weights of kind .*'\.npz'.*, got .*{name}"):
            networks.load_torch_weights(variables, tmp_path / name)
        with pytest.raises(ValueError, match=rf"file of weights of kind .*'\.npz'.*, got .*{name}"):
            networks.save_torch_weights(tmp_path / name, variables)
    with pytest.raises(ValueError, match=r"nosuch\.pth, which does not exist"):
        networks.load_torch_weights(variables, tmp_path / "nosuch.pth")


def test_pickled_objects_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {}, "when": datetime.date(2024, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"more than tensors.*model\.state_dict\(\)"):
        networks.load_torch_weights(_small_variables(), path)


def test_without_pytorch_its_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ValueError, match="needs the package 'torch': pip install torch, or use"):
        networks.load_torch_weights(_small_variables(), path)
    with pytest.raises(ValueError, match=r"model.pth needs the package 'torch'"):
        networks.save_torch_weights(path, _small_variables())


@pytest.mark.parametrize("kind", ["npz", "pth", "safetensors"])
def test_a_write_that_fails_leaves_the_weights_before(tmp_path, monkeypatch, kind):
    pytest.importorskip({"pth": "torch", "safetensors": "safetensors"}.get(kind, "numpy"))
    path = tmp_path / f"model.{kind}"
    path.write_text("old")

    def fail(file):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"{path} cannot be written; .* no space left"):
        networks.save_torch_weights(path, _small_variables())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "old")]


def test_half_precision_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.flax")
    weights = {
        k: jnp.asarray(v, jnp.bfloat16) for k, v in _torch_layout(_small_variables()).items()
    }
    safetensors.save_file(weights, tmp_path / "half.safetensors")
    loaded, _ = networks.load_torch_weights(_small_variables(), tmp_path / "half.safetensors")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6),
        loaded,
        _small_variables(),
    )


def test_torch_name():
    assert networks.torch_name(("features_10", "kernel")) == "features.10.weight"
    assert networks.torch_name(("classifier_1", "bias")) == "classifier.1.bias"
    assert networks.torch_name(("norm_0", "scale")) == "norm.0.weight"
    assert networks.torch_name(("hash_layer", "bias")) == "hash_layer.bias"
    place = ("layer1_0", "downsample_1", "var")
    assert networks.torch_name(place) == "layer1.0.downsample.1.running_var"


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_torchvision_features_find_their_place(name):
    path = SHARED / "weights" / f"{name}_features_f16.npz"
    if not path.is_file():
        pytest.skip(f"no {path}; set SHARED_DIR to the folder that has weights/")
    # Shapes are enough to find a place.
    variables = _shapes(networks.create_network(name, num_bits=16), 224)
    loaded, report = networks.load_torch_weights(variables, path)
    with np.load(path) as file:
        weights = dict(file)
    assert report.loaded == tuple(sorted(weights)) and report.unused == ()
    assert {name.split(".")[0] for name in report.left_random} == {"classifier"}
    assert len(report.left_random) == 6
    for key, value in weights.items():
        module, leaf = loaded["params"][key.rpartition(".")[0].replace(".", "_")], key[-4:]
        array = np.asarray(module["bias" if leaf == "bias" else "kernel"])
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        np.testing.assert_array_equal(array, value.astype(np.float32))


# --- against the released networks ---


def test_golden_tiny_net():
    case = golden.load("tiny_net")
    weights = case.group("w0.")
    model, variables = tiny.tiny_net(weights), tiny.tiny_variables(weights)
    images = golden.nhwc(case["images"])
    for name, value in tiny.tiny_weights(variables["params"]).items():
        np.testing.assert_array_equal(value, weights[name])
    encode_fn = networks.make_encode_fn(model)

    @jax.jit
    def step(params, images, alpha):
        def total(params, images):
            codes = encode_fn({"params": params}, images, alpha)
            return jnp.mean(codes * case["target"]), codes

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, images)

    tolerance = case.tolerance("grads rel")
    for number, alpha in enumerate(case["alphas"]):
        (_, codes), (gradients, image_gradient) = step(variables["params"], images, alpha)
        atol = case.tolerance("codes abs")
        np.testing.assert_allclose(codes, case["codes"][number], rtol=0, atol=atol)
        np.testing.assert_allclose(codes, np.tanh(alpha * case["pre_tanh"]), rtol=0, atol=atol)
        actual = tiny.tiny_weights(gradients) | {"images": np.moveaxis(image_gradient, -1, -3)}
        for name, gradient in actual.items():
            expected = case[f"grad_{name}"][number]
            atol = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol, err_msg=name)


BACKBONES = golden.names("backbone_") + golden.names("prosgan_backbone_")


def _backbones(array):
    """The cases that hold this array."""
    if not (golden.FOLDER / "manifest.json").is_file():
        return BACKBONES
    return [name for name in BACKBONES if array in golden.manifest()[name]["arrays"]]


def _backbone_name(case_name):
    """The network of a case; "fc" marks the variants that ProS-GAN has for HashNet."""
    match = re.fullmatch(r"(?:prosgan_)?backbone_([a-z]+?)(?:fc)?(\d*)(?:_?(bn))?", case_name)
    assert match, case_name
    family, depth, batch_norm = match.groups()
    return f"{family}{depth}{'_bn' if batch_norm else ''}"


def _backbone_model(case, **options):
    # Where no normalisation is stated there is none: ProS-GAN's released code has it disabled.
    input_norm = "normalisation" in case.constants
    return networks.create_network(
        _backbone_name(case.name), num_bits=case.constants["bit"], input_norm=input_norm, **options
    )


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A golden case with its network, variables and images; up to 600 MB, so made once."""

    case: golden.Case
    model: nn.Module
    variables: Any
    images: np.ndarray


@pytest.fixture(scope="module")
def backbone(request):
    case, fills = golden.load(request.param), golden.fills()
    constants = case.constants
    weights = {
        name: fills.fill_array(
            name, shape, number + constants["fill_offset"], constants["fill_gain"]
        )
        for number, name, shape, kind in constants["state_dict"]
        if kind == "filled"
    }
    model = _backbone_model(case)
    # The weights are complete, so that the shapes of the variables will do.
    variables, report = networks.load_torch_weights(_shapes(model, 224), weights)
    assert report.left_random == report.unused == ()
    images = fills.formula_images(
        len(case["pre_tanh"]), 224, 224, constants["img_phase"], constants["img_j"]
    )
    for image, probe in zip(images, case.arrays.get("image_probe", ()), strict=False):
        np.testing.assert_allclose(fills.probe(image, probe.size), probe, atol=1e-6)
    return Backbone(case, model, variables, golden.nhwc(images))


def _scaled_tolerance(case, expected):
    return case.tolerance("pre_tanh max abs error <=") * np.abs(expected).max()


@pytest.mark.parametrize("backbone", BACKBONES, indirect=True)
def test_golden_backbone(backbone):
    case, probe = backbone.case, golden.fills().probe
    codes = {float(k): v for k, v in case.group("codes_alpha").items()}
    if "codes" in case.arrays:
        codes[1.0] = case["codes"]
    alphas = np.array(list(codes), np.float32)

    @jax.jit
    def outputs(variables, images, alphas):
        # All scales at once: the network runs once.
        codes, calls, _ = _dense_layers(backbone.model, variables, images, alphas[:, None, None])
        return codes, calls[0][0], calls[-1][1]

    actual, features, pre_tanh = map(
        np.asarray, outputs(backbone.variables, backbone.images, alphas)
    )
    tolerance = _scaled_tolerance(case, case["pre_tanh"])
    np.testing.assert_allclose(pre_tanh, case["pre_tanh"], rtol=0, atol=tolerance)
    for alpha, soft_codes in zip(alphas, actual, strict=True):
        # tanh does not enlarge a difference.
        atol = max(alpha, 1) * tolerance
        np.testing.assert_allclose(soft_codes, codes[float(str(alpha))], rtol=0, atol=atol)
    if "flat_feature_probe" in case.arrays:
        relative = case.tolerance("pre_tanh max abs error <=")
        for feature, probes, (mean, std, largest) in zip(
            features, case["flat_feature_probe"], case["flat_feature_stat"], strict=True
        ):
            atol = relative * largest
            np.testing.assert_allclose(probe(feature, probes.size), probes, rtol=0, atol=atol)
            stat = [feature.mean(), feature.std(), np.abs(feature).max()]
            np.testing.assert_allclose(stat, [mean, std, largest], rtol=0, atol=atol)


@pytest.mark.parametrize("backbone", _backbones("grad_target"), indirect=True)
def test_golden_backbone_image_gradients(backbone):
    case, probe = backbone.case, golden.fills().probe
    encode_fn = networks.make_encode_fn(backbone.model)

    @jax.jit
    def gradient_of(variables, images, alpha):
        return jax.grad(
            lambda images: jnp.mean(encode_fn(variables, images, alpha) * case["grad_target"])
        )(images)

    relative = case.tolerance("gradient probes")
    for key, stats in case.group("grad_image_stat_alpha").items():
        gradient = np.asarray(gradient_of(backbone.variables, backbone.images, float(key)))
        probes = case[f"grad_image_probe_alpha{key}"]
        for image, stat, values in zip(gradient, stats, probes, strict=True):
            image = np.moveaxis(image, -1, 0)
            atol = relative * stat[2]
            errors = np.abs(probe(image, values.size) - values)
            # Another CPU rounds otherwise, and a unit within rounding of ReLU's kink then passes
            # the gradient of its few pixels or not: a jump there, nothing elsewhere.
            assert np.sqrt(np.mean(errors**2)) <= atol, (errors, atol)
            assert np.mean(errors <= atol) >= 0.98, (errors, atol)
            actual = [image.mean(), image.std(), np.abs(image).max()]
            np.testing.assert_allclose(actual, stat, rtol=0, atol=atol)


@pytest.mark.parametrize("backbone", _backbones("train_pre_tanh"), indirect=True)
def test_golden_backbone_in_training_mode(backbone):
    case, probe = backbone.case, golden.fills().probe
    # As the case says: without dropout, whose masks differ.
    has_dropout = hasattr(backbone.model, "dropout_rate")
    model = _backbone_model(case, **({"dropout_rate": 0.0} if has_dropout else {}))

    @jax.jit
    def outputs(variables, images):
        _, calls, stats = _dense_layers(
            model, variables, images, training=_training(len(backbone.images))
        )
        return calls[-1][1], stats

    pre_tanh, stats = outputs(backbone.variables, backbone.images)
    expected = case["train_pre_tanh"]
    np.testing.assert_allclose(pre_tanh, expected, rtol=0, atol=_scaled_tolerance(case, expected))
    actual = _torch_layout({"batch_stats": stats})
    for kind in ("running_mean", "running_var"):
        for name, probes in zip(
            case.constants["bn_names"], case[f"train_{kind}_probe"], strict=True
        ):
            atol = case.tolerance("running statistics rel") * np.abs(probes).max()
            np.testing.assert_allclose(
                probe(actual[f"{name}.{kind}"], probes.size), probes, rtol=0, atol=atol
            )


@pytest.mark.parametrize("name", BACKBONES)
def test_golden_backbone_names(name):
    case = golden.load(name)
    shapes = {key: shape for _, key, shape, _ in case.constants["state_dict"]}
    if "fc" not in name:
        # The names of an export are the released ones, each and no other.
        assert set(networks.to_torch_weights(_random_variables(_tiny(_backbone_name(name))))) == (
            set(shapes)
        )
        return
    # All of the released names at once have their place.
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    _, report = networks.load_torch_weights(_shapes(_backbone_model(case), 224), zeros)
    assert report.left_random == report.unused == ()
