"""Attacks on a hash encoder: images that differ little, codes that differ much.

An attack is called `attack(encode_fn, variables, images, target_codes, rng, *, targeted, ...)`. It
is handed `encode_fn(variables, images, alpha)`, which returns soft codes `tanh(alpha * f(x))`, and
never sees a network. Images are `[batch, height, width, channels]` float32 in [0, 1]; `epsilon`
and `step_size` are in the same units. A non-targeted attack drives the code away from
`target_codes`, a targeted one towards them.
"""

from saat_jax.attacks.code_losses import (
    CODE_LOSSES,
    alpha_schedule,
    code_loss,
    focused_loss,
    mean_loss,
    pooled_loss,
    target_loss,
)
from saat_jax.attacks.descent import (
    STEP_RULES,
    Descent,
    MomentumState,
    bim,
    checked_images,
    descend,
    fgsm,
    minimize,
    momentum_sign,
    noise,
    pgd,
    plain,
    project,
    row_keys,
    uniform_noise,
)
from saat_jax.attacks.momentum import (
    di_fgsm,
    look_ahead,
    ni_fgsm,
    resize_and_pad,
    si_ni_fgsm,
    transform_input,
    tune_variance,
    vmi_fgsm,
)
from saat_jax.attacks.optimized import (
    hag,
    hag_loss,
    hag_mask,
    sdha,
    sdha_loss,
    sdha_surrogate,
)
from saat_jax.attacks.target_labels import (
    PROTOCOLS,
    select_target_labels,
    target_candidates,
)

__all__ = [
    "CODE_LOSSES",
    "PROTOCOLS",
    "STEP_RULES",
    "Descent",
    "MomentumState",
    "alpha_schedule",
    "bim",
    "checked_images",
    "code_loss",
    "descend",
    "di_fgsm",
    "fgsm",
    "focused_loss",
    "hag",
    "hag_loss",
    "hag_mask",
    "look_ahead",
    "mean_loss",
    "minimize",
    "momentum_sign",
    "ni_fgsm",
    "noise",
    "pgd",
    "plain",
    "pooled_loss",
    "project",
    "resize_and_pad",
    "row_keys",
    "sdha",
    "sdha_loss",
    "sdha_surrogate",
    "select_target_labels",
    "si_ni_fgsm",
    "target_candidates",
    "target_loss",
    "transform_input",
    "tune_variance",
    "uniform_noise",
    "vmi_fgsm",
]
