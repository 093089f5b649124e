"""What the README shows, run."""

import pathlib
import re

import saat_jax
from saat_jax import networks

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_ten_lines_on_own_encoder_run_and_the_attack_lowers_map(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    clean, attacked = map(float, re.findall(r"[0-9]\.[0-9]+", capsys.readouterr().out))
    assert attacked < clean
    assert len(code.splitlines()) <= 10


def test_a_pytorch_model_is_judged_as_the_docs_show(tmp_path, monkeypatch, capsys):
    code, _ = re.findall(r"```python\n(.*?)```", (DOCS / "pytorch.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "pytorch.md", "exec"), {})
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"benign", "mainstay"}
    assert float(lines["mainstay"]) < float(lines["benign"])


def test_an_encoder_is_audited_as_the_docs_show(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "audit.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "audit.md", "exec"), {})
    differ, told = capsys.readouterr().out.split(maxsplit=1)
    assert differ == "0" and "'rate': " in told


def test_no_page_has_blanks_left():
    for page in [README, *(path.read_text() for path in DOCS.glob("*.md"))]:
        assert not re.search(r"[A-Z]+_(TABLE|SECONDS|PLACEHOLDER)|^[A-Z]+$", page, re.MULTILINE)


def test_every_file_and_command_it_names_exists():
    root = pathlib.Path(__file__).parents[1]
    for path in re.findall(r"`((?:configs|launch|saat_jax)/[\w/]+\.py)", README):
        assert (root / path).is_file(), path
    targets = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in targets, target


def test_the_docs_name_every_attack_objective_and_network():
    for page, names in (
        ("attacks.md", saat_jax.ATTACKS),
        ("models.md", {**saat_jax.OBJECTIVES, **networks.NETWORKS}),
    ):
        text = (DOCS / page).read_text()
        assert not [name for name in names if f"`{name}`" not in text]
