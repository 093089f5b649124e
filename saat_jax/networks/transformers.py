"""Vision transformers with a hash layer: one class, and a table of what is published.

Called as the networks of `backbones`: images in [0, 1] in, normalised inside; codes
`tanh(alpha * y)` of the hash layer's output y out, in float32. Modules are named after timm's
layers; `transformer_names` knows what Hugging Face and OpenCLIP call them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options
from saat_jax.networks import layers
from saat_jax.networks.layers import Conv, Dense, Training

Array = jax.Array

ACTIVATIONS: options.Choices[Callable[[Array], Array]] = options.Choices(
    "activation",
    {
        "gelu": functools.partial(nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(nn.gelu, approximate=True),
        "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    },
)
# How patches become one vector: the class token, their mean, or attention by a learnt query.
POOLS = ("class", "mean", "attention")
# How positions of another grid are interpolated: "antialias" as timm, and as DINOv2 with
# registers; "plain" as DINOv2 without them and as Hugging Face's CLIP.
INTERPOLATIONS = ("antialias", "plain")


def cubic_weights(size: int, new_size: int, *, antialias: bool) -> np.ndarray:
    """The weights of PyTorch's bicubic interpolation along one axis.

    Args:
        size: number of values.
        new_size: number of values wanted.
        antialias: whether the kernel, of Keys' a = -0.5, widens as values become fewer, and what
            lies outside is left out; else a is -0.75 and the last values are repeated.

    Returns:
        `[new_size, size]` float32, whose rows sum to 1.

    Example:
        >>> [round(x, 3) for x in cubic_weights(2, 4, antialias=False)[0].tolist()]
        [1.105, -0.105]
    """
    a, scale = (-0.5, max(1.0, size / new_size)) if antialias else (-0.75, 1.0)
    centers = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    reach = int(np.ceil(2 * scale)) + 1
    places = np.floor(centers).astype(int)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(places - centers[:, None]) / scale
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, ((x - 5) * x + 8) * a * x - 4 * a
    values = np.where(x <= 1, near, np.where(x < 2, far, 0))
    if antialias:
        values = np.where((places >= 0) & (places < size), values, 0)
    weights = np.zeros((new_size, size))
    np.add.at(weights, (np.arange(new_size)[:, None], places.clip(0, size - 1)), values)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def interpolate_positions(
    positions: Array, shape: tuple[int, int], *, interpolation: str = "antialias"
) -> Array:
    """Carries position embeddings to another grid of patches.

    Args:
        positions: `[grid * grid, width]`, row by row.
        shape: rows and columns wanted.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        `[rows * columns, width]`.
    """
    grid, width = round(len(positions) ** 0.5), positions.shape[-1]
    if shape == (grid, grid):
        return positions
    antialias = interpolation == "antialias"
    rows, columns = (cubic_weights(grid, new, antialias=antialias) for new in shape)
    # Exact on accelerators too, whatever the precision of the network's own products.
    table = jnp.einsum(
        "ir,jc,rcw->ijw", rows, columns, positions.reshape(grid, grid, width), precision="highest"
    )
    return table.reshape(-1, width)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one linear layer, in this order.

    Attributes:
        num_heads: parts of the width that attend on their own.
        dtype: "float32" or "bfloat16"; the softmax is float32 in any case.
    """

    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, tokens: Array, queries: Array | None = None) -> Array:
        """Maps `[batch, tokens, width]` to `[batch, tokens or queries, width]`.

        Args:
            tokens: what gives keys and values.
            queries: what gives the queries, `[batch, queries, width]`; None for the tokens.
        """
        width = tokens.shape[-1]
        qkv = Dense(3 * width, "vit", self.dtype, name="qkv")
        query, key, value = jnp.split(qkv(tokens), 3, axis=-1)
        if queries is not None:
            query = qkv(queries)[..., :width]

        def heads(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], self.num_heads, -1)

        mixed = jax.nn.dot_product_attention(heads(query), heads(key), heads(value))
        return Dense(width, "vit", self.dtype, name="proj")(mixed.reshape(query.shape))


