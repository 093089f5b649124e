"""Auto-PGD's steps: a momentum, and for each image a step size that halves where it stalls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from saat_jax.attacks.balls import per_image, project
from saat_jax.attacks.descent import gradient_sign

Array = jax.Array

# Share of the step that is new, the rest goes on as before; the first step is all new.
_NEW_SHARE = 0.75
# Of the steps since the last check: with fewer that lowered the loss, the step is too long.
_FEW = 0.75
# Shares of all steps: to the first check, by how much the next ones are nearer, and the nearest.
_FIRST_CHECK, _NEARER, _NEAREST = 0.22, 0.03, 0.06


class Measured(NamedTuple):
    """What `auto_pgd` steps along: a gradient, and the loss where it was taken.

    Attributes:
        gradient: `[batch, height, width, channels]`.
        loss: `[batch]`.
    """

    gradient: Array
    loss: Array


class AutoPgdState(NamedTuple):
    """What Auto-PGD knows of a batch of images.

    Attributes:
        step: number of the step.
        check_at: that of the next check.
        check_in: steps from the last check to it.
        before: `[batch, height, width, channels]` the images a step ago.
        step_size: `[batch]`.
        loss: `[batch]` a step ago.
        falls: `[batch]` how many of the steps since the last check lowered the loss.
        halved: `[batch]` whether the last check halved the step.
        checked_loss: `[batch]` the lowest at the last check.
        best: `[batch, height, width, channels]` the images of the lowest loss.
        best_found: gradient and loss there.
    """

    step: Array
    check_at: Array
    check_in: Array
    before: Array
    step_size: Array
    loss: Array
    falls: Array
    halved: Array
    checked_loss: Array
    best: Array
    best_found: Measured


def auto_pgd(
    images: Array, *, epsilon: float | Array, num_steps: int
) -> optax.GradientTransformation:
    """The step rule of Auto-PGD, to be given `Measured` where others are given a gradient.

    An image's first step is twice the ball's radius. At each check, the first after 22 % of the
    steps and the next ones ever nearer, it is halved, and the image goes back to where its loss
    was lowest, if the loss has fallen in at most three of four steps, or if it was not halved the
    last time and the lowest loss has not changed since.

    Args:
        images: `[batch, height, width, channels]` centres of the ball.
        epsilon: its radius in units of [0, 1], or `[batch]` of each image.
        num_steps: how many steps will be taken; fixes when to check.

    Reference:
        Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks, ICML 2020, whose loss rises where this one falls. Differs from the
        released code: the first step counts as a fall if the loss is lower than at the start.
    """
    first_check = max(int(_FIRST_CHECK * num_steps), 1)
    nearer, nearest = max(int(_NEARER * num_steps), 1), max(int(_NEAREST * num_steps), 1)

    def init(start: Array) -> AutoPgdState:
        every = jnp.zeros(len(start))
        return AutoPgdState(
            step=jnp.zeros((), int),
            check_at=jnp.full((), first_check),
            check_in=jnp.full((), first_check),
            before=start,
            step_size=every + 2 * epsilon,
            loss=every + jnp.inf,
            falls=every,
            # As if: the first check must not halve for a lowest loss that none precedes.
            halved=every > -1,
            checked_loss=every + jnp.inf,
            best=start,
            best_found=Measured(jnp.zeros_like(start), every + jnp.inf),
        )

    def update(found: Any, state: AutoPgdState, here: Array | None = None) -> tuple[Any, Any]:
        assert here is not None
        # What is no number is never better, and anything is better than it.
        lowest = state.best_found.loss
        better = (found.loss < lowest) | jnp.isnan(lowest) | (state.step == 0)
        best = jnp.where(per_image(better), here, state.best)
        best_found = Measured(
            jnp.where(per_image(better), found.gradient, state.best_found.gradient),
            jnp.where(better, found.loss, state.best_found.loss),
        )
        falls = state.falls + ((found.loss < state.loss) & (state.step > 0))
        checking = state.step == state.check_at
        stalls = ~state.halved & (best_found.loss >= state.checked_loss)
        halve = checking & ((falls <= _FEW * state.check_in) | stalls)
        check_in = jnp.where(
            checking, jnp.maximum(state.check_in - nearer, nearest), state.check_in
        )
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        at = jnp.where(per_image(halve), best, here)
        gradient = jnp.where(per_image(halve), best_found.gradient, found.gradient)
        new = project(at - per_image(step_size) * gradient_sign(gradient), images, epsilon=epsilon)
        share = jnp.where(state.step > 0, _NEW_SHARE, 1)
        there = at + share * (new - at) + (1 - share) * (at - state.before)
        there = project(there, images, epsilon=epsilon)
        return there - here, AutoPgdState(
            step=state.step + 1,
            check_at=jnp.where(checking, state.check_at + check_in, state.check_at),
            check_in=check_in,
            before=at,
            step_size=step_size,
            loss=found.loss,
            falls=jnp.where(checking, 0, falls),
            halved=jnp.where(checking, halve, state.halved),
            checked_loss=jnp.where(checking, best_found.loss, state.checked_loss),
            best=best,
            best_found=best_found,
        )

    return optax.GradientTransformation(init, update)
