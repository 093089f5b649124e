"""What objectives remember between steps, and how a step changes it."""

import abc
import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from saat_jax import hamming, options, parallel
from saat_jax.labels import share_label

Array = jax.Array
ArrayLike = jax.Array | np.ndarray

# OrthoHash's batch normalisation, as PyTorch's default.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.1


@flax.struct.dataclass
class CodeBank:
    """The latest codes and labels of the training images, by row of the training set.

    Attributes:
        codes: `[bank_size, num_bits]` float; zero where an image has not been seen.
        labels: `[bank_size, num_classes]` multi-hot float.
    """

    codes: Array
    labels: Array


@flax.struct.dataclass
class State:
    """All that an objective remembers; None where it has no such thing.

    Attributes:
        params: trainable parameters, which the network's optimizer moves too; OrthoHash's
            "scale" and "bias" `[num_bits]`.
        bank: `CodeBank` of the training images' soft codes.
        class_codes: `[num_classes, num_bits]` codes of the classes.
        tie_code: `[num_bits]` code of an image whose classes' codes cancel out.
        forwards: int32 number of forward passes in training, counted for the continuation.
        scale: tanh scale of the last of them.
        mean: `[num_bits]` running mean of OrthoHash's batch normalisation.
        var: `[num_bits]` its running variance. No loss reads the two.
    """

    # `Any` for "or None": which parts there are is fixed by the objective, not by the step.
    params: dict[str, Array] = flax.struct.field(default_factory=dict)
    bank: Any = None
    class_codes: Any = None
    tie_code: Any = None
    forwards: Any = None
    scale: Any = None
    mean: Any = None
    var: Any = None


@flax.struct.dataclass
class Context:
    """What a loss must know of the step besides its rows.

    Attributes:
        mask: `[batch]` 1 for real rows, 0 for padding, which then has no influence at all.
        rng: a key, the same on all devices and another in every step.
        axis_name: the mapped axis of the devices, over which counts, moments and ranks are
            taken; None where there is but one.
    """

    mask: Array
    rng: Array
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(options.Options, abc.ABC):
    """A hashing objective: how its state begins, and its loss. Its fields are its options.

    One of one's own is such a class, and `OBJECTIVES.register(name, CLASS)` lets a config name it.
    """

    # Whether adversarial training follows the released code's tanh scale, which now and then
    # jumps, instead of staying at 1.
    scale_quirk = False

    @abc.abstractmethod
    def init(self, rng: Array, labels: ArrayLike, num_bits: int) -> State:
        """The first state.

        Args:
            rng: random key.
            labels: `[bank_size, num_classes]` of the training set.
            num_bits: length of the codes.

        Raises:
            ValueError: if they do not suit the objective.
        """

    @abc.abstractmethod
    def loss(self, state: State, soft_codes: Array, labels: Array, context: Context) -> Array:
        """The losses of a batch, which `state` has taken in. `[batch]`

        Args:
            state: from `init`, or after the last step.
            soft_codes: `[batch, num_bits]` in (-1, 1).
            labels: `[batch, num_classes]` multi-hot.
            context: what else to know of the step.
        """


def init_bank(labels: ArrayLike, num_bits: int, *, known_labels: bool = False) -> CodeBank:
    """A bank in which no image has been seen.

    Args:
        labels: `[bank_size, num_classes]` multi-hot labels of the training set.
        num_bits: length of the codes.
        known_labels: True begins with all labels, as ProS-GAN; False with none, as SAAT, so
            that unseen images count as unlike everything.
    """
    labels = jnp.asarray(labels, jnp.float32)
    return CodeBank(
        jnp.zeros((len(labels), num_bits)), labels if known_labels else jnp.zeros_like(labels)
    )


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
        codes.at[index].set(lax.stop_gradient(soft_codes), mode="drop"),
        bank_labels.at[index].set(labels, mode="drop"),
    )


def update_state(
    state: State, soft_codes: Array, labels: Array, index: Array, mask: Array
) -> State:
    """Takes in a batch: its rows of the bank, its share of the running statistics.

    Args:
        state: the state before the batch.
        soft_codes: `[batch, num_bits]` of the rows of all devices, as `labels` and the rest.
        labels: `[batch, num_classes]` multi-hot.
        index: `[batch]` int rows of the training set; its size for padding.
        mask: `[batch]` 1 for real rows, 0 for padding.
    """
    if state.bank is not None:
        state = dataclasses.replace(state, bank=update_bank(state.bank, soft_codes, labels, index))
    if state.mean is not None:
        # Unbiased, as PyTorch keeps it, though it normalises with the biased one.
        mean, _, var = parallel.batch_moments(lax.stop_gradient(soft_codes), mask)
        state = dataclasses.replace(
            state,
            mean=state.mean + BATCH_NORM_MOMENTUM * (mean - state.mean),
            var=state.var + BATCH_NORM_MOMENTUM * (var - state.var),
        )
    return state


def next_forward(state: State) -> tuple[State, Array | float]:
    """Counts a forward pass in training and returns (state, its tanh scale).

    The scale grows with the count n, sqrt(1 + 0.005 n), but only at multiples of 200; in
    between it stays as it was. Objectives without continuation have scale 1.

    Reference:
        HashNet as released with SAAT.
    """
    if state.forwards is None:
        return state, 1.0
    forwards = state.forwards + 1
    grown = jnp.sqrt(1 + 0.005 * forwards.astype(state.scale.dtype))
    scale = jnp.where(forwards % 200 == 0, grown, state.scale)
    return dataclasses.replace(state, forwards=forwards, scale=scale), scale


def similarity(labels: Array, bank_labels: Array) -> Array:
    """1 where two label vectors share a label, else 0. `[batch, bank_size]` float"""
    shared: Array = share_label(labels, bank_labels)
    return shared.astype(jnp.float32)


def pair_likelihood(logits: Array, similar: Array) -> Array:
    """Negative log-likelihood of pairs' similarities, of which the logits are. Shape stays"""
    return jax.nn.softplus(logits) - similar * logits


def quantization(soft_codes: Array) -> Array:
    """Mean squared distance of `[batch, num_bits]` soft codes to their own codes. `[batch]`

    Reference:
        SAAT, Eq. 19, there the sum over the bits; the released code takes the mean.
    """
    codes = lax.stop_gradient(hamming.binarize(soft_codes))
    return jnp.mean(jnp.square(soft_codes - codes), axis=-1)
