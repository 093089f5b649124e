"""The operators of ONNX that image encoders use, as JAX functions.

Each maps (node, inputs) to an output, or a tuple of them. An input is `None` if it is left out,
NumPy if it is known while a program is traced (shapes, axes, constants), else JAX. Quantised
numbers are kept as floats, which are whole.

Reference:
    The ONNX operator schemas, https://onnx.ai/onnx/operators.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options

Array = Any
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of an operator.

    Attributes:
        name: for messages.
        operator: its name in ONNX.
        inputs: names of what it takes; "" for what is left out.
        outputs: names of what it gives.
        attributes: by name.
        version: of the operator set.
        straight: whether rounding has the gradient of what is not rounded; else it has none.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    version: int
    straight: bool

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda node, inputs: function(*inputs)


def _variadic(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda node, inputs: functools.reduce(function, inputs)


def _whole(node: Node, values: Array) -> Array:
    rounded = jnp.round(values)
    return values + jax.lax.stop_gradient(rounded - values) if node.straight else rounded


def _static(node: Node, value: Array, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{node.operator} {node.name!r}: its {what} must be known beforehand")
    return value


def _list(node: Node, inputs: Sequence[Array], place: int, name: str) -> list[int] | None:
    """What newer operator sets have as an input, and older ones as an attribute."""
    if len(inputs) > place and inputs[place] is not None:
        return [int(v) for v in _static(node, inputs[place], name).reshape(-1)]
    found = node.get(name)
    return None if found is None else [int(v) for v in np.reshape(found, -1)]


def _div(a: Array, b: Array) -> Array:
    if jnp.issubdtype(a.dtype, jnp.integer):
        return (jnp.sign(a) * jnp.sign(b) * (jnp.abs(a) // jnp.abs(b))).astype(a.dtype)
    return a / b


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _gemm(node: Node, inputs: Sequence[Array]) -> Array:
    a, b, *rest = inputs
    product = node.get("alpha", 1.0) * _matmul(
        a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    )
    return product + node.get("beta", 1.0) * rest[0] if rest and rest[0] is not None else product


def _pads(node: Node, shape: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding of each side, by the attribute or by `auto_pad`."""
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    kind = node.get("auto_pad", b"NOTSET")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, stride, dilation, width in zip(shape, strides, dilations, kernel, strict=True):
            total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if kind == "SAME_UPPER" else (more, less))
        return found
    pads = node.get("pads") or [0] * (2 * rank)
    return [(0, 0)] * rank if kind == "VALID" else [*zip(pads[:rank], pads[rank:], strict=True)]


def _convolve(node: Node, x: Array, w: Array) -> Array:
    kernel = w.shape[2:]
    rank = len(kernel)
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(w),
        window_strides=node.get("strides", [1] * rank),
        padding=_pads(node, x.shape[2:], kernel),
        rhs_dilation=node.get("dilations", [1] * rank),
        feature_group_count=node.get("group", 1),
        precision=_HIGHEST,
    )


def _along(values: Array, rank: int, axis: int = 1) -> Array:
    """One value for each entry of an axis, or one for all, against arrays of a rank."""
    return (
        values
        if np.ndim(values) == 0
        else values.reshape([-1 if i == axis else 1 for i in range(rank)])
    )


def _conv(node: Node, inputs: Sequence[Array]) -> Array:
    x, w, *bias = inputs
    found = _convolve(node, x, w)
    return found + _along(bias[0], x.ndim) if bias and bias[0] is not None else found


