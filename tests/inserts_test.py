"""Inserts: what they reach by brute force, what they are made of, and what the scan finds."""

import numpy as np
import pytest

from saat_jax import evaluation, reports, retrieval
from saat_jax.evaluation import matcher
from saat_jax.evaluation.inserts import entry_limits
from tests import audit_test
from tests.audit_test import NUM_BITS, SIDE, codes_of, make

pytestmark = pytest.mark.usefixtures("quick_compilation")
brief = audit_test.brief

RNG = np.random.default_rng(7)
# Around four pictures, so that there is something to be near to.
CENTRES = RNG.integers(30, 226, (4, SIDE, SIDE, 3))
NOISE = RNG.integers(-90, 91, (48, SIDE, SIDE, 3))
IMAGES = [*np.clip(CENTRES[np.arange(48) % 4] + NOISE, 0, 255).astype(np.uint8)]
GIVEN = {"epsilon": 24 / 255, "numbers": (1, 2, 4), "k": 3, "num_held_out": 12, "num_carriers": 12}


def made_at(images=IMAGES, **point):
    return evaluation.Matcher(make(), images, point or {"radius": 5}, seed=3, batch_size=4)


@pytest.fixture(scope="module")
def inserted(brief, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inserts")
    record = evaluation.inserts(made_at(), folder=folder, **GIVEN)
    return record, dict(np.load(folder / "inserts.npz")), folder


def _codes(images):
    return np.where(codes_of(images), 1, -1)


def _slow_reach(inserted, queries, database, *, radius, k):
    """Of each measure how many queries are reached, one distance after the other."""
    by_radius = by_list = 0
    for query in queries:
        nearest = min(int(np.sum(code != query)) for code in inserted)
        before = sum(int(np.sum(code != query)) <= nearest for code in database)
        by_radius += nearest <= radius
        by_list += before < k
    return {"radius": by_radius, "top_k": by_list}


def test_reach_is_that_of_brute_force_on_the_images_that_are_left(inserted):
    record, arrays, _ = inserted
    queries, database = (
        _codes([IMAGES[row] for row in arrays[name]]) for name in ("held_out", "database")
    )
    crafted = [arrays[f"insert_{number}"] for number in range(4)]
    planted = {
        "crafted": _codes(crafted),
        "untouched": _codes([IMAGES[row] for row in arrays["rows"]]),
        "codes": arrays["hubs"],
    }
    for kind, codes in planted.items():
        for number in (1, 2, 4):
            slow = _slow_reach(codes[:number], queries, database, radius=5, k=3)
            for measure, count in slow.items():
                told = record["reach"][measure][kind][str(number)]
                assert (told["count"], told["trials"]) == (count, 12)
    assert (
        record["reach"]["radius"]["crafted"]["4"]["count"]
        > (record["reach"]["radius"]["untouched"]["4"]["count"])
    )


def test_inserts_are_8_bit_images_of_carriers_within_the_ball(inserted):
    record, arrays, _ = inserted
    for number, row in enumerate(arrays["rows"].tolist()):
        image = arrays[f"insert_{number}"]
        assert image.dtype == np.uint8 and row in arrays["carriers"]
        assert 0 < np.abs(image.astype(int) - IMAGES[row]).max() <= 24
    assert len({*arrays["rows"].tolist()}) == 4
    parts = np.concatenate([arrays[name] for name in ("held_out", "carriers", "database")])
    assert sorted(parts.tolist()) == list(range(48))
    apart = np.sum(_codes([arrays[f"insert_{n}"] for n in range(4)]) != arrays["hubs"], axis=1)
    expected = np.quantile(apart, 0.5, method="higher")
    assert record["bits_from_target"]["median"] == expected
    assert expected < record["bits_from_target_untouched"]["median"]


def test_the_scan_is_of_the_database_with_the_inserts(inserted):
    record, arrays, _ = inserted
    database = _codes([IMAGES[row] for row in arrays["database"]])
    crafted = _codes([arrays[f"insert_{number}"] for number in range(4)])
    packed = retrieval.pack(np.concatenate([database, crafted]))
    line = next(x for x in record["scans"] if x["kind"] == "crafted" and x["radius"] == 5)
    found = retrieval.scan(packed, num_bits=NUM_BITS, radius=5, alert_rate=0.01, seed=3)
    caught = np.sum(found.suspects >= len(database))
    assert line["caught"]["count"] == caught
    assert line["false_alerts"]["count"] == len(found.suspects) - caught


def test_lists_are_aimed_at_where_the_point_is_one(brief, tmp_path):
    record = evaluation.inserts(made_at(top_k=3), folder=tmp_path, **GIVEN | {"k": 7})
    assert record["k"] == 3 and [*record["reach"]] == ["top_k"]
    assert record["reach"]["top_k"]["codes"]["4"]["count"] > 0


def test_hubs_of_a_tiny_database_are_the_best_there_are():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 1], (14, 8))
    every = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    best = np.max(np.sum(np.sum(every[:, None] != codes, axis=2) <= 2, axis=1))
    first, second = retrieval.hub_codes(codes, np.full(14, 2), num_hubs=2)
    near = np.sum(codes != first, axis=1) <= 2
    assert near.sum() == best
    # The second is for what the first left.
    rest = codes[~near]
    left = np.max(np.sum(np.sum(every[:, None] != rest, axis=2) <= 2, axis=1))
    assert np.sum(np.sum(rest != second, axis=1) <= 2) == left


