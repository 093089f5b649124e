r"""The whole chain on the bundled digits: train, attack, harden, attack again. 32 bits.

    saat-jax --config demo --workdir runs/demo

The images need no download: real scans of digits, one to three on a canvas of 32 x 32 pixels.
Variant "smoke" is the same chain with a few images, one epoch and three attack steps.
"""

# figure: demo summary
# Run on 2 CPU cores (x86_64, Python 3.11, jax 0.10.2) in about 10 minutes. Hardening: attacked MAP
# (worst of 2) 20.8 % -> 54.0 % (skill above chance -0.18 -> 0.32), clean MAP 82.3 % -> 77.4 % (-4.9
# points). Base rate 32.7 %.
# /

import ml_collections

from configs import common

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("demo", variant, VARIANTS)
    config = common.get_base()
    config.data = dict(
        source="digits",
        image_size=32,
        num_query=300,
        num_database=2500,
        num_train=2000,
        # How far a digit stands off its background; 1 is 20 to 80 % of the grey scale.
        contrast=0.8,
    )
    config.model.name = "convnet"
    config.model.widths = (16, 32, 64, 128)
    config.pretrain.update(num_epochs=12, evaluate_every=4)
    config.defenses.hardened.update(num_epochs=8, evaluate_every=4)
    common.use_adam(config)
    config.evaluation.attack_suite = "cheap"
    if variant == "smoke":
        config.data.update(num_query=40, num_database=160, num_train=96)
        config.model.widths = (8, 8, 16, 16)
        config.pretrain.num_epochs = config.defenses.hardened.num_epochs = 1
        config.attacks.mainstay.num_steps = config.attacks.mainstay_targeted.num_steps = 3
        config.evaluation.attack_suite = ""
    return config