class MLP(nn.Module):
    """Two linear layers with an activation between them.

    Attributes:
        hidden: units between them.
        activation: one of `ACTIVATIONS`.
        dtype: "float32" or "bfloat16".
    """

    hidden: int
    activation: str
    dtype: str

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps `[..., width]` to `[..., width]`."""
        x = Dense(self.hidden, "vit", self.dtype, name="fc1")(tokens)
        x = ACTIVATIONS[self.activation](x)
        return Dense(tokens.shape[-1], "vit", self.dtype, name="fc2")(x)


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual branch."""

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Multiplies the last axis."""
        gamma = self.param("gamma", nn.initializers.constant(1e-5), tokens.shape[-1:])
        return tokens * gamma.astype(tokens.dtype)


class Block(nn.Module):
    """Attention and an MLP, each normalised before and added to what comes in.

    Attributes:
        num_heads, dtype: of the attention.
        hidden, activation: of the MLP.
        norm_epsilon: of the normalisations.
        layer_scale: whether the branches have a `LayerScale`.
    """

    num_heads: int
    hidden: int
    activation: str
    norm_epsilon: float
    layer_scale: bool
    dtype: str

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps `[batch, tokens, width]` to the same shape."""
        branches = (
            Attention(self.num_heads, self.dtype, name="attn"),
            MLP(self.hidden, self.activation, self.dtype, name="mlp"),
        )
        for number, branch in enumerate(branches, start=1):
            x = branch(_norm(self, f"norm{number}")(tokens))
            tokens = tokens + (LayerScale(name=f"ls{number}")(x) if self.layer_scale else x)
        return tokens


class AttentionPool(nn.Module):
    """SigLIP's pooling: a learnt query attends to the tokens, and an MLP follows.

    Attributes are as those of `Block`.
    """

    num_heads: int
    hidden: int
    activation: str
    norm_epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps `[batch, tokens, width]` to `[batch, width]`."""
        shape = (1, 1, tokens.shape[-1])
        latent = self.param("latent", nn.initializers.truncated_normal(0.02), shape)
        # The query is the same for all images.
        latent = jnp.broadcast_to(latent, (len(tokens), *shape[1:])).astype(self.dtype)
        x = Attention(self.num_heads, self.dtype, name="attn")(tokens, latent)
        mlp = MLP(self.hidden, self.activation, self.dtype, name="mlp")
        return (x + mlp(_norm(self, "norm")(x)))[:, 0]


def _norm(module: Any, name: str) -> nn.LayerNorm:
    """A layer normalisation with float32 statistics, whose output has the module's dtype."""
    return nn.LayerNorm(module.norm_epsilon, dtype=module.dtype, use_fast_variance=False, name=name)


