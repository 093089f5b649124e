"""Attacks on a hash encoder: images an eye cannot tell apart, codes far apart.

An attack is called `attack(encode_fn, variables, images, target_codes, rng, *, targeted, ...)`. It
is handed `encode_fn(variables, images, alpha)`, which returns soft codes `tanh(alpha * f(x))`, and
never sees a network. Images are `[batch, height, width, channels]` float32 in [0, 1]; `epsilon`
and `step_size` are in the same units. A non-targeted attack drives the code away from
`target_codes`, a targeted one towards them.
"""

from saat_jax.attacks.code_losses import CODE_LOSSES as CODE_LOSSES
from saat_jax.attacks.code_losses import alpha_schedule as alpha_schedule
from saat_jax.attacks.code_losses import code_loss as code_loss
from saat_jax.attacks.code_losses import focused_loss as focused_loss
from saat_jax.attacks.code_losses import mean_loss as mean_loss
from saat_jax.attacks.descent import bim as bim
from saat_jax.attacks.descent import check_direction as check_direction
from saat_jax.attacks.descent import fgsm as fgsm
from saat_jax.attacks.descent import noise as noise
from saat_jax.attacks.descent import pgd as pgd
from saat_jax.attacks.descent import project as project
from saat_jax.attacks.descent import row_keys as row_keys
from saat_jax.attacks.descent import sign_descent as sign_descent
from saat_jax.attacks.descent import uniform_noise as uniform_noise
from saat_jax.attacks.momentum import di_fgsm as di_fgsm
from saat_jax.attacks.momentum import ni_fgsm as ni_fgsm
from saat_jax.attacks.momentum import si_ni_fgsm as si_ni_fgsm
from saat_jax.attacks.momentum import vmi_fgsm as vmi_fgsm
from saat_jax.attacks.optimized import hag as hag
from saat_jax.attacks.optimized import sdha as sdha
from saat_jax.attacks.target_labels import select_target_labels as select_target_labels
from saat_jax.attacks.target_labels import target_candidates as target_candidates
