"""The files of a run, read and checked."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from saat_jax import files, options

K = TypeVar("K")
T = TypeVar("T")
Record = dict[str, Any]
Examples = dict[str, np.ndarray]

BASE_MODEL = "pretrained"
# The folder of records that those of other settings took the place of.
EARLIER = "earlier"
METRICS = options.Choices("metric", {"map": "MAP", "t_map": "t-MAP"})
# A run with more attacks than this compares attacks; with fewer, models.
_FEW_ATTACKS = 4
_AGAIN = "delete it and evaluate again"


def _same_lengths(shape: Mapping[str, Any]) -> options.Check:
    """Of a shape whose fields are lists, all as long."""

    def check(place: str, value: Any) -> None:
        options.check_tree(place, value, shape)
        if len(lengths := {len(value[name]) for name in shape}) > 1:
            raise ValueError(f"{place} must have lists of one length, got {sorted(lengths)}")

    return check


def _flags(place: str, value: Any) -> None:
    """A list of flags, often an empty one."""
    options.check_tree(place, value, list)
    texts = {"flag": str, "meaning": str, "advice": str}
    for number, flag in enumerate(value):
        options.check_tree(f"{place}[{number}]", flag, {**texts, "value": float, "limit": float})


# What the files hold. A mean of shares may be rounded to above 1; a weighted precision counts
# labels that are shared.
_SHARE = options.Range(0, 1 + 1e-6)
_METRICS = {"wap?": options.Range(0), "t_wap?": options.Range(0), "*": _SHARE}
_MADE = {
    "protocol": {"k": (None, options.RANGES["k"]), "base_rate?": _SHARE, "*": options.whatever},
    "settings?": {
        "attack?": str,
        "epsilon?": options.RANGES["epsilon"],
        "num_steps?": options.RANGES["num_steps"],
        "*": options.whatever,
    },
    "*": options.whatever,
}
_RECORD = {
    "model": str,
    "attack": str,
    "targeted": bool,
    "metrics": _METRICS,
    "curves": {
        f"{kind}{labels}?": _same_lengths({axis: [float], "precision": [_SHARE]})
        for kind, axis in (("precision_recall", "recall"), ("precision_at_n", "n"))
        for labels in ("", "_target")
    },
    "perturbation?": {"*": float},
    "interval?": [_SHARE],
    "flags?": _flags,
    "members?": {"*": {"score": _SHARE, "worst_on": _SHARE, "*": options.whatever}},
    "seconds_per_image?": options.Range(0, 10**9),
    **_MADE,
}
_MATRIX = {"metric": METRICS, "benign": {"*": _SHARE}, "matrix": {"*": {"*": _SHARE}}, **_MADE}
_KINDS = {
    np.floating: "floats from 0 to 1",
    np.uint8: "uint8",
    np.bool_: "booleans",
    np.str_: "texts",
}
# The sides of an array, equal letters being equal lengths, and what its entries are to NumPy.
_ARRAYS = {
    "images": ("nhw3", np.floating),
    "benign_images": ("nhw3", np.floating),
    "top_images": ("ntyx3", np.uint8),
    "top_relevant": ("nt", np.bool_),
    "labels": ("nc", np.bool_),
    "target_labels": ("nc", np.bool_),
    "class_names": ("c", np.str_),
}


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Everything a report is made of.

    Attributes:
        records: as `load_records` returns them.
        examples: arrays of a few queries, by (model, attack).
        training: logged lines by model, in model order.
        learned: logged lines of the networks that attacks train, by (model, network).
        samples: step and PNG file of the newest sample grid of such a network.
        transfer: transfer matrices, as `evaluation.transfer` wrote them, non-targeted first.
        earlier: records and transfer matrices of other settings, by path in the folder.
        config: the run's configuration; empty if the file is missing.
        damaged: files that are left out: which, what is wrong with each, and what to do.
    """

    records: list[Record]
    examples: dict[tuple[str, str], Examples]
    training: dict[str, list[dict[str, Any]]]
    learned: dict[tuple[str, str], list[dict[str, Any]]]
    samples: dict[tuple[str, ...], tuple[int, pathlib.Path]]
    transfer: list[Record]
    earlier: dict[str, Record]
    config: dict[str, Any]
    damaged: list[str]

    @property
    def models(self) -> list[str]:
        """Names of the models that were trained or judged, `pretrained` first."""
        names = {record["model"] for record in self.records} | set(self.training)
        return sorted(names, key=_base_first)

    @property
    def base_rate(self) -> float | None:
        """What a random order scores: the share of relevant pairs; None if no record says it."""
        rates = (record["protocol"].get("base_rate") for record in self.records)
        return next((rate for rate in rates if rate is not None), None)

    @property
    def missing(self) -> list[str]:
        """What an unfinished run has not left yet, in words.

        Every model and every attack seen anywhere is expected.
        """
        missing = [] if self.config else ["the configuration (config.json)"]
        if self.transfer and not (self.records or self.training):
            return missing
        models = self.models or [BASE_MODEL]
        attacks = list(dict.fromkeys(record["attack"] for record in self.records)) or ["benign"]
        missing += [f"the training log of {name}" for name in models if name not in self.training]
        found = set(map(key_of, self.records))
        for key in [(model, attack) for model in models for attack in attacks]:
            if key not in found or key not in self.examples:
                what = "example images" if key in found else "record"
                missing.append(f"the {what} of {key[0]} on {display_name(key[1])} queries")
        if attacks == ["benign"]:
            missing.append("the record of an attack")
        if len(models) == 1 and not is_suite(self.records):
            missing.append("a hardened model")
        return missing


