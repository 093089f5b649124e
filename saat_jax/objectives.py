"""Hashing objectives: what makes the codes of images that share a label alike.

An objective compares the soft codes of a batch with a code bank, the latest soft code of every
training image. The bank is explicit state: `update_bank` first, then the loss, which
differentiates the batch's own codes alone. Losses are one value per example.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp

from saat_jax import hamming

Array = jax.Array


@flax.struct.dataclass
class CodeBank:
    """The latest codes and labels of the training images, by row of the training set.

    Attributes:
        codes: `[bank_size, num_bits]` float; zero where an image has not been seen.
        labels: `[bank_size, num_classes]` multi-hot float.
    """

    codes: Array
    labels: Array


def init_bank(bank_size: int, num_bits: int, num_classes: int) -> CodeBank:
    """An empty bank: every image unseen, without labels."""
    return CodeBank(jnp.zeros((bank_size, num_bits)), jnp.zeros((bank_size, num_classes)))


def update_bank(bank: CodeBank, soft_codes: Array, labels: Array, index: Array) -> CodeBank:
    """Writes the rows of a batch. Rows of padding, whose index is `bank_size`, are dropped.

    Args:
        bank: the bank before the batch.
        soft_codes: `[batch, num_bits]`.
        labels: `[batch, num_classes]` multi-hot.
        index: `[batch]` int rows of the training set, distinct but for padding.
    """
    codes, bank_labels = jnp.asarray(bank.codes), jnp.asarray(bank.labels)
    return CodeBank(
        codes.at[index].set(jax.lax.stop_gradient(soft_codes), mode="drop"),
        bank_labels.at[index].set(labels, mode="drop"),
    )


def similarity(labels: Array, bank_labels: Array) -> Array:
    """1 where two label vectors share a label, else 0. `[batch, bank_size]` float"""
    return (jnp.matmul(labels, bank_labels.T) > 0).astype(labels.dtype)


def dph(soft_codes: Array, labels: Array, bank: CodeBank) -> Array:
    """Squared error of code agreement to similarity: +1 for a shared label, else -1. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        labels: `[batch, num_classes]` multi-hot.
        bank: the bank, the batch's rows already written.

    Reference:
        Deep pairwise hashing as released with SAAT (SPEC 3.2): no quantisation term.
    """
    chex.assert_rank([soft_codes, labels], 2)
    num_bits = soft_codes.shape[-1]
    agreement = jnp.matmul(soft_codes, bank.codes.T, precision=jax.lax.Precision.HIGHEST)
    sign = 2 * similarity(labels, bank.labels) - 1
    return jnp.mean(jnp.square(agreement / num_bits - sign), axis=-1)


def quantization(soft_codes: Array) -> Array:
    """Mean squared distance of `[batch, num_bits]` soft codes to their own codes. `[batch]`

    Reference:
        SAAT, Eq. 19, there the sum over the bits; the released code takes the mean.
    """
    codes = jax.lax.stop_gradient(hamming.binarize(soft_codes))
    return jnp.mean(jnp.square(soft_codes - codes), axis=-1)


class Objective(NamedTuple):
    """A hashing objective: how its bank begins, and its loss."""

    init: Callable[[int, int, int], CodeBank]
    loss: Callable[[Array, Array, CodeBank], Array]


# The objectives a config may name.
OBJECTIVES: dict[str, Objective] = {"dph": Objective(init_bank, dph)}
