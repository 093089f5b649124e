"""Weights from PyTorch and back: torchvision's, timm's, and those of the usual hash networks.

A parameter's name follows from its place ("layer1_0", "conv1", "kernel" is
"layer1.0.conv1.weight"); other projects have further names for the same tensors.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np

from saat_jax import options
from saat_jax.networks import transformer_names, weight_files

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
_HASH_LAYER = r"(?:hash|hash_layer|classifier\.6)\."
# Those of other projects.
_ELSEWHERE = (
    # ProS-GAN's networks for HashNet.
    (r"features\.", "feature_layers.0."),
    (r"classifier\.([0-5])\.", r"classifier.classifier\1."),
    (r"classifier\.([0-5])\.", r"feature_layers.1.classifier\1."),
    # DPN's and OrthoHash's AlexNet and VGG; DeepHash-pytorch's AlexNet; timm's VGG.
    (r"classifier\.([0-5])\.", r"fc.\1."),
    (r"classifier\.([0-6])\.", r"hash_layer.\1."),
    (r"classifier\.0\.", "pre_logits.fc1."),
    (r"classifier\.3\.", "pre_logits.fc2."),
    # The hash layer, also as the first of a sequence: with a tanh or a normalisation after it.
    *(
        (_HASH_LAYER, f"{name}.")
        for head in ("hash_layer", "hash_fc", "fc", "head.fc")
        for name in (head, f"{head}.0")
    ),
)
# What wraps a network, and so stands before its tensors' names; and a state dict in a checkpoint.
_PREFIXES = re.compile(r"^(?:(?:module|model|net|backbone|base_model|_orig_mod|0|1)\.)+")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema")
_IMAGENET_CLASSES = 1000
_BATCH_NORM_EPSILON = 1e-5


class LoadReport(NamedTuple):
    """What became of weights, by PyTorch's names of the tensors; as text, in one line.

    Attributes:
        loaded: the network's tensors that were found.
        left_random: those that were not, and keep their initial values.
        unused: tensors of the weights that have no place in the network.
    """

    loaded: tuple[str, ...]
    left_random: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, what in ((self.left_random, "start at random"), (self.unused, "not used")):
            if names:
                parts.append(f"{len(names)} {what} ({_listed(names)})")
        return ", ".join(parts)


def _listed(names: Iterable[str]) -> str:
    return options.shortened(", ".join(names), 120)


def torch_name(place: tuple[str, ...]) -> str:
    """The PyTorch name of a parameter: ("features_0", "kernel") is "features.0.weight"."""
    *modules, leaf = place
    return ".".join([*(re.sub(r"_(?=\d)", ".", m) for m in modules), _LEAVES.get(leaf, leaf)])


def _aliases(name: str, table: Iterable[tuple[str, str]]) -> list[str]:
    """The other names of a tensor."""
    return [re.sub(f"^{old}", new, name) for old, new in table if re.match(old, name)]


def _places(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every tensor's (path in the variables, value), by its PyTorch name."""
    flat = flax.traverse_util.flatten_dict(dict(variables))
    return {torch_name(path[1:]): (path, value) for path, value in flat.items()}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of a tensor in PyTorch's order."""
    return np.broadcast_to(np.float32(0), shape).transpose(_axes(len(shape))).shape


def _axes(ndim: int) -> tuple[int, ...]:
    """PyTorch's order of the axes of kernels, HWIO or (in, out); others keep theirs."""
    return {2: (1, 0), 4: (3, 2, 0, 1)}.get(ndim, tuple(range(ndim)))


