"""Configs by path or name, and the settings that a command line makes in them."""

import ast
import difflib
import importlib.util
import pathlib
import re
import traceback
from collections.abc import Iterable
from typing import Any

import ml_collections
from ml_collections import config_dict

# Beside this package, in a checkout as in an installed wheel.
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, pathlib.Path]:
    """The files of the configs that come with the library, by name."""
    files = sorted(CONFIGS.glob("*.py"))
    return {path.stem: path for path in files if path.stem not in ("__init__", "common")}


def find_config(place: str) -> pathlib.Path:
    """The file of a config: a path, or the name of a shipped one, such as "demo".

    Raises:
        ValueError: if there is neither.
    """
    if (path := pathlib.Path(place)).is_file():
        return path
    shipped = shipped_configs()
    name = re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", place)
    if name and name[1] in shipped:
        return shipped[name[1]]
    raise ValueError(f"no config {place!r}: no such file, and the shipped ones are {[*shipped]}")


def _run_file(path: pathlib.Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; a config's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(text: str) -> ml_collections.ConfigDict:
    """Makes the config of FILE[:VARIANT] or NAME[:VARIANT].

    Raises:
        ValueError: if there is none, or its code fails; with the file and the line.
    """
    place, colon, variant = text.partition(":")
    path = find_config(place)
    try:
        module = _run_file(path)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config(variant), which returns the config")
        config = module.get_config(variant) if colon else module.get_config()
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(
                f"get_config returns a {type(config).__name__}; return a ml_collections.ConfigDict"
            )
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()}" if error.text else ""
        raise ValueError(f"{error.filename or path}{line}: {error.msg}{text}") from error
    # A config is code of the user's, which may raise anything.
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if pathlib.Path(frame.filename) == path
        ]
        line = f", line {lines[-1]}" if lines else ""
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}{line}: {kind}{error}") from error
    return config.lock()


def override(config: ml_collections.ConfigDict, arguments: list[str]) -> None:
    """Sets what arguments such as `--config.model.num_bits=64` say, in place.

    Raises:
        ValueError: an argument of another kind, a field that there is not, a value of another type.
    """
    rest, found = iter(arguments), []
    for argument in rest:
        name, equals, text = argument.partition("=")
        match = re.fullmatch(r"--?config\.(.+)", name)
        if not match:
            raise ValueError(f"unknown argument {argument!r}; settings are --config.NAME=VALUE")
        found.append((match[1], text if equals else next(rest, None)))
    # Names first: an objective's decides which fields it has.
    for name, value in sorted(found, key=lambda setting: not setting[0].endswith(".name")):
        set_field(config, name, value)


def set_field(config: ml_collections.ConfigDict, name: str, text: str | None) -> None:
    """Sets one field, such as "model.num_bits", to what a text says."""
    section, place = config, "config"
    *sections, field = name.split(".")
    for part in sections:
        _check_field(section, place, part)
        section, place = section[part], f"{place}.{part}"
        if not isinstance(section, ml_collections.ConfigDict):
            raise ValueError(f"{place} is a value and has no field {field!r}")
    more = _objective_options(section) if sections == ["objective"] else {}
    _check_field(section, place, field, more)
    place = f"{place}.{field}"
    if text is None:
        raise ValueError(f"--{place} needs a value: --{place}=VALUE")
    if field not in section:
        kind = float if more[field] is None else type(more[field])
        with section.unlocked():
            section[field] = config_dict.FieldReference(more[field], kind)
    section[field] = parse_value(place, text, section.get_type(field), section[field])


def _objective_options(section: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields that the section of an objective may have beside its name, with defaults."""
    # Here since it imports JAX, which takes a second.
    from saat_jax import objectives, options

    return options.declared(objectives.OBJECTIVES[str(section.get("name"))])


def _check_field(
    section: ml_collections.ConfigDict, place: str, name: str, more: Iterable[str] = ()
) -> None:
    known = sorted({*section, *more})
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{place} has no field {name!r}; it has {known}{hint}")


def _number(text: str) -> float:
    """A decimal, or a fraction such as 8/255."""
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(text)


def _truth(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _tuple(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except ValueError:
        # Not a literal: perhaps for its fractions.
        value = ast.literal_eval(re.sub(r"[\d.]+/[\d.]+", lambda m: repr(_number(m[0])), text))
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_PARSERS: dict[type, tuple[Any, str]] = {
    bool: (_truth, "true or false"),
    int: (int, "a whole number"),
    float: (_number, "a number, such as 0.5 or 8/255"),
    tuple: (_tuple, "a tuple, such as (4,8), (4/255,8/255) or ('one',)"),
    list: (lambda text: list(_tuple(text)), "a list, such as [4,8]"),
}


def parse_value(place: str, text: str, kind: type, old: Any = None) -> Any:
    """A value of a field's type, of the text of a command line.

    Args:
        place: of the field, for the message.
        text: "None" is None but where a text stands.
        kind: type of the field.
        old: its present value.

    Raises:
        ValueError: if the text is none of the type.
    """
    if issubclass(kind, ml_collections.ConfigDict):
        raise ValueError(f"{place} is a section; set one of its fields, {sorted(old)}")
    if text == "None" and (old is None or kind is not str):
        return None
    if kind is type(None):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    parse, wanted = _PARSERS.get(kind, (kind, kind.__name__))
    try:
        return parse(text)
    except (ValueError, KeyError, SyntaxError, ZeroDivisionError, TypeError) as error:
        raise ValueError(f"--{place}={text}: expected {wanted}, got {text!r}") from error


def main(arguments: list[str]) -> None:
    """Prints the shipped configs, what each is, and its variants."""
    if arguments:
        raise ValueError(f"unknown arguments {arguments}; this command takes none")
    lines = []
    for name, path in shipped_configs().items():
        summary = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        variants = [f"{name}{variant and ':'}{variant}" for variant in _run_file(path).VARIANTS]
        lines += [name, f"    {summary}", f"    {'  '.join(variants)}"]
    print("\n".join(lines))
