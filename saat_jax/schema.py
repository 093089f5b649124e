"""What a tree of a config's or JSON's types may hold: one way to write it down, and one check.

A shape is one of

    a type                  str, bool, int, float, dict, list; a float may be whole
    a Range                 a number within it
    a Choices               one of its names
    (None, shape)           nothing, or of a shape
    [shape]                 a list or tuple that is not empty, each entry of a shape
    {"name": shape, ...}    a section; "name?" may be left out, and with "*" there may be others
    a function              of (place, value), which raises a ValueError
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saat_jax import options

Check = Callable[[str, Any], None]
_KINDS: dict[type, tuple[Any, str]] = {
    str: (str, "a text"),
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    dict: (Mapping, "a section of fields"),
    list: ((list, tuple), "a list"),
}
# Nobody can draw more.
_LARGEST = 1e30


def check(place: str, value: Any, shape: Any) -> None:
    """Refuses a value that is not of a shape.

    Args:
        place: of the value, such as "model.num_bits"; empty for a whole tree.
        value: of a config or of JSON.
        shape: as above.

    Raises:
        ValueError: naming the place, what stands there, and what may.

    Example:
        >>> check("", {"num_bits": -4}, {"num_bits": number, "name?": str})
        Traceback (most recent call last):
        ValueError: num_bits must be a whole number from 1 to 65536, got -4
    """
    if isinstance(shape, options.Range):  # A tuple too.
        if problem := shape.problem(value):
            raise ValueError(f"{place} {problem}")
    elif isinstance(shape, options.Choices):  # A mapping too.
        with naming(place):
            shape.look_up(value)
    elif isinstance(shape, type):
        _check_type(place, value, shape)
    elif isinstance(shape, tuple):
        if value is not None:
            check(place, value, shape[1])
    elif isinstance(shape, list):
        _check_type(place, value, list)
        if not len(value):
            raise ValueError(f"{place} must be a list that is not empty")
        for number, inner in enumerate(value):
            check(f"{place}[{number}]", inner, shape[0])
    elif isinstance(shape, Mapping):
        _check_fields(place, value, shape)
    else:
        shape(place, value)


def _check_type(place: str, value: Any, kind: type) -> None:
    kinds, words = _KINDS[kind]
    # To Python a truth value is a number.
    fits = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
    if fits and kind is float:
        fits = abs(value) <= _LARGEST or abs(value) == math.inf
    if not fits:
        got = options.shortened(repr(value), 60)
        raise ValueError(f"{place or 'it'} must be {words}, got {got}")


def _check_fields(place: str, value: Any, shape: Mapping[str, Any]) -> None:
    _check_type(place, value, dict)
    known = {name.rstrip("?"): inner for name, inner in shape.items()}
    names, whole = sorted(known.keys() - {"*"}), place or "it"
    if "*" not in known and (unknown := [name for name in value if name not in known]):
        got = options.shortened(unknown[0], 60)
        raise ValueError(f"{whole} has no field {got!r}; it has {names}")
    if lacking := [name for name in shape if name[-1] not in "?*" and name not in value]:
        raise ValueError(f"{whole} lacks {lacking[0]!r}; it has the fields {names}")
    for name, inner in value.items():
        # What may be left out may be nothing.
        if inner is not None or f"{name}?" not in shape:
            where = f"{place}.{options.shortened(name, 60)}".lstrip(".")
            check(where, inner, known.get(name, known.get("*")))


def number(place: str, value: Any) -> None:
    """A number within the range that its name has."""
    check(place, value, options.range_of(place.rpartition(".")[2]) or options.Range())


def anything(place: str, value: Any) -> None:
    """What another part checks later; the numbers in it must be in their ranges."""
    if isinstance(value, Mapping):
        check(place, value, {"*": anything})
    elif isinstance(value, list | tuple):
        for inner in value:
            anything(place, inner)
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, int | float) or options.range_of(place.rpartition(".")[2]):
        number(place, value)


def whatever(place: str, value: Any) -> None:
    """Any value at all."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Puts a place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error
