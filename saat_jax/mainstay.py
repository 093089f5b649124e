"""Mainstay codes: the code a set of labels stands for, voted by a labelled code bank (DMFL).

A code bank holds one code for each training image, `code_bank [bank_size, num_bits]`, and its
labels, `bank_labels [bank_size, num_classes]`. Everything here is closed-form and knows
nothing of images or networks.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Weighting = Literal["similarity", "count"]
Ties = Literal["positive", "zero"]

# A bfloat16 or TF32 product, an accelerator's default, would flip the bits of close votes.
_PRECISION = jax.lax.Precision.HIGHEST


def check_options(weighting: str, ties: str) -> None:
    """Refuses an unknown `weighting` or `ties` with a ValueError that names the known."""
    if weighting not in ("similarity", "count"):
        raise ValueError(f'weighting must be "similarity" or "count", got {weighting!r}')
    if ties not in ("positive", "zero"):
        raise ValueError(f'ties must be "positive" or "zero", got {ties!r}')


def _share(total: Array) -> Array:
    """One over `total`, and zero where there is nothing to share."""
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def mainstay_votes(
    labels: ArrayLike,
    code_bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    weighting: Weighting = "similarity",
) -> Array:
    """Tallies the bank's vote on every bit of each example's mainstay code.

    Bank rows that share a label with the example vote for their own bits, each with the
    cosine similarity of the two label vectors; all other rows vote against theirs with equal
    weight. An example without positives (or negatives) has only the other side's vote.

    Args:
        labels: `[batch, num_classes]` multi-hot; the own labels of the examples to flee
            from them, other labels to reach those.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        weighting: "similarity" scales the votes for to sum to one, as the released code;
            "count" divides them by the number of positives, as Eq. 11 of the paper.

    Returns:
        `[batch, num_bits]` float in [-2, 2]. Near zero the bank is split.

    Raises:
        ValueError: if `weighting` is unknown.

    Reference:
        SAAT, Section III-C, Theorem 1 and Eq. 11.
    """
    chex.assert_rank([labels, code_bank, bank_labels], 2)
    chex.assert_equal_shape_prefix([code_bank, bank_labels], 1)
    check_options(weighting, "positive")
    # A product of booleans would be a logical one, and one of small integers would overflow.
    labels, code_bank, bank_labels = (
        jnp.asarray(x, jnp.float32) for x in (labels, code_bank, bank_labels)
    )
    overlap = jnp.matmul(labels, bank_labels.T, precision=_PRECISION)
    norms = jnp.linalg.norm(labels, axis=1)[:, None] * jnp.linalg.norm(bank_labels, axis=1)
    similarity = overlap / (norms + 1e-8)
    negative = (overlap == 0).astype(similarity.dtype)
    total = jnp.sum(similarity if weighting == "similarity" else 1 - negative, 1, keepdims=True)
    votes = similarity * _share(total) - negative * _share(jnp.sum(negative, 1, keepdims=True))
    return jnp.matmul(votes, code_bank, precision=_PRECISION)


def mainstay_codes(
    labels: ArrayLike,
    code_bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    weighting: Weighting = "similarity",
    ties: Ties = "positive",
) -> Array:
    """Rounds `mainstay_votes` to codes. `[batch, num_bits]` in {-1, +1}

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        weighting: see `mainstay_votes`.
        ties: "positive" gives an exactly tied bit +1; "zero" leaves it 0, as the released
            code does, and such a bit takes no part in any loss.

    Raises:
        ValueError: if `weighting` or `ties` is unknown.

    Reference:
        SAAT, Theorem 1: no code in {-1, +1} has a lower weighted distance to the positives
        less the weighted distance to the negatives.
    """
    check_options(weighting, ties)
    votes = mainstay_votes(labels, code_bank, bank_labels, weighting=weighting)
    return hamming.binarize(votes) if ties == "positive" else jnp.sign(votes)
