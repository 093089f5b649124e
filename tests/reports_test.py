"""Tests of the reports, on a small made-up run."""

import ast
import base64
import io
import json
import pathlib
import re
import sys
from importlib import resources

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from saat_jax import reports
from saat_jax.reports import charts, records
from tests.pages import Page

EPSILON = 8 / 255
PROTOCOL = {
    "dataset": "digits",
    "k": 5000,
    "ties": "average",
    "normalizer": "hits",
    "num_queries": 500,
    "num_database": 2000,
    "num_train": 1000,
    "num_bits": 32,
    "num_classes": 10,
    "base_rate": 0.35,
    "seed": 0,
    "targets": "disjoint",
}
METRICS = {
    ("pretrained", "benign"): {"map": 0.9012, "t_map": 0.1234, "wap": 1.2},
    ("pretrained", "mainstay"): {"map": 0.0981, "theory_map": 0.0970},
    ("pretrained", "mainstay_targeted"): {"t_map": 0.8812, "theory_t_map": 0.8900},
    ("hardened", "benign"): {"map": 0.8403, "t_map": 0.1301},
    ("hardened", "mainstay"): {"map": 0.4510, "theory_map": 0.1100},
    ("hardened", "mainstay_targeted"): {"t_map": 0.3050, "theory_t_map": 0.8700},
}
PERTURBATION = {
    "linf": EPSILON,
    "l2": 1.52,
    "mse": 7.53e-4,
    "psnr": 31.23,
    "root_mean_square": 0.02744,
    "matrix_norm_linf": 0.94,
    "matrix_norm_l2": 0.52,
}
NUM_QUERIES = 4
SIDE = 32


def write_run(
    workdir: pathlib.Path,
    *,
    metrics: dict[tuple[str, str], dict[str, float]] = METRICS,
    protocol: dict[str, object] = PROTOCOL,
    side: int = SIDE,
) -> pathlib.Path:
    """Writes the files of a finished run; returns its folder."""
    rng = np.random.default_rng(0)
    _write_json(workdir / "config.json", {"seed": 0, "attack": {"epsilon": EPSILON}})
    for i, model in enumerate(dict.fromkeys(model for model, _ in metrics)):
        lines = []
        for step in range(20, 640, 20):
            lines.append({"step": step, "epoch": step / 63, "loss": 1 / (1 + step / 60) + 0.2 * i})
            if step % 100 == 0:
                lines.append({"step": step, "epoch": step / 63, "map": 0.9 - 30 / step - 0.05 * i})
        path = workdir / "models" / model / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = np.eye(10, dtype=bool)[:NUM_QUERIES] | np.eye(10, dtype=bool)[5 : 5 + NUM_QUERIES]
    targets = np.roll(labels, 2, axis=1)
    benign = np.stack([_digits(np.flatnonzero(row), side) for row in labels])
    for (model, attack), numbers in metrics.items():
        targeted = attack.endswith("targeted")
        score = numbers.get("t_map" if targeted else "map", 0.5)
        _write_json(
            workdir / "records" / model / f"{attack}.json",
            {
                "model": model,
                "attack": attack,
                "targeted": targeted,
                "metrics": numbers,
                "curves": _curves(score, attack == "benign"),
                "perturbation": None if attack == "benign" else PERTURBATION,
                "settings": None
                if attack == "benign"
                else {"epsilon": EPSILON, "step_size": 1 / 255, "num_steps": 100, "loss": "mean"},
                "protocol": protocol,
                "seconds_per_image": None if attack == "benign" else 0.012,
                "device": "cpu",
                "version": "0.1.0",
                "step": 630,
            },
        )
        relevant = rng.random((NUM_QUERIES, 10)) < score
        wanted = targets if targeted else labels
        top = [
            [_digits(np.flatnonzero(row if hit else ~row)[:2], side) for hit in hits]
            for row, hits in zip(wanted, relevant, strict=True)
        ]
        change = EPSILON * np.sign(rng.normal(size=benign.shape)) * (attack != "benign")
        np.savez(
            workdir / "records" / model / f"{attack}.npz",
            images=np.clip(benign + change, 0, 1).astype(np.float32),
            benign_images=benign,
            top_images=np.round(255 * np.array(top)).astype(np.uint8),
            top_relevant=relevant,
            labels=labels,
            target_labels=targets,
            class_names=np.array(list("0123456789")),
        )
    return workdir


