"""Training updates: plain hashing and SAAT, by hand, against the released code, over devices."""

import functools
import inspect

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from saat_jax import (
    attacks,
    defenses,
    hamming,
    mainstay,
    networks,
    objectives,
    optimizers,
    parallel,
    retrieval,
    training,
)
from saat_jax.defenses import common, saat
from tests import golden, reference, tiny

DPH = objectives.create_objective("dph")
SAAT = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 1}
BANK_SIZE, NUM_BITS, NUM_CLASSES = 20, 6, 4


class LinearNet(nn.Module):
    """tanh(alpha * (W x + b)) of the pixels in (C, H, W) order."""

    num_bits: int

    @nn.compact
    def __call__(self, images, alpha=1.0, *, training=None):
        pixels = networks.flatten_channels_first(images)
        return jnp.tanh(alpha * networks.Dense(self.num_bits, name="hash")(pixels))


class MeetingNet(nn.Module):
    """Has the layers in which rows of a batch could influence each other, or draw noise."""

    num_bits: int

    @nn.compact
    def __call__(self, images, alpha=1.0, *, training=None):
        x = networks.Conv(4, 3, padding=1, name="conv")(images)
        x = jnp.tanh(networks.BatchNorm(name="norm")(x, training))
        x = networks.dropout(x.reshape(len(x), -1), training, rate=0.5, layer=0)
        return jnp.tanh(alpha * networks.Dense(self.num_bits, name="hash")(x))


def _on_one_device(update):
    """The update as `parallel.map_update` maps it, over the first device alone."""
    mapped = jax.pmap(
        functools.partial(update, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS,
        devices=jax.devices()[:1],
    )

    def run(state, batch):
        row = functools.partial(jax.tree.map, lambda x: np.asarray(x)[None])
        return jax.tree.map(lambda x: np.asarray(x)[0], mapped(row(state), row(batch)))

    return run


def _on_all_devices(update):
    """The update over all devices; it fails where replicas differ or it is traced again."""
    traces = []

    def traced_once(state, batch, *, axis_name):
        traces.append(batch["image"].shape)
        assert len(traces) == 1
        return update(state, batch, axis_name=axis_name)

    mapped = parallel.map_update(traced_once)

    def run(state, batch):
        end = mapped(parallel.replicate(state), parallel.shard_batch(batch))
        assert parallel.replicas_agree(end)
        return parallel.unreplicate(end[0]), parallel.unreplicate(end[1])

    return run


def _optimizer(learning_rate=0.1, momentum=0.9, **more):
    settings = {"num_steps": 1, "momentum": momentum, "weight_decay": 5e-4, **more}
    return optimizers.make_optimizer("sgd", lambda _: learning_rate, **settings)


def _state(model, optimizer, *, saat, image_size=8):
    rng = np.random.default_rng(0)
    codes = rng.choice([-1.0, 1.0], (BANK_SIZE, NUM_BITS)).astype(np.float32)
    labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.4).astype(np.float32)
    bank = objectives.CodeBank(codes, labels)
    variables = networks.init_variables(model, jax.random.key(0), image_size=image_size)
    return defenses.init_state(
        variables, optimizer, objectives.State(bank=bank), bank if saat else None
    )


def _batch(seed, *, num_real=13, rows=16, image_size=8):
    """A batch of which the last rows are padding, so that 8 devices get unequal shares."""
    rng = np.random.default_rng(seed)
    mask = np.arange(rows) < num_real
    index = np.append(rng.permutation(BANK_SIZE), [BANK_SIZE] * rows)[:rows]
    return {
        "image": rng.random((rows, image_size, image_size, 3), np.float32),
        "label": (rng.random((rows, NUM_CLASSES)) < 0.4).astype(np.float32),
        "index": np.where(mask, index, BANK_SIZE).astype(np.int32),
        "mask": mask.astype(np.float32),
    }


@functools.cache
def _case(kind):
    """(update, first state) of a kind, on the network in which rows could meet."""
    model, optimizer = MeetingNet(NUM_BITS), _optimizer()
    state = _state(model, optimizer, saat=kind != "hashing")
    if kind == "hashing":
        return defenses.make_hashing_update(model, DPH, optimizer, seed=3), state
    if kind == "teacher":
        settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 1}
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        first = (variables, optimizer, state.objective, state.code_bank, None, None)
        update = defenses.make_teacher_update(model, DPH, optimizer, seed=3, **settings)
        return update, defenses.init_teacher_state(*first)
    if kind == "stronger":
        optimizer = _optimizer(average=0.9)
        settings = SAAT | {
            "objective_weight": 0.5,
            "ramp_steps": 3,
            "weight_perturbation": 0.01,
            "random_radius": True,
            "warmup_steps": 3,
        }
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        first = (variables, optimizer, state.objective, state.code_bank, None, None)
        update = defenses.make_saat_update(model, DPH, optimizer, seed=3, **settings)
        return update, defenses.init_minimax_state(*first, teacher=True)
    steps = {"saat": 1, "saat7": 7}[kind]
    settings = SAAT | {"num_steps": steps}
    return defenses.make_saat_update(model, DPH, optimizer, seed=3, **settings), state


@functools.cache
def _runner(kind, devices):
    return {1: _on_one_device, 8: _on_all_devices}[devices](_case(kind)[0])


