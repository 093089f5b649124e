"""Training updates: plain hashing, and SAAT's adversarial training.

Each `make_*_update` builds one pure per-device function
`update(state, batch, *, axis_name) -> (state, metrics)`, which `parallel.pmap_update` maps over
devices. A batch is a dict of the device's rows:

    image  [rows, height, width, channels] float32 in [0, 1]
    label  [rows, num_classes] multi-hot float
    index  [rows] int, the image's row in the training set; the set's size for padding
    mask   [rows] float, 1 for real rows and 0 for padding, which then has no influence at all
    start  optional, like image: where SAAT's inner attack begins instead of at random

Losses are local shares of global means: each device sums over its rows, divides by the number
of real rows on all devices, and gradients are added up over devices.
"""

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

from saat_jax import attacks, hamming, mainstay, networks, objectives

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes, and nothing else.

    Attributes:
        step: int32 number of updates done.
        params: the network's parameters.
        batch_stats: its running statistics; empty if it has none.
        opt_state: the optimizer's state, over the parameters of network and objective.
        objective: what the objective remembers.
        code_bank: SAAT's bank of codes for mainstay votes; None in plain training.
    """

    step: Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: chex.ArrayTree
    objective: objectives.State
    code_bank: objectives.CodeBank | None = None


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


def _training(seed: int, step: Array, batch: Batch, axis_name: str | None) -> networks.Training:
    """Keys that depend on the seed, the step and the image alone, so that any restart and any
    number of devices draws the same.
    """
    rng = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(batch["index"])
    return networks.Training(keys, batch["mask"], axis_name)


def _next_pass(training: networks.Training, number: int | Array) -> networks.Training:
    """The same rows with fresh keys, for another forward pass of the same step."""
    fold = jax.vmap(lambda key: jax.random.fold_in(key, number))
    return dataclasses.replace(training, keys=fold(training.keys))


def _context(seed: int, step: Array, batch: Batch, axis_name: str) -> objectives.Context:
    """What the objective must know of the step; its key is that of no image."""
    # The complement: a number that no step folds in.
    rng = jax.random.fold_in(jax.random.key(seed), ~step)
    return objectives.Context(batch["mask"], rng, axis_name)


def _all_rows(axis_name: str, *arrays: Array) -> tuple[Array, ...]:
    """Gathers the rows of all devices, in the order of the global batch."""
    return lax.all_gather(lax.stop_gradient(arrays), axis_name, tiled=True)


def _apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: chex.ArrayTree,
    objective: objectives.State,
    **changes: Any,
) -> TrainState:
    """The next state; gradients are those of the network's and of the objective's parameters."""
    before = state.params, state.objective.params
    updates, opt_state = optimizer.update(gradients, state.opt_state, before)
    params, objective_params = optax.apply_updates(before, updates)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        objective=dataclasses.replace(objective, params=objective_params),
        **changes,
    )


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
        SPEC 3.1.
    """

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        training = _training(seed, state.step, batch, axis_name)
        context = _context(seed, state.step, batch, axis_name)
        count = lax.psum(jnp.sum(batch["mask"]), axis_name)
        counted, alpha = objectives.next_forward(state.objective)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            soft_codes, batch_stats = networks.forward(
                model, params, state.batch_stats, batch["image"], training, alpha
            )
            rows = _all_rows(axis_name, soft_codes, batch["label"], batch["index"], batch["mask"])
            new = dataclasses.replace(counted, params=objective_params)
            new = objectives.update_state(new, *rows)
            losses = objective.loss(new, soft_codes, batch["label"], context)
            return jnp.sum(losses * batch["mask"]) / count, (batch_stats, new)

        (loss, (batch_stats, new)), gradients = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(state.params, state.objective.params)
        loss, gradients = lax.psum((loss, gradients), axis_name)
        state = _apply_gradients(state, optimizer, gradients, new, batch_stats=batch_stats)
        return state, {"loss": loss}

    return update


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
    bank: Literal["aliased", "sign"] = "aliased",
    attack_mode: Literal["train", "eval"] = "train",
    loss: str = "mean",
    weighting: mainstay.Weighting = "similarity",
    ties: mainstay.Ties = "positive",
) -> UpdateFn:
    """Builds the minimax update of semantic-aware adversarial training.

    Mainstay codes of the batch; the inner attack away from them; a forward pass of the
    adversarial and one of the benign images; the benign codes written to the code bank on
    every device; mainstay codes again; and the loss
    `objective + adversarial_weight * adversarial + quantization_weight * quantization`.

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
        bank: "aliased" as released: the objective's soft codes overwrite the rows of the
            code bank after each step, if it has a bank. "sign" keeps codes there, as the
            paper means.
        attack_mode: "train" as released: the inner attack runs with dropout and batch
            statistics, and feeds the running statistics. "eval" uses the latter.
        loss: the inner attack's code loss.
        weighting: of `mainstay.mainstay_votes`.
        ties: of `mainstay.mainstay_codes`; "zero" as released.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are "loss" and the three terms
        "objective_loss", "adversarial_loss", "quantization_loss".

    Raises:
        ValueError: if a name is unknown or a size negative.

    Reference:
        SAAT, Algorithm 1 and Eq. 18 to 20; SPEC 6.1.
    """
    if bank not in ("aliased", "sign"):
        raise ValueError(f'bank must be "aliased" or "sign", got {bank!r}')
    if attack_mode not in ("train", "eval"):
        raise ValueError(f'attack_mode must be "train" or "eval", got {attack_mode!r}')
    if epsilon < 0 or num_steps < 0:
        raise ValueError(
            f"epsilon and num_steps must not be negative, got {epsilon:.6g} and {num_steps}"
        )
    attack_loss = attacks.code_loss(loss, targeted=False)
    mainstay.check_options(weighting, ties)
    aliased = bank == "aliased"

    def anchors(labels: Array, code_bank: objectives.CodeBank) -> Array:
        return mainstay.mainstay_codes(
            labels, code_bank.codes, code_bank.labels, weighting=weighting, ties=ties
        )

    def attack(
        state: TrainState, target_codes: Array, batch: Batch, training: networks.Training
    ) -> tuple[Array, chex.ArrayTree]:

        def loss_fn(images: Array, step: Array, batch_stats: Any) -> tuple[Array, Any]:
            mode = _next_pass(training, step) if attack_mode == "train" else None
            codes, batch_stats = networks.forward(model, state.params, batch_stats, images, mode)
            return jnp.sum(attack_loss(codes, target_codes) * batch["mask"]), batch_stats

        start = batch.get("start")
        if start is None:
            noise = attacks.uniform_noise(
                _next_pass(training, num_steps).keys, batch["image"], epsilon=epsilon
            )
            start = batch["image"] + noise
        return attacks.sign_descent(
            loss_fn,
            batch["image"],
            start,
            epsilon=epsilon,
            step_size=step_size,
            num_steps=num_steps,
            carry=state.batch_stats,
        )

    def update(state: TrainState, batch: Batch, *, axis_name: str) -> tuple[TrainState, Metrics]:
        old_bank = state.code_bank
        if old_bank is None:
            raise ValueError("SAAT training needs a code_bank in its state; see init_state")
        training = _training(seed, state.step, batch, axis_name)
        context = _context(seed, state.step, batch, axis_name)
        count = lax.psum(jnp.sum(batch["mask"]), axis_name)
        target_codes = anchors(batch["label"], old_bank)
        adversarial, attacked_stats = attack(state, target_codes, batch, training)
        counted = state.objective
        adversarial_alpha: Array | float = 1.0
        benign_alpha: Array | float = 1.0
        if objective.scale_quirk:
            counted = dataclasses.replace(counted, scale=jnp.ones_like(counted.scale))
            counted, adversarial_alpha = objectives.next_forward(counted)
            counted, benign_alpha = objectives.next_forward(counted)

        def loss_fn(params: chex.ArrayTree, objective_params: Any) -> tuple[Array, Any]:
            first, second = (_next_pass(training, num_steps + number) for number in (1, 2))
            adversarial_codes, batch_stats = networks.forward(
                model, params, attacked_stats, adversarial, first, adversarial_alpha
            )
            soft_codes, batch_stats = networks.forward(
                model, params, batch_stats, batch["image"], second, benign_alpha
            )
            all_codes, labels, index, mask = _all_rows(
                axis_name, soft_codes, batch["label"], batch["index"], batch["mask"]
            )
            code_bank = objectives.update_bank(old_bank, hamming.binarize(all_codes), labels, index)
            new = dataclasses.replace(counted, params=objective_params)
            new = objectives.update_state(new, all_codes, labels, index, mask)
            terms = {
                "objective_loss": objective.loss(new, soft_codes, batch["label"], context),
                "adversarial_loss": -attacks.mean_loss(
                    adversarial_codes, anchors(batch["label"], code_bank), targeted=False
                ),
                "quantization_loss": objectives.quantization(adversarial_codes),
            }
            metrics = {k: jnp.sum(v * batch["mask"]) / count for k, v in terms.items()}
            metrics["loss"] = (
                metrics["objective_loss"]
                + adversarial_weight * metrics["adversarial_loss"]
                + quantization_weight * metrics["quantization_loss"]
            )
            code_bank = new.bank if aliased and new.bank is not None else code_bank
            return metrics["loss"], (metrics, batch_stats, new, code_bank)

        gradients, (metrics, batch_stats, new, code_bank) = jax.grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(state.params, state.objective.params)
        metrics, gradients = lax.psum((metrics, gradients), axis_name)
        state = _apply_gradients(
            state, optimizer, gradients, new, batch_stats=batch_stats, code_bank=code_bank
        )
        return state, metrics

    return update


# The defences a config may name.
DEFENSES: dict[str, Callable[..., UpdateFn]] = {"saat": make_saat_update}