def test_what_is_equally_near_comes_before_an_insert():
    database = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1], [-1, -1, -1, -1]])
    query = np.ones((1, 4))
    for k, limit in ((1, -1), (2, 0), (3, 0), (4, 3)):
        assert entry_limits(query, database, k).tolist() == [limit]


def test_inserts_that_were_stopped_go_on_and_end_the_same(inserted, tmp_path, monkeypatch):
    record, arrays, _ = inserted
    attack, left = matcher.Matcher._attack_batch, [1]

    def stops(self, *given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return attack(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(matcher.Matcher, "_attack_batch", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluation.inserts(made_at(), folder=tmp_path, **GIVEN)
    calls = []
    monkeypatch.setattr(
        matcher.Matcher,
        "_attack_batch",
        lambda self, *given: calls.append(1) or attack(self, *given),
    )
    assert evaluation.inserts(made_at(), folder=tmp_path, **GIVEN) == record
    assert len(calls) == 2
    for name, array in np.load(tmp_path / "inserts.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    assert evaluation.inserts(made_at(), folder=tmp_path, **GIVEN) == record
    assert len(calls) == 2


def test_the_page_and_the_terminal_show_them(inserted, capsys):
    record, _, folder = inserted
    reports.show_audit(folder)
    told = capsys.readouterr().out
    assert "crafted inserts, within the radius" in told and "same images, in the top 3" in told
    assert "scan at radius 5, alert rate 1 %" in told
    page = (folder / "report.html").read_text()
    assert "Inserts within 24/255" in page
    share = record["reach"]["radius"]["crafted"]["4"]["rate"]
    assert f"{100 * share:.1f} %" in page


@pytest.mark.parametrize(
    ("point", "change", "message"),
    [
        ({"cosine": 0.9}, {}, "a point of kind 'radius' or 'top_k'"),
        ({"radius": 5}, {"numbers": ()}, "numbers from 1"),
        ({"radius": 5}, {"numbers": (99,)}, "99 inserts and lists of 3 need .* got 12 and 24"),
        ({"radius": 5}, {"k": 24}, "give more images, or smaller numbers"),
    ],
)
def test_what_cannot_be_inserted_is_refused(point, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluation.inserts(made_at(**point), folder=tmp_path, **GIVEN | change)