def _assert_same_bits(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# --- plain hashing ---


def test_hashing_update_worked_by_hand():
    # One bit, two unlike images. With tanh(w) = 0.5 their codes are u = (0.5, -0.5), so that
    # u_i u_j = (0.25, -0.25; -0.25, 0.25) against (1, -1; -1, 1): each row loses 0.75^2.
    # d loss_1 / d u_1 = mean_j 2 (u_1 u_j - s_1j) u_j = (2 * -0.75 * 0.5 + 2 * 0.75 * -0.5) / 2
    # = -0.75; halved by the mean over rows, times 1 - u^2 = 0.75: -0.28125 for the weight of
    # the first pixel and, by symmetry, +0.28125 for that of the second. The bias gets both.
    weight = np.arctanh(0.5)
    params = {"hash": {"kernel": np.array([[weight], [-weight], [0]]), "bias": np.zeros(1)}}
    params = jax.tree.map(np.float32, params)
    optimizer = optax.sgd(1.0)
    state = defenses.init_state(
        {"params": params}, optimizer, DPH.init(jax.random.key(0), np.zeros((4, 2)), 1)
    )
    batch = {
        "image": np.eye(3, dtype=np.float32)[[0, 1, 2]].reshape(3, 1, 1, 3),
        "label": np.array([[1, 0], [0, 1], [1, 1]], np.float32),
        "index": np.array([3, 0, 4], np.int32),
        "mask": np.array([1, 1, 0], np.float32),
    }
    # The two rows of the bank that nobody has seen cost (0 + 1)^2 each.
    expected_loss = (2 * 0.75**2 + 2) / 4
    expected_step = 0.28125 * 2 / 4
    update = defenses.make_hashing_update(LinearNet(1), DPH, optimizer, seed=0)
    state, metrics = _on_one_device(update)(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=1e-6)
    kernel = [[weight + expected_step], [-weight - expected_step], [0]]
    np.testing.assert_allclose(state.params["hash"]["kernel"], kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.params["hash"]["bias"], [0], atol=1e-7)
    np.testing.assert_allclose(state.objective.bank.codes, [[-0.5], [0], [0], [0.5]], rtol=1e-6)
    np.testing.assert_array_equal(state.objective.bank.labels, [[0, 1], [0, 0], [0, 0], [1, 0]])
    assert state.step == 1 and state.step.dtype == np.int32
    assert state.code_bank is None


def _recorded(case, objective):
    """The objective's first state, with the random draws of the recorded run."""
    num_bits = len(case["w0.fc.bias"])
    state = objective.init(jax.random.key(0), case["labels"], num_bits)
    if "hash_targets" in case.arrays:
        state = state.replace(class_codes=case["hash_targets"], tie_code=case["random_center"])
    return state


def _golden_hashing(case, objective, schedule, phrase):
    """Trains as the recorded run did, checking losses and weights; returns the last state."""
    constants, (num_steps, size) = case.constants, case["index"].shape
    steps_per_epoch = num_steps // constants["n_epochs"]
    weights = case.group("w0.")
    schedule = optimizers.make_schedule(
        schedule,
        constants["lr"],
        num_epochs=constants["n_epochs"],
        steps_per_epoch=steps_per_epoch,
    )
    optimizer = optimizers.make_optimizer(
        "sgd",
        schedule,
        num_steps=num_steps,
        momentum=constants["momentum"],
        weight_decay=constants["weight_decay"],
    )
    first = _recorded(case, objective)
    state = defenses.init_state(tiny.tiny_variables(weights), optimizer, first)
    update = defenses.make_hashing_update(tiny.tiny_net(weights), objective, optimizer, seed=0)
    run, images, losses = _on_one_device(update), golden.nhwc(case["images"]), []
    for step in range(num_steps):
        np.testing.assert_allclose(schedule(step), case["lr"][step], rtol=1e-9)
        state, metrics = run(state, _golden_batch(case, images, step, size))
        losses.append(metrics["loss"])
        if (step + 1) % steps_per_epoch == 0:
            epoch = step // steps_per_epoch
            _assert_weights(state.params, case, epoch, case.tolerance(phrase))
    np.testing.assert_allclose(losses, case["loss"], rtol=case.tolerance("loss rel"))
    if "U_end" in case.arrays:
        # A code sums over a layer of weights.
        atol = 10 * case.tolerance(phrase)
        np.testing.assert_allclose(state.objective.bank.codes, case["U_end"], atol=atol)
        np.testing.assert_array_equal(state.objective.bank.labels, case["labels"])
    return state


@pytest.mark.parametrize("name", ["dph", "dpsh", "hashnet"])
def test_golden_prosgan_hashing(name):
    case = golden.load(f"prosgan_hashing_{name}")
    renamed = {"yita": "eta", "alpha": "slope"}
    options = {renamed[k]: v for k, v in case.constants.items() if k in renamed}
    objective = objectives.create_objective(name, known_labels=True, **options)
    _golden_hashing(case, objective, "thirds", "weights max abs")


@pytest.mark.parametrize("name", ["csq", "dph", "dpsh", "hashnet"])
def test_golden_train_hashing(name):
    case = golden.load(f"train_hashing_{name}")
    model = tiny.tiny_net(case.group("w0."))
    objective = objectives.create_objective(name)
    state = _golden_hashing(case, objective, "thirds", "weights max abs")

    encode = jax.jit(networks.make_encode_fn(model))
    codes = {}
    for split in ("test", "database"):
        soft_codes = encode({"params": state.params}, golden.nhwc(case[f"{split}_images"]))
        codes[split] = np.asarray(hamming.binarize(soft_codes))
        sure = np.abs(soft_codes) > case.tolerance("|output|>")
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(codes[split][sure], case[f"{split}_code"][sure])
    score = retrieval.map_at_k(
        codes["test"],
        codes["database"],
        case["test_labels"],
        case["database_labels"],
        k=5000,
        ties="index",
    )
    np.testing.assert_allclose(score, case["map"], atol=case.tolerance("map abs"))


def _golden_batch(case, images, step, size):
    """The recorded rows of a step; the last, short batch of an epoch is padded."""
    mask = np.arange(size) < case["batch_size"][step]
    rows = np.where(mask, case["index"][step], 0)
    return {
        "image": images[rows],
        "label": case["labels"][rows],
        "index": np.where(mask, rows, len(images)).astype(np.int32),
        "mask": mask.astype(np.float32),
    }


def _assert_weights(params, case, epoch, atol):
    expected = case.group(f"w_epoch{epoch}.")
    actual = tiny.tiny_weights(params)
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=atol, err_msg=name)


