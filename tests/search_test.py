"""What a search wants, how it goes there, and what it tells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import attacks, retrieval
from saat_jax.attacks import criteria, search

pytestmark = pytest.mark.usefixtures("quick_compilation")
NUM_QUERIES, NUM_BITS = 5, 12


def _problem(seed, *, num_items=60, repeats=3):
    """(query codes, database codes, query labels, database labels), with many ties."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((num_items // repeats, NUM_BITS)) < 0.5, -1.0, 1.0)
    database = np.repeat(codes, repeats, axis=0).astype(np.float32)
    queries = np.where(rng.random((NUM_QUERIES, NUM_BITS)) < 0.5, -1.0, 1.0).astype(np.float32)
    labels = (rng.random((NUM_QUERIES, 4)) < 0.4).astype(np.float32)
    return queries, database, labels, (rng.random((num_items, 4)) < 0.4).astype(np.float32)


def _wanted(problem, make=attacks.Displace, **options):
    _, database, labels, others = problem
    return make(*attacks.rank(labels, database, others, **{"k": None} | options))


# --- criteria ---


@pytest.mark.parametrize("normalizer", ["hits", "min(k,relevant)"])
@pytest.mark.parametrize("seed", range(3))
def test_the_gain_is_the_average_precision_of_retrieval(seed, normalizer):
    problem = _problem(seed)
    expected = retrieval.average_precision(*problem, normalizer=normalizer)
    queries = jnp.asarray(problem[0])
    for make, sign in ((attacks.Displace, -1), (attacks.Reach, 1)):
        gain = _wanted(problem, make, normalizer=normalizer).gain(queries)
        np.testing.assert_allclose(gain, sign * expected, atol=2e-6)


def test_a_list_that_ends_between_groups_of_ties_is_exact():
    # All at different distances, so that every list does.
    database = 1 - 2 * np.tri(NUM_BITS + 1, NUM_BITS, -1, dtype=np.float32)
    labels = np.random.default_rng(0).permutation(np.arange(NUM_BITS + 1) % 2)[:, None]
    queries, own = np.ones((1, NUM_BITS), np.float32), np.ones((1, 1))
    for k in (1, 4, 9):
        expected = retrieval.average_precision(queries, database, own, labels, k=k)
        gain = attacks.Reach(*attacks.rank(own, database, labels, k=k)).gain(jnp.asarray(queries))
        np.testing.assert_allclose(gain, expected, atol=1e-6)


def test_a_part_of_many_codes_stands_for_all():
    problem = _problem(0, num_items=600, repeats=2)
    whole, part = (_wanted(problem, max_codes=n) for n in (None, 150))
    assert part.ranking.codes.shape == (150, NUM_BITS)
    queries = jnp.asarray(problem[0])
    np.testing.assert_allclose(part.gain(queries), whole.gain(queries), atol=0.1)


@pytest.mark.parametrize("seed", range(2))
def test_flip_gains_are_those_of_codes_with_one_bit_flipped(seed):
    problem = _problem(seed)
    wanted, codes = _wanted(problem), jnp.asarray(problem[0])
    gains = wanted.flip_gains(codes)
    for bit in range(NUM_BITS):
        flipped = codes.at[:, bit].multiply(-1)
        np.testing.assert_allclose(
            gains[:, bit], wanted.gain(flipped) - wanted.gain(codes), atol=2e-6
        )


def test_best_codes_cannot_be_bettered_by_a_flip():
    problem = _problem(0)
    wanted, codes = _wanted(problem, attacks.Reach), jnp.asarray(problem[0])
    best = attacks.best_codes(wanted, codes)
    assert float(wanted.flip_gains(best).max()) < 1e-5
    assert np.all(np.asarray(wanted.gain(best)) >= np.asarray(wanted.gain(codes)))


def _soft_average_precision(soft, database, relevant):
    """The definition, item by item."""
    distances = [(NUM_BITS - soft @ code) / 2 for code in database]
    low, spacing = min(distances), (max(distances) - min(distances)) / 15
    total, items_before, hits_before = 0.0, 0.0, 0.0
    for cut in range(16):
        inside = [1 / (1 + np.exp(-((cut + 0.5) - (d - low) / spacing) / 0.5)) for d in distances]
        items, hits = sum(inside), float(np.dot(inside, relevant))
        middle = (items + items_before) / 2
        total += (hits - hits_before) * (hits + hits_before) / 2 / middle
        items_before, hits_before = items, hits
    return total / hits_before


