"""Indexes answer as arrays do where they are exact; approximate ones may miss, and never invent."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import pytest

from saat_jax import retrieval
from saat_jax.retrieval import OperatingPoint, indexes

RNG = np.random.default_rng(0)
LISTED = RNG.normal(size=(300, 64)).astype(np.float32)
QUERIES = LISTED[:40] + 0.5 * RNG.normal(size=(40, 64)).astype(np.float32)
DISTANCES = np.sum((QUERIES >= 0)[:, None] != (LISTED >= 0)[None], axis=2)


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of PostgreSQL with pgvector, started for these tests alone."""
    pytest.importorskip("psycopg")
    places = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    if not places or not list(
        pathlib.Path("/usr/share/postgresql").glob("*/extension/vector.control")
    ):
        pytest.skip(
            "no PostgreSQL with pgvector: apt-get install postgresql postgresql-NN-pgvector"
        )
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    # The server refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")

    def run(program, *arguments):
        command = [*user, str(places[-1] / program), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "tester", "-A", "trust")
    settings = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", settings, "start")
    yield f"host={folder} user=tester dbname=postgres"
    run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def _is_exact(index):
    rows, distances = index.search(QUERIES, 5)
    np.testing.assert_array_equal(distances, np.sort(DISTANCES, axis=1)[:, :5])
    np.testing.assert_array_equal(np.take_along_axis(DISTANCES, rows, 1), distances)
    point, own = OperatingPoint.create(radius=12), np.arange(40)[:, None]
    found = indexes.matches(index, point, QUERIES, own, k=50)
    np.testing.assert_array_equal(found, DISTANCES[own, own][:, 0] <= 12)


def test_faiss_flat_is_exact():
    pytest.importorskip("faiss")
    _is_exact(retrieval.faiss_index()(LISTED))


def test_pgvector_is_exact(postgres):
    _is_exact(retrieval.pgvector_index(postgres)(LISTED))


@pytest.mark.parametrize("kind", ["hash", "ivf"])
def test_approximate_faiss_misses_and_does_not_invent(kind):
    pytest.importorskip("faiss")
    few = {"hash": {"num_hashed": 24, "num_flips": 1}, "ivf": {"num_lists": 20, "num_probed": 1}}
    _does_not_invent(retrieval.faiss_index(kind, **few[kind])(LISTED))


def test_approximate_pgvector_does_not_invent(postgres):
    index = retrieval.pgvector_index(postgres, table="near", approximate=True)(LISTED)
    _does_not_invent(index, misses=False)


def _does_not_invent(index, misses=True):
    rows, distances = index.search(QUERIES, 5)
    there = rows >= 0
    real = np.take_along_axis(DISTANCES, np.maximum(rows, 0), 1)
    np.testing.assert_array_equal(distances[there], real[there])
    exact = np.sort(DISTANCES, axis=1)[:, :5]
    assert there.any() and (np.where(there, distances, 99) >= exact).all()
    assert not misses or not np.array_equal(np.where(there, distances, 99), exact)


def test_rescoring_orders_a_shortlist_by_cosine():
    pytest.importorskip("faiss")
    index = retrieval.rescored(retrieval.faiss_index(), factor=3)(LISTED)
    rows, apart = index.search(QUERIES, 4)
    for query, found, cosine in zip(range(40), rows, apart, strict=True):
        short = np.argsort(DISTANCES[query], kind="stable")
        limit = DISTANCES[query][short[11]]
        allowed = np.flatnonzero(DISTANCES[query] <= limit)
        assert set(found) <= set(allowed)
        expected = 1 - LISTED[found] @ QUERIES[query] / (
            np.linalg.norm(LISTED[found], axis=1) * np.linalg.norm(QUERIES[query])
        )
        np.testing.assert_allclose(cosine, expected, atol=1e-5)
        assert (np.diff(cosine) >= 0).all()


def test_what_is_no_index_is_refused():
    with pytest.raises(ValueError, match="unknown faiss index 'tree'"):
        retrieval.faiss_index("tree")
    with pytest.raises(ValueError, match="num_probed"):
        retrieval.faiss_index("flat", num_probed=3)
    with pytest.raises(ValueError, match="table"):
        retrieval.pgvector_index("", table='x"; DROP TABLE y')
