"""CgAT's adversarial training: SAAT's minimax update around centre codes."""

from typing import Any, Literal

import flax.linen as nn
import jax
import optax

from saat_jax import mainstay, objectives, options
from saat_jax.defenses.common import AttackMode, UpdateFn
from saat_jax.defenses.saat import make_minimax_update

Array = jax.Array


def make_cgat_update(
    model: nn.Module,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    epsilon: float,
    step_size: float,
    num_steps: int,
    adversarial_weight: float = 1.0,
    bank: Literal["aliased", "sign"] = "aliased",
    attack_mode: AttackMode = "train",
    random_start: bool = True,
    ties: mainstay.Ties = "positive",
    **more: Any,
) -> UpdateFn:
    """Builds the update of centre-guided adversarial training.

    SAAT's with other anchors, the centre codes, and a quantisation of weight zero. As released
    it sees randomly cropped and flipped images, and its first code bank comes from such images
    and a network in training mode: the caller sees to both (a launch's `augment`, `first_bank`).

    Args:
        model: a hash network.
        objective: from `objectives.create_objective`; its tanh scale as in SAAT's update.
        optimizer: an optax transformation.
        seed: of random starts, dropout and the objective's noise.
        epsilon: radius of the inner attack in units of [0, 1]; 8 / 255 as released.
        step_size: its step, in the same units; 2 / 255.
        num_steps: its number of steps; 7.
        adversarial_weight: of the agreement with the centre codes.
        bank: "aliased" as released: the code bank takes soft codes, of which the centre codes
            of the loss are made already. "sign" takes codes.
        attack_mode: as in SAAT's update.
        random_start: as in SAAT's update.
        ties: of `mainstay.center_codes`; "zero" as released.
        **more: as in SAAT's update.

    Returns:
        `update(state, batch, *, axis_name)`; its metrics are those of SAAT's.

    Raises:
        ValueError: if a name is unknown or a size negative.

    Reference:
        Wang et al., CgAT: Center-guided adversarial training for deep hashing-based retrieval,
        WWW 2023.
    """
    options.check_word("bank", bank, ("aliased", "sign"))
    mainstay.check_options(ties=ties)

    def anchors(labels: Array, code_bank: objectives.CodeBank) -> Array:
        return mainstay.center_codes(labels, code_bank.codes, code_bank.labels, ties=ties)

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
        quantization_weight=0.0,
        quantization="mean",
        bank="soft" if bank == "aliased" else "sign",
        attack_mode=attack_mode,
        random_start=random_start,
        **more,
    )
