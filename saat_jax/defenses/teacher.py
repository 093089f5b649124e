"""Hardening without labels: attacked images are to be encoded as the network encoded clean ones."""

import dataclasses
from typing import Any

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from saat_jax import networks, objectives, options
from saat_jax.defenses.common import (
    AttackMode,
    Batch,
    Metrics,
    TrainState,
    UpdateFn,
    descend,
    init_state,
    make_inner_attack,
    next_pass,
    training_pass,
    weighted_loss,
)

Array = jax.Array


@flax.struct.dataclass
class Teacher:
    """The network before hardening, which stays as it is.

    Attributes:
        params: its parameters.
        batch_stats: its running statistics.
    """

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree


def make_teacher(variables: dict[str, Any]) -> Teacher:
    """A teacher of these variables."""
    # Copies: the state's memory is reused by each update.
    return Teacher(
        jax.tree.map(jnp.array, variables["params"]),
        jax.tree.map(jnp.array, variables.get("batch_stats", {})),
    )


def teach(model: nn.Module, teacher: Teacher, images: Array) -> Array:
    """The teacher's soft codes of `[batch, height, width, 3]` images, as constants."""
    return lax.stop_gradient(
        networks.forward(model, teacher.params, teacher.batch_stats, images, None)[0]
    )


def apart(soft_codes: Array, taught: Array) -> Array:
    """Mean squared difference of each image's soft codes. `[batch]`"""
    return jnp.mean(jnp.square(soft_codes - taught), axis=1)


def init_teacher_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    objective: objectives.State,
    code_bank: objectives.CodeBank,
    database_labels: np.ndarray,
    rng: Array,
) -> TrainState:
    """The state before the first update: the network, and itself as its teacher.

    Args:
        variables: of the pretrained network.
        optimizer: an optax transformation.
        objective: not trained by; kept.
        code_bank: not used.
        database_labels: not used.
        rng: not used.
    """
    del code_bank, database_labels, rng
    state = init_state(variables, optimizer, objective)
    return dataclasses.replace(state, defense=make_teacher(variables))


def make_teacher_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    epsilon: float,
    step_size: float,
    num_steps: int,
    attack_mode: AttackMode = "train",
    random_start: bool = True,
    clean_weight: float = 1.0,
    max_drift: float = 0.0,
    weight_perturbation: float = 0.0,
    **more: Any,
) -> UpdateFn:
    """Builds the update of hardening from images alone.

    The inner attack leaves the teacher's soft codes of the clean images; the loss is the mean
    squared difference of the adversarial images' soft codes from these, plus what clean soft codes
    drift from them beyond a bound.

    Args:
        model: a hash network.
        objective: not used; the state keeps what it remembers.
        optimizer: an optax transformation.
        seed: of random starts and dropout.
        epsilon: radius of the inner attack in units of [0, 1].
        step_size: its step, in the same units.
        num_steps: its number of steps.
        attack_mode: as in SAAT's update.
        random_start: as in SAAT's update.
        clean_weight: of the drift of clean codes.
        max_drift: mean squared drift of an image's soft code that costs nothing, up to 4.
        weight_perturbation: as in SAAT's update.
        **more: further keyword arguments of `make_inner_attack`.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are "loss", "adversarial_loss" and
        "drift_loss". Labels of the batch are not looked at.

    Raises:
        ValueError: if a name is unknown or a number out of its range.

    Reference:
        Schlarmann et al., Robust CLIP: Unsupervised adversarial fine-tuning of vision embeddings,
        ICML 2024, for the loss; there of features, here of soft codes, with a bound on the drift.
    """
    del objective
    options.check_numbers(
        clean_weight=clean_weight, max_drift=max_drift, weight_perturbation=weight_perturbation
    )
    attack = make_inner_attack(
        model,
        targeted=False,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        attack_mode=attack_mode,
        random_start=random_start,
        **more,
    )

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        teacher = state.defense
        if not isinstance(teacher, Teacher):
            raise ValueError("this defence needs a teacher in its state; see init_teacher_state")
        training = training_pass(seed, state.step, batch, axis_name)
        taught = teach(model, teacher, batch["image"])
        adversarial, (attacked_stats, _) = attack(
            state.params, state.batch_stats, objectives.State(), taught, batch, training, state.step
        )

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            losses, batch_stats = [], attacked_stats
            for number, images in enumerate((adversarial, batch["image"])):
                keys = next_pass(training, num_steps + 1 + number)
                soft_codes, batch_stats = networks.forward(model, params, batch_stats, images, keys)
                losses.append(apart(soft_codes, taught))
            loss, metrics = weighted_loss(
                batch,
                axis_name,
                adversarial_loss=(losses[0], 1.0),
                drift_loss=(jax.nn.relu(losses[1] - max_drift), clean_weight),
            )
            kept = dataclasses.replace(state.objective, params=objective_params)
            return loss, (metrics, kept, batch_stats)

        state, metrics, batch_stats = descend(
            loss_fn, state, optimizer, axis_name, weight_perturbation=weight_perturbation
        )
        return dataclasses.replace(state, batch_stats=batch_stats), metrics

    return update
