"""Codes: rounding, packing, distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import hamming
from tests import golden, reference


def _random_codes(seed, rows, num_bits):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (rows, num_bits)).astype(np.float32)


def test_binarize_rounds_zero_up_and_keeps_dtype():
    soft_codes = jnp.array([[0.0, -0.0, 0.3, -1e-30, -2.0]], jnp.bfloat16)
    codes = hamming.binarize(soft_codes)
    assert codes.dtype == soft_codes.dtype
    np.testing.assert_array_equal(codes.astype(jnp.float32), [[1, 1, 1, -1, -1]])


def test_pack_codes_worked_by_hand():
    # Lowest bit first, as faiss: bits 1, 0, 1, 1 of the first byte are 1 + 4 + 8 = 13, its
    # last bit is 128; the ninth code entry is bit 0 of the second byte.
    codes = np.array([[1, -1, 1, 1, -1, -1, -1, 1, 1, -1]])
    packed = hamming.pack_codes(codes)
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(packed, [[13 + 128, 1]])


@pytest.mark.parametrize("num_bits", [1, 7, 8, 12, 16, 33, 64])
def test_packing_round_trip(num_bits):
    codes = _random_codes(num_bits, 5, num_bits)
    packed = hamming.pack_codes(codes)
    assert packed.shape == (5, -(-num_bits // 8))
    np.testing.assert_array_equal(packed, np.packbits(codes > 0, axis=1, bitorder="little"))
    np.testing.assert_array_equal(hamming.unpack_codes(packed, num_bits=num_bits), codes)


def test_packing_keeps_leading_axes():
    codes = _random_codes(0, 6, 10).reshape(2, 3, 10)
    assert hamming.pack_codes(codes).shape == (2, 3, 2)
    np.testing.assert_array_equal(
        hamming.unpack_codes(hamming.pack_codes(codes), num_bits=10), codes
    )


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
def test_hamming_distance_matches_reference(wrap):
    queries, database = _random_codes(1, 4, 20), _random_codes(2, 9, 20)
    queries[1, :3] = 0
    database[2, 1:6] = 0
    expected = [reference.hamming_distances(query, database) for query in queries]
    np.testing.assert_array_equal(wrap(hamming.hamming_distance)(queries, database), expected)


def test_hamming_distance_counts_bits_of_packed_codes():
    queries, database = _random_codes(3, 4, 12), _random_codes(4, 5, 12)
    packed = np.asarray(hamming.pack_codes(queries))[:, None] ^ hamming.pack_codes(database)
    bits = np.unpackbits(np.asarray(packed), axis=-1).sum(-1)
    np.testing.assert_array_equal(hamming.hamming_distance(queries, database), bits)


def test_golden_formula_hamming():
    formula = golden.formula("hamming")
    codes = np.array([formula.inputs["b"]], np.float32)
    others = np.array(formula.inputs["B"], np.float32)
    distance = hamming.hamming_distance(codes, others)
    np.testing.assert_allclose(distance[0], formula.expected["dist"], atol=formula.tolerance)


@pytest.mark.parametrize("name", golden.names("metrics_"))
def test_golden_metrics_distances(name):
    case = golden.load(name)
    distance = np.asarray(hamming.hamming_distance(case["query_code"], case["db_code"]))
    np.testing.assert_allclose(distance, case["hamming"], rtol=0, atol=case.tolerance(""))
    order = [reference.ranking(row) for row in distance.tolist()]
    np.testing.assert_array_equal(order, case["order"])


def test_distance_of_integer_codes_does_not_overflow_and_packed_codes_are_refused():
    codes = np.ones((1, 200), np.int8)
    np.testing.assert_array_equal(hamming.hamming_distance(codes, -codes), [[200]])
    with pytest.raises(ValueError, match="unpack_codes"):
        hamming.hamming_distance(hamming.pack_codes(codes), hamming.pack_codes(codes))


BITS = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
CODES = np.array([[1.0, -1, 1, 1], [1, 1, -1, 1]])
BYTES = np.zeros((2, 2), np.uint8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: hamming.hamming_distance(BITS[:1], CODES), r"codes .*0 and no -1: 2 \* bits - 1"),
        (lambda: hamming.hamming_distance(CODES, BITS * 1.0), "other_codes .*0 and no -1"),
        (lambda: hamming.hamming_distance(CODES > 0, CODES), "codes .*booleans"),
        (lambda: hamming.hamming_distance(CODES, CODES[:, :2]), "other_codes .*4 bits .*got 2"),
        (lambda: jax.jit(hamming.hamming_distance)(CODES, CODES[:, :2]), "other_codes .*4 bits"),
        (lambda: jax.jit(hamming.hamming_distance)(CODES > 0, CODES), "codes .*booleans"),
        (lambda: hamming.hamming_distance(CODES, CODES * np.nan), "other_codes .*nan"),
        (lambda: hamming.hamming_distance(CODES[0], CODES), r"codes .*\[rows, num_bits\], got \(4"),
        (lambda: hamming.hamming_distance([[1, -1]], CODES), "codes must be an array .*got list"),
        (lambda: hamming.hamming_distance(CODES.astype("U4"), CODES), "codes .*dtype <U4"),
        (lambda: hamming.binarize(CODES * np.nan), "soft_codes .*NaN"),
        (lambda: hamming.binarize(CODES > 0), "soft_codes .*booleans"),
        (lambda: hamming.binarize(BYTES), "soft_codes .*unpack_codes"),
        (lambda: hamming.pack_codes(BITS), "codes .*0 and no -1"),
        (lambda: hamming.pack_codes(BYTES), "codes .*uint8"),
        (lambda: hamming.pack_codes(CODES * np.nan), "codes .*nan"),
        (
            lambda: hamming.unpack_codes(BYTES, num_bits=17),
            r"\[\.\.\., 3\].*num_bits=17.*\(2, 2",
        ),
        (lambda: hamming.unpack_codes(BYTES, num_bits=8), r"uint8 \[\.\.\., 1\]"),
        (lambda: hamming.unpack_codes(BYTES, num_bits=0), "num_bits must .*from 1 .*got 0"),
        (lambda: hamming.unpack_codes(BYTES, num_bits=-1), "num_bits must .*got -1"),
        (lambda: hamming.unpack_codes(CODES, num_bits=32), "packed_codes must be uint8 .*float64"),
        (
            lambda: hamming.check_aligned(a=CODES, b=CODES[0]),
            r"b must .*num_bits=4, got \(4",
        ),
    ],
)
def test_what_is_no_code_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        function()


def test_codes_that_look_like_bits_and_are_none():
    ones, tied = np.ones((2, 4)), np.array([[0.0, 1, 1, -1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(hamming.hamming_distance(ones, ones), 0)
    np.testing.assert_array_equal(hamming.hamming_distance(ones[:1], tied), [[1.5, 1]])
    # A representative of two tied bits: only its caller knows that it is none of bits.
    assert hamming.hamming_distance(tied[1:], ones[:1], zeros=True) == 1
