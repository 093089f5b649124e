"""A hash network as a folder of two files, in the layout of Hugging Face.

FOLDER/config.json         what the network is, and what its images are
FOLDER/model.safetensors   its variables by flat names, such as "params.hash.kernel"

What else lies there, such as a README.md, is not read. No object is ever unpickled.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from saat_jax import files, networks, options
from saat_jax.encoders.encoder import Encoder
from saat_jax.encoders.jax_function import from_network
from saat_jax.networks import weight_files

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 1
MODEL_TYPE = "saat_jax"
_CURE = "export the model again, or download the folder again"
_FIELDS = {
    "model_type": str,
    "format_version": int,
    "name": str,
    "network": {"name": networks.NETWORKS, "num_bits": options.number, "*": options.whatever},
    "head?": str,
    "image_size": options.number,
    "resize?": options.number,
    "weights_sha256": str,
    "code_version": str,
}


def flat_variables(variables: Any) -> dict[str, np.ndarray]:
    """Variables by flat names, such as "params.hash.kernel", in the order of the names.

    Example:
        >>> [*flat_variables({"params": {"b": np.zeros(2), "a": {"c": np.zeros(1)}}})]
        ['params.a.c', 'params.b']
    """
    flat = traverse_util.flatten_dict(variables, sep=".")
    # The writer of safetensors takes the bytes as they lie.
    return {name: np.ascontiguousarray(flat[name]) for name in sorted(flat)}


def weights_digest(variables: Any) -> str:
    """The SHA-256 of the names, dtypes, shapes and bytes of variables, in hexadecimal."""
    digest = hashlib.sha256()
    for name, array in flat_variables(variables).items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_model(
    folder: pathlib.Path,
    network: Mapping[str, Any],
    variables: Any,
    *,
    name: str,
    image_size: int,
    resize: int | None,
    code_version: str,
    head: str = "",
) -> dict[str, Any]:
    """Writes config.json and model.safetensors into a folder.

    Args:
        folder: that is there.
        network: arguments of `networks.create_network`: name, num_bits, attributes.
        variables: the network's parameters and batch statistics.
        name: of the model, for tables and records.
        image_size: height and width of its images, in pixels.
        resize: short side that images had before a crop in the middle; None if they are squeezed.
        code_version: of the library.
        head: how the hash layer was found in closed form; empty if it was trained.

    Returns:
        What config.json holds.

    Raises:
        ValueError: if the package safetensors is not installed.
    """
    model = networks.create_network(**network)
    # Defaults that a later version may change.
    stated = {field: getattr(model, field) for field in ("input_norm", "dtype")}
    config = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "name": name,
        "network": {**stated, **network},
        "head": head,
        "image_size": image_size,
        "resize": resize,
        "weights_sha256": weights_digest(variables),
        "code_version": code_version,
    }
    weight_files.write(folder / WEIGHTS, flat_variables(variables))
    files.write_json(folder / CONFIG, config)
    return config


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads and checks config.json; ValueError names the file, its fault and the cure."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"no model in {str(folder)!r}: {path} is missing; {_CURE}")
    config = files.read_json(path, cure=_CURE)
    if config.get("model_type") != MODEL_TYPE:
        got = options.shortened(repr(config.get("model_type")), 60)
        raise ValueError(
            f"{path} must have the model_type {MODEL_TYPE!r}, got {got}: it is no folder that "
            "`saat-jax export` has made"
        )
    if config.get("format_version") != FORMAT_VERSION:
        got = options.shortened(repr(config.get("format_version")), 60)
        raise ValueError(
            f"{path} must have the format_version {FORMAT_VERSION}, got {got}; use the version of "
            "saat-jax that has made it, which code_version names"
        )
    return files.read_json(path, cure=_CURE, fields=_FIELDS)


def read_model(folder: pathlib.Path) -> tuple[dict[str, Any], nn.Module, dict[str, Any]]:
    """Reads a folder of `write_model`.

    Returns:
        What config.json holds, the network and its variables.

    Raises:
        ValueError: if a file is absent, damaged or of something else, or the two do not belong
            together, with the cure.
    """
    config = read_config(folder)
    with options.naming(str(folder / CONFIG)):
        model = networks.create_network(**_with_tuples(config["network"]))
    side = config["image_size"]
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    expected = traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), images), sep="."
    )
    path = folder / WEIGHTS
    stored = weight_files.read(path)
    _check_names(path, {*stored}, {*expected})
    arrays = {}
    for name, leaf in expected.items():
        got, wanted = (f"{x.dtype} {tuple(x.shape)}" for x in (stored[name], leaf))
        if got != wanted:
            raise ValueError(f"{path}: {name} must be {wanted}, got {got}; {_CURE}")
        arrays[name] = stored[name].read()
    variables = traverse_util.unflatten_dict(arrays, sep=".")
    if (got := weights_digest(variables)) != config["weights_sha256"]:
        raise ValueError(
            f"{path} has weights of the digest {got[:16]}, but {CONFIG} names "
            f"{config['weights_sha256'][:16]}; {_CURE}"
        )
    return config, model, variables


def from_folder(folder: pathlib.Path) -> Encoder:
    """The network of a folder that `write_model` has made, as an encoder.

    Raises:
        ValueError: as `read_model`.
    """
    config, model, variables = read_model(folder)
    variables = jax.device_put(variables)
    return from_network(model, variables, image_size=config["image_size"], name=config["name"])


def _with_tuples(network: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as Flax takes them: JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in network.items()}


def _check_names(path: pathlib.Path, got: set[str], expected: set[str]) -> None:
    if lacking := sorted(expected - got):
        fault = f"lacks {len(lacking)} of {len(expected)} arrays, the first being {lacking[0]}"
    elif more := sorted(got - expected):
        first = options.shortened(more[0], 60)
        fault = f"has {len(more)} arrays that the network has not, the first being {first}"
    else:
        return
    raise ValueError(f"{path} {fault}; {_CURE}")
