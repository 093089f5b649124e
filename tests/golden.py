"""Reads the golden vectors: inputs and outputs of the authors' own code.

The folder is `$GOLDEN_DIR`, by default `../shared/golden` beside the checkout. Where it is
absent, every test that asks for a vector is skipped with that word. Shapes, constants and
tolerances come from the files, so that another set runs through the same tests.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = pathlib.Path(
    os.environ.get("GOLDEN_DIR", pathlib.Path(__file__).parents[2] / "shared" / "golden")
)
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)"


def _read_json(name: str) -> dict[str, Any]:
    if not (FOLDER / name).is_file():
        pytest.skip(f"golden vectors absent: no {name} in {FOLDER}; set GOLDEN_DIR to their folder")
    with open(FOLDER / name) as file:
        return json.load(file)


@functools.cache
def manifest() -> dict[str, dict[str, Any]]:
    """The cases by name."""
    return {case["case"]: case for case in _read_json("manifest.json")["cases"]}


@functools.cache
def _formulas() -> dict[str, Any]:
    return _read_json("formulas.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case: its arrays by name, its constants, its tolerance in words."""

    name: str
    arrays: dict[str, np.ndarray]
    constants: dict[str, Any]
    tolerance_text: str

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tolerance(self, phrase: str) -> float:
        """The number that first follows `phrase` in the tolerance's words."""
        match = re.search(re.escape(phrase) + r"[^0-9]*?" + _NUMBER, self.tolerance_text)
        if match is None:
            raise KeyError(f"{self.name}: no number after {phrase!r} in {self.tolerance_text!r}")
        return float(match.group(1))

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays called `prefix` + name, by that name: weights, gradients."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}


def load(name: str) -> Case:
    """Reads one case, or skips the test where the folder or the case is absent."""
    if name not in manifest():
        pytest.skip(f"golden case {name} is not in {FOLDER}")
    entry = manifest()[name]
    tolerance = entry["tolerance"]
    if other := re.fullmatch(r"as (\w+)", tolerance):
        tolerance = manifest()[other.group(1)]["tolerance"]
    with np.load(FOLDER / entry["file"]) as file:
        arrays = dict(file)
    return Case(name, arrays, entry["constants"], tolerance)


def names(prefix: str) -> list[str]:
    """The names of all cases that start with `prefix`, for `pytest.mark.parametrize`.

    Without the folder, one name that makes the test skip, so that the skip is seen.
    """
    if not (FOLDER / "manifest.json").is_file():
        return [prefix]
    return [name for name in manifest() if name.startswith(prefix)]


@dataclasses.dataclass(frozen=True)
class Formula:
    """One formula of SPEC.md: float64 inputs and results, with its tolerance."""

    inputs: Any
    expected: Any
    tolerance: float
    float32_rtol: float

    def assert_close(self, actual: Any, expected: Any) -> None:
        """Compares a float32 result: relative to the larger of 1 and the expected value."""
        np.testing.assert_allclose(
            np.asarray(actual, np.float64),
            np.asarray(expected, np.float64),
            rtol=self.float32_rtol,
            atol=max(self.tolerance, self.float32_rtol * 1e-2),
        )


def formula(name: str) -> Formula:
    """Reads one vector of `formulas.json`, or skips the test where it is absent."""
    data = _formulas()
    for vector in data["vectors"]:
        if vector["id"] == name:
            text = data["meta"]["how_to_use"]
            match = re.search(_NUMBER + r" relative for float32", text)
            assert match, f"no float32 tolerance in {text!r}"
            return Formula(
                vector["inputs"], vector["expected"], float(vector["tol"]), float(match.group(1))
            )
    pytest.skip(f"golden formula {name} is not in {FOLDER}")


def nhwc(images: np.ndarray) -> np.ndarray:
    """Moves the channels of `[..., channels, height, width]` images last."""
    return np.moveaxis(images, -3, -1)


def fills() -> ModuleType:
    """The module that fills the weights of large networks, `gold_fills.py` of the folder."""
    path = FOLDER / "gold_fills.py"
    if not path.is_file():
        pytest.skip(f"golden vectors absent: no gold_fills.py in {FOLDER}")
    spec = importlib.util.spec_from_file_location("gold_fills", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
