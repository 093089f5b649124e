"""What a user may choose: names out of a table, and numbers within a range.

Each number has one range, whatever takes it: a field of a config or an argument of a function.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

T = TypeVar("T")


class Choices(dict[str, T]):
    """Things of one kind by name, such as the losses of attacks.

    Args:
        kind: what one of them is called in messages.
        entries: the first of them.

    Example:
        >>> fruits = Choices("fruit", {"apple": 1})
        >>> fruits.register("pear", 2)
        >>> fruits.look_up("pear")
        2
    """

    def __init__(self, kind: str, entries: Mapping[str, T]):
        super().__init__(entries)
        self.kind = kind

    def look_up(self, name: str) -> T:
        """The entry of a name; ValueError lists the names if there is none."""
        if not isinstance(name, str) or name not in self:
            raise ValueError(f"unknown {self.kind} {name!r}; expected one of {sorted(self)}")
        return self[name]

    def register(self, name: str, entry: T) -> None:
        """Adds an entry of one's own.

        Raises:
            ValueError: if the name is taken, or is none that a file can have.
        """
        check_name(self.kind, name)
        if name in self:
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name")
        self[name] = entry


def check_name(kind: str, name: str) -> None:
    """Refuses a name that would leave its folder or hide there, once it is a file's."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name):
        raise ValueError(
            f"the name of a {kind} is up to 100 letters, digits or any of _ . + = -, and begins "
            f"with none but the first three kinds, got {shortened(name)!r}"
        )


def shortened(value: object, length: int = 200) -> str:
    """A value as text that does not flood a terminal, without its control characters."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: repr(m[0])[1:-1], str(value))
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        low: the least.
        high: the greatest.
        whole: whether it counts something.
        above: whether `low` itself is too little.
        hint: what to try, for the message.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    hint: str = ""

    def problem(self, value: Any) -> str:
        """What is wrong with a value, in words; empty if nothing is. Traced values pass."""
        if isinstance(value, jax.core.Tracer):
            return ""
        number = (
            value.item()
            if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
            else value
        )
        kinds = (int,) if self.whole else (int, float)
        if isinstance(number, bool) or not isinstance(number, kinds) or not math.isfinite(number):
            return f"must be {self}, got {shortened(value)!r}"
        if not self.low <= number <= self.high or (self.above and number == self.low):
            return f"must be {self}, got {number:.12g}{self.hint and f': {self.hint}'}"
        return ""

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least = f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        if self.high == math.inf:
            return kind if self.low == -math.inf else f"{kind} {least}"
        return f"{kind} {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


_COUNT = Range(1, 10**9, whole=True)
_SHARE = Range(0, 1)
_WEIGHT = Range(0)
_PIXELS = "8 grey levels are 8 / 255"
# By the name of the field or argument; see `range_of` for the names that follow a rule.
RANGES: dict[str, Range] = {
    "epsilon": Range(0, 1, hint=_PIXELS),
    "step_size": Range(0, hint=_PIXELS),
    "num_steps": Range(0, 10**9, whole=True),
    "num_bits": Range(1, 2**16, whole=True),
    "seed": Range(0, 2**32 - 1, whole=True),
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "steps_per_epoch": _COUNT,
    "k": _COUNT,
    "min_count": _COUNT,
    "learning_rate": Range(0, 1e6, above=True),
    "teraflops": Range(0, 1e9, above=True),
    "momentum": Range(0, 1),
    "beta1": Range(0, 1),
    "decay": Range(0),
}


def range_of(name: str) -> Range | None:
    """The range of a field or an argument by its name; None if it is no number we know."""
    if name in RANGES:
        return RANGES[name]
    if name.startswith("num_") or name.endswith(("_every", "_width")):
        return _COUNT
    if name.endswith(("weight", "_decay", "_scale")):
        return _WEIGHT
    return None


def check_numbers(place: str = "", /, **numbers: Any) -> None:
    """Refuses numbers out of their range; None and what is traced pass.

    Args:
        place: section of a config, named in the message.
        **numbers: by the name of the argument or field.

    Raises:
        ValueError: naming the first that is wrong, what it is, and what it may be.

    Example:
        >>> check_numbers(epsilon=8 / 255, num_steps=100)
        >>> check_numbers(epsilon=8)
        Traceback (most recent call last):
        ValueError: epsilon must be a number from 0 to 1, got 8: 8 grey levels are 8 / 255
    """
    for name, value in numbers.items():
        allowed = range_of(name)
        if value is not None and allowed and (problem := allowed.problem(value)):
            raise ValueError(f"{place}{'.' * bool(place)}{name} {problem}")
