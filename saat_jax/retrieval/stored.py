"""Codes out of where they are stored: faiss' binary files, arrays, tables of PostgreSQL."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from saat_jax import hamming, lazy, options


class StoredCodes(NamedTuple):
    """Codes and what they are called where they are stored.

    Attributes:
        packed: `[num_codes, num_bytes]` uint8, lowest bit first.
        num_bits: code length.
        names: `[num_codes]` their rows or keys.
    """

    packed: np.ndarray
    num_bits: int
    names: np.ndarray


def read_codes(path: str | os.PathLike[str]) -> StoredCodes:
    """Reads a file of codes.

    Args:
        path: a binary index of faiss, flat or IVF; or `.npy`, or `.npz` with one array or one named
            "codes": packed uint8, lowest bit first, or ±1.

    Raises:
        ModuleNotFoundError: if it is faiss' and that is not installed.
        ValueError: if the file is none of these.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"expected a file of codes, got {str(path)!r}, which is none")
    if path.suffix not in (".npy", ".npz"):
        return _of_faiss(path)
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            name = "codes" if "codes" in found.files else found.files[0]
            found = found[name]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} holds no array that can be read: {error}") from None
    if found.ndim == 2 and len(found) and found.dtype == np.uint8:
        return StoredCodes(found, 8 * found.shape[1], np.arange(len(found)))
    if found.ndim == 2 and len(found) and np.isin(found, (-1, 1)).all():
        packed = np.asarray(hamming.pack_codes(found.astype(np.float32)))
        return StoredCodes(packed, found.shape[1], np.arange(len(found)))
    raise ValueError(
        f"{path}: expected [num_codes, ...] packed uint8 or numbers of -1 and 1, got {found.dtype} "
        f"{list(found.shape)}"
    )


def _of_faiss(path: pathlib.Path) -> StoredCodes:
    library = lazy.require("faiss")
    try:
        index = library.read_index_binary(str(path))
        if hasattr(index, "make_direct_map"):
            index.make_direct_map()
        packed = np.stack([index.reconstruct(row) for row in range(index.ntotal)])
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1] if str(error) else "it is empty"
        raise ValueError(f"{path} is no binary index of faiss with codes: {reason}") from None
    return StoredCodes(packed, index.d, np.arange(len(packed)))


def read_table(address: str, *, table: str, column: str = "code", key: str = "id") -> StoredCodes:
    """Reads a column of the type `bit` of a table of PostgreSQL.

    Args:
        address: of the server, as psycopg takes it, such as "host=/tmp dbname=postgres".
        table: its name.
        column: of the codes.
        key: of what they are called.

    Raises:
        ModuleNotFoundError: if psycopg is not installed.
        ValueError: if the table has no such codes.
    """
    for kind, name in (("table", table), ("column", column), ("key", key)):
        options.check_name(kind, name)
    library = lazy.require("psycopg")
    with library.connect(address) as connection:
        try:
            rows = connection.execute(
                f'SELECT "{key}", "{column}"::text FROM "{table}" ORDER BY "{key}"'
            ).fetchall()
        except library.Error as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot read {column!r} of {table!r}: {reason}") from None
    lengths = {len(text) for _, text in rows}
    if len(lengths) != 1 or {letter for _, text in rows[:8] for letter in text} - {"0", "1"}:
        raise ValueError(
            f"expected codes of one length of the type bit in {column!r} of {table!r}, got "
            f"{len(rows)} rows of {sorted(lengths)[:3]} letters"
        )
    letters = np.frombuffer("".join(text for _, text in rows).encode(), np.uint8)
    signs = (2.0 * (letters.reshape(len(rows), -1) == ord("1")) - 1).astype(np.float32)
    names = np.array([name for name, _ in rows])
    return StoredCodes(np.asarray(hamming.pack_codes(signs)), signs.shape[1], names)
