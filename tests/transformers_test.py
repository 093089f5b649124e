"""Vision transformers: against the originals' stored outputs, their weights there and back."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import networks
from saat_jax.networks import transformer_names, transformers
from tests import vit_golden
from tests.vit_golden import CASES, HEADS, IMAGE_SIZE, PATCH, WIDTH

pytestmark = pytest.mark.usefixtures("quick_compilation")
SHAPES, OUTPUTS = vit_golden.stored()
NUM_BITS = 5


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
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.25), dict(_shapes(_model(case))))
    return networks.load_torch_weights(variables, _weights(case))


@functools.cache
def _features(case):
    model = _model(case)
    # Op by op: most operations are of the same shapes in all cases, and compile once.
    features_fn = networks.make_features_fn(model)
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


def _assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_weights_go_home_as_they_came(case):
    variables = _loaded(case)[0]
    layout = max((name for name in transformer_names.LAYOUTS if case.startswith(name)), key=len)
    weights = networks.to_torch_weights(variables, layout=layout)
    # timm's own head is the hash layer, unless it is CLIP's projection.
    name = "head" if layout == "timm" and "projection" not in CASES[case] else "hash_layer"
    hash_layer = {f"{name}.{leaf}": weights.pop(f"{name}.{leaf}") for leaf in ("weight", "bias")}
    assert hash_layer[f"{name}.weight"].shape[0] == NUM_BITS
    needless = ("mask_token", "pooler.dense.weight", "pooler.dense.bias")
    expected = {k: v for k, v in _weights(case).items() if not k.endswith(needless)}
    if case == "hf_siglip":
        # Files of version 5 have the tower's names without what version 4 has before them.
        expected = {f"vision_model.{name}": value for name, value in expected.items()}
    _assert_equal(weights, expected)
    again, report = networks.load_torch_weights(_shapes(_model(case)), weights | hash_layer)
    assert report.left_random == report.unused == ()
    if case != "timm_registers":
        jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
def test_weights_go_through_files(tmp_path, kind):
    pytest.importorskip({"pth": "torch", "safetensors": "safetensors"}.get(kind, "numpy"))
    path, (variables, _) = tmp_path / f"clip.{kind}", _loaded("hf_clip")
    networks.save_torch_weights(path, variables, layout="openclip")
    again, report = networks.load_torch_weights(_shapes(_model("hf_clip")), path)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert report.left_random == report.unused == ()


def _in_memory(name):
    """Names of Hugging Face's models of version 5, whose files keep those of before."""
    for old, new in (
        (r"attention\.attention\.query", "attention.q_proj"),
        (r"attention\.attention\.key", "attention.k_proj"),
        (r"attention\.attention\.value", "attention.v_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    ):
        name = re.sub(old, new, name)
    return name


# What stands around the same tensors.
SPELLINGS = {
    "a wrapper": ("timm_vit", lambda w: {f"module.{k}": v for k, v in w.items()}),
    "DINOv2 as released": (
        "timm_registers",
        lambda w: {k.replace("reg_token", "register_tokens"): v for k, v in w.items()},
    ),
    "classes": ("timm_vit", lambda w: w | {"head.weight": np.ones((21843, WIDTH), np.float32)}),
    "a classifier around": (
        "hf_vit",
        lambda w: (
            {f"vit.{k}": v for k, v in w.items()}
            | {"classifier.weight": np.ones((1000, WIDTH), np.float32)}
        ),
    ),
    "in memory": (
        "hf_vit",
        lambda w: {_in_memory(k).replace("encoder.layer.", "layers."): v for k, v in w.items()},
    ),
    "DINOv2 in memory": ("hf_dinov2", lambda w: {_in_memory(k): v for k, v in w.items()}),
    "a text tower": (
        "hf_clip",
        lambda w: (
            w
            | {"text_model.encoder.layers.0.mlp.fc1.weight": np.ones((4, 4), np.float32)}
            | {"logit_scale": np.ones((), np.float32)}
        ),
    ),
    "OpenCLIP's text tower": (
        "openclip",
        lambda w: (
            w
            | {"positional_embedding": np.ones((77, 8), np.float32)}
            | {"transformer.resblocks.0.ln_1.weight": np.ones(8, np.float32)}
        ),
    ),
    "SigLIP in OpenCLIP": (
        "timm_siglip",
        lambda w: (
            {f"visual.trunk.{k}": v for k, v in w.items()}
            | {"text.ln_final.weight": np.ones(8, np.float32)}
        ),
    ),
    "a tower alone": (
        "hf_siglip",
        lambda w: {k.removeprefix("vision_model."): v for k, v in w.items()},
    ),
    "OpenCLIP's tower alone": (
        "openclip",
        lambda w: {k.removeprefix("visual."): v for k, v in w.items()},
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_are_known_in_every_spelling(spelling):
    case, change = SPELLINGS[spelling]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(_shapes(_model(case))))
    expected, _ = networks.load_torch_weights(zeros, _weights(case))
    loaded, report = networks.load_torch_weights(zeros, change(_weights(case)))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert report.unused == ()


@pytest.mark.parametrize(
    "case, change, message",
    [
        (
            "timm_vit",
            lambda w: w | {"blocks.2.norm1.weight": np.ones(WIDTH, np.float32)},
            "1 have no place in the network: blocks.2.norm1.weight; is it of another network",
        ),
        (
            "timm_vit",
            lambda w: w | {"pos_embed": np.ones((1, 26, WIDTH), np.float32)},
            "positions of 5 x 5 patches.*set grid=5",
        ),
        (
            "hf_clip",
            lambda w: (
                w
                | {"vision_model.embeddings.position_embedding.weight": np.ones((37, WIDTH), "f4")}
            ),
            "positions of 6 x 6 patches.*set grid=6",
        ),
        (
            "timm_clip",
            lambda w: w | {"head.bias": np.ones(16, np.float32)},
            "head.bias is not zero, and the network's projection has no bias",
        ),
        (
            "timm_vit",
            lambda w: w | {"head.weight": np.ones((10, WIDTH), np.float32)},
            r"hash_layer.weight has shape \(10, 24\), the network expects \(5, 24\)",
        ),
        (
            "hf_vit",
            lambda w: (
                w
                | {
                    "encoder.layer.1.attention.attention.key.weight": np.ones(
                        (8, WIDTH), np.float32
                    )
                }
            ),
            r"blocks.1.attn.qkv.weight has shape \(56, 24\), the network expects \(72, 24\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(case, change, message):
    with pytest.raises(ValueError, match=message):
        networks.load_torch_weights(_shapes(_model(case)), change(_weights(case)))


def test_a_layout_without_a_place_is_refused():
    variables = _loaded("timm_siglip")[0]
    with pytest.raises(ValueError, match=r"'hf_vit' has no place for attn_pool.*\['timm', 'hf_sig"):
        networks.to_torch_weights(variables, layout="hf_vit")
    with pytest.raises(ValueError, match="unknown layout 'keras'.*'hf_clip'"):
        networks.to_torch_weights(variables, layout="keras")


@pytest.mark.parametrize("size, new_size", [(4, 6), (7, 3), (5, 5), (37, 16), (3, 11)])
@pytest.mark.parametrize("antialias", [True, False])
def test_cubic_weights_are_pytorchs(size, new_size, antialias):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    weights = transformers.cubic_weights(size, new_size, antialias=antialias)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (new_size,) * 2, mode="bicubic", antialias=antialias
    )[0, 0]
    np.testing.assert_allclose(weights @ values @ weights.T, expected, atol=2e-6)


def test_recomputed_gradients_are_the_same():
    images, variables = vit_golden.images(16, 16), _loaded("timm_vit")[0]

    def step(remat):
        model = _model("timm_vit", depth=1, remat=remat)
        return jax.grad(lambda v, x: jnp.sum(model.apply(v, x, 0.3)), argnums=(0, 1))

    kept, anew = (jax.jit(step(remat))(variables, images) for remat in (False, True))
    assert "remat" in str(jax.make_jaxpr(step(True))(variables, images))
    for ours, theirs in zip(jax.tree.leaves(anew), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-9)


def test_half_precision_stays_inside():
    model = _model("hf_clip", dtype="bfloat16")
    assert _shapes(model) == _shapes(_model("hf_clip"))
    kinds = []

    def record(function, args, kwargs, context):
        output = function(*args, **kwargs)
        if isinstance(context.module, networks.Conv | networks.Dense | transformers.Attention):
            kinds.append(output.dtype)
        return output

    with nn.intercept_methods(record):
        images = jax.ShapeDtypeStruct((2, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
        codes = jax.eval_shape(model.apply, _loaded("hf_clip")[0], images)
    assert codes.dtype == kinds[-1] == jnp.float32
    assert set(kinds[:-1]) == {jnp.dtype("bfloat16")}
    pixels = vit_golden.images(IMAGE_SIZE, IMAGE_SIZE)
    rough = jax.jit(networks.make_features_fn(model))(_loaded("hf_clip")[0], pixels)
    exact = OUTPUTS["hf_clip/same"]
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", transformers.PRESETS)
def test_presets(name):
    model = networks.create_network(name, num_bits=NUM_BITS)
    size = model.grid * model.patch_size
    params = _shapes(model, size)["params"]
    assert params["hash_layer"]["kernel"].shape[1] == NUM_BITS
    # Without blocks of 12 the rest is as wide as its name says.
    assert params["norm"]["scale"].shape == ({"t": 192, "s": 384, "b": 768}[name[4]],)
    assert str(model.patch_size) in name and len([b for b in params if "blocks" in b]) == 12
    mean, std = networks.STATISTICS[model.statistics]
    assert len(mean) == len(std) == 3


def test_other_sizes_have_the_same_parameters():
    model = _model("timm_vit")
    assert _shapes(model, 8) == _shapes(model, 64) == _shapes(model)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vit_s16", {"depth": 3, "width": 8}, r"no option \['width'\]"),
        ("vit_b16", {"pool": "max"}, "unknown pool 'max'.*'attention', 'class', 'mean'"),
        ("vit_b16", {"activation": "relu"}, "unknown activation 'relu'.*'quick_gelu'"),
        ("vit_b16", {"statistics": "none"}, "unknown statistics 'none'.*'clip', 'half'"),
        ("vit_b16", {"interpolation": "linear"}, "unknown interpolation 'linear'"),
        ("vit_b16", {"grid": 0}, "grid must be a whole number .*, got 0"),
        ("vit_b16", {"norm_epsilon": 0}, "norm_epsilon must be a number above 0"),
        ("vit_b16", {"norm_pooled": 1}, "norm_pooled must be True or False, got '1'"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.create_network(name, num_bits=8, **options)


@pytest.mark.parametrize(
    "options, size, message",
    [
        ({}, 30, "patches of 8 pixels must divide the images, got 30 x 30; .* such as 128"),
        ({"num_heads": 5}, 32, "num_heads must divide width 24, got 5"),
        ({"class_token": False}, 32, "pool 'class' needs the class token"),
    ],
)
def test_what_does_not_fit_is_refused(options, size, message):
    with pytest.raises(ValueError, match=message):
        _shapes(_model("timm_vit", **options), size)


def test_counted_operations_worked_by_hand():
    card = networks.model_card("vit_b32", num_bits=32, image_size=64)
    width, tokens = 768, 5
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 4 * tokens**2 * width
    assert card["flops"] == 2 * 4 * 32 * 32 * 3 * width + 12 * block + 2 * width * 32
