"""Indexes as they are deployed: faiss' binary ones, PostgreSQL with pgvector, rescoring by vectors.

An index is made of the outputs of an encoder for what is listed, `[num_listed, num_bits]` numbers
whose signs are the code, and answers which rows are nearest to others. Approximate ones may miss
some: that is what an attacker meets.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from saat_jax import hamming, lazy, options
from saat_jax.retrieval.points import OperatingPoint

_NAME = "saat_jax_codes"


class Index(Protocol):
    """What answers with the nearest rows."""

    def search(self, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances, nearest first. `[num_queries, k]` each; row -1 where there is none.

        Args:
            outputs: `[num_queries, num_bits]` outputs of the encoder.
            k: length of the list.
        """


# Makes an index of `[num_listed, num_bits]` outputs.
MakeIndex = Callable[[np.ndarray], Index]


def matches(
    index: Index, point: OperatingPoint, outputs: np.ndarray, wanted: np.ndarray, *, k: int
) -> np.ndarray:
    """Whether an index returns something that is wanted, within the point. `[num_queries]` bool

    Args:
        index: the index.
        point: what counts as a match; "cosine" is for an index that rescores.
        outputs: `[num_queries, num_bits]` outputs of the encoder.
        wanted: `[num_queries, num_wanted]` rows of what is listed.
        k: so many are asked for; of a point "top_k" its own number.
    """
    rows, distances = index.search(outputs, int(point.value) if point.kind == "top_k" else k)
    within = np.ones(rows.shape, bool) if point.kind == "top_k" else point.within(distances)
    found = (rows[:, :, None] == np.asarray(wanted)[:, None, :]).any(axis=2)
    return (found & within & (rows >= 0)).any(axis=1)


def array_index(point: OperatingPoint) -> MakeIndex:
    """Exact search through arrays, by what a point looks at; equally near ones by their rows.

    Example:
        >>> index = array_index(OperatingPoint.create(radius=1))(np.array([[1.0, 1], [-1, -1]]))
        >>> [found.tolist() for found in index.search(np.array([[-1.0, -2]]), 2)]
        [[[1, 0]], [[0.0, 2.0]]]
    """

    def make(outputs: np.ndarray) -> Index:
        return _Arrays(outputs, point)

    return make


