"""Layers, networks and weights: by hand, by loops, and against the released networks."""

import functools
import math
import os
import pathlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saat_jax import networks
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
    expected = outside.apply(variables, networks.normalize(jnp.asarray(images), True))
    np.testing.assert_allclose(SMALL.apply(variables, images), expected, rtol=1e-5)
    assert not np.allclose(outside.apply(variables, images), expected)


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


@pytest.mark.parametrize("num_bits", [16, 32])
def test_alexnet_parameter_count(num_bits):
    # SPEC 2.2: 57 003 840 without the hash layer, which has 4096 weights and a bias per bit.
    params = _shapes(networks.AlexNet(num_bits), 224)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == 57_003_840 + 4097 * num_bits


def test_alexnet_refuses_small_images():
    with pytest.raises(ValueError, match="at least 63 x 63 pixels, got 62 x 62; .*convnet"):
        _shapes(networks.AlexNet(8), 62)
    with pytest.raises(ValueError, match="got 224 x 62"):
        images = jax.ShapeDtypeStruct((1, 224, 62, 3), jnp.float32)
        jax.eval_shape(networks.AlexNet(8).init, jax.random.key(0), images)
    # The least it takes, and another size than 224: the parameters are the same.
    shapes = [_shapes(networks.AlexNet(8), size) for size in (63, 96, 224)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_alexnet_drops_out_in_training_only():
    text = {}
    for training in (None, _training(1)):
        text[training is None] = str(
            jax.make_jaxpr(lambda v, x, t=training: networks.AlexNet(8).apply(v, x, training=t))(
                _shapes(networks.AlexNet(8), 64),
                jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
            )
        )
    assert "random_bits" in text[False] and "random_bits" not in text[True]


def test_create_network_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"unknown network 'lenet'.*'alexnet', 'convnet'"):
        networks.create_network("lenet", num_bits=8)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        networks.create_network("convnet", num_bits=0)
    with pytest.raises(ValueError, match=r"no option \['rate'\].*'dropout_rate', 'input_norm'"):
        networks.create_network("alexnet", num_bits=8, rate=0.5)
    with pytest.raises(ValueError, match=r"no option \['parent'\]"):
        networks.create_network("convnet", num_bits=8, parent=None)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_create_network(name):
    model = networks.create_network(name, num_bits=8, input_norm=False)
    assert isinstance(model, nn.Module)
    assert model.num_bits == 8 and model.input_norm is False
    assert networks.create_network(name, num_bits=8).input_norm is True


# --- weights ---


def _torch_layout(params):
    """A network's parameters as PyTorch would name and lay them out."""
    weights = {}
    for (module, leaf), value in flax.traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        if value.ndim == 4:
            value = np.moveaxis(value, (0, 1), (2, 3)).swapaxes(0, 1)
        elif value.ndim == 2:
            value = value.T
        weights[f"{module.replace('_', '.')}.{'bias' if leaf == 'bias' else 'weight'}"] = value
    return weights


def _donor_params():
    """Other parameters for `SMALL`, no two alike."""
    leaves, structure = jax.tree.flatten(_small_variables()["params"])
    return structure.unflatten([_random(seed, *leaf.shape) for seed, leaf in enumerate(leaves)])


@pytest.mark.parametrize("source", ["file", "path", "mapping"])
def test_weights_round_trip(tmp_path, source):
    donor, variables = _donor_params(), _small_variables()
    weights = _torch_layout(donor)
    assert weights["conv.1.weight"].shape == (6, 4, 3, 3) and weights["hash.weight"].shape == (4, 6)
    path = tmp_path / "weights.npz"
    np.savez(path, **weights)
    given = {"file": str(path), "path": path, "mapping": weights}[source]
    loaded, report = networks.load_torch_weights(variables, given)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], donor)
    assert loaded["batch_stats"] is variables["batch_stats"]
    assert report.loaded == tuple(sorted(weights))
    assert report.left_random == report.unused == ()


