"""ATRDH, the defence of THA: adversarial images aim at the prototype codes of random labels."""

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

from saat_jax import hamming, networks, objectives, options, prototypes
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
    training_pass,
    weighted_loss,
)

Array = jax.Array


@flax.struct.dataclass
class AtrdhState:
    """What ATRDH remembers besides network and objective.

    Attributes:
        prototypes: PrototypeNet in training. Its bank holds the latest codes in {-1, +1} and
            the labels of all training images.
        soft_codes: `[bank_size, num_bits]` the images' latest soft codes; zero where an image
            has not been seen.
        target_labels: `[num_labels, num_classes]` the distinct labels to draw from; constant.
    """

    prototypes: prototypes.PrototypeState
    soft_codes: Array
    target_labels: Array


def init_atrdh_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    objective: objectives.State,
    code_bank: objectives.CodeBank,
    database_labels: np.ndarray,
    rng: Array,
    *,
    hidden_width: int = 4096,
) -> TrainState:
    """The state before the first update of ATRDH.

    Args:
        variables: of the pretrained network.
        optimizer: an optax transformation, of the network and of PrototypeNet.
        objective: what the objective remembers of pretraining; its bank stays, its tanh scale
            goes back to 1.
        code_bank: codes in {-1, +1} and labels of the training images.
        database_labels: `[num_database, num_classes]` multi-hot, with repetitions.
        rng: key of PrototypeNet's initial parameters.
        hidden_width: units of PrototypeNet's first hidden layer; smaller than published for
            toy data.
    """
    num_bits, num_classes = code_bank.codes.shape[1], code_bank.labels.shape[1]
    net = prototypes.create_prototype_net(
        "tha", num_bits=num_bits, num_classes=num_classes, hidden_width=hidden_width
    )
    if objective.scale is not None:
        objective = dataclasses.replace(objective, scale=jnp.ones_like(objective.scale))
    defense = AtrdhState(
        prototypes.init_prototype_state(net, optimizer, code_bank, rng),
        jnp.zeros_like(code_bank.codes),
        jnp.asarray(np.unique(np.asarray(database_labels, np.float32), axis=0)),
    )
    return dataclasses.replace(init_state(variables, optimizer, objective), defense=defense)


def _prototype_net(state: prototypes.PrototypeState) -> prototypes.ThaPrototypeNet:
    """The network that has the parameters of a state."""
    width = {layer: leaves["bias"].size for layer, leaves in dict(state.params).items()}
    return prototypes.create_prototype_net(
        "tha",
        num_bits=width["code"],
        num_classes=state.bank.labels.shape[1],
        hidden_width=width["hidden"],
        semantics_width=width["semantics"],
    )


