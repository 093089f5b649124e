r"""Every attack of both papers, side by side on one hashing network.

    saat-jax --config attacks:digits --workdir runs/attacks
    saat-jax --config attacks:small --workdir runs/mine \
        --config.data.root=FOLDER

Trains the network (as configs/demo.py or configs/lists.py), trains what THA and ProS-GAN need,
attacks every query by every attack, and prints the tables: SAAT's Table II with its theory
(Table V), iterations (Table VI) and perceptibility (Table VII).

Variants: "" has SAAT's published settings, on list files at 224 pixels. "prosgan" is the protocol
of ProS-GAN's Tables 1 and 2: DPSH on VGG11 without input normalisation, by its optimizer, MAP of
the whole database, targets drawn uniformly; reconstruction weight 50, and for FLICKR-25K 100, by
--config.learned.prosgan.options.reconstruction_weight=100.
"all" adds the attacks that are in no table: these are for a GPU, and not yet run.
configs/train_hash.py has them for any objective and network. "digits" and
"small" (list files, 64 pixels) are for a CPU: 300 and 100 steps where the papers take 1,500 and
2,000, and PrototypeNets and generators of a quarter of the width, trained for fewer steps. "smoke"
is "digits" with a few images and steps. "readings" is what of "digits" is printed otherwise than
released, in both forms, and "readings_small" of "small"; see docs/papers.md.

Run on 2 CPU cores beside other work, seed 0: "digits" in 28 minutes and "small" in 29, on 200
queries of the Grocery Store photos with 15 epochs for the network and 4 for the generator. Their
tables are in docs/measured.md.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common, demo, lists

# What each of the variants with both readings of the papers is made of.
READINGS = {"readings": "digits", "readings_small": "small"}
VARIANTS = ("", "prosgan", "all", "digits", "small", "smoke", *READINGS)


def published_attacks() -> dict[str, dict[str, Any]]:
    """The attacks of SAAT's Tables II and VI, and uniform noise, with their settings."""
    away = dict(targeted=False, epsilon=8 / 255)
    towards = dict(targeted=True, epsilon=8 / 255)
    mainstay = dict(
        attack="mainstay", step_size=1 / 255, num_steps=100, loss="focused", anneal=True,
        random_start=True, weighting="similarity", ties="positive",
    )  # fmt: skip
    # SAAT's settings of P2P and DHTA; their ball is 0.032, not 8 / 255 = 0.0314.
    anchor = dict(
        targeted=True, epsilon=0.032, step_size=1 / 255, num_steps=2000, loss="mean", anneal=True,
        random_start=False, direction="sign", replace=True,
    )  # fmt: skip
    return {
        "noise": dict(away, attack="noise"),
        "hag": dict(
            away, attack="hag", num_steps=2000, anneal=True, learning_rate=100.0, batch_scale=128
        ),
        "sdha": dict(
            away, attack="sdha", num_steps=1500, anneal=True, learning_rate=0.01, batch_scale=128
        ),
        "mainstay": dict(away, **mainstay),
        **{f"mainstay_{t}": dict(away, **mainstay | dict(num_steps=t)) for t in (1, 10, 50)},
        "noise_targeted": dict(towards, attack="noise"),
        "p2p": dict(anchor, attack="p2p"),
        "dhta": dict(anchor, attack="dhta"),
        **_generated(),
        "tha": dict(
            towards,
            attack="tha",
            step_size=1 / 255,
            num_steps=100,
            loss="mean",
            anneal=True,
            random_start=False,
        ),  # fmt: skip
        "mainstay_targeted": dict(towards, **mainstay),
    }


def _generated() -> dict[str, dict[str, Any]]:
    """ProS-GAN's images as they are, which its reconstruction loss alone keeps near; and the same
    projected into the ball of the other attacks.
    """
    generated = dict(attack="prosgan", targeted=True)
    free = dict(generated, epsilon=config_dict.placeholder(float))
    return {"prosgan": free, "prosgan_ball": dict(generated, epsilon=8 / 255)}


def other_attacks() -> dict[str, dict[str, Any]]:
    """The attacks of SAAT's code, and CgAT's, that are in no table."""
    away = dict(targeted=False, epsilon=8 / 255)
    steps = dict(away, step_size=1 / 255, num_steps=100, loss="focused", anneal=True)
    momentum = ("bim", "ni_fgsm", "si_ni_fgsm", "vmi_fgsm", "di_fgsm")
    return {
        "fgsm": dict(away, attack="fgsm", loss="focused"),
        **{name: dict(steps, attack=name) for name in momentum},
        "cgat": dict(
            away,
            attack="cgat",
            step_size=2 / 255,
            num_steps=7,
            loss="mean",
            anneal=False,
            random_start=True,
        ),  # fmt: skip
        "universal": dict(away, attack="universal", num_steps=300),
        "sdha_targeted": dict(published_attacks()["sdha"], targeted=True),
    }


