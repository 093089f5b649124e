"""Files that are whole or absent, whenever the program is stopped."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saat_jax import options

_CURE = "delete it and start again"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path, and moves it to `path` when the block has written it.

    The folder is made if it is absent. A block that raises leaves `path` as it was.

    Raises:
        OSError: if the file cannot be written, as on a full disk, with what to do.
    """
    # Hidden, and unlike any name that a reader's glob finds.
    temporary = path.with_name(f".{path.name}.tmp")
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            # A machine that loses its power must not leave the name without the content.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary folder, and moves it to `path` when the block has filled it.

    A block that raises leaves nothing.

    Raises:
        OSError: if it cannot be written, as on a full disk, with what to do.
        ValueError: if there is something at `path` already, which is left as it is.
    """
    # An empty folder is no loss: the system replaces it.
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} is there already, and is not replaced; name another folder")
    temporary = path.with_name(f".{path.name}.tmp")
    with telling(path):
        # What a kill has left.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def telling(path: pathlib.Path) -> Iterator[None]:
    """Says what to do when a block that writes to `path` fails."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written; what was saved before is kept. Mend the cause (free space "
            f"on the disk?) and run the same command again: it goes on from there. The cause: "
            f"{error}"
        ) from error


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes a tree of JSON's types."""
    write_bytes(path, json.dumps(tree, indent=1).encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as a compressed `.npz`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def whole_lines(path: pathlib.Path) -> list[str]:
    """Reads the lines that a kill has not cut short; none if there is no file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def read_json(
    path: pathlib.Path, *, cure: str = _CURE, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Reads a tree of JSON's types that is an object at its top.

    Args:
        path: the file.
        cure: what to do about a damaged file, for the message.
        fields: what it must hold, as `options.check_tree` takes it; there may be others too.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, what is wrong with it, and the cure.
    """
    return parse_json(path.read_bytes(), str(path), cure=cure, fields=fields)


def read_json_lines(
    path: pathlib.Path, *, cure: str = _CURE, fields: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Reads objects of JSON, one a line; none if there is no file. Else as `read_json`.

    A last line without its end, which a kill has cut short, is left out.
    """
    content = path.read_bytes() if path.is_file() else b""
    return [
        parse_json(line, f"{path}, line {number},", cure=cure, fields=fields)
        for number, line in enumerate(content.split(b"\n")[:-1], 1)
    ]


def parse_json(
    content: bytes, place: str, *, cure: str = _CURE, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Reads a tree of JSON's types from bytes; `place` names them. Else as `read_json`."""
    try:
        tree = json.loads(content.decode())
    # No UTF-8, no JSON, a number of thousands of digits; lists within lists without end.
    except (ValueError, RecursionError) as error:
        fault = "it is empty" if not content.strip() else f"{type(error).__name__}: {error}"
        raise ValueError(f"{place} is no JSON ({fault}); {cure}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{place} must be an object of JSON, got a {type(tree).__name__}; {cure}")
    try:
        options.check_tree("", tree, {"*": options.whatever, **(fields or {})})
    except ValueError as error:
        raise ValueError(f"{place.rstrip(',')}: {error}; {cure}") from error
    return tree


def read_arrays(
    path: pathlib.Path, *, cure: str = _CURE, names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Reads arrays by name from a `.npz`, among them those of `names`.

    Raises:
        ValueError: if the file is absent or damaged, or lacks an array, with the cure.
    """
    try:
        # Opened here, as a damaged archive would stay open.
        with path.open("rb") as file, np.load(file) as found:
            arrays = dict(found)
    # A damaged archive raises a dozen kinds: zlib's, zipfile's, tokenize's, NotImplementedError.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); {cure}"
        ) from error
    if absent := [name for name in names if name not in arrays]:
        raise ValueError(f"{path} lacks the arrays {absent}; {cure}")
    return arrays
