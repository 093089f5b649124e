"""The rules of Auto-PGD and Square: against torchattacks step by step, and what they promise."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import attacks
from saat_jax.attacks import descent
from saat_jax.attacks.square import stripes

PATH = pathlib.Path(__file__).parent / "data" / "auto_pgd_trace.npz"
# Steps from the start to each check, by hand: 22, 19, 16, ... of 100, 4, 3, 2, ... of 20.
CHECKS = {20: [4, 7, *range(9, 20)], 100: [22, 41, 57, 70, 80, 87, 93, 99]}
EPSILON = 0.1
# Adds up to float32 rounding of a pixel near 1.
ROUNDING = 1.2e-7


@functools.cache
def _trace():
    with np.load(PATH) as arrays:
        return dict(arrays)


def _nhwc(images):
    return jnp.asarray(np.moveaxis(images, -3, -1))


def _losses(images):
    """The cross-entropy of the classifier of the trace, negated: ours minimises. `[batch]`"""
    trace = _trace()
    flat = jnp.moveaxis(images, -1, 1).reshape(len(images), -1)
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    hidden = jnp.tanh(matmul(flat, trace["hidden.weight"].T) + trace["hidden.bias"])
    logits = matmul(hidden, trace["last.weight"].T) + trace["last.bias"]
    return jax.nn.log_softmax(logits)[jnp.arange(len(images)), trace["labels"]]


def _run(num_steps):
    """Images, losses and step sizes at each step from the start of the trace, and of its end."""
    images, start = (_nhwc(_trace()[name]) for name in ("images", f"images_{num_steps}"))
    epsilon = float(_trace()["epsilon"])

    def estimate(here, step, state, seen):
        losses, pullback = jax.vjp(_losses, here)
        (gradient,) = pullback(jnp.ones_like(losses))
        now = (here, losses, state.step_size)
        seen = jax.tree.map(lambda values, value: values.at[step].set(value), seen, now)
        return attacks.Measured(gradient, losses), seen

    of_batch = jnp.zeros((num_steps + 1, len(images)))
    return descent.descend(
        estimate,
        images,
        start[0],
        rule=attacks.auto_pgd(images, epsilon=epsilon, num_steps=num_steps),
        epsilon=epsilon,
        # One more, to see the last images.
        num_steps=num_steps + 1,
        carry=(jnp.zeros_like(start), of_batch, of_batch),
    ).carry


# --- Auto-PGD ---


@pytest.mark.parametrize("num_steps", [20, 100])
def test_auto_pgd_goes_where_torchattacks_goes(num_steps):
    images, losses, step_sizes = _run(num_steps)
    trace = _trace()
    # The sizes of the steps that led there; halving is exact.
    np.testing.assert_array_equal(step_sizes[1:], trace[f"step_sizes_{num_steps}"])
    # A step adds the rounding of a pixel near 1, half of 1.2e-7, and the next ones carry a part
    # of it on. What is decided otherwise, by the smallest step here, shows as 1e-3.
    np.testing.assert_allclose(images, _nhwc(trace[f"images_{num_steps}"]), rtol=0, atol=1e-6)
    # Of sums of 64 terms; gradients times the images' rounding are below.
    np.testing.assert_allclose(-losses, trace[f"losses_{num_steps}"], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("num_steps", [20, 100])
def test_the_trace_tells_rules_apart(num_steps):
    trace = _trace()
    sizes = trace[f"step_sizes_{num_steps}"]
    halved = sizes[1:] < sizes[:-1]
    steps = np.flatnonzero(halved.any(1)) + 1
    assert set(steps) <= set(CHECKS[num_steps])
    # At most checks some images go on as before, and not all images do the same.
    assert 0.2 < halved[np.array(CHECKS[num_steps]) - 1].mean() < 0.8
    assert len(np.unique(halved.T, axis=0)) > 4
    losses = trace[f"losses_{num_steps}"]
    # torchattacks compares the first loss with one of zero, ours with that of the start: here
    # both are a rise.
    assert np.all(losses[1] > losses[0]) and np.all(losses[1] > 0)
    # Nothing that is compared is a tie, which rounding might decide.
    best = np.maximum.accumulate(losses)[:-1]
    for before in (losses[:-1], best):
        assert np.all(np.abs(losses[1:] - before) > 16 * np.spacing(before))


FALL, RISE = -1, 1


@pytest.mark.parametrize(
    ("num_steps", "changes", "halvings"),
    [
        # The first check of 20 steps is after four; more than three of them must fall.
        (20, [FALL] * 4, 0),
        (20, [FALL, FALL, FALL, 0], 1),
        # torchattacks would count the first step as one that helped.
        (20, [RISE, FALL, FALL, FALL], 1),
        # What the trace has not: 18 of 19 steps fall, none below the lowest.
        (100, [FALL] * 22 + [99] + [FALL] * 18, 1),
        # The same right after a halving is let pass, and the next time it is not.
        (100, [RISE] * 22 + [99] + [FALL] * 18, 1),
        (100, [RISE] * 22 + [99] + [FALL] * 18 + [99] + [FALL] * 15, 2),
        # The first loss after going back is compared with the last before, not with the lowest:
        # 15 of 19 fall.
        (100, [RISE] * 22 + [FALL] * 15 + [RISE] * 4, 1),
        (100, [RISE] * 22 + [FALL] * 14 + [RISE] * 5, 2),
    ],
)
def test_auto_pgd_halves_worked_by_hand(num_steps, changes, halvings):
    images = jnp.full((1, 1, 1, 1), 0.5)
    rule = attacks.auto_pgd(images, epsilon=EPSILON, num_steps=num_steps)
    update = jax.jit(rule.update)
    here, state = images, rule.init(images)
    for loss in np.cumsum([0, *changes], dtype=np.float32):
        found = attacks.Measured(jnp.ones_like(images), jnp.full(1, loss))
        change, state = update(found, state, here)
        here += change
    np.testing.assert_allclose(state.step_size, [2 * EPSILON / 2**halvings], rtol=1e-6)


def test_the_trace_is_what_torchattacks_does():
    pytest.importorskip("torch", reason="needs torch, to trace torchattacks again")
    pytest.importorskip("torchattacks", reason="needs torchattacks, to trace it again")
    from benchmarks import auto_pgd_trace

    fresh, stored = auto_pgd_trace.make_trace(), _trace()
    assert fresh.keys() == stored.keys()
    for name in fresh.keys() - {"torch", "torchattacks"}:
        # Another release may round otherwise.
        np.testing.assert_allclose(fresh[name], stored[name], rtol=2e-6, atol=2e-5, err_msg=name)


# --- Square ---


def _quadratic_problem(batch=4, size=8):
    """Images, some at the walls, and a loss that is zero at other images inside the ball."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-0.2, 1.2, (batch, size, size, 3)).clip(0, 1).astype(np.float32)
    # Smooth, as squares are: of one colour by quarter.
    offsets = rng.choice([-EPSILON, EPSILON], (batch, 2, 2, 3)).repeat(4, 1).repeat(4, 2)
    goal = jnp.asarray((images + offsets).clip(0, 1), jnp.float32)
    return jnp.asarray(images), goal


