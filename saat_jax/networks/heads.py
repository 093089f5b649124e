"""Hash layers in closed form, for features that are left as they are: no labels, no training.

Each is fitted on features `[images, width]` and gives a linear layer whose signs are the code,
scaled so that the outputs' root mean square is 1; so any network with it is a hash network like
others.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options, perturbation

Array = jax.Array

_HASH_LAYERS = ("hash", "hash_layer", "classifier_6")


class Head(NamedTuple):
    """A linear layer.

    Attributes:
        kernel: `[width, num_bits]` float32.
        bias: `[num_bits]` float32.
    """

    kernel: np.ndarray
    bias: np.ndarray


def hash_layer_of(params: Mapping[str, Any]) -> str:
    """The name of a network's hash layer.

    Raises:
        ValueError: if it has none that is known.
    """
    for name in _HASH_LAYERS:
        if name in params:
            return name
    raise ValueError(
        f"expected a hash layer named one of {list(_HASH_LAYERS)} in the network, got {[*params]}"
    )


def make_features_fn(model: nn.Module) -> Callable[[Any, Array], Array]:
    """Builds `features_fn(variables, images)`: what a network's hash layer takes, in float32.

    As `make_encode_fn`, in evaluation mode, `[batch, width]`.
    """

    def features_fn(variables: Any, images: Array) -> Array:
        perturbation.check_images("images", images)
        name, found = hash_layer_of(variables["params"]), []

        def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.path == (name,):
                found.append(args[0])
            return function(*args, **kwargs)

        with nn.intercept_methods(record):
            model.apply(variables, images)
        return jnp.asarray(found[0], jnp.float32)

    return features_fn


def pca_head(features: np.ndarray, *, num_bits: int) -> Head:
    """The signs of the first principal components.

    Args:
        features: `[images, width]` floats.
        num_bits: code length, up to the width and below the number of images.

    Raises:
        ValueError: if the features are no finite floats of that shape, or vary in fewer directions
            than there are bits.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
        >>> pca_head(features, num_bits=4).kernel.shape
        (8, 4)
    """
    mean, directions, _ = _components(features, num_bits)
    return _scaled(features, mean, directions)


def itq_head(
    features: np.ndarray, *, num_bits: int, seed: int = 0, num_iterations: int = 50
) -> Head:
    """Iterative quantisation: principal components, rotated so that they lie close to their signs.

    Each iteration takes the codes of the rotated components, then the rotation that brings the
    components nearest to the codes; the distance cannot rise.

    Args:
        features: `[images, width]` floats.
        num_bits: code length, as in `pca_head`.
        seed: of the first rotation.
        num_iterations: updates of the rotation.

    Raises:
        ValueError: as `pca_head`.

    Reference:
        Gong and Lazebnik, Iterative quantization, CVPR 2011.
    """
    options.check_numbers(num_iterations=num_iterations, seed=seed)
    mean, directions, components = _components(features, num_bits)
    # To be of the size of codes changes nothing that is compared.
    components = components / np.sqrt(np.mean(components**2))
    rotation = random_rotation(num_bits, seed=seed)
    for _ in range(num_iterations):
        codes = np.where(components @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(components.T @ codes)
        rotation = left @ right
    return _scaled(features, mean, directions @ rotation)


def lsh_head(features: np.ndarray, *, num_bits: int, seed: int = 0) -> Head:
    """Random hyperplanes through the features' mean: the baseline, for any number of bits.

    Args:
        features: `[images, width]` floats.
        num_bits: code length.
        seed: of the hyperplanes.

    Raises:
        ValueError: if the features are no finite floats of that shape.

    Reference:
        Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002.
    """
    options.check_numbers(num_bits=num_bits, seed=seed)
    mean = _checked(features).mean(0, dtype=np.float64)
    normals = np.random.default_rng(seed).normal(size=(features.shape[1], num_bits))
    return _scaled(features, mean, normals)


# By name, as a config has them.
HEADS: options.Choices[Callable[..., Head]] = options.Choices(
    "head",
    {
        "pca": lambda features, *, num_bits, seed: pca_head(features, num_bits=num_bits),
        "itq": itq_head,
        "lsh": lsh_head,
    },
)


def with_head(variables: Mapping[str, Any], head: Head) -> dict[str, Any]:
    """A network's variables with another hash layer.

    Raises:
        ValueError: if the head is of another width or number of bits than the network.
    """
    name = hash_layer_of(variables["params"])
    layer = variables["params"][name]
    if layer["kernel"].shape != head.kernel.shape:
        raise ValueError(
            f"the head must be of shape {layer['kernel'].shape}, as the network's hash layer, got "
            f"{head.kernel.shape}"
        )
    new = {"kernel": jnp.asarray(head.kernel), "bias": jnp.asarray(head.bias)}
    return {**variables, "params": {**variables["params"], name: new}}


def fit_head(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[np.ndarray],
    *,
    head: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Gives a network a hash layer that is fitted to its features of images.

    The features are kept, four bytes times the images times their width; and in float64 what is
    computed of them.

    Args:
        model: the network.
        variables: its variables; the hash layer's are replaced.
        batches: of images, `[batch, height, width, 3]` floats in [0, 1]; of one size but for the
            last, so that they compile once.
        head: one of `HEADS`.
        seed: of what is random in it.

    Raises:
        ValueError: if there is no such head, or it cannot be fitted.

    Example:
        >>> from saat_jax import networks
        >>> model = networks.create_network("convnet", num_bits=4, widths=(4, 8))
        >>> variables = networks.init_variables(model, jax.random.key(0), image_size=8)
        >>> images = np.random.default_rng(0).random((32, 8, 8, 3), np.float32)
        >>> fitted = fit_head(model, variables, [images], head="pca")
        >>> means = np.asarray(networks.make_encode_fn(model)(fitted, images)).mean(axis=0)
        >>> bool(np.abs(means).max() < 0.1)
        True
    """
    fit: Any
    fit, features_fn = HEADS[head], jax.jit(make_features_fn(model))
    features = np.concatenate([np.asarray(features_fn(variables, batch)) for batch in batches])
    return with_head(variables, fit(features, num_bits=model.num_bits, seed=seed))


