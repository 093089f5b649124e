"""Files of a finished run, damaged: the report is made again, or the run is started again."""

import contextlib
import copy
import functools
import io
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.bad_inputs.judging import Case
from configs import demo
from saat_jax import pipeline, reports

RECORD = "records/pretrained/mainstay.json"
ARRAYS = "records/pretrained/mainstay.npz"
# What may stand in the place of a file that was sound.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "a list": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "an object without fields": lambda _: b"{}",
    "no JSON": lambda _: b"garbage",
    "no UTF-8": lambda _: b"\xff\xfe{}",
    "half of itself": lambda whole: whole[: len(whole) // 2],
    "nested 100,000 deep": lambda _: b"[" * 100_000,
    "a flood": lambda _: b"x" * 10**7,
    "control codes": lambda _: b"\x1b[31mred\x1b[0m",
}
JUNK: dict[str, Any] = {
    "a text": "many",
    "a list": [1, "two"],
    "an object": {"many": {}},
    "null": None,
    "NaN": float("nan"),
    "7.5 million": 7.5e6,
    "negative": -3,
    "true": True,
}
# The fields of a record that are read, and those of them that may be absent.
READ = ("model", "attack", "targeted", "metrics", "curves", "settings.epsilon", "perturbation")
OPTIONAL = ("curves", "settings", "perturbation")


@functools.cache
def _config() -> dict[str, Any]:
    config = demo.get_config("smoke").to_dict()
    config["data"] |= dict(num_query=8, num_database=24, num_train=16)
    config["model"]["widths"] = (4, 4, 4, 4)
    config["task"], config["pretrain"]["checkpoint_every"] = "compare_attacks", 1
    config["evaluation"].update(num_examples=2, attack_suite="")
    config["pretrain"]["batch_size"] = config["evaluation"]["batch_size"] = 8
    return config


@functools.cache
def _sound() -> pathlib.Path:
    """A finished run."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bad_inputs_"))
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.run(_config(), folder)
    return folder


def _again(folder: pathlib.Path) -> dict[str, Any]:
    """Starts the run in a folder again; returns what was measured."""
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.run(copy.deepcopy(_config()), folder)
    paths = sorted((folder / "records").rglob("*.json"))
    return {str(p.relative_to(folder)): json.loads(p.read_text())["metrics"] for p in paths}


def _report(folder: pathlib.Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        reports.show_report(folder)


def _case(
    kind: str,
    title: str,
    name: str,
    damage: Callable[[pathlib.Path], object],
    *,
    act: Callable[[pathlib.Path], Any] = _report,
    says: tuple[str, ...] = (),
) -> Case:
    """A case in which a file of a run is damaged."""

    def damaged(folder: pathlib.Path) -> Any:
        run = folder / "run"
        shutil.copytree(_sound(), run)
        damage(run / name)
        return act(run)

    right = (lambda: _again(_sound())) if act is _again else None
    return Case(kind, title, damaged, says or (re.escape(name),), right)


def _write(content: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(content(path.read_bytes()))


def _fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in a record; of a list the first entry."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, (*place, name))
    elif isinstance(value, list) and value:
        yield from _fields(value[0], (*place, 0))


def _junk_for(place: tuple[Any, ...], record: Any) -> Iterator[tuple[str, Any]]:
    """What cannot stand in a place of a record."""
    value = functools.reduce(lambda inner, name: inner[name], place, record)
    for title, junk in JUNK.items():
        absent = junk is None and place[0] in OPTIONAL and len(place) < 3
        numbers = {type(value), type(junk)} <= {int, float} and place[0] != "metrics"
        both = type(value) is type(junk) and type(value) in (str, bool, dict)
        # NaN is no size of anything.
        if not (absent or both or (numbers and junk == junk)):
            yield title, junk


def _set(place: tuple[Any, ...], value: Any) -> Callable[[pathlib.Path], object]:
    """Gives a field of a record another value; `...` takes it away."""

    def damage(path: pathlib.Path) -> None:
        record = json.loads(path.read_text())
        section = record
        for name in place[:-1]:
            section = section[name]
        if value is ...:
            del section[place[-1]]
        else:
            section[place[-1]] = value
        path.write_text(json.dumps(record))

    return damage


def _change(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[pathlib.Path], object]:
    """Gives one of the arrays of a file another value; None takes it away."""

    def damage(path: pathlib.Path) -> None:
        with np.load(path) as found:
            arrays: dict[str, Any] = dict(found)
        arrays[name] = make(arrays[name])
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})

    return damage


def cases() -> Iterator[Case]:
    """Each file in each state, each field and each array with junk in it."""
    for title, content in CONTENTS.items():
        for name in (RECORD, ARRAYS, "models/pretrained/metrics.jsonl", "config.json"):
            kind = f"a file of a run that is {title}"
            # The page does without settings, and a log may be cut at its end.
            if not (name.endswith(("jsonl", "config.json"))):
                yield _case(kind, f"report: {name}", name, _write(content))
            yield _case(kind, f"again: {name}", name, _write(content), act=_again)
        for name in ("targets.npz", "records/pretrained/benign.json"):
            kind = f"a file of a run that is {title}"
            yield _case(kind, f"again: {name}", name, _write(content), act=_again)
    record = json.loads((_sound() / RECORD).read_text())
    for place in _fields(record):
        name = ".".join(map(str, place))
        if not name.startswith(READ):
            continue
        for title, junk in _junk_for(place, record):
            kind, says = f"a field of a record that is {title}", (RECORD, str(place[0]))
            yield _case(kind, name, RECORD, _set(place, junk), says=says)
    for name in record:
        act = _report if name in READ and name not in OPTIONAL else _again
        yield _case("a field of a record that is gone", name, RECORD, _set((name,), ...), act=act)
    with np.load(_sound() / ARRAYS) as found:
        names = found.files
    changes: dict[str, Callable[[np.ndarray], Any]] = {
        "gone": lambda x: None,
        "of fewer rows": lambda x: x[:-1],
        "of another rank": lambda x: x[None],
        "of texts": lambda x: np.full(x.shape, "a" * 3) if x.dtype.kind != "U" else x.astype("S"),
        "objects": lambda x: np.array([{}] * len(x), object),
        "of NaN": lambda x: np.full(x.shape, np.nan),
        "empty": lambda x: x[:0],
    }
    for name in names:
        for title, make in changes.items():
            yield _case(
                f"an array of a record that is {title}",
                name,
                ARRAYS,
                _change(name, make),
                says=(re.escape(ARRAYS), name if title != "objects" else "cannot be read"),
            )
    checkpoints = sorted((_sound() / "models/pretrained/checkpoints/latest").iterdir())
    newest = max(checkpoints, key=lambda path: int(path.name))
    for path in sorted(p for p in newest.rglob("*") if p.is_file()):
        name = str(path.relative_to(_sound()))
        for title, damage in {
            "empty": _write(lambda _: b""),
            "gone": lambda path: path.unlink(),
            "half of itself": _write(lambda whole: whole[: len(whole) // 2]),
            "of a flipped bit": _write(lambda whole: bytes([whole[0] ^ 1]) + whole[1:]),
        }.items():
            says = ("checkpoints",)
            kind = f"a file of a checkpoint that is {title}"
            yield _case(kind, name, name, damage, act=_again, says=says)
    for step in ("7", "1000", "abc", "-1", "0003"):
        yield _case(
            "a checkpoint renamed",
            step,
            str(newest.relative_to(_sound())),
            lambda path, step=step: path.rename(path.with_name(step)),
            act=_again,
            says=("checkpoints",),
        )
