"""Mainstay codes: the code a set of labels stands for, voted by a labelled code bank (DMFL).

The rival attacks' answers to the same question stand beside them: consensus codes (SDHA), centre
codes (CgAT) and anchor codes (P2P, DHTA).

A code bank holds one code for each training image, `code_bank [bank_size, num_bits]`, and its
labels, `bank_labels [bank_size, num_classes]`. All but the drawn anchors is closed-form, and knows
nothing of images or networks. Rows with the same labels vote alike, so that their sums are all that
a vote needs: a `GroupedBank` keeps them, and its votes cost the same for a bank of any size.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import flax
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming, options
from saat_jax.labels import check_labels

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Weighting = Literal["similarity", "count"]
Ties = Literal["positive", "zero"]

# A bfloat16 or TF32 product, an accelerator's default, would flip the bits of close votes.
_PRECISION = jax.lax.Precision.HIGHEST


def check_options(*, weighting: str = "similarity", ties: str = "positive") -> None:
    """Refuses an unknown `weighting` or `ties` with a ValueError that names the known."""
    options.check_word("weighting", weighting, get_args(Weighting))
    options.check_word("ties", ties, get_args(Ties))


def _round(votes: ArrayLike, ties: Ties) -> Array:
    return hamming.binarize(votes) if ties == "positive" else jnp.sign(votes)


@flax.struct.dataclass
class GroupedBank:
    """A code bank and the sums of the codes that have the same labels; see `group_bank`.

    Attributes:
        codes: `[bank_size, num_bits]`, in the type that they came in.
        groups: `[bank_size]` int32 the row of `labels` that is each row's.
        labels: `[num_groups, num_classes]` multi-hot float32, all distinct; those with few
            labels first.
        sums: `[num_groups, num_bits + 1]` float32 sums of the codes and, last, their number.
        ends: for each number of labels, from 0 to num_classes, where its groups end.
    """

    codes: Array
    groups: Array
    labels: Array
    sums: Array
    ends: tuple[int, ...] = flax.struct.field(pytree_node=False)


def group_bank(code_bank: ArrayLike, bank_labels: ArrayLike) -> GroupedBank:
    """Groups a code bank by distinct label vectors, on the host.

    Sums of codes in {-1, +1} are exact up to 2^24 rows with the same labels.

    Args:
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes; of int8, a bank
            takes a quarter of the memory.
        bank_labels: `[bank_size, num_classes]` multi-hot.

    Raises:
        ValueError: if these are no codes and labels, or a label is neither 0 nor 1.
    """
    _check_bank(code_bank, bank_labels)
    bank_labels = np.asarray(bank_labels)
    multi_hot = bank_labels > 0
    if np.any(multi_hot != bank_labels):
        wrong = bank_labels[multi_hot != bank_labels][0]
        raise ValueError(f"labels must be 0 or 1 to be grouped, got {wrong}; threshold them first")
    # Sorted by their first column, the number of labels.
    keys = np.column_stack([multi_hot.sum(1), np.packbits(multi_hot, axis=1)])
    keys, groups = np.unique(keys, axis=0, return_inverse=True)
    num_classes = multi_hot.shape[1]
    labels = np.unpackbits(keys[:, 1:].astype(np.uint8), axis=1, count=num_classes)
    ends = np.searchsorted(keys[:, 0], np.arange(num_classes + 1), side="right")
    groups = groups.reshape(-1).astype(np.int32)
    codes = jnp.asarray(code_bank)
    return GroupedBank(
        codes,
        jnp.asarray(groups),
        jnp.asarray(labels, jnp.float32),
        jax.ops.segment_sum(_countable(codes), groups, len(labels)),
        tuple(ends.tolist()),
    )


def refresh_rows(bank: GroupedBank, codes: Array, index: Array) -> GroupedBank:
    """Replaces the codes of a batch in a bank and in its sums.

    Exact for codes in {-1, +1}; soft codes are replaced to rounding. Under `jit` with the bank
    donated it costs the same for a bank of any size.

    Args:
        bank: the bank before the batch.
        codes: `[batch, num_bits]`.
        index: `[batch]` int rows of the bank, distinct but for padding, which is `bank_size`
            and changes nothing.
    """
    change = codes.astype(bank.codes.dtype) - bank.codes.at[index].get(mode="clip")
    groups = bank.groups.at[index].get(mode="fill", fill_value=len(bank.labels))
    return dataclasses.replace(
        bank,
        # Not set: XLA would copy the bank, to read it and to write it independently.
        codes=bank.codes.at[index].add(change, mode="drop"),
        sums=bank.sums.at[groups, :-1].add(change.astype(jnp.float32), mode="drop"),
    )


def _check_bank(code_bank: ArrayLike, bank_labels: ArrayLike) -> None:
    """Refuses what is no code bank, by argument."""
    hamming.check_codes("code_bank", code_bank)
    check_labels("bank_labels", bank_labels)
    options.check_shapes(
        code_bank=(code_bank, "bank_size num_bits"),
        bank_labels=(bank_labels, "bank_size num_classes"),
    )
    if not code_bank.size:
        raise ValueError(f"code_bank must hold codes, got none: its shape is {code_bank.shape}")


def _countable(codes: Array) -> Array:
    """Codes with a one at the end of each row, so that a sum of rows counts them too."""
    return jnp.pad(codes.astype(jnp.float32), ((0, 0), (0, 1)), constant_values=1)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_PRECISION)


def _tallies(
    labels: ArrayLike, code_bank: ArrayLike | GroupedBank, bank_labels: ArrayLike | None
) -> tuple[Array, Array, Array, list[tuple[Array, Array, float]]]:
    """The examples' labels, checked and as floats: a product of booleans would be a logical one,
    and one of small integers would overflow; (labels, sums) of a bank's groups, and
    (labels / norm, sums, norm) of blocks of them.

    The norm of a block is that of all its labels, if they are grouped: what is summed before
    dividing by it are integers, and exact. Else each row is a group, and its norm divided out.
    """
    if isinstance(code_bank, GroupedBank):
        known, sums, ends = code_bank.labels, code_bank.sums, code_bank.ends
        blocks = [
            (known[start:end], sums[start:end], max(size, 1) ** 0.5)
            for size, (start, end) in enumerate(itertools.pairwise((0, *ends)))
            if start < end
        ]
    else:
        if bank_labels is None:
            raise ValueError("a code bank needs its bank_labels; only a grouped bank holds its own")
        _check_bank(code_bank, bank_labels)
        known, sums = jnp.asarray(bank_labels, jnp.float32), _countable(jnp.asarray(code_bank))
        norms = jnp.linalg.norm(known, axis=1, keepdims=True)
        blocks = [(known / jnp.where(norms > 0, norms, 1), sums, 1.0)]
    check_labels("labels", labels, num_classes=known.shape[1])
    return jnp.asarray(labels, jnp.float32), known, sums, blocks


def _overlap(labels: Array, bank_labels: Array) -> Array:
    """How many labels an example and a group share. `[batch, num_groups]`"""
    return _matmul(labels, bank_labels.T)


def _add_up(chosen: Array, sums: Array) -> Array:
    """The sums of the chosen groups, and their number last. `[batch, num_bits + 1]`"""
    return _matmul(chosen.astype(jnp.float32), sums)


def _difference(a: Array, b: Array) -> Array:
    """`a - b`, and zero where they round to the same: a fused product would not."""
    return jnp.where(a == b, 0, a - b)


def mainstay_votes(
    labels: ArrayLike,
    code_bank: ArrayLike | GroupedBank,
    bank_labels: ArrayLike | None = None,
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
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, soft codes, or a `GroupedBank`.
        bank_labels: `[bank_size, num_classes]` multi-hot; a `GroupedBank` holds its own.
        weighting: "similarity" scales the votes for to sum to one, as the released code;
            "count" divides them by the number of positives, as Eq. 11 of the paper.

    Returns:
        `[batch, num_bits]` float in [-2, 2]. Near zero the bank is split. Of a grouped bank of
        codes in {-1, +1}, weighted by similarity, a tied bit's vote is zero as in exact
        arithmetic; else rounding may decide it, unless all bank rows have one label.

    Raises:
        ValueError: if `weighting` is unknown, or codes or labels are missing or none.

    Reference:
        SAAT, Section III-C, Theorem 1 and Eq. 11.
    """
    check_options(weighting=weighting)
    labels, bank_labels, sums, blocks = _tallies(labels, code_bank, bank_labels)
    far = _add_up(_overlap(labels, bank_labels) == 0, sums)
    # Linear in the bank's labels: no matrix of examples by rows is needed.
    near = [(_matmul(labels, _matmul(unit.T, part)), norm) for unit, part, norm in blocks]
    if weighting == "count":
        cosines = sum((part / norm for part, norm in near), jnp.zeros(()))
        positives = jnp.sum(sums[:, -1]) - far[:, -1:]
        total = positives * jnp.linalg.norm(labels, axis=1, keepdims=True)
        near = [(cosines.at[:, -1:].set(total), 1.0)]
    votes = total = jnp.zeros(())
    num_far = jnp.maximum(far[:, -1:], 1)
    for part, norm in near:
        votes += _difference(part * num_far, far * part[:, -1:]) / norm
        total += part[:, -1:] / norm
    votes = jnp.where(total > 0, votes / jnp.where(total > 0, total, 1), -far) / num_far
    return votes[:, :-1]


