r"""The whole chain on images named by list files: your own, or a set in the papers' format.

    saat-jax --config lists --workdir runs/mine --config.data.root=FOLDER
    saat-jax --config lists:small --workdir runs/mine \
        --config.data.root=FOLDER

FOLDER holds, for each split of train, test (the queries) and database, either SPLIT_img.txt and
SPLIT_label.txt, or SPLIT.txt with path and labels on a line (see README, "My images").

Variants: "" is AlexNet at 224 pixels with the papers' schedules (100 + 20 epochs: for a GPU),
"small" is a convolutional network at 64 pixels, "brief" AlexNet at 224 pixels trained for four
epochs and attacked for 20 steps (both for a CPU).

Run on 2 CPU cores: "small" in 25 minutes on 5,600 canvases of CIFAR-10 photos, and in 26 on 5,421
photos of the Grocery Store set; "brief", not hardened, on 2,800 of these photos from AlexNet's
ImageNet convolutions, with 3 epochs and 10 steps. What came out is in docs/measured.md. "" has not
been run: it needs a GPU.
"""

import ml_collections
from ml_collections import config_dict

from configs import common

VARIANTS = ("", "small", "brief")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("lists", variant, VARIANTS)
    config = common.get_base()
    config.data = dict(
        source="lists",
        # Folder of the lists; paths in them are relative to it.
        root="",
        image_size=224,
        resize=256,
        # "OLD=NEW": beginnings of paths in the lists to replace, such as "/home/me/coco/=".
        remap=(),
        # Leave out images that cannot be decoded, counted, instead of stopping.
        skip_corrupt=False,
        # Whether to decode every image before the run, or only look whether it is there.
        decode=True,
    )
    if variant == "small":
        config.data.image_size = 64
        config.data.resize = config_dict.placeholder(int)
        config.model.name = "convnet"
        config.model.widths = (16, 32, 64, 128)
        config.pretrain.update(num_epochs=30, evaluate_every=10)
        config.defenses.hardened.update(num_epochs=8, evaluate_every=4)
        common.use_adam(config)
    if variant == "brief":
        config.pretrain.update(num_epochs=4, evaluate_every=4)
        config.pretrain.schedule.update(name="cosine", learning_rate=1e-4)
        config.pretrain.optimizer = dict(name="adam", weight_decay=0.0)
        config.attacks.mainstay.num_steps = config.attacks.mainstay_targeted.num_steps = 20
        config.evaluation.batch_size = 32
    return config