def _write_json(path: pathlib.Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _digits(digits: np.ndarray, side: int) -> np.ndarray:
    canvas = PIL.Image.new("RGB", (SIDE, SIDE), (48, 56, 70))
    draw = PIL.ImageDraw.Draw(canvas)
    for place, digit in enumerate(digits):
        draw.text((3 + 14 * place, 4 + 9 * place), str(digit), (240, 220, 150 + 50 * place))
    return np.asarray(canvas.resize((side, side)), np.float32) / 255


def _curves(score: float, is_benign: bool) -> dict[str, dict[str, list[float]]]:
    recall = np.arange(1, 101) / 100
    n = np.arange(100, 1001, 10)

    def pair(level: float, suffix: str) -> dict[str, dict[str, list[float]]]:
        precision = 0.35 + (level - 0.35) * (1 - recall**4)
        at_n = level + (0.35 - level) * (n / 2000) ** 2
        return {
            f"precision_recall{suffix}": {
                "recall": recall.tolist(),
                "precision": precision.tolist(),
            },
            f"precision_at_n{suffix}": {"n": n.tolist(), "precision": at_n.tolist()},
        }

    return pair(score, "") | (pair(0.05 + score / 10, "_target") if is_benign else {})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder with a finished run and its report. Read only."""
    workdir = write_run(tmp_path_factory.mktemp("run"))
    reports.write_report(workdir)
    return workdir


@pytest.fixture
def no_drawing(monkeypatch):
    """Spares the time of drawing where a test is not about charts."""
    monkeypatch.setattr(charts, "draw", lambda chart, *, theme: b"")


def test_records_are_sorted_by_model_then_benign_then_targeted_last(tmp_path):
    names = ["hag", "benign", "a_targeted", "mainstay"]
    write_run(
        tmp_path,
        metrics={
            (m, a): {"map": 0.5, "t_map": 0.5} for m in ("atrdh", "pretrained") for a in names
        },
    )
    order = [(r["model"], r["attack"]) for r in reports.load_records(tmp_path)]
    attacks = ["benign", "hag", "mainstay", "a_targeted"]
    assert order == [(m, a) for m in ("pretrained", "atrdh") for a in attacks]


def test_records_of_an_empty_folder(tmp_path):
    assert reports.load_records(tmp_path) == []
    assert "nothing has been evaluated" in reports.summary_table([])


def _damage(path, place, value):
    """Puts a value at a place such as "metrics.map" of a JSON file."""
    tree = json.loads(path.read_text())
    *outer, name = place.split(".")
    inner = tree
    for key in outer:
        inner = inner[key]
    inner[name] = value
    _write_json(path, tree)


# What is put where in a record, and what is then said of it.
DAMAGE = {
    "targeted": (None, "targeted must be True or False, got None"),
    "model": ("other", "expected the record of .*'hardened'.* got .*'other'.*move it back"),
    "metrics": ([], r"metrics must be a section of fields, got \[\]"),
    "metrics.map": (7.5, "metrics.map must be a number from 0 to 1, got 7.5"),
    "metrics.theory_map": (float("nan"), "metrics.theory_map must be a number .*got nan"),
    "metrics.t_map": ([0.5], "metrics.t_map must be a number from 0 to 1, got"),
    "perturbation.l2": (10**400, "perturbation.l2 must be a number, got 1000"),
    "curves": (None, "curves must be a section of fields, got None"),
    "curves.precision_recall.recall": ([0.5], r"lists of one length, got \[1, 100\]"),
    "curves.precision_recall.precision": (["a"] * 100, r"precision\[0\] must be a number from 0"),
    "curves.precision_at_n.n": (["a"] * 91, r"precision_at_n.n\[0\] must be a number, got 'a'"),
    "curves.precision_at_n.precision": ([], "precision must be a list that is not empty"),
    "settings": ([1], r"settings must be a section of fields, got \[1\]"),
    "settings.epsilon": ("8/255", "settings.epsilon must be a number from 0 to 1, got '8/255'"),
    "settings.num_steps": (1.5, "settings.num_steps must be a whole number"),
    "settings.attack": (3, "settings.attack must be a text, got 3"),
    "perturbation": ("none", "perturbation must be a section of fields, got 'none'"),
    "perturbation.mse": ("a", "perturbation.mse must be a number, got 'a'"),
    "seconds_per_image": (-1, "seconds_per_image must be a number from 0 to .*, got -1"),
    "protocol": (5, "protocol must be a section of fields, got 5"),
    "protocol.k": ("all", "protocol.k must be a whole number"),
    "protocol.base_rate": (True, "protocol.base_rate must be a number from 0 to 1, got True"),
}


@pytest.mark.parametrize("place", DAMAGE)
def test_damaged_field_of_a_record_is_named(tmp_path, place):
    path = write_run(tmp_path) / "records" / "hardened" / "mainstay.json"
    value, complaint = DAMAGE[place]
    _damage(path, place, value)
    with pytest.raises(ValueError, match=rf"hardened/mainstay\.json: .*{complaint}"):
        reports.load_records(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"model": ', b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"version https://git-lfs"],
)
def test_record_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "records" / "pretrained" / "hag.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"hag\.json .*; delete it and evaluate again$"):
        reports.load_records(tmp_path)


@pytest.mark.parametrize(
    ("name", "place", "value", "complaint"),
    [
        ("records/hardened/mainstay", "metrics", {"t_map": 0.5}, "metrics lacks 'map'; delete it"),
        ("records/hardened/mainstay", "targeted", True, "metrics lacks 't_map'; delete it"),
        ("records/hardened/mainstay", "protocol", {}, "protocol lacks 'k'; it has"),
        ("transfer/hag", "benign", {}, "of the same models; delete it"),
        ("transfer/hag", "benign", {"a:x": 0.5}, "of the same models; delete it"),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path, name, place, value, complaint):
    run = write_run(tmp_path)
    write_transfer(run)
    _damage(run / f"{name}.json", place, value)
    (line,) = records.load_run(run).damaged
    assert f"{name}.json: " in line and complaint in line


def test_transfer_matrix_of_a_run_that_was_stopped_has_some_rows(tmp_path, no_drawing):
    write_transfer(tmp_path)
    _damage(tmp_path / "transfer/hag.json", "matrix", {"b:x": {"a:x": 0.5, "b:x": 0.2}})
    assert records.load_run(tmp_path).damaged == []
    matrix = Page.read(reports.write_report(tmp_path)).all("table", "heat")[0]
    assert [row.all("th")[0].text for row in matrix.one("tbody").all("tr")] == ["benign", "b:x"]


def test_log_without_a_whole_line_is_not_there_yet(tmp_path):
    run = write_run(tmp_path)
    (run / "models/hardened/metrics.jsonl").write_text('{"step": ')
    found = records.load_run(run)
    assert found.missing == ["the training log of hardened"] and not found.damaged


def test_settings_without_a_number_of_steps(tmp_path):
    path = write_run(tmp_path) / "records" / "hardened" / "mainstay.json"
    _damage(path, "settings.num_steps", None)
    table = reports.attack_table(reports.load_records(tmp_path))
    assert "mainstay           45.10 %  11.00 %      -    8/255" in table


def test_damaged_files_cost_no_page_and_are_named(tmp_path, no_drawing, capsys):
    """One damaged file of each kind: page and table are of the others."""
    run = write_suite(tmp_path)
    write_learned(run)
    write_transfer(run)
    _damage(run / "records/pretrained/hag.json", "metrics.map", 7.5)
    _damage(run / "transfer/hag.json", "metric", "accuracy")
    _damage(run / "transfer/a_p2p.json", "matrix.a:x", {"a:x": 0.5})
    (run / "records/pretrained/sdha.npz").write_bytes(b"PK")
    (run / "models/pretrained/metrics.jsonl").write_text('{"step": 1}\n{"loss": "low"}\n')
    (run / "config.json").write_text("{")
    for name in ("step_abc.png", "step_20.png"):
        (run / "learned/pretrained/prosgan/samples" / name).touch()
    names = [
        "samples/step_abc.png: its name must be step_NUMBER.png; rename or delete it",
        "samples/step_20.png is no whole PNG; delete it",
        "records/pretrained/hag.json: metrics.map must be a number from 0 to 1, got 7.5",
        "transfer/hag.json: metric: unknown metric 'accuracy'; expected one of ['map', 't_map']",
        "transfer/a_p2p.json: benign and each row of matrix must be of the same models",
        "records/pretrained/sdha.npz cannot be read",
        "metrics.jsonl, line 2: loss must be a number, got 'low'",
        "config.json is no JSON",
    ]
    with pytest.raises(ValueError, match="left out of the report, as damaged") as raised:
        reports.show_report(run)
    page = Page.read(run / "report.html")
    shown = page.one("div", "damaged").text
    for name in names:
        assert name in shown and name in str(raised.value)
    assert len(page.one("div", "damaged").all("li")) == len(names)
    assert "mainstay" in page.one("table", "scores").text
    assert "prosgan for pretrained after 10 steps" in page.text
    table = capsys.readouterr().out
    assert "21.12 %" in table and "hag" not in table and "report.html" in table


def test_records_of_other_settings_are_told_apart(tmp_path, no_drawing, capsys):
    """They are listed with what differs, and counted nowhere else."""
    run = write_run(tmp_path)
    write_transfer(run)
    for name, place, value in (
        ("records/hardened/{}mainstay{}.json", "settings.num_steps", 7),
        ("records/hardened/{}benign{}.json", "metrics.map", 0.1111),
        ("records/hardened/{}hag{}.json", "attack", "hag"),
        ("transfer/{}hag{}.json", "protocol.k", None),
    ):
        path = run / name.format("earlier/", ".0123abcd")
        path.parent.mkdir(exist_ok=True)
        source = name.replace("hag", "mainstay") if name.startswith("records") else name
        path.write_text((run / source.format("", "")).read_text())
        _damage(path, place, value)
    (run / "records/hardened/earlier/noise.0123abcd.json").write_text("{}")
    with pytest.raises(ValueError, match=r"earlier/noise\.0123abcd\.json: it lacks 'model'"):
        reports.show_report(run)
    table = capsys.readouterr().out
    assert "records of other settings, kept and listed on the page: 4\n" in table
    assert "11.11 %" not in table and "7 steps" not in table
    page = Page.read(run / "report.html")
    (listed,) = [t for t in page.all("table") if "differs in" in t.text]
    assert [row.text for row in listed.one("tbody").all("tr")] == [
        "hardened: benign MAP 11.11 %, t-MAP 13.01 % the model, the data or the target labels "
        "records/hardened/earlier/benign.0123abcd.json",
        "hardened: hag MAP 45.10 % there is none in its place "
        "records/hardened/earlier/hag.0123abcd.json",
        "hardened: mainstay MAP 45.10 % num steps 7, now 100 "
        "records/hardened/earlier/mainstay.0123abcd.json",
        "transfer: hag - k -, now 5000 transfer/earlier/hag.0123abcd.json",
    ]
    assert page.text.count("11.11 %") == 1


def test_summary_table_worked_by_hand(finished_run):
    lines = reports.summary_table(reports.load_records(finished_run)).splitlines()
    assert lines[0].split() == ["pretrained", "hardened"]
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines[2:11]] == [
        "MAP@5000",
        "benign",
        "mainstay, 8/255, 100 steps",
        "mainstay, 8/255, 100 steps, theory",
        "base rate",
        "t-MAP@5000",
        "benign",
        "mainstay targeted, 8/255, 100 steps",
        "mainstay targeted, 8/255, 100 steps, theory",
    ]
    assert [re.findall(r"[\d.]+ %|-$", line) for line in lines[2:11]] == [
        [],
        ["90.12 %", "84.03 %"],
        ["9.81 %", "45.10 %"],
        ["9.70 %", "11.00 %"],
        ["35.00 %", "35.00 %"],
        [],
        ["12.34 %", "13.01 %"],
        ["88.12 %", "30.50 %"],
        ["89.00 %", "87.00 %"],
    ]
    assert len({len(line) for line in lines[3:7] + lines[8:11]}) == 1
    # 45.10 / 9.81 = 4.597; 84.03 - 90.12 = -6.09.
    assert lines[12] == (
        "hardening: attacked MAP 9.8 % -> 45.1 % (skill above chance -0.39 -> 0.16), "
        "clean MAP 90.1 % -> 84.0 % (-6.1 points)"
    )
    assert lines[13:] == [
        "protocol: dataset digits; k 5000; ties average; normalizer hits; queries 500; "
        "database 2000; train 1000; bits 32; classes 10; base rate 0.35; seed 0; targets disjoint"
    ]


def test_summary_table_takes_the_worst_attack_that_both_models_stood(tmp_path):
    metrics = {
        ("pretrained", "benign"): {"map": 0.8},
        ("pretrained", "hag"): {"map": 0.2},
        ("pretrained", "mainstay"): {"map": 0.1},
        ("pretrained", "sdha"): {"map": 0.05},
        ("hardened", "benign"): {"map": 0.85},
        ("hardened", "hag"): {"map": 0.3},
        ("hardened", "mainstay"): {"map": 0.4},
    }
    table = reports.summary_table(reports.load_records(write_run(tmp_path, metrics=metrics)))
    # Of hag and mainstay: the lower of 20 and 10, then of 30 and 40.
    assert (
        "hardening: attacked MAP (worst of 2) 10.0 % -> 30.0 % "
        "(skill above chance -0.38 -> -0.08), clean MAP 80.0 % -> 85.0 % (+5.0 points)" in table
    )
    row = next(line for line in table.splitlines() if "sdha" in line)
    assert row.split()[-3:] == ["5.00", "%", "-"]


def test_attacks_of_unlike_strength_are_not_compared(tmp_path, no_drawing):
    run = write_run(tmp_path)
    path = run / "records" / "hardened" / "mainstay.json"
    record = json.loads(path.read_text())
    record["settings"]["epsilon"] = 2 / 255
    _write_json(path, record)
    table = reports.summary_table(reports.load_records(run))
    assert "mainstay, 8/255, 100 steps " in table and "mainstay, 2/255, 100 steps " in table
    assert "hardening" not in table
    assert (
        "Whether training wins it back is not known yet"
        in Page.read(reports.write_report(run)).text
    )


@pytest.mark.parametrize("model", ["pretrained", "hardened"])
def test_summary_table_of_one_model(tmp_path, model):
    metrics = {key: value for key, value in METRICS.items() if key[0] == model}
    table = reports.summary_table(reports.load_records(write_run(tmp_path, metrics=metrics)))
    assert table.splitlines()[0].strip() == model
    assert "hardening" not in table
    assert f"{100 * METRICS[model, 'benign']['map']:.2f} %" in table


def test_summary_table_of_a_whole_database_and_of_zero(tmp_path):
    metrics = METRICS | {("pretrained", "mainstay"): {"map": 0.0}}
    run = write_run(tmp_path, metrics=metrics, protocol=PROTOCOL | {"k": None})
    table = reports.summary_table(reports.load_records(run))
    assert "\nMAP@all\n" in table and "\nt-MAP@all\n" in table and "; k all;" in table
    # From zero there is no ratio.
    assert "attacked MAP 0.0 % -> 45.1 % (skill above chance -0.54 -> 0.16), clean" in table


def test_summary_table_refuses_to_compare_unlike_protocols(tmp_path):
    records = reports.load_records(write_run(tmp_path))
    for record in records[3:]:
        record["protocol"] = record["protocol"] | {"num_queries": 100}
    table = reports.summary_table(records)
    assert "hardening: not compared with pretrained, as their protocols differ" in table
    of_first, of_second = table.splitlines()[-2:]
    assert of_first.startswith("protocol of pretrained benign, pretrained mainstay, pretrained ma")
    assert "queries 500" in of_first and "queries 100" in of_second


def test_report_shows_the_run(finished_run):
    page = Page.read(finished_run / "report.html")
    for words in (
        "takes the system's MAP from 90.1 % to 9.8 %",
        "leaves 45.1 %",
        "from 90.1 % to 84.0 %",
        "skill above chance 0.16",
        "\N{MINUS SIGN}6.1 points",
        "benign pretrained 90.12 % - - - - - - - - hardened 84.03 %",
        "mainstay pretrained 9.81 % 9.70 % 100 8/255 0.94 0.52 7.53 2.74 0.012 hardened 45.10 %",
        "base rate 35.00 %",
        "queries 500; database 2000",
        # 0.5 / (8 / 255) = 15.9
        "magnified 15 times",
        "pretrained: mainstay - 8/255 1.52 31.2 dB",
        "matrix norm",
        "Configuration of the run",
    ):
        assert words in page.text
    assert "Not there yet" not in page.text
    page.one("h1")
    # Results, other measures, an attack of either kind, settings.
    assert len(page.all("table")) == len(page.all("caption")) == 5
    # Every score stands there once, in its bar.
    for score in ("90.12", "84.03", "45.10", "88.12"):
        assert page.text.count(f"{score} %") == 1


def test_report_marks_every_retrieved_item_in_colour_and_shape(finished_run):
    page = Page.read(finished_run / "report.html")
    hits = sum(
        int(np.load(path)["top_relevant"].sum()) for path in finished_run.glob("records/*/*.npz")
    )
    total = len(METRICS) * NUM_QUERIES * 10
    assert 0 < hits < total
    for style, alt, mark, count in (
        ("hit", "right", "\N{CHECK MARK}", hits),
        ("miss", "wrong", "\N{BALLOT X}", total - hits),
    ):
        items = page.all("li", style)
        assert len(items) == count
        assert {(item.one("img")["alt"], item.text) for item in items} == {(alt, mark)}


def test_report_is_self_contained(finished_run):
    page = Page.read(finished_run / "report.html")
    assert "http://" not in page.source and "https://" not in page.source
    assert not {"script", "link", "iframe"} & {node.tag for node in page.all()}
    assert page.addresses and all(a.startswith("data:image/") for a in page.addresses)
    assert "url(" not in page.source and "@import" not in page.source
    for address in set(page.addresses):
        with PIL.Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            image.load()
    assert all(image["alt"] for image in page.all("img"))


def test_report_keeps_pixels_exactly(finished_run):
    page = Page.read(finished_run / "report.html")
    uri = next(i["src"] for i in page.all("img") if i["alt"] == "attack on pretrained, query 1")
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        shown = np.asarray(image)
    images = np.load(finished_run / "records" / "pretrained" / "mainstay.npz")["images"]
    np.testing.assert_array_equal(shown, np.round(255 * images[0]))


def test_report_shrinks_the_retrieved_items_of_a_run_on_large_images(tmp_path, no_drawing):
    page = Page.read(reports.write_report(write_run(tmp_path, side=224)))
    thumbnails = [i for strip in page.all("div", "strip") for i in strip.all("img")]
    assert all(image["src"].startswith("data:image/jpeg") for image in thumbnails)
    assert thumbnails and not page.all("img", "pixels")


def test_figures_are_written_for_light_and_dark_pages(finished_run):
    names = {path.name for path in (finished_run / "figures").iterdir()}
    light = {
        *(f"{kind}{labels}.png" for kind in ("precision_recall", "precision_at_n")
          for labels in ("", "_target")),
        *(f"training_{model}_{what}.png" for model in ("pretrained", "hardened")
          for what in ("loss", "map")),
    }  # fmt: skip
    assert names == light | {name.replace(".png", "_dark.png") for name in light}
    for name in names:
        with PIL.Image.open(finished_run / "figures" / name) as image:
            assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0


def test_report_is_deterministic(finished_run, tmp_path):
    reports.write_report(write_run(tmp_path))
    for path in [finished_run / "report.html", *(finished_run / "figures").iterdir()]:
        assert path.read_bytes() == (tmp_path / path.relative_to(finished_run)).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_report_escapes_text(tmp_path, no_drawing):
    run = write_run(tmp_path, protocol=PROTOCOL | {"dataset": "<b>", "ties": '"&'})
    _write_json(run / "config.json", {"</pre><script>": "<i>"})
    for path in run.glob("records/*/*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"class_names": np.array(['"><u>'] * 10)})
    page = Page.read(reports.write_report(run))
    assert not {"b", "i", "u", "script"} & {node.tag for node in page.all()}
    assert "digits" not in page.text
    assert 'dataset <b>; k 5000; ties "&;' in page.text
    assert '"></pre><script>": "<i>"'[2:] in page.text
    assert 'shows "><u>, "><u>' in page.text


def test_report_names_what_is_missing(tmp_path, no_drawing):
    run = write_run(tmp_path)
    for name in (
        "config.json",
        "models/hardened/metrics.jsonl",
        "records/pretrained/benign.npz",
        "records/hardened/mainstay.json",
    ):
        (run / name).unlink()
    page = Page.read(reports.write_report(run))
    for words in (
        "the configuration (config.json)",
        "the training log of hardened",
        "the example images of pretrained on benign queries",
        "the record of hardened on mainstay queries",
        "not known yet",
    ):
        assert words in page.text


@pytest.mark.parametrize("pattern", ["models/*/*", "records/*/*", "*/hardened/*"])
def test_report_of_a_run_without(tmp_path, pattern):
    run = write_run(tmp_path)
    for path in run.glob(pattern):
        path.unlink()
    assert "Not there yet" in Page.read(reports.write_report(run)).text


def test_report_of_a_run_just_started(tmp_path):
    page = Page.read(reports.write_report(tmp_path))
    assert "Not known yet" in page.text and "the training log of pretrained" in page.text


def test_report_of_no_run(tmp_path):
    with pytest.raises(ValueError, match="has the run been started"):
        reports.write_report(tmp_path / "nothing")


def test_training_log_of_a_killed_run(tmp_path):
    path = tmp_path / "models" / "pretrained" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    # The last line was cut off by the kill.
    path.write_text('{"step": 1, "epoch": 0.5, "loss": 2.0}\n{"step": 2, "epo')
    assert "loss ends at 2." in reports.write_report(tmp_path).read_text()
    # Resumed, the run writes its steps again; the later value counts.
    path.write_text(
        '{"step": 1, "epoch": 0.5, "loss": 2.0}\n{"step": 2, "epoch": 1.0, "loss": 1.5}\n'
        '{"step": 2, "epoch": 1.0, "loss": 1.25}\n'
    )
    assert "loss ends at 1.25." in reports.write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("top_relevant", None, r"lacks the arrays \['top_relevant'\]"),
        ("images", lambda a: a[0, :, :, 0], r"\[n, h, w, 3\] of floats from 0 to 1, got \[32, 32"),
        ("images", lambda a: a * np.nan, "images must be .* from 0 to 1, got"),
        ("images", lambda a: a.astype(str), "got .* of <U"),
        ("benign_images", lambda a: a[:2], r"must be \[4, 32, 32, 3\]"),
        ("top_relevant", lambda a: a[:, :3], r"must be \[4, 10\] of booleans"),
        ("labels", lambda a: a[:2], r"must be \[4, 10\] of booleans"),
        ("class_names", lambda a: a[:7], r"class_names must be \[10\] of texts, got \[7\]"),
        ("images", lambda a: np.array([{}]), "cannot be read"),
    ],
)
def test_damaged_arrays_are_named(tmp_path, name, change, complaint):
    path = write_run(tmp_path) / "records" / "hardened" / "benign.npz"
    arrays = dict(np.load(path))
    array = arrays.pop(name)
    np.savez(path, **arrays, **({name: change(array)} if change else {}))
    with pytest.raises(ValueError, match=rf"benign\.npz.*{complaint}.*evaluate again"):
        records.load_examples(path)


def test_names_are_shown_without_control_characters(tmp_path, no_drawing, capsys):
    """Escape codes of a terminal, and bytes of another encoding as Python reads them."""
    run = write_run(tmp_path, protocol=PROTOCOL | {"dataset": "\x1b[31mred"})
    for path in run.glob("records/*/*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"class_names": np.array(["caf\udce9\x1b"] * 10)})
    reports.show_report(run)
    page = Page.read(run / "report.html")
    assert "caf\\udce9\\x1b" in page.text and "\x1b" not in page.source
    assert "dataset \\x1b[31mred" in page.text
    assert "dataset \\x1b[31mred" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_report_on_a_terminal_of_few_letters(tmp_path, no_drawing, monkeypatch, encoding):
    run = write_run(tmp_path)
    output = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding, write_through=True))
    reports.show_report(run)
    table = output.getvalue().decode(encoding)
    assert "\n" + "-" * 60 in table and "90.12 %" in table


def test_page_that_cannot_be_written_costs_no_table(tmp_path, no_drawing, capsys, monkeypatch):
    (write_run(tmp_path) / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html cannot be written"):
        reports.show_report(tmp_path)
    assert "90.12 %" in capsys.readouterr().out
    for name in ("jinja2", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="no page .*: pip install jinja2 pillow"):
        reports.show_report(tmp_path)
    assert "90.12 %" in capsys.readouterr().out


# Record, method, steps, score on `pretrained`; MAP, or t-MAP for targeted attacks.
SUITE = [
    ("benign", "benign", None, 0.8255),
    ("hag", "hag", 2000, 0.298),
    ("mainstay", "mainstay", 100, 0.2112),
    ("one_step", "mainstay", 1, 0.61),
    ("ten_steps", "mainstay", 10, 0.2301),
    ("noise", "noise", None, 0.8192),
    ("sdha", "sdha", 1500, 0.253),
    ("dhta_targeted", "dhta", 2000, 0.853),
    ("mainstay_targeted", "mainstay", 100, 0.8897),
    ("p2p_targeted", "p2p", 2000, 0.772),
    ("prosgan_targeted", "prosgan", None, 0.9111),
    ("tha_targeted", "tha", 100, 0.8702),
]


def write_suite(workdir, *, models=("pretrained",)):
    """Writes a run that compares attacks; scores of a second model are halfway to 50 %."""
    metrics = {}
    for i, model in enumerate(models):
        for name, _, _, score in SUITE:
            key = "t_map" if name.endswith("targeted") else "map"
            theory = {"theory_t_map": 0.9129} if key == "t_map" else {"theory_map": 0.2029}
            value = {key: score + i * (0.5 - score) / 2}
            plain = name in ("benign", "noise")
            metrics[model, name] = value | ({"t_map": 0.3495} if name == "benign" else {})
            metrics[model, name] |= {} if plain else theory
    write_run(workdir, metrics=metrics)
    for model in models:
        for name, attack, num_steps, _ in SUITE[1:]:
            settings = {"attack": attack, "targeted": name.endswith("targeted"), "loss": "mean"}
            settings["epsilon"] = {"prosgan": None, "dhta": 0.032, "p2p": 0.032}.get(
                attack, EPSILON
            )
            if num_steps:
                settings["num_steps"] = num_steps
            change_record(workdir / "records" / model / f"{name}.json", settings=settings)
    return workdir


def change_record(path, **fields):
    _write_json(path, json.loads(path.read_text()) | fields)


def write_learned(workdir, network="prosgan"):
    """Writes the log of a generator and its sample grids of steps 2 and 10."""
    folder = workdir / "learned" / "pretrained" / network
    (folder / "samples").mkdir(parents=True)
    lines = [
        {"step": 0, "epoch": 0.0, "sample_agreement": 0.1, "sample_rms": 0.4},
        {"step": 5, "epoch": 0.5, "loss": 20.0, "hash_loss": 0.8, "learning_rate": 1e-4},
        {"step": 10, "epoch": 1.0, "loss": 10.0, "hash_loss": 0.4, "learning_rate": 1e-4},
        {"step": 10, "epoch": 1.0, "sample_agreement": 0.9, "sample_rms": 0.1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (2, 10):
        image = PIL.Image.new("RGB", (64, 24), (step, 0, 0))
        image.save(folder / "samples" / f"step_{step}.png")


def write_transfer(workdir):
    """Writes the matrices of a non-targeted and a targeted attack between two models."""
    for name, metric, own, other in (("a_p2p", "t_map", 0.9, 0.4125), ("hag", "map", 0.2, 0.6)):
        _write_json(
            workdir / "transfer" / f"{name}.json",
            {
                "protocol": PROTOCOL,
                "attack": name,
                "metric": metric,
                "settings": {"attack": name, "epsilon": EPSILON, "num_steps": 20},
                "benign": {"a:x": 0.35, "b:x": 0.36},
                "matrix": {"a:x": {"a:x": own, "b:x": other}, "b:x": {"a:x": 0.55, "b:x": own}},
            },
        )


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory):
    """A folder with a comparison of attacks, with all that belongs to it. Read only."""
    workdir = write_suite(tmp_path_factory.mktemp("suite"))
    write_learned(workdir)
    write_transfer(workdir)
    reports.write_report(workdir)
    return workdir


def test_attack_table_worked_by_hand(suite_run):
    lines = reports.attack_table(reports.load_records(suite_run)).splitlines()
    assert lines[0].split() == ["pretrained", "matrix", "spectral", "MSE", "Per.", "seconds"]
    assert " ".join(lines[1].split()) == ("score theory steps epsilon L-inf L2 x1e-4 x1e-2 /image")
    rows = [" ".join(line.split()) for line in lines[3:-3]]
    # 1e4 * 7.53e-4 and 1e2 * 0.02744.
    size = "0.94 0.52 7.53 2.74 0.012"
    assert rows == [
        "MAP@5000",
        "benign 82.55 % - - - - - - - -",
        f"hag 29.80 % 20.29 % 2000 8/255 {size}",
        f"mainstay 21.12 % 20.29 % 100 8/255 {size}",
        f"noise 81.92 % - - 8/255 {size}",
        f"one step 61.00 % 20.29 % 1 8/255 {size}",
        f"sdha 25.30 % 20.29 % 1500 8/255 {size}",
        f"ten steps 23.01 % 20.29 % 10 8/255 {size}",
        "t-MAP@5000",
        "benign 34.95 % - - - - - - - -",
        f"dhta targeted 85.30 % 91.29 % 2000 8.16/255 {size}",
        f"mainstay targeted 88.97 % 91.29 % 100 8/255 {size}",
        f"p2p targeted 77.20 % 91.29 % 2000 8.16/255 {size}",
        f"prosgan targeted 91.11 % 91.29 % - none {size}",
        f"tha targeted 87.02 % 91.29 % 100 8/255 {size}",
    ]
    # ProS-GAN's t-MAP is higher, but it keeps to no ball.
    assert lines[-2] == (
        "strongest on pretrained within 8/255: mainstay (MAP 21.12 %); "
        "mainstay targeted (t-MAP 88.97 %)"
    )
    assert lines[-1].startswith("protocol: dataset digits; k 5000")
    assert max(map(len, lines[:-1])) <= 100


def test_strongest_attack_of_each_ball_and_model(tmp_path):
    run = write_suite(tmp_path, models=("pretrained", "hardened"))
    records = run / "records" / "hardened"
    # 0.032 of 1 is 8.16 of 255 levels: the same 8-bit images as 8 / 255.
    change_record(records / "dhta_targeted.json", metrics={"t_map": 0.99})
    change_record(records / "mainstay.json", settings={"attack": "mainstay", "epsilon": 2 / 255})
    change_record(records / "noise.json", settings={"attack": "noise", "epsilon": 0.1 / 255})
    # A ball of another norm is another ball, and larger.
    other = {"attack": "sdha", "epsilon": 8 / 255, "norm": "l2"}
    change_record(records / "sdha.json", settings=other, metrics={"map": 0.01})
    lines = reports.attack_table(reports.load_records(run)).splitlines()
    strongest = [line for line in lines if line.startswith("strongest")]
    # Halfway: (21.12 + 50) / 2, (23.01 + 50) / 2, (81.92 + 50) / 2.
    assert strongest == [
        "strongest on pretrained within 8/255: mainstay (MAP 21.12 %); "
        "mainstay targeted (t-MAP 88.97 %)",
        "strongest on hardened within 8/255: ten steps (MAP 36.50 %); "
        "dhta targeted (t-MAP 99.00 %)",
        "strongest on hardened within 2/255: mainstay (MAP 35.56 %)",
        "strongest on hardened within 0.1/255: noise (MAP 65.96 %)",
    ]
    assert sum("8/255 l2" in line for line in lines) == 1


def test_iterations_table_worked_by_hand(suite_run):
    lines = reports.iterations_table(reports.load_records(suite_run)).splitlines()
    assert lines[0].split() == ["steps", "0", "1", "10", "100", "theory"]
    assert lines[2] == "MAP@5000"
    assert lines[3] == ("  mainstay on pretrained  82.55 %  61.00 %  23.01 %  21.12 %  20.29 %")
    assert lines[5].startswith("protocol: ") and len(lines) == 6


def test_iterations_are_found_by_settings_alone(tmp_path):
    run = write_suite(tmp_path, models=("pretrained", "hardened"))
    records = run / "records"
    # Another loss is another attack; as many steps once more are no other point.
    path = records / "pretrained" / "ten_steps.json"
    settings = json.loads(path.read_text())["settings"]
    change_record(path, settings=settings | {"loss": "focused"})
    path = records / "pretrained" / "noise.json"
    change_record(path, settings=settings | {"num_steps": 100}, metrics={"map": 0.5})
    # A number measured otherwise is not put beside these.
    change_record(records / "hardened" / "benign.json", protocol=PROTOCOL | {"k": 10})
    lines = reports.iterations_table(reports.load_records(run)).splitlines()
    assert [" ".join(line.split()) for line in lines[:5]][0] == "steps 0 1 10 100 theory"
    assert " ".join(lines[3].split()) == (
        "mainstay on pretrained 82.55 % 61.00 % - 21.12 % 20.29 %"
    )
    assert " ".join(lines[4].split()) == ("mainstay on hardened - 55.50 % 36.50 % 35.56 % 20.29 %")


def test_tables_without_anything_to_show(tmp_path):
    assert "nothing has been evaluated" in reports.attack_table([])
    assert "nothing has been evaluated" in reports.terminal_tables([])
    records = reports.load_records(write_run(tmp_path))
    assert "no attack was run with several" in reports.iterations_table(records)


def test_terminal_tables_of_few_attacks_are_the_summary(finished_run):
    records = reports.load_records(finished_run)
    assert reports.terminal_tables(records) == reports.summary_table(records)


def test_terminal_tables_of_many_attacks(suite_run, tmp_path):
    records = reports.load_records(suite_run)
    *protocol, _ = reports.attack_table(records).rsplit("\n", 1)
    table = reports.terminal_tables(records)
    assert table.startswith(protocol[0])
    assert "\n\nsteps " in table and "base rate 0.35" in table
    assert table.count("protocol: ") == 1 and "\n  base rate" not in table
    both = reports.load_records(write_suite(tmp_path, models=("pretrained", "hardened")))
    table = reports.terminal_tables(both)
    assert "hardening: attacked MAP (worst of 6) 21.1 % -> 35.6 %" in table
    # Theory stands in the table of attacks, not once more in the summary.
    assert ", theory" not in table and ", theory" not in reports.summary_table(both)


def test_report_of_many_attacks_on_one_model(suite_run):
    page = Page.read(suite_run / "report.html")
    for words in (
        "How much does this retrieval system lose under attack?",
        "Of 4 attacks that drive away, mainstay is the strongest: it takes MAP from 82.5 % to "
        "21.1 %.",
        "Of 4 attacks that steer towards chosen labels, mainstay targeted is the strongest: it "
        "takes t-MAP from 34.9 % to 89.0 %.",
        "stay within 8 of 255 levels",
    ):
        assert words in page.text
    assert "Not there yet" not in page.text
    for _, _, _, score in SUITE:
        assert page.text.count(f"{100 * score:.2f} %") == 1


def test_report_ranks_the_attacks_and_marks_the_strongest_inside_the_ball(suite_run):
    table = Page.read(suite_run / "report.html").one("table", "scores")
    rows = {row.all("th")[0].text: row for row in table.all("tr") if row.all("td", "bar")}
    order = [h.text for row in table.all("tr") for h in row.all("th") if h["scope"] == "row"]
    assert order == [
        *("benign", "mainstay", "ten steps", "sdha", "hag", "one step", "noise", "base rate"),
        *("benign", "prosgan targeted", "mainstay targeted", "tha targeted", "dhta targeted"),
        "p2p targeted",
    ]
    best = [row.one("th").text for row in table.all("tr", "best")]
    assert best == ["mainstay", "mainstay targeted"]
    # The bar of 21.12 % with theory at 20.29 %.
    bar, theory = rows["mainstay"].one("td", "bar").all("span")
    assert (bar["style"], theory["style"]) == ("--value:21.12%", "left:20.29%")


def test_curves_of_many_attacks(suite_run):
    drawn = {chart.name: chart for chart in charts.make_charts(records.load_run(suite_run))}
    own = drawn["precision_recall"].lines
    target = drawn["precision_recall_target"].lines
    # From the top, and of an attack with several numbers of steps that with the most.
    assert [line.label for line in own] == [
        "benign", "noise", "hag", "sdha", "mainstay", "base rate",
    ]  # fmt: skip
    assert target[0].label == "prosgan targeted" and target[-1].label == "benign"
    looks = {line.label.removesuffix(" targeted"): (line.color, line.mark) for line in own + target}
    assert len(set(looks.values())) == len(looks) == 10
    for line in own + target:
        assert looks[line.label.removesuffix(" targeted")] == (line.color, line.mark)


def test_curves_of_many_attacks_on_two_models_are_apart(tmp_path):
    run = records.load_run(write_suite(tmp_path, models=("pretrained", "hardened")))
    names = [chart.name for chart in charts.make_charts(run) if chart.section == "curves"]
    assert names == [
        f"{kind}{labels}_{model}"
        for kind in ("precision_recall", "precision_at_n")
        for model in ("pretrained", "hardened")
        for labels in ("", "_target")
    ]


def test_chart_of_steps(suite_run):
    (chart,) = (
        chart
        for chart in charts.make_charts(records.load_run(suite_run))
        if chart.section == "steps"
    )
    assert (
        chart.name == "steps_map_5000" and (suite_run / "figures" / "steps_map_5000.png").exists()
    )
    measured, theory = chart.lines
    assert (measured.x, measured.y) == ([0, 1, 10, 100], [0.8255, 0.61, 0.2301, 0.2112])
    assert (theory.x, theory.y) == ([0, 100], [0.2029, 0.2029])
    assert theory.color == measured.color


def test_lines_can_be_seen_on_light_and_dark_pages():
    def luminance(color):
        parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    style = resources.files(reports).joinpath("templates/style.css").read_text()
    grounds = re.findall(r"--ground: (#\w+)", style)
    assert len(grounds) == 2 and len(set(charts._COLORS)) == len(charts._MARKS) == 11
    for ground in grounds:
        for color in charts._COLORS:
            low, high = sorted((luminance(color), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3


def test_transfer_matrices_are_shaded(suite_run):
    first, second = Page.read(suite_run / "report.html").all("table", "heat")
    # MAP first, whatever the names.
    assert first.one("caption").text.startswith("MAP@5000, hag, 8/255, 20 steps.")
    assert second.one("caption").text.startswith("t-MAP@5000, a p2p, 8/255, 20 steps.")
    row = second.one("tbody").all("tr")[1]
    assert row.one("th").text == "a:x"
    cells = [(cell.text, cell["style"], cell.attributes.get("class")) for cell in row.all("td")]
    assert cells == [("90.00 %", "--value:90%", "own"), ("41.25 %", "--value:41%", None)]


def test_report_of_a_transfer_alone(tmp_path):
    write_transfer(tmp_path)
    page = Page.read(reports.write_report(tmp_path))
    assert "Do attacks carry over" in page.text and "digits, 32 bits" in page.text
    assert "the configuration" in page.text and "the record of" not in page.text


def test_learned_networks_are_shown(suite_run):
    page = Page.read(suite_run / "report.html")
    assert "prosgan for pretrained after 10 steps" in page.text
    newest = suite_run / "learned" / "pretrained" / "prosgan" / "samples" / "step_10.png"
    image = next(
        i for i in page.all("img") if (i["alt"] or "").startswith("prosgan for pretrained")
    )
    assert base64.b64decode(image["src"].partition(",")[2]) == newest.read_bytes()
    drawn = {
        chart.name: chart
        for chart in charts.make_charts(records.load_run(suite_run))
        if chart.section == "learned"
    }
    losses = drawn["learned_pretrained_prosgan_losses"]
    assert [line.label for line in losses.lines] == ["loss", "hash loss"]
    assert losses.y_scale == "log" and losses.lines[0].y == (20.0, 10.0)
    samples = drawn["learned_pretrained_prosgan_samples"]
    assert [line.label for line in samples.lines] == ["agreement", "rms"]
    assert samples.lines[0].x == (0.0, 1.0) and samples.y_scale == "linear"


def test_imports_are_light_and_leave_the_global_state_of_matplotlib_alone():
    folder = pathlib.Path(reports.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        found = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        }
        assert not found & {"jax", "flax", "tensorflow", "matplotlib", "PIL", "jinja2"}, path
        assert "pyplot" not in path.read_text()