# --- SAAT ---


def _golden_saat(case, bank, name="dph"):
    """Trains as the recorded run did; yields (step, state before, batch, state, metrics)."""
    constants = case.constants
    num_steps, size = case["index"].shape
    weights = case.group("w0.")
    schedule = optimizers.milestone_schedule(constants["lr"], num_steps=num_steps)
    optimizer = optimizers.make_optimizer(
        "sgd",
        schedule,
        num_steps=num_steps,
        momentum=constants["momentum"],
        weight_decay=constants["weight_decay"],
    )
    start = objectives.CodeBank(case["train_code"], case["labels"])
    objective = objectives.create_objective(name)
    first = _recorded(case, objective)
    if first.bank is not None:
        first = first.replace(bank=start)
    state = defenses.init_state(tiny.tiny_variables(weights), optimizer, first, start)
    update = defenses.make_saat_update(
        tiny.tiny_net(weights),
        objective,
        optimizer,
        seed=0,
        epsilon=constants["eps"],
        step_size=constants["step"] / 255,
        num_steps=constants["iteration"],
        adversarial_weight=constants["p_lambda"],
        quantization_weight=constants["p_mu"],
        bank=bank,
        ties="zero",
    )
    run, images = _on_one_device(update), golden.nhwc(case["images"])
    for step in range(num_steps):
        np.testing.assert_allclose(schedule(step), case["lr"][step], rtol=1e-9)
        batch = _golden_batch(case, images, step, size)
        batch["start"] = batch["image"] + golden.nhwc(case["uniform_delta"][step])
        before, (state, metrics) = state, run(state, batch)
        yield step, before, batch, state, metrics


def _inner_codes(state, batch):
    return np.asarray(
        mainstay.mainstay_codes(
            batch["label"], state.code_bank.codes, state.code_bank.labels, ties="zero"
        )
    )


