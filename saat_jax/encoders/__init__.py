"""Any image -> code function behind one small type.

An `Encoder` has codes of images, differentiable soft outputs where there are any, and the runtime
whose word counts. Knows nothing of attacks, labels or points.
"""

from saat_jax.encoders.encoder import Encoder, Parity, by_shape, parity
from saat_jax.encoders.jax_function import from_encode_fn, from_jax, from_network

__all__ = [
    "Encoder",
    "Parity",
    "by_shape",
    "from_encode_fn",
    "from_jax",
    "from_network",
    "parity",
]

PERCEPTUAL_HASHES: dict = {}
