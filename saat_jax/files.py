"""Files that are whole or absent, whenever the program is stopped."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path, and moves it to `path` when the block has written it.

    The folder is made if it is absent. A block that raises leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, and unlike any name that a reader's glob finds.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