@pytest.mark.parametrize("name", ["csq", "dph", "hashnet"])
def test_golden_train_saat(name):
    case = golden.load(f"train_saat_{name}")
    constants, num_epochs = case.constants, case.constants["epochs"]
    steps_per_epoch = len(case["index"]) // num_epochs
    encode_fn = networks.make_encode_fn(tiny.tiny_net(case.group("w0.")))
    attack = jax.jit(
        functools.partial(
            attacks.pgd,
            encode_fn,
            epsilon=constants["eps"],
            step_size=constants["step"] / 255,
            num_steps=constants["iteration"],
            targeted=False,
            loss="mean",
        )
    )
    images = golden.nhwc(case["images"])
    codes = encode_fn(tiny.tiny_variables(case.group("w0.")), images)
    np.testing.assert_array_equal(hamming.binarize(codes), case["train_code"])
    weights_atol = case.tolerance("weights after epoch: max abs")
    # A code sums over a layer of weights.
    codes_atol = 10 * weights_atol
    for step, before, batch, state, metrics in _golden_saat(case, "aliased", name):
        valid = case["batch_size"][step]
        np.testing.assert_allclose(
            before.code_bank.codes, case["U_ben_before"][step], atol=codes_atol
        )
        signs = int((np.abs(before.code_bank.codes) == 1).all(axis=1).sum())
        assert signs == constants["bank_rows_that_are_pure_sign_before_each_step"][step]
        inner = _inner_codes(before, batch)
        np.testing.assert_array_equal(inner[:valid], case["mainstay_attack"][step][:valid])
        adversarial = attack(
            {"params": before.params},
            batch["image"],
            inner,
            jax.random.key(0),
            start=batch["start"],
        )
        expected = golden.nhwc(case["adv_query"][step])
        difference = np.abs(np.asarray(adversarial) - expected)[:valid]
        assert np.mean(difference < case.tolerance("|diff|<")) >= case.tolerance("adv_query: >=")

        phrase = "losses rel" if step else "first step"
        rtol = case.tolerance(phrase)
        np.testing.assert_allclose(metrics["loss"], case["loss"][step], rtol=rtol)
        for term, key in (("objective", "ben"), ("adversarial", "adv"), ("quantization", "qua")):
            np.testing.assert_allclose(
                metrics[f"{term}_loss"], case[key][step], rtol=rtol, atol=rtol, err_msg=term
            )
        if (step + 1) % steps_per_epoch == 0:
            _assert_weights(state.params, case, step // steps_per_epoch, weights_atol)
    np.testing.assert_allclose(state.code_bank.codes, case["U_ben_end"], atol=codes_atol)
    if name == "csq":
        assert state.objective.bank is None and set(np.unique(state.code_bank.codes)) == {-1, 1}
    else:
        _assert_same_bits(state.code_bank, state.objective.bank)


def test_golden_train_saat_dph_with_a_bank_of_signs_is_another_algorithm():
    case = golden.load("train_saat_dph")
    differing = 0
    for step, before, batch, state, _ in _golden_saat(case, "sign"):
        assert set(np.unique(state.code_bank.codes)) == {-1.0, 1.0}
        assert np.abs(state.objective.bank.codes[batch["index"][batch["mask"] > 0]]).max() < 1
        valid = case["batch_size"][step]
        differing += np.sum(
            _inner_codes(before, batch)[:valid] != case["mainstay_attack"][step][:valid]
        )
    assert differing > 0


@pytest.mark.parametrize(
    ("bank", "expected_name"), [("aliased", "released_alias"), ("sign", "intended")]
)
def test_golden_formula_int_saat_step(bank, expected_name):
    formula = golden.formula("int_saat_step")
    inputs = {
        name: np.array(value, np.float32)
        for name, value in formula.inputs.items()
        if name not in ("model", "index")
    }
    expected = formula.expected[expected_name]
    images = golden.nhwc(inputs["x_NCHW"])
    # Constants of the step that the vector names in words: SPEC 6.1.
    optimizer = optimizers.make_optimizer("sgd", lambda _: 0.05, num_steps=1, weight_decay=1e-5)
    update = defenses.make_saat_update(
        LinearNet(len(inputs["b"])),
        DPH,
        optimizer,
        seed=0,
        epsilon=float(inputs["eps"]),
        step_size=2 / 255,
        num_steps=7,
        bank=bank,
        ties="zero",
    )
    start = objectives.CodeBank(inputs["bank0"], inputs["train_labels"])
    params = {"hash": {"kernel": inputs["W"].T, "bias": inputs["b"]}}
    batch = {
        "image": images,
        "label": inputs["labels"],
        "index": np.array(formula.inputs["index"], np.int32),
        "mask": np.ones(len(images), np.float32),
        "start": images + golden.nhwc(inputs["delta0"]),
    }
    state = defenses.init_state({"params": params}, optimizer, objectives.State(bank=start), start)
    state, metrics = _on_one_device(update)(state, batch)
    formula.assert_close(metrics["loss"], expected["loss"])
    formula.assert_close(metrics["objective_loss"], expected["loss_ben"])
    formula.assert_close(metrics["adversarial_loss"], expected["loss_adv"])
    formula.assert_close(metrics["quantization_loss"], expected["loss_qua"])
    formula.assert_close(state.params["hash"]["kernel"].T, expected["W_new"])
    formula.assert_close(state.params["hash"]["bias"], expected["b_new"])
    formula.assert_close(state.code_bank.codes, expected["mainstay_bank_after"])


def test_golden_formula_saat_outer():
    formula = golden.formula("saat_outer")
    codes = np.array(formula.inputs["adv"], np.float32)
    wanted = np.array(formula.inputs["mainstay"], np.float32)
    rows, num_bits = codes.shape
    # The image of row i lights one pixel, whose weights give it the soft code of row i.
    height = -(-rows // 3)
    pixels = np.zeros((rows, 3, height, 1), np.float32)
    pixels.reshape(rows, -1)[np.arange(rows), np.arange(rows)] = 1
    kernel = np.zeros((3 * height, num_bits), np.float32)
    kernel[:rows] = np.arctanh(codes)
    params = {"hash": {"kernel": kernel, "bias": np.zeros(num_bits, np.float32)}}
    # A bank whose rows sum to zero: the votes of row i are its own bank row's, scaled.
    bank = objectives.CodeBank(
        np.concatenate([wanted, -wanted.sum(0, keepdims=True)]), np.eye(rows + 1, dtype=np.float32)
    )
    optimizer = optax.sgd(0.0)
    update = defenses.make_saat_update(
        LinearNet(num_bits),
        DPH,
        optimizer,
        seed=0,
        epsilon=0.0,
        step_size=0.0,
        num_steps=0,
        ties="zero",
    )
    batch = {
        "image": golden.nhwc(pixels),
        "label": np.eye(rows, rows + 1, dtype=np.float32),
        "index": np.full(rows, rows + 1, np.int32),
        "mask": np.ones(rows, np.float32),
    }
    state = defenses.init_state({"params": params}, optimizer, objectives.State(bank=bank), bank)
    _, metrics = _on_one_device(update)(state, batch)
    formula.assert_close(metrics["adversarial_loss"], formula.expected["loss_adv"])
    formula.assert_close(metrics["quantization_loss"], formula.expected["loss_qua"])
    weighted = metrics["loss"] - metrics["objective_loss"]
    formula.assert_close(weighted, formula.expected["weighted"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("bank", "alias", "unknown bank 'alias'"),
        ("quantization", "norm", "unknown quantization 'norm'"),
        ("anchor_codes", "twice", "unknown anchor_codes 'twice'; expected one of .*'once'"),
        ("attack_mode", "test", r"unknown attack_mode 'test'; expected one of \['eval', 'train'\]"),
        (
            "loss",
            "mse",
            r"unknown attack loss 'mse'; expected one of \['focused', 'mean', 'pooled'\]",
        ),
    ],
)
def test_saat_options_are_checked(option, value, message):
    with pytest.raises(ValueError, match=message):
        defenses.make_saat_update(
            LinearNet(2), DPH, optax.sgd(1.0), seed=0, **SAAT, **{option: value}
        )


def _keywords(function):
    """Arguments that are given by name, with their defaults; `...` for none."""
    return {
        name: ... if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def test_defenses_are_listed():
    assert defenses.DEFENSES["saat"].make_update is defenses.make_saat_update
    # The options that it lists are those that its functions take.
    for kind, defense in defenses.DEFENSES.items():
        for function, listed in (
            (defense.make_update, {"seed": ..., **defense.options}),
            (defense.first_state, defense.state_options),
        ):
            taken = _keywords(function)
            passed_on = listed.keys() - taken.keys()
            assert taken == {name: listed[name] for name in listed if name not in passed_on}
            known = _keywords(common.make_inner_attack)
            if kind in ("saat", "cgat"):
                known |= _keywords(saat.make_minimax_update)
            assert {name: listed[name] for name in passed_on} == {n: known[n] for n in passed_on}


def test_saat_quantization_sums_over_the_bits_or_takes_their_mean():
    model, optimizer = LinearNet(NUM_BITS), _optimizer()
    metrics = {}
    for quantization in ("mean", "sum"):
        update = defenses.make_saat_update(
            model, DPH, optimizer, seed=0, quantization=quantization, **SAAT
        )
        state = _state(model, optimizer, saat=True)
        _, metrics[quantization] = _on_one_device(update)(state, _batch(0))
    np.testing.assert_allclose(
        metrics["sum"]["quantization_loss"],
        NUM_BITS * metrics["mean"]["quantization_loss"],
        rtol=1e-6,
    )


@pytest.mark.parametrize("bank", ["aliased", "sign"])
def test_saat_bank_holds_soft_codes_or_signs(bank):
    model, optimizer = LinearNet(NUM_BITS), _optimizer()
    update = defenses.make_saat_update(model, DPH, optimizer, seed=0, bank=bank, **SAAT)
    first, batch = _state(model, optimizer, saat=True), _batch(0)
    state, _ = _on_one_device(update)(first, batch)
    seen = batch["index"][batch["mask"] > 0]
    soft_codes = networks.make_encode_fn(model)({"params": first.params}, batch["image"])
    expected = np.asarray(first.objective.bank.codes).copy()
    expected[seen] = np.asarray(soft_codes)[batch["mask"] > 0]
    np.testing.assert_allclose(state.objective.bank.codes, expected, atol=1e-6)
    codes = expected if bank == "aliased" else np.where(expected >= 0, 1, -1)
    np.testing.assert_allclose(state.code_bank.codes, codes, atol=1e-6)
    # Rows that the batch does not hold stay as they were, to the bit.
    others = np.setdiff1d(np.arange(BANK_SIZE), seen)
    np.testing.assert_array_equal(state.code_bank.codes[others], first.code_bank.codes[others])
    np.testing.assert_array_equal(state.code_bank.labels[others], first.code_bank.labels[others])
    np.testing.assert_array_equal(state.code_bank.labels[seen], batch["label"][batch["mask"] > 0])


@pytest.mark.parametrize(("attack_mode", "passes"), [("train", 5), ("eval", 2)])
def test_saat_attack_mode_decides_which_passes_feed_the_statistics(attack_mode, passes):
    # With a ball of radius zero every pass sees the same images, so after n passes the running
    # mean is (1 - 0.9^n) of the batch's: the attack's three and the two of the update, or two.
    model, optimizer = networks.ConvNet(NUM_BITS, False, widths=(4,)), _optimizer()
    update = defenses.make_saat_update(
        model,
        DPH,
        optimizer,
        seed=0,
        attack_mode=attack_mode,
        epsilon=0.0,
        step_size=0.1,
        num_steps=3,
    )
    first, batch = _state(model, optimizer, saat=True), _batch(0)
    state, _ = _on_one_device(update)(first, batch)
    conv = networks.Conv(4, 3, padding=1, use_bias=False)
    images = batch["image"][batch["mask"] > 0]
    mean = np.mean(conv.apply({"params": first.params["conv_0"]}, images), axis=(0, 1, 2))
    np.testing.assert_allclose(
        state.batch_stats["norm_0"]["mean"], (1 - 0.9**passes) * mean, rtol=1e-4
    )


def test_saat_attack_starts_at_random_points_that_belong_to_the_images():
    # No dropout here, so the only chance is in the start of the attack.
    model, optimizer = LinearNet(NUM_BITS), _optimizer()
    settings = SAAT | {"num_steps": 0}
    first, batch = _state(model, optimizer, saat=True), _batch(0, num_real=16)
    runs = [
        _on_one_device(defenses.make_saat_update(model, DPH, optimizer, seed=seed, **settings))
        for seed in (0, 1)
    ]
    loss = runs[0](first, batch)[1]["adversarial_loss"]
    order = np.random.default_rng(0).permutation(16)
    shuffled = {name: values[order] for name, values in batch.items()}
    np.testing.assert_allclose(runs[0](first, shuffled)[1]["adversarial_loss"], loss, rtol=1e-5)
    later = first.replace(step=first.step + 1)
    unperturbed = batch | {"start": batch["image"]}
    for other in (runs[1](first, batch), runs[0](later, batch), runs[0](first, unperturbed)):
        assert abs(other[1]["adversarial_loss"] - loss) > 1e-5


def test_saat_step_as_printed_is_the_equations_written_out():
    """Eq. 11 to 20 with one mainstay code a step, on a linear network, in NumPy and loops."""
    model, optimizer, mu = LinearNet(NUM_BITS), optax.sgd(0.05), 1e-3
    update = defenses.make_saat_update(
        model,
        DPH,
        optimizer,
        seed=0,
        epsilon=8 / 255,
        step_size=2 / 255,
        num_steps=3,
        adversarial_weight=0.5,
        quantization_weight=mu,
        quantization="sum",
        bank="sign",
        anchor_codes="once",
        random_start=False,
        weighting="count",
    )
    first, batch = _state(model, optimizer, saat=True), _batch(0, num_real=16)
    state, metrics = _on_one_device(update)(first, batch)

    bank, bank_labels = np.asarray(first.code_bank.codes), np.asarray(first.code_bank.labels)
    votes = [reference.mainstay_votes(y, bank, bank_labels, "count") for y in batch["label"]]
    mainstay_codes = np.asarray(
        mainstay.mainstay_codes(batch["label"], bank, bank_labels, weighting="count")
    )
    # An exactly tied vote rounds either way.
    sure = np.abs(votes) > 1e-6
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(mainstay_codes[sure], np.sign(votes)[sure])
    weights = np.asarray(first.params["hash"]["kernel"], np.float64)
    bias = np.asarray(first.params["hash"]["bias"], np.float64)

    def pixels(images):
        return np.moveaxis(images, 3, 1).reshape(len(images), -1)

    def encode(images):
        return np.tanh(pixels(images) @ weights + bias)

    images = batch["image"].astype(np.float64)
    adversarial = images
    for _ in range(3):
        slopes = (mainstay_codes * (1 - encode(adversarial) ** 2)) @ weights.T
        slopes = np.moveaxis(slopes.reshape(16, 3, 8, 8), 1, 3)
        step = adversarial - 2 / 255 * np.sign(slopes)
        adversarial = np.clip(np.clip(step, images - 8 / 255, images + 8 / 255), 0, 1)

    def losses(params):
        benign, attacked = (
            jnp.tanh(pixels(x) @ params["kernel"] + params["bias"]) for x in (images, adversarial)
        )
        new = jnp.asarray(bank).at[batch["index"]].set(jax.lax.stop_gradient(benign))
        labels = bank_labels.copy()
        labels[batch["index"]] = batch["label"]
        similar = np.where(batch["label"] @ labels.T > 0, 1.0, -1.0)
        original = jnp.mean((benign @ new.T / NUM_BITS - similar) ** 2)
        agreement = -jnp.mean(attacked * mainstay_codes)
        sign = np.sign(jax.lax.stop_gradient(attacked))
        rough = jnp.mean(jnp.sum((attacked - sign) ** 2, axis=1))
        return original + 0.5 * agreement + mu * rough, (original, agreement, rough)

    (total, terms), gradients = jax.value_and_grad(losses, has_aux=True)(first.params["hash"])
    names = ("objective_loss", "adversarial_loss", "quantization_loss")
    np.testing.assert_allclose([metrics[name] for name in names], terms, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    for name, gradient in gradients.items():
        moved = first.params["hash"][name] - 0.05 * gradient
        np.testing.assert_allclose(state.params["hash"][name], moved, rtol=1e-4, atol=1e-5)
    new_codes = bank.copy()
    new_codes[batch["index"]] = np.where(encode(images) >= 0, 1, -1)
    np.testing.assert_array_equal(state.code_bank.codes, new_codes)


def test_saat_attack_may_start_at_the_images():
    model, optimizer = LinearNet(NUM_BITS), _optimizer()
    first, batch = _state(model, optimizer, saat=True), _batch(0)
    update = defenses.make_saat_update(model, DPH, optimizer, seed=0, random_start=False, **SAAT)
    released = defenses.make_saat_update(model, DPH, optimizer, seed=0, **SAAT)
    here = _on_one_device(update)(first, batch)
    expected = _on_one_device(released)(first, batch | {"start": batch["image"]})
    _assert_same_bits(here, expected)


# --- every objective ---


@functools.cache
def _objective_case(name, kind):
    """(update, first state) of an objective on a linear network."""
    model, optimizer = LinearNet(NUM_BITS), _optimizer()
    options = {"random_centers": True} if name == "csq" else {}
    objective = objectives.create_objective(name, **options)
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(12, NUM_BITS)).astype(np.float32),
        "bias": np.zeros(NUM_BITS, np.float32),
    }
    labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.4).astype(np.float32)
    codes = rng.choice([-1.0, 1.0], (BANK_SIZE, NUM_BITS)).astype(np.float32)
    first = objective.init(jax.random.key(1), labels, NUM_BITS)
    variables, code_bank = {"params": {"hash": params}}, objectives.CodeBank(codes, labels)
    if kind == "hashing":
        update = defenses.make_hashing_update(model, objective, optimizer, seed=3)
        return update, defenses.init_state(variables, optimizer, first)
    if first.bank is not None:
        first = first.replace(bank=code_bank)
    update = defenses.make_saat_update(model, objective, optimizer, seed=3, **SAAT)
    return update, defenses.init_state(variables, optimizer, first, code_bank)


@pytest.mark.parametrize("kind", ["hashing", "saat"])
@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_every_objective_trains_and_hardens(name, kind):
    update, first = _objective_case(name, kind)
    ends = []
    # What the devices share in SAAT does not depend on the objective, and is tested below.
    runs = [_on_one_device(update)] + [_on_all_devices(update)] * (kind == "hashing")
    # The second batch is short: most devices have nothing but padding. One row has no label.
    batches = [_batch(seed, num_real=n, image_size=2) for seed, n in ((1, 16), (2, 3))]
    batches[0]["label"][0] = 0
    for run in runs:
        state, seen = first, []
        for batch in batches:
            state, metrics = run(state, batch)
            seen.append(metrics)
        ends.append((state, seen))
    for end in ends[1:]:
        chex.assert_trees_all_equal_shapes_and_dtypes(ends[0], end)
        chex.assert_trees_all_close(ends[0], end, rtol=1e-4, atol=2e-5)
    state = ends[0][0]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(ends[0]))
    assert not np.array_equal(state.params["hash"]["kernel"], first.params["hash"]["kernel"])
    for parameter, values in state.objective.params.items():
        assert not np.array_equal(values, first.objective.params[parameter])
    if first.objective.forwards is not None:
        assert state.objective.forwards == (2 if kind == "hashing" else 0)
    if kind == "saat":
        signs = bool(np.all(np.abs(state.code_bank.codes) == 1))
        assert signs == (name in ("csq", "orthohash"))


