"""Fields of the shipped configs."""

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.bad_inputs.judging import Case
from configs import attacks, defenses, demo, lists
from saat_jax import pipeline

Place = tuple[str, ...]
# Every field is walked in each; those that a config shares with one before it are left out.
CONFIGS = {
    "demo": demo.get_config,
    "attacks": lambda: attacks.get_config("small"),
    "defenses": lambda: defenses.get_config("small"),
    "lists": lambda: lists.get_config("small"),
}
NUMBERS = {
    "not a number": float("nan"),
    "infinite": float("inf"),
    "negative": -1,
    "far too large": 10**12,
    "a text": "many",
    "a list of texts": ["many"],
    "a section": {"many": 1},
}


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The fields of a config and their values, and its sections before them."""
    if isinstance(value, Mapping):
        yield place, value
        for name, inner in value.items():
            yield from _leaves(inner, (*place, name))
    else:
        yield place, value


def _changed(config: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A config with another value in one place; `...` takes the field away."""
    config = copy.deepcopy(config)
    section = config
    for name in place[:-1]:
        section = section[name]
    if value is ...:
        del section[place[-1]]
    else:
        section[place[-1]] = value
    return config


def _any_text(place: Place) -> bool:
    """Whether a field is a path, or names what may be there or not."""
    return place[0] in ("encode", "search") or place[-1] in ("root", "data_dir")


def cases() -> Iterator[Case]:
    """Each field of each config with values that it cannot have, without it, and with others."""
    seen: set[Place] = set()
    for title, make in CONFIGS.items():
        config = make().to_dict()
        if config["data"]["source"] == "lists":
            config["data"]["root"] = "photos"

        def case(
            kind: str, place: Place, value: Any, *says: str, make: Any = (title, config)
        ) -> Case:
            title, config = make
            shown = "" if value is ... else f" = {str(value)[:20]!r}"
            act = functools.partial(pipeline.validate, _changed(config, place, value))
            return Case(kind, f"{title}: {'.'.join(place)}{shown}", lambda _: act(), says)

        for place, value in _leaves(config):
            if place in seen:
                continue
            seen.add(place)
            name = place[-1] if place else "config"
            if isinstance(value, Mapping):
                if place and place[-1] not in config["learned"]:
                    yield case("a section that is none", place, 3, name)
                if "name" in value or not place:
                    yield case("an unknown field", (*place, "num_epoch"), 3, "num_epoch")
            elif isinstance(value, bool):
                yield case("a text for a flag", place, "yes", name)
            elif isinstance(value, int | float):
                for kind, bad in NUMBERS.items():
                    # Of which a great many make sense, or do no harm.
                    if kind == "far too large" and (
                        name in ("exponent", "step_size") or name.endswith(("weight", "_decay"))
                    ):
                        continue
                    yield case(f"a number that is {kind}", place, bad, name)
            elif isinstance(value, str) and value and not _any_text(place):
                yield case("an unknown word", place, "no such word", "no such word")
                yield case("a number for a word", place, 3, "3")
                yield case("a flood for a word", place, "x" * 10**6, name + "|x{10}")
            if place and name in ("task", "seed", "k", "batch_size", "num_epochs", "name", "data"):
                yield case("a field that is gone", place, ..., name)
    config = demo.get_config().to_dict()
    for section in ("attacks", "defenses"):
        for name in ("", "../x", "a/b", ".x", "a b", "benign", "pretrained", "x" * 200, "\n", "é"):
            if (section, name) in (("attacks", "pretrained"), ("defenses", "benign")):
                continue
            entry = next(iter(config[section].values()))
            changed = config | {section: {name: entry}}
            yield Case(
                "a name that no file can have, or that is taken",
                f"{section}: {name[:20]!r}",
                lambda _, c=changed: pipeline.validate(c),
                ("name",),
            )
    for workdir in ("", "gs://bucket/run", "s3://bucket/run", __file__):
        yield Case(
            "a workdir that is none",
            workdir,
            lambda _, w=workdir: pipeline.run(config, w),
            ("workdir|bucket",),
        )
