"""Every operator of ONNX that is known here gives what onnxruntime gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import encoders
from saat_jax.encoders import onnx_file

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
RNG = np.random.default_rng(0)


def _floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def _ints(*values):
    return np.array(values, np.int64)


IMAGE = _floats(2, 4, 9, 8)
ROWS = _floats(3, 6)
# Of eight bits the runtime's sums overflow on processors without VNNI.
SEVEN_BITS = RNG.integers(-64, 64, 54).astype(np.int8)
# Operator, its inputs (the first is the one that is attacked), its attributes, how many outputs.
CASES = [
    *((name, [ROWS], {}, 1) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish",
        "Identity", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Tanh",
        "HardSigmoid", "LeakyRelu", "Elu", "Softmax", "LogSoftmax", "Gelu", "Dropout", "Not",
        "GlobalAveragePool", "GlobalMaxPool", "Flatten")
        if name not in ("Not", "GlobalAveragePool", "GlobalMaxPool")),
    *((name, [np.abs(ROWS) + 0.5], {}, 1) for name in ("Log", "Sqrt", "Reciprocal")),
    *((name, [ROWS, _floats(6)], {}, 1) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min",
        "Sum", "Mean", "PRelu")),
    ("Pow", [np.abs(ROWS), np.array(3, np.float32)], {}, 1),
    ("Mod", [np.array([5, -5, 7], np.int64), np.array(3, np.int64)], {}, 1),
    ("Mod", [ROWS, np.array(0.4, np.float32)], {"fmod": 1}, 1),
    ("MatMul", [ROWS, _floats(6, 5)], {}, 1),
    ("Gemm", [ROWS, _floats(5, 6), _floats(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, 1),
    ("Einsum", [ROWS, _floats(6, 5)], {"equation": "ij,jk->ki"}, 1),
    ("Clip", [ROWS, np.array(-0.5, np.float32), np.array(0.5, np.float32)], {}, 1),
    ("Clip", [ROWS, None, np.array(0.5, np.float32)], {}, 1),
    ("Conv", [IMAGE, _floats(6, 2, 3, 2), _floats(6)],
        {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}, 1),
    ("Conv", [IMAGE, _floats(5, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 1),
    ("Conv", [IMAGE, _floats(5, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}, 1),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 1),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 1),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 2]}, 1),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    ("AveragePool", [IMAGE],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 1),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 1),
    ("GlobalAveragePool", [IMAGE], {}, 1),
    ("GlobalMaxPool", [IMAGE], {}, 1),
    ("BatchNormalization", [IMAGE, _floats(4), _floats(4), _floats(4), np.abs(_floats(4))], {}, 1),
    ("InstanceNormalization", [IMAGE, _floats(4), _floats(4)], {}, 1),
    ("LayerNormalization", [ROWS, _floats(6), _floats(6)], {"axis": -1}, 1),
    ("LpNormalization", [ROWS], {"axis": 1, "p": 2}, 1),
    *((f"Reduce{kind}", [IMAGE, _ints(2, 3)], {"keepdims": 0}, 1)
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L2", "SumSquare")),
    ("ReduceMean", [IMAGE], {}, 1),
    ("Reshape", [IMAGE, _ints(0, -1, 8)], {}, 1),
    ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}, 1),
    ("Squeeze", [ROWS[None], _ints(0)], {}, 1),
    ("Unsqueeze", [ROWS, _ints(0, 2)], {}, 1),
    ("Concat", [ROWS, _floats(2, 6)], {"axis": 0}, 1),
    ("Split", [ROWS, _ints(2, 4)], {"axis": 1}, 2),
    ("Slice", [IMAGE, _ints(1, -1), _ints(8, -100), _ints(2, 3), _ints(2, -1)], {}, 1),
    ("Gather", [ROWS, _ints(-1, 0)], {"axis": 1}, 1),
    ("Pad", [ROWS, _ints(1, 0, 0, 2), np.array(0.5, np.float32)], {}, 1),
    ("Pad", [ROWS, _ints(1, 2, 1, 2)], {"mode": "reflect"}, 1),
    ("Expand", [_floats(3, 1), _ints(2, 1, 4)], {}, 1),
    ("Where", [ROWS > 0, ROWS, _floats(3, 6)], {}, 1),
    *((name, [ROWS, _floats(6)], {}, 1)
        for name in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    ("Equal", [_ints(1, 2, 3), _ints(1, 5, 3)], {}, 1),
    *((name, [ROWS > 0, _floats(6) > 0], {}, 1) for name in ("And", "Or")),
    ("Not", [ROWS > 0], {}, 1),
    ("Cast", [ROWS], {"to": onnx.TensorProto.INT32}, 1),
    ("Shape", [IMAGE], {"start": 1}, 1),
    ("ConstantOfShape", [_ints(2, 3)], {}, 1),
    ("Range", [_ints(1)[0], _ints(9)[0], _ints(3)[0]], {}, 1),
    ("Resize", [IMAGE, None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "nearest",
        "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 1),
    ("Resize", [IMAGE, None, None, _ints(2, 4, 5, 13)], {"mode": "linear"}, 1),
    ("Resize", [IMAGE, None, None, _ints(2, 4, 14, 13)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, 1),
    ("QuantizeLinear", [4 * ROWS, np.array(0.05, np.float32), np.array(3, np.uint8)], {}, 1),
    ("QuantizeLinear", [4 * ROWS, np.array(0.05, np.float32), np.array(-3, np.int8)], {}, 1),
    ("DequantizeLinear",
        [RNG.integers(-128, 128, (3, 6)).astype(np.int8), np.abs(_floats(6)),
         RNG.integers(-9, 9, 6).astype(np.int8)], {"axis": 1}, 1),
    ("DynamicQuantizeLinear", [ROWS], {}, 3),
    ("MatMulInteger",
        [RNG.integers(0, 256, (3, 6)).astype(np.uint8), SEVEN_BITS[:30].reshape(6, 5),
         np.array(7, np.uint8)], {}, 1),
    ("ConvInteger",
        [RNG.integers(0, 256, (1, 2, 6, 6)).astype(np.uint8),
         RNG.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8), np.array(7, np.uint8),
         np.array(9, np.uint8)], {"pads": [1, 1, 1, 1]}, 1),
    ("QLinearMatMul",
        [RNG.integers(0, 256, (3, 6)).astype(np.uint8), np.array(0.02, np.float32),
         np.array(120, np.uint8), SEVEN_BITS[:30].reshape(6, 5),
         np.array(0.03, np.float32), np.array(0, np.int8), np.array(0.1, np.float32),
         np.array(128, np.uint8)], {}, 1),
    ("QLinearConv",
        [RNG.integers(0, 256, (1, 2, 6, 6)).astype(np.uint8), np.array(0.02, np.float32),
         np.array(120, np.uint8), SEVEN_BITS.reshape(3, 2, 3, 3),
         np.abs(_floats(3)) / 50, np.zeros(3, np.int8), np.array(0.1, np.float32),
         np.array(128, np.uint8), RNG.integers(-99, 99, 3).astype(np.int32)], {}, 1),
]  # fmt: skip


def _model(operator, inputs, attributes, num_outputs, version=20):
    """A file of one node, of which the first input is given and the others are stored."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    node = helper.make_node(
        operator, names, [f"y{i}" for i in range(num_outputs)], name="it", **attributes
    )
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(inputs[0]).dtype)
    stored = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names[1:], inputs[1:], strict=True)
        if name
    ]
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x0", kind, np.shape(inputs[0]))],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(num_outputs)],
        stored,
    )
    opset = [helper.make_opsetid("", version)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def _both(model, given):
    """What onnxruntime gives, and what we do."""
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x0": np.asarray(given)})
    graph = onnx_file._Graph(onnx, model, True)
    static = not np.issubdtype(np.asarray(given).dtype, np.floating)
    given = np.asarray(given) if static else jnp.asarray(given)
    names = [output.name for output in session.get_outputs()]
    return expected, [np.asarray(graph(graph.weights, "x0", given, name)) for name in names]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}_{i}" for i, case in enumerate(CASES)])
