"""HAG and SDHA: by hand, by loops, against released code; and CgAT's attack, which is PGD."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import mainstay
from saat_jax.attacks import optimized
from saat_jax.attacks.code_losses import alpha_schedule
from saat_jax.attacks.descent import pgd
from tests import golden, reference, tiny

WRAPS = [jax.jit, lambda function: function]
EPSILON = 8 / 255
# Adds up to float32 rounding of a pixel near 1.
ROUNDING = 1.2e-7
# An attack's name and whether it is targeted.
ATTACKS = [("hag", False), ("sdha", False), ("sdha", True)]


def _linear_encode(variables, images, alpha=1.0):
    """tanh(alpha * (W flatten_NCHW(x) + b)), the model of the "int_*" formulas."""
    weights, bias = variables
    flat = jnp.transpose(images, (0, 3, 1, 2)).reshape(images.shape[0], -1)
    product = jnp.matmul(flat, weights.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.tanh(alpha * (product + bias))


def _flat(images):
    """`[batch, ...]` NHWC images as rows in the order of `_linear_encode`."""
    return np.transpose(images, (0, 3, 1, 2)).reshape(len(images), -1).astype(np.float64)


@functools.cache
def _linear_problem():
    """An encoder, its variables, images, labels, and a bank of soft codes and their labels.

    Nothing in the bank is relevant to the first image.
    """
    rng = np.random.default_rng(0)
    variables = (
        rng.normal(size=(6, 27)).astype(np.float32),
        rng.normal(size=6).astype(np.float32),
    )
    # Whole grey levels; some at the walls of the box.
    levels = rng.integers(-20, 275, (5, 3, 3, 3)).clip(0, 255)
    bank_labels = (rng.random((40, 5)) < 0.3).astype(np.float32)
    bank_labels[:, 0] = 0
    bank = dict(
        code_bank=rng.uniform(-1, 1, (40, 6)).astype(np.float32),
        bank_labels=bank_labels,
    )
    images = (levels / 255).astype(np.float32)
    return _linear_encode, variables, images, np.eye(5, dtype=np.float32), bank


_encode = jax.jit(lambda encode_fn, *arrays: encode_fn(*arrays), static_argnums=0)
# All that is not listed is traced, so that the tests share what is compiled.
_COMPILED = {
    name: jax.jit(
        getattr(optimized, name), static_argnums=0, static_argnames=("targeted", "num_steps")
    )
    for name in ("hag", "sdha")
}


def _attack(problem, name, targeted, *, rows=slice(None), num_steps=6, rng=0, **more):
    """Runs an attack on some rows of a problem, with a step that does not saturate at once."""
    encode_fn, variables, images, labels, bank = problem
    images, guides = images[rows], labels[rows]
    options = dict(targeted=targeted, epsilon=EPSILON, num_steps=num_steps, batch_scale=4)
    options["alphas"] = alpha_schedule(num_steps)
    if name == "hag":
        guides = _encode(encode_fn, variables, images, 1.0)
        options["learning_rate"] = 1.0
    else:
        options.update(bank, learning_rate=0.004)
    key = jax.random.key(rng)
    attack = _COMPILED[name]
    return np.asarray(attack(encode_fn, variables, images, guides, key, **(options | more)))


# --- losses ---


@pytest.mark.parametrize("wrap", WRAPS)
def test_hag_loss_worked_by_hand(wrap):
    soft_codes = np.array([[0.5, -0.6, 0.2, -0.5]], np.float32)
    own_codes = np.array([[0.8, 0.9, -0.4, 0.6]], np.float32)
    # The second bit is settled, the last is on the margin.
    np.testing.assert_array_equal(wrap(optimized.hag_mask)(soft_codes, own_codes), [[1, 0, 1, 0.5]])
    agreement = (0.5 * 0.8 - 0.2 * 0.4 - 0.25 * 0.3) / 2.5
    expected = (agreement + 1) ** 2 + 3 * ((0.5 + 0.2 - 0.25) / 4) ** 2
    loss = wrap(functools.partial(optimized.hag_loss, balance_weight=3.0))(soft_codes, own_codes)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_hag_loss_of_settled_codes():
    own_codes = jnp.array([[0.9, -0.9], [0.9, 0.9]])
    loss, gradient = jax.value_and_grad(lambda x: optimized.hag_loss(x, own_codes).sum())(
        -own_codes
    )
    assert loss == 2
    np.testing.assert_array_equal(gradient, 0)


def _slow_surrogate(soft_code, relevant_codes, targeted, sharpness=None, exponent=None):
    """One example's surrogate, from the whole tensor of its relevant codes' bits."""
    sharpness = sharpness or (10 if targeted else 5)
    exponent = exponent or (-0.3 if targeted else 0.5)
    total = 0.0
    for code in relevant_codes:
        distance = sum((1 - np.sign(q) * r) / 2 for q, r in zip(soft_code, code, strict=True))
        for q, r in zip(np.float64(soft_code), np.float64(code), strict=True):
            agreeing = 1 / (1 + np.exp(-sharpness * q * r))
            if targeted:
                term = abs(q - r) / 2 * (1 - 1 / (1 + np.exp(-sharpness * q * r)))
            else:
                term = abs(q - r) / 2 * agreeing + 1 - agreeing
            total += term * (distance + 1e-8) ** -exponent / len(relevant_codes)
    return total if targeted else -total


def _surrogate_problem(seed):
    rng = np.random.default_rng(seed)
    soft_codes, own_codes = rng.uniform(-1, 1, (2, 4, 7)).astype(np.float32)
    code_bank = rng.uniform(-1, 1, (20, 7)).astype(np.float32)
    relevant = rng.random((4, 20)) < 0.4
    relevant[0] = False
    # A relevant code at distance zero, whose weight is 1e4; and one of many bits at zero.
    code_bank[0], relevant[1, 0] = soft_codes[1], True
    soft_codes[2, :3] = 0
    return soft_codes, own_codes, code_bank, relevant


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("options", [{}, dict(sharpness=3.0, exponent=0.2)])
def test_sdha_surrogate_matches_slow_truth(options, targeted):
    soft_codes, own_codes, code_bank, relevant = _surrogate_problem(0)
    surrogate = functools.partial(optimized.sdha_surrogate, targeted=targeted, **options)
    signs = np.where(code_bank >= 0, 1, -1)
    slow = functools.partial(_slow_surrogate, targeted=targeted, **options)
    expected = [slow(q, signs[rows]) for q, rows in zip(soft_codes, relevant, strict=True)]
    assert expected[0] == 0
    actual = jax.jit(surrogate)(soft_codes, code_bank, relevant)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Own codes stand in where nothing is relevant, and change nothing elsewhere.
    expected[0] = slow(soft_codes[0], np.sign(own_codes[:1]))
    actual = jax.jit(lambda *arrays: surrogate(*arrays, own_codes=own_codes))(
        soft_codes, code_bank, relevant
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_sdha_surrogate_worked_by_hand():
    # One bit, at 0: a soft distance of (1/2)(1/2) + 1/2, or (1/2)(1/2); at distance 1/2.
    for targeted, expected in [(False, -0.75 * 0.5**-0.5), (True, 0.25 * 0.5**0.3)]:
        surrogate = optimized.sdha_surrogate(
            np.zeros((1, 1), np.float32),
            np.ones((1, 1), np.float32),
            np.ones((1, 1), bool),
            targeted=targeted,
        )
        np.testing.assert_allclose(surrogate, [expected], rtol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_sdha_gradient_is_finite(targeted):
    soft_codes, own_codes, code_bank, relevant = _surrogate_problem(1)
    soft_codes[3] = np.sign(soft_codes[3])
    gradient = jax.grad(
        lambda x: optimized.sdha_surrogate(x, code_bank, relevant, targeted=targeted).sum()
    )(jnp.asarray(soft_codes))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[0], 0)


def test_sdha_surrogate_holds_no_tensor_of_all_bits_of_all_pairs():
    batch, bank_size, num_bits = 16, 50, 8
    jaxpr = jax.make_jaxpr(functools.partial(optimized.sdha_surrogate, targeted=False))(
        jnp.zeros((batch, num_bits)),
        jnp.ones((bank_size, num_bits)),
        jnp.ones((batch, bank_size), bool),
    )
    sizes = [out.aval.size for eqn in jaxpr.eqns for out in eqn.outvars]
    assert max(sizes) < batch * bank_size * num_bits / 4


def test_sdha_loss_worked_by_hand():
    images = np.zeros((1, 1, 2, 3), np.float32)
    adversarial = images.copy()
    adversarial[0, 0, 0] = 0.3
    codes = np.zeros((1, 2), np.float32)
    loss = optimized.sdha_loss(
        codes,
        adversarial,
        images,
        np.ones((1, 2), np.float32),
        np.ones((1, 1), bool),
        targeted=True,
        surrogate_weight=10.0,
    )
    # Two bits at zero, at distance 1 in all.
    np.testing.assert_allclose(loss, [0.09 / 2 + 10 / 2 * 2 * 0.25], rtol=1e-6)


# --- attacks ---


def _hag_slope(codes, own_code):
    mask = (1 + np.sign(1.5 - np.abs(codes - np.sign(own_code)))) / 2
    count = mask.sum() + 1e-8
    agreement = (mask**2 * codes * own_code).sum() / count
    balance = (mask * codes).mean()
    return 2 * (agreement + 1) * mask**2 * own_code / count + 2 * balance * mask / len(codes)


def _sdha_slope(codes, relevant_codes, targeted):
    """By central differences: the weights are constants there, as long as no sign changes."""
    steps = 1e-6 * np.eye(len(codes))
    ends = [[_slow_surrogate(codes + s * step, relevant_codes, targeted) for step in steps]
            for s in (1, -1)]  # fmt: skip
    return (np.array(ends[0]) - ends[1]) / 2e-6


def _slow_attack(variables, image, slope_fn, *, name, alphas, batch_scale, learning_rate):
    """A slow, float64 attack on one flat image of the linear model."""
    weights, bias = np.float64(variables[0]), np.float64(variables[1])
    adversarial, first, second = image, np.zeros_like(image), np.zeros_like(image)
    for step, alpha in enumerate(alphas, start=1):
        codes = np.tanh(alpha * (weights @ adversarial + bias))
        gradient = (slope_fn(codes) * (1 - codes**2) * alpha) @ weights
        if name == "hag":
            first = 0.9 * first + gradient / batch_scale
            change = first
        else:
            gradient = gradient * 25 / len(codes) + 2 * (adversarial - image) / image.size
            gradient = gradient / batch_scale
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            change = first / (1 - 0.9**step)
            change = change / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        adversarial = adversarial - learning_rate * change
        adversarial = np.clip(np.clip(adversarial, image - EPSILON, image + EPSILON), 0, 1)
    return adversarial


@pytest.mark.parametrize("name, targeted", ATTACKS)
def test_attack_matches_slow_truth(name, targeted):
    problem = encode_fn, variables, images, labels, bank = _linear_problem()
    signs = np.where(bank["code_bank"] >= 0, 1, -1)
    own_codes = np.float64(_encode(encode_fn, variables, images, 1.0))
    expected = []
    for row, image in enumerate(_flat(images)):
        if name == "hag":
            slope_fn = functools.partial(_hag_slope, own_code=own_codes[row])
        else:
            relevant = signs[np.array(reference.relevance(labels[row], bank["bank_labels"])) > 0]
            if not targeted and len(relevant) == 0:
                relevant = np.sign(own_codes[row : row + 1])
            slope_fn = functools.partial(_sdha_slope, relevant_codes=relevant, targeted=targeted)
        expected.append(
            _slow_attack(
                variables,
                image,
                slope_fn,
                name=name,
                alphas=np.float64(alpha_schedule(6)),
                batch_scale=4,
                learning_rate=1.0 if name == "hag" else 0.004,
            )
        )
    actual = _flat(_attack(problem, name, targeted))
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    np.testing.assert_array_equal(_attack(problem, name, targeted, num_steps=0), images)
    # The relevant set of the first row is empty.
    assert np.all(actual[0] == _flat(images)[0]) == (name == "sdha" and targeted)


@pytest.mark.parametrize("name, targeted", ATTACKS)
def test_attack_stays_in_ball_and_box_after_rounding(name, targeted):
    problem = _linear_problem()
    images = problem[2]
    # A radius and steps that are no whole levels.
    adversarial = _attack(problem, name, targeted, learning_rate=100.0, epsilon=4.3 / 255)
    assert adversarial.dtype == images.dtype and adversarial.shape == images.shape
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert np.abs(adversarial - images).max() <= 4.3 / 255 + ROUNDING
    assert np.abs(adversarial - images).max() > 4 / 255
    levels = np.round(adversarial * 255).astype(np.uint8).astype(int)
    assert np.abs(levels - np.round(images * 255)).max() <= 4


@pytest.mark.parametrize("name, targeted", ATTACKS)
def test_attack_is_the_same_for_any_key(name, targeted):
    once, twice, other = (_attack(_linear_problem(), name, targeted, rng=rng) for rng in (1, 1, 2))
    assert once.tobytes() == twice.tobytes() == other.tobytes()


@pytest.mark.parametrize("name, targeted", ATTACKS)
def test_images_do_not_influence_each_other(name, targeted):
    problem = _linear_problem()
    together = _attack(problem, name, targeted)
    # In company of other images, at the same batch size: to the bit.
    order = np.array([0, 3, 3, 1, 1])
    np.testing.assert_array_equal(_attack(problem, name, targeted, rows=order), together[order])
    # In another batch size XLA's kernels may sum in another order.
    for row in range(len(together)):
        alone = _attack(problem, name, targeted, rows=[row])
        assert np.mean(np.abs(alone[0] - together[row]) < 1e-6) >= 0.99


def test_batch_scale_divides_the_step_of_hag():
    problem = _linear_problem()
    small = _attack(problem, "hag", False, batch_scale=2, learning_rate=3.0)
    large = _attack(problem, "hag", False, batch_scale=8, learning_rate=12.0)
    np.testing.assert_allclose(small, large, atol=1e-6)
    assert np.any(small != _attack(problem, "hag", False, batch_scale=8, learning_rate=3.0))


@pytest.mark.parametrize("name, targeted", ATTACKS)
def test_attack_succeeds(name, targeted):
    encode_fn, variables, images, labels, bank = problem = _linear_problem()
    options = dict(learning_rate=100.0) if name == "hag" else {}
    adversarial = _attack(problem, name, targeted, num_steps=50, batch_scale=3, **options)
    before, after = (_encode(encode_fn, variables, x, 1.0) for x in (images, adversarial))
    if name == "hag":
        goals = -np.sign(before)
    else:
        goals = np.array(mainstay.consensus_codes(labels, np.sign(bank["code_bank"]),
                                                  bank["bank_labels"]))  # fmt: skip
        goals = goals if targeted else -goals
    assert np.sum(after * goals) > np.sum(before * goals)


def test_targeted_hag_is_refused():
    with pytest.raises(ValueError, match="targeted=False only, got True.*use sdha"):
        _attack(_linear_problem(), "hag", True)


@pytest.mark.parametrize("name", ["hag", "sdha"])
def test_bad_input_is_refused(name):
    encode_fn, variables, images, labels, bank = problem = _linear_problem()
    with pytest.raises(ValueError, match=r"each of the 6 steps.*\(3,\).*alpha_schedule\(6\)"):
        _attack(problem, name, False, alphas=alpha_schedule(3))
    levels = np.round(images * 255).astype(np.uint8)
    with pytest.raises(ValueError, match="floats in .*uint8; divide by 255"):
        _attack((encode_fn, variables, levels, labels, bank), name, False)


def test_alphas_default_to_one():
    default, given = (
        _attack(_linear_problem(), "hag", False, alphas=alphas)
        for alphas in (None, np.ones(6, np.float32))
    )
    np.testing.assert_array_equal(default, given)


@pytest.mark.parametrize("name", ["hag", "sdha"])
def test_no_retrace_across_batches(name):
    encode_fn, variables, images, labels, bank = _linear_problem()
    own_codes = _encode(encode_fn, variables, images, 1.0)
    guides, options = (labels, bank) if name == "sdha" else (own_codes, {})
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def attack(images, guides, rng):
        return getattr(optimized, name)(
            encode_fn,
            variables,
            images,
            guides,
            rng,
            targeted=False,
            epsilon=EPSILON,
            num_steps=2,
            **options,
        )

    for seed in range(3):
        attack(np.random.default_rng(seed).permutation(images), guides, jax.random.key(seed))


# --- against the released code ---


def test_golden_hag_loss():
    case = golden.load("hag_loss")
    rtol = case.tolerance("rel")
    runs = [re.fullmatch(r"loss_t(.+)_b(.+)", key) for key in case.arrays]
    for threshold, weight in [run.groups() for run in runs if run]:
        suffix = f"t{threshold}_b{weight}"
        codes, own_codes = jnp.asarray(case["adv_code"]), case["ori_code"]
        mask = optimized.hag_mask(codes, own_codes, threshold=float(threshold))
        np.testing.assert_array_equal(mask, case[f"mask_{suffix}"])
        loss, gradient = jax.value_and_grad(
            lambda x, own=own_codes, **options: optimized.hag_loss(x, own, **options).mean()
        )(codes, threshold=float(threshold), balance_weight=float(weight))
        np.testing.assert_allclose(loss, case[f"loss_{suffix}"], rtol=rtol)
        expected = case[f"grad_{suffix}"]
        np.testing.assert_allclose(gradient, expected, rtol, rtol * np.abs(expected).max())


def test_golden_formula_hag_loss():
    formula = golden.formula("hag_loss")
    codes, own_codes = (jnp.array(formula.inputs[key]) for key in ("adv", "ori"))
    formula.assert_close(optimized.hag_mask(codes, own_codes), formula.expected["mask"])
    loss, gradient = jax.value_and_grad(lambda x: optimized.hag_loss(x, own_codes).mean())(codes)
    formula.assert_close(loss, formula.expected["loss"])
    formula.assert_close(gradient, formula.expected["grad"])


def _assert_close(actual, expected, rtol):
    np.testing.assert_allclose(actual, expected, rtol, rtol * np.abs(expected).max())


def test_golden_sdha_losses():
    case = golden.load("sdha_losses")
    rtol = case.tolerance("rel")
    codes, own_codes = jnp.asarray(case["h_hat"]), case["h"]
    relevant = case["g_similarity"][case["idx"]] > 0

    @functools.partial(jax.jit, static_argnames="targeted")
    @jax.value_and_grad
    def surrogate(codes, relevant, **options):
        return optimized.sdha_surrogate(codes, case["g_code"], relevant, **options).mean()

    constants = case.constants
    loss, gradient = surrogate(
        codes,
        relevant,
        targeted=False,
        own_codes=own_codes,
        sharpness=constants["sigma"],
        exponent=constants["z"],
    )
    np.testing.assert_allclose(loss, case["surrogate"], rtol=rtol)
    _assert_close(gradient, case["surrogate_grad"], rtol)
    rows = case["rows_with_positives"]
    loss, gradient = surrogate(
        codes[rows],
        relevant[rows],
        targeted=True,
        sharpness=constants["sigma_targeted"],
        exponent=constants["z_targeted"],
    )
    np.testing.assert_allclose(loss, case["surrogate_targeted"], rtol=rtol)
    _assert_close(gradient, case["surrogate_targeted_grad"], rtol)
    # The mean is over nothing in the released code, and counts as nothing here.
    assert len(rows) == len(codes) or np.isnan(case["surrogate_targeted_all"])
    whole, _ = surrogate(codes, relevant, targeted=True)
    np.testing.assert_allclose(whole, loss * len(rows) / len(codes), rtol=rtol)

    weight = re.fullmatch(r"(.+)/K", str(constants["alpha"]))
    assert weight

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(codes, adversarial):
        return optimized.sdha_loss(
            codes,
            adversarial,
            golden.nhwc(case["x"]),
            case["g_code"],
            relevant,
            targeted=False,
            own_codes=own_codes,
            surrogate_weight=float(weight[1]),
        ).mean()

    loss, (code_gradient, gradient) = total(codes, golden.nhwc(case["x_hat"]))
    np.testing.assert_allclose(loss, case["sdha_loss"], rtol=rtol)
    _assert_close(code_gradient, case["sdha_grad_h_hat"], rtol)
    _assert_close(gradient, golden.nhwc(case["sdha_grad_x_hat"]), rtol)


def _bank_of(groups):
    """A bank in which the rows relevant to example i are `groups[i]`, and the labels of it."""
    sizes = [len(group) for group in groups]
    labels = np.eye(len(groups), dtype=np.float32)
    bank = dict(
        code_bank=np.concatenate(groups).astype(np.float32),
        bank_labels=np.repeat(labels, sizes, axis=0),
    )
    return labels, bank


def test_golden_formula_sdha_surrogate():
    formula = golden.formula("sdha_surrogate")
    codes = jnp.array(formula.inputs["q"])
    labels, bank = _bank_of([np.array(group) for group in formula.inputs["relevant"]])
    relevant = labels @ bank["bank_labels"].T > 0
    for kind in ("nontargeted", "targeted"):
        surrogate = functools.partial(optimized.sdha_surrogate, targeted=kind == "targeted")
        loss, gradient = jax.jit(
            jax.value_and_grad(lambda x, f=surrogate: f(x, bank["code_bank"], relevant).mean())
        )(codes)
        formula.assert_close(loss, formula.expected[kind])
        formula.assert_close(gradient, formula.expected[f"{kind}_grad"])


def _int_problem(formula):
    """The images, the linear model and its attack's common options."""
    inputs = formula.inputs
    images = golden.nhwc(np.array(inputs["x_NCHW"], np.float32))
    variables = np.array(inputs["W"], np.float32), np.array(inputs["b"], np.float32)

    def attack(name, guides, targeted, num_steps, **options):
        return _COMPILED[name](
            _linear_encode,
            variables,
            images,
            guides,
            jax.random.key(0),
            targeted=targeted,
            epsilon=inputs["eps"],
            num_steps=num_steps,
            alphas=alpha_schedule(inputs["T"])[:num_steps],
            batch_scale=len(images),
            **options,
        )

    return attack, functools.partial(_linear_encode, variables), images


