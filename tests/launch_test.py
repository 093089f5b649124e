"""Launching: every config, the whole chain as a user runs it, and answers to wrong settings."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import attacks as attacks_config
from configs import common, demo
from configs import defenses as defenses_config
from launch import main as launch_main
from saat_jax import (
    attacks,
    checkpoints,
    datasets,
    defenses,
    evaluation,
    hamming,
    networks,
    objectives,
    pipeline,
    training,
)
from saat_jax.pipeline import parts, stages, tasks

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common")
)


def _variants(name):
    """The variants that a config lists when asked for one that it does not have."""
    with pytest.raises(ValueError, match="unknown variant 'nosuch'.* expected") as error:
        importlib.import_module(f"configs.{name}").get_config("nosuch")
    listed = str(error.value).partition("expected")[2]
    return [variant for _, variant in re.findall(r"""(["'])(.*?)\1""", listed)]


def _main(*arguments):
    """Runs `python -m launch.main` as a user does, with all of this machine as one device."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "launch.main", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs, for what runs in this process and in others."""
    folder = tmp_path_factory.mktemp("cache")
    old = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", old)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, cache):
    """(finished process, its workdir) of the demo's smoke run."""
    folder = tmp_path_factory.mktemp("smoke")
    process = _main(
        "--config=configs/demo.py:smoke",
        f"--workdir={folder / 'run'}",
        f"--compilation_cache={cache}",
    )
    return process, folder / "run"


# --- configs ---


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_plain_values_that_a_flag_can_set(name):
    module = importlib.import_module(f"configs.{name}")
    variants = _variants(name)
    assert variants and len(variants) == len(set(variants))
    for variant in variants:
        config = module.get_config(variant)
        assert isinstance(config, ml_collections.ConfigDict)
        if "data" in config and config.data.source == "lists":
            config.data.root = "FOLDER"
        plain = config.to_dict()
        assert json.loads(json.dumps(plain)).keys() == plain.keys()
        assert plain["task"] in pipeline.TASKS
        # What the command line does: lock, then set by path; a path is found only if no part
        # of it is the name of a method, such as "update".
        config.lock()
        for path, value in _leaves(plain):
            owner = config
            for part in path[:-1]:
                owner = getattr(owner, part)
                assert isinstance(owner, ml_collections.ConfigDict), f"{name}:{variant} {path}"
            assert getattr(owner, path[-1]) == value, f"{name}:{variant} {path}"
        with pytest.raises((AttributeError, KeyError)):
            config.sed = 1


def _leaves(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


# --- the whole chain ---


def test_the_chain_trains_attacks_hardens_and_reports(smoke):
    process, workdir = smoke
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(demo.get_config("smoke").to_dict()))
    for model in ("pretrained", "hardened"):
        assert (workdir / "models" / model / "checkpoints" / "latest").is_dir()
        lines = (workdir / "models" / model / "metrics.jsonl").read_text().splitlines()
        names = set().union(*map(json.loads, lines))
        assert names >= {"step", "epoch", "loss", "learning_rate", "map"}
        for attack in ("benign", *config["attacks"]):
            record = json.loads((workdir / "records" / model / f"{attack}.json").read_text())
            assert record["model"] == model and record["protocol"]["num_bits"] == 32
            assert (workdir / "records" / model / f"{attack}.npz").is_file()
    page = (workdir / "report.html").read_text()
    assert "<html" in page and "hardened" in page
    # The table and the report's path end the run.
    assert "MAP@5000" in process.stdout
    assert process.stdout.rstrip().endswith(f"report: {workdir / 'report.html'}")


def test_both_models_are_attacked_towards_the_same_targets(smoke):
    _, workdir = smoke
    with np.load(workdir / "targets.npz") as file:
        stored = file["target_labels"] > 0
    for model in ("pretrained", "hardened"):
        with np.load(workdir / "records" / model / "mainstay_targeted.npz") as file:
            rows = np.linspace(0, len(stored) - 1, len(file["target_labels"]), dtype=int)
            np.testing.assert_array_equal(file["target_labels"], stored[rows])
            assert not (file["target_labels"] & file["labels"]).any()


