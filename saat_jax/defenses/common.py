"""What all training updates share: their state, the keys of a step, the inner attack."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from saat_jax import attacks, networks, objectives, options

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
AttackMode = Literal["train", "eval"]


@flax.struct.dataclass
class TrainState:
    """All that training changes, and nothing else.

    Attributes:
        step: int32 number of updates done.
        params: the network's parameters.
        batch_stats: its running statistics; empty if it has none.
        opt_state: the optimizer's state, over the parameters of network and objective.
        objective: what the objective remembers.
        code_bank: bank of codes for the votes of SAAT and CgAT; None in other training.
        defense: what else the defence remembers; ATRDH's `AtrdhState`.
    """

    step: Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: chex.ArrayTree
    objective: objectives.State
    code_bank: objectives.CodeBank | None = None
    defense: Any = None


UpdateFn = Callable[..., tuple[TrainState, Metrics]]


def init_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    objective: objectives.State,
    code_bank: objectives.CodeBank | None = None,
) -> TrainState:
    """The state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init((variables["params"], objective.params)),
        objective=objective,
        code_bank=code_bank,
    )


def training_pass(seed: int, step: Array, batch: Batch, axis_name: str | None) -> networks.Training:
    """Keys that depend on the seed, the step and the image alone, so that any restart and any
    number of devices draws the same.
    """
    rng = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(batch["index"])
    return networks.Training(keys, batch["mask"], axis_name)


def next_pass(training: networks.Training, number: int | Array) -> networks.Training:
    """The same rows with fresh keys, for another forward pass of the same step."""
    fold = jax.vmap(lambda key: jax.random.fold_in(key, number))
    return dataclasses.replace(training, keys=fold(training.keys))


def loss_context(seed: int, step: Array, batch: Batch, axis_name: str) -> objectives.Context:
    """What the objective must know of the step; its key is that of no image."""
    # The complement: a number that no step folds in.
    rng = jax.random.fold_in(jax.random.key(seed), ~step)
    return objectives.Context(batch["mask"], rng, axis_name)


def all_rows(axis_name: str, *arrays: Array) -> tuple[Array, ...]:
    """Gathers the rows of all devices, in the order of the global batch."""
    return lax.all_gather(lax.stop_gradient(arrays), axis_name, tiled=True)


def weighted_loss(
    batch: Batch, axis_name: str, **terms: tuple[Array, float]
) -> tuple[Array, Metrics]:
    """A device's share of a loss that is a sum of means over the rows of all devices.

    Args:
        batch: its mask tells the real rows.
        axis_name: of the devices.
        **terms: by name, `[rows]` losses and the weight of their mean.

    Returns:
        The loss, and as metrics the means by name and, as "loss", the loss.
    """
    count = lax.psum(jnp.sum(batch["mask"]), axis_name)
    means = {name: jnp.sum(rows * batch["mask"]) / count for name, (rows, _) in terms.items()}
    loss: Any = sum(weight * means[name] for name, (_, weight) in terms.items())
    return loss, {**means, "loss": loss}


def descend(
    loss_fn: Callable[[chex.ArrayTree, Any], tuple[Array, tuple[Metrics, objectives.State, Any]]],
    state: TrainState,
    optimizer: optax.GradientTransformation,
    axis_name: str,
    *,
    weight_perturbation: float = 0.0,
) -> tuple[TrainState, Metrics, Any]:
    """Takes one step of the optimizer on the sum of all devices' shares of a loss.

    Args:
        loss_fn: maps the network's and the objective's parameters to the device's share, with its
            metrics, what the objective is to remember, and anything else.
        state: before the step.
        optimizer: of both kinds of parameters.
        axis_name: of the devices.
        weight_perturbation: how far the network's kernels are moved to where the loss is higher
            before its gradient is taken there, by the norm of each; 0 takes it where they are, and
            costs half as much. The metrics are those of the place (adversarial weight
            perturbation, Wu et al., NeurIPS 2020).

    Returns:
        The state after the step but for running statistics, bank and defence; the metrics of all
        devices; and what else the loss gave.
    """
    before = state.params, state.objective.params
    place = state.params
    if weight_perturbation:
        uphill = lax.psum(jax.grad(loss_fn, has_aux=True)(*before)[0], axis_name)
        place = jax.tree.map(functools.partial(_moved, weight_perturbation), place, uphill)
    gradients, (metrics, objective, rest) = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(
        place, state.objective.params
    )
    metrics, gradients = lax.psum((metrics, gradients), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, before)
    params, objective_params = optax.apply_updates(before, updates)
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        objective=dataclasses.replace(objective, params=objective_params),
    )
    return after, metrics, rest


