"""A config's settings checked before any work is done.

`FIELDS` has the fields of every section as `options.check_tree` takes them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from saat_jax import (
    datasets,
    defenses,
    evaluation,
    generative,
    networks,
    objectives,
    optimizers,
    options,
    parallel,
)
from saat_jax.pipeline import parts
from saat_jax.pipeline.parts import Config

# Attacks for which networks are trained, by sections of config.learned: that of the attack's name
# or of its option `learned`, and these unless it trains them itself.
LEARNERS: dict[str, tuple[str, ...]] = {"tha": (), "prosgan": ("prosgan_prototypes",)}


# The presets of the standard suite by evaluation.attack_suite.
ATTACK_SUITES: options.Choices[str] = options.Choices(
    "attack suite", {"": "", "standard": "full", "cheap": "cheap"}
)
# By task, whether it attacks anything; `tasks` does them.
TASKS: options.Choices[bool] = options.Choices(
    "task",
    {
        **dict.fromkeys(("train_hash", "harden", "encode", "search", "report", "audit"), False),
        **{f"train_{kind}": False for kind in defenses.DEFENSES},
        **dict.fromkeys(("evaluate", "attack", "compare_attacks", "chain", "transfer"), True),
    },
)


def _texts(place: str, value: Any) -> None:
    """A list of texts, not one text."""
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError(
            f"{place} must be a tuple of texts such as ('hardened',), got "
            f"{options.shortened(repr(value))}"
        )


def _steps(place: str, value: Any) -> None:
    """Nothing, or the first and the last step of a range."""
    counts = isinstance(value, list | tuple) and all(type(step) is int for step in value)
    if not counts or not (len(value) == 0 or (len(value) == 2 and 1 <= value[0] <= value[1])):
        raise ValueError(
            f"{place} must be () or the first and the last step, such as (10, 20), got "
            f"{options.shortened(repr(value))}"
        )


def check_epsilons(place: str, value: Any) -> None:
    """Radii of balls, from small to large."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"{place} must be a tuple of radii such as (4/255, 8/255), got "
            f"{options.shortened(repr(value))}"
        )
    for epsilon in value:
        options.number(place, epsilon)
    if sorted(set(value)) != [*value]:
        raise ValueError(f"{place} must rise from each radius to the next, got {[*value]}")


def _precision(place: str, value: Any) -> None:
    """One of JAX's names."""
    try:
        with jax.default_matmul_precision(value):
            return
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{place} must be a precision that JAX knows, such as 'highest' or 'tensorfloat32', "
            f"got {options.shortened(repr(value), 60)}"
        ) from error


def _words(kind: str, *names: str) -> options.Choices[None]:
    return options.Choices(kind, dict.fromkeys(names))


def _named(kind: str, fields: Any, *reserved: str) -> options.Check:
    """Any number of sections of one kind, whose names become those of files."""

    def check(place: str, value: Any) -> None:
        options.check_tree(place, value, dict)
        for name, inner in value.items():
            options.check_name(kind, name)
            if name in reserved:
                raise ValueError(f"{place}.{name}: {name!r} has a meaning of its own; rename it")
            options.check_tree(f"{place}.{name}", inner, fields)

    return check