def test_finished_stages_are_skipped(smoke, capfd, monkeypatch):
    _, workdir = smoke
    monkeypatch.setattr(tasks, "show_report", lambda workdir: None)
    kept = [*workdir.glob("models/*/checkpoints/*/*"), *workdir.glob("records/*/*")]
    assert len(kept) >= 16
    times = {path: path.stat().st_mtime_ns for path in [*kept, workdir / "targets.npz"]}
    logs = {path: path.read_text() for path in workdir.glob("models/*/metrics.jsonl")}
    # On eight devices this time: what one has finished, eight need not do again.
    pipeline.run(demo.get_config("smoke").to_dict(), workdir)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path: path.read_text() for path in logs} == logs
    errors = capfd.readouterr().err
    assert "attack" not in errors and "0/3" not in errors


def test_single_tasks_go_on_from_the_chain(smoke, capfd):
    _, workdir = smoke
    config = demo.get_config("smoke")
    config.task = "report"
    (workdir / "report.html").unlink()
    pipeline.run(config.to_dict(), workdir)
    assert (workdir / "report.html").is_file()
    assert "MAP@5000" in capfd.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(smoke):
    _, workdir = smoke
    config = demo.get_config("smoke")
    config.task = "train_hash"
    schedule = config.pretrain.schedule
    old, schedule.learning_rate = schedule.learning_rate, schedule.learning_rate / 2
    message = re.escape(
        f"pretrained was made with pretrain.schedule.learning_rate = {old}, "
        f"this run has {schedule.learning_rate}"
    )
    with pytest.raises(ValueError, match=message):
        pipeline.run(config.to_dict(), workdir)


def test_a_model_that_is_not_trained_is_named_with_its_task(tmp_path):
    config = demo.get_config("smoke")
    for task in ("train_saat", "evaluate"):
        config.task = task
        message = "model 'pretrained' is not trained: .* holds nothing; run the task 'train_hash'"
        with pytest.raises(ValueError, match=message):
            pipeline.run(config.to_dict(), tmp_path)


# --- other tasks on the same models ---


def _attacks_config(smoke, *names):
    """configs/attacks.py:smoke with some of its attacks, on the models of the smoke run."""
    config = attacks_config.get_config("smoke").to_dict()
    config["attacks"] = {name: config["attacks"][name] for name in names}
    config["evaluation"]["models"] = ["pretrained"]
    return config | {"task": "evaluate"}


def test_networks_are_learned_for_the_attacks_that_need_them(smoke, monkeypatch, capfd):
    _, workdir = smoke
    monkeypatch.setattr(tasks, "show_report", lambda workdir: None)
    config = _attacks_config(smoke, "tha", "prosgan")
    pipeline.run(config, workdir)
    folder = workdir / "learned" / "pretrained"
    for name, metric in (
        ("tha", "pair_loss"),
        ("prosgan_prototypes", "class_loss"),
        ("prosgan", "discriminator_loss"),
    ):
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        assert metric in set().union(*map(json.loads, lines))
    grids = sorted(path.name for path in (folder / "prosgan" / "samples").iterdir())
    assert grids == ["step_0000000.png", "step_0000008.png"]
    for name in ("tha", "prosgan"):
        record = json.loads((workdir / "records" / "pretrained" / f"{name}.json").read_text())
        assert record["metrics"].keys() >= {"t_map", "t_map_8bit", "theory_t_map"}
    # Nothing in a ball of its own: the record says so.
    assert record["settings"]["epsilon"] is None
    assert record["perturbation"]["linf"] > 8 / 255
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("**/*.json")}
    capfd.readouterr()
    pipeline.run(config, workdir)
    assert "learned/pretrained/prosgan: trained already, 8 steps" in capfd.readouterr().out
    (workdir / "config.json").unlink()
    before.pop(workdir / "config.json")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A model trained further is another: what was learned for it is refused, not used.
    config["learned"]["tha"]["schedule"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"learned.schedule.learning_rate = 0.001, this run has 1"):
        pipeline.run(config, workdir)