def test_golden_formula_int_hag():
    formula = golden.formula("int_hag")
    attack, encode, images = _int_problem(formula)
    own_codes, num_steps = encode(images), formula.inputs["T"]
    adversarial = attack("hag", own_codes, False, num_steps)
    formula.assert_close(adversarial, golden.nhwc(np.array(formula.expected["x_adv"])))
    np.testing.assert_array_equal(np.sign(encode(adversarial)), formula.expected["code_of_x_adv"])
    # What the released code reports: the codes before the last step.
    last = encode(attack("hag", own_codes, False, num_steps - 1))
    formula.assert_close(last, formula.expected["last_forward"])
    np.testing.assert_array_equal(np.sign(last), formula.expected["code"])


@pytest.mark.parametrize("kind", ["nontargeted", "targeted"])
def test_golden_formula_int_sdha(kind):
    formula = golden.formula("int_sdha")
    attack, encode, _ = _int_problem(formula)
    labels, bank = _bank_of([np.array(group) for group in formula.inputs["relevant"]])
    num_steps = formula.inputs["T"]
    adversarial = attack("sdha", labels, kind == "targeted", num_steps, **bank)
    formula.assert_close(adversarial, golden.nhwc(np.array(formula.expected[f"x_adv_{kind}"])))
    last = encode(attack("sdha", labels, kind == "targeted", num_steps - 1, **bank))
    formula.assert_close(last, formula.expected[f"last_forward_{kind}"])


