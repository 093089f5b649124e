"""demo"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is "" or "smoke"."""
    if variant not in ("", "smoke"):
        raise ValueError(f'unknown variant {variant!r}; expected "" or "smoke"')
    config = common.get_base()
    config.data.image_size = 32
    config.data.num_query = 400
    config.data.num_database = 2000
    config.data.num_train = 1000
    config.data.contrast = 1.0
    config.model.name = "convnet"
    config.model.widths = (32, 64, 128, 128)
    config.pretrain.num_epochs = 12
    config.pretrain.schedule = dict(name="cosine", learning_rate=0.1)
    config.pretrain.evaluate_every = 3
    config.defense.num_epochs = 10
    config.defense.evaluate_every = 2
    if variant == "smoke":
        config.data.num_query = 40
        config.data.num_database = 160
        config.data.num_train = 96
        config.model.widths = (8, 8, 16, 16)
        config.pretrain.num_epochs = 1
        config.defense.num_epochs = 1
        for attack in config.attacks.values():
            attack.num_steps = 3
    return config