def test_a_generator_as_printed_is_learned_with_its_prototypes(smoke, monkeypatch, capfd):
    _, workdir = smoke
    monkeypatch.setattr(tasks, "show_report", lambda workdir: None)
    config = attacks_config.get_config("smoke")
    common.read_papers(config, "both")
    attacks = {"prosgan_paper": config.attacks.prosgan_paper.to_dict()}
    judging = config.evaluation.to_dict() | {"models": ["pretrained"]}
    # Without a PrototypeNet of its own before it.
    learned = {"prosgan_paper": config.learned.prosgan_paper.to_dict()}
    changes = {"task": "evaluate", "attacks": attacks, "evaluation": judging, "learned": learned}
    pipeline.run(config.to_dict() | changes, workdir)
    folder = workdir / "learned" / "pretrained" / "prosgan_paper"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = set().union(*lines)
    assert {"prototype_loss", "discriminator_loss", "sample_agreement"} <= found
    record = json.loads((workdir / "records" / "pretrained" / "prosgan_paper.json").read_text())
    assert record["metrics"].keys() >= {"t_map", "theory_t_map"}
    capfd.readouterr()
    pipeline.run(config.to_dict() | changes, workdir)
    assert "prosgan_paper: trained already, 8 steps" in capfd.readouterr().out
    learned["prosgan_paper"]["options"]["discriminator_every"] = 3
    with pytest.raises(ValueError, match="discriminator_every must be 1 where prototypes are"):
        pipeline.run(config.to_dict() | changes, workdir)


def test_rival_defences_train_from_the_same_model(smoke, tmp_path):
    _, workdir = smoke
    shutil.copytree(workdir / "models" / "pretrained", tmp_path / "models" / "pretrained")
    config = defenses_config.get_config("smoke").to_dict() | {"task": "harden"}
    del config["defenses"]["saat"]
    pipeline.run(config, tmp_path)
    for name, metric in (("atrdh", "prototype_loss"), ("cgat", "quantization_loss")):
        lines = (tmp_path / "models" / name / "metrics.jsonl").read_text().splitlines()
        assert {metric, "map", "loss"} <= set().union(*map(json.loads, lines))
    with pytest.raises(ValueError, match="config.defenses has no saat, it has {'atrdh': 'atrdh'"):
        pipeline.run(config | {"task": "train_saat"}, tmp_path)


def test_transfer_between_models_of_runs(smoke, tmp_path, capfd):
    _, workdir = smoke
    (workdir / "config.json").write_text(json.dumps(demo.get_config("smoke").to_dict()))
    config = _attacks_config(smoke, "mainstay_targeted") | {"task": "transfer"}
    places = [f"{workdir}:pretrained", f"{workdir}:hardened"]
    config["transfer"]["models"] = places
    pipeline.run(config, tmp_path)
    table = json.loads((tmp_path / "transfer" / "mainstay_targeted.json").read_text())
    assert list(table["matrix"]) == list(table["benign"]) == places
    assert all(list(row) == places for row in table["matrix"].values())
    assert "t-MAP@5000, mainstay targeted" in capfd.readouterr().out
    config["transfer"]["models"] = [f"{tmp_path}/nosuch:pretrained"]
    with pytest.raises(ValueError, match="no run in .*nosuch"):
        pipeline.run(config, tmp_path)
    config["transfer"]["models"] = places
    config["seed"] = 3
    with pytest.raises(ValueError, match="was made with seed = 0, this run has 3"):
        pipeline.run(config, tmp_path)


def _save_images(folder, images):
    folder.mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{row}.png")


