"""configs/train_hash.py: every variant, its values against the papers', and that a run takes it."""

import inspect
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from configs import train_hash
from saat_jax import networks, objectives, pipeline
from saat_jax.pipeline import parts

DATASETS = ("flickr25k", "nuswide", "coco", "lists")
# SPEC 0, 2.1, 2.3, 3.1 and 7.1.
COMMON_PROTOCOL = {"ties": "average", "normalizer": "hits"}
SAAT = {
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "thirds", "learning_rate": 0.01},
    "input_norm": True,
    "protocol": COMMON_PROTOCOL | {"k": 5000, "targets": "disjoint", "min_count": 1},
}
PROSGAN = {
    "optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 1e-5},
    "schedule": {"name": "thirds", "learning_rate": 0.05},
    "input_norm": False,
    "protocol": COMMON_PROTOCOL | {"k": None, "targets": "uniform", "min_count": 10},
}


def _config(variant):
    return train_hash.get_config(variant).to_dict()


def test_every_variant_builds():
    words = (DATASETS, objectives.OBJECTIVES, networks.NETWORKS, ("32",))
    for four in itertools.product(*words):
        for variant in (four, (*four, "prosgan")):
            config = _config(",".join(variant))
            assert config["task"] == "train_hash" and config["data"]["source"] == "lists"
            assert config["objective"].pop("name") == four[1]
            model = config["model"]
            assert (model["name"], model["num_bits"]) == (four[2], 32)
            del model["weights"], model["head"]
            networks.create_network(**model)
            # What the command line may set is all that the objective takes.
            options = inspect.signature(objectives.OBJECTIVES[four[1]]).parameters
            assert config["objective"].keys() == options.keys()
            json.dumps(config)


def test_options_are_the_objectives_own_in_saat():
    for name, make in objectives.OBJECTIVES.items():
        options = _config(f"lists,{name},alexnet,16")["objective"]
        del options["name"]
        parameters = inspect.signature(make).parameters
        assert options == {key: value.default for key, value in parameters.items()}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("nuswide,dpsh,vgg16,48", SAAT),
        ("nuswide,dpsh,vgg16,48,saat", SAAT),
        ("flickr25k,dph,alexnet,16,prosgan", PROSGAN),
    ],
)
def test_both_protocols_are_those_of_the_papers(variant, expected):
    config = _config(variant)
    stage = config["pretrain"]
    assert (stage["num_epochs"], stage["batch_size"]) == (100, 32)
    assert stage["optimizer"] == expected["optimizer"]
    assert stage["schedule"] == expected["schedule"]
    assert config["model"]["input_norm"] is expected["input_norm"]
    assert config["evaluation"]["protocol"] == expected["protocol"]
    assert (config["data"]["image_size"], config["data"]["resize"]) == (224, 256)


@pytest.mark.parametrize(
    ("variant", "init"),
    [
        ("coco,hashnet,vgg11,32", "torch"),
        ("coco,hashnet,alexnet,32", "torch"),
        ("coco,hashnet,vgg11,32,prosgan", "normal"),
        ("coco,dpsh,vgg11,32,prosgan", "torch"),
        ("coco,dpsh,resnet18,32", "normal"),
        ("coco,dpsh,resnet18,32,prosgan", "normal"),
    ],
)
def test_the_hash_layer_begins_as_in_the_papers(variant, init):
    assert _config(variant)["model"]["hash_init"] == init


def test_objectives_differ_between_the_papers():
    # HashNet's logits are 10 / K, or 0.1, times the inner product; None is the former.
    hashnet = {"name": "hashnet", "scale_quirk": False}
    saat, prosgan = (_config(f"coco,hashnet,vgg11,32{p}")["objective"] for p in ("", ",prosgan"))
    assert saat == hashnet | {"slope": None, "known_labels": False}
    assert prosgan == hashnet | {"slope": 0.1, "known_labels": True}
    saat, prosgan = (_config(f"coco,dpsh,vgg11,32{p}")["objective"] for p in ("", ",prosgan"))
    assert saat == {"name": "dpsh", "eta": 50, "normalizer": "bank", "known_labels": False}
    assert prosgan == saat | {"known_labels": True}