def test_an_operator_is_the_runtimes(case):
    operator, inputs, attributes, num_outputs = case
    expected, actual = _both(_model(operator, inputs, attributes, num_outputs), inputs[0])
    for theirs, ours in zip(expected, actual, strict=True):
        assert theirs.shape == ours.shape
        quantised = operator.startswith("QLinear")
        # A half may be rounded either way, since what it is made of is rounded differently.
        np.testing.assert_allclose(
            np.asarray(ours, float),
            np.asarray(theirs, float),
            rtol=2e-5,
            atol=1.0 if quantised else 2e-5,
        )


def test_every_operator_has_a_case():
    older = {"GroupNormalization", "Upsample", "Constant"}
    assert set(encoders.OPERATORS) == {case[0] for case in CASES} | older


@pytest.mark.parametrize(
    ("case", "version"),
    [
        (("Softmax", [IMAGE], {"axis": 1}, 1), 11),
        (("ReduceMean", [IMAGE], {"axes": [2, 3]}, 1), 13),
        (("Squeeze", [ROWS[None]], {"axes": [0]}, 1), 11),
        (("Split", [ROWS], {"axis": 1, "split": [2, 4]}, 2), 11),
        (("Slice", [IMAGE], {"starts": [1], "ends": [3], "axes": [1]}, 1), 9),
        (("Clip", [ROWS], {"min": -0.5, "max": 0.5}, 1), 9),
        (("Upsample", [IMAGE, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, 1), 9),
        (("GroupNormalization", [IMAGE, _floats(4), _floats(4)], {"num_groups": 2}, 1), 21),
    ],
    ids=str,
)
def test_older_and_newer_forms_of_operators(case, version):
    expected, actual = _both(_model(*case, version=version), case[1][0])
    for theirs, ours in zip(expected, actual, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def _encoder_file(path, nodes, stored, *, shape=("batch", 3, 8, 8)):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _quantised(path):
    """A linear map of an image that is rounded to 16 levels."""
    _encoder_file(
        path,
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("Flatten", ["d"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        {
            "scale": np.array(1 / 16, np.float32),
            "zero": np.array(0, np.uint8),
            "w": _floats(192, 10) - 0.1,
        },
    )


def test_a_quantised_file_has_a_gradient_only_if_rounding_lets_it_through(tmp_path):
    _quantised(tmp_path / "it.onnx")
    image = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for rounding, has_gradient in (("straight_through", True), ("exact", False)):
        encoder = encoders.from_onnx(tmp_path / "it.onnx", rounding=rounding)
        assert encoders.parity(encoder, [image]).bits_differ == 0
        gradient = jax.grad(lambda x, e=encoder: e.encode_fn(e.variables, x, 0.1).sum())(
            jnp.asarray(image[None] / np.float32(255))
        )
        assert (np.count_nonzero(gradient) > 0) == has_gradient


def test_channels_last_and_a_fixed_batch_are_seen_in_the_inputs_shape(tmp_path):
    weights = {"w": _floats(192, 10)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    images = [RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(3)]
    for name, shape in (("last", ("b", 8, 8, 3)), ("fixed", (2, 3, 8, 8))):
        _encoder_file(tmp_path / f"{name}.onnx", nodes, weights, shape=shape)
        encoder = encoders.from_onnx(tmp_path / f"{name}.onnx")
        assert encoders.parity(encoder, images).bits_differ == 0
        flat = np.stack(images).astype(np.float32) / 255
        flat = flat if name == "last" else flat.transpose(0, 3, 1, 2)
        expected = flat.reshape(3, -1) @ weights["w"]
        np.testing.assert_allclose(encoder.run(images), expected, atol=1e-4)


def test_what_is_no_encoder_is_refused(tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged.onnx is no ONNX file"):
        encoders.from_onnx(damaged)
    _quantised(tmp_path / "it.onnx")
    with pytest.raises(ValueError, match=r"image_size must be \(8, 8\)"):
        encoders.from_onnx(tmp_path / "it.onnx", image_size=(9, 9))
    with pytest.raises(ValueError, match=r"no output 'z', it has \['y'\]"):
        encoders.from_onnx(tmp_path / "it.onnx", output="z")
    with pytest.raises(ValueError, match="unknown rounding 'soft'"):
        encoders.from_onnx(tmp_path / "it.onnx", rounding="soft")
    open_sides = tmp_path / "open.onnx"
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]),
             helper.make_node("Flatten", ["p"], ["y"])]  # fmt: skip
    _encoder_file(open_sides, nodes, {}, shape=("b", 3, "h", "w"))
    with pytest.raises(ValueError, match="image_size must be"):
        encoders.from_onnx(open_sides)
    assert encoders.from_onnx(open_sides, image_size=(6, 5)).num_bits == 3
    nodes = [helper.make_node("Det", ["x"], ["d"], name="first"),
             helper.make_node("Selu", ["d"], ["y"], name="second")]  # fmt: skip
    _encoder_file(tmp_path / "unknown.onnx", nodes, {})
    with pytest.raises(ValueError, match=r"Det \(first\); Selu \(second\)"):
        encoders.from_onnx(tmp_path / "unknown.onnx")
