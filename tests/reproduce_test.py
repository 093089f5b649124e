"""The grid of the papers' tables and figures: planned, run at the smallest scale, collected."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs import reproduce as cells
from launch.reproduce import __main__ as reproduce
from launch.reproduce import claims, collect, estimate, grid, plan, published, runner, sets
from saat_jax import files

ROWS = published.load_published()


def _job(workdir, **changes):
    settings = dict(small=True, roots={}, weights=None, seeds=(0,), settings={}) | changes
    return plan.Job(workdir=workdir, **settings)


def _measure(table, **wanted):
    """The measurement of the one published row that has these entries."""
    (row,) = [
        row
        for row in grid.rows_of([table])
        if all(getattr(row, name) == value for name, value in wanted.items())
    ]
    return grid.measurement(row)


def test_every_published_figure_is_a_quantity_that_a_config_can_measure():
    points = grid.needed(ROWS, grid.FIGURES.values())
    models = {m for point in points for m in (point.model, point.target) if m}
    configs = {
        model: cells.make_config(**dataclasses.asdict(model), small=small)
        for model in models
        for small in (False, True)
    }
    for point in points:
        config = configs[point.model]
        assert point.form == "pretrained" or point.form in config.defenses
        assert point.attack == "benign" or point.attack in config.attacks
    for point in grid.needed(ROWS, []):
        if point.section == "metrics" and point.attack != "benign":
            targeted = configs[point.model].attacks[point.attack].targeted
            assert targeted == ("t_map" in point.quantity)


@pytest.mark.parametrize(
    ("table", "row", "expected"),
    [
        (
            "saat:II",
            dict(dataset="MS-COCO", bits="16", attack="SAAT", metric="t-MAP@5000"),
            ("saat-coco-dph-alexnet-16", "pretrained", "mainstay_targeted", "t_map", 100.0),
        ),
        (
            "saat:III",
            dict(dataset="NUS-WIDE", bits="64", attack="HAG", defense="ATRDH"),
            ("saat-nuswide-dph-alexnet-64", "atrdh", "hag", "map", 100.0),
        ),
        (
            "saat:VI",
            dict(bits="48", iterations="100"),
            ("saat-nuswide-dph-alexnet-48", "pretrained", "mainstay", "map", 100.0),
        ),
        (
            "saat:VI",
            dict(bits="48", iterations="500"),
            ("saat-nuswide-dph-alexnet-48", "pretrained", "mainstay_500", "map", 100.0),
        ),
        (
            "saat:VII",
            dict(dataset="FLICKR-25K", attack="SDHA", metric="MSEx1e-4"),
            ("saat-flickr25k-dph-alexnet-32", "pretrained", "sdha", "mse", 1e4),
        ),
        (
            "saat:VIII",
            dict(hashing_method="CSQ", backbone="VGG19", defense="SAAT", attack="Original"),
            ("saat-nuswide-csq-vgg19-32", "saat", "benign", "map", 100.0),
        ),
        (
            "prosgan:1",
            dict(dataset="NUS-WIDE", bits="12", attack="DHTA", metric="theory-t-MAP@all"),
            ("prosgan-nuswide-dpsh-vgg11-12", "pretrained", "dhta", "theory_t_map", 100.0),
        ),
        (
            "prosgan:2",
            dict(dataset="NUS-WIDE", attack="DHTA+I-FGSM", metric="time_s_per_image"),
            ("prosgan-nuswide-dpsh-vgg11-32", "pretrained", "dhta_ifgsm", "seconds_per_image", 1.0),
        ),
    ],
)
def test_a_published_figure_names_its_measurement(table, row, expected):
    point = _measure(table, **row)
    assert expected == (
        point.model.name,
        point.form,
        point.attack,
        point.quantity,
        point.factor,
    )
    assert point.target is None


def test_a_transfer_names_both_networks():
    row = dict(attack="DHTA", source_model="DPSH-AlexNet-12", target_model="DPSH-ResNet18-32")
    point = _measure("prosgan:3", **row)
    assert point.model.name == "prosgan-nuswide-dpsh-alexnet-12"
    assert point.target.name == "prosgan-nuswide-dpsh-resnet18-32"
    benign = _measure("prosgan:3", attack="Original", target_model="DPSH-VGG11-12")
    assert benign.model == benign.target and benign.attack == "benign"


def test_a_plan_holds_every_stage_once_and_after_those_it_needs(tmp_path):
    points = grid.needed(ROWS, grid.FIGURES.values())
    for small in (True, False):
        stages = plan.plan(_job(tmp_path, small=small), points)
        assert len({stage.title for stage in stages}) == len(stages)
        ready = set()
        for stage in stages:
            if stage.action == "train":
                ready.add((stage.run_name, "pretrained"))
            elif stage.action == "harden":
                assert (stage.run_name, "pretrained") in ready
                ready.add((stage.run_name, stage.form))
            elif stage.action == "judge":
                assert (stage.run_name, stage.form) in ready
            else:
                assert {(f"{m.name}-seed0", "pretrained") for m in stage.models} <= ready


def test_tables_share_what_they_have_in_common(tmp_path):
    one = plan.plan(_job(tmp_path), grid.needed(grid.rows_of(["saat:II"]), []))
    both = plan.plan(_job(tmp_path), grid.needed(grid.rows_of(["saat:II", "saat:V"]), []))
    assert one == both
    # Four code lengths, trained and judged, for all three data sets; at full scale, for each.
    assert [stage.action for stage in one] == ["train", "judge"] * 4
    full = plan.plan(_job(tmp_path, small=False), grid.needed(grid.rows_of(["saat:II"]), []))
    assert len(full) == 3 * len(one)
    twice = plan.plan(_job(tmp_path, seeds=(0, 1)), grid.needed(grid.rows_of(["saat:II"]), []))
    assert len(twice) == 2 * len(one)


def test_more_steps_and_more_images_cost_more(tmp_path):
    job = _job(tmp_path, small=False)
    stages = plan.plan(job, grid.needed(grid.rows_of(["saat:II", "saat:III"]), []))
    by_title = {stage.title: estimate.cost(job, stage) for stage in stages}
    flickr, coco = (f"saat-{name}-dph-alexnet-32-seed0" for name in ("flickr25k", "coco"))
    assert by_title[f"{coco} judge saat"] > by_title[f"{flickr} judge saat"]
    assert by_title[f"{flickr} harden saat"] > by_title[f"{flickr} train pretrained"] / 5
    # 100 epochs of 5,000 images, three passes each, and the database 11 times: AlexNet's
    # forward pass is 1.4 GFLOP, fewer by Winograd's algorithm on a CPU.
    passes = 3 * 100 * 5000 + 11 * 25000
    assert by_title[f"{flickr} train pretrained"] == pytest.approx(1.42e9 * passes, rel=0.35)


def test_commands_cover_the_plan(tmp_path, capsys):
    argv = ["--table", "prosgan:5", "--workdir", str(tmp_path), "--scale", "small", "--commands"]
    assert reproduce.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    runs = [line.split("--only ")[1] for line in lines if "--only" in line]
    assert len(runs) == 5 and runs[-1] == "transfer-prosgan-small-seed0"
    assert lines[-1].endswith("--collect") and not any("--commands" in line for line in lines)


def test_commands_may_be_pasted_into_a_shell(tmp_path):
    stages = plan.plan(_job(tmp_path), grid.needed(grid.rows_of(["saat:VII"]), []))
    lines = plan.commands(stages, ["--set", "model.widths=(4, 8)", "--commands"]).splitlines()
    assert lines[-1] == "saat-jax reproduce --set 'model.widths=(4, 8)' --collect"


def test_wrong_commands_are_answered_by_what_to_mend(tmp_path, capsys):
    base = ["--workdir", str(tmp_path)]
    with pytest.raises(SystemExit):
        reproduce.main([*base, "--table", "saat:IX"])
    assert "unknown table 'saat:IX'; expected one of saat:II," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reproduce.main([*base, "--table", "saat:II", "--root", "nuswide"])
    assert "expected NAME=VALUE, got 'nuswide'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reproduce.main([*base, "--table", "saat:II", "--root", "nus-wide=FOLDER"])
    shown = capsys.readouterr().err
    assert "--root nus-wide=FOLDER is of no known set; expected one of flickr25k, nus" in shown
    with pytest.raises(ValueError, match="no lists of saat:coco, saat:flickr25k, saat:nuswide; "):
        reproduce.main([*base, "--table", "saat:II"])
    with pytest.raises(ValueError, match="no run 'x' in the plan"):
        reproduce.main([*base, "--table", "saat:II", "--only", "x"])
    with pytest.raises(ValueError, match="no weights of vgg11 in .*vgg11.safetensors or vgg11.npz"):
        plan.find_weights(tmp_path, "vgg11")


@pytest.mark.parametrize("variant", ["", "saat,coco,dph,alexnet", "x,coco,dph,alexnet,32"])
def test_unknown_cells_are_refused(variant):
    with pytest.raises(ValueError, match="unknown variant"):
        cells.get_config(variant)


def test_a_cell_has_a_task_that_it_can_end():
    assert cells.get_config("saat,coco,dph,alexnet,32").task == "chain"
    config = cells.get_config("prosgan,coco,dpsh,vgg11,32")
    assert config.task == "compare_attacks" and not config.defenses


@pytest.mark.parametrize(
    ("name", "value"),
    [("pretrain.num_epoch", 1), ("pretrian.num_epochs", 1), ("pretrain.num_epochs", "one")],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, name, value):
    model = grid.GridModel("saat", "coco", "dph", "alexnet", 32)
    with pytest.raises(ValueError, match=rf"--set, saat-coco\S+: {name}={value!r} does not fit"):
        _job(tmp_path, settings={name: value}).config(model, 0)


def _lists(folder, query, database, train, *, num_classes=2):
    folder.mkdir()
    for number, name in enumerate(("test", "other")):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{name}.png")
    label = " ".join(["1", *"0" * (num_classes - 1)])
    for name, number in (("test", query), ("database", database), ("train", train)):
        image = "test" if name == "test" else "other"
        (folder / f"{name}.txt").write_text(f"{image}.png {label}\n" * number)
    return str(folder)


def test_a_folder_that_is_not_the_set_it_is_called_is_refused(tmp_path, monkeypatch):
    known = {"saat": sets.Sizes(2, 6, 3, 2), "prosgan": sets.Sizes(3, 5, 3, 2)}
    for paper, sizes in known.items():
        monkeypatch.setitem(sets.PUBLISHED, (paper, "coco"), sizes)
    roots = {"saat:coco": _lists(tmp_path / "a", 2, 6, 3), "coco": _lists(tmp_path / "b", 3, 5, 3)}
    models = {p: grid.GridModel(p, "coco", "dph", "alexnet", 32) for p in known}
    job = _job(tmp_path, small=False, roots=roots)
    for paper, model in models.items():
        found = job.sizes(model)
        assert found == dataclasses.replace(known[paper], unlabelled=0)
        assert job.config(model, 0)["data"]["root"] == job.root(model)
    wrong = _job(tmp_path, small=False, roots={"coco": roots["saat:coco"]})
    assert wrong.sizes(models["saat"])
    with pytest.raises(
        ValueError, match=r"not coco as prosgan has it: it has 2 for 3 \(query\), 6"
    ):
        wrong.sizes(models["prosgan"])
    allowed = dataclasses.replace(wrong, any_lists=True)
    assert allowed.sizes(models["prosgan"]).query == 2
    assert "2 for 3 (query)" in collect.set_notes(allowed, models.values())[0]
    argv = [
        "--table",
        "prosgan:7",
        "--workdir",
        str(tmp_path / "w"),
        "--root",
        "coco=" + roots["coco"],
    ]
    with pytest.raises(ValueError, match="start from ImageNet's weights; .* or say --from-scratch"):
        reproduce.main(argv)


def test_a_setting_reaches_what_tables_vary_or_is_refused(tmp_path):
    model = grid.GridModel("saat", "coco", "dph", "alexnet", 32)
    weighted = cells.weighted("adversarial_weight", 2.0)
    job = _job(tmp_path, settings={"defenses.saat.num_epochs": 2, "attacks.mainstay.epsilon": 0.1})
    config = job.config(model, 0, ["saat", weighted], ["mainstay_500"])
    assert [stage["num_epochs"] for stage in config["defenses"].values()] == [2, 2]
    assert config["attacks"]["mainstay_500"]["epsilon"] == 0.1
    varied = _job(tmp_path, settings={"defenses.saat.options.adversarial_weight": 3.0})
    assert (
        varied.config(model, 0, ["saat"])["defenses"]["saat"]["options"]["adversarial_weight"] == 3
    )
    with pytest.raises(
        ValueError, match=rf"is what a table or figure varies, by {weighted}; leave"
    ):
        varied.config(model, 0, ["saat", weighted])


def test_an_estimate_counts_reading_and_takes_the_speed_of_the_machine(tmp_path):
    job = _job(tmp_path, roots={"small": _lists(tmp_path / "lists", 2, 6, 3)})
    (item, _) = plan.plan(
        job, [_measure("saat:VII", dataset="NUS-WIDE", attack="HAG", metric="MAP@5000")]
    )
    work = estimate._work(job, item, item.models[0])
    # 60 epochs of 3 images, and the queries and the database twice.
    assert work.reads == 60 * 3 + 2 * 8
    shown = estimate.show_plan(job, [item], teraflops=None)
    assert "the speed measured on this machine" in shown
    assert estimate._hours(job, item, 1e-6) > estimate._hours(job, item, 1.0) > 0


def test_what_a_stand_in_measures_counts_once():
    points = [grid.measurement(row) for row in ROWS]
    counts = [len({grid.source(p, one_set=s) for p in points}) for s in (False, True)]
    assert counts == [1059, 521]
    cells = [published.Cell(row, (row.value,)) for row in ROWS]
    found = [claims.check_claims(cells, one_set=one_set) for one_set in (False, True)]
    # ProS-GAN's lead over DHTA has a bound of its own on MS-COCO. Of those with a figure in
    # their text, 14 are left; by data set they were 27.
    assert [len(part) for part in found] == [51, 50]
    assert [sum(bool(claim.printed) for claim in part) for part in found] == [14, 13]
    (best,) = (c for c in found[1] if c.statement == "Table II: SAAT's attack leaves the least MAP")
    assert (best.ours.num_held, best.published.num_held) == (4, 12)


def test_points_of_figures_reach_the_claims(tmp_path, monkeypatch):
    values = {"saat": 31.0, "saat_adversarial_weight_0p01": 30.0}
    monkeypatch.setattr(collect, "value_of", lambda job, point, seed: values.get(point.form))
    collect.collect(_job(tmp_path), [], [grid.FIGURES["saat:fig6"]])
    lines = (tmp_path / "claims.md").read_text().splitlines()
    (line,) = (line for line in lines if "falls with lambda" in line)
    # Of two points that are not neighbours nothing is known.
    assert "| not run |" in line
    values["saat_adversarial_weight_2"] = 29.0
    collect.collect(_job(tmp_path), [], [grid.FIGURES["saat:fig6"]])
    lines = (tmp_path / "claims.md").read_text().splitlines()
    (line,) = (line for line in lines if "falls with lambda" in line)
    assert "| holds | 1 of 1; 0 clearly, 4 not run | 2.00 | - | - | 32 |" in line


def test_panels_of_a_stand_in_are_drawn_once_under_its_name(tmp_path):
    job = _job(tmp_path, roots={"small": "some/photos"})
    drawn = collect._drawn(job, grid.FIGURES["saat:fig3"])
    assert [panel.title for panel in drawn.panels] == [
        "photos, non-targeted",
        "photos, targeted",
    ]
    assert len(collect._drawn(_job(tmp_path, small=False), grid.FIGURES["saat:fig3"]).panels) == 4


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert collect._commit() == "unknown"


def test_what_was_made_with_other_settings_is_refused(tmp_path):
    job = _job(tmp_path)
    row = dict(dataset="NUS-WIDE", bits="32", attack="HAG", defense="SAAT")
    stages = plan.plan(job, [_measure("saat:III", **row)])
    train, harden, judge = stages
    folder = job.folder(judge.run_name)
    for stage in stages:
        plan.mark_done(job, stage)
        # What it was to leave is not there.
        assert not plan.is_done(job, stage)
    for form in ("pretrained", "saat"):
        (folder / "models" / form / "checkpoints").mkdir(parents=True)
    files.write_json(folder / "records" / "saat" / "hag.json", {})
    assert all(plan.is_done(job, stage) for stage in stages)
    # Where files lie decides nothing, nor how often is told.
    moved = {"model.weights": "elsewhere.pth", "pretrain.log_every": 7}
    assert all(plan.is_done(_job(tmp_path, settings=moved), stage) for stage in stages)
    # Another table's attack is still to be made.
    more = plan.plan(job, [_measure("saat:III", **row | {"attack": "SDHA"})])[-1]
    assert more.run_name == judge.run_name and not plan.is_done(job, more)

    for name, value, refused in (
        ("pretrain.num_epochs", 3, stages),
        ("model.dtype", "bfloat16", stages),
        ("data.num_query", 8, stages),
        ("defenses.saat.options.num_steps", 3, [harden, judge]),
        ("attacks.hag.num_steps", 3, [judge]),
        ("evaluation.protocol.k", 9, [judge]),
    ):
        other = _job(tmp_path, settings={name: value})
        for stage in refused:
            with pytest.raises(ValueError, match=rf"{name} = .*, this run has {value!r}; use an"):
                plan.is_done(other, stage)
        assert all(plan.is_done(other, stage) for stage in stages if stage not in refused)


# What makes a run of the small scale as small as it can be.
TINY = {
    "data.num_query": 8,
    "data.num_database": 48,
    "data.num_train": 32,
    "pretrain.num_epochs": 1,
    **{f"attacks.{name}.num_steps": 2 for name in ("hag", "sdha", "mainstay")},
}


def test_a_table_and_a_figure_are_made_and_not_made_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "start_jax", lambda precision: None)
    argv = ["--table", "saat:VII", "--table", "saat:fig7", "--workdir", str(tmp_path)]
    argv += ["--scale", "small", *(w for k, v in TINY.items() for w in ("--set", f"{k}={v}"))]
    assert reproduce.main(argv) == 0
    run = tmp_path / "runs" / "saat-small-dph-alexnet-32-seed0"
    path = tmp_path / "tables" / "saat_VII.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 12 and all(row["page"] for row in rows)
    assert {row["dataset"] for row in rows} == {"digits"}
    for row in rows:
        attack = {"HAG": "hag", "SDHA": "sdha", "SAAT": "mainstay"}[row["attack"]]
        record = json.loads((run / "records" / "pretrained" / f"{attack}.json").read_text())
        if row["metric"] == "MAP@5000":
            assert float(row["ours"]) == pytest.approx(100 * record["metrics"]["map"], rel=1e-5)
        if row["metric"] == "MSEx1e-4":
            assert float(row["ours"]) == pytest.approx(
                1e4 * record["perturbation"]["mse"], rel=1e-5
            )
    for name in ("index.html", "claims.html", "figures/saat_fig7.png", "figures/saat_fig7.svg"):
        assert (tmp_path / name).is_file()
    text = path.read_text()
    capsys.readouterr()
    assert reproduce.main(argv) == 0
    assert "2 stages, 2 of them done" in capsys.readouterr().out
    assert path.read_text() == text


def test_a_failure_is_told_and_what_does_not_need_it_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "start_jax", lambda precision: None)
    monkeypatch.setattr(reproduce, "collect", lambda *_: "nowhere")
    done = []

    class Failing(runner.Runner):
        def __call__(self, stage):
            if stage.models[0].num_bits == 24:
                raise ValueError("the disk is full")
            done.append(stage.title)

    monkeypatch.setattr(runner, "Runner", Failing)
    argv = ["--table", "prosgan:5", "--workdir", str(tmp_path), "--scale", "small"]
    assert reproduce.main(argv) == 1
    shown = capsys.readouterr().err
    assert "prosgan-small-dpsh-vgg11-24-seed0 train pretrained: ValueError: the disk" in shown
    assert len(done) == 3 and "transfer-prosgan-small-seed0 transfer: ValueError: " in shown


def test_a_failed_defence_stops_what_needs_it_and_no_more(tmp_path, monkeypatch):
    done = []

    class Failing(runner.Runner):
        def __call__(self, stage):
            title = stage.title.partition(" ")[2]
            if title == "harden atrdh":
                raise RuntimeError("out of memory")
            if title == "judge pretrained":
                raise FloatingPointError("NaN")
            done.append(title)

    monkeypatch.setattr(runner, "Runner", Failing)
    monkeypatch.setattr(runner, "cost", lambda *_: 1.0)
    point = _measure("saat:III", dataset="NUS-WIDE", bits="32", attack="HAG", defense="SAAT")
    forms = ("pretrained", "atrdh", "saat")
    wanted = [dataclasses.replace(point, form=form) for form in forms]
    job = _job(tmp_path)
    failed = runner.run_all(job, plan.plan(job, wanted), None)
    assert done == ["train pretrained", "harden saat", "judge saat"]
    run = "saat-small-dph-alexnet-32-seed0"
    assert failed == [
        f"{run} harden atrdh: RuntimeError: out of memory",
        f"{run} judge pretrained: FloatingPointError: NaN",
        f"{run} judge atrdh: ValueError: {run} atrdh failed",
    ]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"[1]", "list"),
        (b'{"metrics": {"map": "much"}}', "map must be a number, got 'much'"),
        (b'{"metrics": [0.5]}', "map must be a number"),
    ],
)
def test_a_damaged_record_is_named_not_collected(tmp_path, content, says):
    job = _job(tmp_path)
    point = grid.needed(grid.rows_of(["saat:II"]), [])[0]
    path = collect.record_of(job, point, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        collect.value_of(job, point, 0)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--teraflops", "0"], "teraflops"),
        (["--teraflops", "nan"], "teraflops"),
        (["--seeds", "-1"], "seed"),
        (["--root", "small=/no/such/folder"], "no such folder"),
        (["--workdir", __file__], "is a file"),
    ],
)
def test_bad_words_of_the_command_are_answered(tmp_path, capsys, words, says):
    argv = ["--table", "saat:II", "--scale", "small", "--workdir", str(tmp_path), *words]
    with pytest.raises((ValueError, SystemExit)) as error:
        reproduce.main([*argv, "--dry-run"])
    assert says in capsys.readouterr().err + str(error.value)
