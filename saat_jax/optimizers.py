"""Learning rates by step, and the optimizers of every training."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax

from saat_jax import options

Schedule = Callable[[int], float]


def epoch_schedule(learning_rate: float, *, num_epochs: int, steps_per_epoch: int) -> Schedule:
    """Divides the rate by ten after the first and after the second third of the epochs.

    The released rule is applied after each epoch, so a drop comes one epoch late: of 100
    epochs the first 34 keep the rate.

    Reference:
        The rule released with SAAT and ProS-GAN. Fewer than three epochs, where the released
        code divides by zero, drop after every epoch but the first.
    """

    def schedule(step: int) -> float:
        epoch = step // steps_per_epoch
        return learning_rate * 0.1 ** (max(epoch - 1, 0) // max(num_epochs // 3, 1))

    return schedule


def milestone_schedule(learning_rate: float, *, num_steps: int) -> Schedule:
    """Divides the rate by ten after one half and after three quarters of the steps.

    As released, a milestone that is not a whole number is never reached.

    Reference:
        As released with SAAT and CgAT.
    """
    milestones = [m for m in (num_steps / 2, num_steps * 3 / 4) if m.is_integer()]

    def schedule(step: int) -> float:
        return learning_rate * 0.1 ** sum(step >= m for m in milestones)

    return schedule


def gan_schedule(
    learning_rate: float,
    *,
    num_epochs: int,
    steps_per_epoch: int,
    num_decay_epochs: int | None = None,
) -> Schedule:
    """Keeps the rate for the first half of the epochs, then lowers it by equal amounts.

    One amount is left in the last epoch: of 100 epochs the rate is kept for 50, and the last
    has 1/51 of it.

    Args:
        learning_rate: the first rate.
        num_epochs: number of epochs.
        steps_per_epoch: number of updates in an epoch.
        num_decay_epochs: number of epochs with a lowered rate; by default half of them,
            rounded up.

    Returns:
        The rate of a step, counted from 0.

    Reference:
        As released with ProS-GAN.
    """
    decay = num_epochs - num_epochs // 2 if num_decay_epochs is None else num_decay_epochs

    def schedule(step: int) -> float:
        lowered = step // steps_per_epoch + 1 - (num_epochs - decay)
        return learning_rate * (1 - max(0, lowered) / (decay + 1))

    return schedule


def _milestones(learning_rate: float, *, num_epochs: int, steps_per_epoch: int) -> Schedule:
    return milestone_schedule(learning_rate, num_steps=num_epochs * steps_per_epoch)


def _cosine(learning_rate: float, *, num_epochs: int, steps_per_epoch: int) -> Schedule:
    num_steps = num_epochs * steps_per_epoch
    return lambda step: learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _constant(learning_rate: float, *, num_epochs: int, steps_per_epoch: int) -> Schedule:
    return lambda step: learning_rate


# The schedules a config may name, called like `epoch_schedule`.
SCHEDULES: options.Choices[Callable[..., Schedule]] = options.Choices(
    "schedule",
    {
        "constant": _constant,
        "cosine": _cosine,
        "half_linear": gan_schedule,
        "milestones": _milestones,
        "thirds": epoch_schedule,
    },
)
# The optimizers a config may name: a rule that makes a direction of a gradient, from all options.
OPTIMIZERS: options.Choices[Callable[..., optax.GradientTransformation]] = options.Choices(
    "optimizer",
    {
        "sgd": lambda momentum, beta1: optax.trace(momentum) if momentum else optax.identity(),
        "adam": lambda momentum, beta1: optax.scale_by_adam(b1=beta1),
    },
)


def make_schedule(
    name: str, learning_rate: float, *, num_epochs: int, steps_per_epoch: int
) -> Schedule:
    """Builds a learning rate by step.

    Args:
        name: one of `SCHEDULES`: "thirds" (`epoch_schedule`), "milestones"
            (`milestone_schedule`), "half_linear" (`gan_schedule`), "cosine" down to zero, or
            "constant".
        learning_rate: the first rate.
        num_epochs: number of epochs.
        steps_per_epoch: number of updates in an epoch.

    Raises:
        ValueError: if there is no such schedule, or a number is out of its range.

    Example:
        >>> schedule = make_schedule("milestones", 0.4, num_epochs=2, steps_per_epoch=4)
        >>> [round(schedule(step), 3) for step in range(8)]
        [0.4, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
    """
    make = SCHEDULES[name]
    options.check_numbers(
        learning_rate=learning_rate, num_epochs=num_epochs, steps_per_epoch=steps_per_epoch
    )
    return make(learning_rate, num_epochs=num_epochs, steps_per_epoch=steps_per_epoch)


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    num_steps: int,
    momentum: float = 0.0,
    beta1: float = 0.9,
    weight_decay: float = 0.0,
    accumulate: int = 1,
    updates: Sequence[int] | None = None,
    average: float = 0.0,
) -> optax.GradientTransformation:
    """Builds an optimizer as PyTorch defines it, weight decay added to the gradient.

    Args:
        name: one of `OPTIMIZERS`: "sgd" or "adam" (second beta 0.999).
        schedule: learning rate by step, from 0.
        num_steps: how many steps the schedule is asked for; the last rate is kept beyond.
        momentum: of "sgd".
        beta1: of "adam".
        weight_decay: coefficient of the L2 penalty's gradient.
        accumulate: number of steps whose mean gradient makes one change of the parameters, at
            the first one's rate; the last change takes the steps that are left.
        updates: the steps that change the parameters, each at its own rate, if not all do; without
            `accumulate`.
        average: decay of a running average of the parameters, which `averaged` finds; 0 keeps none.

    Raises:
        ValueError: if there is no such optimizer, or a number is out of its range.
    """
    rule = OPTIMIZERS[name]
    options.check_numbers(
        momentum=momentum, beta1=beta1, weight_decay=weight_decay, accumulate=accumulate
    )
    if not 0 <= average < 1:
        raise ValueError(f"average must be a number from 0 and under 1, got {average!r}")
    # A table makes any Python rule traceable, and the rate exact.
    first_steps = range(0, max(num_steps, 1), accumulate) if updates is None else updates
    rates = np.array([schedule(step) for step in first_steps], np.float32)

    def rate(count: chex.Numeric) -> chex.Numeric:
        return jax.numpy.asarray(rates)[jax.numpy.minimum(count, len(rates) - 1)]

    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        rule(momentum, beta1),
        optax.scale_by_learning_rate(rate),
        *([_keep_average(average)] if average else []),
    )
    if accumulate == 1:
        return optimizer

    def num_passes(count: chex.Numeric) -> chex.Numeric:
        return jax.numpy.clip(num_steps - count * accumulate, 1, accumulate)

    return optax.MultiSteps(optimizer, num_passes).gradient_transformation()


class AverageState(NamedTuple):
    """The running average of the parameters after each change, and the number of changes."""

    average: chex.ArrayTree
    count: chex.Array


def _keep_average(decay: float) -> optax.GradientTransformation:
    """Leaves the changes as they are; the last of a chain."""

    def init(params: chex.ArrayTree) -> AverageState:
        return AverageState(jax.tree.map(jax.numpy.array, params), jax.numpy.zeros((), int))

    def update(
        updates: chex.ArrayTree, state: AverageState, params: chex.ArrayTree | None = None
    ) -> tuple[chex.ArrayTree, AverageState]:
        # Fewer changes than the decay spans: all count alike, and the first parameters not at all.
        kept = jax.numpy.minimum(decay, state.count / (state.count + 1))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, at: kept * old + (1 - kept) * at, state.average, new)
        return updates, AverageState(average, state.count + 1)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Any:
    """The running average of what an optimizer of `make_optimizer` changes; None if it has none.

    Args:
        opt_state: its state, or what a checkpoint holds of it.
    """
    if isinstance(opt_state, AverageState):
        return opt_state.average
    if isinstance(opt_state, dict):
        if "average" in opt_state:
            return opt_state["average"]
        opt_state = [*opt_state.values()]
    if not isinstance(opt_state, (list, tuple)):
        return None
    return next((found for each in opt_state if (found := averaged(each)) is not None), None)
