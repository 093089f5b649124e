"""A config's settings: each wrong one is refused by name, before any work."""

import copy
import functools
import importlib
import math
import pathlib
import re

import pytest

from configs import attacks, defenses, demo
from saat_jax import options, pipeline
from saat_jax.pipeline import validation

CONFIGS = pathlib.Path(demo.__file__).parent


@functools.cache
def _checked(make):
    return make("smoke").to_dict()


def _changed(path, value, make=demo.get_config):
    config = copy.deepcopy(_checked(make))
    *sections, name = path.split(".")
    owner = functools.reduce(lambda tree, section: tree[section], sections, config)
    if value is ...:
        del owner[name]
    else:
        owner[name] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Numbers, whose range is that of their name wherever they stand.
        ("seed", -1, "seed must be a whole number from 0"),
        ("seed", 2**63, "seed must be a whole number from 0"),
        ("data.contrast", -0.5, "data.contrast must be a number above 0"),
        ("data.contrast", 50, "data.contrast must be a number above 0"),
        ("data.image_size", 0, "data.image_size must be"),
        ("model.num_bits", 10**9, "model.num_bits must be a whole number from 1 to 65536"),
        ("model.num_bits", 16.0, "model.num_bits must be a whole number"),
        ("model.widths", (0, 8), "model.widths must be a whole number"),
        ("objective.eta", math.nan, "objective.eta must be a number of 0 or more, got nan"),
        ("pretrain.num_epochs", 0, "pretrain.num_epochs must be a whole number"),
        ("pretrain.num_epochs", "3", "pretrain.num_epochs must be a whole number.*, got '3'"),
        ("pretrain.num_epochs", None, "pretrain.num_epochs must be a whole number"),
        ("pretrain.log_every", 0, "pretrain.log_every must be a whole number"),
        *(
            ("pretrain.schedule.learning_rate", rate, "pretrain.schedule.learning_rate must be")
            for rate in (0, -1, math.nan, math.inf, 1e30)
        ),
        ("pretrain.optimizer.weight_decay", -1, "pretrain.optimizer.weight_decay must be"),
        ("attacks.mainstay.epsilon", 8, "attacks.mainstay.epsilon must be .* 8 / 255"),
        *(
            ("attacks.mainstay.epsilon", size, "attacks.mainstay.epsilon must be")
            for size in (1.5, -0.1, math.nan, math.inf)
        ),
        ("attacks.mainstay.step_size", -0.004, "attacks.mainstay.step_size must be"),
        ("defenses.hardened.options.epsilon", 8, "defenses.hardened.options.epsilon must be"),
        ("defenses.hardened.options.adversarial_weight", math.nan, "adversarial_weight must be"),
        ("defenses.hardened.schedule.learning_rate", -0.1, "hardened.schedule.learning_rate must"),
        ("evaluation.num_examples", -1, "evaluation.num_examples must be"),
        ("evaluation.protocol.k", "all", "evaluation.protocol.k must be a whole number"),
        ("profile", (5, 2), r"profile must be \(\) or the first and the last step"),
        # Fields that are not there, or lacking.
        ("pretrain.num_epoch", 3, r"pretrain has no field 'num_epoch'; it has \['accumulate'"),
        ("atacks", {}, "the config has no field 'atacks'"),
        ("evaluation.protocol.tie", "index", "evaluation.protocol has no field 'tie'"),
        ("evaluation", ..., "the config lacks 'evaluation'; it has the fields"),
        ("data", {}, "data lacks 'source'"),
        ("pretrain", {}, "pretrain lacks 'num_epochs'"),
        ("pretrain.schedule.learning_rate", ..., "pretrain.schedule lacks 'learning_rate'"),
        ("attacks.mainstay.targeted", ..., "attacks.mainstay lacks 'targeted'"),
        ("defenses.hardened.options.epsilon", ..., "hardened.options needs the option 'epsilon'"),
        ("defenses.hardened.options.steps", 1, "hardened.options has no option 'steps'; it has"),
        ("defenses.hardened.options.seed", 1, "hardened.options has no option 'seed'; it has"),
        (
            "defenses.hardened.state",
            {"hidden_width": 8},
            "has no option 'hidden_width'",
        ),
        # Kinds of values.
        ("model", "alexnet", "model must be a section of fields, got 'alexnet'"),
        ("attacks", "mainstay", "attacks must be a section of fields, got 'mainstay'"),
        ("evaluation.models", "hardened", r"evaluation.models must be a tuple of texts .*'hard"),
        ("evaluation.models", ("../..",), "the name of a model is up to 100 letters"),
        ("evaluation.attack_suite", "best", "evaluation.attack_suite: unknown attack suite 'best'"),
        ("evaluation.epsilons", (), r"evaluation.epsilons must be a tuple of radii .*got \(\)"),
        ("evaluation.epsilons", (8,), "evaluation.epsilons must be a number .* 8 / 255"),
        ("evaluation.epsilons", (0.2, 0.1), "evaluation.epsilons must rise from each radius"),
        ("evaluation.checkpoint", "newest", "evaluation.checkpoint: unknown checkpoint 'newest'"),
        ("pretrain.augment", "no", "pretrain.augment must be True or False, got 'no'"),
        ("defenses.hardened.first_bank", "test", "first_bank: unknown first bank 'test'"),
        ("mapping", "vmap", "mapping: unknown mapping 'vmap'"),
        # Names that become those of files.
        ("attacks.benign", {}, "'benign' has a meaning of its own; rename it"),
        ("defenses.pretrained", {}, "'pretrained' has a meaning of its own; rename it"),
    ],
)
def test_a_wrong_setting_is_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        validation.validate(_changed(path, value))
    # And the right one is not.
    validation.validate(_checked(demo.get_config))


