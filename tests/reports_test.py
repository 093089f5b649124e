"""Tests of the reports, on a small made-up run."""

import ast
import base64
import html.parser
import io
import json
import pathlib
import re

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from saat_jax import reports

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
    ("pretrained", "benign"): {"map": 0.9012, "t_map": 0.1234},
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
                "seconds_per_image": 0.012,
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


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects what a page shows and refers to."""

    VOID = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of {tag} is given twice"
        self.addresses += [attributes[n] for n in ("src", "href", "srcset") if n in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open_tags:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read_page(path: pathlib.Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder with a finished run and its report. Read only."""
    workdir = write_run(tmp_path_factory.mktemp("run"))
    reports.write_report(workdir)
    return workdir


def test_records_are_sorted_by_model_then_benign_then_targeted_last(tmp_path):
    names = ["hag", "benign", "a_targeted", "mainstay"]
    write_run(tmp_path, metrics={(m, a): {} for m in ("atrdh", "pretrained") for a in names})
    order = [(r["model"], r["attack"]) for r in reports.load_records(tmp_path)]
    attacks = ["benign", "hag", "mainstay", "a_targeted"]
    assert order == [(m, a) for m in ("pretrained", "atrdh") for a in attacks]


def test_records_of_an_empty_folder(tmp_path):
    assert reports.load_records(tmp_path) == []
    assert "nothing has been evaluated" in reports.summary_table([])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"model": ', "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"model": "pretrained", "attack": "hag"}', "'targeted' of type bool"),
        (
            '{"model": "a", "attack": "b", "targeted": false, "metrics": {}, "curves": {}, '
            '"protocol": {}}',
            "was it moved",
        ),
    ],
)
def test_broken_record_is_named(tmp_path, content, complaint):
    path = tmp_path / "records" / "pretrained" / "hag.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"hag.json.*{complaint}"):
        reports.load_records(tmp_path)


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
        "hardening: attacked MAP 9.8 % -> 45.1 % (4.6 times), "
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
        "hardening: attacked MAP (worst of 2) 10.0 % -> 30.0 % (3.0 times), "
        "clean MAP 80.0 % -> 85.0 % (+5.0 points)" in table
    )
    row = next(line for line in table.splitlines() if "sdha" in line)
    assert row.split()[-3:] == ["5.00", "%", "-"]


def test_attacks_of_unlike_strength_are_not_compared(tmp_path):
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
        in read_page(reports.write_report(run)).text
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
    assert "attacked MAP 0.0 % -> 45.1 %, clean" in table


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
    page = read_page(finished_run / "report.html")
    for words in (
        "takes the system's MAP from 90.1 % to 9.8 %",
        "leaves 45.1 %",
        "from 90.1 % to 84.0 %",
        "4.6 times",
        "\N{MINUS SIGN}6.1 points",
        "MAP@5000 benign 90.12 % 84.03 %",
        "base rate 35.00 %",
        "queries 500; database 2000",
        # 0.5 / (8 / 255) = 15.9
        "magnified 15 times",
        "7.53e-4 31.2 dB 2.74e-2 0.94 0.52",
        "matrix norm",
        "Configuration of the run",
    ):
        assert words in page.text
    assert "Not there yet" not in page.text
    assert page.tags.count("h1") == 1
    assert page.tags.count("table") == page.tags.count("caption") == 5


def test_report_marks_every_retrieved_item_in_colour_and_shape(finished_run):
    source = (finished_run / "report.html").read_text()
    hits = sum(
        int(np.load(path)["top_relevant"].sum()) for path in finished_run.glob("records/*/*.npz")
    )
    total = len(METRICS) * NUM_QUERIES * 10
    assert 0 < hits < total
    for style, alt, mark, count in (
        ("hit", "right", "&#10003;", hits),
        ("miss", "wrong", "&#10007;", total - hits),
    ):
        pattern = f'<li class="{style}"><img[^>]* alt="{alt}" [^>]*><span [^>]*>{mark}</span></li>'
        assert len(re.findall(pattern, source)) == count


def test_report_is_self_contained(finished_run):
    source = (finished_run / "report.html").read_text()
    page = Page(source)
    assert "http://" not in source and "https://" not in source
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.addresses and all(a.startswith("data:image/") for a in page.addresses)
    assert "url(" not in source and "@import" not in source
    for address in set(page.addresses):
        with PIL.Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            image.load()
    assert all(image["alt"] for image in page.images)


def test_report_keeps_pixels_exactly(finished_run):
    page = read_page(finished_run / "report.html")
    uri = next(i["src"] for i in page.images if i["alt"] == "attack on pretrained, query 1")
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        shown = np.asarray(image)
    images = np.load(finished_run / "records" / "pretrained" / "mainstay.npz")["images"]
    np.testing.assert_array_equal(shown, np.round(255 * images[0]))


def test_report_shrinks_the_retrieved_items_of_a_run_on_large_images(tmp_path):
    source = reports.write_report(write_run(tmp_path, side=224)).read_text()
    assert "data:image/jpeg" in source and 'class="pixels"' not in source


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


def test_report_escapes_text(tmp_path):
    run = write_run(tmp_path, protocol=PROTOCOL | {"dataset": "<b>", "ties": '"&'})
    _write_json(run / "config.json", {"</pre><script>": "<i>"})
    for path in run.glob("records/*/*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"class_names": np.array(['"><u>'] * 10)})
    page = read_page(reports.write_report(run))
    assert not {"b", "i", "u", "script"} & set(page.tags)
    assert "digits" not in page.text
    assert 'dataset <b>; k 5000; ties "&;' in page.text
    assert '"></pre><script>": "<i>"'[2:] in page.text
    assert 'shows "><u>, "><u>' in page.text


def test_report_names_what_is_missing(tmp_path):
    run = write_run(tmp_path)
    for name in (
        "config.json",
        "models/hardened/metrics.jsonl",
        "records/pretrained/benign.npz",
        "records/hardened/mainstay.json",
    ):
        (run / name).unlink()
    page = read_page(reports.write_report(run))
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
    assert "Not there yet" in read_page(reports.write_report(run)).text


def test_report_of_a_run_just_started(tmp_path):
    page = read_page(reports.write_report(tmp_path))
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


def test_broken_training_log_is_named(tmp_path):
    path = tmp_path / "models" / "pretrained" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not valid JSON"):
        reports.write_report(tmp_path)


def test_broken_examples_are_named(tmp_path):
    path = write_run(tmp_path) / "records" / "hardened" / "benign.npz"
    arrays = dict(np.load(path))
    del arrays["top_relevant"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="benign.npz lacks the arrays .'top_relevant'"):
        reports.write_report(tmp_path)
    np.savez(path, images=np.array([{}]))
    with pytest.raises(ValueError, match="benign.npz cannot be read"):
        reports.write_report(tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="benign.npz cannot be read"):
        reports.write_report(tmp_path)


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
        assert not found & {"jax", "flax", "tensorflow", "matplotlib", "PIL"}, path
        assert "pyplot" not in path.read_text()
