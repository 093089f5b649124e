"""Weights from PyTorch and back: torchvision's, and those of the released hash networks.

A parameter's name follows from its place ("layer1_0", "conv1", "kernel" is
"layer1.0.conv1.weight"); the released code has further names for the same tensors.
"""

import importlib
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from saat_jax import files

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Second names in the state dicts of the released VGG and ResNet, which export writes too.
_RELEASED = (
    (r"classifier\.0\.", "cl1."),
    (r"conv1\.", "feature_layers.0."),
    (r"bn1\.", "feature_layers.1."),
    (r"layer1\.", "feature_layers.4."),
    (r"layer2\.", "feature_layers.5."),
    (r"layer3\.", "feature_layers.6."),
    (r"layer4\.", "feature_layers.7."),
)
# Those of ProS-GAN's networks for HashNet.
_PROSGAN = (
    (r"features\.", "feature_layers.0."),
    (r"classifier\.([0-5])\.", r"classifier.classifier\1."),
    (r"classifier\.([0-5])\.", r"feature_layers.1.classifier\1."),
    (r"classifier\.6\.", "hash_layer."),
)
_IMAGENET_CLASSES = 1000
_KINDS = (".npz", ".pt", ".pth", ".safetensors")


class LoadReport(NamedTuple):
    """What became of weights, by PyTorch's names of the tensors.

    Attributes:
        loaded: the network's tensors that were found.
        left_random: those that were not, and keep their initial values.
        unused: tensors of the weights that have no place in the network.
    """

    loaded: tuple[str, ...]
    left_random: tuple[str, ...]
    unused: tuple[str, ...]


def torch_name(place: tuple[str, ...]) -> str:
    """The PyTorch name of a parameter: ("features_0", "kernel") is "features.0.weight"."""
    *modules, leaf = place
    return ".".join([*(re.sub(r"_(?=\d)", ".", m) for m in modules), _LEAVES.get(leaf, leaf)])


def _aliases(name: str, table: tuple[tuple[str, str], ...]) -> list[str]:
    """The other names of a tensor."""
    return [re.sub(f"^{old}", new, name) for old, new in table if re.match(old, name)]


