"""Any image -> code function behind one small type.

An `Encoder` has codes of images, differentiable soft outputs where there are any, and the runtime
whose word counts. Knows nothing of labels or points, and of attacks how they get at logits.
"""

from saat_jax.encoders.callback import from_function, from_torch
from saat_jax.encoders.embedding import sign_quantized
from saat_jax.encoders.encoder import Encoder, Parity, by_shape, parity
from saat_jax.encoders.jax_function import from_encode_fn, from_jax, from_network
from saat_jax.encoders.onnx_file import ROUNDINGS, from_onnx
from saat_jax.encoders.onnx_operators import OPERATORS
from saat_jax.encoders.perceptual import PERCEPTUAL_HASHES, ahash, dhash, pdq, phash

__all__ = [
    "OPERATORS",
    "PERCEPTUAL_HASHES",
    "ROUNDINGS",
    "Encoder",
    "Parity",
    "ahash",
    "by_shape",
    "dhash",
    "from_encode_fn",
    "from_function",
    "from_jax",
    "from_network",
    "from_onnx",
    "from_torch",
    "parity",
    "pdq",
    "phash",
    "sign_quantized",
]