def load_records(workdir: str | os.PathLike[str]) -> list[Record]:
    """Reads the robustness records of a run.

    Args:
        workdir: folder of the run; records lie at `records/<model>/<attack>.json`.

    Returns:
        The records: `pretrained` before other models (by name), and within a model benign
        queries, then non-targeted, then targeted attacks. Empty if there are none.

    Raises:
        ValueError: if a file is damaged: which, what is wrong with it, and what to do.
    """
    return _in_order(map(load_record, _find(pathlib.Path(workdir), "records/*/*.json").values()))


def load_run(workdir: str | os.PathLike[str]) -> RunFiles:
    """Reads the files of a run; those that are damaged are left out.

    Raises:
        ValueError: if the folder does not exist.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"expected the folder of a run, got {workdir}; has the run been started?")
    damaged = []

    def read(paths: Mapping[K, pathlib.Path], load: Callable[[pathlib.Path], T]) -> dict[K, T]:
        found = {}
        for key, path in paths.items():
            try:
                found[key] = load(path)
            except (ValueError, OSError) as error:
                damaged.append(str(error))
        return found

    records = read(_find(workdir, "records/*/*.json"), load_record)
    arrays = _find(workdir, "records/*/*.npz")
    examples = read({key: path for key, path in arrays.items() if key in records}, load_examples)
    training = read(_find(workdir, "models/*/metrics.jsonl"), _load_log)
    learned = read(_find(workdir, "learned/*/*/metrics.jsonl"), _load_log)
    samples = read(_find(workdir, "learned/*/*/samples/step_*.png"), _load_sample)
    matrices = read(_find(workdir, "transfer/*.json"), _load_matrix)
    kept = _find(workdir, f"records/*/{EARLIER}/*.json") | _find(
        workdir, f"transfer/{EARLIER}/*.json"
    )
    earlier = read(kept, _load_earlier)
    config = read(_find(workdir, "config.json"), files.read_json)
    return RunFiles(
        _in_order(records.values()),
        {(model, attack): found for (model, attack), found in examples.items()},
        {model: lines for (model, _), lines in training.items() if lines},
        {(model, network): lines for (model, network, _), lines in learned.items()},
        # The newest comes last, and counts.
        {key[:2]: found for key, found in sorted(samples.items(), key=lambda item: item[1])},
        sorted(matrices.values(), key=lambda matrix: matrix["metric"]),
        {kept[key].relative_to(workdir).as_posix(): found for key, found in earlier.items()},
        next(iter(config.values()), {}),
        damaged,
    )


def _find(workdir: pathlib.Path, pattern: str) -> dict[tuple[str, ...], pathlib.Path]:
    """The files of a pattern by what tells them apart: the folders below the first, and the stem.

    In order, `pretrained` before others.
    """
    paths = {(*p.relative_to(workdir).parts[1:-1], p.stem): p for p in workdir.glob(pattern)}
    return {key: paths[key] for key in sorted(paths, key=lambda key: [*map(_base_first, key)])}


def _base_first(name: str) -> tuple[bool, str]:
    return name != BASE_MODEL, name


def _in_order(records: Iterable[Record]) -> list[Record]:
    return sorted(
        records,
        key=lambda r: (
            _base_first(r["model"]),
            r["targeted"],
            not is_benign(r),
            not is_worst_case(r),
            settings_of(r).get("epsilon") if is_worst_case(r) else 0,
            r["attack"],
        ),
    )


def key_of(record: Record) -> tuple[str, str]:
    """Model and attack of a record."""
    return record["model"], record["attack"]


def is_benign(record: Record) -> bool:
    """Tells whether the record judges untouched queries."""
    return record["attack"] == "benign"


def is_worst_case(record: Record) -> bool:
    """Tells whether the record is of the worst of many attacks, query by query."""
    return "members" in record


def is_suite(records: Sequence[Record]) -> bool:
    """Tells whether the records are of so many attacks that the attacks are to be compared."""
    return len({record["attack"] for record in records if not is_benign(record)}) > _FEW_ATTACKS


def settings_of(record: Record) -> dict[str, Any]:
    """The settings of a record's attack; empty for no attack."""
    return record.get("settings") or {}


