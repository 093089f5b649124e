"""Mainstay codes: the code a set of labels stands for, voted by a labelled code bank (DMFL).

The rival attacks' answers to the same question stand beside them: consensus codes (SDHA), centre
codes (CgAT) and anchor codes (P2P, DHTA).

A code bank holds one code for each training image, `code_bank [bank_size, num_bits]`, and its
labels, `bank_labels [bank_size, num_classes]`. All but the drawn anchors is closed-form, and knows
nothing of images or networks.
"""

from collections.abc import Sequence
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


def _round(votes: ArrayLike, ties: Ties) -> Array:
    return hamming.binarize(votes) if ties == "positive" else jnp.sign(votes)


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
    return _round(votes, ties)


def _relevant(labels: ArrayLike, bank_labels: ArrayLike) -> Array:
    """One where an example and a bank row share a label, else zero. `[batch, bank_size]`"""
    chex.assert_rank([labels, bank_labels], 2)
    overlap = jnp.matmul(jnp.asarray(labels, jnp.float32), jnp.asarray(bank_labels, jnp.float32).T)
    return (overlap > 0).astype(jnp.float32)


def _round_whole(votes: Array, ties: Ties) -> Array:
    """Rounds votes to codes, and those that are zero in every bit to zeros."""
    check_options("similarity", ties)
    return jnp.where(jnp.any(votes, 1, keepdims=True), _round(votes, ties), 0)


def consensus_codes(
    labels: ArrayLike,
    code_bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    ties: Ties = "positive",
) -> Array:
    """Rounds the mean of the codes of all bank rows that share a label with an example.

    This is SDHA's theory code; in a non-targeted attack, its negative.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        ties: what an exactly tied bit becomes; see `mainstay_codes`.

    Returns:
        `[batch, num_bits]` in {-1, +1}; zeros where every bit is tied, as for an example that
        shares no label.

    Raises:
        ValueError: if `ties` is unknown.

    Reference:
        The theory attack of SDHA in the code released with SAAT.
    """
    sums = jnp.matmul(
        _relevant(labels, bank_labels), jnp.asarray(code_bank, jnp.float32), precision=_PRECISION
    )
    return _round_whole(sums, ties)


def center_votes(labels: ArrayLike, code_bank: ArrayLike, bank_labels: ArrayLike) -> Array:
    """Mean code of the bank rows that share a label with an example less that of the others.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes.
        bank_labels: `[bank_size, num_classes]` multi-hot.

    Returns:
        `[batch, num_bits]` float in [-2, 2]; zeros for an example that shares a label with no
        bank row, or with all.

    Reference:
        CgAT as released, which computes similarities as weights but does not use them.
    """
    positive = _relevant(labels, bank_labels)
    code_bank = jnp.asarray(code_bank, jnp.float32)
    (count, total), (other_count, other_total) = (
        (jnp.sum(side, 1, keepdims=True), jnp.matmul(side, code_bank, precision=_PRECISION))
        for side in (positive, 1 - positive)
    )
    # A difference of quotients would not be zero for every tied bit.
    votes = other_count * total - count * other_total
    return votes / jnp.maximum(count * other_count, 1)


def center_codes(
    labels: ArrayLike,
    code_bank: ArrayLike,
    bank_labels: ArrayLike,
    *,
    ties: Ties = "positive",
) -> Array:
    """Rounds `center_votes` to codes: the centre codes of CgAT.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        ties: what an exactly tied bit becomes; see `mainstay_codes`.

    Returns:
        `[batch, num_bits]` in {-1, +1}; zeros where every bit is tied, as for an example that
        shares a label with no bank row, or with all.

    Raises:
        ValueError: if `ties` is unknown.
    """
    return _round_whole(center_votes(labels, code_bank, bank_labels), ties)


def anchor_codes(
    labels: ArrayLike,
    code_bank: ArrayLike,
    bank_labels: ArrayLike,
    seed: int,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    num_codes: int = 9,
    replace: bool = True,
    ties: Ties = "positive",
) -> np.ndarray:
    """Draws bank rows with exactly the labels of each example, and rounds the sum of their codes.

    These are the anchors of DHTA, and with `num_codes=1` those of P2P. Computed on the host.

    Args:
        labels: `[batch, num_classes]` multi-hot; the labels that an attack aims at.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}; the database's, in the papers.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        seed: not negative; with an example's row number it decides that example's draw.
        rows: `[batch]` row numbers of the examples; by default 0, 1, .... Give them to draw
            for a part of the examples what a call with all of them would draw.
        num_codes: codes drawn for each example.
        replace: whether a row may be drawn more than once, as in the code released with SAAT
            and ProS-GAN; the original DHTA draws without replacement.
        ties: what an exactly tied bit becomes; see `mainstay_codes`. No bit is tied where
            `num_codes` is odd.

    Returns:
        `[batch, num_bits]` float32 in {-1, +1}.

    Raises:
        ValueError: if `ties` is unknown, or an example's labels are those of no bank row, or,
            without replacement, of fewer than `num_codes`.

    Reference:
        DHTA: Bai et al., Targeted attack for deep hashing based retrieval, ECCV 2020.
    """
    check_options("similarity", ties)
    found: dict[bytes, list[int]] = {}
    for bank_row, label in enumerate(np.asarray(bank_labels) > 0):
        found.setdefault(label.tobytes(), []).append(bank_row)
    code_bank = np.asarray(code_bank, np.float32)
    sums = np.empty((len(labels), code_bank.shape[1]), np.float32)
    for i, label in enumerate(np.asarray(labels) > 0):
        row = i if rows is None else int(rows[i])
        candidates = found.get(label.tobytes(), [])
        needed = 1 if replace else num_codes
        if len(candidates) < needed:
            raise ValueError(
                f"row {row} aims at the labels {np.flatnonzero(label).tolist()}, which "
                f"{len(candidates)} bank rows have and {needed} must; draw target labels from "
                f"the bank's, with min_count={needed}"
            )
        drawn = np.random.default_rng((seed, row)).choice(candidates, num_codes, replace=replace)
        sums[i] = code_bank[drawn].sum(0)
    return np.asarray(_round(sums, ties))