def test_hashnet_trains_at_its_running_scale():
    update, first = _objective_case("hashnet", "hashing")
    batch = _batch(0, num_real=16, image_size=2)
    state = first.replace(objective=first.objective.replace(forwards=np.int32(199)))
    state, _ = _on_one_device(update)(state, batch)
    images = networks.flatten_channels_first(batch["image"])
    logits = images @ first.params["hash"]["kernel"]
    codes = state.objective.bank.codes[batch["index"]]
    np.testing.assert_allclose(codes, np.tanh(2**0.5 * logits), atol=1e-5)
    assert state.objective.forwards == 200


def test_scale_quirk_follows_the_released_count():
    model, optimizer = LinearNet(NUM_BITS), optax.sgd(0.0)
    objective = objectives.create_objective("hashnet", scale_quirk=True)
    settings = SAAT | {"epsilon": 0.0, "num_steps": 0, "quantization_weight": 1.0}
    update = defenses.make_saat_update(model, objective, optimizer, seed=0, **settings)
    _, first = _objective_case("hashnet", "saat")
    run, batch = _on_one_device(update), _batch(0, num_real=16, image_size=2)
    logits = networks.flatten_channels_first(batch["image"]) @ first.params["hash"]["kernel"]
    # The count of the adversarial pass, or that of the benign one after it, or none reaches 200.
    for forwards, adversarial, benign in ((199, 2**0.5, 2**0.5), (198, 1, 2**0.5), (200, 1, 1)):
        before = first.objective.replace(forwards=np.int32(forwards), scale=np.float32(12.0))
        state = defenses.init_state({"params": first.params}, optimizer, before, first.code_bank)
        state, metrics = run(state, batch)
        codes = state.objective.bank.codes[batch["index"]]
        np.testing.assert_allclose(codes, np.tanh(benign * logits), atol=1e-5)
        expected = np.mean((1 - np.abs(np.tanh(adversarial * logits))) ** 2)
        np.testing.assert_allclose(metrics["quantization_loss"], expected, rtol=1e-4)
        assert state.objective.forwards == forwards + 2


