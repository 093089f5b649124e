"""A config's settings checked before any work is done.

`FIELDS` has the fields of every section, each with a check of its value: a section within, or a
function of (place, value). Those marked "?" may be left out; beside "*" there may be others.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

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

Check = Callable[[str, Any], None]
# Attacks for which networks are trained, by sections of config.learned: that of the attack's name
# or of its option `learned`, and these.
LEARNERS: dict[str, tuple[str, ...]] = {"tha": (), "prosgan": ("prosgan_prototypes",)}


def anything(place: str, value: Any) -> None:
    """What another part checks later; the numbers in it must be in their ranges."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            anything(f"{place}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            anything(place, inner)
    elif value is not None and not isinstance(value, bool):
        allowed = options.range_of(place.rpartition(".")[2])
        if allowed or isinstance(value, int | float):
            number(place, value)


def number(place: str, value: Any) -> None:
    """A number within the range that its name has."""
    allowed = options.range_of(place.rpartition(".")[2]) or options.Range()
    if problem := allowed.problem(value):
        raise ValueError(f"{place} {problem}")


def _of_type(kind: type, words: str) -> Check:
    def check(place: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise ValueError(f"{place} must be {words}, got {options.shortened(repr(value))}")

    return check


flag = _of_type(bool, "True or False")
text = _of_type(str, "a text")


def texts(place: str, value: Any) -> None:
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


def one_of(choices: options.Choices[Any]) -> Check:
    """One of the names of a table."""

    def check(place: str, value: Any) -> None:
        with naming(place):
            choices.look_up(value)

    return check


def _words(kind: str, *names: str) -> Check:
    return one_of(options.Choices(kind, dict.fromkeys(names)))


def _named(kind: str, fields: Any, *reserved: str) -> Check:
    """Any number of sections of one kind, whose names become those of files."""

    def check(place: str, value: Any) -> None:
        _of_type(Mapping, f"a section that names each {kind}")(place, value)
        for name, inner in value.items():
            options.check_name(kind, name)
            if name in reserved:
                raise ValueError(f"{place}.{name}: {name!r} has a meaning of its own; rename it")
            check_fields(f"{place}.{name}", inner, fields)

    return check


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Puts the place in a config before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


_TRAINING = {
    "num_epochs": number,
    "batch_size": number,
    "accumulate?": number,
    "schedule": {"name": one_of(optimizers.SCHEDULES), "learning_rate": number},
    "optimizer": {
        "name": one_of(optimizers.OPTIMIZERS),
        "momentum?": number,
        "beta1?": number,
        "weight_decay?": number,
    },
    "log_every": number,
    "checkpoint_every": number,
}
_HASHING = _TRAINING | {"augment?": flag, "evaluate_every?": number}
_LEARNED = {
    "prototypes": _TRAINING
    | {
        "steps_per_epoch": number,
        "hidden_width": number,
        "options": {
            "pairs": _words("pairs", "circle", "likelihood"),
            "softplus?": flag,
            "reduction?": _words("reduction", "mean", "sum"),
        },
    },
    "prosgan": _TRAINING
    | {
        "evaluate_every?": number,
        "base_width": number,
        "class_nodes": flag,
        "sigmoid": flag,
        "training_scale": flag,
        "options": {
            "reconstruction_weight": number,
            "hash_weight?": number,
            "adversarial_weight?": number,
            "reconstruction?": one_of(generative.RECONSTRUCTION_LOSSES),
            "hash_loss?": one_of(generative.HASH_LOSSES),
            "discriminator_every?": number,
        },
    },
}
# Checked by the protocol itself; the run gives it the other two.
_PROTOCOL = {
    field.name + "?" * (field.default is not dataclasses.MISSING): anything
    for field in dataclasses.fields(evaluation.Protocol)
    if field.name not in ("seed", "precision")
}
FIELDS: dict[str, Any] = {
    "task": text,
    "seed": number,
    "precision": text,
    "donate?": flag,
    "mapping?": one_of(parallel.MAPPINGS),
    "profile?": _steps,
    "data": {"source": text, "image_size": number, "remap?": texts, "*": anything},
    "model": {"name": text, "num_bits": number, "weights": text, "*": anything},
    "objective": {"name": text, "*": anything},
    "pretrain": _HASHING,
    "attacks": _named(
        "attack",
        {"attack": text, "targeted": flag, "epsilon": anything, "*": anything},
        "benign",
    ),
    "defenses": _named(
        "model",
        _HASHING
        | {
            "name": text,
            "first_bank": _words("first bank", "eval", "train"),
            "options": anything,
            "state?": anything,
        },
        "pretrained",
    ),
    "learned": _named("learned network", anything),
    "transfer": {"models": texts},
    "evaluation": {
        "models": texts,
        "checkpoint": _words("checkpoint", "latest", "best"),
        "batch_size": number,
        "protocol": _PROTOCOL,
        "num_examples": number,
    },
    "encode?": {"model": text, "images": text},
    "search?": {"model": text, "queries": text, "codes": text, "num_results": number},
}


def check_fields(place: str, value: Any, fields: Any) -> None:
    """Checks a value of a config: a section by its fields, or by its check."""
    if not isinstance(fields, Mapping):
        return fields(place, value)
    _of_type(Mapping, "a section of fields")(place or "the config", value)
    known = {name.rstrip("?"): check for name, check in fields.items()}
    names = sorted(known.keys() - {"*"})
    if "*" not in known and (unknown := [name for name in value if name not in known]):
        shown = options.shortened(unknown[0], 60)
        raise ValueError(f"{place or 'the config'} has no field {shown!r}; it has {names}")
    if lacking := [name for name in fields if name[-1] not in "?*" and name not in value]:
        raise ValueError(f"{place or 'the config'} lacks {lacking[0]!r}; it has the fields {names}")
    for name, inner in value.items():
        check_fields(f"{place}.{name}".lstrip("."), inner, known.get(name, known.get("*")))


class Settings(NamedTuple):
    """A checked config, and what it describes.

    Attributes:
        config: as plain nested dicts.
        suite: its attacks by name.
        objective: its hashing objective.
        protocol: how it measures.
        learners: see `find_learners`.
    """

    config: Config
    suite: dict[str, evaluation.AttackSettings]
    objective: objectives.Objective
    protocol: evaluation.Protocol
    learners: dict[str, str]

    @property
    def stages(self) -> dict[str, Config]:
        """The sections of what may be trained, by place in the config."""
        config = self.config
        return {
            "pretrain": config["pretrain"],
            **{f"defenses.{name}": stage for name, stage in config["defenses"].items()},
            **{f"learned.{name}": config["learned"][name] for name in self.learners},
        }


def plain(config: Any) -> Config:
    """A config as nested dicts."""
    config = config.to_dict() if hasattr(config, "to_dict") else config
    _of_type(Mapping, "a section of fields")("the config", config)
    return config


def validate(config: Any) -> Settings:
    """Checks all of a config that can be checked without its data.

    Args:
        config: nested dicts, or what has them as `to_dict()`.

    Raises:
        ValueError: naming the field that is wrong, what it is, and what it may be.
    """
    config = plain(config)
    check_fields("", config, FIELDS)
    with naming("data"):
        datasets.check_options(**config["data"])
    suite = {}
    for name, attack in config["attacks"].items():
        with naming(f"attacks.{name}"):
            suite[name] = evaluation.AttackSettings.create(**attack)
    for name in config["evaluation"]["models"]:
        options.check_name("model", name)
    with naming("objective"):
        objective = objectives.create_objective(**config["objective"])
    with naming("evaluation.protocol"):
        protocol = evaluation.Protocol(
            **config["evaluation"]["protocol"], seed=config["seed"], precision=config["precision"]
        )
    settings = Settings(config, suite, objective, protocol, find_learners(config, suite))
    for name, kind in settings.learners.items():
        fields = _LEARNED["prosgan" if kind == "prosgan" else "prototypes"]
        check_fields(f"learned.{name}", config["learned"][name], fields)
    devices = jax.device_count()
    for place, stage in {**settings.stages, "evaluation": config["evaluation"]}.items():
        if (rows := stage["batch_size"]) % devices:
            raise ValueError(
                f"{place}.batch_size must be a multiple of the {devices} devices, got {rows}"
            )
    _check_defenses(settings)
    return settings


def _check_defenses(settings: Settings) -> None:
    with naming("model"):
        model = parts.make_network(settings.config["model"])
    for name, stage in settings.config["defenses"].items():
        place = f"defenses.{name}"
        with naming(place):
            defense = defenses.DEFENSES.look_up(stage["name"])
        options.check_given(f"{place}.options", defense.options, stage["options"])
        options.check_given(f"{place}.state", defense.state_options, stage.get("state", {}))
        _, optimizer = parts.make_optimizer(stage, num_epochs=1, steps_per_epoch=1)
        with naming(f"{place}.options"):
            defense.make_update(model, settings.objective, optimizer, seed=0, **stage["options"])


def find_learners(config: Config, suite: Mapping[str, evaluation.AttackSettings]) -> dict[str, str]:
    """The sections of config.learned that the task trains, with what each is: an attack, or a
    PrototypeNet for one.
    """
    found: dict[str, str] = {}
    for attack in suite.values():
        if attack.attack in LEARNERS:
            helpers = LEARNERS[attack.attack]
            found |= dict.fromkeys(helpers, "prototypes") | {attack.learned: attack.attack}
            if absent := [s for s in (*helpers, attack.learned) if s not in config["learned"]]:
                raise ValueError(
                    f"attack {attack.attack!r} needs the sections {absent} in config.learned; "
                    "configs/attacks.py has them"
                )
    return found if attacks_something(config) else {}


def attacks_something(config: Config) -> bool:
    """Whether the task of a config attacks anything."""
    return config["task"] in ("evaluate", "attack", "compare_attacks", "chain", "transfer")


def check_data(settings: Settings, dataset: Any) -> None:
    """Checks that a config suits its data.

    Raises:
        ValueError: naming the field that does not.
    """
    config, stages = settings.config, settings.stages
    # One image's state tells whether bits and classes suit the objective.
    state = parts.first_objective_state(settings.objective, config, dataset.train.labels[:1])
    scaled = [place for place, stage in stages.items() if stage.get("training_scale")]
    if state.scale is None and scaled:
        raise ValueError(
            f"{scaled[0]}.training_scale needs an objective with a tanh scale "
            f"(hashnet, hswd), got {config['objective']['name']!r}; set it to False"
        )
    augmented = [place for place, stage in stages.items() if stage.get("augment")]
    if augmented and not isinstance(dataset.train.images, np.ndarray | None):
        raise ValueError(
            f"{augmented[0]}.augment cannot be True for packed images, which come as packed; "
            "set it to False, or use the lists"
        )
    for name, kind in settings.learners.items():
        if kind == "prosgan":
            _check_gan(f"learned.{name}", config["learned"][name], config["model"], dataset)


def _check_gan(place: str, stage: Config, model: Config, dataset: Any) -> None:
    _, optimizer = parts.make_optimizer(stage, num_epochs=1, steps_per_epoch=1)
    encode_fn = networks.make_encode_fn(parts.make_network(model))
    with naming(place):
        nets, pair = parts.make_gan(stage, dataset.num_classes), [optimizer] * 2
        generative.make_gan_update(*nets, encode_fn, *pair, steps_per_epoch=1, **stage["options"])
        first: Any = functools.partial(generative.init_state, image_size=dataset.image_size)
        jax.eval_shape(lambda rng: first(*nets, *pair, {}, rng), jax.random.key(0))
