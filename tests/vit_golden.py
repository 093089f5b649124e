"""Vision transformers of timm, Hugging Face and OpenCLIP: what they put out, stored.

    python -m tests.vit_golden            # needs timm, transformers and open_clip_torch; writes
    python -m tests.vit_golden --full     # compares networks of full size, and writes nothing

Weights are of a rule (`fill`), so that tests/data/vit.npz holds outputs and shapes alone.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

PATH = pathlib.Path(__file__).parent / "data" / "vit.npz"
IMAGE_SIZE, PATCH, WIDTH, HEADS = 32, 8, 24, 3
# Another size than that of pre-training, and not square.
OTHER = (48, 24)
# Of each case: options of `VisionTransformer` beside the sizes.
CASES: dict[str, dict[str, Any]] = {
    "timm_vit": {},
    "timm_mean": {"pool": "mean", "norm_pooled": True},
    "timm_registers": {"num_registers": 2, "layer_scale": True},
    "timm_siglip": {"class_token": False, "pool": "attention"},
    "timm_clip": {"pre_norm": True, "projection": 16, "norm_epsilon": 1e-5},
    "hf_vit": {"norm_epsilon": 1e-12, "interpolation": "plain"},
    "hf_dinov2": {"layer_scale": True, "interpolation": "plain"},
    "hf_dinov2_registers": {"layer_scale": True, "num_registers": 2},
    "hf_clip": {
        "pre_norm": True,
        "projection": 16,
        "norm_epsilon": 1e-5,
        "activation": "quick_gelu",
        "interpolation": "plain",
    },
    "hf_siglip": {
        "class_token": False,
        "pool": "attention",
        "activation": "gelu_tanh",
        "interpolation": "plain",
    },
    "openclip": {
        "pre_norm": True,
        "projection": 16,
        "norm_epsilon": 1e-5,
        "activation": "quick_gelu",
    },
}


def fill(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by a rule: large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        value = rng.normal(size=shape)
        if len(shape) > 1 and min(shape) > 1:
            fan_in = shape[0] if name.endswith("visual.proj") else np.prod(shape[1:])
            value = value * (2.0 / np.sqrt(fan_in))
        elif "norm" in name.rpartition(".")[0].rpartition(".")[2] or "ln_" in name:
            value = 0.2 * value + (1 if name.endswith("weight") else 0)
        weights[name] = (value if value.ndim > 1 else value * 0.5).astype(np.float32)
    return weights


def images(height: int, width: int) -> np.ndarray:
    """Two images, `[2, height, width, 3]` in [0, 1]."""
    return np.random.default_rng(height + width).random((2, height, width, 3), np.float32)


def stored() -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, np.ndarray]]:
    """Shapes by case and name, and outputs by "case/same" and "case/other"."""
    with np.load(PATH) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("shapes"))), arrays


def _models() -> dict[str, tuple[Any, Any, dict[str, str]]]:
    """By case: the model, (model, pixels) -> features, and prefixes to add to its names."""
    import transformers as hf
    from open_clip import transformer as openclip
    from timm.models.vision_transformer import VisionTransformer

    sizes = {
        "img_size": IMAGE_SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2,
        "num_heads": HEADS, "num_classes": 0, "dynamic_img_size": True,
    }  # fmt: skip
    hf_sizes = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE, "patch_size": PATCH, "intermediate_size": 4 * WIDTH,
    }  # fmt: skip

    def timm(**options: Any) -> tuple[Any, Any, str]:
        return VisionTransformer(**{**sizes, **options}), lambda m, x: m(x), ""

    def pooled(get: Any, **given: Any) -> Any:
        return lambda m, x: get(m(pixel_values=x, interpolate_pos_encoding=True, **given))

    first = pooled(lambda out: out.last_hidden_state[:, 0])
    dino = lambda m, x: m(pixel_values=x).last_hidden_state[:, 0]  # noqa: E731
    return {
        "timm_vit": timm(),
        "timm_mean": timm(global_pool="avg"),
        "timm_registers": timm(reg_tokens=2, no_embed_class=True, init_values=0.1),
        "timm_siglip": timm(class_token=False, global_pool="map"),
        "timm_clip": timm(pre_norm=True, num_classes=16, norm_layer=_norm_of_clip()),
        "hf_vit": (hf.ViTModel(hf.ViTConfig(**hf_sizes)), first, ""),
        "hf_dinov2": (hf.Dinov2Model(hf.Dinov2Config(**hf_sizes)), dino, ""),
        "hf_dinov2_registers": (
            hf.Dinov2WithRegistersModel(
                hf.Dinov2WithRegistersConfig(**hf_sizes, num_register_tokens=2)
            ),
            dino,
            "",
        ),
        "hf_clip": (
            hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**hf_sizes, projection_dim=16)),
            pooled(lambda out: out.image_embeds),
            "",
        ),
        "hf_siglip": (
            hf.SiglipVisionModel(hf.SiglipVisionConfig(**hf_sizes)),
            pooled(lambda out: out.pooler_output),
            "",
        ),
        "openclip": (
            openclip.VisionTransformer(
                image_size=IMAGE_SIZE, patch_size=PATCH, width=WIDTH, layers=2, heads=HEADS,
                mlp_ratio=4.0, output_dim=16, act_layer=openclip.QuickGELU,
            ),
            lambda m, x: m(x),
            "visual.",
        ),
    }  # fmt: skip


def _norm_of_clip() -> Any:
    import functools

    import torch

    return functools.partial(torch.nn.LayerNorm, eps=1e-5)


def saved_names(model: Any, prefix: str) -> dict[str, str]:
    """The model's names in memory by those in its files."""
    import tempfile

    from safetensors import numpy as safetensors

    names = {prefix + name: name for name in model.state_dict()}
    if not hasattr(model, "save_pretrained"):
        return names
    # Told apart by their values.
    import torch

    state = model.state_dict()
    with torch.no_grad():
        for number, tensor in enumerate(state.values()):
            if tensor.is_floating_point():
                tensor.copy_(torch.full_like(tensor, float(number)))
    by_number = dict(enumerate(state))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        arrays = safetensors.load_file(f"{folder}/model.safetensors")
    return {name: by_number[int(array.flat[0])] for name, array in arrays.items()}