def random_rotation(size: int, *, seed: int) -> np.ndarray:
    """A rotation or reflection of `[size, size]` in float64, drawn uniformly."""
    square = np.random.default_rng(seed).normal(size=(size, size))
    rotation, triangle = np.linalg.qr(square)
    return rotation * np.sign(np.diag(triangle))


def _checked(features: np.ndarray) -> np.ndarray:
    options.check_shapes(features=(features, "images width"))
    if not np.issubdtype(features.dtype, np.floating) or not np.isfinite(features).all():
        raise ValueError("features must be finite floats; do the network's weights fit?")
    return np.asarray(features)


def _components(features: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, `[width, num_bits]` principal directions, and the features along them, in float64."""
    options.check_numbers(num_bits=num_bits)
    centred = _checked(features).astype(np.float64)
    mean = centred.mean(0)
    centred -= mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    # What rounding of float32 features leaves is no variation.
    rank = int(np.sum(values > 1e-12 * max(values[-1], np.finfo(float).tiny)))
    if num_bits > rank:
        raise ValueError(
            f"num_bits must be at most the {rank} directions in which features of {len(features)} "
            f"images vary, got {num_bits}; take more images, fewer bits, or the head 'lsh'"
        )
    directions = vectors[:, ::-1][:, :num_bits]
    # Either sign would do; so it does not depend on the machine.
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(num_bits)])
    return mean, directions, centred @ directions


def _scaled(features: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> Head:
    outputs = (features - mean) @ directions
    kernel = directions / max(np.sqrt(np.mean(outputs**2)), np.finfo(float).tiny)
    return Head(kernel.astype(np.float32), (-mean @ kernel).astype(np.float32))
