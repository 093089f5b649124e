"""Losses over codes, to be minimised over an image, and the schedule of their tanh scale."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming, options

Array = jax.Array
CodeLossFn = Callable[..., Array]

_ALPHAS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def check_steps(num_steps: int) -> None:
    """Refuses what is no number of steps, or known at run time only."""
    options.check_numbers(num_steps=num_steps)
    if isinstance(num_steps, jax.core.Tracer):
        raise ValueError(
            "num_steps must be known when jax.jit traces an attack, got a traced value; name it "
            "in static_argnames"
        )


def alpha_schedule(num_steps: int) -> np.ndarray:
    """Anneals the tanh scale from 0.1 to 1 over an attack. `[num_steps]` float32

    A small scale keeps tanh out of saturation while the code is still far from its goal. The
    schedule holds 0.1 for the first half, then rises every tenth; with fewer than ten steps
    it ends below 1.

    Raises:
        ValueError: if `num_steps` is no number of steps.

    Example:
        >>> alpha_schedule(10)[4:]
        array([0.1, 0.2, 0.3, 0.5, 0.7, 1. ], dtype=float32)

    Reference:
        SAAT, Section IV-A.
    """
    check_steps(num_steps)
    return np.array([_ALPHAS[10 * step // num_steps] for step in range(num_steps)], np.float32)


def mean_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """Mean agreement of codes and target codes, negated if targeted. `[batch]` in [-1, 1]

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        target_codes: `[batch, num_bits]` in {-1, 0, +1}.
        targeted: whether to approach the target codes rather than to leave them.

    Raises:
        ValueError: if these are no codes or differ in shape; so do all losses.

    Reference:
        SAAT, Eq. 13, 14 and 18.
    """
    hamming.check_aligned(soft_codes=soft_codes, target_codes=target_codes)
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
    hamming.check_aligned(soft_codes=soft_codes, target_codes=target_codes)
    agreement = soft_codes * target_codes
    unsettled = agreement < 0.5 if targeted else agreement > -0.5
    weights = jax.lax.stop_gradient(unsettled.astype(agreement.dtype))
    totals = jnp.sum(weights * (agreement + 2) * agreement, axis=-1)
    return -totals if targeted else totals, jnp.sum(weights, axis=-1)


# By the name of `loss`. One of one's own: CODE_LOSSES.register.
CODE_LOSSES: options.Choices[CodeLossFn] = options.Choices(
    "attack loss", {"mean": mean_loss, "focused": focused_loss, "pooled": pooled_loss}
)


def code_loss(name: str, *, targeted: bool) -> Callable[[Array, Array], Array]:
    """Looks up a code loss, to be minimised over the image.

    Raises:
        ValueError: if no loss has that name.
    """
    return functools.partial(CODE_LOSSES[name], targeted=targeted)


def target_loss(
    target_codes: Array, *, loss: str, targeted: bool
) -> Callable[[Array, Array], Array]:
    """The code loss of (soft codes, images) with one target code for each image.

    Raises:
        ValueError: if these are no codes, or, of the loss, not of the soft codes' shape.
    """
    hamming.check_codes("target_codes", target_codes)
    loss_fn = code_loss(loss, targeted=targeted)

    def of_images(soft_codes: Array, _: Array) -> Array:
        hamming.check_aligned(soft_codes=soft_codes, target_codes=target_codes)
        return loss_fn(soft_codes, target_codes)

    return of_images