class _StateDict:
    """The tensors of a file or mapping.

    Attributes:
        source: what to call it in messages.
        tensors: by name.
        names: those that are one, but for what wraps the network.
    """

    def __init__(self, source: str, weights: Any):
        self.source = source
        while isinstance(weights, Mapping):
            inner = [weights[w] for w in _WRAPPERS if isinstance(weights.get(w), Mapping)]
            if not inner:
                break
            weights = inner[0]
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"{source} holds a value of type {type(weights).__name__}, not tensors by name; in "
                "PyTorch, save model.state_dict()"
            )
        self.tensors = {
            str(name): tensor
            for name, tensor in weights.items()
            if not str(name).endswith("num_batches_tracked")
        }
        self.names: dict[str, list[str]] = {}
        for name in self.tensors:
            self.names.setdefault(_PREFIXES.sub("", name), []).append(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a tensor."""
        return tuple(getattr(self.tensors[name], "shape", ()))

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is of a shape; a linear layer may be written as a convolution."""
        own = self.shape(name)
        return own == shape or (
            len(own) == 4 and len(shape) == 2 and (own[0], math.prod(own[1:])) == shape
        )

    def names_of(self, place: str) -> list[str]:
        """The names here of a tensor of the network."""
        known = [place, *_aliases(place, _RELEASED + _ELSEWHERE)]
        names = [name for other in known for name in self.names.get(other, ())]
        if not re.match(_HASH_LAYER, place):
            return names
        return [name for name in names if not self._continues(name)]

    def _continues(self, name: str) -> bool:
        """Whether it is of the first of several linear layers, as in CSQ's head."""
        first = re.fullmatch(r"(.*\.)0\.(?:weight|bias)", name)
        return first is not None and any(
            re.fullmatch(re.escape(first[1]) + r"[1-9]\d*\.weight", other)
            and len(self.shape(other)) == 2
            for other in self.tensors
        )

    def is_classifier(self, name: str) -> bool:
        """Whether a tensor tells ImageNet's classes apart."""
        return len(self.shape(name)) < 3 and self.shape(name)[:1] == (_IMAGENET_CLASSES,)

    def read(self, names: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of several names in float32, which must be the same under all of them."""
        values = [self._read(name, shape) for name in names]
        for name, value in zip(names, values, strict=True):
            if not np.array_equal(value, values[0]):
                raise ValueError(
                    f"{self.source}: {names[0]} and {name} are one tensor of the network, but "
                    "differ in the weights; drop the wrong one"
                )
        return values[0]

    def _read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor, place = self.tensors[name], f"{self.source}: {name}"
        if not hasattr(tensor, "shape"):
            raise ValueError(f"{place} must be a tensor, got {type(tensor).__name__}")
        if not self.fits(name, shape):
            raise ValueError(
                f"{place} has shape {self.shape(name)}, the network expects {shape}; is it of "
                "another network, or of another num_bits? To start from the rest, leave it out"
            )
        dtype = getattr(tensor.dtype, "name", str(tensor.dtype)).removeprefix("torch.")
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(
                f"{place} must be of 16-, 32- or 64-bit floats, got {dtype}; convert it, a "
                "quantised one by its scale"
            )
        if isinstance(tensor, weight_files.Stored):
            tensor = tensor.read()
        elif hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu().float().to_dense().numpy()
        # Float64 beyond float32's range becomes infinite, and is refused.
        with np.errstate(over="ignore"):
            array = np.asarray(tensor, np.float32).reshape(shape)
        if not np.isfinite(array).all():
            raise ValueError(f"{place} holds NaN or infinite values")
        return array


def load_torch_weights(
    variables: Mapping[str, Any], weights: str | pathlib.Path | Mapping[str, Any]
) -> tuple[dict[str, Any], LoadReport]:
    """Puts a PyTorch state dict into a network's variables.

    torchvision's and timm's names are known, those of the usual hash networks, and of vision
    transformers Hugging Face's and OpenCLIP's, whose other towers are left out; docs/pytorch.md
    lists them. The state dict may lie in a checkpoint, as under "state_dict", and its names may
    begin with what wraps the network, as "module.". Linear layers after convolutions need no
    reordering, as the networks flatten in PyTorch's order. A hash layer without bias gets one of
    zeros, and a batch normalisation after it becomes part of it, as it is in evaluation. A
    classifier of ImageNet's 1000 classes is left out, and so may the hash layer be: then the
    weights are a start for training.

    Args:
        variables: the network's variables, such as `init_variables` draws.
        weights: a file, or a mapping from PyTorch names ("features.0.weight", OIHW) to tensors of
            16-, 32- or 64-bit floats; a part of the network, such as its convolutions alone,
            will do. Files are `.npz`, `.safetensors` and PyTorch's: `.pth`, `.pt`, `.pth.tar`,
            `.bin` or `.ckpt`.

    Returns:
        New variables in which every tensor found is replaced, and a report of what was
        loaded, what was left at its initial values and what had no place.

    Raises:
        ValueError: if the file cannot be read safely; if a tensor has another shape than its
            place, or holds no finite floats; if two names of one tensor hold different values;
            if no tensor fits, or some have no place while others of the network are missing.
    """
    if isinstance(weights, Mapping):
        state = _StateDict("the weights", weights)
    else:
        state = _StateDict(str(weights), weight_files.read(pathlib.Path(weights)))
    places = _places(variables)
    if transformer_names.is_transformer(places):
        shapes = {name: _torch_shape(value.shape) for name, (_, value) in places.items()}
        state = _StateDict(
            state.source, transformer_names.ours(state.source, state.tensors, shapes)
        )
    arrays: dict[str, np.ndarray] = {}
    found: dict[str, list[str]] = {}
    for name, (_, value) in places.items():
        shape = _torch_shape(value.shape)
        names = state.names_of(name)
        fitting = [other for other in names if state.fits(other, shape)]
        if fitting:
            arrays[name], found[name] = state.read(fitting, shape), fitting
        elif wrong := [other for other in names if not state.is_classifier(other)]:
            state.read(wrong[:1], shape)
    for name in [name for name in arrays if re.fullmatch(f"{_HASH_LAYER}weight", name)]:
        found[f"after {name}"] = _finish_hash_layer(state, name, found[name][0], arrays)
    used = {name for names in found.values() for name in names}
    report = LoadReport(
        tuple(sorted(arrays)),
        tuple(sorted(set(places) - set(arrays))),
        tuple(sorted(set(state.tensors) - used)),
    )
    if not arrays:
        raise ValueError(
            f"{state.source}: no tensor fits; it holds {_listed(report.unused)}, and the network "
            f"expects {_listed(report.left_random)}"
        )
    left_over = [name for name in report.unused if not state.is_classifier(name)]
    if report.left_random and left_over:
        raise ValueError(
            f"{state.source}: no tensor was found for {_listed(report.left_random)}, while "
            f"{len(left_over)} have no place in the network: {_listed(left_over)}; is it of "
            "another network? To start from the rest, leave these out"
        )
    flat = {path: value for path, value in places.values()}
    for name, array in arrays.items():
        flat[places[name][0]] = jnp.asarray(array.transpose(np.argsort(_axes(array.ndim))))
    return {**variables, **flax.traverse_util.unflatten_dict(flat)}, report


def _finish_hash_layer(
    state: _StateDict, weight: str, found: str, arrays: dict[str, np.ndarray]
) -> list[str]:
    """Gives a hash layer a bias if it has none, and makes a normalisation after it part of it.

    Args:
        state: the weights.
        weight: name of the hash layer's weight in the network.
        found: its name in the weights.
        arrays: what was loaded, by name, in PyTorch's order; changed.

    Returns:
        The names of the normalisation's tensors, if there is one.
    """
    bias = weight.removesuffix("weight") + "bias"
    arrays.setdefault(bias, np.zeros(len(arrays[weight]), np.float32))
    after = found.removesuffix("0.weight") + "1."
    names = [after + leaf for leaf in ("running_mean", "running_var", "weight", "bias")]
    if not found.endswith(".0.weight") or not state.tensors.keys() >= set(names):
        return []
    mean, var, scale, shift = (
        state.read([name], arrays[bias].shape).astype(np.float64) for name in names
    )
    scale = scale / np.sqrt(var + _BATCH_NORM_EPSILON)
    arrays[weight] = (arrays[weight] * scale[:, None]).astype(np.float32)
    arrays[bias] = ((arrays[bias] - mean) * scale + shift).astype(np.float32)
    return names


def to_torch_weights(
    variables: Mapping[str, Any], *, layout: str = "released"
) -> dict[str, np.ndarray]:
    """Makes a PyTorch state dict of a network's variables: `load_torch_weights` undone.

    Args:
        variables: the network's variables, of one device.
        layout: whose networks load it strictly. "released", those of the code released with SAAT:
            VGG's first linear layer is also "cl1", and all of ResNet but the hash layer is also
            in "feature_layers". "torchvision": ResNet's hash layer is "fc", and there are no
            second names; for timm's ResNet too. Of a vision transformer one of
            `transformer_names.LAYOUTS`; by default "timm".

    Returns:
        Arrays in PyTorch's layouts by name; second names share the array of the first.

    Raises:
        ValueError: if there is no such layout, or it has no place for a tensor.
    """
    known, places = ("released", "torchvision"), _places(variables)
    is_transformer = transformer_names.is_transformer(places)
    others = transformer_names.LAYOUTS if is_transformer else ()
    options.check_word("layout", layout, (*known, *others))
    weights: dict[str, np.ndarray] = {}
    for name, (_, value) in places.items():
        # A copy, as PyTorch wants writable memory.
        array = np.array(np.transpose(value, _axes(np.ndim(value))), order="C")
        names = [name, *_aliases(name, _RELEASED)]
        if layout == "torchvision":
            names = [re.sub(r"^hash_layer\.", "fc.", name)]
        for spelling in names:
            weights[spelling] = array
            if spelling.endswith("running_var"):
                counter = spelling.replace("running_var", "num_batches_tracked")
                weights[counter] = np.zeros((), np.int64)
    if is_transformer:
        return transformer_names.theirs(weights, "timm" if layout in known else layout)
    return weights


def save_torch_weights(
    path: str | pathlib.Path, variables: Mapping[str, Any], *, layout: str = "released"
) -> None:
    """Writes `to_torch_weights` to a file, of any kind that `load_torch_weights` reads.

    Raises:
        OSError: if the file cannot be written, as on a full disk; one that was there is kept.
        ValueError: if there is no such layout, the file is to be of another kind, or the package
            for it is absent.
    """
    weight_files.write(pathlib.Path(path), to_torch_weights(variables, layout=layout))
