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

"frontier" and "frontier_small" have SAAT beside what may be better, each trained for as many passes
over the network, under the mainstay attack and the cheap suite; --seeds draws clean against worst
case. They have not been run at length.

"suite" is "digits" under the mainstay attack and, for the worst case, the standard suite; it was
run with evaluation.attack_suite="cheap" and the seeds 0, 1 and 2.

"digits" was run on 2 CPU cores beside other work, seed 0, in an hour; "small" on Grocery Store
photos, more briefly, in 72 minutes. Tables and commands are in docs/measured.md. "" has not been
run: it needs a GPU.
"""

import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import attacks, common, lists

VARIANTS = (
    *attacks.VARIANTS,
    "suite",
    "brief",
    "labelfree",
    "labelfree_small",
    "frontier",
    "frontier_small",
)
_MIXED: dict[str, Any] = dict(
    objective_weight=1.0,
    num_steps=3,
    weight_perturbation=0.005,
    optimizer=dict(average=0.995),
)
# What is tried beside SAAT as released, by name: options of its update, and where named so, of its
# first state, its optimizer, or the name of another defence.
_TRIED: dict[str, dict[str, Any]] = {
    "weight4": dict(adversarial_weight=4.0),
    "objective1": dict(objective_weight=1.0),
    "objective4": dict(objective_weight=4.0),
    "only_objective": dict(objective_weight=1.0, adversarial_weight=0.0),
    "steps3": dict(num_steps=3, step_size=4 / 255),
    "fast": dict(num_steps=1, step_size=10 / 255),
    "momentum": dict(direction="momentum"),
    "radius12": dict(epsilon=12 / 255, step_size=3 / 255),
    "random_radius": dict(epsilon=16 / 255, step_size=4 / 255, random_radius=True),
    "warmup": dict(warmup_steps=200, ramp_steps=200),
    "perturbed": dict(weight_perturbation=0.01),
    "average": dict(optimizer=dict(average=0.995)),
    "taught": dict(state=dict(teacher=True)),
    "mixed": dict(_MIXED, step_size=4 / 255),
    "mixed12": dict(_MIXED, epsilon=12 / 255, step_size=6 / 255),
    "cgat": dict(name="cgat"),
    "atrdh": dict(name="atrdh"),
    "teacher": dict(name="teacher"),
    "teacher_clean4": dict(name="teacher", clean_weight=4.0),
}


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
    if variant.startswith("frontier"):
        config = get_config("labelfree" + variant.removeprefix("frontier"))
        like = config.defenses.saat.to_dict()
        tried = {name: _changed(like, **changes) for name, changes in _TRIED.items()}
        config.defenses = dict(saat=like, **tried)
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


def _changed(
    like: dict[str, Any],
    *,
    name: str = "saat",
    state: Mapping[str, Any] = types.MappingProxyType({}),
    optimizer: Mapping[str, Any] = types.MappingProxyType({}),
    **options: Any,
) -> dict[str, Any]:
    """A stage like SAAT's with other settings, for as many passes over the network."""
    own_stage = {**_defenses(), "teacher": common.teacher()}[name]
    changed = dict(
        like,
        name=name,
        state=dict(own_stage.get("state", {}), **state),
        first_bank=own_stage["first_bank"],
        optimizer=dict(like["optimizer"], **optimizer),
        options=dict(own_stage["options"], **options),
    )
    if name == "atrdh":
        changed["state"].update(hidden_width=1024)
    ratio = _passes(like) / _passes(changed)
    changed["num_epochs"] = max(1, round(like["num_epochs"] * ratio))
    changed["evaluate_every"] = changed["num_epochs"]
    return changed


def _passes(stage: dict[str, Any]) -> float:
    """Forward and backward passes of an image in an update."""
    given = stage["options"]
    loss = 4 * (2 if given.get("weight_perturbation") else 1)
    taught = stage["name"] == "teacher" or stage.get("state", {}).get("teacher", False)
    return 2 * given["num_steps"] + loss + taught


def _brief() -> ml_collections.ConfigDict:
    config = lists.get_config("brief")
    config.defenses = _defenses()
    for stage in config.defenses.values():
        stage.update(num_epochs=2, evaluate_every=2, checkpoint_every=20)
        stage.schedule.update(name="cosine", learning_rate=1e-4)
        stage.optimizer = dict(name="adam", weight_decay=0.0)
    config.defenses.atrdh.state.hidden_width = 1024
    return config