def make_atrdh_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    epsilon: float,
    step_size: float,
    num_steps: int,
    adversarial_weight: float = 2.0,
    softplus: bool = True,
    attack_mode: AttackMode = "train",
    random_start: bool = True,
    weight_perturbation: float = 0.0,
    **more: Any,
) -> UpdateFn:
    """Builds the update of ATRDH.

    A forward pass of the benign images, whose codes are written to the banks on every device;
    for each image a random target label, its prototype code, and one step of PrototypeNet on
    these labels; the inner attack towards the prototype codes of before that step; a forward
    pass of the adversarial images, whose codes the second term likens to the benign ones of
    images that share a label, as DPH does; and the loss
    `objective + adversarial_weight * adversarial`.

    Args:
        model: a hash network.
        objective: from `objectives.create_objective`. Its tanh scale stays at 1, unless
            `objective.scale_quirk` asks for what the released code does: every pass in
            training mode is counted, those of the attack too, and the scale grows.
        optimizer: an optax transformation, of the network and, with a state of its own, of
            PrototypeNet; released with Adam, betas 0.5 and 0.999.
        seed: of target labels, random starts, dropout and the objective's noise.
        epsilon: radius of the inner attack in units of [0, 1]; 8 / 255 as released.
        step_size: its step, in the same units; 2 / 255.
        num_steps: its number of steps; 7.
        adversarial_weight: 2 as released with SAAT, 1 as released with THA.
        softplus: of `prototypes.circle_loss`; True with SAAT, False with THA.
        attack_mode: "train" as released: the inner attack runs with dropout and batch
            statistics, and feeds the running statistics. "eval" uses the latter.
        random_start: as in SAAT's update.
        weight_perturbation: as in SAAT's update.
        **more: further keyword arguments of `make_inner_attack`.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are "loss", its terms
        "objective_loss" and "adversarial_loss", and PrototypeNet's "prototype_loss".

    Raises:
        ValueError: if a name is unknown or a size negative.

    Reference:
        Wang et al., Targeted attack and defense for deep hashing, SIGIR 2021.
    """
    options.check_numbers(
        adversarial_weight=adversarial_weight, weight_perturbation=weight_perturbation
    )
    attack = make_inner_attack(
        model,
        targeted=True,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        attack_mode=attack_mode,
        random_start=random_start,
        **more,
    )

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        before = state.defense
        if before is None:
            raise ValueError("ATRDH needs its own part in the state; see init_atrdh_state")
        training = training_pass(seed, state.step, batch, axis_name)
        context = loss_context(seed, state.step, batch, axis_name)
        first, second, draw = (next_pass(training, num_steps + number) for number in (1, 2, 3))
        target_labels = batch.get("target_label")
        if target_labels is None:
            target_labels = _draw(draw.keys, before.target_labels)
        net = _prototype_net(before.prototypes)
        target_codes = prototypes.prototype_codes(net, before.prototypes.params, target_labels)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            new = dataclasses.replace(state.objective, params=objective_params)
            counted = objectives.State()
            if objective.scale_quirk:
                counted = dataclasses.replace(counted, forwards=new.forwards, scale=new.scale)
            counted, alpha = objectives.next_forward(counted)
            soft_codes, batch_stats = networks.forward(
                model, params, state.batch_stats, batch["image"], first, alpha
            )
            # Constants, or the whole attack would be differentiated.
            fixed = lax.stop_gradient((params, batch_stats))
            adversarial, (batch_stats, counted) = attack(
                *fixed, counted, target_codes, batch, training, state.step
            )
            counted, alpha = objectives.next_forward(counted)
            adversarial_codes, batch_stats = networks.forward(
                model, params, batch_stats, adversarial, second, alpha
            )
            all_codes, labels, index, mask = all_rows(
                axis_name, soft_codes, batch["label"], batch["index"], batch["mask"]
            )
            old = before.prototypes.bank
            written = labels, index
            bank = objectives.update_bank(old, hamming.binarize(all_codes), *written)
            soft_bank = objectives.CodeBank(before.soft_codes, old.labels)
            soft_bank = objectives.update_bank(soft_bank, all_codes, *written)
            if objective.scale_quirk:
                new = dataclasses.replace(new, forwards=counted.forwards, scale=counted.scale)
            new = objectives.update_state(new, all_codes, labels, index, mask)
            alike = objectives.dph(adversarial_codes, batch["label"], soft_bank)
            loss, metrics = weighted_loss(
                batch,
                axis_name,
                objective_loss=(objective.loss(new, soft_codes, batch["label"], context), 1),
                adversarial_loss=(alike, adversarial_weight),
            )
            return loss, (metrics, new, (batch_stats, bank, soft_bank.codes))

        state, metrics, (batch_stats, bank, soft_codes) = descend(
            loss_fn, state, optimizer, axis_name, weight_perturbation=weight_perturbation
        )
        # As good as before the attack, which saw the prototypes of before in any case.
        train_prototypes = prototypes.make_prototype_update(
            net, optimizer, pairs="circle", softplus=softplus
        )
        prototype_state, prototype_metrics = train_prototypes(
            dataclasses.replace(before.prototypes, bank=bank),
            {"label": target_labels, "mask": batch["mask"]},
            axis_name=axis_name,
        )
        defense = AtrdhState(prototype_state, soft_codes, before.target_labels)
        metrics["prototype_loss"] = prototype_metrics["loss"]
        return dataclasses.replace(state, batch_stats=batch_stats, defense=defense), metrics

    return update


def _draw(keys: Array, labels: Array) -> Array:
    """Draws one of some label vectors by each key. `[rows, num_classes]`"""
    return labels[jax.vmap(lambda key: jax.random.randint(key, (), 0, len(labels)))(keys)]