def _pool(node: Node, inputs: Sequence[Array]) -> Array:
    (x,) = inputs
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads = _pads(node, x.shape[2:], kernel)
    extra = [0] * rank
    if node.get("ceil_mode", 0):
        for axis, (size, (before, after)) in enumerate(zip(x.shape[2:], pads, strict=True)):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            room = size + before + after - reach
            steps = -(-room // strides[axis])
            # A window must not begin in the padding behind.
            if steps * strides[axis] >= size + before:
                steps -= 1
            extra[axis] = max(steps * strides[axis] - room, 0)
    window, moves = (1, 1, *kernel), (1, 1, *strides)
    outer = [(0, 0), (0, 0)]
    full = [*outer, *((b, a + e) for (b, a), e in zip(pads, extra, strict=True))]

    def reduced(values: Array, first: float, function: Any, padding: Any) -> Array:
        return jax.lax.reduce_window(
            values, first, function, window, moves, padding, window_dilation=(1, 1, *dilations)
        )

    if node.operator == "MaxPool":
        return reduced(x, -jnp.inf, jax.lax.max, full)
    counted = jnp.ones_like(x)
    if node.get("count_include_pad", 0):
        counted = jnp.pad(counted, [*outer, *pads], constant_values=1)
        full_counted = [*outer, *((0, e) for e in extra)]
    else:
        full_counted = full
    return reduced(x, 0.0, jax.lax.add, full) / reduced(counted, 0.0, jax.lax.add, full_counted)


def _over_places(function: Callable[..., Array]) -> Callable[..., Array]:
    def pool(node: Node, inputs: Sequence[Array]) -> Array:
        return function(inputs[0], axis=tuple(range(2, inputs[0].ndim)), keepdims=True)

    return pool


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(node: Node, inputs: Sequence[Array]) -> Array:
        axes = _list(node, inputs, 1, "axes")
        if not axes and node.get("noop_with_empty_axes", 0):
            return inputs[0]
        keep = bool(node.get("keepdims", 1))
        return function(inputs[0], axis=tuple(axes) if axes else None, keepdims=keep)

    return reduce


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centered = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=axes, keepdims=True)
    return centered / jnp.sqrt(variance + epsilon)


