"""Objectives on pairs: the batch's soft codes against those of the whole training set."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from saat_jax import options, parallel
from saat_jax.objectives.state import (
    ArrayLike,
    CodeBank,
    Context,
    Objective,
    State,
    init_bank,
    pair_likelihood,
    quantization,
    similarity,
)

Array = jax.Array


def _agreement(soft_codes: Array, labels: Array, bank: CodeBank) -> tuple[Array, Array]:
    """(inner products of codes, similarities of labels), both `[batch, bank_size]`."""
    options.check_shapes(
        soft_codes=(soft_codes, "batch num_bits"),
        labels=(labels, "batch num_classes"),
        bank_codes=(bank.codes, "bank_size num_bits"),
        bank_labels=(bank.labels, "bank_size num_classes"),
    )
    products = jnp.matmul(soft_codes, bank.codes.T, precision=lax.Precision.HIGHEST)
    return products, similarity(labels, bank.labels)


def dph(soft_codes: Array, labels: Array, bank: CodeBank) -> Array:
    """Squared error of code agreement to similarity: +1 for a shared label, else -1. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        labels: `[batch, num_classes]` multi-hot.
        bank: the bank, the batch's rows already written.

    Reference:
        Deep pairwise hashing as released with SAAT: no quantisation term.
    """
    products, similar = _agreement(soft_codes, labels, bank)
    return jnp.mean(jnp.square(products / soft_codes.shape[-1] - (2 * similar - 1)), axis=-1)


def dpsh(
    soft_codes: Array,
    labels: Array,
    bank: CodeBank,
    *,
    eta: float = 50.0,
    normalizer: Literal["bank", "bits"] = "bank",
) -> Array:
    """Negative log-likelihood of the similarities, plus quantisation. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        labels: `[batch, num_classes]` multi-hot.
        bank: the bank, the batch's rows already written.
        eta: weight of the squared distance to the codes, of which the sum over the bits is
        normalizer: divided by "bank", its size (SAAT, ProS-GAN, with eta 50), or by "bits",
            their number (CgAT, with eta 0.001).

    Reference:
        Li et al., Feature learning based deep supervised hashing with pairwise labels,
        IJCAI 2016.
    """
    options.check_word("normalizer", normalizer, ("bank", "bits"))
    products, similar = _agreement(soft_codes, labels, bank)
    if normalizer == "bank":
        eta = eta * soft_codes.shape[-1] / len(bank.codes)
    errors = jnp.mean(pair_likelihood(products / 2, similar), axis=-1)
    return errors + eta * quantization(soft_codes)


def hashnet(
    soft_codes: Array,
    labels: Array,
    bank: CodeBank,
    mask: Array,
    *,
    slope: float,
    axis_name: str | None = None,
) -> Array:
    """Negative log-likelihood of the similarities, both classes of pairs weighing the same.

    The numbers of similar and of dissimilar pairs are those of the real rows on all devices;
    a class without pairs adds nothing.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        labels: `[batch, num_classes]` multi-hot.
        bank: the bank, the batch's rows already written.
        mask: `[batch]` 1 for real rows, 0 for padding.
        slope: of the logits in the inner products of codes.
        axis_name: the mapped axis of the devices, if any.

    Returns:
        `[batch]`; the mean over the real rows is the mean over similar pairs plus the mean over
        dissimilar ones.

    Reference:
        Cao et al., HashNet, ICCV 2017.
    """
    products, similar = _agreement(soft_codes, labels, bank)
    options.check_shapes(labels=(labels, "batch num_classes"), mask=(mask, "batch"))
    errors = pair_likelihood(slope * products, similar)
    pairs = jnp.stack([similar, 1 - similar])
    totals = jnp.sum(mask), jnp.sum(pairs, -1) @ mask
    rows, counts = parallel.global_sum(totals, axis_name)
    return rows * jnp.sum(jnp.sum(pairs * errors, -1) / jnp.maximum(counts, 1)[:, None], axis=0)


def sliced_wasserstein(
    soft_codes: Array, random_codes: Array, mask: Array, *, axis_name: str | None = None
) -> Array:
    """Squared distance, bit by bit, to random codes of the same rank in the batch. `[batch]`

    The batch is that of all devices, without its padding. Which random code belongs to which
    row is constant for differentiation.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        random_codes: `[global batch, num_bits]` of ±1, the same on all devices.
        mask: `[batch]` 1 for real rows, 0 for padding.
        axis_name: the mapped axis of the devices, if any.

    Reference:
        Doan et al., HSWD, CVPR 2022.
    """
    rows = lax.stop_gradient(soft_codes), mask
    all_codes, all_mask = parallel.all_rows(rows, axis_name)
    options.check_shapes(
        soft_codes=(all_codes, "batch num_bits"),
        random_codes=(random_codes, "batch num_bits"),
        mask=(all_mask, "batch"),
    )
    # Two is beyond any code, so padding ranks last and meets padding.
    columns = [jnp.where(all_mask[:, None] > 0, x, 2.0) for x in (all_codes, random_codes)]
    ranks = jnp.argsort(jnp.argsort(columns[0], axis=0), axis=0)
    partners = jnp.take_along_axis(jnp.sort(columns[1], axis=0), ranks, axis=0)
    if axis_name:
        first = lax.axis_index(axis_name) * len(soft_codes)
        partners = lax.dynamic_slice_in_dim(partners, first, len(soft_codes))
    return jnp.mean(jnp.square(partners - soft_codes), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dph(Objective):
    """DPH, SAAT's default: `dph`.

    Attributes:
        known_labels: see `init_bank`.
    """

    known_labels: bool = False

    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        return State(bank=init_bank(labels, num_bits, known_labels=self.known_labels))

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return dph(soft_codes, labels, state.bank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpsh(Dph):
    """DPSH, ProS-GAN's default: `dpsh`.

    Attributes:
        eta: see `dpsh`.
        normalizer: see `dpsh`.
    """

    eta: float = 50.0
    normalizer: Literal["bank", "bits"] = "bank"

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return dpsh(soft_codes, labels, state.bank, eta=self.eta, normalizer=self.normalizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashNet(Dph):
    """HashNet: `hashnet`, with a tanh scale that grows in training (`next_forward`).

    Attributes:
        slope: see `hashnet`; None is 10 / num_bits as SAAT, ProS-GAN and CgAT have 0.1.
        scale_quirk: see `Objective`.
    """

    slope: float | None = None
    scale_quirk: bool = False

    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        state = super().init(rng, labels, num_bits)
        return dataclasses.replace(state, forwards=jnp.zeros((), jnp.int32), scale=jnp.ones(()))

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return hashnet(
            soft_codes,
            labels,
            state.bank,
            context.mask,
            slope=10 / soft_codes.shape[-1] if self.slope is None else self.slope,
            axis_name=context.axis_name,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hswd(HashNet):
    """HSWD: HashNet's loss plus `sliced_wasserstein` to random codes, fresh every step.

    Attributes:
        wasserstein_weight: weight of the second term.
    """

    wasserstein_weight: float = 0.1

    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        rows, num_bits = soft_codes.shape
        rows *= lax.axis_size(context.axis_name) if context.axis_name else 1
        distances = sliced_wasserstein(
            soft_codes,
            jax.random.rademacher(context.rng, (rows, num_bits), soft_codes.dtype),
            context.mask,
            axis_name=context.axis_name,
        )
        errors = super().loss(state, soft_codes, labels, context)
        return errors + self.wasserstein_weight * distances