@pytest.mark.parametrize("protocol", ["saat", "prosgan"])
def test_generators_are_trained_as_released(protocol):
    for dataset, weight in (("flickr25k", 100), ("nuswide", 50), ("coco", 50), ("lists", 50)):
        stage = _config(f"{dataset},dph,vgg11,32,{protocol}")["learned"]["prosgan"]
        assert stage["options"]["reconstruction_weight"] == weight
        assert stage["training_scale"] is False
    # SPEC 3.4: only that repository's HashNet keeps tanh's last scale.
    stage = _config(f"coco,hashnet,vgg11,32,{protocol}")["learned"]["prosgan"]
    assert stage["training_scale"] is (protocol == "prosgan")


def test_the_foreign_prefixes_of_hashnets_lists_are_dropped():
    prefixes = {name: _config(f"{name},dph,vgg11,32")["data"]["remap"] for name in DATASETS}
    # SPEC 1.2.
    assert prefixes == {
        "flickr25k": (),
        "nuswide": ("./data/nuswide_81/=",),
        "coco": ("/home/caozhangjie/run-czj/dataset/coco/=",),
        "lists": (),
    }


def test_the_small_network_trains_on_small_images():
    config = _config("lists,csq,convnet,32")
    assert (config["data"]["image_size"], config["data"]["resize"]) == (64, None)
    assert config["model"]["widths"] == (16, 32, 64, 128)
    stage = config["pretrain"]
    assert (stage["num_epochs"], stage["batch_size"]) == (30, 32)
    assert stage["schedule"] == {"name": "cosine", "learning_rate": 3e-3}
    assert stage["optimizer"] == {"name": "adam", "weight_decay": 0}


def test_fields_that_hold_none_can_be_set():
    config = train_hash.get_config("coco,hswd,vgg11,32,prosgan").lock()
    config.objective.slope = 0.25
    config.evaluation.protocol.k = 100
    assert config.objective.slope == 0.25 and config.evaluation.protocol.k == 100
    with pytest.raises(TypeError):
        config.objective.slope = "steep"
    assert _config("coco,hswd,vgg11,32")["objective"]["slope"] is None


@pytest.mark.parametrize(
    "variant",
    [
        "",
        "nosuch",
        "flickr,hashnet,vgg11,32",
        "flickr25k,gamma,vgg11,32",
        "flickr25k,hashnet,vgg12,32",
        "flickr25k,hashnet,vgg11,0",
        "flickr25k,hashnet,vgg11,-8",
        "flickr25k,hashnet,vgg11,many",
        "flickr25k,hashnet,vgg11",
        "flickr25k,hashnet,vgg11,32,cgat",
        "flickr25k,hashnet,vgg11,32,saat,more",
    ],
)
def test_unknown_words_are_answered_with_the_known_ones(variant):
    with pytest.raises(ValueError, match="^unknown variant") as error:
        train_hash.get_config(variant)
    message = str(error.value)
    assert repr(variant) in message and "\n" not in message
    for word in (*DATASETS, *objectives.OBJECTIVES, *networks.NETWORKS, "saat", "prosgan"):
        assert f" {word}" in message


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_a_run_takes_every_objective(tmp_path, name):
    rng = np.random.default_rng(0)
    for split in ("train", "test", "database"):
        # Train images stand in the database too.
        names = [f"{'q' if split == 'test' else 'd'}{row}.png" for row in range(4)]
        for file in names:
            Image.fromarray(rng.integers(256, size=(8, 9, 3), dtype=np.uint8)).save(tmp_path / file)
        (tmp_path / f"{split}_img.txt").write_text("\n".join(names))
        (tmp_path / f"{split}_label.txt").write_text("1 0 0\n0 1 1\n0 1 0\n0 0 1\n")
    config = train_hash.get_config(f"lists,{name},convnet,8,prosgan")
    config.data.update(root=str(tmp_path), image_size=8)
    run = pipeline.Run(config.to_dict(), tmp_path / "run")
    state = parts.first_objective_state(run.objective, run.config, run.data.train.labels)
    if name in ("dph", "dpsh", "hashnet", "hswd"):
        np.testing.assert_array_equal(state.bank.labels, run.data.train.labels)
