"""A run's folder: where it may lie, who may write to it, and what its files say."""

import copy
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from configs import demo
from saat_jax import defenses, objectives, pipeline
from saat_jax.evaluation import suites
from saat_jax.pipeline import tasks, workdir


@pytest.fixture(scope="module")
def digits():
    return pipeline.load_data(demo.get_config("smoke").to_dict())


# --- the folder ---


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "the workdir is empty; name a folder such as runs/demo"),
        ("gs://bucket/run", "got gs://bucket/run; mount the bucket"),
        ("s3://bucket/run", "mount the bucket"),
        (pathlib.Path("gs://bucket/run"), "mount the bucket"),
        (__file__, "which is a file"),
    ],
)
@pytest.mark.parametrize("task", ["chain", "report"])
def test_a_folder_that_is_none_is_refused(tmp_path, monkeypatch, place, task, message):
    monkeypatch.chdir(tmp_path)
    config = demo.get_config("smoke").to_dict() | {"task": task}
    with pytest.raises(ValueError, match=message):
        pipeline.run(config, place)
    assert not list(tmp_path.iterdir())


def _hold(folder):
    """Another program that holds a folder, until it is killed."""
    code = """
import pathlib, sys, time
from saat_jax import defenses, objectives, pipeline
with pipeline.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_program_is_told_who_holds_the_folder(tmp_path):
    folder = tmp_path / "run"
    holder = _hold(folder)
    try:
        message = rf"{folder} is in use by process {holder.pid} on \S+, and two would"
        with pytest.raises(ValueError, match=message):
            pipeline.run(demo.get_config("smoke"), folder)
    finally:
        holder.kill()
        holder.communicate()
    # Released by its death, though its file is there.
    assert (folder / ".lock").is_file()
    with pipeline.locked(folder), pipeline.locked(folder):
        assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (folder / ".lock").exists()


def test_what_fails_at_once_leaves_no_folder(tmp_path):
    config = demo.get_config("smoke").to_dict()
    for task, message in (("encode", "'pretrained' is not trained"), ("search", "is empty; name")):
        with pytest.raises(ValueError, match=message):
            pipeline.run(config | {"task": task}, tmp_path / "run")
        assert not (tmp_path / "run").exists()


# --- config.json ---


def _stored(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def test_config_json_says_what_the_folder_holds(tmp_path, capsys):
    first = demo.get_config("smoke").to_dict()
    workdir.store_config(tmp_path, first)
    assert _stored(tmp_path) == json.loads(json.dumps(first))
    # What has left nothing is not held.
    second = copy.deepcopy(first)
    second["attacks"] = {"other": first["attacks"]["mainstay"]}
    second["defenses"] = {}
    workdir.store_config(tmp_path, second)
    assert list(_stored(tmp_path)["attacks"]) == ["other"]
    # What has left a record or a model is.
    (tmp_path / "records" / "pretrained").mkdir(parents=True)
    (tmp_path / "records" / "pretrained" / "mainstay.json").write_text("{}")
    (tmp_path / "models" / "hardened").mkdir(parents=True)
    workdir.store_config(tmp_path, first)
    workdir.store_config(tmp_path, second | {"task": "evaluate", "donate": False})
    stored = _stored(tmp_path)
    assert set(stored["attacks"]) == {"other", "mainstay"} and "hardened" in stored["defenses"]
    assert stored["task"] == "evaluate" and not list(tmp_path.glob("config-*"))
    assert not capsys.readouterr().out
    # Other settings of what is there: the earlier file is kept, and it is said.
    third = copy.deepcopy(first)
    third["attacks"]["mainstay"]["num_steps"] = 7
    workdir.store_config(tmp_path, third)
    assert _stored(tmp_path)["attacks"]["mainstay"]["num_steps"] == 7
    assert _stored(tmp_path, "config-1.json") == stored
    said = capsys.readouterr().out
    assert "attacks.mainstay.num_steps: 3 before, 7 now" in said and "config-1.json" in said


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"garbage", "is no JSON"),
        (b"", "is no JSON (it is empty)"),
        (b"[1]", "must be an object of JSON, got a list"),
        (b'{"seed": 0, "precision": "highest", "data": DATA}', ": the config lacks 'task'"),
    ],
)
def test_a_damaged_config_of_another_run_is_named(tmp_path, digits, content, fault):
    config = demo.get_config("smoke").to_dict()
    run = pipeline.Run(config, tmp_path / "mine", digits)
    path = tmp_path / "other" / "config.json"
    path.parent.mkdir()
    path.write_bytes(content.replace(b"DATA", json.dumps(config["data"]).encode()))
    with pytest.raises(ValueError) as error:
        run.other(str(path.parent))
    assert str(path) in str(error.value) and fault in str(error.value)


# --- what a start says, and what data it takes ---


def test_a_start_names_its_devices_and_what_is_left(tmp_path, digits):
    run = pipeline.Run(demo.get_config("smoke").to_dict(), tmp_path, digits)

    def words():
        return [words for part in tasks._PARTS["chain"] for words in part.words(run)]

    attack = "judge 6 x 40 queries"
    assert words() == ["train pretrained 3 steps", "train hardened 3 steps", attack]
    folder = run.folder("pretrained")
    (folder / "checkpoints" / "latest" / "1").mkdir(parents=True)
    line = {"step": 1, "step_ms": 90_000.0, "devices": "8 x CPU"}
    (folder / "speed.jsonl").write_text(json.dumps(line) + "\n")
    assert words()[0] == "train pretrained 2 steps (about 3.0 minutes)"
    # Of another machine it says nothing.
    (folder / "speed.jsonl").write_text(json.dumps(line | {"devices": "1 x GPU"}) + "\n")
    assert words()[0] == "train pretrained 2 steps"
    (folder / "checkpoints" / "latest" / "3").mkdir()
    assert words() == ["train hardened 3 steps", attack]


def _with_labels(data, change):
    def changed(split):
        return dataclasses.replace(split, labels=change(split.labels))

    splits = {name: changed(getattr(data, name)) for name in ("train", "query", "database")}
    return dataclasses.replace(data, **splits)


@pytest.mark.parametrize("change", [np.ones_like, lambda labels: labels * 0 + np.eye(10)[0]])
def test_targets_are_drawn_where_they_are_needed(tmp_path, digits, change):
    data = _with_labels(digits, lambda labels: change(labels).astype(np.float32))
    config = demo.get_config("smoke").to_dict()
    for task in ("train_hash", "harden", "encode"):
        pipeline.Run(config | {"task": task}, tmp_path / "run", data)
    untargeted = config | {"attacks": {"mainstay": config["attacks"]["mainstay"]}}
    run = pipeline.Run(untargeted, tmp_path / "run", data)
    assert run.targets_of(run.suite) is None
    with pytest.raises(ValueError, match="no label vector for 40 queries"):
        pipeline.Run(config, tmp_path / "run", data)
    assert not (tmp_path / "run" / "targets.npz").exists()
    # Where they can be drawn, an untargeted suite has them too: its records say benign t-MAP.
    run = pipeline.Run(untargeted, tmp_path / "run", digits)
    assert run.targets_of(run.suite).shape == (40, 10)


# --- what is registered from outside ---


def test_a_defence_and_an_objective_of_ones_own_train(tmp_path, digits, monkeypatch):
    def pull(model, objective, optimizer, *, seed, strength):
        """Plain hashing, whose gradients are as strong as asked for."""
        scaled = optax.GradientTransformation(
            optimizer.init,
            lambda gradients, *rest: optimizer.update(
                jax.tree.map(lambda x: strength * x, gradients), *rest
            ),
        )
        return defenses.make_hashing_update(model, objective, scaled, seed=seed)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Spread(type(objectives.create_objective("dph"))):
        pass

    for table, name, entry in (
        (defenses.DEFENSES, "pull", defenses.Defense(pull, options={"strength": ...})),
        (objectives.OBJECTIVES, "spread", Spread),
    ):
        # Taken away again after the test.
        monkeypatch.setitem(table, name, None)
        monkeypatch.delitem(table, name)
        table.register(name, entry)
    config = demo.get_config("smoke").to_dict()
    config["objective"] = {"name": "spread"}
    stage = {**config["defenses"]["hardened"], "name": "pull", "options": {}}
    config["defenses"] = {"pulled": stage}
    with pytest.raises(ValueError, match="pulled.options needs the option 'strength'"):
        pipeline.validate(config)
    stage["options"] = {"strength": 0.5}
    run = pipeline.Run(config, tmp_path, digits)
    pipeline.train_hash(run)
    pipeline.harden(run, "pulled")
    before, after = (run.load_model(name).variables for name in ("pretrained", "pulled"))
    kernels = [np.asarray(x["params"]["hash"]["kernel"]) for x in (before, after)]
    assert np.any(kernels[0] != kernels[1])


# --- the worst case ---


def test_a_run_judges_by_the_worst_case_in_each_ball(tmp_path, capsys, monkeypatch):
    # One member: how a run is told of its suite is another matter than what it finds.
    few = {"flips": suites.PRESETS["cheap"]["flips"]}
    monkeypatch.setattr(suites, "PRESETS", {"cheap": few})
    config = demo.get_config("smoke").to_dict()
    config["evaluation"].update(attack_suite="cheap", epsilons=(4 / 255, 16 / 255))
    del config["attacks"]["mainstay_targeted"]
    config["task"] = "compare_attacks"
    pipeline.run(config, tmp_path)
    table = capsys.readouterr().out
    rows = [line for line in table.splitlines() if "/255  " in line]
    assert [row.split("  ")[1] for row in rows[:2]] == ["worst case, 4/255", "worst case, 16/255"]
    scores = {
        name: json.loads((tmp_path / f"records/pretrained/{name}.json").read_text())["metrics"][
            "map"
        ]
        for name in ("benign", "worst_case_4", "worst_case_16")
    }
    assert scores["benign"] >= scores["worst_case_4"] >= scores["worst_case_16"]
    page = (tmp_path / "report.html").read_text()
    assert "Worst case: MAP@5000 by the radius of the ball" in page
    assert "Do not believe these numbers yet" in page and "near chance" in page