def test_part_of_the_weights_is_reported():
    donor, variables = _donor_params(), _small_variables()
    weights = _torch_layout(donor)
    given = {"conv.0.weight": weights["conv.0.weight"].astype(np.float16), "fc.bias": np.ones(3)}
    loaded, report = networks.load_torch_weights(variables, given)
    assert report.loaded == ("conv.0.weight",)
    assert report.unused == ("fc.bias",)
    assert set(report.left_random) == set(weights) - {"conv.0.weight"}
    kernel = loaded["params"]["conv_0"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, donor["conv_0"]["kernel"], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(
        loaded["params"]["hash"]["kernel"], variables["params"]["hash"]["kernel"]
    )
    # The variables given are not changed.
    assert np.any(variables["params"]["conv_0"]["kernel"] != kernel)


def test_unfit_weights_are_refused(tmp_path):
    variables = _small_variables()
    weights = _torch_layout(variables["params"])
    with pytest.raises(ValueError, match=r"hash.weight has shape \(6, 9\).*\(6, 4\).*num_bits"):
        networks.load_torch_weights(variables, weights | {"hash.weight": np.ones((9, 6))})
    with pytest.raises(ValueError, match=r"conv.0.weight has shape \(5, 5, 3, 4\)"):
        networks.load_torch_weights(variables, weights | {"conv.0.weight": np.ones((4, 3, 5, 5))})
    with pytest.raises(ValueError, match=r"no tensor fits.*'fc.weight'.*'conv.0.weight'"):
        networks.load_torch_weights(variables, {"fc.weight": np.ones((4, 6))})
    for name in ("weights.pth", "weights"):
        with pytest.raises(ValueError, match=rf"expected a \.npz file of weights, got .*{name}"):
            networks.load_torch_weights(variables, tmp_path / name)


def test_torch_name():
    assert networks.torch_name(("features_10", "kernel")) == "features.10.weight"
    assert networks.torch_name(("classifier_1", "bias")) == "classifier.1.bias"
    assert networks.torch_name(("norm_0", "scale")) == "norm.0.weight"


def test_torchvision_features_find_their_place():
    path = SHARED / "weights" / "alexnet_features_f16.npz"
    if not path.is_file():
        pytest.skip(f"no {path}; set SHARED_DIR to the folder that has weights/")
    # Shapes are enough to find a place.
    variables = _shapes(networks.AlexNet(16), 224)
    loaded, report = networks.load_torch_weights(variables, path)
    with np.load(path) as file:
        weights = dict(file)
    assert report.loaded == tuple(sorted(weights)) and report.unused == ()
    assert {name.split(".")[0] for name in report.left_random} == {"classifier"}
    assert len(report.left_random) == 6
    for layer in (0, 3, 6, 8, 10):
        module = loaded["params"][f"features_{layer}"]
        weight = weights[f"features.{layer}.weight"].astype(np.float32)
        np.testing.assert_array_equal(np.transpose(module["kernel"], (3, 2, 0, 1)), weight)
        np.testing.assert_array_equal(module["bias"], weights[f"features.{layer}.bias"])


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


@pytest.fixture(scope="module")
def alexnet():
    """The case, its network and variables, and its images; 230 MB, so made once."""
    case, fills = golden.load("backbone_alexnet"), golden.fills()
    constants = case.constants
    weights = {
        name: fills.fill_array(
            name, shape, number + constants["fill_offset"], constants["fill_gain"]
        )
        for number, name, shape, _ in constants["state_dict"]
    }
    model = networks.create_network("alexnet", num_bits=constants["bit"])
    # The weights are complete, so that the shapes of the variables will do.
    variables, report = networks.load_torch_weights(_shapes(model, 224), weights)
    assert report.left_random == report.unused == ()
    images = fills.formula_images(
        len(case["pre_tanh"]), 224, 224, constants["img_phase"], constants["img_j"]
    )
    probes = case["image_probe"]
    for image, probe in zip(images, probes, strict=True):
        np.testing.assert_allclose(fills.probe(image, probe.size), probe, atol=1e-6)
    return case, model, variables, images


def test_golden_backbone_alexnet(alexnet):
    case, model, variables, images = alexnet
    probe = golden.fills().probe

    @jax.jit
    def outputs(variables, images):
        codes, state = model.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: module.name in ("features_10", "classifier_6"),
            mutable=["intermediates"],
        )
        layers = {name: value["__call__"][0] for name, value in state["intermediates"].items()}
        features = networks.max_pool(nn.relu(layers["features_10"]), size=3, stride=2)
        return codes, layers["classifier_6"], networks.flatten_channels_first(features)

    codes, pre_tanh, features = map(np.asarray, outputs(variables, golden.nhwc(images)))
    expected = case["pre_tanh"]
    tolerance = case.tolerance("pre_tanh max abs error <=")
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(pre_tanh, expected, rtol=0, atol=atol)
    # tanh does not enlarge a difference.
    np.testing.assert_allclose(codes, case["codes_alpha1"], rtol=0, atol=atol)
    for feature, probes, (mean, std, largest) in zip(
        features, case["flat_feature_probe"], case["flat_feature_stat"], strict=True
    ):
        atol = tolerance * largest
        np.testing.assert_allclose(probe(feature, probes.size), probes, rtol=0, atol=atol)
        stat = [feature.mean(), feature.std(), np.abs(feature).max()]
        np.testing.assert_allclose(stat, [mean, std, largest], rtol=0, atol=atol)


def test_golden_backbone_alexnet_scales_and_image_gradients(alexnet):
    case, model, variables, images = alexnet
    probe = golden.fills().probe
    encode_fn = networks.make_encode_fn(model)

    @jax.jit
    def step(variables, images, alpha):
        def total(images):
            codes = encode_fn(variables, images, alpha)
            return jnp.mean(codes * case["grad_target"]), codes

        return jax.grad(total, has_aux=True)(images)

    images = golden.nhwc(images)
    tolerance = case.tolerance("pre_tanh max abs error <=") * np.abs(case["pre_tanh"]).max()
    for key, expected in case.group("codes_alpha").items():
        gradient, codes = step(variables, images, float(key))
        np.testing.assert_allclose(codes, expected, rtol=0, atol=float(key) * tolerance)
        stats, probes = case[f"grad_image_stat_alpha{key}"], case[f"grad_image_probe_alpha{key}"]
        for image, stat, values in zip(np.asarray(gradient), stats, probes, strict=True):
            image = np.moveaxis(image, -1, 0)
            atol = case.tolerance("gradient probes") * stat[2]
            np.testing.assert_allclose(probe(image, values.size), values, rtol=0, atol=atol)
            actual = [image.mean(), image.std(), np.abs(image).max()]
            np.testing.assert_allclose(actual, stat, rtol=0, atol=atol)