def test_soft_average_precision_is_its_definition_and_does_not_mind_scale():
    problem = _problem(1)
    _, database, labels, others = problem
    wanted = _wanted(problem, attacks.Reach)
    soft = np.tanh(np.random.default_rng(0).normal(size=(NUM_QUERIES, NUM_BITS)))
    relevant = (labels @ others.T > 0).astype(float)
    expected = [
        _soft_average_precision(*row) if row[2].any() else 0.0
        for row in zip(soft, [database] * NUM_QUERIES, relevant, strict=True)
    ]
    actual = wanted.soft_gain(jnp.asarray(soft, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_allclose(
        wanted.soft_gain(jnp.asarray(1e-4 * soft, jnp.float32)), actual, atol=1e-3
    )


def test_soft_average_precision_follows_the_hard_one():
    problem = _problem(2, num_items=400, repeats=1)
    wanted = _wanted(problem, attacks.Reach)
    codes = np.where(np.random.default_rng(0).random((40, NUM_BITS)) < 0.5, -1, 1)
    repeated = criteria.AveragePrecision(
        wanted.ranking, np.repeat(wanted.relevant, 8, axis=0), wanted.sign
    )
    pair = [f(jnp.asarray(codes, jnp.float32)) for f in (repeated.gain, repeated.soft_gain)]
    assert np.corrcoef(*map(np.asarray, pair))[0, 1] > 0.98


# --- losses ---


def test_losses_are_their_definitions():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=(2, 4, NUM_BITS)).astype(np.float32)
    expected = [
        np.mean([w * np.tanh(3 * z) for z, w in zip(*row, strict=True)])
        for row in zip(logits, weights, strict=True)
    ]
    actual = attacks.weighted_loss(logits, weights, sharpness=3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for cheapest in (3, None):
        expected = [
            np.mean(
                sorted(max(0, 1 + np.sign(w) * z) for z, w in zip(*row, strict=True))[:cheapest]
            )
            for row in zip(logits, weights, strict=True)
        ]
        actual = attacks.hinge_loss(jnp.asarray(logits), weights, num_cheapest=cheapest)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    problem = _problem(0)
    wanted, soft = _wanted(problem), jnp.asarray(rng.normal(size=(NUM_QUERIES, NUM_BITS)))
    np.testing.assert_allclose(
        attacks.soft_gain_loss(soft, wanted, sharpness=2.0), -wanted.soft_gain(jnp.tanh(2 * soft))
    )


def test_flip_weights_want_flipped_what_gains_and_kept_what_loses():
    problem = _problem(0)
    wanted, codes = _wanted(problem), jnp.asarray(problem[0])
    weights, gains = attacks.flip_weights(wanted, codes), np.asarray(wanted.flip_gains(codes))
    # A bit of the sign of its weight is to leave it.
    np.testing.assert_array_equal(np.sign(weights * codes), np.sign(gains))
    assert np.abs(weights).max() <= 1
    with pytest.raises(ValueError, match="weights must be of shape"):
        attacks.weighted_loss(codes, weights[:1], sharpness=1.0)


# --- logits ---

_PROJECTION = np.random.default_rng(0).normal(size=(8 * 8 * 3, NUM_BITS)).astype(np.float32)


def _features(images):
    return 0.2 * (images.reshape(len(images), -1) - 0.5) @ _PROJECTION


def _encode(variables, images, alpha):
    return jnp.tanh(alpha * variables * _features(images))


def _images(num_images=NUM_QUERIES):
    images = np.random.default_rng(1).random((num_images, 8, 8, 3), np.float32)
    return jnp.asarray(images)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e7])
def test_logits_do_not_depend_on_the_scale_of_the_output(scale):
    images = _images()
    found = attacks.measure_logits(_encode, scale, images)
    logits = attacks.logits_of(_encode, scale, images, found)
    features = np.asarray(_features(images))
    np.testing.assert_allclose(logits, features / np.median(np.abs(features)), rtol=1e-3, atol=1e-3)


