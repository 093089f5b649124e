"""What timm, Hugging Face and OpenCLIP call the tensors of a vision transformer.

Each layout is one table, read in both directions. The tensors of a foreign name may be several that
lie one after another in ours (queries, keys, values), or ours without its axes of length one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saat_jax import options
from saat_jax.networks.weight_files import Stored

# Of a tensor or a layer of ours ("N" is a block's number), the one or more that it is elsewhere.
Layout = Mapping[str, str | tuple[str, ...]]


def _apart(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for name in names)


_TIMM: Layout = {
    "cls_token": "cls_token",
    "reg_token": "reg_token",
    "pos_embed": "pos_embed",
    "patch_embed": "patch_embed.proj",
    "norm_pre": "norm_pre",
    "blocks.N": "blocks.N",
    "norm": "norm",
    "fc_norm": "fc_norm",
    "attn_pool": "attn_pool",
    "attn_pool.attn.qkv": _apart("attn_pool.", "q", "kv"),
    "attn_pool.attn.proj": "attn_pool.proj",
    "projection": "head",
}
_HF_START: Layout = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed": "embeddings.patch_embeddings.projection",
    "blocks.N.attn.qkv": _apart("encoder.layer.N.attention.attention.", "query", "key", "value"),
    "blocks.N.attn.proj": "encoder.layer.N.attention.output.dense",
    "norm": "layernorm",
}
_HF_VIT: Layout = {
    **_HF_START,
    "blocks.N.norm1": "encoder.layer.N.layernorm_before",
    "blocks.N.norm2": "encoder.layer.N.layernorm_after",
    "blocks.N.mlp.fc1": "encoder.layer.N.intermediate.dense",
    "blocks.N.mlp.fc2": "encoder.layer.N.output.dense",
}
_HF_DINOV2: Layout = {
    **_HF_START,
    "blocks.N.norm1": "encoder.layer.N.norm1",
    "blocks.N.norm2": "encoder.layer.N.norm2",
    "blocks.N.mlp": "encoder.layer.N.mlp",
    "blocks.N.ls1.gamma": "encoder.layer.N.layer_scale1.lambda1",
    "blocks.N.ls2.gamma": "encoder.layer.N.layer_scale2.lambda1",
}
_HF_TOWER: Layout = {
    "pos_embed": "vision_model.embeddings.position_embedding.weight",
    "patch_embed": "vision_model.embeddings.patch_embedding",
    "blocks.N.norm1": "vision_model.encoder.layers.N.layer_norm1",
    "blocks.N.norm2": "vision_model.encoder.layers.N.layer_norm2",
    "blocks.N.attn.qkv": _apart(
        "vision_model.encoder.layers.N.self_attn.", "q_proj", "k_proj", "v_proj"
    ),
    "blocks.N.attn.proj": "vision_model.encoder.layers.N.self_attn.out_proj",
    "blocks.N.mlp": "vision_model.encoder.layers.N.mlp",
    "norm": "vision_model.post_layernorm",
}
_HF_CLIP: Layout = {
    **_HF_TOWER,
    "cls_token": "vision_model.embeddings.class_embedding",
    "norm_pre": "vision_model.pre_layrnorm",
    "projection": "visual_projection",
}
_HF_SIGLIP: Layout = {
    **_HF_TOWER,
    "attn_pool.latent": "vision_model.head.probe",
    "attn_pool.attn.qkv.weight": "vision_model.head.attention.in_proj_weight",
    "attn_pool.attn.qkv.bias": "vision_model.head.attention.in_proj_bias",
    "attn_pool.attn.proj": "vision_model.head.attention.out_proj",
    "attn_pool.norm": "vision_model.head.layernorm",
    "attn_pool.mlp": "vision_model.head.mlp",
}
_OPENCLIP: Layout = {
    "cls_token": "visual.class_embedding",
    "pos_embed": "visual.positional_embedding",
    "patch_embed": "visual.conv1",
    "norm_pre": "visual.ln_pre",
    "blocks.N.norm1": "visual.transformer.resblocks.N.ln_1",
    "blocks.N.norm2": "visual.transformer.resblocks.N.ln_2",
    "blocks.N.attn.qkv.weight": "visual.transformer.resblocks.N.attn.in_proj_weight",
    "blocks.N.attn.qkv.bias": "visual.transformer.resblocks.N.attn.in_proj_bias",
    "blocks.N.attn.proj": "visual.transformer.resblocks.N.attn.out_proj",
    "blocks.N.mlp.fc1": "visual.transformer.resblocks.N.mlp.c_fc",
    "blocks.N.mlp.fc2": "visual.transformer.resblocks.N.mlp.c_proj",
    "norm": "visual.ln_post",
    "projection.weight": "visual.proj",
}
# Those that are written.
LAYOUTS: options.Choices[Layout] = options.Choices(
    "layout",
    {
        "timm": _TIMM,
        "hf_vit": _HF_VIT,
        "hf_dinov2": _HF_DINOV2,
        "hf_clip": _HF_CLIP,
        "hf_siglip": _HF_SIGLIP,
        "openclip": _OPENCLIP,
    },
)
_ATTENTION_OF_5: Layout = {
    "blocks.N.attn.qkv": _apart("encoder.layer.N.attention.", "q_proj", "k_proj", "v_proj"),
    "blocks.N.attn.proj": "encoder.layer.N.attention.o_proj",
}
# Those that are read besides: the first release of DINOv2, and models in memory of Hugging Face's
# transformers 5, whose files keep the names above.
_READ: tuple[Layout, ...] = (
    *LAYOUTS.values(),
    {**_TIMM, "reg_token": "register_tokens"},
    {**_HF_DINOV2, **_ATTENTION_OF_5},
    {
        **_HF_START,
        "blocks.N.norm1": "layers.N.layernorm_before",
        "blocks.N.norm2": "layers.N.layernorm_after",
        "blocks.N.attn.qkv": _apart("layers.N.attention.", "q_proj", "k_proj", "v_proj"),
        "blocks.N.attn.proj": "layers.N.attention.o_proj",
        "blocks.N.mlp": "layers.N.mlp",
    },
    # The image tower alone.
    *(
        {
            ours: re.sub(prefix, "", theirs)
            if isinstance(theirs, str)
            else tuple(re.sub(prefix, "", name) for name in theirs)
            for ours, theirs in layout.items()
        }
        for prefix, layout in (
            ("^vision_model[.]", _HF_CLIP),
            ("^vision_model[.]", _HF_SIGLIP),
            ("^visual[.]", _OPENCLIP),
        )
    ),
)
_HEADS = ("head", "classifier")
# No part of what makes features: of pre-training, or a head of Hugging Face's own.
_NEEDLESS = re.compile(r"(?:.*\.)?(?:mask_token|position_ids|pooler\.dense\.(?:weight|bias))")
# ImageNet's, 1,000 or all of them as timm and Google count, are no codes.
_CLASSES = (1000, 21_841, 21_843)


def is_transformer(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether a network is a vision transformer, by the PyTorch names of its tensors."""
    return "patch_embed.weight" in names and "pos_embed" in names


