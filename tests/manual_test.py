"""The manual: it builds without a warning, its tutorials run, its commands are such."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import commands

ROOT = pathlib.Path(__file__).parents[1]


def test_every_command_of_the_pages_would_start():
    found = commands.commands()
    assert len(found) > 60
    faults = [f"{x.page}: {x.text}: {wrong}" for x in found if (wrong := commands.fault(x))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("saat-jax --config nosuch --workdir x", "no config"),
        ("saat-jax --config demo --workdir x --config.nosuch=1", "no field"),
        ("saat-jax --config demo", "required"),
        ("saat-jax nosuch", "no command"),
        ("saat-jax scan codes.npy --radius 3 --nosuch 1", "unknown arguments"),
        ("python -m benchmarks.nosuch", "no module"),
        ("python -m benchmarks.scan --nosuch", "no flag"),
        ("make nosuch", "no target"),
        ('pip install -e ".[nosuch]"', "no extra"),
        ("nosuch --now", "not known"),
    ],
)
def test_a_wrong_command_is_found(text, message):
    assert message in commands.fault(commands.Command("a.md", text, False))


def test_what_is_marked_is_found_and_run(tmp_path):
    (tmp_path / "README.md").write_text(
        "<!-- run -->\n```bash\necho 1 > a\n```\n\n```bash\nx F\n```\n"
    )
    first, second = commands.blocks(tmp_path)
    assert first.marked and not second.marked
    assert commands.run(first, tmp_path)[0] == "done" and (tmp_path / "a").is_file()
    assert commands.run(second, tmp_path)[0].startswith("exit status 127")
    assert commands.needs("saat-jax check FOLDER") == "FOLDER"


@pytest.mark.parametrize("name", [pytest.param("audit", marks=pytest.mark.slow), "functions"])
def test_the_tutorials_run_as_they_stand(name, tmp_path, monkeypatch, capsys):
    if name == "audit":
        pytest.importorskip("pdqhash")
        pytest.importorskip("skimage")
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, f"{name}.md", "exec"), names)
    told = capsys.readouterr().out
    if name == "audit":
        assert "evades its original" in told
        assert (tmp_path / "runs" / "tutorial" / "report.html").is_file()
    else:
        clean, attacked = map(float, told.splitlines()[-2:])
        assert attacked < clean


@pytest.mark.slow
def test_the_manual_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is absent; the extra `docs` has it")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    home = (tmp_path / "index.html").read_text("utf-8")
    for door in ("I study hashing", "I run a matcher", "I import functions"):
        assert door in home
    assert "mainstay_codes" in (tmp_path / "reference" / "made" / "saat_jax.html").read_text()