class VisionTransformer(nn.Module):
    """A vision transformer with a hash layer on its pooled tokens.

    Images may be of any size that the patches divide: the learnt positions are interpolated.

    Attributes:
        num_bits: code length.
        width: channels of a token.
        depth: number of blocks.
        num_heads: of attention.
        patch_size: rows and columns of a patch, in pixels.
        grid: rows, and columns, of patches at pre-training.
        mlp_ratio: hidden units of the MLPs, by the width.
        class_token: whether there is one, before the patches.
        num_registers: further tokens without meaning (Darcet et al., ICLR 2024).
        pool: one of `POOLS`; "class" needs the class token.
        norm_pooled: whether the last normalisation is of what was pooled, as in timm's models
            with `fc_norm`, instead of the tokens.
        pre_norm: whether tokens are normalised before the first block, and patches have no bias,
            as in CLIP.
        layer_scale: whether residual branches have learnt factors, as in DINOv2.
        projection: channels of a linear layer without bias after pooling, as in CLIP; 0 for none.
        activation: one of `ACTIVATIONS`.
        norm_epsilon: of the normalisations.
        statistics: which mean and deviation are applied inside, a name in `layers.STATISTICS`.
        interpolation: of positions, one of `INTERPOLATIONS`.
        input_norm: whether mean and deviation are applied inside.
        hash_init: initial values of the hash layer: "torch" or "normal".
        dtype: of all before the hash layer: "float32" or "bfloat16".
        remat: whether gradients compute the activations within blocks anew.

    Reference:
        Dosovitskiy et al., ICLR 2021; initial values as timm's.
    """

    num_bits: int
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    patch_size: int = 16
    grid: int = 14
    mlp_ratio: float = 4.0
    class_token: bool = True
    num_registers: int = 0
    pool: str = "class"
    norm_pooled: bool = False
    pre_norm: bool = False
    layer_scale: bool = False
    projection: int = 0
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    statistics: str = "half"
    interpolation: str = "antialias"
    input_norm: bool = True
    hash_init: str = "torch"
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, alpha: Array | float = 1.0, *, training: Training | None = None
    ) -> Array:
        """Maps `[batch, height, width, 3]` images to `[batch, num_bits]` soft codes.

        Raises:
            ValueError: if the patches do not divide the images, the heads not the width, or there
                is no class token to pool.
        """
        self._check(images)
        x = self._embed(layers.normalize(images, self.input_norm, self.statistics))
        hidden = round(self.width * self.mlp_ratio)
        common = (self.num_heads, hidden, self.activation, self.norm_epsilon)
        block = nn.remat(Block) if self.remat else Block
        for number in range(self.depth):
            x = block(*common, self.layer_scale, self.dtype, name=f"blocks_{number}")(x)
        x = x if self.norm_pooled else _norm(self, "norm")(x)
        if self.pool == "attention":
            x = AttentionPool(*common, self.dtype, name="attn_pool")(x)
        elif self.pool == "class":
            x = x[:, 0]
        else:
            x = jnp.mean(x[:, self.class_token + self.num_registers :], axis=1, dtype=jnp.float32)
        x = _norm(self, "fc_norm")(x) if self.norm_pooled else x
        if self.projection:
            x = Dense(self.projection, "vit", self.dtype, use_bias=False, name="projection")(x)
        hash_layer = Dense(self.num_bits, self.hash_init, name="hash_layer")
        return jnp.tanh(alpha * hash_layer(x.astype(jnp.float32)))

    def _check(self, images: Array) -> None:
        if any(size % self.patch_size or size < self.patch_size for size in images.shape[1:3]):
            raise ValueError(
                f"the transformer's patches of {self.patch_size} pixels must divide the images, "
                f"got {images.shape[1]} x {images.shape[2]}; set image_size to a multiple of "
                f"{self.patch_size}, such as {16 * self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width {self.width}, got {self.num_heads}")
        if self.pool == "class" and not self.class_token:
            raise ValueError(
                "pool 'class' needs the class token, which the network lacks; use 'mean'"
            )

    def _embed(self, images: Array) -> Array:
        """The tokens of images before the first block: class token, registers, patches."""
        rows, columns = (size // self.patch_size for size in images.shape[1:3])
        draw = nn.initializers.truncated_normal(0.02)
        patches = Conv(
            self.width,
            self.patch_size,
            stride=self.patch_size,
            use_bias=not self.pre_norm,
            initializer="vit",
            dtype=self.dtype,
            name="patch_embed",
        )(images)
        own = int(self.class_token)
        table = self.param("pos_embed", draw, (1, own + self.grid**2, self.width))[0]
        positions = interpolate_positions(
            table[own:], (rows, columns), interpolation=self.interpolation
        )
        first = []
        if self.class_token:
            first.append(self.param("cls_token", draw, (1, 1, self.width)) + table[:1])
        if self.num_registers:
            first.append(self.param("reg_token", draw, (1, self.num_registers, self.width)))
        tokens = [jnp.broadcast_to(x, (len(images), *x.shape[1:])) for x in first]
        tokens.append(patches.reshape(len(images), rows * columns, self.width) + positions)
        x = jnp.concatenate(tokens, axis=1).astype(self.dtype)
        return _norm(self, "norm_pre")(x) if self.pre_norm else x


_TINY = {"width": 192, "num_heads": 3}
_SMALL = {"width": 384, "num_heads": 6}
_BASE = {"width": 768, "num_heads": 12}
_DINOV2 = {"patch_size": 14, "layer_scale": True}
_CLIP = {**_BASE, "pre_norm": True, "projection": 512}
_DINOV2_DEFAULTS = {"grid": 37, "statistics": "imagenet", "interpolation": "plain"}
_REGISTERS_DEFAULTS = {**_DINOV2_DEFAULTS, "interpolation": "antialias"}
_CLIP_DEFAULTS = {
    "activation": "quick_gelu",
    "norm_epsilon": 1e-5,
    "statistics": "clip",
    "interpolation": "plain",
}
# By name: what it fixes, and the defaults that an option may change.
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit_tiny16": (_TINY, {}),
    "vit_s16": (_SMALL, {}),
    "vit_b16": (_BASE, {}),
    "vit_b32": ({**_BASE, "patch_size": 32}, {"grid": 7}),
    "vit_s14_dinov2": ({**_SMALL, **_DINOV2}, _DINOV2_DEFAULTS),
    "vit_b14_dinov2": ({**_BASE, **_DINOV2}, _DINOV2_DEFAULTS),
    "vit_s14_dinov2_registers": (
        {**_SMALL, **_DINOV2, "num_registers": 4},
        _REGISTERS_DEFAULTS,
    ),
    "vit_b14_dinov2_registers": (
        {**_BASE, **_DINOV2, "num_registers": 4},
        _REGISTERS_DEFAULTS,
    ),
    "vit_b16_clip": (_CLIP, _CLIP_DEFAULTS),
    "vit_b32_clip": ({**_CLIP, "patch_size": 32}, {**_CLIP_DEFAULTS, "grid": 7}),
    "vit_b16_siglip": (
        {**_BASE, "class_token": False},
        {"pool": "attention", "activation": "gelu_tanh"},
    ),
}