def method(record: Record) -> str:
    """Names the method of an attack: one for all its settings, and `benign` for no attack."""
    return settings_of(record).get("attack") or record["attack"]


def display_name(name: str) -> str:
    """Spells the name of an attack or a network as words: `mainstay_targeted`."""
    return name.replace("_", " ")


def load_record(path: pathlib.Path) -> Record:
    """Reads a record's JSON; ValueError says what is wrong with it."""
    record = files.read_json(path, cure=_AGAIN, fields=_RECORD)
    model = path.parents[path.parent.name == EARLIER].name
    expected = {"model": model, "attack": _attack_of(path)}
    got = {field: record[field] for field in expected}
    if got != expected:
        raise ValueError(
            f"{path}: expected the record of {expected}, got {got}; if it was moved, move it back, "
            f"else {_AGAIN}"
        )
    if (name := "t_map" if record["targeted"] else "map") not in record["metrics"]:
        raise ValueError(f"{path}: metrics lacks {name!r}; {_AGAIN}")
    return record


def _load_matrix(path: pathlib.Path) -> Record:
    matrix = {**files.read_json(path, cure=_AGAIN, fields=_MATRIX), "attack": _attack_of(path)}
    judges = matrix["benign"].keys()
    # A run that was stopped has some rows.
    if not judges or any(row.keys() != judges for row in matrix["matrix"].values()):
        raise ValueError(
            f"{path}: benign and each row of matrix must be of the same models; {_AGAIN}"
        )
    return matrix


def _attack_of(path: pathlib.Path) -> str:
    # An earlier record has the start of its identity in its name.
    return path.stem.rpartition(".")[0] if path.parent.name == EARLIER else path.stem


def _load_earlier(path: pathlib.Path) -> Record:
    is_matrix = path.parent.parent.name == "transfer"
    return _load_matrix(path) if is_matrix else load_record(path)


def _load_sample(path: pathlib.Path) -> tuple[int, pathlib.Path]:
    """The step of a grid of samples, and its path."""
    step = path.stem.removeprefix("step_")
    if not step.isdecimal():
        raise ValueError(f"{path}: its name must be step_NUMBER.png; rename or delete it")
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n") or b"IEND" not in content[-12:]:
        raise ValueError(f"{path} is no whole PNG; delete it")
    return int(step), path


def transfer_rows(matrix: Record) -> dict[str, dict[str, float]]:
    """The rows of a transfer matrix by who crafted the images: nobody, then each model."""
    return {"benign": matrix["benign"], **matrix["matrix"]}


def _load_log(path: pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of a training log. A resumed run writes again the line that was cut."""
    return files.read_json_lines(path, cure="remove the line", fields={"*": float})


def load_examples(path: pathlib.Path) -> Examples:
    """Reads a record's arrays of a few queries; ValueError says what is wrong with them."""
    examples = files.read_arrays(path, cure=_AGAIN, names=tuple(_ARRAYS))
    sides = {"3": 3}
    for name, (letters, kind) in _ARRAYS.items():
        array = examples[name]
        if (
            array.ndim != len(letters)
            or not np.issubdtype(array.dtype, kind)
            or [sides.setdefault(*pair) for pair in zip(letters, array.shape, strict=True)]
            != [*array.shape]
            or (kind is np.floating and not np.all((array >= 0) & (array <= 1)))
        ):
            expected = ", ".join(str(sides.get(letter, letter)) for letter in letters)
            raise ValueError(
                f"{path}: {name} must be [{expected}] of {_KINDS[kind]}, got {[*array.shape]} of "
                f"{array.dtype}; {_AGAIN}"
            )
    return examples