def _golden_run(case, name, guides, num_steps, **options):
    """The attack of a case for as many steps, and the images before each of them."""
    images, seen = golden.nhwc(case["images"]), []
    encode_fn, variables = _golden_encoder(case)

    def spying_encode_fn(variables, images, alpha):
        jax.debug.callback(seen.append, images, ordered=True)
        return encode_fn(variables, images, alpha)

    adversarial = _COMPILED[name](
        spying_encode_fn,
        variables,
        images,
        guides,
        jax.random.key(0),
        epsilon=case.constants["eps"],
        num_steps=num_steps,
        alphas=alpha_schedule(num_steps),
        learning_rate=case.constants["lr"],
        batch_scale=len(images),
        **options,
    )
    jax.effects_barrier()
    return np.asarray(adversarial), np.stack(seen[-num_steps:])


def _golden_encoder(case):
    weights = case.group("w0.")
    return tiny.tiny_net(weights).apply, tiny.tiny_variables(weights)


def _golden_steps(case):
    return sorted(int(key[len("adv_T") :]) for key in case.arrays if key.startswith("adv_T"))


def _assert_last_codes(codes, expected):
    """The codes that the released code reports are those before the last step."""
    clear = np.abs(codes) > 1e-3
    np.testing.assert_array_equal(np.sign(codes)[clear], expected[clear])
    assert clear.mean() > 0.9