def _places(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every tensor's (path in the variables, value), by its PyTorch name."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {torch_name(path[1:]): (path, value) for path, value in flat.items()}


def _optional(module: str, path: pathlib.Path) -> Any:
    """Imports what reads and writes a kind of file."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ValueError(
            f"{path} needs the package {package!r}: pip install {package}, or use a .npz file"
        ) from error


def _read(path: pathlib.Path) -> Any:
    """What a file holds: tensors by name."""
    if path.suffix not in _KINDS:
        raise ValueError(f"expected a file of weights of kind {_KINDS}, got {path}")
    if not path.is_file():
        raise ValueError(f"expected a file of weights, got {path}, which does not exist")
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".safetensors":
        return _optional("safetensors.flax", path).load_file(path)
    try:
        return _optional("torch", path).load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and objects are not unpickled; save "
            "model.state_dict() instead of the model"
        ) from error


def _tensors(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside a checkpoint, without the prefix of a parallel wrapper."""
    for wrapper in ("state_dict", "model"):
        if isinstance(weights.get(wrapper), Mapping):
            return _tensors(weights[wrapper])
    return {
        name.removeprefix("module."): value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }


def _to_numpy(tensor: Any) -> np.ndarray:
    """A float32 array of a NumPy, JAX or PyTorch tensor of any float dtype."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor, np.float32)


def load_torch_weights(
    variables: Mapping[str, Any], weights: str | pathlib.Path | Mapping[str, Any]
) -> tuple[dict[str, Any], LoadReport]:
    """Puts a PyTorch state dict into a network's variables.

    torchvision's names are known, and those of the hash networks that the released code of
    SAAT and of ProS-GAN trains. The state dict may lie in a checkpoint under "state_dict" or
    "model", and its names may begin with "module.". Linear layers after convolutions need no
    reordering, as the networks flatten in PyTorch's order. The 1000 ImageNet classes of a
    whole torchvision model are left out.

    Args:
        variables: the network's variables, such as `init_variables` draws.
        weights: a `.pth`, `.pt`, `.safetensors` or `.npz` file, or a mapping, from PyTorch
            names ("features.0.weight", OIHW) to tensors of any float dtype; a part of the
            network, such as its convolutions alone, will do.

    Returns:
        New variables in which every tensor found is replaced, and a report of what was
        loaded, what was left at its initial values and what had no place.

    Raises:
        ValueError: if a tensor has another shape than its place, if two names of one tensor
            hold different values, if no tensor fits, or if the file cannot be read safely.
    """
    given = weights if isinstance(weights, Mapping) else _read(pathlib.Path(weights))
    tensors, places = _tensors(given), _places(variables)
    flat = {path: value for path, value in places.values()}
    loaded, used = set(), set()
    for name, (path, value) in places.items():
        names = [n for n in [name, *_aliases(name, _RELEASED + _PROSGAN)] if n in tensors]
        if not names:
            continue
        weight = _to_numpy(tensors[names[0]])
        if name.startswith("classifier.6.") and len(weight) == _IMAGENET_CLASSES != value.shape[-1]:
            continue
        for other in names[1:]:
            if not np.array_equal(weight, _to_numpy(tensors[other])):
                raise ValueError(
                    f"{names[0]} and {other} are one tensor of the network, but differ in the "
                    "weights; drop the wrong one"
                )
        # Convolutions OIHW to HWIO, linear layers (out, in) to (in, out).
        weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        if weight.shape != value.shape:
            raise ValueError(
                f"{names[0]} has shape {weight.shape} in this library's order, the network "
                f"expects {value.shape}; is it another network, or another num_bits?"
            )
        flat[path] = jnp.asarray(weight)
        loaded.add(name)
        used.update(names)
    if not loaded:
        raise ValueError(
            f"no tensor fits: the weights hold {sorted(tensors)[:3]} ..., the network expects "
            f"{sorted(places)[:3]} ..."
        )
    report = LoadReport(
        tuple(sorted(loaded)),
        tuple(sorted(set(places) - loaded)),
        tuple(sorted(set(tensors) - used)),
    )
    return {**variables, **flax.traverse_util.unflatten_dict(flat)}, report


def to_torch_weights(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Makes a PyTorch state dict of a network's variables: `load_torch_weights` undone.

    It holds the names of the released code, so that its networks load it strictly: VGG's first
    linear layer is also "cl1", and all of ResNet but the hash layer is also in
    "feature_layers". For torchvision's own classes, use `strict=False`.

    Args:
        variables: the network's variables, of one device.

    Returns:
        Arrays in PyTorch's layouts by name; second names share the array of the first.
    """
    weights: dict[str, np.ndarray] = {}
    for name, (_, value) in _places(variables).items():
        array = np.asarray(value)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        # A copy, as PyTorch wants writable memory.
        array = np.array(array, order="C")
        for spelling in [name, *_aliases(name, _RELEASED)]:
            weights[spelling] = array
            if spelling.endswith("running_var"):
                counter = spelling.replace("running_var", "num_batches_tracked")
                weights[counter] = np.zeros((), np.int64)
    return weights


def save_torch_weights(path: str | pathlib.Path, variables: Mapping[str, Any]) -> None:
    """Writes `to_torch_weights` to a `.pth`, `.pt`, `.safetensors` or `.npz` file.

    Raises:
        OSError: if the file cannot be written, as on a full disk; one that was there is kept.
        ValueError: if the file is to be of another kind, or the package for it is absent.
    """
    path = pathlib.Path(path)
    if path.suffix not in _KINDS:
        raise ValueError(f"expected a file of kind {_KINDS}, got {path}")
    weights = to_torch_weights(variables)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npz":
            np.savez(file, **weights)  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            file.write(_optional("safetensors.numpy", path).save(weights))
        else:
            torch = _optional("torch", path)
            torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, file)
