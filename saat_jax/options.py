"""What a user may choose: names out of a table, numbers within a range, arrays of a shape.

Each number has one range, whatever takes it: a field of a config or an argument of a function.
"""

import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

T = TypeVar("T")
# Of (place, value): raises a ValueError.
Check = Callable[[str, Any], None]


class Choices(dict[str, T]):
    """Things of one kind by name, such as the losses of attacks.

    Args:
        kind: what one of them is called in messages.
        entries: the first of them.
        base: the class of which each is a subclass, if they are classes.

    Example:
        >>> fruits = Choices("fruit", {"apple": 1})
        >>> fruits.register("pear", 2)
        >>> fruits["pear"]
        2
    """

    def __init__(self, kind: str, entries: Mapping[str, T], *, base: type | None = None):
        super().__init__(entries)
        self.kind = kind
        self._base = base

    def __getitem__(self, name: str) -> T:
        """The entry of a name; ValueError lists the names if there is none."""
        if not isinstance(name, str) or name not in self:
            got = shortened(name) if isinstance(name, str) else name
            raise ValueError(f"unknown {self.kind} {got!r}; expected one of {sorted(self)}")
        return super().__getitem__(name)

    def register(self, name: str, entry: T) -> None:
        """Adds an entry of one's own.

        Raises:
            ValueError: if the name is taken or none that a file can have, or the entry none of
                the kind.
        """
        check_name(self.kind, name)
        if self._base and not (isinstance(entry, type) and issubclass(entry, self._base)):
            raise ValueError(
                f"the {self.kind} {name!r} must be a subclass of {self._base.__name__}, got "
                f"{shortened(entry)}"
            )
        if name in self:
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name")
        self[name] = entry