def _distance(goal):
    return lambda images: jnp.mean((images - goal) ** 2, axis=(1, 2, 3))


@pytest.mark.parametrize("num_queries", [1, 2, 50])
def test_square_stays_in_the_ball_and_tells_its_loss(num_queries):
    images, goal = _quadratic_problem()
    loss_fn = _distance(goal)
    found, losses = attacks.square(
        loss_fn, images, jax.random.key(0), epsilon=EPSILON, num_queries=num_queries
    )
    assert found.shape == images.shape and found.dtype == images.dtype
    assert jnp.all((found >= 0) & (found <= 1))
    assert jnp.max(jnp.abs(found - images)) <= EPSILON + ROUNDING
    np.testing.assert_allclose(losses, loss_fn(found), rtol=1e-5)


def test_square_lowers_the_loss_far_below_that_of_the_stripes():
    images, goal = _quadratic_problem()
    loss_fn = _distance(goal)
    keys = jax.random.split(jax.random.key(0), len(images))
    square = functools.partial(attacks.square, loss_fn, images, keys, epsilon=EPSILON)
    start, first_losses = square(num_queries=1)
    # A single query is that of the stripes: each column of a channel all up, or all down.
    up = start - images
    walls = (start == 0) | (start == 1)
    assert jnp.all(walls | (jnp.abs(jnp.abs(up) - EPSILON) <= ROUNDING))
    assert jnp.all((up >= 0).all(1) | (up <= 0).all(1))
    assert jnp.all(square(num_queries=300)[1] < first_losses / 3)
    # Stripes of one key, too, are each image's own.
    one_key = stripes(jax.random.key(0), jnp.full_like(images, 0.5), epsilon=EPSILON)
    assert not jnp.array_equal(one_key[0], one_key[1])


def test_square_of_an_image_does_not_depend_on_its_batch():
    images, goal = _quadratic_problem()
    keys = jax.random.split(jax.random.key(1), len(images))

    def run(rows):
        rows = jnp.array(rows)
        return attacks.square(
            _distance(goal[rows]), images[rows], keys[rows], epsilon=EPSILON, num_queries=60
        )

    together = run([0, 1, 2, 3])
    for rows in ([2], [3, 1]):
        for values, expected in zip(run(rows), together, strict=True):
            # Sums over an image may round otherwise in a batch of another size.
            np.testing.assert_allclose(values, expected[jnp.array(rows)], rtol=1e-5, atol=ROUNDING)