def test_golden_hag_attack():
    case = golden.load("hag_attack")
    own_codes = _encode(*_golden_encoder(case), golden.nhwc(case["images"]), 1.0)
    np.testing.assert_array_equal(np.sign(own_codes), case["h"])
    constants = case.constants
    options = dict(threshold=constants["threshold_t"], balance_weight=constants["beta"])
    loss = jax.jit(lambda codes: optimized.hag_loss(codes, own_codes, **options).mean())
    for num_steps in _golden_steps(case):
        adversarial, before = _golden_run(
            case,
            "hag",
            own_codes,
            num_steps,
            targeted=False,
            momentum=constants["momentum"],
            **options,
        )
        few = num_steps <= case.tolerance("at T<=")
        atol = case.tolerance("adv abs" if few else ", ")
        expected = golden.nhwc(case[f"adv_T{num_steps}"])
        np.testing.assert_allclose(adversarial, expected, rtol=0, atol=atol)
        codes = [
            _encode(*_golden_encoder(case), x, alpha)
            for x, alpha in zip(before, alpha_schedule(num_steps), strict=True)
        ]
        rtol = case.tolerance("loss rel")
        np.testing.assert_allclose([loss(x) for x in codes], case[f"loss_T{num_steps}"], rtol)
        _assert_last_codes(codes[-1], case[f"h_hat_T{num_steps}"])