def test_an_encoder_that_ignores_alpha_is_taken_as_it_is():
    found = attacks.measure_logits(lambda v, x, alpha: _encode(v, x, 1.0), 1.0, _images())
    assert found.alpha == 1
    saturated = attacks.measure_logits(lambda v, x, alpha: _encode(v, x, 1.0), 1e6, _images())
    assert saturated.alpha == 1 and np.isfinite(saturated.size)


# --- searches ---


def _search(perturb, images, keys, rows, problem, **options):
    queries, database, labels, others = problem
    ranking, relevant = attacks.rank(labels, database, others, k=None)
    aim = attacks.Aim(jnp.asarray(queries)[rows], jnp.asarray(relevant)[rows])
    options = {"num_steps": 12} | options if "num_queries" not in options else options
    return perturb(
        _encode,
        1.0,
        images[rows],
        aim,
        keys[rows],
        targeted=False,
        epsilon=0.1,
        criterion=attacks.Displace,
        shared=ranking,
        scale=attacks.measure_logits(_encode, 1.0, images),
        **options,
    )


SEARCHES = {
    "weighted": (attacks.auto_pgd_search, {}),
    "flips": (attacks.auto_pgd_search, {"flips": True}),
    "hinge": (attacks.auto_pgd_search, {"loss": "hinge"}),
    "soft_gain": (attacks.auto_pgd_search, {"loss": "soft_gain"}),
    "sharp_gain": (attacks.auto_pgd_search, {"loss": "sharp_gain"}),
    "square": (attacks.square_search, {"num_queries": 60}),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_returns_the_image_of_its_gain_and_minds_no_batch_mates(name):
    perturb, options = SEARCHES[name]
    # `criterion` is called as the suite's: of what is shared, and of rows.
    run = functools.partial(_search, perturb, problem=_problem(0), **options)
    images, keys = _images(), jax.random.split(jax.random.key(0), NUM_QUERIES)
    found = run(images, keys, np.arange(NUM_QUERIES))
    assert float(jnp.abs(found.images - images).max()) <= 0.1 + 1e-6
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    codes = np.where(np.asarray(_features(found.images)) >= 0, 1.0, -1.0).astype(np.float32)
    np.testing.assert_allclose(_wanted(_problem(0)).gain(jnp.asarray(codes)), found.gain, atol=1e-6)
    assert np.all(found.gain >= found.first_gain) and np.all(found.gain >= found.settled_gain)
    alone = run(images, keys, np.array([3]))
    np.testing.assert_allclose(alone.images[0], found.images[3], atol=1e-6)
    # To the second query nothing is relevant: of soft average precision it has no gradient.
    assert np.flatnonzero(found.blind).tolist() == [1] * name.endswith("_gain")
    if name != "square":
        assert float(jnp.mean(found.gain)) > float(jnp.mean(found.first_gain))


def test_another_start_is_another_search():
    run = functools.partial(_search, attacks.auto_pgd_search, problem=_problem(0))
    images, keys = _images(), jax.random.split(jax.random.key(0), NUM_QUERIES)
    one, two, again = (
        run(images, keys, np.arange(NUM_QUERIES), restart=restart) for restart in (0, 1, 1)
    )
    assert not np.array_equal(one.images, two.images)
    np.testing.assert_array_equal(two.images, again.images)


def test_no_gradient_is_told():
    images, keys = _images(), jax.random.split(jax.random.key(0), NUM_QUERIES)
    queries, database, labels, others = _problem(0)
    ranking, relevant = attacks.rank(labels, database, others, k=None)
    found = search.auto_pgd_search(
        lambda v, x, alpha: jax.lax.stop_gradient(_encode(v, x, alpha)),
        1.0,
        images,
        attacks.Aim(jnp.asarray(queries), jnp.asarray(relevant)),
        keys,
        targeted=False,
        epsilon=0.1,
        num_steps=4,
        criterion=attacks.Displace,
        shared=ranking,
        scale=attacks.LogitScale(1.0, 1.0),
    )
    assert np.all(found.blind)