def check_word(name: str, value: str, words: Iterable[str]) -> None:
    """Refuses an argument that is none of some words, with a ValueError that lists them."""
    Choices(name, dict.fromkeys(words))[value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of what a config makes by name: its fields are the options that it declares.

    A field of type `Literal` holds one of its words, a bool True or False, and a number lies in
    the range of its name.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Jam(Options):
        ...     num_jars: int
        ...     sugar: typing.Literal["some", "much"] = "some"
        >>> declared(Jam)
        {'num_jars': Ellipsis, 'sugar': 'some'}
        >>> create(Jam, "jam", {"num_jars": 0})
        Traceback (most recent call last):
        ValueError: jam: num_jars must be a whole number from 1 to 1e+09, got 0
    """

    def __post_init__(self) -> None:
        """Refuses values that the options cannot have, with a ValueError."""
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if typing.get_origin(field.type) is typing.Literal:
                check_word(name, value, typing.get_args(field.type))
            elif field.type is bool and not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} must be True or False, got {shortened(value)!r}")
            elif field.type in (int, float) and range_of(name) is None:
                _refuse(name, Range(whole=field.type is int).problem(value))
        check_numbers(**vars(self))


AnyOptions = TypeVar("AnyOptions", bound=Options)


def declared(made: type[Options]) -> dict[str, Any]:
    """The options that a class declares, with their defaults; `...` where there is none."""
    return {
        field.name: ... if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(made)
    }


def check_given(place: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses what is no option, misses what has no default, and checks what is True or False.

    Args:
        place: what has the options, in messages.
        known: the options with their defaults, `...` for none.
        given: the options.
    """
    if unknown := sorted({*given} - known.keys()):
        raise ValueError(f"{place} has no option {shortened(unknown[0])!r}; it has {sorted(known)}")
    if missing := [name for name in known if known[name] is ... and name not in given]:
        raise ValueError(f"{place} needs the option {missing[0]!r}, which has no default")
    for name, value in given.items():
        # Of some, such as "anneal", a number has a meaning too.
        is_flag = isinstance(known[name], bool) and not range_of(name)
        if is_flag and not isinstance(value, bool | np.bool_):
            raise ValueError(f"{place}: {name} must be True or False, got {shortened(value)!r}")


def create(made: type[AnyOptions], place: str, given: Mapping[str, Any]) -> AnyOptions:
    """Makes what a config names, of the options that it gives.

    Args:
        made: of what class.
        place: what to call it, or its section of a config, in messages.
        given: the options by name.

    Raises:
        ValueError: if there is no such option, one without a default is missing, or a value is
            none that it can have.
    """
    check_given(place, declared(made), given)
    try:
        return made(**given)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def check_shapes(**arrays: tuple[Any, str]) -> None:
    """Refuses arrays that are not of the shapes named: nothing is to be broadcast in silence.

    The shapes of traced arrays are checked as well.

    Args:
        **arrays: by the name of the argument, an array and its dimensions in words; the same
            word is the same size in all.

    Raises:
        ValueError: naming the first argument that does not fit, its shape, and what it should be.

    Example:
        >>> codes, labels = np.ones((4, 8)), np.ones((1, 3))
        >>> check_shapes(codes=(codes, "batch num_bits"), labels=(labels, "batch num_classes"))
        Traceback (most recent call last):
        ValueError: labels must be of shape [batch, num_classes] with batch=4, got (1, 3)
    """
    sizes: dict[str, int] = {}
    for name, (array, dimensions) in arrays.items():
        words = dimensions.split()
        fixed = ", ".join(f"{word}={sizes[word]}" for word in words if word in sizes)
        wanted = f"[{', '.join(words)}]{fixed and f' with {fixed}'}"
        if not hasattr(array, "shape"):
            raise ValueError(f"{name} must be an array {wanted}, got {type(array).__name__}")
        if len(array.shape) != len(words) or any(
            sizes.setdefault(word, size) != size
            for word, size in zip(words, array.shape, strict=True)
        ):
            raise ValueError(f"{name} must be of shape {wanted}, got {tuple(array.shape)}")


def check_name(kind: str, name: str) -> None:
    """Refuses a name that would leave its folder or hide there, once it is a file's."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}", name):
        raise ValueError(
            f"the name of a {kind} is up to 100 letters, digits or any of _ . + = -, and begins "
            f"with none but the first three kinds, got {shortened(name)!r}"
        )


def shortened(value: object, length: int = 200) -> str:
    """A value as text that does not flood a terminal, without its control characters.

    Half characters, as Python reads bytes that are no UTF-8, are shown as escapes too.
    """
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda m: repr(m[0])[1:-1], str(value))
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


class Range(NamedTuple):
    """What a number may be.

    Attributes:
        low: the least.
        high: the greatest.
        whole: whether it counts something.
        above: whether `low` itself is too little.
        hint: what to try, for the message.
        flag: whether True and False have a meaning too.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    hint: str = ""
    flag: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value, in words; empty if nothing is. Traced values pass."""
        if isinstance(value, jax.core.Tracer):
            return ""
        number = (
            value.item()
            if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
            else value
        )
        if isinstance(number, bool) and self.flag:
            return ""
        kinds = (int,) if self.whole else (int, float)
        if isinstance(number, bool) or not isinstance(number, kinds):
            got = shortened(value)
            return f"must be {self}, got {repr(got) if isinstance(value, str) else got}"
        # Written so that NaN is refused too.
        inside = self.low <= number <= self.high and abs(number) != math.inf
        if inside and not (self.above and number == self.low):
            return ""
        return f"must be {self}, got {shortened(value, 40)}{self.hint and f': {self.hint}'}"

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.flag:
            kind = f"True, False or {kind}"
        least = f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        if self.high == math.inf:
            return kind if self.low == -math.inf else f"{kind} {least}"
        return f"{kind} {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


_COUNT = Range(1, 10**9, whole=True)
_FROM_ZERO = Range(0, 10**9, whole=True)
_PIXELS = Range(1, 2**14, whole=True)
_SHARE = Range(0, 1)
_SIZE = Range(0)
_POSITIVE = Range(0, above=True)
_GREY = "8 grey levels are 8 / 255"
# By the name of the field or argument; see `range_of` for the names that follow a rule.
RANGES: dict[str, Range] = {
    # Of codes, labels and images.
    "num_bits": Range(1, 2**16, whole=True),
    "order": Range(1, 2**16, whole=True),
    "image_size": _PIXELS,
    "resize": _PIXELS,
    "longest": _PIXELS,
    "contrast": Range(0, 1, above=True, hint="1 is 20 to 80 % of the grey scale"),
    # Of attacks.
    "epsilon": Range(0, 1, hint=_GREY),
    "at_precision": Range(0, 1, above=True),
    "epsilons": Range(0, 1, hint=_GREY),
    "step_size": Range(0, hint=_GREY),
    "num_steps": _FROM_ZERO,
    "num_flips": _FROM_ZERO,
    "budget": _COUNT,
    "per_second": _POSITIVE,
    "anneal": Range(1, 10**9, whole=True, flag=True),
    "alpha": _POSITIVE,
    "decay": _SIZE,
    "beta": _SIZE,
    "probability": _SHARE,
    "resize_rate": Range(0, 1, above=True),
    "threshold": _SHARE,
    "patch": Range(0, 0.99),
    "max_drift": Range(0, 4),
    "alert_rate": Range(0, 1, above=True),
    "radius": Range(0, 2**16, whole=True),
    "sigma": _POSITIVE,
    "alpha_error": Range(0, 0.5, above=True),
    "sharpness": _POSITIVE,
    "exponent": Range(),
    "batch_scale": _COUNT,
    # Of training.
    "seed": Range(0, 2**32 - 1, whole=True),
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "steps_per_epoch": _COUNT,
    "start_step": _FROM_ZERO,
    "num_decay_epochs": _FROM_ZERO,
    "process_index": _FROM_ZERO,
    "process_count": _COUNT,
    "learning_rate": Range(0, 1e6, above=True),
    "momentum": _SHARE,
    "beta1": _SHARE,
    # Of objectives and losses.
    "eta": _SIZE,
    "slope": _POSITIVE,
    "margin": _SIZE,
    "scale": _POSITIVE,
    "gamma": _POSITIVE,
    # Of networks: each of the widths.
    "width": Range(1, 10**6, whole=True),
    "widths": Range(1, 10**6, whole=True),
    "hidden": Range(1, 10**6, whole=True),
    "dropout_rate": Range(0, 0.99),
    "depth": Range(1, 10**3, whole=True),
    "num_registers": Range(0, 10**3, whole=True),
    "patch_size": _PIXELS,
    "grid": _PIXELS,
    "projection": _FROM_ZERO,
    "mlp_ratio": _POSITIVE,
    "norm_epsilon": _POSITIVE,
    # Of judging.
    "k": _COUNT,
    "min_count": _COUNT,
    "num_examples": _FROM_ZERO,
    "limit": _COUNT,
    # Of an estimate of cost.
    "teraflops": _POSITIVE,
}


def range_of(name: str) -> Range | None:
    """The range of a field or an argument by its name; None if it is no number we know."""
    if name in RANGES:
        return RANGES[name]
    if name.startswith("num_") or name.endswith("_every"):
        return _COUNT
    if name.endswith("_width"):
        return RANGES["widths"]
    if name.endswith(("weight", "_decay")):
        return _SIZE
    return None


def check_numbers(place: str = "", /, **numbers: Any) -> None:
    """Refuses numbers out of their range; None and what is traced pass.

    Args:
        place: section of a config, named in the message.
        **numbers: by the name of the argument or field; of a list or tuple each, and what a dict
            holds as of a section within.

    Raises:
        ValueError: naming the first that is wrong, what it is, and what it may be.

    Example:
        >>> check_numbers(epsilon=8 / 255, num_steps=100)
        >>> check_numbers(epsilon=8)
        Traceback (most recent call last):
        ValueError: epsilon must be a number from 0 to 1, got 8: 8 grey levels are 8 / 255
    """
    for name, value in numbers.items():
        where = f"{place}{'.' * bool(place)}{name}"
        allowed = range_of(name)
        if isinstance(value, Mapping) and not allowed:
            check_numbers(where, **value)
        elif allowed:
            for number in value if isinstance(value, list | tuple) else (value,):
                if number is not None:
                    _refuse(where, allowed.problem(number))


def _refuse(name: str, problem: str) -> None:
    if problem:
        raise ValueError(f"{name} {problem}")


# What the types of a shape are to Python, and in words.
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


def check_tree(place: str, value: Any, shape: Any, *, whole: str = "it") -> None:
    """Refuses a value of a config or of JSON that is not of a shape.

    A shape is one of

        a type                  str, bool, int, float, dict, list; a float may be whole
        a Range                 a number within it
        a Choices               one of its names
        (None, shape)           nothing, or of a shape
        [shape]                 a list or tuple that is not empty, each entry of a shape
        {"name": shape, ...}    a section; "name?" may be left out, and with "*" there may be others
        a function              of (place, value), which raises a ValueError

    Args:
        place: of the value, such as "model.num_bits"; empty for a whole tree.
        value: what stands there.
        shape: as above.
        whole: what to call the value where it has no place.

    Raises:
        ValueError: naming the place, what stands there, and what may.

    Example:
        >>> check_tree("", {"num_bits": -4}, {"num_bits": number, "name?": str})
        Traceback (most recent call last):
        ValueError: num_bits must be a whole number from 1 to 65536, got -4
    """
    if isinstance(shape, Range):  # A tuple too.
        if problem := shape.problem(value):
            raise ValueError(f"{place} {problem}")
    elif isinstance(shape, Choices):  # A mapping too.
        with naming(place):
            shape[value]
    elif isinstance(shape, type):
        _check_type(place or whole, value, shape)
    elif isinstance(shape, tuple):
        if value is not None:
            check_tree(place, value, shape[1])
    elif isinstance(shape, list):
        _check_type(place, value, list)
        if not len(value):
            raise ValueError(f"{place} must be a list that is not empty")
        for number, inner in enumerate(value):
            check_tree(f"{place}[{number}]", inner, shape[0])
    elif isinstance(shape, Mapping):
        _check_fields(place, value, shape, place or whole)
    else:
        shape(place, value)


def _check_type(place: str, value: Any, kind: type) -> None:
    kinds, words = _KINDS[kind]
    # To Python a truth value is a number.
    fits = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
    if fits and kind is float:
        fits = abs(value) <= _LARGEST or abs(value) == math.inf
    if not fits:
        got = shortened(repr(value), 60)
        raise ValueError(f"{place} must be {words}, got {got}")


def _check_fields(place: str, value: Any, shape: Mapping[str, Any], whole: str) -> None:
    _check_type(whole, value, dict)
    known = {name.rstrip("?"): inner for name, inner in shape.items()}
    names = sorted(known.keys() - {"*"})
    if "*" not in known and (unknown := [name for name in value if name not in known]):
        got = shortened(unknown[0], 60)
        raise ValueError(f"{whole} has no field {got!r}; it has {names}")
    if lacking := [name for name in shape if name[-1] not in "?*" and name not in value]:
        raise ValueError(f"{whole} lacks {lacking[0]!r}; it has the fields {names}")
    for name, inner in value.items():
        # What may be left out may be nothing.
        if inner is not None or f"{name}?" not in shape:
            where = f"{place}.{shortened(name, 60)}".lstrip(".")
            check_tree(where, inner, known.get(name, known.get("*")))


def number(place: str, value: Any) -> None:
    """A number within the range that its name has."""
    check_tree(place, value, range_of(place.rpartition(".")[2]) or Range())


def anything(place: str, value: Any) -> None:
    """What another part checks later; the numbers in it must be in their ranges."""
    if isinstance(value, list | tuple):
        for inner in value:
            anything(place, inner)
    elif value is None or isinstance(value, bool):
        return
    elif isinstance(value, int | float) or range_of(place.rpartition(".")[2]):
        number(place, value)
    elif isinstance(value, Mapping):
        check_tree(place, value, {"*": anything})


def whatever(place: str, value: Any) -> None:
    """Any value at all."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Puts a place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error