# --- teacher ---


def test_teacher_loss_is_the_distance_from_the_clean_codes_of_before():
    model, optimizer = LinearNet(NUM_BITS), optax.sgd(0.5)
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 3, "random_start": False}
    first = _state(model, optimizer, saat=True, image_size=2)
    variables, batch = {"params": first.params}, _batch(2, num_real=16, image_size=2)

    def codes_of(params, images):
        return np.tanh(
            networks.flatten_channels_first(images) @ params["hash"]["kernel"]
            + params["hash"]["bias"]
        )

    def run(**changes):
        update = defenses.make_teacher_update(model, DPH, optimizer, seed=0, **settings | changes)
        state = defenses.init_teacher_state(
            variables, optimizer, first.objective, first.code_bank, None, None
        )
        return _on_one_device(update)(state, batch)

    taught = codes_of(first.params, batch["image"])
    # Of a linear layer the sign of the gradient stays, but where tanh is flat.
    kernel = np.asarray(first.params["hash"]["kernel"])
    images = batch["image"]
    for _ in range(3):
        flat = codes_of(first.params, images)
        slope = ((1 - flat**2) * taught) @ kernel.T
        slope = slope.reshape(16, 3, 2, 2).transpose(0, 2, 3, 1)
        images = np.clip(
            images - 2 / 255 * np.sign(slope), batch["image"] - 8 / 255, batch["image"] + 8 / 255
        )
        images = np.clip(images, 0, 1)
    expected = np.mean((codes_of(first.params, images) - taught) ** 2)
    state, metrics = run()
    np.testing.assert_allclose(metrics["adversarial_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["drift_loss"], 0, atol=1e-10)
    _assert_same_bits(state.defense.params, jax.tree.map(np.asarray, first.params))
    # After a step clean codes have moved, and drift less than the bound costs nothing.
    again = _on_one_device(defenses.make_teacher_update(model, DPH, optimizer, seed=0, **settings))(
        state, batch
    )[1]
    drift = np.mean((codes_of(state.params, batch["image"]) - taught) ** 2)
    np.testing.assert_allclose(again["drift_loss"], drift, rtol=1e-4)
    free = defenses.make_teacher_update(model, DPH, optimizer, seed=0, max_drift=4.0, **settings)
    assert _on_one_device(free)(state, batch)[1]["drift_loss"] == 0
    assert again["adversarial_loss"] < metrics["adversarial_loss"]


# --- what the papers do not have ---


def _runs(num_updates, optimizer=None, *, teacher=False, **settings):
    """States and metrics after each of some updates of SAAT on a linear network."""
    model, optimizer = LinearNet(NUM_BITS), optimizer or optax.sgd(0.1)
    first = _state(model, optimizer, saat=True, image_size=2)
    update = defenses.make_saat_update(model, DPH, optimizer, seed=0, **SAAT | settings)
    state = defenses.init_minimax_state(
        {"params": first.params}, optimizer, first.objective, first.code_bank, None, None,
        teacher=teacher,
    )  # fmt: skip
    run, batch, found = _on_one_device(update), _batch(2, num_real=16, image_size=2), []
    for _ in range(num_updates):
        state, metrics = run(state, batch)
        found.append((state, metrics))
    return first, found


def test_the_average_is_that_of_the_parameters_after_each_update():
    first, found = _runs(4, _optimizer(average=0.75))
    plain = _runs(4, _optimizer())[1]
    kernels = [state.params["hash"]["kernel"] for state, _ in found]
    for kernel, (state, _) in zip(kernels, plain, strict=True):
        # It is only looked at.
        np.testing.assert_array_equal(kernel, state.params["hash"]["kernel"])
    expected = np.zeros_like(kernels[0])
    for count, kernel in enumerate(kernels):
        kept = min(0.75, count / (count + 1))
        expected = kept * expected + (1 - kept) * kernel
    averaged = training.variables_of(found[-1][0])["params"]["hash"]["kernel"]
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)
    assert np.abs(averaged - kernels[-1]).max() > 1e-4
    unaveraged = training.variables_of(plain[-1][0])["params"]["hash"]["kernel"]
    np.testing.assert_array_equal(unaveraged, kernels[-1])
    with pytest.raises(ValueError, match="average must be a number from 0 and under 1, got 1"):
        _optimizer(average=1)


def test_perturbed_weights_take_the_gradient_uphill():
    def loss_fn(params, objective_params):
        loss = jnp.sum(params["a"] ** 4) + jnp.sum(params["b"] ** 2)
        return loss, ({"loss": loss}, objectives.State(params=objective_params), None)

    optimizer, params = optax.sgd(1.0), {"a": jnp.array([[1.0, -2.0]]), "b": jnp.ones(1)}
    state = defenses.init_state({"params": params}, optimizer, objectives.State())

    def update(state, batch, *, axis_name):
        del batch
        settings = {"weight_perturbation": 0.1}
        return common.descend(loss_fn, state, optimizer, axis_name, **settings)[:2]

    after, _ = _on_one_device(update)(state, {"x": np.zeros(1)})
    uphill = 4 * np.array([1.0, -2.0]) ** 3
    place = np.array([1.0, -2.0]) + 0.1 * np.sqrt(5) * uphill / np.linalg.norm(uphill)
    np.testing.assert_allclose(after.params["a"][0], [1, -2] - 4 * place**3, rtol=1e-5)
    # A bias is not moved.
    np.testing.assert_allclose(after.params["b"], 1 - 2)


def _inner(**settings):
    """Adversarial images of 16 rows, with what they were made from."""
    model = LinearNet(NUM_BITS)
    first = _state(model, optax.sgd(1.0), saat=True, image_size=2)
    batch = _batch(2, num_real=16, image_size=2)
    batch["image"] = 0.5 * np.ones_like(batch["image"])
    attack = common.make_inner_attack(
        model, targeted=False, attack_mode="eval", **SAAT | {"num_steps": 9} | settings
    )
    codes = np.ones((16, NUM_BITS), np.float32)

    @jax.jit
    def craft(step):
        training = common.training_pass(0, step, batch, None)
        return attack(first.params, {}, objectives.State(), codes, batch, training, step)[0]

    return lambda step: np.abs(np.asarray(craft(step)) - 0.5).max(axis=(1, 2, 3))


def test_balls_grow_and_are_drawn_for_each_image():
    grown = _inner(warmup_steps=4)
    for step, share in ((0, 0.25), (1, 0.5), (3, 1), (9, 1)):
        np.testing.assert_allclose(grown(step), share * 8 / 255, rtol=1e-4)
    sizes = _inner(random_radius=True)(0)
    assert sizes.max() <= 8 / 255 * 1.0001 and np.ptp(sizes) > 4 / 255
    assert len(np.unique(sizes.round(6))) == 16
    assert np.abs(sizes - _inner(random_radius=True)(1)).max() > 1 / 255
    with pytest.raises(ValueError, match="unknown direction 'nowhere'"):
        _inner(direction="nowhere")


def test_terms_beside_those_of_the_papers_are_weighed_and_grow():
    first, [(_, alone)] = _runs(1)
    settings = {"objective_weight": 0.5, "teacher_weight": 2.0, "teacher": True}
    _, [(_, more)] = _runs(1, **settings)
    for name in ("objective_loss", "adversarial_loss", "quantization_loss"):
        np.testing.assert_array_equal(more[name], alone[name])
    assert more["attacked_objective_loss"] > more["objective_loss"]
    total = 0.5 * more["attacked_objective_loss"] + 2 * more["teacher_loss"]
    np.testing.assert_allclose(more["loss"], alone["loss"] + total, rtol=1e-5)
    _, [(_, ramped)] = _runs(1, **settings, ramp_steps=4)
    adversarial = alone["loss"] + total - alone["objective_loss"]
    np.testing.assert_allclose(ramped["loss"], alone["objective_loss"] + adversarial / 4, rtol=1e-5)
    assert "teacher_loss" not in alone and first.defense is None


# --- devices and padding ---


@pytest.mark.parametrize("num_real", [16, 13, 3])
@pytest.mark.parametrize("kind", ["hashing", "saat", "stronger", "teacher"])
def test_one_device_and_eight_agree(kind, num_real):
    assert jax.local_device_count() == 8
    state, batch = _case(kind)[1], _batch(num_real, num_real=num_real)
    one, one_metrics = _runner(kind, 1)(state, batch)
    eight, eight_metrics = _runner(kind, 8)(state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(one, eight)
    chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=2e-6)
    chex.assert_trees_all_close(one_metrics, eight_metrics, rtol=1e-5, atol=1e-6)


def test_one_device_and_eight_agree_after_seven_attack_steps():
    # The sign of a gradient near zero may differ by rounding, which moves single pixels.
    state, batch = _case("saat7")[1], _batch(0)
    one, one_metrics = _runner("saat7", 1)(state, batch)
    eight, eight_metrics = _runner("saat7", 8)(state, batch)
    chex.assert_trees_all_close(one_metrics, eight_metrics, rtol=1e-4, atol=1e-4)
    close = [np.abs(x - y) < 1e-5 for x, y in zip(*map(jax.tree.leaves, (one, eight)), strict=True)]
    assert np.mean(np.concatenate([x.ravel() for x in close])) > 0.99


@pytest.mark.parametrize("kind", ["hashing", "saat", "stronger", "teacher"])
def test_pmap_and_shard_map_give_the_same_bits(kind):
    update, state = _case(kind)
    mesh = Mesh(np.array(jax.devices()), (parallel.AXIS,))
    mapped = jax.jit(
        jax.shard_map(
            functools.partial(update, axis_name=parallel.AXIS),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(parallel.AXIS)),
            out_specs=(PartitionSpec(), PartitionSpec()),
            check_vma=False,
        )
    )
    for seed in range(2):
        batch = _batch(seed)
        by_shard_map = mapped(state, batch)
        by_pmap = _runner(kind, 8)(state, batch)
        _assert_same_bits(by_shard_map, by_pmap)
        state = by_pmap[0]