def mainstay_codes(
    labels: ArrayLike,
    code_bank: ArrayLike | GroupedBank,
    bank_labels: ArrayLike | None = None,
    *,
    weighting: Weighting = "similarity",
    ties: Ties = "positive",
) -> Array:
    """Rounds `mainstay_votes` to codes. `[batch, num_bits]` in {-1, +1}

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, soft codes, or a `GroupedBank`.
        bank_labels: `[bank_size, num_classes]` multi-hot; a `GroupedBank` holds its own.
        weighting: see `mainstay_votes`.
        ties: "positive" gives an exactly tied bit +1; "zero" leaves it 0, as the released
            code does, and such a bit takes no part in any loss.

    Raises:
        ValueError: if `weighting` or `ties` is unknown.

    Reference:
        SAAT, Theorem 1: no code in {-1, +1} has a lower weighted distance to the positives
        less the weighted distance to the negatives.
    """
    check_options(weighting=weighting, ties=ties)
    votes = mainstay_votes(labels, code_bank, bank_labels, weighting=weighting)
    return _round(votes, ties)


def _round_whole(votes: Array, ties: Ties) -> Array:
    """Rounds votes to codes, and those that are zero in every bit to zeros."""
    check_options(ties=ties)
    return jnp.where(jnp.any(votes, 1, keepdims=True), _round(votes, ties), 0)


