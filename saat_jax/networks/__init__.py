"""Hash networks: images in [0, 1] in, soft codes `tanh(alpha * f(x))` out.

`layers` holds what networks are made of, `backbones` and `transformers` the networks, `weights`
the way from PyTorch and back, `heads` hash layers that need no training. Knows nothing of labels,
objectives or attacks.
"""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from saat_jax import options, perturbation
from saat_jax.hamming import EncodeFn
from saat_jax.networks import transformers
from saat_jax.networks.backbones import VGG, AlexNet, ConvNet, ResNet
from saat_jax.networks.heads import (
    HEADS,
    Head,
    fit_head,
    itq_head,
    lsh_head,
    make_features_fn,
    pca_head,
    with_head,
)
from saat_jax.networks.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    STATISTICS,
    BatchNorm,
    Conv,
    Dense,
    Training,
    adaptive_average_pool,
    convolve,
    dropout,
    flatten_channels_first,
    max_pool,
    normalize,
    torch_uniform,
    weight_and_bias_init,
)
from saat_jax.networks.transformers import VisionTransformer
from saat_jax.networks.weights import (
    LoadReport,
    load_torch_weights,
    save_torch_weights,
    to_torch_weights,
    torch_name,
)

__all__ = [
    "HEADS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NETWORKS",
    "STATISTICS",
    "VGG",
    "AlexNet",
    "BatchNorm",
    "Conv",
    "ConvNet",
    "Dense",
    "EncodeFn",
    "Head",
    "LoadReport",
    "ResNet",
    "Training",
    "VisionTransformer",
    "adaptive_average_pool",
    "convolve",
    "create_network",
    "dropout",
    "fit_head",
    "flatten_channels_first",
    "forward",
    "init_variables",
    "itq_head",
    "load_torch_weights",
    "lsh_head",
    "make_encode_fn",
    "make_features_fn",
    "max_pool",
    "model_card",
    "normalize",
    "pca_head",
    "save_torch_weights",
    "to_torch_weights",
    "torch_name",
    "torch_uniform",
    "weight_and_bias_init",
    "with_head",
]

Array = jax.Array

_VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_RESNET_STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# The networks a config may name: their class, the attributes that the name fixes, and defaults of
# others where they are not the class's.
NETWORKS: options.Choices[tuple[type[nn.Module], dict[str, Any], dict[str, Any]]] = options.Choices(
    "network",
    {
        "alexnet": (AlexNet, {}, {}),
        "convnet": (ConvNet, {}, {}),
        **{
            f"resnet{depth}": (ResNet, {"stages": stages, "bottleneck": depth >= 50}, {})
            for depth, stages in _RESNET_STAGES.items()
        },
        **{
            f"vgg{depth}{suffix}": (VGG, {"stages": stages, "batch_norm": suffix == "_bn"}, {})
            for depth, stages in _VGG_STAGES.items()
            for suffix in ("", "_bn")
        },
        **{
            name: (VisionTransformer, fixed, defaults)
            for name, (fixed, defaults) in transformers.PRESETS.items()
        },
    },
)
_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "hash_init": ("torch", "normal"),
    "pool": transformers.POOLS,
    "activation": tuple(transformers.ACTIVATIONS),
    "statistics": tuple(STATISTICS),
    "interpolation": transformers.INTERPOLATIONS,
}


def create_network(name: str, *, num_bits: int, **attributes: Any) -> nn.Module:
    """Makes a hash network by name.

    Args:
        name: one of `NETWORKS`.
        num_bits: code length.
        **attributes: of the network, such as `input_norm` (default True), `hash_init`
            ("torch" or "normal", by default the released code's), `dtype` ("float32", the
            default, or "bfloat16"; parameters and codes are float32 in any case) or `remat`
            (default False; see docs/cost.md).

    Raises:
        ValueError: if there is no such network, no such attribute, or a value is none of its
            choices or out of its range.

    Example:
        >>> create_network("vgg11", num_bits=32).num_bits
        32
    """
    network, fixed, defaults = NETWORKS[name]
    fields = network.__dataclass_fields__
    known = set(fields) - {"num_bits", "parent", "name", *fixed}
    if unknown := set(attributes) - known:
        raise ValueError(f"{name} has no option {sorted(unknown)}; it has {sorted(known)}")
    for attribute, value in attributes.items():
        _check_attribute(network, attribute, value, fields[attribute].default)
    options.check_numbers(num_bits=num_bits, **attributes)
    return network(num_bits=num_bits, **fixed, **(defaults | attributes))