_OPTIMIZER = {
    "name": optimizers.OPTIMIZERS,
    "momentum?": options.number,
    "beta1?": options.number,
    "weight_decay?": options.number,
}
_TRAINING = {
    "num_epochs": options.number,
    "batch_size": options.number,
    "accumulate?": options.number,
    "schedule": {"name": optimizers.SCHEDULES, "learning_rate": options.number},
    "optimizer": _OPTIMIZER,
    "log_every": options.number,
    "checkpoint_every": options.number,
}
_HASHING = _TRAINING | {
    "augment?": bool,
    "evaluate_every?": options.number,
    "optimizer": _OPTIMIZER | {"average?": options.number},
}
_REDUCTIONS = _words("reduction", "mean", "sum")
_PROTOTYPE_NET = {
    "hidden_width": options.number,
    "num_hidden?": options.number,
    "options": {
        "pairs": _words("pairs", "circle", "likelihood"),
        "softplus?": bool,
        "reduction?": _REDUCTIONS,
    },
}
_PROTOTYPES = _TRAINING | _PROTOTYPE_NET | {"steps_per_epoch": options.number}
_PROSGAN = _TRAINING | {
    "evaluate_every?": options.number,
    "base_width": options.number,
    "class_nodes": bool,
    "sigmoid": bool,
    "training_scale": bool,
    # Trained with the generator, instead of before it.
    "prototypes?": _PROTOTYPE_NET,
    "options": {
        "reconstruction_weight": options.number,
        "hash_weight?": options.number,
        "adversarial_weight?": options.number,
        "reconstruction?": generative.RECONSTRUCTION_LOSSES,
        "hash_loss?": generative.HASH_LOSSES,
        "discriminator_every": options.number,
        "reduction?": _REDUCTIONS,
    },
}


def _learned(place: str, value: Any) -> None:
    """The section of a PrototypeNet, which has no discriminator, or of ProS-GAN."""
    is_gan = isinstance(value, Mapping) and "class_nodes" in value
    options.check_tree(place, value, _PROSGAN if is_gan else _PROTOTYPES)


# Checked by the protocol itself; the run gives it the other two.
_PROTOCOL = {
    field.name + "?" * (field.default is not dataclasses.MISSING): options.anything
    for field in dataclasses.fields(evaluation.Protocol)
    if field.name not in ("seed", "precision")
}
_OPTIONS = {"*": options.anything}


def _attack(place: str, value: Any) -> None:
    """The name of an attack, or of the suite."""
    if value != evaluation.STANDARD:
        options.check_tree(place, value, evaluation.ATTACKS)


FIELDS: dict[str, Any] = {
    "task": TASKS,
    "seed": options.number,
    "precision": _precision,
    "donate?": bool,
    "mapping?": parallel.MAPPINGS,
    "profile?": _steps,
    "data": {
        "source": datasets.SOURCES,
        "image_size": options.number,
        "remap?": _texts,
        "decode?": bool,
        "skip_corrupt?": bool,
        **_OPTIONS,
    },
    "model": {
        "name": networks.NETWORKS,
        "num_bits": options.number,
        "weights": str,
        "head?": options.Choices("head", {"": None, **networks.HEADS}),
        **_OPTIONS,
    },
    "objective": {"name": objectives.OBJECTIVES, **_OPTIONS},
    "pretrain": _HASHING,
    "attacks": _named(
        "attack",
        {"attack": _attack, "targeted": bool, "epsilon": options.anything, **_OPTIONS},
        "benign",
        "earlier",
    ),
    "defenses": _named(
        "model",
        _HASHING
        | {
            "name": defenses.DEFENSES,
            "first_bank": _words("first bank", "eval", "train"),
            "options": _OPTIONS,
            "state?": _OPTIONS,
        },
        "pretrained",
    ),
    "learned": _named("learned network", _learned),
    "transfer": {"models": _texts},
    "evaluation": {
        "models": _texts,
        "checkpoint": _words("checkpoint", "latest", "best"),
        "batch_size": options.number,
        "protocol": _PROTOCOL,
        "num_examples": options.number,
        "attack_suite?": ATTACK_SUITES,
        "epsilons?": check_epsilons,
    },
    "encode?": {"model": str, "images": str},
    "search?": {"model": str, "queries": str, "codes": str, "num_results": options.number},
}