@pytest.mark.parametrize("name", ["../../../escaped", "a/b", "", ".hidden", "line\nend"])
@pytest.mark.parametrize("section", ["attacks", "defenses"])
def test_a_name_stays_in_its_folder(section, name):
    config = copy.deepcopy(_checked(demo.get_config))
    config[section][name] = next(iter(config[section].values()))
    with pytest.raises(ValueError, match="the name of a .* is up to 100 letters"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("learned.prosgan.base_width", 0, "learned.prosgan.base_width must be"),
        ("learned.prosgan.base_width", 12, "learned.prosgan: .*multiple of 8, got 12"),
        ("learned.prosgan.class_nodes", 1, "learned.prosgan.class_nodes must be True or False"),
        ("learned.prosgan.options.hash_weight", math.nan, "options.hash_weight must be"),
        ("learned.tha.hidden_width", ..., "learned.tha lacks 'hidden_width'"),
        ("learned.tha.num_epoch", 3, "learned.tha has no field 'num_epoch'"),
        ("learned.tha.options.pair", 3, "learned.tha.options has no field 'pair'"),
        ("learned.tha", ..., r"'tha' needs the sections \['tha'\] in config.learned"),
    ],
)
def test_what_attacks_learn_is_checked_too(tmp_path, digits, path, value, message):
    with pytest.raises(ValueError, match=message):
        pipeline.Run(_changed(path, value, attacks.get_config), tmp_path, digits)


@pytest.fixture(scope="module")
def digits():
    return pipeline.load_data(_checked(demo.get_config))


def test_a_config_may_be_plain_or_not():
    config = demo.get_config("smoke")
    assert validation.validate(config).config == validation.validate(config.to_dict()).config
    for wrong in ([], None, "demo"):
        with pytest.raises(ValueError, match="the config must be a section of fields, got"):
            pipeline.run(wrong, "unused")


def test_fields_that_came_later_may_be_left_out():
    config = copy.deepcopy(_checked(demo.get_config))
    for name in ("encode", "search", "mapping", "profile"):
        del config[name]
    validation.validate(config)


@pytest.mark.parametrize("name", ["attacks", "defenses", "demo", "lists", "tfds", "train_hash"])
def test_every_shipped_config_is_sound(name):
    make = importlib.import_module(f"configs.{name}").get_config
    variants = {
        "attacks": ("", "prosgan", "all", "digits", "small", "smoke"),
        "defenses": ("", "digits", "small", "smoke", "suite"),
        "train_hash": ("nuswide,hashnet,vgg11,32,prosgan", "lists,dpsh,convnet,16"),
    }
    for variant in variants.get(name, (make.__defaults__[0],)):
        config = make(variant).to_dict()
        # The eight devices of the tests share no batch of 24.
        if "prosgan" in config["learned"]:
            config["learned"]["prosgan"]["batch_size"] = 32
        # Which folder is the user's to say.
        if "root" in config["data"]:
            config["data"]["root"] = "lists"
        found = validation.validate(config).suite.keys()
        worst = (
            {"worst_case", "worst_case_targeted"} if config["evaluation"]["attack_suite"] else set()
        )
        assert found == config["attacks"].keys() | worst
        assert set(re.findall(r"\w+", config["task"])) == {config["task"]}


def test_the_worst_case_is_sought_in_each_ball_and_direction():
    config = demo.get_config().to_dict()
    config["evaluation"].update(attack_suite="standard", epsilons=(0.5 / 255, 8 / 255))
    found = validation.validate(config).suite
    assert [name for name in found if name.startswith("worst")] == [
        "worst_case_0_5", "worst_case_8", "worst_case_targeted_0_5", "worst_case_targeted_8",
    ]  # fmt: skip
    del config["attacks"]["mainstay_targeted"]
    found = validation.validate(config).suite
    assert not any(attack.targeted for attack in found.values())
    assert len(found["worst_case_8"].members) > 10
    config["attacks"]["worst_case_8"] = config["attacks"]["mainstay"]
    with pytest.raises(ValueError, match="attack_suite needs the name 'worst_case_8'"):
        validation.validate(config)


def test_numbers_are_checked_in_every_section():
    """No numeric field of any config takes NaN."""
    config = defenses.get_config("smoke").to_dict()

    def numbers(tree, place=()):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from numbers(value, (*place, name))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield (*place, name)

    found = [*numbers(config)]
    assert len(found) > 100
    for path in found:
        changed = copy.deepcopy(config)
        functools.reduce(lambda tree, name: tree[name], path[:-1], changed)[path[-1]] = math.nan
        with pytest.raises(ValueError, match=rf"{path[-1]} must be .*got nan"):
            options.check_tree("", changed, validation.FIELDS)