def _batch_norm(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, bias, mean, variance = inputs
    scale, bias, mean, variance = (_along(v, x.ndim) for v in (scale, bias, mean, variance))
    return (x - mean) / jnp.sqrt(variance + node.get("epsilon", 1e-5)) * scale + bias


def _layer_norm(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, *bias = inputs
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    found = _normalized(x, axes, node.get("epsilon", 1e-5)) * scale
    return found + bias[0] if bias and bias[0] is not None else found


def _instance_norm(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, bias = inputs
    found = _normalized(x, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    return found * _along(scale, x.ndim) + _along(bias, x.ndim)


def _group_norm(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, bias = inputs
    groups = node.get("num_groups")
    grouped = x.reshape(x.shape[0], groups, -1)
    found = _normalized(grouped, (2,), node.get("epsilon", 1e-5)).reshape(x.shape)
    if len(scale) == groups != x.shape[1]:
        scale, bias = (jnp.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    return found * _along(scale, x.ndim) + _along(bias, x.ndim)


def _lp_norm(node: Node, inputs: Sequence[Array]) -> Array:
    (x,), order, axis = inputs, node.get("p", 2), node.get("axis", -1)
    size = jnp.linalg.norm(x, ord=order, axis=axis, keepdims=True)
    return x / jnp.where(size > 0, size, 1)


def _softmax(function: Callable[..., Array]) -> Callable[..., Array]:
    def softmax(node: Node, inputs: Sequence[Array]) -> Array:
        (x,) = inputs
        if node.version >= 13:
            return function(x, axis=node.get("axis", -1))
        axis = node.get("axis", 1) % x.ndim
        flat = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(flat, axis=-1).reshape(x.shape)

    return softmax


def _gelu(node: Node, inputs: Sequence[Array]) -> Array:
    return jax.nn.gelu(inputs[0], approximate=node.get("approximate", b"none") == b"tanh")


def _clip(node: Node, inputs: Sequence[Array]) -> Array:
    given = [*inputs[1:], None, None][:2]
    low, high = (
        node.get(name) if value is None else value
        for name, value in zip(("min", "max"), given, strict=True)
    )
    return jnp.clip(inputs[0], low, high)


def _reshape(node: Node, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    shape = _list(node, inputs, 1, "shape") or []
    if not node.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(node: Node, inputs: Sequence[Array]) -> Array:
    x, axis = inputs[0], node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(node: Node, inputs: Sequence[Array]) -> Array:
    axes = _list(node, inputs, 1, "axes")
    return jnp.squeeze(inputs[0], None if axes is None else tuple(axes))


def _unsqueeze(node: Node, inputs: Sequence[Array]) -> Array:
    return jnp.expand_dims(inputs[0], tuple(_list(node, inputs, 1, "axes") or ()))


def _split(node: Node, inputs: Sequence[Array]) -> tuple[Array, ...]:
    x, axis = inputs[0], node.get("axis", 0)
    sizes = _list(node, inputs, 1, "split")
    if sizes is None:
        each = -(-x.shape[axis] // len(node.outputs))
        sizes = [each] * (len(node.outputs) - 1)
    else:
        sizes = sizes[:-1]
    return tuple(jnp.split(x, np.cumsum(sizes).tolist(), axis=axis))


def _slice(node: Node, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    starts, ends = (_list(node, inputs, i, name) for i, name in ((1, "starts"), (2, "ends")))
    assert starts is not None and ends is not None
    axes = _list(node, inputs, 3, "axes") or [*range(len(starts))]
    steps = _list(node, inputs, 4, "steps") or [1] * len(starts)
    picked = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Before the first, going back, is no number of Python's.
        open_end = step < 0 and end < -x.shape[axis]
        picked[axis] = slice(start, None if open_end else end, step)
    return x[tuple(picked)]


def _gather(node: Node, inputs: Sequence[Array]) -> Array:
    x, indices = inputs
    axis = node.get("axis", 0)
    indices = jnp.asarray(indices)
    return jnp.take(x, jnp.where(indices < 0, indices + x.shape[axis], indices), axis=axis)


def _pad(node: Node, inputs: Sequence[Array]) -> Array:
    x, pads = inputs[0], _list(node, inputs, 1, "pads") or []
    axes = _list(node, inputs, 3, "axes") or [*range(x.ndim)]
    kind = node.get("mode", b"constant").decode()
    widths = [(0, 0)] * x.ndim
    for number, axis in enumerate(axes):
        widths[axis] = (pads[number], pads[number + len(axes)])
    if kind != "constant":
        return jnp.pad(x, widths, mode={"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[kind])
    value = inputs[2] if len(inputs) > 2 and inputs[2] is not None else node.get("value", 0.0)
    # Of less than nothing it takes away.
    config = [(before, after, 0) for before, after in widths]
    return jax.lax.pad(jnp.asarray(x), jnp.asarray(value, x.dtype).reshape(()), config)


def _cast(node: Node, inputs: Sequence[Array]) -> Array:
    kind = _DTYPES.get(node.get("to"))
    if kind is None:
        raise ValueError(f"Cast {node.name!r} to type {node.get('to')} of ONNX is not supported")
    return inputs[0].astype(kind)


# Of TensorProto; what is wider than JAX has is narrowed.
_DTYPES: dict[int, Any] = {
    **dict.fromkeys((1, 10, 11), np.float32),
    **dict.fromkeys((6, 7), np.int32),
    2: np.uint8,
    3: np.int8,
    9: np.bool_,
}


def _constant(node: Node, inputs: Sequence[Array]) -> Array:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if node.get(name) is not None:
            return np.asarray(node.get(name))
    raise ValueError(f"Constant {node.name!r} has no value that is known here")


def _constant_of_shape(node: Node, inputs: Sequence[Array]) -> Array:
    value = np.asarray(node.get("value", np.zeros(1, np.float32)))
    return np.full(_list(node, inputs, 0, "shape"), value.reshape(-1)[0], value.dtype)


def _range(node: Node, inputs: Sequence[Array]) -> Array:
    return np.arange(*(_static(node, value, "range").item() for value in inputs))


def _expand(node: Node, inputs: Sequence[Array]) -> Array:
    shape = _list(node, inputs, 1, "shape")
    return jnp.broadcast_to(inputs[0], jnp.broadcast_shapes(inputs[0].shape, tuple(shape or ())))


def _einsum(node: Node, inputs: Sequence[Array]) -> Array:
    return jnp.einsum(node.get("equation").decode(), *inputs, precision=_HIGHEST)


def _resize(node: Node, inputs: Sequence[Array]) -> Array:
    x = inputs[0]
    scales, sizes = ([*inputs, None, None, None][i] for i in (2, 3))
    if node.operator == "Upsample":
        scales = inputs[1] if len(inputs) > 1 else np.asarray(node.get("scales"))
    if sizes is not None and np.size(sizes):
        shape = [int(v) for v in _static(node, sizes, "sizes")]
        factors = [new / old for new, old in zip(shape, x.shape, strict=True)]
    else:
        factors = [float(v) for v in _static(node, scales, "scales")]
        shape = [int(old * factor) for old, factor in zip(x.shape, factors, strict=True)]
    mode = node.get("mode", b"nearest").decode()
    default = b"asymmetric" if node.operator == "Upsample" else b"half_pixel"
    rule = node.get("coordinate_transformation_mode", default).decode()
    if mode not in ("nearest", "linear") or rule not in _COORDINATES:
        raise ValueError(f"{node.operator} {node.name!r}: mode {mode}, {rule} is not supported")
    for axis, (old, new) in enumerate(zip(x.shape, shape, strict=True)):
        if old != new:
            at = _COORDINATES[rule](np.arange(new), old, new, factors[axis])
            weights = _nearest(node, at, old) if mode == "nearest" else _linear(at, old)
            x = jnp.moveaxis(_matmul(jnp.moveaxis(x, axis, -1), weights.T), -1, axis)
    return x


# Where a new place lies among the old ones.
_COORDINATES: dict[str, Callable[..., np.ndarray]] = {
    "half_pixel": lambda i, old, new, factor: (i + 0.5) / factor - 0.5,
    "pytorch_half_pixel": lambda i, old, new, factor: (
        (i + 0.5) / factor - 0.5 if new > 1 else 0.0 * i
    ),
    "asymmetric": lambda i, old, new, factor: i / factor,
    "align_corners": lambda i, old, new, factor: i * (old - 1) / max(new - 1, 1),
}


def _nearest(node: Node, at: np.ndarray, old: int) -> np.ndarray:
    default = b"floor" if node.operator == "Upsample" else b"round_prefer_floor"
    kind = node.get("nearest_mode", default).decode()
    rounds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    places = np.clip(rounds[kind](at), 0, old - 1).astype(int)
    return np.eye(old, dtype=np.float32)[places]


def _linear(at: np.ndarray, old: int) -> np.ndarray:
    at = np.clip(at, 0, old - 1)
    distance = np.abs(at[:, None] - np.arange(old))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _quantize(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, *zero = inputs
    low, high = _levels(node, zero[0] if zero else None)
    axis = node.get("axis", 1) if np.ndim(scale) and np.size(scale) > 1 else 0
    scale, point = (_along_if_many(v, x.ndim, axis) for v in (scale, _number(zero)))
    # Clipped before the end: a gradient passes where something may still change.
    return jnp.clip(_whole(node, x / scale) + point, low, high)


def _dequantize(node: Node, inputs: Sequence[Array]) -> Array:
    x, scale, *zero = inputs
    axis = node.get("axis", 1)
    scale, point = (_along_if_many(v, x.ndim, axis) for v in (scale, _number(zero)))
    return (jnp.asarray(x, jnp.float32) - point) * scale


def _number(zero: Sequence[Array]) -> Array:
    value = zero[0] if zero and zero[0] is not None else np.zeros((), np.float32)
    return jnp.asarray(value, jnp.float32)


def _along_if_many(values: Array, rank: int, axis: int) -> Array:
    return jnp.reshape(values, ()) if np.size(values) == 1 else _along(values, rank, axis)


def _levels(node: Node, zero: Array | None) -> tuple[int, int]:
    """The least and the greatest of the type, which is the zero point's."""
    kind = getattr(zero, "dtype", None)
    signed = kind == np.int8 or node.get("signed", False)
    return (-128, 127) if signed else (0, 255)


def _dynamic_quantize(node: Node, inputs: Sequence[Array]) -> tuple[Array, Array, Array]:
    (x,) = inputs
    low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
    scale = jax.lax.stop_gradient(jnp.maximum((high - low) / 255, 1e-12))
    point = jax.lax.stop_gradient(jnp.clip(jnp.round(-low / scale), 0, 255))
    return jnp.clip(_whole(node, x / scale) + point, 0, 255), scale, point


def _from_levels(x: Array, scale: Array, zero: Array, axis: int | None = None) -> Array:
    """Quantised numbers as what they stand for."""
    rank = np.ndim(x)
    scale, zero = (
        _along_if_many(jnp.asarray(v, jnp.float32), rank, axis or 0) for v in (scale, zero)
    )
    return (jnp.asarray(x, jnp.float32) - zero) * scale


def _to_levels(node: Node, x: Array, scale: Array, zero: Array) -> Array:
    low, high = _levels(node, zero)
    return jnp.clip(_whole(node, x / scale) + jnp.asarray(zero, jnp.float32), low, high)


def _qlinear_conv(node: Node, inputs: Sequence[Array]) -> Array:
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, *bias = inputs
    found = _convolve(node, _from_levels(x, x_scale, x_zero), _from_levels(w, w_scale, w_zero))
    if bias:
        unit = jnp.asarray(x_scale) * jnp.asarray(w_scale).reshape(-1)
        found = found + _along(jnp.asarray(bias[0], jnp.float32) * unit, x.ndim)
    return _to_levels(node, found, scale, zero)


def _qlinear_matmul(node: Node, inputs: Sequence[Array]) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    last = np.ndim(b) - 1
    product = _matmul(_from_levels(a, a_scale, a_zero), _from_levels(b, b_scale, b_zero, last))
    return _to_levels(node, product, scale, zero)


def _conv_integer(node: Node, inputs: Sequence[Array]) -> Array:
    x, w, *zeros = inputs
    x_zero, w_zero = (_number(zeros[i : i + 1]) for i in (0, 1))
    w = jnp.asarray(w, jnp.float32) - _along_if_many(w_zero, np.ndim(w), 0)
    return _convolve(node, jnp.asarray(x, jnp.float32) - x_zero, w)


def _matmul_integer(node: Node, inputs: Sequence[Array]) -> Array:
    a, b, *zeros = inputs
    a_zero, b_zero = (_number(zeros[i : i + 1]) for i in (0, 1))
    return _matmul(jnp.asarray(a, jnp.float32) - a_zero, jnp.asarray(b, jnp.float32) - b_zero)


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Abs": jnp.abs,
    "Add": jnp.add,
    "And": jnp.logical_and,
    "Ceil": jnp.ceil,
    "Cos": jnp.cos,
    "Div": _div,
    "Equal": jnp.equal,
    "Erf": jax.scipy.special.erf,
    "Exp": jnp.exp,
    "Floor": jnp.floor,
    "Greater": jnp.greater,
    "GreaterOrEqual": jnp.greater_equal,
    "HardSwish": lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x,
    "Less": jnp.less,
    "LessOrEqual": jnp.less_equal,
    "Log": jnp.log,
    "MatMul": _matmul,
    "Mul": jnp.multiply,
    "Neg": jnp.negative,
    "Not": jnp.logical_not,
    "Or": jnp.logical_or,
    "PRelu": lambda x, slope: jnp.where(x < 0, slope * x, x),
    "Pow": lambda x, power: jnp.power(x, power).astype(x.dtype),
    "Reciprocal": lambda x: 1 / x,
    "Relu": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "Sign": jnp.sign,
    "Sin": jnp.sin,
    "Softplus": jax.nn.softplus,
    "Sqrt": jnp.sqrt,
    "Sub": jnp.subtract,
    "Tanh": jnp.tanh,
    "Where": jnp.where,
}
# By their names in ONNX. One of one's own: OPERATORS.register.
OPERATORS: options.Choices[Callable[[Node, Sequence[Array]], Any]] = options.Choices(
    "ONNX operator",
    {
        **{name: _elementwise(function) for name, function in _FUNCTIONS.items()},
        "AveragePool": _pool,
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "Clip": _clip,
        "Concat": lambda node, inputs: jnp.concatenate(inputs, node.get("axis")),
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Conv": _conv,
        "ConvInteger": _conv_integer,
        "DequantizeLinear": _dequantize,
        "Dropout": lambda node, inputs: inputs[0],
        "DynamicQuantizeLinear": _dynamic_quantize,
        "Einsum": _einsum,
        "Elu": lambda node, inputs: jax.nn.elu(inputs[0], node.get("alpha", 1.0)),
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Gelu": _gelu,
        "Gemm": _gemm,
        "GlobalAveragePool": _over_places(jnp.mean),
        "GlobalMaxPool": _over_places(jnp.max),
        "GroupNormalization": _group_norm,
        "HardSigmoid": lambda node, inputs: jnp.clip(
            node.get("alpha", 0.2) * inputs[0] + node.get("beta", 0.5), 0, 1
        ),
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "LeakyRelu": lambda node, inputs: jax.nn.leaky_relu(inputs[0], node.get("alpha", 0.01)),
        "LogSoftmax": _softmax(jax.nn.log_softmax),
        "LpNormalization": _lp_norm,
        "MatMulInteger": _matmul_integer,
        "Max": _variadic(jnp.maximum),
        "MaxPool": _pool,
        "Mean": lambda node, inputs: sum(inputs[1:], inputs[0]) / len(inputs),
        "Min": _variadic(jnp.minimum),
        "Mod": lambda node, inputs: (jnp.fmod if node.get("fmod", 0) else jnp.mod)(*inputs),
        "Pad": _pad,
        "QLinearConv": _qlinear_conv,
        "QLinearMatMul": _qlinear_matmul,
        "QuantizeLinear": _quantize,
        "Range": _range,
        "ReduceL2": _reduce(lambda x, **where: jnp.sqrt(jnp.sum(jnp.square(x), **where))),
        "ReduceMax": _reduce(jnp.max),
        "ReduceMean": _reduce(jnp.mean),
        "ReduceMin": _reduce(jnp.min),
        "ReduceProd": _reduce(jnp.prod),
        "ReduceSum": _reduce(jnp.sum),
        "ReduceSumSquare": _reduce(lambda x, **where: jnp.sum(jnp.square(x), **where)),
        "Reshape": _reshape,
        "Resize": _resize,
        "Round": lambda node, inputs: _whole(node, inputs[0]),
        "Shape": lambda node, inputs: np.array(
            inputs[0].shape[node.get("start", 0) : node.get("end", None)]
        ),
        "Slice": _slice,
        "Softmax": _softmax(jax.nn.softmax),
        "Split": _split,
        "Squeeze": _squeeze,
        "Sum": _variadic(jnp.add),
        "Transpose": lambda node, inputs: jnp.transpose(inputs[0], node.get("perm")),
        "Unsqueeze": _unsqueeze,
        "Upsample": _resize,
    },
)
