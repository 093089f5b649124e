"""Objectives on pairs: the batch's soft codes against those of the whole training set."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax import lax

from saat_jax.objectives.state import (
    ArrayLike,
    CodeBank,
    Context,
    Objective,
    State,
    global_sum,
    init_bank,
    quantization,
    similarity,
)

Array = jax.Array


def _agreement(soft_codes: Array, labels: Array, bank: CodeBank) -> tuple[Array, Array]:
    """(inner products of codes, similarities of labels), both `[batch, bank_size]`."""
    chex.assert_rank([soft_codes, labels], 2)
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
    products, similar = _agreement(soft_codes, labels, bank)
    theta = products / 2
    if normalizer == "bank":
        eta = eta * soft_codes.shape[-1] / len(bank.codes)
    return jnp.mean(jax.nn.softplus(theta) - similar * theta, axis=-1) + eta * quantization(
        soft_codes
    )


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
    logits = slope * products
    errors = jax.nn.softplus(logits) - similar * logits
    pairs = jnp.stack([similar, 1 - similar])
    rows, counts = global_sum((jnp.sum(mask), jnp.sum(pairs, -1) @ mask), axis_name)
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
    all_codes, all_mask = lax.stop_gradient(soft_codes), mask
    if axis_name:
        all_codes, all_mask = lax.all_gather((all_codes, mask), axis_name, tiled=True)
    # Two is beyond any code, so padding ranks last and meets padding.
    columns = [jnp.where(all_mask[:, None] > 0, x, 2.0) for x in (all_codes, random_codes)]
    ranks = jnp.argsort(jnp.argsort(columns[0], axis=0), axis=0)
    partners = jnp.take_along_axis(jnp.sort(columns[1], axis=0), ranks, axis=0)
    if axis_name:
        first = lax.axis_index(axis_name) * len(soft_codes)
        partners = lax.dynamic_slice_in_dim(partners, first, len(soft_codes))
    return jnp.mean(jnp.square(partners - soft_codes), axis=-1)


def make_dph(*, known_labels: bool = False) -> Objective:
    """Builds DPH, SAAT's default: `dph`.

    Args:
        known_labels: see `init_bank`.
    """

    def init(rng: Array, labels: ArrayLike, num_bits: int) -> State:
        return State(bank=init_bank(labels, num_bits, known_labels=known_labels))

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return dph(soft_codes, labels, state.bank)

    return Objective(init, loss)


def make_dpsh(
    *, eta: float = 50.0, normalizer: Literal["bank", "bits"] = "bank", known_labels: bool = False
) -> Objective:
    """Builds DPSH, ProS-GAN's default: `dpsh`.

    Args:
        eta: see `dpsh`.
        normalizer: see `dpsh`.
        known_labels: see `init_bank`.

    Raises:
        ValueError: if `normalizer` is unknown.
    """
    if normalizer not in ("bank", "bits"):
        raise ValueError(f'normalizer must be "bank" or "bits", got {normalizer!r}')

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return dpsh(soft_codes, labels, state.bank, eta=eta, normalizer=normalizer)

    return Objective(make_dph(known_labels=known_labels).init, loss)


def make_hashnet(
    *, slope: float | None = None, scale_quirk: bool = False, known_labels: bool = False
) -> Objective:
    """Builds HashNet: `hashnet`, with a tanh scale that grows in training (`next_forward`).

    Args:
        slope: see `hashnet`; None is 10 / num_bits as SAAT, ProS-GAN and CgAT have 0.1.
        scale_quirk: see `Objective`.
        known_labels: see `init_bank`.
    """

    def init(rng: Array, labels: ArrayLike, num_bits: int) -> State:
        return State(
            bank=init_bank(labels, num_bits, known_labels=known_labels),
            forwards=jnp.zeros((), jnp.int32),
            scale=jnp.ones(()),
        )

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        return hashnet(
            soft_codes,
            labels,
            state.bank,
            context.mask,
            slope=10 / soft_codes.shape[-1] if slope is None else slope,
            axis_name=context.axis_name,
        )

    return Objective(init, loss, scale_quirk)


def make_hswd(
    *,
    wasserstein_weight: float = 0.1,
    slope: float | None = None,
    scale_quirk: bool = False,
    known_labels: bool = False,
) -> Objective:
    """Builds HSWD: HashNet's loss plus `sliced_wasserstein` to random codes, fresh every step.

    Args:
        wasserstein_weight: weight of the second term.
        slope: see `hashnet`; None is 10 / num_bits.
        scale_quirk: see `Objective`.
        known_labels: see `init_bank`.
    """
    base = make_hashnet(slope=slope, scale_quirk=scale_quirk, known_labels=known_labels)

    def loss(state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        rows, num_bits = soft_codes.shape
        rows *= lax.axis_size(context.axis_name) if context.axis_name else 1
        distances = sliced_wasserstein(
            soft_codes,
            jax.random.rademacher(context.rng, (rows, num_bits), soft_codes.dtype),
            context.mask,
            axis_name=context.axis_name,
        )
        return base.loss(state, soft_codes, labels, context) + wasserstein_weight * distances

    return base._replace(loss=loss)
