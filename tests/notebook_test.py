"""The notebook of the audit, cell by cell."""

import importlib.util
import json
import os
import pathlib

import pytest

from tests import indexes_test

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "audit.ipynb"
postgres = indexes_test.postgres


def _run(monkeypatch, folder, absent):
    """Runs the cells that need nothing that is absent; how many were run."""
    monkeypatch.chdir(folder)
    names: dict = {}
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    able = [c for c in cells if not any(map(absent, c["metadata"]["needs"]))]
    for number, cell in enumerate(able):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    return len(able), len(cells)


def _absent(name):
    return name not in os.environ if name.isupper() else importlib.util.find_spec(name) is None


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pdqhash")
    pytest.importorskip("skimage")
    monkeypatch.delenv("PGVECTOR_ADDRESS", raising=False)
    done, _ = _run(monkeypatch, tmp_path, _absent)
    assert done >= 2 and "evades its original" in capsys.readouterr().out
    assert (tmp_path / "runs" / "pdq" / "report.html").is_file()


def test_the_cell_of_pgvector_runs_on_a_real_server(tmp_path, monkeypatch, capsys, postgres):
    for name in ("torch", "skimage", "faiss"):
        pytest.importorskip(name)
    monkeypatch.setenv("PGVECTOR_ADDRESS", postgres)

    def absent(name):
        return name in ("pdqhash", "onnx") or _absent(name)

    done, _ = _run(monkeypatch, tmp_path, absent)
    assert done == 4 and "by pgvector HNSW" in capsys.readouterr().out