def _set(model: Any, weights: dict[str, np.ndarray], names: dict[str, str]) -> None:
    import torch

    state = {names[name]: torch.from_numpy(array) for name, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    model.eval()


def main() -> None:
    """Writes the file."""
    import torch

    shapes: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for case, (model, run, prefix) in _models().items():
        names = saved_names(model, prefix)
        state = model.state_dict()
        shapes[case] = {
            name: tuple(state[own].shape)
            for name, own in names.items()
            if state[own].is_floating_point()
        }
        weights = fill(shapes[case])
        if "head.bias" in weights:
            weights["head.bias"][:] = 0
        _set(model, weights, names)
        for kind, size in (("same", (IMAGE_SIZE,) * 2), ("other", OTHER)):
            if case == "openclip" and kind == "other":
                # It takes images of one size.
                continue
            pixels = torch.from_numpy(images(*size).transpose(0, 3, 1, 2))
            with torch.no_grad():
                arrays[f"{case}/{kind}"] = run(model, pixels).numpy()
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, shapes=json.dumps(shapes), **arrays)
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")


def full() -> None:
    """Prints the largest difference of whole networks, of the originals' random weights."""
    import timm
    import torch
    import transformers as hf

    from saat_jax import networks

    def dino(kind: Any, config: Any) -> Any:
        return kind(config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14))

    originals = {
        "vit_s16": (timm.create_model("vit_small_patch16_224", num_classes=0), lambda m, x: m(x)),
        "vit_s14_dinov2_registers": (
            dino(hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig),
            lambda m, x: m(pixel_values=x).pooler_output,
        ),
        "vit_s14_dinov2": (
            dino(hf.Dinov2Model, hf.Dinov2Config),
            lambda m, x: m(pixel_values=x).pooler_output,
        ),
        "vit_b32_clip": (
            hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig()),
            lambda m, x: m(pixel_values=x).image_embeds,
        ),
        "vit_b16_siglip": (
            hf.SiglipVisionModel(hf.SiglipVisionConfig()),
            lambda m, x: m(pixel_values=x).pooler_output,
        ),
    }
    pixels = images(224, 224)
    for name, (model, run) in originals.items():
        model.eval()
        # Of their own initial values a network's positions and registers are all but zero.
        torch.manual_seed(0)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.02 * torch.randn_like(tensor))
            expected = run(model, torch.from_numpy(pixels.transpose(0, 3, 1, 2))).numpy()
        net = networks.create_network(name, num_bits=8, input_norm=False)
        variables = networks.init_variables(net, jax.random.key(0), image_size=224)
        variables, report = networks.load_torch_weights(variables, model.state_dict())
        assert set(report.left_random) == {"hash_layer.weight", "hash_layer.bias"}, report
        actual = np.asarray(jax.jit(networks.make_features_fn(net))(variables, pixels))
        error, scale = np.abs(actual - expected).max(), np.abs(expected).max()
        print(f"{name}: largest difference {error:.2e} of {scale:.3g}, {error / scale:.1e}")


if __name__ == "__main__":
    {(): main, ("--full",): full}[tuple(sys.argv[1:])]()
