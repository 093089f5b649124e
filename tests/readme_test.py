"""What the README shows, run."""

import pathlib
import re

import saat_jax
from saat_jax import networks

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_ten_lines_on_own_encoder_run_and_the_attack_lowers_map(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    clean, attacked = map(float, re.findall(r"[0-9]\.[0-9]+", capsys.readouterr().out))
    assert attacked < clean
    assert len(code.splitlines()) <= 10


def test_it_has_no_blanks_left():
    assert not re.search(r"[A-Z]+_(TABLE|SECONDS|PLACEHOLDER)", README)


def test_every_file_and_command_it_names_exists():
    root = pathlib.Path(__file__).parents[1]
    for path in re.findall(r"`((?:configs|launch|saat_jax)/[\w/]+\.py)", README):
        assert (root / path).is_file(), path
    targets = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in targets, target


def test_the_docs_name_every_attack_objective_and_network():
    docs = pathlib.Path(__file__).parents[1] / "docs"
    for page, names in (
        ("attacks.md", saat_jax.ATTACKS),
        ("models.md", {**saat_jax.OBJECTIVES, **networks.NETWORKS}),
    ):
        text = (docs / page).read_text()
        assert not [name for name in names if f"`{name}`" not in text]
