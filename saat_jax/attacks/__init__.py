"""Attacks on a hash encoder: images that differ little, codes that differ much.

An attack is called `attack(encode_fn, variables, images, target_codes, rng, *, targeted, ...)`. It
is handed `encode_fn(variables, images, alpha)`, which returns soft codes `tanh(alpha * f(x))`, and
never sees a network. Images are `[batch, height, width, channels]` float32 in [0, 1]; `epsilon`
and `step_size` are in the same units. A non-targeted attack drives the code away from
`target_codes`, a targeted one towards them.
"""

from saat_jax.attacks.auto_pgd import (
    Measured,
    auto_pgd,
)
from saat_jax.attacks.code_losses import (
    CODE_LOSSES,
    alpha_schedule,
    code_loss,
    focused_loss,
    mean_loss,
    pooled_loss,
    target_loss,
)
from saat_jax.attacks.criteria import (
    Criterion,
    Displace,
    Ranking,
    Reach,
    best_codes,
    rank,
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
from saat_jax.attacks.search import (
    SEARCH_LOSSES,
    Aim,
    Found,
    LogitScale,
    auto_pgd_search,
    flip_weights,
    hinge_loss,
    logits_of,
    measure_logits,
    soft_gain_loss,
    square_search,
    weighted_loss,
)
from saat_jax.attacks.square import square
from saat_jax.attacks.target_labels import (
    PROTOCOLS,
    select_target_labels,
    target_candidates,
)

__all__ = [
    "CODE_LOSSES",
    "PROTOCOLS",
    "SEARCH_LOSSES",
    "STEP_RULES",
    "Aim",
    "Criterion",
    "Descent",
    "Displace",
    "Found",
    "LogitScale",
    "Measured",
    "MomentumState",
    "Ranking",
    "Reach",
    "alpha_schedule",
    "auto_pgd",
    "auto_pgd_search",
    "best_codes",
    "bim",
    "checked_images",
    "code_loss",
    "descend",
    "di_fgsm",
    "fgsm",
    "flip_weights",
    "focused_loss",
    "hag",
    "hag_loss",
    "hag_mask",
    "hinge_loss",
    "logits_of",
    "look_ahead",
    "mean_loss",
    "measure_logits",
    "minimize",
    "momentum_sign",
    "ni_fgsm",
    "noise",
    "pgd",
    "plain",
    "pooled_loss",
    "project",
    "rank",
    "resize_and_pad",
    "row_keys",
    "sdha",
    "sdha_loss",
    "sdha_surrogate",
    "select_target_labels",
    "si_ni_fgsm",
    "soft_gain_loss",
    "square",
    "square_search",
    "target_candidates",
    "target_loss",
    "transform_input",
    "tune_variance",
    "uniform_noise",
    "vmi_fgsm",
    "weighted_loss",
]