def test_images_are_encoded_and_searched(smoke, tmp_path, capfd):
    _, workdir = smoke
    config = demo.get_config("smoke").to_dict() | {"task": "encode"}
    pipeline.run(config, workdir)
    run = pipeline.Run(config, workdir)
    model, database = run.load_model("pretrained"), run.data.database
    codes = run.encode(model.encode_fn, model.variables, database)
    folder = workdir / "codes" / "pretrained"
    packed = np.load(folder / "database.npy")
    np.testing.assert_array_equal(hamming.unpack_codes(packed, num_bits=32), codes)
    about = json.loads((folder / "database.json").read_text())
    assert about["num_bits"] == 32 and about["paths"] is None
    assert (folder / "query.npy").is_file() and (folder / "train.npy").is_file()
    # Images of the database find themselves, among others of the same code.
    _save_images(tmp_path / "images", database.images[[5, 9]])
    config |= {"task": "search"}
    config["search"] |= {"queries": str(tmp_path / "images"), "num_results": len(database)}
    capfd.readouterr()
    pipeline.run(config, workdir)
    found = re.findall(r"^ +(\d+)  database\[(\d+)\]$", capfd.readouterr().out, flags=re.MULTILINE)
    assert len(found) == 2 * len(database) and {("0", "5"), ("0", "9")} <= {*found}
    distances = [int(distance) for distance, _ in found[: len(database)]]
    assert distances == sorted(distances)
    with Image.open(workdir / "search.png") as picture:
        assert picture.size == ((1 + len(database)) * 32, 2 * 32)
        np.testing.assert_array_equal(np.asarray(picture)[:32, :32], database.images[5])
    # A folder of one's own.
    _save_images(tmp_path / "mine", database.images[:6])
    config["encode"] |= {"images": str(tmp_path / "mine")}
    pipeline.run(config | {"task": "encode"}, workdir)
    config["search"] |= {"queries": str(tmp_path / "mine" / "4.png"), "codes": "images"}
    capfd.readouterr()
    pipeline.run(config, workdir)
    lines = capfd.readouterr().out.splitlines()
    assert f"         0  {tmp_path / 'mine' / '4.png'}" in lines
    for changes, message in (
        ({"codes": "nosuch"}, r"nosuch.npy is missing; run the task 'encode'"),
        ({"codes": "../../x"}, "the name of a set of codes"),
        ({"queries": str(tmp_path / "nosuch")}, "no images in .*nosuch'; expected files that end"),
        ({"model": "hardened"}, "database.npy is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.run(
                config | {"search": config["search"] | {"codes": "database"} | changes}, workdir
            )
    (folder / "images.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"images.npy cannot be read .*; run the task 'encode'"):
        pipeline.run(config, workdir)


# --- several processes ---


def _restored(workdir, model):
    with checkpoints.CheckpointFolder(workdir / "models" / model / "checkpoints") as saved:
        return saved.restore().state


def test_two_processes_make_what_one_makes(smoke, tmp_path, cache):
    """Two processes of two devices each, on loopback, against one process of one device."""
    _, workdir = smoke
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.main", "--config=configs/demo.py:smoke"),
                *(f"--workdir={tmp_path / 'run'}", f"--compilation_cache={cache}"),
                # Tested on one process, and long to compile.
                "--config.evaluation.attack_suite=",
                *("--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"),
                f"--process_id={number}",
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # One of them reports.
    assert ["report: " in output for output in outputs] == [True, False]
    for model in ("pretrained", "hardened"):
        one, two = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(state["params"])])
            for state in (_restored(folder, model) for folder in (workdir, tmp_path / "run"))
        )
        # Adam makes much of small gradients; and SAAT's inner attack takes signs, so that one
        # near zero may fall to either side, at first by as much as a step. Three steps in all.
        np.testing.assert_allclose(one, two, atol=1e-2 if model == "pretrained" else 2e-2)
        assert np.median(np.abs(one - two)) < (1e-4 if model == "pretrained" else 2e-3)
        for attack in ("benign", "mainstay", "mainstay_targeted"):
            one, two = (
                json.loads((folder / "records" / model / f"{attack}.json").read_text())
                for folder in (workdir, tmp_path / "run")
            )
            assert two["protocol"] == one["protocol"]
            for metric, value in one["metrics"].items():
                np.testing.assert_allclose(two["metrics"][metric], value, atol=0.05)
    logs = [(folder / "models/hardened/metrics.jsonl") for folder in (workdir, tmp_path / "run")]
    one, two = ([json.loads(line)["step"] for line in path.open()] for path in logs)
    assert one == two


# --- wrong settings ---