def names_of(name: str, layout: Layout) -> tuple[str, ...]:
    """The foreign names of one of our tensors; none if the layout has no place for it."""
    block = re.match(r"blocks\.(\d+)", name)
    number = block[1] if block else "N"
    module, rest = name.replace(f"blocks.{number}.", "blocks.N.", 1), ""
    while module:
        if found := layout.get(module):
            several = (found,) if isinstance(found, str) else found
            return tuple(re.sub(r"\bN\b", number, other) + rest for other in several)
        module, dot, last = module.rpartition(".")
        rest = f"{dot}{last}{rest}"
    return ()


def ours(
    source: str, tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Gives the tensors of a foreign state dict our names and shapes; nothing is read yet.

    Args:
        source: what to call the state dict in messages.
        tensors: by name, with shape and dtype: arrays, PyTorch's tensors or `Stored`.
        shapes: by our names, the network's, in PyTorch's order.

    Returns:
        Tensors by our names; what has no place keeps its own name, but that of other towers, of
        pre-training alone and ImageNet's classifier are left out. Unchanged if no layout fits.
    """
    layout, prefix = _best(tensors, shapes)
    if layout is None:
        return dict(tensors)
    found: dict[str, Any] = {}
    used: set[str] = set()
    for name, shape in shapes.items():
        names = _present(names_of(name, layout), prefix, tensors)
        if names:
            used.update(names)
            found[name] = _composed(source, names, [tensors[n] for n in names], shape)
    rest = {name: tensor for name, tensor in tensors.items() if name not in used}
    tower = names_of("patch_embed.weight", layout)[0].partition(".")[0]
    inner = prefix + (f"{tower}." if tower in ("vision_model", "visual") else "")
    for name, tensor in rest.items():
        bare = name.removeprefix(prefix)
        module, _, leaf = bare.rpartition(".")
        outside = inner and not name.startswith(inner) and module not in (*_HEADS, "hash_layer")
        if outside or _NEEDLESS.fullmatch(name):
            continue
        if module in _HEADS:
            if "projection.weight" in found and module == "head":
                _check_no_bias(source, name, tensor)
                continue
            if tuple(tensor.shape)[:1] in [(classes,) for classes in _CLASSES]:
                continue
            bare = f"hash_layer.{leaf}"
        found[bare if bare in shapes else name] = tensor
    return found


def theirs(weights: Mapping[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """Gives our tensors a layout's names and shapes; the hash layer keeps its own, but in timm's
    layout is `head` unless a projection is.

    Args:
        weights: by our names, in PyTorch's order.
        layout: one of `LAYOUTS`.

    Raises:
        ValueError: if a tensor has no place in the layout.
    """
    table, written = LAYOUTS[layout], {}
    projected = "projection.weight" in weights
    for name, array in weights.items():
        names: tuple[str, ...] = names_of(name, table)
        if name.startswith("hash_layer."):
            free = layout == "timm" and not projected
            names = (name.replace("hash_layer", "head") if free else name,)
        if not names:
            raise ValueError(
                f"layout {layout!r} has no place for {name}; this network has that of "
                f"{[other for other in LAYOUTS if _holds(LAYOUTS[other], weights)]}"
            )
        if len(names) == 1:
            written[names[0]] = _written(name, array, names[0])
        else:
            # Queries, and keys with values or apart from them.
            ends = [len(array) // 3 * end for end in range(1, len(names))]
            written.update(zip(names, map(np.array, np.split(array, ends)), strict=True))
    if layout == "timm" and projected:
        written["head.bias"] = np.zeros(len(written["head.weight"]), np.float32)
    if layout == "timm" and "reg_token" in weights:
        # timm has no position for the class token beside registers.
        written["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        written["pos_embed"] = weights["pos_embed"][:, 1:].copy()
    return written


def _holds(layout: Layout, names: Mapping[str, Any]) -> bool:
    return all(names_of(name, layout) for name in names if not name.startswith("hash_layer."))


def _written(name: str, array: np.ndarray, other: str) -> np.ndarray:
    """A tensor in the shape that it has elsewhere."""
    if other.endswith("visual.proj"):
        return np.ascontiguousarray(array.T)
    if other.endswith("class_embedding"):
        return array.reshape(-1)
    is_table = other.endswith(("position_embedding.weight", "positional_embedding"))
    return array[0] if is_table else array


def _best(tensors: Mapping[str, Any], shapes: Mapping[str, Any]) -> tuple[Layout | None, str]:
    """The layout, and what stands before its names, of which most of the network is found."""
    best: tuple[int, Layout | None, str] = (0, None, "")
    for layout in _READ:
        (anchor,) = names_of("patch_embed.weight", layout)
        for name in tensors:
            if name == anchor or name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                count = sum(
                    bool(_present(names_of(place, layout), prefix, tensors)) for place in shapes
                )
                if count > best[0]:
                    best = (count, layout, prefix)
    return best[1:]


def _present(names: Sequence[str], prefix: str, tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """Foreign names as they stand in the state dict; none unless all of them do."""
    for before in (prefix, ""):
        whole = tuple(before + name for name in names)
        if whole and all(name in tensors for name in whole):
            return whole
    return ()


def _composed(
    source: str, names: Sequence[str], parts: Sequence[Any], shape: tuple[int, ...]
) -> Any:
    """One of our tensors, which is read when it is asked for."""
    (first, *rest), whole = parts, tuple(parts[0].shape)
    if rest:
        whole = (sum(part.shape[0] for part in parts), *whole[1:])
    transposed = names[0].endswith("proj") and len(whole) == 2
    if transposed:
        whole = whole[::-1]
    lacks_class = len(shape) == 3 and whole == (1, shape[1] - 1, shape[2])
    squeezed = [tuple(n for n in each if n != 1) for each in (whole, shape)]
    fits = lacks_class or squeezed[0] == squeezed[1]
    if fits and whole == shape and not rest and not transposed:
        return first
    if not fits and names[0].endswith(("pos_embed", "embedding.weight", "embeddings", "embedding")):
        _refuse_grid(source, names[0], whole, shape)

    def read() -> np.ndarray:
        array = np.concatenate([_array(part) for part in parts])
        array = array.T if transposed else array
        if lacks_class:
            return np.pad(array, ((0, 0), (1, 0), (0, 0)))
        return array.reshape(shape) if fits else array

    return Stored(shape if fits else whole, _dtype(first), read)


def _refuse_grid(source: str, name: str, whole: tuple[int, ...], shape: tuple[int, ...]) -> None:
    patches = whole[-2] - 1 if round(whole[-2] ** 0.5) ** 2 != whole[-2] else whole[-2]
    grid = round(patches**0.5)
    if whole[-1] == shape[-1] and grid**2 == patches:
        raise ValueError(
            f"{source}: {name} has positions of {grid} x {grid} patches, the network's grid has "
            f"{shape[1]} with its class token; set grid={grid}, and images of other sizes pass"
        )


def _check_no_bias(source: str, name: str, tensor: Any) -> None:
    if name.endswith("bias") and np.any(_array(tensor)):
        raise ValueError(
            f"{source}: {name} is not zero, and the network's projection has no bias; is it a "
            "classifier? Leave out the head to start from the rest"
        )


def _array(tensor: Any) -> np.ndarray:
    if isinstance(tensor, Stored):
        return tensor.read()
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().to_dense().numpy()
    return np.asarray(tensor)


def _dtype(tensor: Any) -> str:
    return str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")
