"""What an input is, and whether it is answered."""

import pathlib
import re
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Case(NamedTuple):
    """An input.

    Attributes:
        kind: what is wrong with it; cases of a kind differ in where it is given.
        title: the case among its kind.
        act: hands the input over, in a folder of its own.
        says: words that the message must have, any of each group ("epsilon|radius"); None if
            the input is to be taken.
        right: gives the result that makes it right to take the input all the same.
    """

    kind: str
    title: str
    act: Callable[[pathlib.Path], Any]
    says: tuple[str, ...] | None
    right: Callable[[], Any] | None = None


def judge(case: Case, folder: pathlib.Path) -> str:
    """Says "answered", or what is not well, with the evidence."""
    try:
        result = case.act(folder)
    except (ValueError, TypeError, OSError, SystemExit) as error:
        text = str(error)
        if case.says is None:
            return f"refused: {text[:300]}"
        if isinstance(error, TypeError) and "must be" not in text:
            return f"traceback: {traceback.format_exc(limit=-1)[-300:]}"
        if lacking := [words for words in case.says if not re.search(words, text)]:
            return f"unclear: does not say {lacking}: {text[:300]}"
        if len(text) > 5000 or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
            return f"unclear: {len(text)} characters, or control codes among them"
        return "answered"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}"
    if case.says is None or (case.right and _same(result, case.right())):
        return "answered"
    return f"wrong: accepted, gave {str(result)[:100]!r}"


def _same(result: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
