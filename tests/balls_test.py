"""The balls of Eq. 12 of SAAT: nearest points, steepest steps, and attacks that stay inside."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import attacks, evaluation
from saat_jax.evaluation import crafting
from tests import reference

NORMS = ("linf", "l2", "l1")
STEEPEST = {"linf": "sign", "l2": "steepest_l2", "l1": "steepest_l1"}
EPSILON = 0.05


def _images(seed, rows=3, size=4):
    """With ends of [0, 1], where the box is felt."""
    images = np.random.default_rng(seed).uniform(-0.2, 1.2, (rows, size, size, 3))
    return np.clip(images, 0, 1).astype(np.float32)


def _far(seed, images, spread=0.3):
    noise = np.random.default_rng(seed).normal(0, spread, images.shape)
    return (images + noise).astype(np.float32)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_those_of_plain_loops(norm):
    change = np.random.default_rng(0).normal(size=(3, 2, 5, 3))
    expected = [reference.norm_of(one, norm) for one in change]
    np.testing.assert_allclose(attacks.NORMS[norm](change).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("seed", range(3))
def test_the_projection_is_the_nearest_point(norm, seed):
    images = _images(seed, rows=2, size=3)
    far = _far(seed + 9, images)
    project = functools.partial(attacks.project, epsilon=EPSILON, norm=norm)
    actual = jax.jit(project)(far, images)
    expected = [
        reference.nearest_in_ball(point, image, EPSILON, norm)
        for point, image in zip(far, images, strict=True)
    ]
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_allclose(project(far, images), actual, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_keep_to_ball_and_box(norm):
    images = _images(0, rows=4, size=32)
    radii = jnp.array([0.0, 0.01, 0.1, 2.0])
    for spread in (0.001, 0.5, 100.0):
        far = _far(1, images, spread)
        near = attacks.project(far, images, epsilon=radii, norm=norm)
        assert near.min() >= 0 and near.max() <= 1
        sizes = np.asarray(attacks.NORMS[norm](near - images)).ravel()
        assert np.all(sizes <= radii + 1e-6)
        # To the very edge, where the point is far off.
        if spread > 1:
            np.testing.assert_allclose(sizes[1:3], radii[1:3], rtol=1e-3)
        again = attacks.project(near, images, epsilon=radii, norm=norm)
        np.testing.assert_allclose(again, near, atol=1e-6)
        # What is inside stays, to the bit.
        inside = np.clip(far[3:], 0, 1)
        np.testing.assert_array_equal(near[3:], inside)


def test_balls_of_one_radius_lie_in_each_other():
    images = _images(0)
    sizes = [
        attacks.NORMS[norm](attacks.project(_far(1, images), images, epsilon=EPSILON) - images)
        for norm in NORMS
    ]
    assert np.all(sizes[0] >= sizes[1]) and np.all(sizes[1] >= sizes[2])


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"unknown norm 'l0'; expected one of \['l1', 'l2', 'linf"):
        attacks.project(jnp.zeros((1, 2)), jnp.zeros((1, 2)), epsilon=0.1, norm="l0")


@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_the_steepest_of_their_size(norm):
    images, gradient = _images(0), np.random.default_rng(1).normal(size=(3, 4, 4, 3))
    gradient = gradient.astype(np.float32)
    gradient[0, 0] = 0
    rule = attacks.STEP_RULES[STEEPEST[norm]](EPSILON)
    step, _ = jax.jit(rule.update)(gradient, rule.init(images), images)
    if norm == "l1":
        expected = [
            reference.steepest_step(slope, image, EPSILON * image.size)
            for slope, image in zip(gradient, images, strict=True)
        ]
        np.testing.assert_allclose(step, expected, atol=1e-6)
    sizes = attacks.NORMS[norm](step).ravel()
    np.testing.assert_allclose(sizes, EPSILON, rtol=1e-5)
    descent = -np.sum(step * gradient, axis=(1, 2, 3))
    # No other step of the size, within [0, 1] for "l1", goes down more.
    rng = np.random.default_rng(2)
    for _ in range(100):
        other = rng.normal(size=images.shape) ** 3
        other *= EPSILON / np.asarray(attacks.NORMS[norm](other))
        if norm == "l1":
            other = np.clip(images + other, 0, 1) - images
        assert np.all(-np.sum(other * gradient, axis=(1, 2, 3)) <= descent + 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_step(norm):
    images = jnp.asarray(_images(0))
    rule = attacks.STEP_RULES[STEEPEST[norm]](EPSILON)
    step, _ = rule.update(jnp.zeros_like(images), rule.init(images), images)
    np.testing.assert_array_equal(step, 0)


def _encode(variables, images, alpha=1.0):
    return jnp.tanh(alpha * (images - 0.5).reshape(len(images), -1) @ variables)


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_lower_their_loss_inside_the_ball(norm):
    images = _images(0, size=8)
    variables = np.random.default_rng(3).normal(0, 0.1, (images[0].size, 6)).astype(np.float32)
    codes = np.asarray(np.sign(_encode(variables, images)))
    attack = functools.partial(
        attacks.pgd,
        _encode,
        variables,
        images,
        codes,
        jax.random.key(0),
        epsilon=EPSILON,
        step_size=EPSILON / 4,
        num_steps=10,
        targeted=False,
        loss="mean",
        direction=STEEPEST[norm],
        norm=norm,
    )
    losses = []
    for random_start in (True, False):
        adversarial = attack(random_start=random_start)
        assert np.all(attacks.NORMS[norm](adversarial - images) <= EPSILON + 1e-6)
        assert adversarial.min() >= 0 and adversarial.max() <= 1
        losses.append(attacks.mean_loss(_encode(variables, adversarial), codes, targeted=False))
    before = attacks.mean_loss(_encode(variables, images), codes, targeted=False)
    assert np.all(losses[0] < before - 0.1) and np.all(losses[1] < before - 0.1)
    # Images do not influence each other.
    alone = functools.partial(attack.func, _encode, variables, images[1:2], codes[1:2])
    alone = alone(jax.random.key(0), **attack.keywords, random_start=False)
    np.testing.assert_allclose(alone[0], attack(random_start=False)[1], atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("whole", [True, False])
def test_rounding_leaves_no_ball(norm, whole):
    images = _images(0, size=16)
    if whole:
        images = np.round(255 * images).astype(np.float32) / 255
    adversarial = np.asarray(
        attacks.project(_far(1, images), images, epsilon=8 / 255, norm=norm), np.float32
    )
    rounded = crafting.round_inside(adversarial, images, 8 / 255, norm) / np.float32(255)
    # An image that is of no 8 bits is moved by the rounding itself.
    slack = 0 if whole else 0.5 / 255
    assert np.all(attacks.NORMS[norm](rounded - images) <= 8 / 255 + slack + 1e-6)
    assert np.abs(rounded - adversarial).max() <= 1 / 255 + 1e-6
    crafting._audit(images, rounded, 8 / 255, norm, rounded=True)
    with pytest.raises(ArithmeticError, match="left the ball of radius"):
        crafting._audit(images, rounded, 4 / 255, norm, rounded=True)


def test_a_run_may_name_a_norm():
    settings = dict(attack="mainstay", targeted=False, epsilon=8 / 255, step_size=0.1, num_steps=2)
    attack = evaluation.AttackSettings.create(**settings, norm="l2", direction="steepest_l2")
    assert attack.norm == "l2" and evaluation.AttackSettings.create(**settings).norm == "linf"
    with pytest.raises(ValueError, match="unknown norm 'l3'"):
        evaluation.AttackSettings.create(**settings, norm="l3")


def test_the_loop_is_traced_once_for_all_batches():
    images = jnp.asarray(_images(0))

    @chex.assert_max_traces(n=1)
    def attack(images):
        found = attacks.descend(
            attacks.plain(lambda at, step: at),
            images,
            images,
            rule=optax.sgd(0.1),
            epsilon=EPSILON,
            num_steps=3,
            norm="l1",
        )
        return found.images

    run = jax.jit(attack)
    run(images)
    run(images / 2)