def prosgan_attacks() -> dict[str, dict[str, Any]]:
    """The attacks of ProS-GAN's Tables 1 and 2, with their settings."""
    # Its released code steps along the raw gradient of a mean over 32 images, and anneals by the
    # number of the step, whatever their number: 0.1 for the first thousand.
    anchor = dict(
        targeted=True, epsilon=8 / 255, step_size=1 / 32, num_steps=2000, loss="mean", anneal=2000,
        random_start=False, direction="raw", replace=True,
    )  # fmt: skip
    signs = dict(anchor, attack="dhta", direction="sign")
    return {
        "noise": dict(attack="noise", targeted=True, epsilon=8 / 255),
        "p2p": dict(anchor, attack="p2p"),
        "dhta": dict(anchor, attack="dhta"),
        "dhta_fgsm": dict(signs, step_size=8 / 255, num_steps=1),
        "dhta_ifgsm": dict(signs, step_size=1 / 255, num_steps=100),
        **_generated(),
    }


def published_learners() -> dict[str, dict[str, Any]]:
    """The networks that THA and ProS-GAN train for each model, as released."""
    prototypes = dict(
        num_epochs=100,
        steps_per_epoch=300,
        schedule=dict(name="milestones", learning_rate=1e-4),
        optimizer=dict(name="adam", beta1=0.5),
        hidden_width=4096,
        log_every=100,
        checkpoint_every=3000,
    )
    return {
        "tha": dict(
            prototypes,
            batch_size=128,
            options=dict(pairs="circle", softplus=True, reduction="mean"),
        ),
        "prosgan_prototypes": dict(
            prototypes,
            batch_size=64,
            options=dict(pairs="likelihood", softplus=True, reduction="mean"),
        ),
        "prosgan": dict(
            num_epochs=100,
            batch_size=24,
            schedule=dict(name="half_linear", learning_rate=1e-4),
            optimizer=dict(name="adam", beta1=0.5),
            base_width=64,
            # False is the ablation ProS-GAN1; options.hash_weight=0 is the ablation GAN.
            class_nodes=True,
            # Whether the discriminator ends in a sigmoid, as drawn in the paper.
            sigmoid=False,
            # True shows the generator a HashNet with tanh's last scale, as released.
            training_scale=False,
            evaluate_every=5,
            log_every=20,
            checkpoint_every=500,
            options=dict(
                # For NUS-WIDE and MS-COCO; configs/train_hash.py has 100 for FLICKR-25K.
                reconstruction_weight=50.0,
                reconstruction="mse",
                hash_weight=5.0,
                hash_loss="linear",
                discriminator_every=3,
                adversarial_weight=1.0,
            ),
        ),
    }


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("attacks", variant, VARIANTS)
    if variant in READINGS:
        config = get_config(READINGS[variant])
        compared = ("mainstay", "mainstay_targeted", "tha", "prosgan")
        config.attacks = {name: config.attacks[name] for name in compared}
        common.add_printed(config)
        return config
    bases = {
        "": lambda: lists.get_config(),
        "prosgan": lambda: lists.get_config(),
        "all": lambda: lists.get_config(),
        "digits": lambda: demo.get_config(),
        "small": lambda: lists.get_config("small"),
        "smoke": lambda: demo.get_config("smoke"),
    }
    config = bases[variant]()
    config.task = "compare_attacks"
    config.attacks = published_attacks()
    # The papers' attacks alone; defenses has the worst case too.
    config.evaluation.attack_suite = ""
    config.learned = published_learners()
    if variant == "prosgan":
        config.attacks = prosgan_attacks()
        common.use_protocol(config, "prosgan")
        config.model.update(name="vgg11", hash_init="torch")
        config.objective = dict(name="dpsh", eta=50.0, normalizer="bank", known_labels=True)
    elif variant == "all":
        config.attacks.update(other_attacks())
    elif variant:
        shorten(config, num_steps=100 if variant == "small" else 300)
        config.learned.prosgan.num_epochs = 8 if variant == "small" else 20
    if variant == "smoke":
        for settings in config.attacks.values():
            if "num_steps" in settings:
                settings.num_steps = min(settings.num_steps, 3)
        for stage in config.learned.values():
            # None of 8 or 16 devices.
            stage.update(num_epochs=1, batch_size=12)
            if "steps_per_epoch" in stage:
                stage.steps_per_epoch = 4
    return config


def shorten(config: ml_collections.ConfigDict, *, num_steps: int) -> None:
    """Makes the long attacks and what is learned for attacks small enough for a CPU.

    A schedule stays as long as the attack, and steps along raw gradients go as far in all; SDHA's
    steps of Adam cannot, and 100 of them leave two points more than 300 or 1,500.
    """
    for settings in config.attacks.values():
        if settings.get("num_steps", 0) > 1000:
            times = settings.num_steps / num_steps
            settings.num_steps = max(num_steps, 300) if settings.attack == "sdha" else num_steps
            if settings.get("direction") == "raw":
                settings.update(anneal=True, step_size=times * settings.step_size)
    for name in ("tha", "prosgan_prototypes"):
        config.learned[name].update(num_epochs=10, hidden_width=1024)
        config.learned[name].schedule.learning_rate = 1e-3
    config.learned.prosgan.update(num_epochs=8, base_width=16)
    config.learned.prosgan.schedule.learning_rate = 1e-3
