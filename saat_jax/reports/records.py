"""The files of a run, read and checked."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saat_jax import files

Record = dict[str, Any]
Examples = dict[str, np.ndarray]

BASE_MODEL = "pretrained"
# A run with more attacks than this compares attacks; with fewer, models.
_FEW_ATTACKS = 4
_RECORD_FIELDS = {"targeted": bool, "metrics": dict, "curves": dict, "protocol": dict}
_MATRIX_FIELDS = {"metric": str, "benign": dict, "matrix": dict, "protocol": dict}
_EXAMPLE_ARRAYS = (
    "images",
    "benign_images",
    "top_images",
    "top_relevant",
    "labels",
    "target_labels",
    "class_names",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a report is made of.

    Attributes:
        records: as `load_records` returns them.
        examples: arrays of a few queries, by (model, attack).
        training: logged lines by model, in model order.
        learned: logged lines of the networks that attacks train, by (model, network).
        samples: newest sample grid of such a network, as PNG file, by (model, network).
        transfer: transfer matrices, as `evaluation.transfer` wrote them, non-targeted first.
        config: the run's configuration; empty if the file is missing.
        missing: what an unfinished run has not left yet, in words.
    """

    records: list[Record]
    examples: dict[tuple[str, str], Examples]
    training: dict[str, list[dict[str, Any]]]
    learned: dict[tuple[str, str], list[dict[str, Any]]]
    samples: dict[tuple[str, str], pathlib.Path]
    transfer: list[Record]
    config: dict[str, Any]
    missing: list[str]

    @property
    def models(self) -> list[str]:
        """Names of the models that were trained or judged, `pretrained` first."""
        names = {record["model"] for record in self.records} | set(self.training)
        return sorted(names, key=_model_order)


def load_records(workdir: str | os.PathLike[str]) -> list[Record]:
    """Reads the robustness records of a run.

    Args:
        workdir: folder of the run; records lie at `records/<model>/<attack>.json`.

    Returns:
        The records: `pretrained` before other models (by name), and within a model benign
        queries, then non-targeted, then targeted attacks. Empty if there are none.

    Raises:
        ValueError: if a file is not JSON, or lacks a field.
    """
    records = [load_record(path) for path in pathlib.Path(workdir).glob("records/*/*.json")]
    return sorted(
        records,
        key=lambda r: (*_model_order(r["model"]), r["targeted"], not is_benign(r), r["attack"]),
    )


def is_benign(record: Record) -> bool:
    """Tells whether the record judges untouched queries."""
    return record["attack"] == "benign"


def is_suite(records: Sequence[Record]) -> bool:
    """Tells whether the records are of so many attacks that the attacks are to be compared."""
    return len({record["attack"] for record in records if not is_benign(record)}) > _FEW_ATTACKS


def method(record: Record) -> str:
    """Names the method of an attack: one for all its settings, and `benign` for no attack."""
    return str((record.get("settings") or {}).get("attack", record["attack"]))


def load_run(workdir: pathlib.Path) -> Run:
    """Reads all files of a run; ValueError names the broken one."""
    records = load_records(workdir)
    training = {
        path.parent.name: _load_lines(path)
        for path in sorted(
            workdir.glob("models/*/metrics.jsonl"), key=lambda p: _model_order(p.parent.name)
        )
    }
    examples = {}
    for record in records:
        path = workdir / "records" / record["model"] / f"{record['attack']}.npz"
        if path.exists():
            examples[record["model"], record["attack"]] = load_examples(path)
    config_path = workdir / "config.json"
    config = _load_json(config_path) if config_path.exists() else {}
    learned = {
        (path.parts[-3], path.parts[-2]): _load_lines(path)
        for path in sorted(
            workdir.glob("learned/*/*/metrics.jsonl"),
            key=lambda p: (_model_order(p.parts[-3]), p.parts[-2]),
        )
    }
    samples = {}
    for model, network in learned:
        grids = (workdir / "learned" / model / network / "samples").glob("step_*.png")
        if newest := max(grids, key=lambda p: int(p.stem.removeprefix("step_")), default=None):
            samples[model, network] = newest
    transfer = [
        _check({**_load_json(path), "attack": path.stem}, path, _MATRIX_FIELDS)
        for path in sorted(workdir.glob("transfer/*.json"))
    ]
    transfer.sort(key=lambda matrix: matrix["metric"])
    run = Run(records, examples, training, learned, samples, transfer, config, [])
    return dataclasses.replace(run, missing=_missing(run))


def _missing(run: Run) -> list[str]:
    """Lists what is absent, taking every model and attack seen anywhere as expected."""
    found = {(record["model"], record["attack"]) for record in run.records}
    attacks = list(dict.fromkeys(record["attack"] for record in run.records)) or ["benign"]
    models = run.models or [BASE_MODEL]
    missing = [] if run.config else ["the configuration (config.json)"]
    if run.transfer and not (run.records or run.training):
        return missing
    missing += [f"the training log of {model}" for model in models if model not in run.training]
    for pair in ((model, attack) for model in models for attack in attacks):
        if pair not in found:
            missing.append(f"the record of {pair[0]} on {display_name(pair[1])} queries")
        elif pair not in run.examples:
            missing.append(f"the example images of {pair[0]} on {display_name(pair[1])} queries")
    if attacks == ["benign"]:
        missing.append("the record of an attack")
    if len(models) == 1 and not is_suite(run.records):
        missing.append("a hardened model")
    return missing


def display_name(attack: str) -> str:
    """Spells an attack's file name as words: `mainstay_targeted` is "mainstay targeted"."""
    return attack.replace("_", " ")


def _model_order(name: str) -> tuple[bool, str]:
    return name != BASE_MODEL, name


def load_record(path: pathlib.Path) -> Record:
    """Reads a record's JSON; ValueError says what is wrong with it."""
    record = _check(_load_json(path), path, _RECORD_FIELDS)
    expected = {"model": path.parent.name, "attack": path.stem}
    got = {field: record.get(field) for field in expected}
    if got != expected:
        raise ValueError(f"{path}: expected the record of {expected}, got {got}; was it moved?")
    return record


def _check(record: Record, path: pathlib.Path, fields: Mapping[str, type]) -> Record:
    for field, kind in fields.items():
        if not isinstance(record.get(field), kind):
            raise ValueError(
                f"{path}: expected a field {field!r} of type {kind.__name__}, got "
                f"{record.get(field)!r}; evaluate {path.parent.name} again"
            )
    return record


def _load_json(path: pathlib.Path) -> dict[str, Any]:
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place} is not valid JSON ({error}); delete it and run its stage again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


def _load_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads one JSON object a line."""
    # A resumed run writes again the line that was cut.
    lines = enumerate(files.whole_lines(path), 1)
    return [_parse(line, f"{path}, line {number}") for number, line in lines]


def load_examples(path: pathlib.Path) -> Examples:
    """Reads a record's arrays of a few queries; ValueError says what is wrong with them."""
    examples = files.read_arrays(path)
    absent = [name for name in _EXAMPLE_ARRAYS if name not in examples]
    if absent:
        raise ValueError(f"{path} lacks the arrays {absent}; delete it and evaluate again")
    return examples