def _listed(table):
    return f"; expected one of {re.escape(str(sorted(table)))}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task", "train", "unknown task 'train'" + _listed(pipeline.TASKS)),
        ("data.source", "coco", "unknown source 'coco'" + _listed(datasets.SOURCES)),
        ("data.num_train", 10**6, "num_train must be between 1 and num_database"),
        ("model.name", "resnet", "unknown network 'resnet'" + _listed(networks.NETWORKS)),
        ("model.num_bits", 0, "model.num_bits must be a whole number from 1 to 65536, got 0"),
        (
            "model.weights",
            "nosuch.pt",
            "expected a file of weights, got nosuch.pt, which does not exist",
        ),
        ("objective.name", "dhp", "unknown objective 'dhp'" + _listed(objectives.OBJECTIVES)),
        ("defenses.hardened.name", "sat", "unknown defence 'sat'" + _listed(defenses.DEFENSES)),
        ("pretrain.schedule.name", "step", r"unknown schedule 'step'; .*\['constant', 'cosine'"),
        (
            "defenses.hardened.schedule.name",
            "step",
            r"unknown schedule 'step'; .*\['constant', 'cosine'",
        ),
        ("pretrain.optimizer.name", "lamb", r"unknown optimizer 'lamb'; .*\['adam', 'sgd'\]"),
        (
            "defenses.hardened.optimizer.name",
            "lamb",
            r"unknown optimizer 'lamb'; .*\['adam', 'sgd'\]",
        ),
        ("attacks.mainstay.attack", "cw", "unknown attack 'cw'" + _listed(evaluation.ATTACKS)),
        ("attacks.mainstay.attack", "hag", r"'hag' has no option 'loss'; it has \['anneal', "),
        (
            "attacks.mainstay.loss",
            "mse",
            "unknown attack loss 'mse'" + _listed(attacks.CODE_LOSSES),
        ),
        (
            "attacks.mainstay",
            {"attack": "tha", "targeted": True, "epsilon": 0.1, "step_size": 0.01, "num_steps": 1},
            r"'tha' needs the sections \['tha'\] in config.learned",
        ),
        ("evaluation.protocol.ties", "random", r"unknown ties 'random'; .* \['average', "),
        ("pretrain.batch_size", 0, "batch_size must be"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(tmp_path, monkeypatch, path, value, message):
    # The chain, since a wrong name in its last stage must not cost the first.
    config = demo.get_config("smoke")
    *sections, name = path.split(".")
    owner = config
    for section in sections:
        owner = owner[section]
    owner[name] = value

    def trained(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(training, "train", trained)
    with pytest.raises(ValueError, match=message):
        pipeline.run(config.to_dict(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/demo.py:smok"], "expected one of ['', 'smoke']"),
        (["--config=configs/demos.py"], "configs/demos.py"),
        (["--config=configs/lists.py"], "root"),
        (
            ["--config=configs/demo.py:smoke", "--config.pretrain.num_epoch=3"],
            "config.pretrain has no field 'num_epoch'; it has ['accumulate', 'augment'",
        ),
        (
            ["--config=configs/demo.py:smoke", "--config.pretrain.num_epochs=three"],
            "--config.pretrain.num_epochs=three",
        ),
        (["--config=configs/demo.py:smoke", "tasks=evaluate"], "tasks=evaluate"),
        (["--config=configs/demo.py:smoke", "--process_id=0"], "need --distributed"),
        (
            ["--config=configs/demo.py:smoke", "--config.task=train"],
            "unknown task 'train'; expected",
        ),
    ],
)
def test_a_wrong_flag_gets_one_message_and_no_traceback(tmp_path, arguments, message):
    process = _main(f"--workdir={tmp_path / 'run'}", "--compilation_cache=", *arguments)
    assert process.returncode not in (0, None)
    answer = process.stdout + process.stderr
    assert message in answer
    assert "Traceback" not in answer, answer
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def digits():
    return pipeline.load_data(attacks_config.get_config("smoke").to_dict())


def _attacks(*names, task="compare_attacks"):
    config = attacks_config.get_config("smoke").to_dict() | {"task": task}
    config["attacks"] = {name: config["attacks"][name] for name in names}
    return config


def test_networks_for_attacks_are_checked_before_any_work(digits, tmp_path):
    data = digits
    odd, small = (dataclasses.replace(data, image_size=size) for size in (40, 16))
    for section, changes, images, message in (
        (
            "tha",
            {"options": {"pair": "circle"}},
            data,
            "learned.tha.options has no field 'pair'",
        ),
        ("prosgan", {"options": {"hash": 1}}, data, "learned.prosgan.options has no field 'hash'"),
        ("prosgan", {"base_width": 12}, data, "base_width must be a multiple of 8, got 12"),
        ("prosgan", {}, odd, "the generator needs height and width in multiples of 16 pixels"),
        ("prosgan", {}, small, "at least 32 pixels, got 16 x 16"),
    ):
        config = _attacks(section)
        config["learned"][section] |= changes
        with pytest.raises(ValueError, match=message):
            pipeline.Run(config, tmp_path / "refused", images)
        # Where it is not trained, its fields alone matter.
        for other in (_attacks("hag"), _attacks(section, task="train_hash")):
            if "options" in changes:
                break
            pipeline.Run(other | {"learned": config["learned"]}, tmp_path / "run", images)
    assert not (tmp_path / "refused").exists()


def test_packed_images_are_not_augmented(digits, tmp_path):
    data = digits

    class Stored:
        dtype, ndim, shape = np.dtype(np.uint8), 4, data.train.images.shape
        __len__ = data.train.images.__len__

    stored = dataclasses.replace(data.train, images=Stored())
    config = defenses_config.get_config("smoke").to_dict()
    config["defenses"]["cgat"]["augment"] = True
    with pytest.raises(ValueError, match="defenses.cgat.augment cannot be True for packed images"):
        pipeline.Run(config, tmp_path, dataclasses.replace(data, train=stored))


def test_options_of_another_defence_are_refused(tmp_path):
    config = demo.get_config("smoke").to_dict()
    config["defenses"]["hardened"]["name"] = "cgat"
    with pytest.raises(ValueError, match="defenses.hardened.options has no option 'loss'; it has"):
        pipeline.Run(config, tmp_path)


def test_weights_are_known_by_what_is_in_them(tmp_path):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    first.write_text("the same")
    digest = stages.weights_digest(str(first), tmp_path)
    first.rename(second)
    assert stages.weights_digest(str(second), tmp_path) == digest != ""
    assert stages.weights_digest("", tmp_path) == ""
    identities = []
    for weights in ("", str(second)):
        config = demo.get_config("smoke").to_dict()
        config["model"]["weights"] = weights
        identities.append(pipeline.Run(config, tmp_path / "run").identity)
    assert identities[0] == identities[1]
    with pytest.raises(ValueError, match="expected a file of weights, got .*first.npz, which does"):
        stages.weights_digest(str(first), tmp_path)
    # A trained model needs them no more.
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints") as saved:
        record = {"identity": {"weights": digest}, "step": 1, "num_steps": 1}
        saved.save(1, {"params": np.zeros(1)}, record)
    assert stages.weights_digest(str(first), tmp_path) == digest


def test_the_discriminator_learns_at_the_rates_of_its_steps():
    stage = {
        "num_epochs": 4,
        "schedule": {"name": "half_linear", "learning_rate": 0.6},
        "optimizer": {"name": "sgd"},
        "options": {"discriminator_every": 3},
    }
    optimizer = parts.make_discriminator_optimizer(stage, 5)
    one = np.float32(1)
    state, rates = optimizer.init(one), []
    for _ in range(8):
        change, state = optimizer.update(one, state, one)
        rates.append(-float(change))
    # Steps 0 and 3 of each epoch, of which two keep the rate.
    np.testing.assert_allclose(rates, np.repeat([0.6, 0.6, 0.4, 0.2], 2), rtol=1e-6)


def test_flags_of_xla_are_kept():
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    assert launch_main._with_cpu_flag("") == f"{flag}individual_dot"
    assert launch_main._with_cpu_flag("--a=1") == f"--a=1 {flag}individual_dot"
    assert launch_main._with_cpu_flag(f"{flag}off --a=1") == f"{flag}off --a=1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "was made with seed = 0, this run has 7"),
        ({"precision": "tensorfloat32"}, "precision = 'highest', this run has 'tensorfloat32'"),
        ({"model.num_bits": 64}, "model.num_bits = 32, this run has 64"),
    ],
)
def test_a_model_is_not_judged_with_other_data_or_settings(smoke, changes, message):
    _, workdir = smoke
    config = demo.get_config("smoke")
    config.task = "evaluate"
    before = (workdir / "config.json").read_text()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    targets = (workdir / "targets.npz").read_bytes()
    try:
        with pytest.raises(ValueError, match=message):
            pipeline.run(config.to_dict(), workdir)
    finally:
        (workdir / "targets.npz").write_bytes(targets)
    assert (workdir / "config.json").read_text() == before


def test_a_model_that_is_not_trained_is_named(tmp_path):
    config = demo.get_config("smoke")
    config.task = "evaluate"
    with pytest.raises(ValueError, match="'pretrained' is not trained: .* holds nothing; run the"):
        pipeline.run(config.to_dict(), tmp_path)
    assert not (tmp_path / "models").exists()
