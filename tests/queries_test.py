"""Query attacks: the service counts, a stopped one goes on, what is done is done on the image."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import attacks, evaluation, reports, retrieval
from saat_jax.retrieval import OperatingPoint
from tests import audit_test, indexes_test
from tests.audit_test import IMAGES, POINT, make

pytestmark = pytest.mark.usefixtures("quick_compilation")
brief = audit_test.brief
module = importlib.import_module("saat_jax.evaluation.queries")
postgres = indexes_test.postgres
LEVEL, BUDGET = 12, 150


class Counted:
    """An encoder's runtime that counts for itself."""

    def __init__(self):
        self.count, self._run = 0, make().run

    def __call__(self, images):
        self.count += len(images)
        return self._run(images)


def play(folder, run=None, point=POINT, indexes=None, **changes):
    encoder = make(**({"run": run} if run else {}))
    matcher = evaluation.Matcher(encoder, IMAGES[:6], point, seed=3, batch_size=4, indexes=indexes)
    given = {"epsilon": LEVEL / 255, "budget": BUDGET} | changes
    return evaluation.queries(matcher, folder=folder, **given)


@pytest.fixture(scope="module")
def played(brief, tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    return play(folder), folder


def test_an_oracle_counts_and_refuses_what_is_beyond_the_budget():
    codes = np.array([[1.0, 1, 1, 1], [1, 1, -1, -1], [-1, -1, -1, -1]])
    point = OperatingPoint.create(radius=1)
    index = retrieval.array_index(point)(codes)
    images = [*np.zeros((3, 2, 2, 3), np.uint8)]
    run = Counted()
    run._run = lambda asked: np.tile([[1.0, 1, 1, -1]], (len(asked), 1))
    ask = functools.partial(retrieval.Oracle, run, index, point, [[0], [2]], k=2, budget=3)
    oracle = ask(kind="distances")
    answer = oracle.ask(np.array([0, 1, 0]), images)
    assert answer.match.tolist() == [True, False, True]
    assert answer.rows.tolist() == [[0, 1]] * 3 and answer.apart.tolist() == [[1, 1]] * 3
    assert run.count == 3 and oracle.left().tolist() == [1, 2]
    with pytest.raises(ValueError, match="account 0 asks for 2 images and has 1 of 3 queries left"):
        oracle.ask(np.array([0, 0]), images[:2])
    assert run.count == 3 and oracle.left().tolist() == [1, 2]
    assert ask(kind="ranks").ask(np.array([0]), images[:1]).apart is None
    assert ask(kind="match").ask(np.array([1]), images[:1]).rows is None


def test_the_count_is_that_of_the_calls(tmp_path):
    run = Counted()
    record = play(tmp_path, run, answers=("distances",), games=("square",))
    # Beside the queries the listed images are encoded, and what the one member found is judged.
    assert run.count == record["lines"][0]["asked"] + 6 + 6


def test_successes_are_real_and_within_the_budget(played):
    record, folder = played
    arrays = dict(np.load(folder / "queries.npz"))
    for line in record["lines"]:
        name = f"{line['answer']}/{line['game']}"
        first, asked = arrays[f"{name}/first"], arrays[f"{name}/asked"]
        assert asked.max() <= BUDGET and line["asked"] == asked.sum()
        assert np.all(first[np.isfinite(first)] <= asked[np.isfinite(first)])
        np.testing.assert_array_equal(
            arrays[f"{name}/size"] <= LEVEL / 255 + 1e-9, np.isfinite(first)
        )
        assert line["success"][str(BUDGET)]["count"] == np.isfinite(first).sum()
    found = {(x["answer"], x["game"]): x["success"][str(BUDGET)]["rate"] for x in record["lines"]}
    assert found["distances", "square"] > 0.5
    assert record["white_box"]["rate"] == 1 and record["flags"] == []


def test_a_game_that_was_stopped_goes_on_without_asking_again(played, tmp_path, monkeypatch):
    record, folder = played
    real, left = module._ask, [40]

    def stopping(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(module, "_ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path)
    calls = []
    monkeypatch.setattr(module, "_ask", lambda *a: calls.append(1) or real(*a))
    assert play(tmp_path) == record
    whole = []
    monkeypatch.setattr(module, "_ask", lambda *a: whole.append(1) or real(*a))
    assert play(tmp_path / "whole") == record
    assert len(calls) == len(whole) - 39
    for name, array in np.load(folder / "queries.npz").items():
        np.testing.assert_array_equal(array, np.load(tmp_path / "queries.npz")[name])


def test_square_asks_for_what_the_search_by_the_same_loss_tries():
    images = jnp.asarray(np.stack(IMAGES[:3]) / np.float32(255))
    weights = jax.random.normal(jax.random.key(1), images.shape)

    def loss_fn(tried):
        return jnp.sum(jnp.sin(20 * tried) * weights, axis=(1, 2, 3))

    given = {"epsilon": 8 / 255, "num_queries": 40}
    best, lowest = attacks.square(loss_fn, images, jax.random.key(0), **given)
    game = attacks.square_game(images, jax.random.key(0), **given)
    tried, losses, found = next(game), np.full(3, np.inf), np.zeros(images.shape)
    for _ in range(40):
        now = np.asarray(loss_fn(tried[:, 0]))
        better = now < losses
        found[better], losses = tried[better, 0], np.minimum(now, losses)
        tried = game.send(-now[:, None])
    np.testing.assert_allclose(losses, lowest, rtol=1e-6)
    np.testing.assert_array_equal(found.astype(np.float32), best)


@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_estimates_climb_a_smooth_gain_within_the_ball(name):
    images = jnp.asarray(np.stack(IMAGES[:3]) / np.float32(255))
    coarse = jax.random.normal(jax.random.key(2), (3, 4, 4, 3))
    slope = np.asarray(jax.image.resize(coarse, images.shape, "linear"))
    game = attacks.GAMES[name](images, jax.random.key(0), epsilon=8 / 255, num_queries=600)
    tried, means = next(game), []
    for _ in range(30):
        assert np.abs(tried - images[:, None]).max() <= 8 / 255 + 1e-6
        gains = np.einsum("bphwc,bhwc->bp", tried - np.asarray(images)[:, None], slope)
        means.append(gains.mean())
        tried = game.send(gains)
    assert means[-1] > 0.15 * 8 / 255 * np.abs(slope).sum(axis=(1, 2, 3)).mean()


def test_hop_skip_jump_comes_near_the_border_of_a_half_space():
    images = jnp.full((2, 8, 8, 3), 0.5)
    normal = np.asarray(jax.random.normal(jax.random.key(4), images.shape))
    # The least change of a pixel that does it is 0.05.
    needed = 0.05 * np.abs(normal).sum(axis=(1, 2, 3))
    starts = jnp.asarray(0.5 + 0.5 * np.sign(normal) * (np.arange(8) < 6)[:, None], jnp.float32)
    game = attacks.hop_skip_jump_game(images, starts, jax.random.key(0))
    tried, smallest = next(game), np.full(2, np.inf)
    for _ in range(400):
        inside = np.einsum("bphwc,bhwc->bp", tried - 0.5, normal) >= needed[:, None]
        size = np.where(inside, np.abs(tried - 0.5).max(axis=(2, 3, 4)), np.inf)
        smallest = np.minimum(smallest, size.min(axis=1))
        tried = game.send(np.where(inside, 1.0, -1.0))
    assert np.all(smallest >= 0.05 - 1e-6) and np.all(smallest < 0.075)


def test_a_service_over_an_index_answers_as_over_arrays(played, tmp_path, request):
    record, _ = played
    pytest.importorskip("faiss")
    for kind in ("faiss", "pgvector"):
        address = kind == "pgvector" and request.getfixturevalue("postgres")
        index = retrieval.pgvector_index(address) if address else retrieval.faiss_index()
        found = play(tmp_path / kind, indexes={kind: index}, index=kind, answers=("match",))
        assert found["lines"] == [x for x in record["lines"] if x["answer"] == "match"]


def test_collisions_start_from_the_victim(tmp_path):
    record = play(tmp_path, task="collide", answers=("match",), epsilon=40 / 255)
    arrays = dict(np.load(tmp_path / "queries.npz"))
    size = arrays["match/hop_skip_jump/size"]
    assert np.isfinite(size).all() and np.all(size < 0.9)
    assert record["task"] == "collide"


def test_the_table_and_the_page_show_success_by_queries(played, capsys):
    record, folder = played
    reports.show_audit(folder)
    told = capsys.readouterr().out
    assert "HopSkipJump" in told and "with the gradient and all else known" in told
    assert "Success against queries" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ("all",)}, "unknown answer 'all'"),
        ({"games": ("chess",)}, "expected one of"),
        ({"budget": 0}, "budget"),
        ({"index": "faiss"}, "unknown index 'faiss'"),
        ({"epsilon": 8}, "8 grey levels are 8 / 255"),
    ],
)
def test_what_cannot_be_played_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        play(tmp_path, **change)