@dataclasses.dataclass(frozen=True)
class _Arrays:
    listed: np.ndarray
    point: OperatingPoint

    def search(self, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        apart = self.point.apart(outputs, self.listed)
        rows = np.argsort(apart, axis=1, kind="stable")[:, :k]
        return rows, np.take_along_axis(apart, rows, axis=1)


def pack(outputs: np.ndarray) -> np.ndarray:
    """Outputs as packed codes, lowest bit first, filled up to whole bytes by zeros."""
    return np.asarray(hamming.pack_codes(hamming.binarize(np.asarray(outputs, np.float32))))


def _faiss(kind: str) -> Callable[..., Any]:
    def create(library: Any, num_bits: int, **given: Any) -> Any:
        if kind == "flat":
            return library.IndexBinaryFlat(num_bits)
        if kind == "hash":
            index = library.IndexBinaryHash(num_bits, given.get("num_hashed", 16))
            index.nflip = given.get("num_flips", 1)
            return index
        quantizer = library.IndexBinaryFlat(num_bits)
        index = library.IndexBinaryIVF(quantizer, num_bits, given.get("num_lists", 16))
        # Else Python would let go of it.
        index.own_fields, quantizer.this = True, quantizer.this
        quantizer.this.disown()
        index.nprobe = given.get("num_probed", 1)
        return index

    return create


# By name, what makes an empty one of faiss.
FAISS: options.Choices[Callable[..., Any]] = options.Choices(
    "faiss index", {kind: _faiss(kind) for kind in ("flat", "hash", "ivf")}
)


def faiss_index(kind: str = "flat", **given: int) -> MakeIndex:
    """Binary indexes of faiss.

    Args:
        kind: one of `FAISS`: "flat" is exact; "hash" looks where the first `num_hashed` bits (16)
            are the same but for `num_flips` (1); "ivf" looks through the `num_probed` (1) nearest
            of `num_lists` lists (16).
        **given: these numbers.

    Raises:
        ModuleNotFoundError: when it is called, if faiss is not installed.
    """
    create = FAISS[kind]
    known = {"hash": ("num_hashed", "num_flips"), "ivf": ("num_lists", "num_probed")}
    options.check_given(f"faiss index {kind!r}", dict.fromkeys(known.get(kind, ()), 1), given)
    options.check_numbers(**given)

    def make(outputs: np.ndarray) -> Index:
        library = lazy.require("faiss")
        codes = pack(outputs)
        index = create(library, 8 * codes.shape[1], **given)
        if kind == "ivf":
            index.train(codes)
        index.add(codes)
        return _Faiss(index)

    return make


@dataclasses.dataclass(frozen=True)
class _Faiss:
    index: Any

    def search(self, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances, rows = self.index.search(pack(outputs), min(k, self.index.ntotal))
        return rows, distances


def pgvector_index(address: str, *, table: str = _NAME, approximate: bool = False) -> MakeIndex:
    """A table of PostgreSQL with pgvector: its type `bit`, and the Hamming operator `<~>`.

    The table is made anew, with the columns `id` and `code`.

    Args:
        address: of the server, as psycopg takes it, such as "host=/tmp dbname=postgres".
        table: its name.
        approximate: whether an index of the kind HNSW is made, and used.

    Raises:
        ModuleNotFoundError: when it is called, if psycopg is not installed.
    """
    options.check_name("table", table)

    def make(outputs: np.ndarray) -> Index:
        library = lazy.require("psycopg")
        connection = library.connect(address, autocommit=True)
        num_bits = outputs.shape[1]
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f'DROP TABLE IF EXISTS "{table}"')
        connection.execute(f'CREATE TABLE "{table}" (id bigint PRIMARY KEY, code bit({num_bits}))')
        with connection.cursor() as cursor, cursor.copy(f'COPY "{table}" FROM STDIN') as copy:
            for row, code in enumerate(_texts(outputs)):
                copy.write_row((row, code))
        if approximate:
            connection.execute(f'CREATE INDEX ON "{table}" USING hnsw (code bit_hamming_ops)')
            connection.execute("SET enable_seqscan = off")
        return _Pgvector(connection, table, num_bits)

    return make


@dataclasses.dataclass(frozen=True)
class _Pgvector:
    connection: Any
    table: str
    num_bits: int

    def search(self, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.full((len(outputs), k), -1, np.int64)
        distances = np.full((len(outputs), k), np.inf)
        query = (
            f'SELECT id, code <~> %s::bit({self.num_bits}) AS apart FROM "{self.table}" '
            f"ORDER BY code <~> %s::bit({self.num_bits}) LIMIT %s"
        )
        for number, code in enumerate(_texts(outputs)):
            found = self.connection.execute(query, (code, code, k)).fetchall()
            for place, (row, apart) in enumerate(found):
                rows[number, place], distances[number, place] = row, apart
        return rows, distances


def _texts(outputs: np.ndarray) -> list[str]:
    """Codes as PostgreSQL writes bits, the first one first."""
    return ["".join(map(str, row.astype(int))) for row in np.asarray(outputs) >= 0]


def rescored(make: MakeIndex, *, factor: int = 4) -> MakeIndex:
    """A shortlist by codes, put in order by the cosine of the outputs, as vector databases do.

    Args:
        make: makes the index of the shortlist.
        factor: the shortlist is so many times as long as the list.
    """
    options.check_numbers(num_factor=factor)

    def build(outputs: np.ndarray) -> Index:
        return _Rescored(make(outputs), _unit(outputs), factor)

    return build


@dataclasses.dataclass(frozen=True)
class _Rescored:
    index: Index
    listed: np.ndarray
    factor: int

    def search(self, outputs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        short, _ = self.index.search(outputs, self.factor * k)
        cosines = np.einsum("qk,qsk->qs", _unit(outputs), self.listed[short])
        apart = np.where(short >= 0, 1 - cosines, np.inf)
        order = np.argsort(apart, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(short, order, 1), np.take_along_axis(apart, order, 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(size > 0, size, 1)