class Settings(NamedTuple):
    """A checked config, and what it describes.

    Attributes:
        config: as plain nested dicts.
        suite: its attacks by name.
        objective: its hashing objective.
        protocol: how it measures.
    """

    config: Config
    suite: dict[str, evaluation.AnyAttack]
    objective: objectives.Objective
    protocol: evaluation.Protocol

    @property
    def learners(self) -> dict[str, str]:
        """The sections of config.learned that the task trains, with what each is: an attack, or a
        PrototypeNet for one; ValueError if one is missing.
        """
        found: dict[str, str] = {}
        for attack in evaluation.all_members(self.suite):
            if attack.attack in LEARNERS:
                stage = self.config["learned"].get(attack.learned, {})
                helpers = () if "prototypes" in stage else LEARNERS[attack.attack]
                found |= dict.fromkeys(helpers, "prototypes") | {attack.learned: attack.attack}
        if absent := [section for section in found if section not in self.config["learned"]]:
            raise ValueError(
                f"attack {found[absent[-1]]!r} needs the sections {absent} in config.learned; "
                "configs/attacks.py has them"
            )
        return found if TASKS[self.config["task"]] else {}

    @property
    def stages(self) -> dict[str, Config]:
        """The sections of what may be trained, by place in the config."""
        config = self.config
        return {
            "pretrain": parts.pretraining(config),
            **{f"defenses.{name}": stage for name, stage in config["defenses"].items()},
            **{f"learned.{name}": config["learned"][name] for name in self.learners},
        }


def _worst_cases(
    judging: Config, suite: Mapping[str, evaluation.AnyAttack]
) -> dict[str, evaluation.AnyAttack]:
    """The standard suite for each radius, towards target labels too if any attack goes there."""
    preset = ATTACK_SUITES[judging.get("attack_suite", "")]
    epsilons = judging.get("epsilons", (8 / 255,))
    directions = sorted({attack.targeted for attack in suite.values()} or {False})
    found: dict[str, evaluation.AnyAttack] = {}
    for targeted in directions if preset else ():
        for epsilon in epsilons:
            level = f"_{255 * epsilon:g}".replace(".", "_") if len(epsilons) > 1 else ""
            name = "worst_case" + "_targeted" * targeted + level
            if name in suite or name in found:
                raise ValueError(f"attack_suite needs the name {name!r}, which an attack has")
            found[name] = evaluation.standard_suite(
                epsilon=epsilon, targeted=targeted, preset=preset
            )
    return found


def validate(config: Any) -> Settings:
    """Checks all of a config that can be checked without its data.

    Args:
        config: nested dicts, or what has them as `to_dict()`.

    Raises:
        ValueError: naming the field that is wrong, what it is, and what it may be.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else config
    options.check_tree("", config, FIELDS, whole="the config")
    with options.naming("data"):
        datasets.check_options(**config["data"])
    suite: dict[str, evaluation.AnyAttack] = {}
    for name, attack in config["attacks"].items():
        with options.naming(f"attacks.{name}"):
            suite[name] = evaluation.create_attack(**attack)
    with options.naming("evaluation"):
        suite = {**_worst_cases(config["evaluation"], suite), **suite}
    for name in config["evaluation"]["models"]:
        options.check_name("model", name)
    given = {name: value for name, value in config["objective"].items() if name != "name"}
    kind = objectives.OBJECTIVES[config["objective"]["name"]]
    objective = options.create(kind, "objective", given)
    with options.naming("evaluation.protocol"):
        protocol = evaluation.Protocol(
            **config["evaluation"]["protocol"], seed=config["seed"], precision=config["precision"]
        )
    settings = Settings(config, suite, objective, protocol)
    _check_defenses(settings)
    return settings


def _check_defenses(settings: Settings) -> None:
    with options.naming("model"):
        model = parts.make_network(settings.config["model"])
    for name, stage in settings.config["defenses"].items():
        place = f"defenses.{name}"
        defense = defenses.DEFENSES[stage["name"]]
        options.check_given(f"{place}.options", defense.options, stage["options"])
        options.check_given(f"{place}.state", defense.state_options, stage.get("state", {}))
        _, optimizer = parts.make_optimizer(stage, 1, 1)
        with options.naming(f"{place}.options"):
            defense.make_update(model, settings.objective, optimizer, seed=0, **stage["options"])
