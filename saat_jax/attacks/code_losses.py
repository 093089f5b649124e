"""Losses over codes, to be minimised over an image, and the schedule of their tanh scale."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
CodeLossFn = Callable[..., Array]

_ALPHAS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def alpha_schedule(num_steps: int) -> np.ndarray:
    """Anneals the tanh scale from 0.1 to 1 over an attack. `[num_steps]` float32

    A small scale keeps tanh out of saturation while the code is still far from its goal. The
    schedule holds 0.1 for the first half, then rises every tenth; with fewer than ten steps
    it ends below 1.

    Raises:
        ValueError: if the number of steps is negative.

    Reference:
        SAAT, Section IV-A.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be 0 or more, got {num_steps}")
    return np.array([_ALPHAS[10 * step // num_steps] for step in range(num_steps)], np.float32)


def mean_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """Mean agreement of codes and target codes, negated if targeted. `[batch]` in [-1, 1]

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        target_codes: `[batch, num_bits]` in {-1, 0, +1}.
        targeted: whether to approach the target codes rather than to leave them.

    Reference:
        SAAT, Eq. 13, 14 and 18.
    """
    agreement = jnp.mean(soft_codes * target_codes, axis=-1)
    return -agreement if targeted else agreement


def focused_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """Agreement over the bits that are not yet settled, negated if targeted. `[batch]`

    With s the agreement of one bit, (s + 2) s is averaged over the bits with s > -0.5 (in a
    targeted attack s < 0.5): bits already won beyond a margin no longer draw on the budget.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        target_codes: `[batch, num_bits]` in {-1, 0, +1}.
        targeted: whether to approach the target codes rather than to leave them.

    Reference:
        The loss of the released SAAT attack; the paper has `mean_loss`. Differs from the
        released code: the average is over the example's own bits, not over the batch's
        (`pooled_loss`), so that examples do not influence each other; and it is zero, not
        0/0, when every bit is settled. The sign of its gradient is the same.
    """
    totals, counts = _unsettled(soft_codes, target_codes, targeted=targeted)
    return totals / jnp.maximum(counts, 1)


def pooled_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """`focused_loss` over the unsettled bits of the whole batch, as released. `[batch]`

    Its mean is the released loss. An image's share depends on its batch mates, and so does an
    attack that adds up gradients of several passes, such as SI-NI-FGSM.
    """
    totals, counts = _unsettled(soft_codes, target_codes, targeted=targeted)
    return totals / jnp.maximum(jnp.mean(counts), 1 / len(counts))


def _unsettled(soft_codes: Array, target_codes: Array, *, targeted: bool) -> tuple[Array, Array]:
    """Sum over an example's unsettled bits, negated if targeted, and their number."""
    agreement = soft_codes * target_codes
    unsettled = agreement < 0.5 if targeted else agreement > -0.5
    weights = jax.lax.stop_gradient(unsettled.astype(agreement.dtype))
    totals = jnp.sum(weights * (agreement + 2) * agreement, axis=-1)
    return -totals if targeted else totals, jnp.sum(weights, axis=-1)


CODE_LOSSES: dict[str, CodeLossFn] = {
    "mean": mean_loss,
    "focused": focused_loss,
    "pooled": pooled_loss,
}


def code_loss(name: str, *, targeted: bool) -> Callable[[Array, Array], Array]:
    """Looks up a code loss, to be minimised over the image.

    Raises:
        ValueError: if no loss has that name.
    """
    if name not in CODE_LOSSES:
        raise ValueError(f"unknown attack loss {name!r}; expected one of {sorted(CODE_LOSSES)}")
    return functools.partial(CODE_LOSSES[name], targeted=targeted)
