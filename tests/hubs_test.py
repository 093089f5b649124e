"""Hubs: counts by brute force, planted ones found, near-duplicates not, and the command."""

import csv

import numpy as np
import pytest

from launch import command
from saat_jax import hamming, retrieval
from saat_jax.retrieval import hubs
from tests import indexes_test

postgres = indexes_test.postgres
RADIUS, NUM_BITS = 20, 64


def _database(seed=0):
    """Codes around 40 centres near one another, with near-duplicates and hubs amid all of them."""
    rng = np.random.default_rng(seed)

    def near(code, num, share):
        return np.where(rng.random((num, NUM_BITS)) < share, -code, code)

    middle = rng.choice([-1.0, 1.0], NUM_BITS)
    centres = near(middle, 40, 0.22)
    codes = np.concatenate([near(centre, 50, 0.15) for centre in centres])
    copies = near(-middle, 1, 0.1) * np.ones((60, 1))
    planted = near(middle, 3, 0.02)
    return codes, copies, planted


CODES, COPIES, PLANTED = _database()
ALL = np.concatenate([CODES, COPIES, PLANTED]).astype(np.float32)
HUBS = set(range(len(CODES) + len(COPIES), len(ALL)))


def _scan(**changes):
    given = {"num_bits": NUM_BITS, "radius": RADIUS, "alert_rate": 0.01, "min_score": 3.0}
    return retrieval.scan(retrieval.pack(ALL), **given | changes)


def test_counts_are_those_of_brute_force():
    found = _scan()
    apart = np.asarray(hamming.hamming_distance(ALL, ALL))
    np.testing.assert_array_equal(found.neighbours, np.sum(apart <= RADIUS, axis=1) - 1)
    queries = ALL[::7]
    by_queries = _scan(queries=retrieval.pack(queries))
    np.testing.assert_array_equal(by_queries.neighbours, np.sum(apart[:, ::7] <= RADIUS, axis=1))
    middle = np.median(found.neighbours)
    mad = 1.4826 * np.median(np.abs(found.neighbours - middle))
    width = max(mad, np.sqrt(max(middle, 1)))
    np.testing.assert_allclose(found.score, (found.neighbours - middle) / width)


def test_planted_hubs_are_the_worst_and_copies_are_none():
    found = _scan()
    assert set(found.suspects[:3].tolist()) == HUBS
    copies = range(len(CODES), len(CODES) + len(COPIES))
    assert not set(found.suspects.tolist()) & set(copies)
    # They have many neighbours, all of one kind.
    assert found.neighbours[copies[0]] >= 59 and found.spread[copies[0]] < 1.01
    assert found.spread[min(HUBS)] > 5
    assert len(found.suspects) <= 0.01 * len(ALL)
    assert _scan(alert_rate=0.001).suspects.tolist() == found.suspects[:2].tolist()


def test_a_sample_finds_them_too_and_a_seed_repeats():
    few = _scan(num_sampled=600, seed=3)
    assert few.num_sampled == 600 and HUBS & set(few.suspects[:5].tolist())
    np.testing.assert_array_equal(few.neighbours, _scan(num_sampled=600, seed=3).neighbours)


def test_clusters_are_what_the_codes_were_made_around():
    rng = np.random.default_rng(1)
    centres = rng.choice([-1.0, 1.0], (5, 64))
    codes = np.where(rng.random((5, 30, 64)) < 0.1, -centres[:, None], centres[:, None])
    kinds = hubs.cluster(codes.reshape(-1, 64), 5).reshape(5, 30)
    assert np.all(kinds == kinds[:, :1]) and len(set(kinds[:, 0])) == 5


@pytest.mark.parametrize("kind", ["flat", "ivf", "npy", "npz", "signs"])
def test_the_command_lists_suspects_of_a_file(kind, tmp_path, capsys):
    packed = retrieval.pack(ALL)
    if kind in ("flat", "ivf"):
        faiss = pytest.importorskip("faiss")
        path = tmp_path / "codes.faiss"
        made = retrieval.faiss_index(kind)(ALL)
        faiss.write_index_binary(made.index, str(path))
    else:
        path = tmp_path / ("codes.npz" if kind == "npz" else "codes.npy")
        if kind == "npz":
            np.savez(path, codes=packed, other=np.zeros(3))
        else:
            np.save(path, ALL if kind == "signs" else packed)
    out = tmp_path / "suspects.csv"
    arguments = ["scan", str(path), "--radius", str(RADIUS), "--alert_rate", "0.01"]
    command.main([*arguments, "--out", str(out)])
    assert f"{len(ALL):,} codes of 64 bits" in capsys.readouterr().out
    expected = _scan(min_score=6.0).suspects
    rows = [*csv.reader(out.read_text().splitlines())][1:]
    assert [int(row[0]) for row in rows] == expected.tolist()


def test_the_command_reads_a_table(postgres, tmp_path, capsys):
    retrieval.pgvector_index(postgres, table="scanned")(ALL)
    stored = retrieval.read_table(postgres, table="scanned")
    np.testing.assert_array_equal(stored.packed, retrieval.pack(ALL))
    command.main(["scan", postgres, "--table", "scanned", "--radius", str(RADIUS)])
    assert "2,063 codes of 64 bits" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot read 'gone' of 'scanned'"):
        retrieval.read_table(postgres, table="scanned", column="gone")


def test_what_holds_no_codes_is_refused(tmp_path):
    (tmp_path / "text.faiss").write_text("no index")
    np.save(tmp_path / "floats.npy", np.zeros((3, 4)))
    for name, message in (
        ("absent.npy", "which is none"),
        ("text.faiss", "is no binary index of faiss"),
        ("floats.npy", "expected .* packed uint8 or numbers of -1 and 1, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval.read_codes(tmp_path / name)
    with pytest.raises(ValueError, match=r"must be uint8 \[num_codes, 8\], got uint8 \[2, 4\]"):
        retrieval.scan(np.zeros((2, 4), np.uint8), num_bits=64, radius=3)