def _check_attribute(network: type[nn.Module], name: str, value: Any, default: Any) -> None:
    """Refuses what is of another kind than the default, or out of its range."""
    if name in _CHOICES:
        options.check_word(name, value, _CHOICES[name])
    elif isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {options.shortened(value)!r}")
    elif isinstance(default, tuple):
        length = len(value) if isinstance(value, list | tuple) else 0
        if not length or (network in (AlexNet, VGG) and length != len(default)):
            raise ValueError(
                f"{name} must be a tuple of numbers, such as {default}, got "
                f"{options.shortened(repr(value))}"
            )


def init_variables(model: nn.Module, rng: Array, *, image_size: int) -> dict[str, Any]:
    """Draws a network's initial "params" and, if it has any, "batch_stats"."""
    options.check_numbers(image_size=image_size)
    return jax.jit(model.init)(rng, jnp.zeros((1, image_size, image_size, 3)))


def make_encode_fn(model: nn.Module) -> EncodeFn:
    """Builds `encode_fn(variables, images, alpha=1.0)`, a network in evaluation mode.

    It refuses images that are not `[batch, height, width, channels]` floats, and unless they are
    traced also values outside [0, 1].
    """

    def encode_fn(variables: chex.ArrayTree, images: Array, alpha: Array | float = 1.0) -> Array:
        perturbation.check_images("images", images)
        codes: Any = model.apply(variables, images, alpha)
        return codes

    return encode_fn


def forward(
    model: nn.Module,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    images: Array,
    training: Training | None,
    alpha: Array | float = 1.0,
) -> tuple[Array, chex.ArrayTree]:
    """Encodes images and returns (soft codes, running statistics after the pass).

    Args:
        model: a hash network.
        params: its parameters.
        batch_stats: its running statistics, empty if it has none.
        images: `[batch, height, width, channels]` in [0, 1].
        training: None for evaluation mode, which leaves the statistics as they are.
        alpha: tanh scale of the codes.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    if training is None:
        return make_encode_fn(model)(variables, images, alpha), batch_stats
    codes: Any
    codes, updated = model.apply(
        variables, images, alpha, training=training, mutable=["batch_stats"]
    )
    return codes, updated.get("batch_stats", batch_stats)


def model_card(name: str, *, num_bits: int, image_size: int = 224) -> dict[str, Any]:
    """Counts a network's parameters and operations, from shapes alone.

    Args:
        name: one of `NETWORKS`.
        num_bits: code length.
        image_size: height and width of the images, in pixels.

    Returns:
        "network", "num_bits" and "image_size" as given; "parameters", and of them
        "backbone_parameters" outside the hash layer; "flops" of encoding one image, two for
        each multiplication and its addition in convolutions, linear layers and attention.
    """
    flops = 0

    def count_flops(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal flops
        output = function(*args, **kwargs)
        if isinstance(context.module, Conv | Dense):
            window = getattr(context.module, "size", 1) ** 2
            flops += 2 * output.size * window * args[0].shape[-1]
        elif isinstance(context.module, transformers.Attention):
            # Queries by keys, and their weights by values.
            flops += 4 * output.size * args[0].shape[1]
        return output

    def count_parameters(num_bits: int) -> int:
        model = create_network(name, num_bits=num_bits)
        images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    # Only the hash layer grows with the bits.
    parameters_of_two = count_parameters(2 * num_bits)
    with nn.intercept_methods(count_flops):
        parameters = count_parameters(num_bits)
    return {
        "network": name,
        "num_bits": num_bits,
        "image_size": image_size,
        "parameters": parameters,
        "backbone_parameters": 2 * parameters - parameters_of_two,
        "flops": flops,
    }