def _moved(share: float, values: Array, direction: Array) -> Array:
    """A kernel moved along a direction by a share of its Euclidean norm."""
    if values.ndim < 2:
        # Of a bias before batch normalisation the gradient is nothing but rounding.
        return values
    length = jnp.linalg.norm(direction)
    return values + share * jnp.linalg.norm(values) * direction / jnp.where(length > 0, length, 1)


def ramp(step: Array, num_steps: int) -> Array | float:
    """Rises from nothing to 1 in a number of steps; 1 throughout with none."""
    return jnp.minimum(1, (step + 1) / num_steps) if num_steps else 1.0


def make_inner_attack(
    model: nn.Module,
    *,
    targeted: bool,
    epsilon: float,
    step_size: float,
    num_steps: int,
    attack_mode: AttackMode,
    loss: str = "mean",
    random_start: bool = True,
    direction: str = "sign",
    random_radius: bool = False,
    warmup_steps: int = 0,
) -> Callable[..., tuple[Array, tuple[chex.ArrayTree, objectives.State]]]:
    """Builds the attack within an update.

    Args:
        model: a hash network.
        targeted: whether to approach the target codes rather than to leave them.
        epsilon: radius of the ball in units of [0, 1].
        step_size: length of a step, in the same units.
        num_steps: number of steps; the passes 0 to `num_steps` of `next_pass` are its own.
        attack_mode: "train" runs the network with dropout and batch statistics, and feeds the
            running statistics; "eval" uses the latter.
        loss: the code loss.
        random_start: whether to begin at a random point of the ball, as released, or at the
            images, as SAAT's Eq. 15.
        direction: along what a step goes, see `attacks.STEP_RULES`.
        random_radius: whether each image has a ball and steps of its own, by a share drawn evenly
            from 0 to 1.
        warmup_steps: updates within which the balls and the steps grow to their size.

    Returns:
        `attack(params, batch_stats, counted, target_codes, batch, training, step)`, which returns
        (images, (running statistics, counted)). `counted` is what `objectives.next_forward`
        counts passes in training mode by; a `State()` keeps the tanh scale at 1. `step` is the
        number of updates done.

    Raises:
        ValueError: if a name is unknown or a number out of its range.
    """
    options.check_word("attack_mode", attack_mode, ("train", "eval"))
    options.check_numbers(
        epsilon=epsilon, step_size=step_size, num_steps=num_steps, warmup_steps=warmup_steps
    )
    make_rule = attacks.STEP_RULES[direction]
    attack_loss = attacks.code_loss(loss, targeted=targeted)

    def attack(
        params: chex.ArrayTree,
        batch_stats: chex.ArrayTree,
        counted: objectives.State,
        target_codes: Array,
        batch: Batch,
        training: networks.Training,
        step: Array,
    ) -> tuple[Array, tuple[chex.ArrayTree, objectives.State]]:
        share: Any = ramp(step, warmup_steps)
        starts = next_pass(training, num_steps).keys
        if random_radius:
            # A number that no pass folds in.
            draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 2**32 - 1))  # noqa: E731
            share *= jax.vmap(draw)(starts)
        radius, rule = epsilon * share, make_rule(step_size)

        @functools.partial(jax.grad, has_aux=True)
        def gradient_fn(images: Array, step: Array, carry: Any) -> tuple[Array, Any]:
            batch_stats, counted = carry
            mode: networks.Training | None = None
            alpha: Array | float = 1.0
            if attack_mode == "train":
                mode = next_pass(training, step)
                counted, alpha = objectives.next_forward(counted)
            codes, batch_stats = networks.forward(model, params, batch_stats, images, mode, alpha)
            loss = jnp.sum(attack_loss(codes, target_codes) * batch["mask"])
            return loss, (batch_stats, counted)

        start = batch.get("start", batch["image"])
        if random_start and "start" not in batch:
            start += attacks.uniform_noise(starts, start, epsilon=radius)
        found = attacks.descend(
            lambda images, step, _, carry: gradient_fn(images, step, carry),
            batch["image"],
            start,
            rule=attacks.scaled_rule(rule, share) if warmup_steps or random_radius else rule,
            epsilon=radius,
            num_steps=num_steps,
            carry=(batch_stats, counted),
        )
        return found.images, found.carry

    return attack
