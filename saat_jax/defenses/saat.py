"""SAAT's adversarial training, and the minimax update that it shares with CgAT."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from saat_jax import attacks, hamming, mainstay, networks, objectives, options
from saat_jax.defenses.common import (
    AttackMode,
    Batch,
    Metrics,
    TrainState,
    UpdateFn,
    all_rows,
    descend,
    init_state,
    loss_context,
    make_inner_attack,
    next_pass,
    ramp,
    training_pass,
    weighted_loss,
)
from saat_jax.defenses.teacher import apart, make_teacher, teach

Array = jax.Array


def init_minimax_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    objective: objectives.State,
    code_bank: objectives.CodeBank,
    database_labels: np.ndarray,
    rng: Array,
    *,
    teacher: bool = False,
) -> TrainState:
    """The state before the first update of SAAT or CgAT.

    Args:
        variables: of the pretrained network.
        optimizer: an optax transformation.
        objective: what the objective remembers of pretraining; its bank, if it has one, is set
            to the code bank.
        code_bank: codes in {-1, +1} and labels of the training images.
        database_labels: not used.
        rng: not used.
        teacher: whether the pretrained network stays as a teacher, which neither paper has.
    """
    del database_labels, rng
    if objective.bank is not None:
        objective = dataclasses.replace(objective, bank=code_bank)
    state = init_state(variables, optimizer, objective, code_bank)
    return dataclasses.replace(state, defense=make_teacher(variables) if teacher else None)


def make_minimax_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    anchors: Callable[[Array, objectives.CodeBank], Array],
    *,
    seed: int,
    num_steps: int,
    adversarial_weight: float,
    quantization_weight: float,
    quantization: Literal["mean", "sum"],
    bank: Literal["aliased", "soft", "sign"],
    anchor_codes: Literal["refreshed", "once"] = "refreshed",
    objective_weight: float = 0.0,
    teacher_weight: float = 1.0,
    ramp_steps: int = 0,
    weight_perturbation: float = 0.0,
    **attack_options: Any,
) -> UpdateFn:
    """Builds the update of training against an attack that flees anchor codes.

    Anchor codes of the batch; the inner attack away from them; a forward pass of the
    adversarial and one of the benign images; the benign codes written to the code bank on
    every device; anchor codes again; and the loss
    `objective + adversarial_weight * adversarial + quantization_weight * quantization`.

    Args:
        model: a hash network.
        objective: from `objectives.create_objective`.
        optimizer: an optax transformation.
        anchors: maps (`[batch, num_classes]` labels, code bank) to `[batch, num_bits]` codes.
        seed: of random starts, dropout and the objective's noise.
        num_steps: number of steps of the inner attack.
        adversarial_weight: of the agreement of adversarial and anchor codes, negated.
        quantization_weight: of the adversarial codes' quantisation.
        quantization: its "mean" or "sum" over the bits.
        bank: what the code bank is given: "sign" codes; "soft" codes; or codes, which after
            the step the objective's soft codes overwrite if it has a bank, "aliased".
        anchor_codes: of the loss, see `make_saat_update`.
        objective_weight: of the objective of the adversarial codes.
        teacher_weight: of the mean squared difference of adversarial codes from those that the
            state's teacher, if it has one, gives the benign images.
        ramp_steps: updates within which the weights of all adversarial terms grow to their size.
        weight_perturbation: of `common.descend`.
        **attack_options: further keyword arguments of `make_inner_attack`.
    """
    options.check_numbers(
        adversarial_weight=adversarial_weight,
        quantization_weight=quantization_weight,
        objective_weight=objective_weight,
        teacher_weight=teacher_weight,
        ramp_steps=ramp_steps,
        weight_perturbation=weight_perturbation,
    )
    attack = make_inner_attack(model, targeted=False, num_steps=num_steps, **attack_options)

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        old_bank = state.code_bank
        if old_bank is None:
            raise ValueError("hardening needs a code_bank in its state; see init_minimax_state")
        training = training_pass(seed, state.step, batch, axis_name)
        context = loss_context(seed, state.step, batch, axis_name)
        target_codes = anchors(batch["label"], old_bank)
        adversarial, (attacked_stats, _) = attack(
            state.params,
            state.batch_stats,
            objectives.State(),
            target_codes,
            batch,
            training,
            state.step,
        )
        taught = None if state.defense is None else teach(model, state.defense, batch["image"])
        grown = ramp(state.step, ramp_steps)
        counted, alphas = _count_passes(objective, state.objective)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            codes, batch_stats = [], attacked_stats
            for number, images in enumerate((adversarial, batch["image"])):
                keys = next_pass(training, num_steps + 1 + number)
                soft_codes, batch_stats = networks.forward(
                    model, params, batch_stats, images, keys, alphas[number]
                )
                codes.append(soft_codes)
            adversarial_codes, soft_codes = codes
            all_codes, labels, index, mask = all_rows(
                axis_name, soft_codes, batch["label"], batch["index"], batch["mask"]
            )
            written = all_codes if bank == "soft" else hamming.binarize(all_codes)
            code_bank = objectives.update_bank(old_bank, written, labels, index)
            new = dataclasses.replace(counted, params=objective_params)
            new = objectives.update_state(new, all_codes, labels, index, mask)
            loss_codes = target_codes
            if anchor_codes == "refreshed":
                loss_codes = anchors(batch["label"], code_bank)
            agreement = attacks.mean_loss(adversarial_codes, loss_codes, targeted=False)
            rough = objectives.quantization(adversarial_codes)
            rough *= adversarial_codes.shape[1] if quantization == "sum" else 1
            terms: dict[str, tuple[Array, Any]] = dict(
                objective_loss=(objective.loss(new, soft_codes, batch["label"], context), 1),
                adversarial_loss=(-agreement, adversarial_weight * grown),
                quantization_loss=(rough, quantization_weight * grown),
            )
            if objective_weight:
                attacked = objective.loss(new, adversarial_codes, batch["label"], context)
                terms["attacked_objective_loss"] = attacked, objective_weight * grown
            if taught is not None:
                terms["teacher_loss"] = apart(adversarial_codes, taught), teacher_weight * grown
            loss, metrics = weighted_loss(batch, axis_name, **terms)
            code_bank = new.bank if bank == "aliased" and new.bank is not None else code_bank
            return loss, (metrics, new, (batch_stats, code_bank))

        state, metrics, (batch_stats, code_bank) = descend(
            loss_fn, state, optimizer, axis_name, weight_perturbation=weight_perturbation
        )
        return dataclasses.replace(state, batch_stats=batch_stats, code_bank=code_bank), metrics

    return update


def _count_passes(
    objective: objectives.Objective, counted: objectives.State
) -> tuple[objectives.State, list[Array | float]]:
    """Counts the adversarial and the benign pass, if the objective asks for it, from a scale of 1.

    Returns:
        What the objective remembers then, and the tanh scale of each pass.
    """
    if not objective.scale_quirk:
        return counted, [1.0, 1.0]
    alphas: list[Array | float] = []
    counted = dataclasses.replace(counted, scale=jnp.ones_like(counted.scale))
    for _ in range(2):
        counted, alpha = objectives.next_forward(counted)
        alphas.append(alpha)
    return counted, alphas


def make_saat_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    epsilon: float,
    step_size: float,
    num_steps: int,
    adversarial_weight: float = 1.0,
    quantization_weight: float = 1e-4,
    quantization: Literal["mean", "sum"] = "mean",
    bank: Literal["aliased", "sign"] = "aliased",
    anchor_codes: Literal["refreshed", "once"] = "refreshed",
    attack_mode: AttackMode = "train",
    random_start: bool = True,
    loss: str = "mean",
    weighting: mainstay.Weighting = "similarity",
    ties: mainstay.Ties = "positive",
    **more: Any,
) -> UpdateFn:
    """Builds the minimax update of semantic-aware adversarial training.

    Its steps are those of `make_minimax_update`, with mainstay codes as anchors.

    Args:
        model: a hash network.
        objective: from `objectives.create_objective`. Its tanh scale stays at 1, unless
            `objective.scale_quirk` asks for what the released code does: the attack sets it
            to 1, then two counted passes (adversarial, benign) may move it.
        optimizer: an optax transformation.
        seed: of random starts, dropout and the objective's noise.
        epsilon: radius of the inner attack in units of [0, 1].
        step_size: its step, in the same units.
        num_steps: its number of steps.
        adversarial_weight: lambda of the paper.
        quantization_weight: mu of the paper.
        quantization: "mean" over the bits as released, or "sum" as in Eq. 19.
        bank: "aliased" as released: the objective's soft codes overwrite the rows of the
            code bank after each step, if it has a bank. "sign" keeps codes there, as the
            paper means.
        anchor_codes: of the loss: those of the bank "refreshed" by the benign codes, as released;
            or the mainstay codes made "once" a step, which the attack flees, as the paper has it.
        attack_mode: "train" as released: the inner attack runs with dropout and batch
            statistics, and feeds the running statistics. "eval" uses the latter.
        random_start: whether the inner attack begins at a random point, as released, or at the
            images, as in Eq. 15.
        loss: the inner attack's code loss.
        weighting: of `mainstay.mainstay_votes`.
        ties: of `mainstay.mainstay_codes`; "zero" as released.
        **more: what neither paper has, of `make_minimax_update`: `objective_weight`,
            `teacher_weight`, `ramp_steps`, `weight_perturbation`; and of `make_inner_attack`:
            `direction`, `random_radius`, `warmup_steps`.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are "loss" and the terms
        "objective_loss", "adversarial_loss", "quantization_loss", and "attacked_objective_loss"
        and "teacher_loss" where there are such.

    Raises:
        ValueError: if a name is unknown or a size negative.

    Reference:
        SAAT, Algorithm 1 and Eq. 18 to 20.
    """
    options.check_word("bank", bank, ("aliased", "sign"))
    options.check_word("quantization", quantization, ("mean", "sum"))
    options.check_word("anchor_codes", anchor_codes, ("refreshed", "once"))
    mainstay.check_options(weighting=weighting, ties=ties)

    def anchors(labels: Array, code_bank: objectives.CodeBank) -> Array:
        return mainstay.mainstay_codes(
            labels, code_bank.codes, code_bank.labels, weighting=weighting, ties=ties
        )

    return make_minimax_update(
        model,
        objective,
        optimizer,
        anchors,
        seed=seed,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        adversarial_weight=adversarial_weight,
        quantization_weight=quantization_weight,
        quantization=quantization,
        bank=bank,
        anchor_codes=anchor_codes,
        attack_mode=attack_mode,
        random_start=random_start,
        loss=loss,
        **more,
    )
