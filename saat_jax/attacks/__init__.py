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
)
from saat_jax.attacks.descent import (
    bim,
    check_direction,
    descend,
    fgsm,
    image_gradient,
    noise,
    pgd,
    project,
    row_keys,
    sign_descent,
    uniform_noise,
)
from saat_jax.attacks.momentum import (
    di_fgsm,
    look_ahead,
    momentum_descent,
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
    select_target_labels,
    target_candidates,
)

__all__ = [
    "CODE_LOSSES",
    "alpha_schedule",
    "bim",
    "check_direction",
    "code_loss",
    "descend",
    "di_fgsm",
    "fgsm",
    "focused_loss",
    "hag",
    "hag_loss",
    "hag_mask",
    "image_gradient",
    "look_ahead",
    "mean_loss",
    "momentum_descent",
    "ni_fgsm",
    "noise",
    "pgd",
    "pooled_loss",
    "project",
    "resize_and_pad",
    "row_keys",
    "sdha",
    "sdha_loss",
    "sdha_surrogate",
    "select_target_labels",
    "si_ni_fgsm",
    "sign_descent",
    "target_candidates",
    "transform_input",
    "tune_variance",
    "uniform_noise",
    "vmi_fgsm",
]
