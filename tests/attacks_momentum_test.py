"""Momentum attacks: by hand, by loops, against released code; draws that belong to images."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax.attacks import code_losses, descent, momentum
from tests import golden, tiny

ATTACKS = {
    name: getattr(momentum, name) for name in ("ni_fgsm", "si_ni_fgsm", "vmi_fgsm", "di_fgsm")
}
NAMES = sorted(ATTACKS)
EPSILON = 8 / 255
# Adds up to float32 rounding of a pixel near 1.
ROUNDING = 1.2e-7


def _linear_encode(variables, images, alpha=1.0):
    """The model of the "int_*" formulas: tanh(alpha * (W flatten_NCHW(x) + b))."""
    weights, bias = variables
    flat = jnp.transpose(images, (0, 3, 1, 2)).reshape(images.shape[0], -1)
    product = jnp.matmul(flat, weights.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.tanh(alpha * (product + bias))


def _flat(images):
    """`[batch, ...]` NHWC images as rows in the order of `_linear_encode`."""
    return np.transpose(images, (0, 3, 1, 2)).reshape(len(images), -1).astype(np.float64)


def _linear_problem(seed, *, batch=3, num_bits=6):
    rng = np.random.default_rng(seed)
    variables = (
        rng.normal(size=(num_bits, 36)).astype(np.float32),
        rng.normal(size=num_bits).astype(np.float32),
    )
    # Whole grey levels; some at the walls of the box.
    levels = rng.integers(-20, 275, (batch, 3, 4, 3)).clip(0, 255)
    target_codes = rng.choice([-1, 1], (batch, num_bits)).astype(np.float32)
    return _linear_encode, variables, (levels / 255).astype(np.float32), target_codes


STATICS = ("num_steps", "targeted", "loss", "num_scales", "num_neighbors", "resize_rate")


@functools.cache
def _jitted(name, encode_fn, **statics):
    return jax.jit(functools.partial(ATTACKS[name], encode_fn, **statics))


def _attack(name, problem, keys=None, *, num_steps=8, **options):
    encode_fn, *arrays = problem
    options = {
        "epsilon": EPSILON,
        "step_size": 1 / 255,
        "targeted": False,
        "alphas": np.ones(num_steps, np.float32),
        **options,
    }
    # What may be traced is, so that tests share what is compiled.
    statics = {key: options.pop(key) for key in STATICS if key in options}
    attack = _jitted(name, encode_fn, num_steps=num_steps, **statics)
    return np.asarray(attack(*arrays, _keys(len(arrays[1])) if keys is None else keys, **options))


def _keys(num_rows, seed=0):
    return descent.row_keys(jax.random.key(seed), num_rows)


# --- the loop ---


def _momentum_descent(estimate, images, start, *, step_size, decay, **options):
    rule = descent.momentum_sign(step_size, decay=decay)
    return descent.descend(estimate, jnp.asarray(images), start, rule=rule, **options).images


def _descend(gradients, **options):
    """The loop on one image of one pixel per sequence of gradients, from 1/2, step 0.1."""
    gradients = jnp.array(gradients)[:, :, None, None]
    images = jnp.full(gradients.shape[1:], 0.5)
    return _momentum_descent(
        descent.plain(lambda adversarial, step: gradients[step]),
        images,
        images,
        epsilon=0.5,
        step_size=0.1,
        num_steps=len(gradients),
        **options,
    )[:, 0, 0]


def test_momentum_worked_by_hand():
    # Of mean magnitude 1, 1 and 2, so that the momentum is (2, 0), (1, 1), (-0.5, 1.5).
    gradients = [[[2.0, 0]], [[-1.0, 1]], [[-3.0, 1]]]
    np.testing.assert_allclose(_descend(gradients, decay=1.0), [[0.4, 0.3]], rtol=1e-6)
    # Without momentum each step follows its own gradient.
    np.testing.assert_allclose(_descend(gradients, decay=0.0), [[0.6, 0.3]], rtol=1e-6)
    # With half of it: (2, 0), (0, 1), (-1.5, 1).
    np.testing.assert_allclose(_descend(gradients, decay=0.5), [[0.5, 0.3]], rtol=1e-6)


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_image_without_gradient_stops_for_good(nothing):
    gradients = [[[1.0, 1], [1, 1]], [[nothing, nothing], [1, 1]], [[1.0, 1], [1, 1]]]
    moved = _descend(gradients, decay=1.0)
    np.testing.assert_allclose(moved, [[0.4, 0.4], [0.2, 0.2]], rtol=1e-6)


# --- the gradients ---


def test_look_ahead_worked_by_hand():
    # The gradient of sum(x^2) / 2 is x: the scaled point itself.
    gradient_fn = momentum.look_ahead(lambda images, step: images, reach=0.5, num_scales=4)
    gradient, _ = gradient_fn(
        jnp.array([3.0]), 0, descent.MomentumState(jnp.array([2.0]), None), None
    )
    np.testing.assert_array_equal(gradient, [2 * (1 + 1 / 2 + 1 / 8 + 1 / 64) / 4])


def test_tune_variance_worked_by_hand():
    # The gradient is x^2: around 3, at 2 and 5, it is 4 and 25 on average 5.5 more than 9.
    gradient_fn = momentum.tune_variance(
        lambda images, step: images**2,
        lambda step, neighbor: jnp.array([-1.0, 2])[neighbor],
        num_neighbors=2,
    )
    gradient, variance = gradient_fn(jnp.array([3.0]), 0, jnp.zeros(1), jnp.array([10.0]))
    np.testing.assert_array_equal(gradient, [19])
    np.testing.assert_array_equal(variance, [5.5])


def test_transform_input_worked_by_hand():
    # Loss x^2 of x = 3 a (step + 1): by the chain rule 2 * (3 * 2 * a) * 6.
    gradient_fn = momentum.transform_input(
        lambda images, step: 2 * images, lambda images, step: 3 * images * (step + 1)
    )
    gradient, carry = gradient_fn(jnp.array([5.0]), 1, jnp.zeros(1), "carry")
    np.testing.assert_array_equal(gradient, [360])
    assert carry == "carry"


def _resized(image, size, top, left):
    """A loop over pixels: half-pixel centres, the outermost pixel reaches to the edge."""
    height, width, channels = image.shape
    result = np.zeros(image.shape)
    for row in range(size):
        for column in range(size):
            y, x = (
                (place + 0.5) * whole / size - 0.5
                for place, whole in ((row, height), (column, width))
            )
            for near_y in (int(np.floor(y)), int(np.floor(y)) + 1):
                for near_x in (int(np.floor(x)), int(np.floor(x)) + 1):
                    weight = (1 - abs(y - near_y)) * (1 - abs(x - near_x))
                    pixel = image[min(max(near_y, 0), height - 1), min(max(near_x, 0), width - 1)]
                    result[top + row, left + column] += weight * pixel
    return result


def test_resize_and_pad_worked_by_hand():
    # Half the side: each pixel lies in the middle of four.
    image = jnp.arange(16.0).reshape(4, 4, 1)
    expected = np.zeros((4, 4))
    expected[1:3, 2:] = [[2.5, 4.5], [10.5, 12.5]]
    resized = momentum.resize_and_pad(image, 2, 1, 2)
    np.testing.assert_allclose(resized[..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(9, 9, 3), (7, 10, 2), (10, 7, 1)])
def test_resize_and_pad_matches_reference(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    resize = jax.jit(momentum.resize_and_pad)
    for size, top, left in [(6, 0, 0), (6, 1, 1), (5, 2, 1), (1, 3, 4)]:
        expected = _resized(image, size, top, left)
        np.testing.assert_allclose(resize(image, size, top, left), expected, atol=1e-5)


# --- the attacks ---


def _reference(
    weights, bias, image, target_code, *, alphas, loss, targeted, scales=None, offsets=None
):
    """NI-, SI-NI- or VMI-FGSM in float64 on one flat image of the linear model."""

    def gradient(x, alpha):
        code = np.tanh(alpha * (weights @ x + bias))
        agreement = code * target_code
        slope, count = np.ones_like(code), code.size
        if loss == "focused":
            kept = agreement < 0.5 if targeted else agreement > -0.5
            slope, count = kept * (2 * agreement + 2), max(kept.sum(), 1)
        sign = -1 if targeted else 1
        return sign * ((slope * target_code) * (1 - code**2) * alpha) @ weights / count

    x, velocity, variance = image, np.zeros_like(image), np.zeros_like(image)
    for step, alpha in enumerate(alphas):
        if scales is not None:
            ahead = x - velocity / 255
            total = sum(gradient(scale * ahead, alpha) for scale in scales) / len(scales)
        else:
            here = gradient(x, alpha)
            around = sum(gradient(x + offset, alpha) for offset in offsets[step])
            total, variance = here + variance, around / len(offsets[step]) - here
        if not np.any(total):
            return x
        velocity = velocity + total / np.abs(total).mean()
        x = x - np.sign(velocity) / 255
        x = np.clip(image + np.clip(x - image, -EPSILON, EPSILON), 0, 1)
    return x


@pytest.mark.parametrize(
    "num_scales, loss, targeted", [(1, "mean", False), (3, "focused", False), (3, "focused", True)]
)
def test_si_ni_fgsm_matches_reference(num_scales, loss, targeted):
    _, variables, images, target_codes = problem = _linear_problem(1)
    alphas = code_losses.alpha_schedule(8)
    options = dict(loss=loss, targeted=targeted)
    actual = _attack("si_ni_fgsm", problem, alphas=alphas, num_scales=num_scales, **options)
    scales = [1, 1 / 2, 1 / 8][:num_scales]
    expected = [
        _reference(*variables, *rows, alphas=alphas.astype(float), scales=scales, **options)
        for rows in zip(_flat(images), target_codes, strict=True)
    ]
    np.testing.assert_allclose(_flat(actual), expected, atol=1e-6)


def test_ni_fgsm_is_a_single_copy():
    problem = _linear_problem(2)
    one = _attack("si_ni_fgsm", problem, num_scales=1)
    np.testing.assert_array_equal(_attack("ni_fgsm", problem), one)


@pytest.mark.parametrize("loss, targeted", [("mean", False), ("focused", True)])
def test_tune_variance_matches_reference(loss, targeted):
    encode_fn, variables, images, target_codes = _linear_problem(3)
    alphas = code_losses.alpha_schedule(5)
    offsets = np.random.default_rng(3).normal(0, 0.1, (5, 2, *images.shape)).astype(np.float32)
    actual = descent.minimize(
        code_losses.target_loss(target_codes, loss=loss, targeted=targeted),
        encode_fn,
        variables,
        images,
        rule=descent.momentum_sign(1 / 255),
        epsilon=EPSILON,
        num_steps=5,
        alphas=alphas,
        estimator=functools.partial(
            momentum.tune_variance,
            offset_fn=lambda *place: jnp.asarray(offsets)[place],
            num_neighbors=2,
        ),
        carry=jnp.zeros_like(images),
    )
    flat_offsets = np.moveaxis(offsets, -1, -3).reshape(5, 2, len(images), -1)
    expected = [
        _reference(
            *variables,
            image,
            target_code,
            alphas=alphas.astype(float),
            offsets=flat_offsets[:, :, row],
            loss=loss,
            targeted=targeted,
        )
        for row, (image, target_code) in enumerate(zip(_flat(images), target_codes, strict=True))
    ]
    np.testing.assert_allclose(_flat(np.asarray(actual)), expected, atol=1e-6)


def test_vmi_fgsm_without_neighbourhood_is_momentum_alone():
    _, variables, images, target_codes = problem = _linear_problem(4)
    actual = _attack("vmi_fgsm", problem, beta=0.0)
    options = dict(alphas=np.ones(8), loss="focused", targeted=False)
    expected = [
        _reference(*variables, *rows, offsets=np.zeros((8, 1, 1)), **options)
        for rows in zip(_flat(images), target_codes, strict=True)
    ]
    np.testing.assert_allclose(_flat(actual), expected, atol=1e-6)


def _seen(attack, images, **options):
    """The images that an attack shows to the encoder, `[num_looks, batch, ...]`."""
    seen = []

    def encode_fn(variables, images, alpha):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images)
        return jnp.tanh(images.sum((1, 2, 3))[:, None])

    @jax.jit
    def run(images):
        return attack(
            encode_fn,
            (),
            images,
            jnp.ones((len(images), 1)),
            jax.random.key(0),
            targeted=False,
            step_size=0.0,
            loss="mean",
            **options,
        )

    jax.block_until_ready(run(images))
    jax.effects_barrier()
    return np.array(seen)


def test_neighbours_fill_their_ball():
    images = jnp.zeros((3, 5, 5, 3))
    seen = _seen(momentum.vmi_fgsm, images, epsilon=0.1, beta=2.0, num_steps=4, num_neighbors=3)
    offsets = seen.reshape(-1, images[0].size)[np.any(seen.reshape(-1, images[0].size), 1)]
    # Every neighbour of every step and image is another; they are not clipped to the box.
    assert len(np.unique(offsets, axis=0)) == len(offsets) == 4 * 3 * len(images)
    assert 0.19 < offsets.max() <= 0.2 and -0.2 <= offsets.min() < -0.19
    assert abs(offsets.mean()) < 5 * 0.2 / np.sqrt(3 * offsets.size)


def test_copies_are_drawn_for_every_image_and_step():
    # White images: a copy is a white square, whose place can be read off.
    images = jnp.ones((8, 20, 20, 3))
    seen = _seen(momentum.di_fgsm, images, epsilon=0.0, num_steps=60)
    squares = seen[..., 0].reshape(-1, 20, 20) > 0.5
    sizes, tops, lefts = squares.any(2).sum(1), squares.any(2).argmax(1), squares.any(1).argmax(1)
    np.testing.assert_array_equal(squares.any(1).sum(1), sizes)
    # Sides 18 and 19 of 20 and the whole: half of all copies, either size as likely, 5 deviations.
    num_draws = len(sizes)
    assert num_draws == 60 * 8
    for size, share in [(18, 1 / 4), (19, 1 / 4), (20, 1 / 2)]:
        np.testing.assert_allclose(
            np.mean(sizes == size), share, atol=5 * (share * (1 - share) / num_draws) ** 0.5
        )
    # A line is left below and at the right, all four places of the smaller square occur.
    places = {size: set() for size in (18, 19, 20)}
    for size, top, left in zip(sizes, tops, lefts, strict=True):
        places[size].add((int(top), int(left)))
    assert places == {18: {(0, 0), (0, 1), (1, 0), (1, 1)}, 19: {(0, 0)}, 20: {(0, 0)}}
    # Images differ in one step, steps differ for one image.
    by_step = sizes.reshape(60, 8)
    assert np.any(by_step != by_step[:, :1]) and np.any(by_step != by_step[:1])


def test_di_fgsm_without_copies_is_pgd():
    problem = _linear_problem(5)
    start = _attack("di_fgsm", problem, step_size=0.0)
    assert np.abs(start - problem[2]).max() > EPSILON / 2
    steps = dict(epsilon=EPSILON, step_size=1 / 255, num_steps=8, targeted=False)
    expected = descent.pgd(*problem, jax.random.key(0), start=start, **steps)
    actual = _attack("di_fgsm", problem, probability=0.0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_resize_rate_that_leaves_no_choice_is_refused():
    with pytest.raises(ValueError, match=r"1 to 2 pixels of images of 3 x 4, got 1\.0 and so 3"):
        _attack("di_fgsm", _linear_problem(6), resize_rate=1.0)
    with pytest.raises(ValueError, match="got 0.1 and so 0; try 0.9"):
        _attack("di_fgsm", _linear_problem(6), resize_rate=0.1)


# --- every attack ---


@pytest.mark.parametrize("name", NAMES)
def test_stays_in_ball_and_box_after_rounding(name):
    # Images of whole grey levels, a radius and steps that are no whole levels.
    _, _, images, _ = problem = _linear_problem(7)
    adversarial = _attack(name, problem, step_size=0.0123)
    assert adversarial.dtype == images.dtype and adversarial.shape == images.shape
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert np.abs(adversarial - images).max() <= EPSILON + ROUNDING
    levels = np.round(adversarial * 255).astype(np.uint8).astype(int)
    assert np.abs(levels - np.round(images * 255)).max() <= round(EPSILON * 255)


@pytest.mark.parametrize("name, targeted", [*((name, False) for name in NAMES), ("ni_fgsm", True)])
def test_moves_codes(name, targeted):
    encode_fn, variables, images, target_codes = problem = _linear_problem(8)
    adversarial = _attack(name, problem, targeted=targeted)
    before, after = (
        np.sum(encode_fn(variables, x) * target_codes, axis=1) for x in (images, adversarial)
    )
    assert np.all(after > before if targeted else after < before)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_influence_each_other(name):
    encode_fn, variables, images, target_codes = problem = _linear_problem(9)
    keys = _keys(3)
    together = _attack(name, problem, keys)
    # In company of other images, at the same batch size: to the bit.
    order = np.array([2, 1, 1])
    problem = encode_fn, variables, images[order], target_codes[order]
    np.testing.assert_array_equal(_attack(name, problem, keys[order]), together[order])
    # Alone, XLA's kernels may sum in another order.
    problem = encode_fn, variables, images[1:2], target_codes[1:2]
    np.testing.assert_allclose(_attack(name, problem, keys[1:2]), together[1:2], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_bytes(name):
    problem = _linear_problem(9)
    once, twice, other = (_attack(name, problem, _keys(3, seed)).tobytes() for seed in (0, 0, 1))
    assert once == twice
    # Some attacks draw nothing.
    assert (once != other) == (name in ("vmi_fgsm", "di_fgsm"))


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused(name):
    encode_fn, variables, images, target_codes = problem = _linear_problem(10)
    with pytest.raises(ValueError, match="unknown attack loss 'hinge'"):
        _attack(name, problem, loss="hinge")
    with pytest.raises(ValueError, match=r"each of the 8 steps.*alpha_schedule\(8\)"):
        _attack(name, problem, alphas=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="floats in .0, 1., got uint8; divide by 255"):
        _attack(name, (encode_fn, variables, images.astype(np.uint8), target_codes))


# --- against the released code ---


class _Golden:
    """A case on the tiny net, with the released loss, which is divided over the batch."""

    def __init__(self, name):
        self.case = golden.load(name)
        weights = self.case.group("w0.")
        self.encode_fn = tiny.tiny_net(weights).apply
        self.variables = tiny.tiny_variables(weights)
        self.images = golden.nhwc(self.case["images"])
        self.target_codes = self.case["target_code"]
        self.steps = dict(
            epsilon=self.case.constants["eps"],
            step_size=self.case.constants["step"] / 255,
            decay=self.case.constants["decay"],
        )
        # Numbers of steps and the released images after them.
        self.expected = {
            int(match[1]): golden.nhwc(value)
            for key, value in self.case.arrays.items()
            if (match := re.fullmatch(r"adv_T(\d+)", key))
        }

    def run(self, make_gradient, all_num_steps, start=None, carry=None):
        """The images after each of some numbers of steps, with the loss of the batch."""
        encode_fn = functools.partial(self.encode_fn, self.variables)

        @jax.jit
        def descend(alphas, num_steps):
            return _momentum_descent(
                make_gradient(_batch_gradient(encode_fn, self.target_codes, alphas)),
                self.images,
                self.images if start is None else start,
                num_steps=num_steps,
                carry=carry,
                **self.steps,
            )

        for num_steps in all_num_steps:
            alphas = np.zeros(max(all_num_steps), np.float32)
            alphas[:num_steps] = code_losses.alpha_schedule(num_steps)
            yield np.asarray(descend(alphas, num_steps))

    def attack(self, name, num_steps, **options):
        problem = self.encode_fn, self.variables, self.images, self.target_codes
        alphas = code_losses.alpha_schedule(num_steps)
        return _attack(name, problem, num_steps=num_steps, alphas=alphas, **self.steps, **options)


def _batch_gradient(encode_fn, target_codes, alphas):
    """The gradient of the released loss, which is divided over the batch."""

    def loss(images, step):
        soft_codes = encode_fn(images, alpha=alphas[step])
        return jnp.mean(code_losses.pooled_loss(soft_codes, target_codes, targeted=False))

    return jax.grad(loss)


def _share_of_equal_pixels(actual, expected):
    # Of the cases whose tolerance is "as pgd_nontargeted".
    distance = golden.load("pgd_nontargeted").tolerance("pixels with |diff|<")
    return np.mean(np.abs(np.asarray(actual) - expected) < distance)


def _assert_same_images(actual, expected):
    least = golden.load("pgd_nontargeted").tolerance("|diff|<1e-6 >=")
    assert _share_of_equal_pixels(actual, expected) >= least


def _assert_golden(problem, make_gradient, **options):
    adversarial = problem.run(make_gradient, list(problem.expected), **options)
    for actual, expected in zip(adversarial, problem.expected.values(), strict=True):
        _assert_same_images(actual, expected)


@pytest.mark.parametrize("name", ["nifgsm", "sinifgsm"])
def test_golden_attack(name):
    problem = _Golden(f"attack_{name}")
    num_scales = problem.case.constants.get("m", 1)
    reach = problem.steps["step_size"] * problem.steps["decay"]
    _assert_golden(
        problem, functools.partial(momentum.look_ahead, reach=reach, num_scales=num_scales)
    )
    for num_steps, expected in problem.expected.items():
        pooled = problem.attack("si_ni_fgsm", num_steps, num_scales=num_scales, loss="pooled")
        _assert_same_images(pooled, expected)
        # Each image's loss by its own count. That cancels out of one copy's gradient; of several,
        # it leaves almost the same images.
        focused = problem.attack("si_ni_fgsm", num_steps, num_scales=num_scales)
        if num_scales == 1:
            _assert_same_images(focused, expected)
        assert _share_of_equal_pixels(focused, expected) >= 0.9


def test_golden_attack_nifgsm_flipped():
    problem = _Golden("attack_nifgsm_flipped")
    assert np.all(np.isnan(problem.case["cost"][1:]))
    for num_steps, expected in problem.expected.items():
        adversarial = problem.attack("ni_fgsm", num_steps)
        _assert_same_images(adversarial, expected)
        np.testing.assert_array_equal(adversarial[0], problem.images[0])
        assert np.all(np.any(adversarial[1:] != problem.images[1:], axis=(1, 2, 3)))


def test_golden_attack_vmifgsm():
    problem = _Golden("attack_vmifgsm")
    offsets = jnp.asarray(golden.nhwc(problem.case["neighbor_uniform"]))
    radius = problem.case.constants["beta"] * problem.case.constants["eps"]
    assert np.abs(offsets).max() <= radius + ROUNDING
    make_gradient = functools.partial(
        momentum.tune_variance,
        offset_fn=lambda step, neighbor: offsets[step, neighbor],
        num_neighbors=problem.case.constants["N"],
    )
    _assert_golden(problem, make_gradient, carry=jnp.zeros_like(problem.images))


@pytest.mark.parametrize("name", ["attack_difgsm_a", "attack_difgsm_b"])
def test_golden_attack_difgsm(name):
    problem = _Golden(name)
    case = problem.case
    places = jnp.array([case[key] for key in ("resize", "pad_top", "pad_left")]).T
    smallest = int(case.constants["resize_rate"] * problem.images.shape[2])
    assert smallest <= case["resize"].min() and case["resize"].max() < problem.images.shape[2]
    chosen = jnp.asarray(case["rand"] < case.constants["diversity_prob"])
    resize = jax.vmap(momentum.resize_and_pad, in_axes=(0, None, None, None))

    def transform_fn(images, step):
        return jnp.where(chosen[step], resize(images, *places[step]), images)

    start = problem.images + golden.nhwc(case["uniform_start"])
    np.testing.assert_allclose(
        resize(jnp.clip(start, 0, 1), *places[0]),
        golden.nhwc(case["padded_first"]),
        rtol=0,
        atol=case.tolerance("padded_first abs"),
    )
    make_gradient = functools.partial(momentum.transform_input, transform_fn=transform_fn)
    (adversarial,) = problem.run(make_gradient, [case.constants["iteration"]], start)
    _assert_same_images(adversarial, golden.nhwc(case["adv"]))


@pytest.mark.parametrize("name, num_scales", [("ni", 1), ("sini", 5)])
def test_golden_formula_int_nifgsm_sinifgsm(name, num_scales):
    formula = golden.formula("int_nifgsm_sinifgsm")
    images = golden.nhwc(np.array(formula.inputs["x_NCHW"], np.float32))
    variables = tuple(np.array(formula.inputs[key], np.float32) for key in ("W", "b"))
    num_steps = formula.inputs["T"]
    # The step is in the specification's words only.
    adversarial = _momentum_descent(
        momentum.look_ahead(
            _batch_gradient(
                functools.partial(_linear_encode, variables),
                np.array(formula.inputs["target"], np.float32),
                jnp.asarray(code_losses.alpha_schedule(num_steps)),
            ),
            reach=1 / 255,
            num_scales=num_scales,
        ),
        images,
        images,
        epsilon=formula.inputs["eps"],
        step_size=1 / 255,
        num_steps=num_steps,
        decay=1.0,
    )
    formula.assert_close(adversarial, golden.nhwc(np.array(formula.expected[name])))
