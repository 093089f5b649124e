"""The readings of the papers: as released, as printed, and both in one run."""

import json

import pytest

from configs import attacks, common, defenses, demo, lists, reproduce
from launch import settings
from saat_jax.pipeline import validation

CONFIGS = {
    "attacks:digits": lambda: attacks.get_config("digits"),
    "attacks:prosgan": lambda: attacks.get_config("prosgan"),
    "attacks:readings": lambda: attacks.get_config("readings"),
    "defenses:smoke": lambda: defenses.get_config("smoke"),
    "defenses:readings_small": lambda: defenses.get_config("readings_small"),
    "demo": demo.get_config,
    "lists": lists.get_config,
    "saat": lambda: reproduce.get_config("saat,nuswide,dph,alexnet,32,small"),
    "prosgan": lambda: reproduce.get_config("prosgan,coco,dpsh,vgg11,12"),
}


def _read(config, reading):
    config.lock()
    common.read_papers(config, reading)
    assert config.is_locked
    return config.to_dict()


@pytest.mark.parametrize("reading", common.READINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_takes_every_reading(name, reading):
    config = _read(CONFIGS[name](), reading)
    json.dumps(config)
    if config["data"]["source"] == "lists":
        config["data"]["root"] = "folder"
    validation.validate(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_released_reading_changes_nothing(name):
    assert _read(CONFIGS[name](), "released") == CONFIGS[name]().to_dict()


def test_saat_as_printed():
    config = _read(defenses.get_config(""), "paper")
    for name in ("mainstay", "mainstay_targeted"):
        attack = config["attacks"][name]
        # Eq. 11, 13 and 15.
        assert (attack["weighting"], attack["loss"], attack["random_start"]) == (
            "count",
            "mean",
            False,
        )
    stage = config["defenses"]["saat"]
    released = defenses.get_config("").defenses.saat.to_dict()
    changed = {k: v for k, v in stage["options"].items() if v != released["options"].get(k)}
    # Eq. 11, 15 and 19, and Algorithm 1.
    assert changed == {
        "weighting": "count",
        "random_start": False,
        "quantization": "sum",
        "anchor_codes": "once",
        "bank": "sign",
    }
    assert stage["options"]["quantization_weight"] == 1e-4
    assert stage | {"options": 0} == released | {"options": 0}
    assert (config["data"]["image_size"], config["data"]["resize"]) == (224, None)
    assert config["defenses"]["cgat"] == defenses.get_config("").defenses.cgat.to_dict()


def test_prosgan_as_printed():
    stage = _read(attacks.get_config("prosgan"), "paper")["learned"]["prosgan"]
    assert stage["options"] == {
        "reconstruction_weight": 50,
        "reconstruction": "l2sum",
        "hash_weight": 1,
        "hash_loss": "linear",
        "discriminator_every": 1,
        "adversarial_weight": 1,
        "reduction": "sum",
    }
    assert stage["sigmoid"] is True
    options = {"pairs": "likelihood", "softplus": True, "reduction": "sum"}
    assert stage["prototypes"] == {"hidden_width": 4096, "num_hidden": 2, "options": options}


def test_values_that_are_not_the_released_ones_stay():
    config = reproduce.get_config("prosgan,nuswide,dpsh,vgg11,32")
    learned = _read(config, "paper")["learned"]
    # The ablation without the hash loss, and a weight of a sweep.
    assert learned["gan"]["options"]["hash_weight"] == 0
    assert learned["prosgan_10"]["options"]["reconstruction_weight"] == 10
    assert learned["prosgan_10"]["options"]["hash_weight"] == 1


def test_both_forms_stand_beside_each_other():
    released = attacks.get_config("digits")
    printed, both = (_read(attacks.get_config("digits"), r) for r in ("paper", "both"))
    for kind in ("attacks", "defenses", "learned"):
        for name, section in released[kind].to_dict().items():
            assert both[kind][name] == section
            form = both[kind].get(f"{name}_paper", section)
            if kind == "attacks":
                form = {k: v for k, v in form.items() if k != "learned"}
            assert form == printed[kind][name]
    # A printed network is that of the printed attack.
    for name, learned in (("prosgan", "prosgan"), ("prosgan_ball", "prosgan"), ("tha", "tha")):
        assert both["attacks"][f"{name}_paper"]["learned"] == f"{learned}_paper"
    assert both["data"] == released.data.to_dict() and "hag_paper" not in both["attacks"]
    options = both["defenses"]["hardened_paper_fig6"]["options"]
    mu = both["defenses"]["hardened_paper"]["options"] | {"quantization_weight": 1e-3}
    assert options == mu


def test_both_forms_once_are_both_forms_twice():
    config = attacks.get_config("readings")
    once = config.to_dict()["attacks"]
    assert _read(config, "both")["attacks"] == once


def test_a_config_without_the_sections_is_refused():
    config = demo.get_config()
    del config.learned
    with pytest.raises(ValueError, match="the config has no section 'learned'"):
        common.read_papers(config, "paper")


def test_the_command_line_may_change_what_is_printed():
    config = settings.load_config("attacks:smoke")
    common.read_papers(config, "paper")
    settings.override(config, ["--config.learned.prosgan.prototypes.num_hidden=1"])
    assert config.learned.prosgan.prototypes.num_hidden == 1


def test_prosgans_attacks_are_those_of_its_protocol():
    config = attacks.get_config("prosgan").to_dict()
    assert config["model"]["name"] == "vgg11" and config["model"]["input_norm"] is False
    assert config["objective"]["name"] == "dpsh"
    stage = config["pretrain"]
    assert stage["optimizer"] == {"name": "sgd", "momentum": 0, "weight_decay": 1e-5}
    assert stage["schedule"]["learning_rate"] == 0.05 and stage["batch_size"] == 32
    assert config["evaluation"]["protocol"]["k"] is None
    assert config["evaluation"]["protocol"]["min_count"] == 10
    # It is the grid's own cell, but for the names of its lists.
    from configs import train_hash

    cell = train_hash.get_config("lists,dpsh,vgg11,32,prosgan").to_dict()
    assert config == cell | {"task": "compare_attacks"}
