"""Binary codes: rounding, packing into bytes, and the distance between them.

Codes are arrays of -1 and +1 whose last axis is `num_bits`. Packed codes hold eight bits
in a byte, lowest bit first, as faiss' binary indexes read them. Knows nothing of images,
labels or networks.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray


def check_codes(
    name: str, codes: ArrayLike, *, num_bits: int | None = None, zeros: bool = False
) -> None:
    """Refuses what is no set of codes or soft codes; the values of traced arrays are not known.

    Args:
        name: of the argument, for the message.
        codes: what should be `[rows, num_bits]` numbers in [-1, 1].
        num_bits: the length that they must have.
        zeros: whether a set of 0 and 1 alone may be meant: tied bits of representatives.

    Raises:
        ValueError: naming the argument, what it is, and what it should be.
    """
    if not hasattr(codes, "shape") or not hasattr(codes, "dtype"):
        raise ValueError(f"{name} must be an array [rows, num_bits], got {type(codes).__name__}")
    if codes.dtype == np.uint8:
        raise ValueError(
            f"{name} must be codes in {{-1, +1}}, got uint8: unpack_codes reads packed codes"
        )
    if codes.dtype == np.bool_:
        raise ValueError(f"{name} must be codes in {{-1, +1}}, got booleans: 2.0 * bits - 1")
    if codes.ndim != 2 or codes.shape[1] < 1:
        raise ValueError(f"{name} must be of shape [rows, num_bits], got {codes.shape}")
    if num_bits is not None and codes.shape[1] != num_bits:
        raise ValueError(
            f"{name} must have {num_bits} bits as the other codes, got {codes.shape[1]}"
        )
    if isinstance(codes, jax.core.Tracer) or not codes.size:
        return
    values = np.asarray(codes)
    least, most = values.min(), values.max()
    # Written so that NaN is refused too.
    if not (least >= -1 and most <= 1):
        raise ValueError(
            f"{name} must be codes in {{-1, +1}} or soft codes in between, got values from "
            f"{least:g} to {most:g}"
        )
    if least == 0 and not zeros and np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{name} must be codes in {{-1, +1}}, got 0 and no -1: 2 * bits - 1 makes codes"
        )


def binarize(soft_codes: ArrayLike) -> Array:
    """Rounds soft codes to codes in {-1, +1}; zero becomes +1. Shape and dtype stay."""
    return jnp.where(soft_codes >= 0, 1, -1).astype(soft_codes.dtype)


def pack_codes(codes: ArrayLike) -> Array:
    """Packs codes into bytes: `[..., num_bits]` to `[..., ceil(num_bits / 8)]` uint8.

    A positive entry sets its bit; the unused high bits of the last byte are zero.
    """
    return jnp.packbits(codes > 0, axis=-1, bitorder="little")


def unpack_codes(packed_codes: ArrayLike, *, num_bits: int) -> Array:
    """Unpacks bytes into codes: `[..., num_bytes]` uint8 to `[..., num_bits]` float32 of ±1."""
    bits = jnp.unpackbits(packed_codes, axis=-1, count=num_bits, bitorder="little")
    return bits.astype(jnp.float32) * 2 - 1


def hamming_distance(codes: ArrayLike, other_codes: ArrayLike) -> Array:
    """Counts the differing bits of every pair of codes.

    Args:
        codes: `[num_queries, num_bits]` in {-1, 0, +1}.
        other_codes: `[num_database, num_bits]` in {-1, 0, +1}.

    Returns:
        `[num_queries, num_database]` float32. A zero entry, the tied bit of a released
        mainstay code, counts as half a differing bit.

    Raises:
        ValueError: if the codes are packed.

    Reference:
        SAAT, Section III-A: D = (num_bits - <b, b'>) / 2.
    """
    if codes.dtype == jnp.uint8 or other_codes.dtype == jnp.uint8:
        raise ValueError(
            "expected codes in {-1, 0, +1}, got uint8: use unpack_codes on packed codes"
        )
    codes, other_codes = jnp.asarray(codes, jnp.float32), jnp.asarray(other_codes, jnp.float32)
    # HIGHEST: the bfloat16 or TF32 default of an accelerator is exact for ±1 codes only.
    agreement = jnp.matmul(codes, other_codes.T, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * (codes.shape[-1] - agreement)
