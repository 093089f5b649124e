"""Plain hashing training, from which every defence goes on."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import optax

from saat_jax import networks, objectives
from saat_jax.defenses.common import (
    Batch,
    Metrics,
    TrainState,
    UpdateFn,
    all_rows,
    descend,
    loss_context,
    training_pass,
    weighted_loss,
)

Array = jax.Array


def make_hashing_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
) -> UpdateFn:
    """Builds the update of plain hashing training.

    The objective's state takes in the batch's codes before the loss is taken.

    Args:
        model: a hash network.
        objective: from `objectives.create_objective`.
        optimizer: an optax transformation.
        seed: of dropout and of the objective's noise.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are "loss".

    Reference:
        The training released with SAAT and ProS-GAN.
    """

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        training = training_pass(seed, state.step, batch, axis_name)
        context = loss_context(seed, state.step, batch, axis_name)
        counted, alpha = objectives.next_forward(state.objective)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            soft_codes, batch_stats = networks.forward(
                model, params, state.batch_stats, batch["image"], training, alpha
            )
            rows = all_rows(axis_name, soft_codes, batch["label"], batch["index"], batch["mask"])
            new = dataclasses.replace(counted, params=objective_params)
            new = objectives.update_state(new, *rows)
            losses = objective.loss(new, soft_codes, batch["label"], context)
            loss, metrics = weighted_loss(batch, axis_name, objective_loss=(losses, 1))
            return loss, ({"loss": metrics["loss"]}, new, batch_stats)

        state, metrics, batch_stats = descend(loss_fn, state, optimizer, axis_name)
        return dataclasses.replace(state, batch_stats=batch_stats), metrics

    return update
