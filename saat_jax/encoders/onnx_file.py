"""ONNX files as encoders: their operators in JAX, their runtime's word on what counts."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import lazy, options
from saat_jax.encoders.callback import Normalisation
from saat_jax.encoders.encoder import Encoder, by_shape
from saat_jax.encoders.onnx_operators import OPERATORS, Node

# Whether rounding in a quantised network has the gradient of what it rounds, or none.
ROUNDINGS: options.Choices[bool] = options.Choices(
    "rounding", {"straight_through": True, "exact": False}
)
# Constants of more entries are weights, which programs take as arguments.
_MANY = 64


def from_onnx(
    path: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
    output: str | None = None,
    mean: Normalisation = 0.0,
    deviation: Normalisation = 1.0,
    rounding: str = "straight_through",
    name: str | None = None,
) -> Encoder:
    """An ONNX file as an encoder: attacked through JAX, judged by onnxruntime.

    Args:
        path: of the file. Its first input takes `[batch, 3, height, width]` images, or
            `[batch, height, width, 3]`, as its shape says.
        image_size: `(height, width)`, where the file leaves it open.
        output: which of its outputs; by default the first. Its signs are the code.
        mean: what is taken from images in [0, 1], of each channel.
        deviation: what they are divided by then.
        rounding: one of `ROUNDINGS`: what gradient a quantised network has.
        name: for tables and records; by default the file's.

    Raises:
        ModuleNotFoundError: if onnx or onnxruntime is not installed.
        ValueError: if the file cannot be read, has operators that are not known here (all are
            named), or an input or output that is none of images and codes.
    """
    onnx, runtime = lazy.require("onnx"), lazy.require("onnxruntime")
    path, straight = pathlib.Path(path), ROUNDINGS[rounding]
    try:
        model = onnx.load(path)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r}") from None
    # A damaged file raises protobuf's, onnx's and the runtime's own kinds.
    except Exception as error:
        raise ValueError(f"{path} is no ONNX file that can be read: {error}") from error
    graph = _Graph(onnx, model, straight)
    given = session.get_inputs()[0]
    channels_last, fixed_batch, size = _layout(path, given.shape, image_size)
    chosen = output or session.get_outputs()[0].name
    if chosen not in (names := [found.name for found in session.get_outputs()]):
        raise ValueError(f"{path} has no output {output!r}, it has {names}")
    shift, divisor = (np.asarray(values, np.float32) for values in (mean, deviation))

    def prepared(images: Any) -> Any:
        images = (images - shift) / divisor
        return images if channels_last else images.transpose(0, 3, 1, 2)

    def outputs(variables: Any, images: jax.Array) -> jax.Array:
        found = graph(variables, given.name, prepared(images), chosen)
        return found.reshape(len(images), -1)

    def judged(images: np.ndarray) -> np.ndarray:
        images = prepared(images)
        step = fixed_batch or len(images)
        # A file of a fixed batch gets it filled up.
        filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % step, axis=0)])
        parts = [
            session.run([chosen], {given.name: np.ascontiguousarray(filled[row : row + step])})[0]
            for row in range(0, len(filled), step)
        ]
        return np.concatenate([part.reshape(step, -1) for part in parts])[: len(images)]

    def encode_fn(variables: Any, images: jax.Array, alpha: Any) -> jax.Array:
        if not fixed_batch or len(images) == fixed_batch:
            return jnp.tanh(alpha * outputs(variables, images))
        return jnp.tanh(
            alpha
            * jax.lax.map(lambda image: _alone(outputs, variables, image, fixed_batch), images)
        )

    try:
        found = judged(np.full((1, *size, 3), 0.5, np.float32))
    except Exception as error:
        raise ValueError(f"{path} cannot encode one image of {size}: {error}") from error
    return Encoder(
        name=name or path.stem,
        num_bits=found.shape[1],
        encode_fn=encode_fn,
        variables=graph.weights,
        run=lambda images: by_shape(images, judged, image_size=size),
        runtime=f"onnxruntime {runtime.__version__}",
        fingerprint=hashlib.sha256(
            path.read_bytes() + repr((mean, deviation, chosen)).encode()
        ).hexdigest(),
        image_size=size,
    )


def _alone(outputs: Callable[..., jax.Array], variables: Any, image: jax.Array, batch: int) -> Any:
    """One image through a file of a fixed batch."""
    return outputs(variables, jnp.repeat(image[None], batch, axis=0))[0]


def _layout(
    path: pathlib.Path, shape: Sequence[Any], image_size: tuple[int, int] | None
) -> tuple[bool, int | None, tuple[int, int]]:
    """Whether channels are last, the batch if it is fixed, and height and width."""
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(
            f"{path} must take images [batch, 3, height, width] or [batch, height, width, 3], its "
            f"input is {list(shape)}"
        )
    channels_last = shape[1] != 3
    fixed = tuple(shape[1:3] if channels_last else shape[2:4])
    known = tuple(side for side in fixed if isinstance(side, int))
    size = known if len(known) == 2 else image_size
    if size is None or (image_size is not None and tuple(image_size) != size):
        raise ValueError(
            f"image_size must be {known if len(known) == 2 else '(height, width)'} for {path}, "
            f"whose input is {list(shape)}, got {image_size}"
        )
    return channels_last, shape[0] if isinstance(shape[0], int) else None, (size[0], size[1])


class _Graph:
    """A file's operators in their order, and its weights."""

    def __init__(self, onnx: Any, model: Any, straight: bool):
        versions = {found.domain: found.version for found in model.opset_import}
        version = versions.get("", versions.get("ai.onnx", 0))
        self._nodes = []
        for node in model.graph.node:
            attributes = {
                field.name: onnx.helper.get_attribute_value(field) for field in node.attribute
            }
            for name, value in attributes.items():
                if isinstance(value, onnx.TensorProto):
                    attributes[name] = onnx.numpy_helper.to_array(value)
            self._nodes.append(
                Node(
                    node.name,
                    node.op_type,
                    tuple(node.input),
                    tuple(node.output),
                    attributes,
                    version,
                    straight,
                )
            )
        unknown: dict[str, list[str]] = {}
        for made in self._nodes:
            if made.operator not in OPERATORS:
                unknown.setdefault(made.operator, []).append(made.name)
        if unknown:
            told = "; ".join(f"{op} ({', '.join(names[:3])})" for op, names in unknown.items())
            raise ValueError(
                f"operators that are not known here: {told}; "
                "onnx_operators.OPERATORS.register adds one"
            )
        arrays = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        # What shapes and axes are made of must be known while a program is traced.
        self._known = {
            name: array
            for name, array in arrays.items()
            if array.size <= _MANY or not _is_weight(array)
        }
        self.weights = {
            name: jnp.asarray(array, jnp.float32)
            for name, array in arrays.items()
            if name not in self._known
        }

    def __call__(self, weights: Any, given: str, images: jax.Array, wanted: str) -> jax.Array:
        """The wanted output of images."""
        values: dict[str, Any] = {**self._known, **weights, given: images, "": None}
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            function = OPERATORS[node.operator]
            if all(isinstance(value, np.ndarray | None) for value in inputs):
                # Shapes, and what is made of them: known while a program is traced.
                with jax.ensure_compile_time_eval():
                    found = jax.tree.map(np.asarray, function(node, inputs))
            else:
                found = function(node, inputs)
            if node.operator == "Shape":
                found = np.asarray(found)
            made = found if isinstance(found, tuple) else (found,)
            values |= zip(node.outputs, made, strict=False)
            if wanted in values:
                break
        return values[wanted]


def _is_weight(array: np.ndarray) -> bool:
    return array.dtype in (np.float32, np.float16, np.float64, np.int8, np.uint8)