@pytest.mark.parametrize("kind", ["hashing", "saat", "stronger", "teacher"])
def test_padding_has_no_influence(kind):
    state, batch = _case(kind)[1], _batch(5, num_real=11)
    padding = batch["mask"] == 0
    rubbish = {name: values.copy() for name, values in batch.items()}
    rubbish["image"][padding] = np.random.default_rng(1).normal(
        9, 99, batch["image"][padding].shape
    )
    rubbish["label"][padding] = 1
    _assert_same_bits(_runner(kind, 8)(state, rubbish), _runner(kind, 8)(state, batch))


@pytest.mark.parametrize("kind", ["hashing", "saat", "stronger", "teacher"])
def test_replicas_agree_repeat_and_are_traced_once(kind):
    update, state = _case(kind)
    traces = []

    def counted(state, batch, *, axis_name):
        traces.append(batch["image"].shape)
        return update(state, batch, axis_name=axis_name)

    mapped = parallel.map_update(counted)
    batches = [_batch(seed, num_real=num_real) for seed, num_real in enumerate((16, 16, 7))]
    ends = []
    for _ in range(2):
        replicated = parallel.replicate(state)
        for batch in batches:
            replicated, metrics = mapped(replicated, parallel.shard_batch(batch))
            assert parallel.replicas_agree((replicated, metrics))
        ends.append(parallel.unreplicate(replicated))
    _assert_same_bits(*ends)
    assert len(traces) == 1
    assert ends[0].step == len(batches)
    moved = ends[0].params["hash"]["kernel"] - state.params["hash"]["kernel"]
    assert np.max(np.abs(moved)) > 1e-4
