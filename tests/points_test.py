"""Operating points: what matches, how often different images do, and what an attacker gains."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from saat_jax import attacks, retrieval
from saat_jax.retrieval import OperatingPoint, Rate

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(6, 16)).astype(np.float32)
LISTED = RNG.normal(size=(6, 3, 16)).astype(np.float32)
DATABASE = np.concatenate([RNG.normal(size=(40, 16)).astype(np.float32), *LISTED])


def _distance(a, b):
    return int(np.sum((a >= 0) != (b >= 0)))


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _matches(point, output, listed):
    """The definition, pair by pair."""
    if point.kind == "cosine":
        return _cosine(output, listed) >= point.value
    distance = _distance(output, listed)
    if point.kind == "radius":
        return distance <= point.value
    return sum(_distance(output, other) <= distance for other in DATABASE) <= point.value


POINTS = [
    OperatingPoint.create(**given)
    for given in ({"radius": 6}, {"radius": 8}, {"cosine": 0.1}, {"top_k": 5}, {"top_k": 20})
]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_gains_are_above_zero_exactly_where_the_attacker_has_what_is_wanted(point):
    matches = np.array(
        [
            [_matches(point, o, entry) for entry in row]
            for o, row in zip(OUTPUTS, LISTED, strict=True)
        ]
    )
    assert matches.any() and not matches.all()
    database = jnp.asarray(DATABASE)
    collided = attacks.Collide(point, LISTED, database).gain(jnp.asarray(OUTPUTS)) > 0
    evaded = attacks.Evade(point, LISTED, database).gain(jnp.asarray(OUTPUTS)) > 0
    np.testing.assert_array_equal(collided, matches.any(axis=1))
    np.testing.assert_array_equal(evaded, ~matches.any(axis=1))


def test_what_is_listed_comes_first_in_its_own_list():
    point, database = OperatingPoint.create(top_k=1), jnp.asarray(DATABASE)
    assert np.all(point.margins(database, database[:, None], database) > 0)


@pytest.mark.parametrize("make", [attacks.Evade, attacks.Collide])
def test_flips_that_gain_do_gain_and_enough_of_them_are_enough(make):
    point = OperatingPoint.create(radius=5)
    codes = jnp.sign(jnp.asarray(OUTPUTS))
    wanted = make(point, LISTED[:, :1], None)
    gains = np.asarray(wanted.flip_gains(codes))
    for bit in range(16):
        flipped = wanted.gain(codes.at[:, bit].multiply(-1))
        np.testing.assert_allclose(flipped - wanted.gain(codes), gains[:, bit])
    agreeing = np.asarray(codes == jnp.sign(LISTED[:, 0]))
    side = agreeing if make is attacks.Collide else ~agreeing
    num = int(wanted.num_flips(16))
    assert num == (11 if make is attacks.Collide else 6)
    np.testing.assert_array_equal(np.asarray(wanted.gain(codes)) > 0, side.sum(axis=1) >= num)


def test_soft_gains_follow_similarity_to_the_nearest():
    point = OperatingPoint.create(radius=5)
    soft = jnp.tanh(jnp.asarray(OUTPUTS))
    expected = np.max(np.einsum("bk,blk->bl", np.tanh(OUTPUTS), np.sign(LISTED)), axis=1) / 16
    np.testing.assert_allclose(attacks.Collide(point, LISTED).soft_gain(soft), expected, atol=1e-6)
    np.testing.assert_allclose(attacks.Evade(point, LISTED).soft_gain(soft), -expected, atol=1e-6)


def test_a_rate_has_the_interval_of_clopper_and_pearson():
    rate = Rate(3, 40)
    low = stats.beta.ppf(0.025, 3, 38)
    high = stats.beta.ppf(0.975, 4, 37)
    np.testing.assert_allclose(rate.interval, (low, high), rtol=1e-6)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 78).least == 3 / 78


def test_false_matches_are_counted_pair_by_pair():
    outputs = RNG.normal(size=(60, 16)).astype(np.float32)
    pairs = [(a, b) for a in range(60) for b in range(a)]
    distances = [_distance(outputs[a], outputs[b]) for a, b in pairs]
    rate = retrieval.false_match_rate(OperatingPoint.create(radius=4), outputs)
    assert (rate.count, rate.trials) == (sum(d <= 4 for d in distances), len(pairs))
    cosines = [_cosine(outputs[a], outputs[b]) for a, b in pairs]
    rate = retrieval.false_match_rate(OperatingPoint.create(cosine=0.4), outputs)
    assert rate.count == sum(c >= 0.4 for c in cosines)


@pytest.mark.parametrize("kind", ["radius", "cosine"])
def test_pairs_of_near_duplicates_are_no_false_matches(kind):
    outputs = np.repeat(RNG.normal(size=(20, 16)).astype(np.float32), 3, axis=0)
    groups = np.arange(60) // 3
    point = OperatingPoint.create(**({"radius": 4} if kind == "radius" else {"cosine": 0.4}))
    rate = retrieval.false_match_rate(point, outputs, groups)
    assert rate.trials == 60 * 57 // 2
    single = retrieval.false_match_rate(point, outputs[::3])
    assert rate.count == 9 * single.count > 0
    chosen = retrieval.choose_point(outputs, rate=0.05, kind=kind, groups=groups)
    assert retrieval.false_match_rate(chosen, outputs, groups).value <= 0.05


@pytest.mark.parametrize("kind", ["radius", "cosine"])
def test_a_chosen_point_is_the_loosest_within_the_rate(kind):
    outputs = RNG.normal(size=(80, 24)).astype(np.float32)
    point = retrieval.choose_point(outputs, rate=0.05, kind=kind)
    assert retrieval.false_match_rate(point, outputs).value <= 0.05
    looser = point.value + 1 if kind == "radius" else point.value - 1e-3
    beyond = retrieval.false_match_rate(OperatingPoint.create(**{kind: looser}), outputs).value
    assert beyond > (0.05 if kind == "radius" else 0.0499)
    made = retrieval.point_of({"false_match_rate": 0.05, "kind": kind}, outputs)
    assert made.asdict() == point.asdict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OperatingPoint.create(), "exactly|one of"),
        (lambda: OperatingPoint.create(radius=2, cosine=0.5), "one of"),
        (lambda: OperatingPoint.create(radius=2.5), "radius must be a whole number"),
        (lambda: OperatingPoint.create(cosine=2), "cosine must be a number from -1 to 1, got 2"),
        (lambda: OperatingPoint.create(distance=2), "unknown kind of operating point 'distance'"),
        (lambda: retrieval.choose_point(OUTPUTS, rate=0.001), "give more images"),
        (lambda: retrieval.choose_point(np.ones((100, 8)), rate=0.01), "copies among the images"),
        (
            lambda: retrieval.false_match_rate(OperatingPoint.create(top_k=3), OUTPUTS),
            "has no false-match rate",
        ),
        (
            lambda: OperatingPoint.create(top_k=3).margins(
                jnp.asarray(OUTPUTS), jnp.asarray(LISTED), None
            ),
            "needs the database",
        ),
    ],
)
def test_what_is_no_point_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
