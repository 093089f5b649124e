r"""Every defence against every attack: SAAT's Tables III and IV.

    saat-jax --config defenses:digits --workdir runs/defenses
    saat-jax --config defenses:small --workdir runs/mine \
        --config.data.root=FOLDER
    saat-jax --config defenses:brief --workdir runs/alexnet \
        --config.data.root=FOLDER --config.model.weights=alexnet.pth

The chain with three hardened models, "saat", "atrdh" and "cgat", beside the undefended one, and
all attacks of configs/attacks.py on each. The variants are those of configs/attacks.py: "" has
the published settings, for a GPU; the others are for a CPU: attacks of 100 steps, and all
defences trained for as many epochs as the demo trains SAAT, with Adam.

"readings" and "readings_small" have each defence as released and as printed, under the mainstay
attack of both forms and the cheap suite; see docs/papers.md.

"brief" is AlexNet at 224 pixels on a few hundred photos, each defence for two epochs of Adam, under
the mainstay attack of 20 steps.

"labelfree" and "labelfree_small" have SAAT beside the teacher, which needs no labels, trained for
as long, under the mainstay attack and the cheap suite.

"suite" is "digits" under the mainstay attack and, for the worst case, the standard suite; it was
run with evaluation.attack_suite="cheap" and the seeds 0, 1 and 2.

"digits" was run on 2 CPU cores beside other work, seed 0, in an hour; "small" on Grocery Store
photos, more briefly, in 72 minutes. Tables and commands are in docs/measured.md. "" has not been
run: it needs a GPU.
"""

from typing import Any

import ml_collections

from configs import attacks, common, lists

VARIANTS = (*attacks.VARIANTS, "suite", "brief", "labelfree", "labelfree_small")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("defenses", variant, VARIANTS)
    if variant == "brief":
        return _brief()
    if variant.startswith("labelfree"):
        config = get_config("small" if variant.endswith("small") else "digits")
        reported = ("mainstay", "mainstay_targeted")
        config.attacks = {name: config.attacks[name] for name in reported}
        like = config.defenses.saat.to_dict()
        alone = dict(like, name="teacher", options=common.teacher()["options"])
        config.defenses = dict(saat=like, teacher=alone)
        return config
    both, variant = variant in attacks.READINGS, attacks.READINGS.get(variant, variant)
    config = attacks.get_config("digits" if variant == "suite" else variant)
    config.task = "chain"
    if variant in ("digits", "small"):
        config.evaluation.attack_suite = "cheap"
    if variant == "suite" or both:
        reported = ("mainstay", "mainstay_targeted")
        config.attacks = {name: config.attacks[name] for name in reported}
    if variant == "suite":
        config.evaluation.attack_suite = "standard"
    # Table VI's numbers of steps are of the undefended model.
    for name in [name for name in config.attacks if name.startswith("mainstay_")]:
        if name != "mainstay_targeted":
            del config.attacks[name]
    hardened = config.defenses.hardened
    config.defenses = _defenses()
    if variant in ("digits", "small", "smoke", "suite"):
        for stage in config.defenses.values():
            stage.update(num_epochs=hardened.num_epochs, evaluate_every=hardened.evaluate_every)
        config.defenses.atrdh.state.hidden_width = 1024
        common.use_adam(config)
        if variant != "small":
            # A mirrored digit is no digit.
            config.defenses.cgat.augment = False
        # Four models: attacks of as many steps as the mainstay attack has.
        for settings in config.attacks.values():
            if "num_steps" in settings:
                settings.num_steps = min(settings.num_steps, 100)
        config.learned.prosgan.num_epochs = min(config.learned.prosgan.num_epochs, 10)
    if both:
        common.add_printed(config)
    return config


def _defenses() -> dict[str, Any]:
    return dict(saat=common.saat(), atrdh=common.atrdh(), cgat=common.cgat())


def _brief() -> ml_collections.ConfigDict:
    config = lists.get_config("brief")
    config.defenses = _defenses()
    for stage in config.defenses.values():
        stage.update(num_epochs=2, evaluate_every=2, checkpoint_every=20)
        stage.schedule.update(name="cosine", learning_rate=1e-4)
        stage.optimizer = dict(name="adam", weight_decay=0.0)
    config.defenses.atrdh.state.hidden_width = 1024
    return config
