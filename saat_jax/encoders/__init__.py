"""Any image -> code function behind one small type.

An `Encoder` has codes of images, differentiable soft outputs where there are any, and the runtime
whose word counts. Knows nothing of labels or points, and of attacks how they get at logits.
"""

from saat_jax.encoders.callback import from_function, from_torch
from saat_jax.encoders.embedding import sign_quantized
from saat_jax.encoders.encoder import Encoder, Parity, by_shape, parity
from saat_jax.encoders.jax_function import from_encode_fn, from_jax, from_network
from saat_jax.encoders.model_folder import (
    from_folder,
    read_model,
    weights_digest,
    write_model,
)
from saat_jax.encoders.onnx_file import ROUNDINGS, from_onnx
from saat_jax.encoders.onnx_operators import OPERATORS
from saat_jax.encoders.perceptual import (
    LINEAR_HASHES,
    PERCEPTUAL_HASHES,
    ahash,
    dhash,
    linear_pdq,
    pdq,
    phash,
)
from saat_jax.encoders.smoothing import draw_outputs, match_votes, smoothed

__all__ = [
    "LINEAR_HASHES",
    "OPERATORS",
    "PERCEPTUAL_HASHES",
    "ROUNDINGS",
    "Encoder",
    "Parity",
    "ahash",
    "by_shape",
    "dhash",
    "draw_outputs",
    "from_encode_fn",
    "from_folder",
    "from_function",
    "from_jax",
    "from_network",
    "from_onnx",
    "from_torch",
    "linear_pdq",
    "match_votes",
    "parity",
    "pdq",
    "phash",
    "read_model",
    "sign_quantized",
    "smoothed",
    "weights_digest",
    "write_model",
]
