"""The wheel, installed into empty environments: all that the library promises, without a checkout.

Each Python of PYTHONS in the environment (paths, joined as PATH is) is tried; by default those
of 3.11 to 3.13 that are on the path or pyenv's. Needs a package index.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.wheel
ROOT = pathlib.Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
# Hardens by the library alone, and reads the record that the command has made.
SCRIPT = """
import json, sys
import saat_jax
from saat_jax import pipeline
assert "site-packages" in saat_jax.__file__, saat_jax.__file__
run = pipeline.Run(json.load(open("run/config.json")), "run")
pipeline.judge(run, "hardened")
record = json.load(open("run/records/hardened/mainstay.json"))
assert 0 < record["metrics"]["map"] < 1
assert not {"launch", "configs", "ml_collections", "tensorflow"} & sys.modules.keys()
"""


def _pythons():
    if given := os.environ.get("PYTHONS"):
        return given.split(os.pathsep)
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = []
    for version in VERSIONS:
        at_pyenv = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
        found += [str(at_pyenv[-1])] if at_pyenv else [shutil.which(f"python{version}")]
    return [python for python in found if python] or [sys.executable]


def _run(*arguments, folder, status=0):
    """The output of a command; it must end with a status, in a folder that is no checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    process = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == status, process.stdout
    assert status == 0 or "Traceback" not in process.stdout
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Of a copy: setuptools leaves its work beside what it builds.
    copy = tmp_path_factory.mktemp("source") / "saat_jax"
    left = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, copy, folder=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.parametrize("python", _pythons())
def test_an_installed_wheel_does_all(wheel, python, tmp_path):
    _run(python, "-m", "venv", "env", folder=tmp_path)
    bin = tmp_path / "env" / "bin"
    pip = (bin / "python", "-m", "pip", "--quiet", "install")
    _run(*pip, wheel, folder=tmp_path)
    assert "demo  demo:smoke" in _run(bin / "saat-jax", "configs", folder=tmp_path)
    smoke = ("--config=demo:smoke", "--workdir=run")
    answer = _run(bin / "saat-jax", *smoke, folder=tmp_path, status=1)
    assert "pip install scikit-learn" in answer

    _run(*pip, f"{wheel}[data,report]", folder=tmp_path)
    print(_run(bin / "python", "-m", "pip", "list", folder=tmp_path))
    output = _run(bin / "saat-jax", *smoke, folder=tmp_path)
    assert "MAP@5000" in output and (tmp_path / "run" / "report.html").is_file()
    for model in ("pretrained", "hardened"):
        record = tmp_path / "run" / "records" / model / "mainstay.json"
        assert json.loads(record.read_text())["model"] == model
    _run(bin / "python", "-c", SCRIPT, folder=tmp_path)
    _run(bin / "python", "-m", "saat_jax", "check", "--help", folder=tmp_path)

    audit = ("audit", "--config=audit:dhash", "--config.limit=2", "--config.longest=64")
    answer = _run(bin / "saat-jax", *audit, folder=tmp_path, status=1)
    assert "pip install scikit-image" in answer
    _run(*pip, f"{wheel}[audit,faiss,onnx]", folder=tmp_path)
    assert "dhash, 64 bits" in _run(bin / "saat-jax", *audit, folder=tmp_path)
    assert (tmp_path / "runs" / "audit" / "report.html").is_file()
    given = ("audit", "--config=audit:run", "--config.encoder=run:hardened", "--workdir=of_run")
    brief = ("--config.limit=2", "--config.epsilons=(8/255,)")
    rate = "--config.point.false_match_rate=0.1"
    assert "run:hardened" in _run(bin / "saat-jax", *given, *brief, rate, folder=tmp_path)
    plan = ("--table=saat:VII", "--scale=small", "--workdir=papers", "--dry-run")
    assert "stages" in _run(bin / "saat-jax", "reproduce", *plan, folder=tmp_path)
