"""Vision transformers: against the originals' stored outputs, their weights there and back."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import networks
from saat_jax.networks import transformer_names, transformers
from tests import vit_golden
from tests.vit_golden import CASES, HEADS, IMAGE_SIZE, PATCH, WIDTH

SHAPES, OUTPUTS = vit_golden.stored()
NUM_BITS = 5
# The layouts that write each case's names, by the beginning of its name.
LAYOUTS = {
    "timm": "timm",
    "hf_vit": "hf_vit",
    "hf_dinov2": "hf_dinov2",
    "hf_clip": "hf_clip",
    "hf_siglip": "hf_siglip",
    "openclip": "openclip",
}


def _model(case, **options):
    sizes = {"width": WIDTH, "depth": 2, "num_heads": HEADS, "patch_size": PATCH}
    given = {"grid": IMAGE_SIZE // PATCH, "input_norm": False, **CASES[case]}
    return networks.VisionTransformer(NUM_BITS, **{**sizes, **given, **options})


def _shapes(model, size=IMAGE_SIZE):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _weights(case):
    weights = vit_golden.fill(SHAPES[case])
    if "head.bias" in weights:
        weights["head.bias"][:] = 0
    return weights


@functools.cache
def _loaded(case):
    # The hash layer's shapes are no numbers.
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.25), dict(_shapes(_model(case)))
    )
    return networks.load_torch_weights(variables, _weights(case))


@functools.cache
def _features(case):
    model = _model(case)
    features_fn = jax.jit(networks.make_features_fn(model))
    return lambda images: np.asarray(features_fn(_loaded(case)[0], images))


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_originals(case):
    report = _loaded(case)[1]
    assert set(report.left_random) == {"hash_layer.weight", "hash_layer.bias"}
    assert report.unused == ()
    sizes = {"same": (IMAGE_SIZE,) * 2, "other": vit_golden.OTHER}
    for kind, size in sizes.items():
        if (expected := OUTPUTS.get(f"{case}/{kind}")) is not None:
            actual = _features(case)(vit_golden.images(*size))
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