@pytest.mark.parametrize("name", ["sdha_attack", "sdha_attack_targeted"])
def test_golden_sdha_attack(name):
    case = golden.load(name)
    targeted = name == "sdha_attack_targeted"
    images = golden.nhwc(case["images"])
    relevant = case["g_similarity"][case.constants["idx"]] > 0
    # Labels by which just these are relevant.
    labels = np.eye(len(images), dtype=np.float32)
    bank = dict(code_bank=case["g_code"], bank_labels=relevant.T.astype(np.float32))
    theory = mainstay.consensus_codes(
        labels, np.sign(bank["code_bank"]), bank["bank_labels"], ties="zero"
    )
    np.testing.assert_array_equal(theory if targeted else -theory, case["theory_code"])

    @jax.jit
    def loss(codes, adversarial):
        return optimized.sdha_loss(
            codes,
            adversarial,
            images,
            bank["code_bank"],
            relevant,
            targeted=targeted,
            own_codes=None if targeted else case["h"],
        ).mean()

    for num_steps in _golden_steps(case):
        adversarial, before = _golden_run(
            case, "sdha", labels, num_steps, targeted=targeted, **bank
        )
        equal = np.abs(adversarial - golden.nhwc(case[f"adv_T{num_steps}"]))
        share = np.mean(equal < case.tolerance("pixels with |diff|<"))
        assert share >= case.tolerance(": >="), num_steps
        codes = [
            _encode(*_golden_encoder(case), x, alpha)
            for x, alpha in zip(before, alpha_schedule(num_steps), strict=True)
        ]
        losses = [loss(*step) for step in zip(codes, before, strict=True)]
        rtol = case.tolerance("loss rel")
        np.testing.assert_allclose(losses, case[f"loss_T{num_steps}"], rtol)
        _assert_last_codes(codes[-1], case[f"h_hat_T{num_steps}"])


@pytest.mark.parametrize("random_start", [True, False])
def test_golden_cgat_attack(random_start):
    case = golden.load("cgat_attack")
    weights = case.group("w0.")
    images = golden.nhwc(case["images"])
    noise = golden.nhwc(case["uniform_delta"]) if random_start else 0
    adversarial = jax.jit(
        functools.partial(
            pgd,
            tiny.tiny_net(weights).apply,
            epsilon=case.constants["eps"],
            step_size=case.constants["step"] / 255,
            num_steps=case.constants["iteration"],
            targeted=False,
            loss="mean",
        )
    )(
        tiny.tiny_variables(weights),
        images,
        case["target_code"],
        jax.random.key(0),
        start=images + noise,
    )
    expected = golden.nhwc(case["adv" if random_start else "adv_norandom"])
    equal = np.abs(adversarial - expected) < case.tolerance("|diff|<")
    assert equal.mean() >= case.tolerance(">=")
