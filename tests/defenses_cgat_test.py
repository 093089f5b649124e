"""CgAT: by hand, against the released code, over devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import (
    attacks,
    defenses,
    mainstay,
    networks,
    objectives,
    optimizers,
    parallel,
)
from tests import defenses_test, golden, tiny
from tests.defenses_test import BANK_SIZE, DPH, NUM_BITS, LinearNet, MeetingNet

CGAT = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 1}
_on_one_device = defenses_test._on_one_device
_on_all_devices = defenses_test._on_all_devices
_batch = defenses_test._batch


@functools.cache
def _case():
    """(update, first state) on the network in which rows could meet."""
    model, optimizer = MeetingNet(NUM_BITS), defenses_test._optimizer()
    update = defenses.make_cgat_update(model, DPH, optimizer, seed=3, **CGAT)
    return update, defenses_test._state(model, optimizer, saat=True)


@pytest.mark.parametrize("bank", ["aliased", "sign"])
def test_update_worked_by_hand(bank):
    # One image of one bit, u = 0.5, that replaces a row of -1 in the bank. Of its label are
    # this row and one of -0.6; of another label one of 0.3 and one of 0. Soft codes: their
    # mean -0.05 less 0.15 is negative. Codes: 0.2 less 0.15 is positive.
    weight = np.arctanh(0.5).astype(np.float32)
    params = {"hash": {"kernel": np.array([[weight], [0], [0]]), "bias": np.zeros(1, np.float32)}}
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    start = objectives.CodeBank(np.array([[-1], [-0.6], [0.3], [0]], np.float32), labels)
    optimizer = optax.sgd(1.0)
    first = defenses.DEFENSES["cgat"].first_state(
        {"params": params},
        optimizer,
        DPH.init(jax.random.key(0), labels, 1),
        start,
        labels,
        jax.random.key(0),
    )
    chex.assert_trees_all_equal(first.objective.bank, first.code_bank, start)
    update = defenses.make_cgat_update(
        LinearNet(1),
        DPH,
        optimizer,
        seed=0,
        epsilon=0.0,
        step_size=0.0,
        num_steps=0,
        adversarial_weight=2.0,
        bank=bank,
    )
    batch = {
        "image": np.array([1, 0, 0], np.float32).reshape(1, 1, 1, 3),
        "label": labels[:1],
        "index": np.array([0], np.int32),
        "mask": np.ones(1, np.float32),
    }
    state, metrics = _on_one_device(update)(first, batch | {"start": batch["image"]})
    agreement = 0.5 if bank == "sign" else -0.5
    np.testing.assert_allclose(metrics["adversarial_loss"], -agreement, rtol=1e-6)
    # Products with the bank (0.5, -0.6, 0.3, 0), wanted (1, 1, -1, -1).
    expected = (0.75**2 + 1.3**2 + 1.15**2 + 1) / 4
    np.testing.assert_allclose(metrics["objective_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected - 2 * agreement, rtol=1e-6)
    code = 1 if bank == "sign" else 0.5
    np.testing.assert_allclose(state.code_bank.codes, [[code], [-0.6], [0.3], [0]], rtol=1e-6)
    np.testing.assert_allclose(state.objective.bank.codes[0], [0.5], rtol=1e-6)


def test_without_a_bank_of_the_objective_the_codes_are_soft_all_the_same():
    objective = objectives.create_objective("csq", random_centers=True)
    model, optimizer = LinearNet(NUM_BITS), optax.sgd(0.1)
    update = defenses.make_cgat_update(model, objective, optimizer, seed=0, **CGAT)
    first, batch = defenses_test._state(model, optimizer, saat=True), _batch(0)
    remembered = objective.init(jax.random.key(1), first.code_bank.labels, NUM_BITS)
    first = defenses.init_minimax_state(
        {"params": first.params},
        optimizer,
        remembered,
        first.code_bank,
        first.code_bank.labels,
        jax.random.key(0),
    )
    state, metrics = _on_one_device(update)(first, batch | {"start": batch["image"]})
    chex.assert_tree_all_finite((state, metrics))
    seen = np.isin(np.arange(BANK_SIZE), batch["index"][batch["mask"] > 0])
    assert np.abs(state.code_bank.codes[seen]).max() < 1
    np.testing.assert_array_equal(state.code_bank.codes[~seen], first.code_bank.codes[~seen])
    assert state.objective.bank is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bank": "soft"}, "unknown bank 'soft'"),
        (
            {"attack_mode": "test"},
            "unknown attack_mode 'test'",
        ),
        ({"ties": "none"}, "unknown ties 'none'"),
        ({"epsilon": -1.0}, "epsilon must be a number from 0 to 1, got -1"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        defenses.make_cgat_update(LinearNet(2), DPH, optax.sgd(1.0), seed=0, **(CGAT | wrong))


def test_state_without_a_bank_is_refused():
    update, first = _case()
    with pytest.raises(ValueError, match="needs a code_bank in its state; see init_minimax_state"):
        update(first.replace(code_bank=None), _batch(0), axis_name=parallel.AXIS)


def test_defense_is_listed():
    assert defenses.DEFENSES["cgat"].make_update is defenses.make_cgat_update


# --- devices and padding ---


@functools.cache
def _runner(devices):
    return {1: _on_one_device, 8: _on_all_devices}[devices](_case()[0])


@pytest.mark.parametrize("num_real", [16, 13, 3])
def test_one_device_and_eight_agree(num_real):
    assert jax.local_device_count() == 8
    state, batch = _case()[1], _batch(num_real, num_real=num_real)
    one, eight = _runner(1)(state, batch), _runner(8)(state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(one, eight)
    chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=2e-6)


def test_padding_has_no_influence():
    state, batch = _case()[1], _batch(5, num_real=11)
    padding = batch["mask"] == 0
    rubbish = {name: values.copy() for name, values in batch.items()}
    shape = batch["image"][padding].shape
    rubbish["image"][padding] = np.random.default_rng(1).normal(9, 99, shape)
    rubbish["label"][padding] = 1
    chex.assert_trees_all_equal(_runner(8)(state, rubbish), _runner(8)(state, batch))


# --- against the released code ---


@pytest.mark.parametrize("name", ["dph", "dpsh"])
def test_golden_train_cgat(name):
    case = golden.load(f"train_cgat_{name}")
    constants, (num_steps, size) = case.constants, case["index"].shape
    weights = case.group("w0.")
    schedule = optimizers.milestone_schedule(constants["lr"], num_steps=num_steps)
    optimizer = optimizers.make_optimizer(
        "sgd",
        schedule,
        num_steps=num_steps,
        momentum=constants["momentum"],
        weight_decay=constants["weight_decay"],
    )
    options = {"eta": constants["eta"], "normalizer": "bits"} if name == "dpsh" else {}
    objective = objectives.create_objective(name, **options)
    model, variables = tiny.tiny_net(weights), tiny.tiny_variables(weights)
    encode_fn, images = networks.make_encode_fn(model), golden.nhwc(case["images"])
    codes = jnp.sign(encode_fn(variables, images))
    np.testing.assert_array_equal(codes, case["B_ben_before"][0])
    state = defenses.init_minimax_state(
        variables,
        optimizer,
        objective.init(jax.random.key(0), case["labels"], codes.shape[1]),
        objectives.CodeBank(codes, case["labels"]),
        case["labels"],
        jax.random.key(0),
    )
    settings = {
        "epsilon": constants["eps"],
        "step_size": constants["step"] / 255,
        "num_steps": constants["iteration"],
    }
    update = defenses.make_cgat_update(model, objective, optimizer, seed=0, ties="zero", **settings)
    run = _on_one_device(update)
    attack = jax.jit(
        functools.partial(attacks.pgd, encode_fn, targeted=False, loss="mean", **settings)
    )
    rtol, atol = case.tolerance("losses rel"), case.tolerance("weights max abs")

    def assert_centers(batch, bank, expected):
        votes = mainstay.center_votes(batch["label"], bank, case["labels"])
        # A vote near zero may round either way.
        sure = (np.abs(votes) > 10 * atol) | (votes == 0)
        centers = np.asarray(
            mainstay.center_codes(batch["label"], bank, case["labels"], ties="zero")
        )
        real = batch["mask"] > 0
        np.testing.assert_array_equal(centers[real][sure[real]], expected[real][sure[real]])

    for step in range(num_steps):
        np.testing.assert_allclose(schedule(step), case["lr"][step], rtol=1e-9)
        batch = defenses_test._golden_batch(case, images, step, size)
        batch["start"] = batch["image"] + golden.nhwc(case["uniform_delta"][step])
        real, before = batch["mask"] > 0, state
        # A code sums over a layer of weights.
        np.testing.assert_allclose(
            before.code_bank.codes, case["B_ben_before"][step], atol=10 * atol
        )
        assert_centers(batch, before.code_bank.codes, case["center_attack"][step])
        adversarial = attack(
            {"params": before.params},
            batch["image"],
            case["center_attack"][step],
            jax.random.key(0),
            start=batch["start"],
        )
        difference = np.abs(adversarial - golden.nhwc(case["x_adv"][step]))[real]
        assert np.mean(difference < 1e-6) >= case.tolerance("x_adv >=")
        state, metrics = run(state, batch)
        assert_centers(batch, state.code_bank.codes, case["center_outer"][step])
        for term, key in (("loss", "loss"), ("objective_loss", "ben"), ("adversarial_loss", "adv")):
            np.testing.assert_allclose(
                metrics[term], case[key][step], rtol=rtol, atol=rtol, err_msg=term
            )
        if (step + 1) % (num_steps // constants["epochs"]) == 0:
            epoch = step * constants["epochs"] // num_steps
            defenses_test._assert_weights(state.params, case, epoch, atol)
    np.testing.assert_allclose(state.code_bank.codes, case["bank_end"], atol=10 * atol)
    chex.assert_trees_all_equal(state.code_bank, state.objective.bank)
