"""Binary codes: rounding, packing into bytes, and the distance between them.

Codes are arrays of -1 and +1 whose last axis is `num_bits`. Packed codes hold eight bits
in a byte, lowest bit first, as faiss' binary indexes read them. Knows nothing of images,
labels or networks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import options

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
# What makes soft codes, `[batch, num_bits]` in (-1, 1), of (variables, images, tanh scale).
EncodeFn = Callable[[Any, Array, Array | float], Array]


def _check_type(name: str, codes: ArrayLike) -> None:
    """Refuses what is no array of numbers that can be negative."""
    if not hasattr(codes, "shape") or not hasattr(codes, "dtype"):
        raise ValueError(f"{name} must be an array [rows, num_bits], got {type(codes).__name__}")
    if codes.dtype == bool:
        raise ValueError(f"{name} must be codes in {{-1, +1}}, got booleans: 2.0 * bits - 1")
    if codes.dtype == np.uint8:
        raise ValueError(
            f"{name} must be codes in {{-1, +1}}, got uint8: unpack_codes reads packed codes"
        )
    if not any(jnp.issubdtype(codes.dtype, kind) for kind in (np.floating, np.signedinteger)):
        raise ValueError(f"{name} must be codes in {{-1, +1}}, got dtype {codes.dtype}")


def check_codes(
    name: str, codes: ArrayLike, *, num_bits: int | None = None, zeros: bool = False
) -> None:
    """Refuses what is no set of codes or soft codes; the values of traced arrays are not known.

    Args:
        name: of the argument, for the message.
        codes: what should be `[rows, num_bits]` numbers in [-1, 1].
        num_bits: the length that they must have.
        zeros: whether a set of 0 and 1 alone may be meant: tied bits of representatives. Else it
            is taken for bits, and refused.

    Raises:
        ValueError: naming the argument, what it is, and what it should be.

    Example:
        >>> check_codes("codes", np.array([[0, 1, 1, 0]]))
        Traceback (most recent call last):
        ValueError: codes must be codes in {-1, +1}, got 0 and no -1: 2 * bits - 1 makes codes
    """
    _check_type(name, codes)
    if codes.ndim != 2 or codes.shape[1] < 1:
        raise ValueError(f"{name} must be of shape [rows, num_bits], got {codes.shape}")
    if num_bits is not None and codes.shape[1] != num_bits:
        raise ValueError(
            f"{name} must have {num_bits} bits as the other codes, got {codes.shape[1]}"
        )
    _check_values(name, codes, zeros=zeros)


def _check_values(name: str, codes: ArrayLike, *, zeros: bool) -> None:
    """Refuses values that no code or soft code has, and bits; traced ones are not known."""
    if isinstance(codes, jax.core.Tracer) or not codes.size:
        return
    least, most = float(codes.min()), float(codes.max())
    # Written so that NaN is refused too.
    if not (least >= -1 and most <= 1):
        raise ValueError(
            f"{name} must be codes in {{-1, +1}} or soft codes in between, got values from "
            f"{least:g} to {most:g}"
        )
    if least == 0 and not zeros and bool(((codes == 0) | (codes == 1)).all()):
        raise ValueError(
            f"{name} must be codes in {{-1, +1}}, got 0 and no -1: 2 * bits - 1 makes codes"
        )


def check_aligned(**codes: ArrayLike) -> None:
    """Refuses sets of codes or soft codes, by argument, that are not compared row by row.

    Raises:
        ValueError: if one is no `[rows, num_bits]` numbers, or they differ in shape: nothing is
            broadcast.

    Example:
        >>> check_aligned(soft_codes=np.ones((4, 8)), centers=np.ones((1, 8)))
        Traceback (most recent call last):
        ValueError: centers must be of shape [rows, num_bits] with rows=4, num_bits=8, got (1, 8)
    """
    for name, array in codes.items():
        _check_type(name, array)
    options.check_shapes(**{name: (array, "rows num_bits") for name, array in codes.items()})


def binarize(soft_codes: ArrayLike) -> Array:
    """Rounds soft codes to codes in {-1, +1}; zero becomes +1. Shape and dtype stay.

    Args:
        soft_codes: numbers of any shape, not booleans and not unsigned. A NaN is refused, but
            within `jax.jit`, where values are not known, becomes -1.

    Raises:
        ValueError: if they are no such numbers.

    Example:
        >>> binarize(jnp.array([[0.5, -0.25, 0.0]])).tolist()
        [[1.0, -1.0, 1.0]]
    """
    _check_type("soft_codes", soft_codes)
    # The least is NaN if any is.
    known = soft_codes.size and not isinstance(soft_codes, jax.core.Tracer)
    if known and np.isnan(float(soft_codes.min())):
        raise ValueError("soft_codes must be numbers, got NaN; the encoder has diverged")
    return jnp.where(soft_codes >= 0, 1, -1).astype(soft_codes.dtype)


def pack_codes(codes: ArrayLike) -> Array:
    """Packs codes into bytes, a positive entry as a set bit.

    Args:
        codes: `[..., num_bits]` in {-1, +1}.

    Returns:
        `[..., ceil(num_bits / 8)]` uint8, lowest bit first; the unused high bits of the last
        byte are zero.

    Raises:
        ValueError: if these are no codes, but bits, packed already, or beyond [-1, 1].

    Example:
        >>> pack_codes(np.array([[1, -1, 1, 1, -1, -1, -1, 1, 1, -1]])).tolist()
        [[141, 1]]
    """
    _check_type("codes", codes)
    if not codes.ndim or codes.shape[-1] < 1:
        raise ValueError(f"codes must be of shape [..., num_bits], got {codes.shape}")
    _check_values("codes", codes, zeros=False)
    return jnp.packbits(codes > 0, axis=-1, bitorder="little")


def unpack_codes(packed_codes: ArrayLike, *, num_bits: int) -> Array:
    """Unpacks bytes into codes: the way back of `pack_codes`.

    Args:
        packed_codes: `[..., ceil(num_bits / 8)]` uint8.
        num_bits: length of the codes.

    Returns:
        `[..., num_bits]` float32 in {-1, +1}.

    Raises:
        ValueError: if these are no bytes, or more or fewer than the bits need.

    Example:
        >>> unpack_codes(np.array([[141, 1]], np.uint8), num_bits=10).tolist()[0]
        [1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0]
    """
    options.check_numbers(num_bits=num_bits)
    num_bytes = -(-num_bits // 8)
    got = getattr(packed_codes, "dtype", type(packed_codes).__name__)
    if got != np.uint8 or np.shape(packed_codes)[-1:] != (num_bytes,):
        raise ValueError(
            f"packed_codes must be uint8 [..., {num_bytes}] to hold num_bits={num_bits}, got "
            f"{got} of shape {np.shape(packed_codes)}"
        )
    bits = jnp.unpackbits(packed_codes, axis=-1, count=num_bits, bitorder="little")
    return bits.astype(jnp.float32) * 2 - 1


def hamming_distance(codes: ArrayLike, other_codes: ArrayLike, *, zeros: bool = False) -> Array:
    """Counts the differing bits of every pair of codes.

    Args:
        codes: `[num_queries, num_bits]` in {-1, 0, +1}.
        other_codes: `[num_database, num_bits]` in {-1, 0, +1}.
        zeros: whether a set without any -1 may have zeros: tied bits. Else it is taken for
            bits of 0 and 1, and refused.

    Returns:
        `[num_queries, num_database]` float32. A zero entry, the tied bit of a released
        mainstay code, counts as half a differing bit.

    Raises:
        ValueError: if either is no set of codes, but bits, booleans or packed, or they differ
            in length.

    Example:
        >>> codes = np.array([[-1, -1, -1, -1], [1, 1, 1, 1]])
        >>> hamming_distance(codes[:1], codes).tolist()
        [[0.0, 4.0]]

    Reference:
        SAAT, Section III-A: D = (num_bits - <b, b'>) / 2.
    """
    check_codes("codes", codes, zeros=zeros)
    check_codes("other_codes", other_codes, num_bits=codes.shape[1], zeros=zeros)
    codes, other_codes = jnp.asarray(codes, jnp.float32), jnp.asarray(other_codes, jnp.float32)
    # HIGHEST: the bfloat16 or TF32 default of an accelerator is exact for ±1 codes only.
    agreement = jnp.matmul(codes, other_codes.T, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * (codes.shape[-1] - agreement)
