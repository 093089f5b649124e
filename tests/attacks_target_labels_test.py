"""The protocols of target labels; the disjoint one by hand and by loops in attacks_test.py."""

import numpy as np
import pytest

from saat_jax.attacks.target_labels import select_target_labels, target_candidates

# Distinct and sorted: 000 once, 001 once, 010 twice, 100 thrice.
DATABASE_LABELS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
)
LABELS = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "protocol, min_count, expected",
    [
        # Row numbers among 001, 010, 100; then among 010, 100, and 100 alone.
        ("disjoint", 1, [[0, 1], [], [0, 1, 2]]),
        ("disjoint", 2, [[0], [], [0, 1]]),
        ("disjoint", 3, [[], [], [0]]),
        # Among all four; then as before.
        ("uniform", 1, [[0, 1, 2, 3]] * 3),
        ("uniform", 2, [[0, 1]] * 3),
        ("uniform", 4, [[]] * 3),
    ],
)
def test_candidates_worked_by_hand(protocol, min_count, expected):
    candidates = target_candidates(LABELS, DATABASE_LABELS, protocol=protocol, min_count=min_count)
    assert [rows.tolist() for rows in candidates] == expected


def test_uniform_protocol_draws_every_label_vector_alike():
    labels = np.ones((4000, 3))
    targets, again, other = (
        select_target_labels(
            labels, DATABASE_LABELS, np.random.default_rng(seed), protocol="uniform"
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(targets, again)
    assert np.any(targets != other)
    assert targets.dtype == DATABASE_LABELS.dtype
    distinct, counts = np.unique(targets, axis=0, return_counts=True)
    np.testing.assert_array_equal(distinct, np.unique(DATABASE_LABELS, axis=0))
    # However often the database has them; five standard deviations.
    np.testing.assert_allclose(counts, 1000, atol=5 * 750**0.5)


@pytest.mark.parametrize("protocol", ["disjoint", "uniform"])
def test_rare_label_vectors_are_left_out(protocol):
    targets = select_target_labels(
        np.zeros((50, 3)), DATABASE_LABELS, np.random.default_rng(0), protocol=protocol, min_count=2
    )
    np.testing.assert_array_equal(np.unique(targets, axis=0), [[0, 1, 0], [1, 0, 0]])


def test_disjoint_is_the_default():
    labels = LABELS[[0, 2, 0, 2]]
    default = select_target_labels(labels, DATABASE_LABELS, np.random.default_rng(3))
    named = select_target_labels(
        labels, DATABASE_LABELS, np.random.default_rng(3), protocol="disjoint", min_count=1
    )
    np.testing.assert_array_equal(default, named)


def test_bad_requests_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown protocol of target labels 'random'"):
        select_target_labels(LABELS, DATABASE_LABELS, rng, protocol="random")
    with pytest.raises(ValueError, match=r"3 queries.*'uniform' with min_count=4 \(first: query 0"):
        select_target_labels(LABELS, DATABASE_LABELS, rng, protocol="uniform", min_count=4)
