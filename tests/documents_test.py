"""The figures that documents state are those of the stored records."""

import json
import re

import pytest

from benchmarks import documents

MARKED = r"<!-- figure: (.+?) -->[^<]*<!-- / -->|^# figure: (.+)\n(?:#.*\n)*?# /\n"


@pytest.fixture
def runs(tmp_path):
    """Two models on two kinds of query, in a folder of stored records."""
    scores = {
        ("pretrained", "benign"): {"map": 0.8, "t_map": 0.3},
        ("pretrained", "mainstay"): {"map": 0.25, "theory_map": 0.2},
        ("hardened", "benign"): {"map": 0.75, "t_map": 0.3},
        ("hardened", "mainstay"): {"map": 0.5, "theory_map": 0.2},
    }
    for (model, attack), metrics in scores.items():
        record = {
            "model": model,
            "attack": attack,
            "targeted": False,
            "metrics": metrics,
            "curves": {"precision_recall": {"recall": [1.0], "precision": [0.5]}},
            "protocol": {"k": 10, "base_rate": 0.3},
        }
        path = tmp_path / "run" / "records" / model / f"{attack}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    documents.keep(tmp_path / "run", tmp_path / "kept" / "demo.json", 103)
    return documents.load_runs(tmp_path / "kept")


def test_documents_state_the_stored_figures():
    runs = documents.load_runs()
    marked = 0
    for path in documents.documents():
        text = path.read_text(encoding="utf-8")
        assert documents.written(text, runs) == text, f"{path}: python -m benchmarks.documents"
        found = re.findall(MARKED, text, re.MULTILINE)
        # A mark that nothing ends would be passed over.
        assert len(found) == text.count("figure: "), path
        marked += len(found)
    assert marked > 10


def test_readme_and_configs_state_no_measured_figure_beside():
    for path in documents.documents():
        if path.parent.name != "docs":
            rest = re.sub(MARKED, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert not re.findall(r"\d\.\d+ %", rest), path


def test_figures_worked_by_hand(runs):
    for name, expected in {
        "demo minutes": "2",
        "demo pretrained benign map": "80.0",
        "demo hardened mainstay theory_map": "20.0",
        "demo hardened benign base_rate": "30.0",
        # 0.55 of 0.6, and 0.25 of 0.55.
        "demo pretrained mainstay reached": "92",
        "demo hardened mainstay reached": "45",
    }.items():
        assert documents.figure(name, runs) == expected
    assert "attacked MAP 25.0 % -> 50.0 %" in documents.figure("demo table", runs)
    assert "protocol" not in documents.figure("demo table", runs)
    assert documents.figure("demo summary", runs).endswith("points). Base rate 30.0 %.")
    assert runs["demo"]["records"][0]["curves"] == {}


def test_figures_are_written_between_their_marks(runs):
    text = "a <!-- figure: demo minutes -->0<!-- / --> b\n# figure: demo machine\n# /\n\nc\n"
    machine = runs["demo"]["machine"]
    expected = text.replace(">0<", ">2<").replace("# /", f"# {machine}\n# /")
    assert documents.written(text, runs) == expected
    assert documents.written(expected, runs) == expected
    assert documents.written("<!-- figure: demo table -->0<!-- / -->", runs).startswith(
        "<!-- figure: demo table -->\n```\n"
    )


@pytest.mark.parametrize(
    "name", ["other table", "demo", "demo height", "demo a b map", "demo hardened benign speed"]
)
def test_figures_that_no_record_gives_are_refused(runs, name):
    with pytest.raises(ValueError, match=f"no figure '{name}' in the records of"):
        documents.figure(name, runs)