def consensus_codes(
    labels: ArrayLike,
    code_bank: ArrayLike | GroupedBank,
    bank_labels: ArrayLike | None = None,
    *,
    ties: Ties = "positive",
) -> Array:
    """Rounds the mean of the codes of all bank rows that share a label with an example.

    This is SDHA's theory code; in a non-targeted attack, its negative.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or a `GroupedBank`.
        bank_labels: `[bank_size, num_classes]` multi-hot; a `GroupedBank` holds its own.
        ties: what an exactly tied bit becomes; see `mainstay_codes`.

    Returns:
        `[batch, num_bits]` in {-1, +1}; zeros where every bit is tied, as for an example that
        shares no label.

    Raises:
        ValueError: if `ties` is unknown.

    Reference:
        The theory attack of SDHA in the code released with SAAT.
    """
    labels, bank_labels, sums, _ = _tallies(labels, code_bank, bank_labels)
    votes = _add_up(_overlap(labels, bank_labels) > 0, sums)[:, :-1]
    return _round_whole(votes, ties)


def center_votes(
    labels: ArrayLike, code_bank: ArrayLike | GroupedBank, bank_labels: ArrayLike | None = None
) -> Array:
    """Mean code of the bank rows that share a label with an example less that of the others.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, soft codes, or a `GroupedBank`.
        bank_labels: `[bank_size, num_classes]` multi-hot; a `GroupedBank` holds its own.

    Returns:
        `[batch, num_bits]` float in [-2, 2]; zeros for an example that shares a label with no
        bank row, or with all.

    Reference:
        CgAT as released, which computes similarities as weights but does not use them.
    """
    labels, bank_labels, sums, _ = _tallies(labels, code_bank, bank_labels)
    overlap = _overlap(labels, bank_labels)
    near, far = _add_up(overlap > 0, sums), _add_up(overlap == 0, sums)
    num_near, num_far = near[:, -1:], far[:, -1:]
    # A difference of quotients would not be zero for every tied bit.
    votes = _difference(num_far * near, num_near * far) / jnp.maximum(num_near * num_far, 1)
    return votes[:, :-1]


def center_codes(
    labels: ArrayLike,
    code_bank: ArrayLike | GroupedBank,
    bank_labels: ArrayLike | None = None,
    *,
    ties: Ties = "positive",
) -> Array:
    """Rounds `center_votes` to codes: the centre codes of CgAT.

    Args:
        labels: `[batch, num_classes]` multi-hot.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, soft codes, or a `GroupedBank`.
        bank_labels: `[bank_size, num_classes]` multi-hot; a `GroupedBank` holds its own.
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
    seed: int | Array,
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
        seed: not negative, or one of JAX's keys; with an example's row number it decides that
            example's draw.
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
    check_options(ties=ties)
    options.check_numbers(num_codes=num_codes)
    if not isinstance(seed, Array):
        options.check_numbers(seed=seed)
    labels, code_bank, bank_labels = map(np.asarray, (labels, code_bank, bank_labels))
    _check_bank(code_bank, bank_labels)
    check_labels("labels", labels, num_classes=bank_labels.shape[1])
    found: dict[bytes, list[int]] = {}
    for bank_row, label in enumerate(np.asarray(bank_labels) > 0):
        found.setdefault(label.tobytes(), []).append(bank_row)
    code_bank = np.asarray(code_bank, np.float32)
    sums = np.empty((len(labels), code_bank.shape[1]), np.float32)
    if isinstance(seed, Array):
        seed = int(jax.random.bits(seed))
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
