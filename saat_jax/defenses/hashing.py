"""Plain hashing training, from which every defence goes on."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from saat_jax import networks, objectives
from saat_jax.defenses.common import (
    Batch,
    Metrics,
    TrainState,
    UpdateFn,
    all_rows,
    apply_gradients,
    loss_context,
    training_pass,
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
        count = lax.psum(jnp.sum(batch["mask"]), axis_name)
        counted, alpha = objectives.next_forward(state.objective)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            soft_codes, batch_stats = networks.forward(
                model, params, state.batch_stats, batch["image"], training, alpha
            )
            rows = all_rows(axis_name, soft_codes, batch["label"], batch["index"], batch["mask"])
            new = dataclasses.replace(counted, params=objective_params)
            new = objectives.update_state(new, *rows)
            losses = objective.loss(new, soft_codes, batch["label"], context)
            return jnp.sum(losses * batch["mask"]) / count, (batch_stats, new)

        (loss, (batch_stats, new)), gradients = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(state.params, state.objective.params)
        loss, gradients = lax.psum((loss, gradients), axis_name)
        state = apply_gradients(state, optimizer, gradients, new, batch_stats=batch_stats)
        return state, {"loss": loss}

    return update
