"""ATRDH: by hand, against the released code, over devices."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import (
    attacks,
    defenses,
    networks,
    objectives,
    optimizers,
    parallel,
    prototypes,
)
from tests import defenses_test, golden, prototypes_test, tiny, training_test
from tests.defenses_test import BANK_SIZE, DPH, NUM_BITS, NUM_CLASSES, LinearNet, MeetingNet

ATRDH = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 1}
# Not Adam, which makes whole steps of gradients that are nothing but rounding.
OPTIMIZER = optax.sgd(0.1)
DATABASE_LABELS = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])
_on_one_device = defenses_test._on_one_device
_on_all_devices = defenses_test._on_all_devices
_batch = defenses_test._batch


def _first_state(variables, objective=DPH, optimizer=OPTIMIZER):
    """Before the first update, as after a pretraining in which no image was seen."""
    rng = np.random.default_rng(0)
    codes = rng.choice([-1.0, 1.0], (BANK_SIZE, NUM_BITS)).astype(np.float32)
    labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.4).astype(np.float32)
    return defenses.init_atrdh_state(
        variables,
        optimizer,
        objective.init(jax.random.key(1), labels, NUM_BITS),
        objectives.CodeBank(jnp.asarray(codes), jnp.asarray(labels)),
        DATABASE_LABELS,
        jax.random.key(2, impl="rbg"),
        hidden_width=8,
    )


def _linear_variables(image_size):
    pixels = 3 * image_size**2
    kernel = np.random.default_rng(3).normal(size=(pixels, NUM_BITS)) / pixels**0.5
    bias = np.full(NUM_BITS, 0.1, np.float32)
    return {"params": {"hash": {"kernel": kernel.astype(np.float32), "bias": bias}}}


@functools.cache
def _case():
    """(update, first state) on the network in which rows could meet."""
    model = MeetingNet(NUM_BITS)
    variables = networks.init_variables(model, jax.random.key(0), image_size=8)
    update = defenses.make_atrdh_update(model, DPH, OPTIMIZER, seed=3, **ATRDH)
    return update, _first_state(variables)


@functools.cache
def _runner(devices):
    return {1: _on_one_device, 8: _on_all_devices}[devices](_case()[0])


def _drawn(batch):
    """Nothing left to draw in the update, which takes half the time of compiling."""
    targets = DATABASE_LABELS[np.arange(len(batch["index"])) % len(DATABASE_LABELS)]
    return batch | {"start": batch["image"], "target_label": np.float32(targets)}


def test_update_worked_by_hand():
    # The images of defenses_test's plain hashing: u = (0.5, -0.5), unlike each other and the
    # two rows that nobody has seen. Without an attack the second term is DPH of the same codes
    # against the same soft codes: three times its loss, and three times its gradient.
    weight = np.arctanh(0.5)
    params = {"hash": {"kernel": np.array([[weight], [-weight], [0]]), "bias": np.zeros(1)}}
    params = jax.tree.map(np.float32, params)
    labels = np.array([[0, 1], [0, 0], [0, 0], [1, 0]], np.float32)
    bank = objectives.CodeBank(jnp.array([[1.0], [1], [-1], [-1]]), jnp.asarray(labels))
    optimizer = optax.sgd(1.0)
    first = defenses.init_atrdh_state(
        {"params": params},
        optimizer,
        DPH.init(jax.random.key(0), labels, 1),
        bank,
        np.array([[1, 0], [0, 0], [1, 0]]),
        jax.random.key(0, impl="rbg"),
        hidden_width=4,
    )
    np.testing.assert_array_equal(first.defense.target_labels, [[0, 0], [1, 0]])
    batch = {
        "image": np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3),
        "label": np.array([[1, 0], [0, 1], [1, 1]], np.float32),
        "index": np.array([3, 0, 4], np.int32),
        "mask": np.array([1, 1, 0], np.float32),
        "target_label": np.array([[1, 0], [0, 0], [1, 0]], np.float32),
    }
    batch["start"] = batch["image"]
    update = defenses.make_atrdh_update(
        LinearNet(1), DPH, optimizer, seed=0, epsilon=0.0, step_size=0.0, num_steps=0
    )
    state, metrics = _on_one_device(update)(first, batch)
    expected = (2 * 0.75**2 + 2) / 4
    np.testing.assert_allclose(metrics["objective_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["adversarial_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 3 * expected, rtol=1e-6)
    step = 3 * 0.28125 * 2 / 4
    kernel = [[weight + step], [-weight - step], [0]]
    np.testing.assert_allclose(state.params["hash"]["kernel"], kernel, rtol=1e-5, atol=1e-7)
    # Codes for PrototypeNet, soft codes for the second term; unseen rows stay.
    prototype_state = state.defense.prototypes
    np.testing.assert_array_equal(prototype_state.bank.codes, [[-1], [1], [-1], [1]])
    np.testing.assert_array_equal(prototype_state.bank.labels, labels)
    np.testing.assert_allclose(state.defense.soft_codes, [[-0.5], [0], [0], [0.5]], rtol=1e-6)
    np.testing.assert_array_equal(state.defense.target_labels, first.defense.target_labels)
    assert state.step == prototype_state.step == 1 and state.code_bank is None
    kernels = [s.defense.prototypes.params["code"]["kernel"] for s in (first, state)]
    assert not np.array_equal(*kernels)


@functools.cache
def _linear_runner():
    update = defenses.make_atrdh_update(LinearNet(NUM_BITS), DPH, OPTIMIZER, seed=3, **ATRDH)
    return _on_one_device(update)


def test_target_labels_are_drawn_for_the_images():
    first, run = _first_state(_linear_variables(2)), _linear_runner()
    targets, num_real = np.asarray(first.defense.target_labels), 3
    batch = _batch(0, num_real=num_real, rows=num_real, image_size=2)
    batch["start"] = batch["image"]

    def drawn(state, batch):
        """The only choice of labels that makes the same PrototypeNet."""
        state, found = run(state, batch)[0].defense.prototypes.params, []
        for choice in itertools.product(range(len(targets)), repeat=num_real):
            given = run(before, batch | {"target_label": targets[list(choice)]})[0]
            if np.array_equal(
                given.defense.prototypes.params["code"]["bias"], state["code"]["bias"]
            ):
                found.append(choice)
        (choice,) = found
        return choice

    seen = []
    for step in range(4):
        before = first.replace(step=np.int32(step))
        seen.append(drawn(before, batch))
        order = np.array([2, 0, 1])
        shuffled = {name: values[order] for name, values in batch.items()}
        assert drawn(before, shuffled) == tuple(np.array(seen[-1])[order])
    assert len(set(seen)) > 1 and len(set(itertools.chain(*seen))) == len(targets)


@pytest.mark.parametrize(("attack_mode", "passes"), [("train", 5), ("eval", 2)])
def test_attack_mode_decides_which_passes_feed_the_statistics(attack_mode, passes):
    # As for SAAT: with a ball of radius zero every pass sees the same images.
    model = networks.ConvNet(NUM_BITS, False, widths=(4,))
    variables = networks.init_variables(model, jax.random.key(0), image_size=8)
    settings = {"epsilon": 0.0, "step_size": 0.1, "num_steps": 3, "attack_mode": attack_mode}
    update = defenses.make_atrdh_update(model, DPH, OPTIMIZER, seed=0, **settings)
    first, batch = _first_state(variables), _drawn(_batch(0))
    state, _ = _on_one_device(update)(first, batch)
    conv = networks.Conv(4, 3, padding=1, use_bias=False)
    images = batch["image"][batch["mask"] > 0]
    mean = np.mean(conv.apply({"params": first.params["conv_0"]}, images), axis=(0, 1, 2))
    np.testing.assert_allclose(
        state.batch_stats["norm_0"]["mean"], (1 - 0.9**passes) * mean, rtol=1e-4
    )


def test_scale_quirk_counts_every_pass():
    objective = objectives.create_objective("hashnet", scale_quirk=True)
    settings = {"epsilon": 0.0, "step_size": 0.0, "num_steps": 3}
    model = LinearNet(NUM_BITS)
    update = defenses.make_atrdh_update(model, objective, optax.sgd(0.0), seed=0, **settings)
    first, run = _first_state(_linear_variables(2), objective), _on_one_device(update)
    batch = _drawn(_batch(0, num_real=16, image_size=2))
    logits = np.arctanh(networks.make_encode_fn(model)({"params": first.params}, batch["image"]))
    # Of the five passes the first, the last, or one of the attack's is the two hundredth.
    for forwards, benign in ((199, 2**0.5), (195, 1), (197, 1)):
        before = first.objective.replace(forwards=np.int32(forwards))
        state, _ = run(first.replace(objective=before), batch)
        codes = state.defense.soft_codes[batch["index"]]
        np.testing.assert_allclose(codes, np.tanh(benign * logits), atol=1e-5)
        assert state.objective.forwards == forwards + 5
        np.testing.assert_allclose(state.objective.scale, 2**0.5, rtol=1e-6)


# Without a bank, with a count of passes, with parameters.
@pytest.mark.parametrize("name", ["csq", "hashnet", "orthohash"])
def test_every_kind_of_objective_is_hardened(name):
    options = {"random_centers": True} if name == "csq" else {}
    objective = objectives.create_objective(name, **options)
    update = defenses.make_atrdh_update(
        LinearNet(NUM_BITS),
        objective,
        OPTIMIZER,
        seed=3,
        **ATRDH,
        adversarial_weight=1.0,
        softplus=False,
    )
    first = state = _first_state(_linear_variables(2), objective)
    run = _on_one_device(update)
    for seed, num_real in ((1, 16), (2, 3)):
        state, metrics = run(state, _drawn(_batch(seed, num_real=num_real, image_size=2)))
        assert metrics.keys() == {"loss", "objective_loss", "adversarial_loss", "prototype_loss"}
        chex.assert_tree_all_finite((state, metrics))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    assert not np.array_equal(state.params["hash"]["kernel"], first.params["hash"]["kernel"])
    # Without the quirk no pass is counted.
    assert state.objective.forwards == first.objective.forwards
    for parameter, values in state.objective.params.items():
        assert not np.array_equal(values, first.objective.params[parameter])


def test_first_state_and_options_are_checked():
    update = defenses.make_atrdh_update(LinearNet(NUM_BITS), DPH, OPTIMIZER, seed=0, **ATRDH)
    other = _first_state(_linear_variables(2)).replace(defense=None)
    with pytest.raises(ValueError, match="its own part in the state; see init_atrdh_state"):
        update(other, _batch(0, image_size=2), axis_name=parallel.AXIS)
    for wrong, message in (
        ({"attack_mode": "test"}, "unknown attack_mode 'test'"),
        ({"num_steps": -1}, "num_steps must be a whole number from 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            defenses.make_atrdh_update(LinearNet(2), DPH, OPTIMIZER, seed=0, **(ATRDH | wrong))


def test_defense_is_listed_with_its_first_state():
    assert defenses.DEFENSES["atrdh"].make_update is defenses.make_atrdh_update
    assert defenses.DEFENSES["atrdh"].first_state is defenses.init_atrdh_state


# --- devices and padding ---


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


def test_training_repeats_to_the_bit():
    ends = []
    for _ in range(2):
        state = _case()[1]
        for seed, num_real in enumerate((16, 7)):
            state, _ = _runner(8)(state, _batch(seed, num_real=num_real))
        ends.append(state)
    chex.assert_trees_all_equal(*ends)
    assert ends[0].step == ends[0].defense.prototypes.step == 2


# --- against the released code ---


def test_golden_train_atrdh():
    case = golden.load("train_atrdh")
    constants, (num_steps, size) = case.constants, case["index"].shape
    weights, names = case.group("w0."), case.constants["parameter_names"]
    num_bits, num_classes = len(weights["fc.bias"]), case["labels"].shape[1]
    widths = {"feature.0": (4096, num_classes), "feature.2": (512, 4096)}
    widths |= {"hashing.0": (num_bits, 512)}
    shapes = [
        widths[layer] if kind == "weight" else widths[layer][:1]
        for layer, kind in (parameter.rsplit(".", 1) for parameter in names)
    ]
    net, prototype_params = prototypes_test._filled_net(case, "tha", names, shapes)
    schedule = optimizers.milestone_schedule(constants["lr"], num_steps=num_steps)
    optimizer = optimizers.make_optimizer(
        "adam", schedule, num_steps=num_steps, beta1=constants["betas"][0]
    )
    model, variables = tiny.tiny_net(weights), tiny.tiny_variables(weights)
    encode_fn = networks.make_encode_fn(model)
    images = golden.nhwc(case["images"])
    bank = objectives.CodeBank(jnp.sign(encode_fn(variables, images)), case["labels"])
    state = defenses.init_atrdh_state(
        variables,
        optimizer,
        DPH.init(jax.random.key(0), case["labels"], num_bits),
        bank,
        case["target_label"],
        jax.random.key(0, impl="rbg"),
    )
    np.testing.assert_array_equal(state.defense.target_labels, case["target_label"])
    prototype_state = prototypes.PrototypeState(
        np.zeros((), np.int32), prototype_params, optimizer.init(prototype_params), bank
    )
    state = state.replace(defense=state.defense.replace(prototypes=prototype_state))
    settings = {
        "epsilon": constants["eps"],
        "step_size": constants["step"] / 255,
        "num_steps": constants["iteration"],
    }
    run = _on_one_device(defenses.make_atrdh_update(model, DPH, optimizer, seed=0, **settings))
    attack = jax.jit(
        functools.partial(attacks.pgd, encode_fn, targeted=True, loss="mean", **settings)
    )
    rtol, atol = case.tolerance("losses rel"), case.tolerance("weights max abs")
    probe, weight = golden.fills().probe, 2.0
    moving = np.ones(case["pnet_grad_probe"].shape[1:], bool)
    for step in range(num_steps):
        np.testing.assert_allclose(schedule(step), case["lr"][step], rtol=1e-9)
        batch = defenses_test._golden_batch(case, images, step, size)
        batch["start"] = batch["image"] + golden.nhwc(case["uniform_delta"][step])
        batch["target_label"] = np.float32(case["target_label"][case["select_index"][step]])
        real, before = batch["mask"] > 0, state
        soft = net.apply({"params": before.defense.prototypes.params}, batch["target_label"])
        np.testing.assert_allclose(soft[real], case["pnet_code"][step][real], atol=10 * atol)
        adversarial = attack(
            {"params": before.params},
            batch["image"],
            np.sign(case["pnet_code"][step]),
            jax.random.key(0),
            start=batch["start"],
        )
        difference = np.abs(adversarial - golden.nhwc(case["adv_query"][step]))[real]
        assert np.mean(difference < 1e-6) >= case.tolerance("adv_query >=")
        state, metrics = run(state, batch)
        np.testing.assert_allclose(metrics["loss"], case["loss"][step], rtol=rtol)
        np.testing.assert_allclose(metrics["objective_loss"], case["ben"][step], rtol=rtol)
        adversarial_loss = weight * metrics["adversarial_loss"]
        np.testing.assert_allclose(adversarial_loss, case["adv"][step], rtol=rtol)
        np.testing.assert_allclose(metrics["prototype_loss"], case["pnet_loss"][step], rtol=rtol)
        soft_codes = state.defense.soft_codes
        # A code near zero may round either way.
        sure = (np.abs(soft_codes) > 10 * atol) | (soft_codes == 0)
        np.testing.assert_array_equal(
            state.defense.prototypes.bank.codes[sure], case["train_code"][step][sure]
        )
        for number, parameter in enumerate(names):
            probes = case["pnet_grad_probe"][step, number]
            after = probe(
                prototypes_test._golden_leaf(state.defense.prototypes.params, parameter),
                probes.size,
            )
            # Adam makes whole steps of gradients that are nothing but rounding.
            moving[number] &= np.abs(probes) >= 1e-9
            moves = moving[number]
            np.testing.assert_allclose(
                after[moves],
                case["pnet_param_probe_after"][step, number][moves],
                rtol=0,
                atol=atol,
                err_msg=parameter,
            )
        if (step + 1) % (num_steps // constants["epochs"]) == 0:
            expected = case.group(f"w_epoch{step * constants['epochs'] // num_steps}.")
            actual = tiny.tiny_weights(state.params)
            for name, values in expected.items():
                moves = np.abs(case[f"grad0.{name}"]) >= 1e-7
                np.testing.assert_allclose(
                    actual[name][moves], values[moves], rtol=0, atol=atol, err_msg=name
                )
    assert moving.mean() > 0.5
    np.testing.assert_allclose(state.defense.soft_codes, case["U_ben_end"], atol=10 * atol)
    np.testing.assert_allclose(state.objective.bank.codes, case["model_U_end"], atol=10 * atol)


def test_golden_formula_atrdh_adv():
    formula = golden.formula("atrdh_adv")
    codes, soft_codes, similar = (
        np.array(formula.inputs[key], np.float32) for key in ("adv", "U", "S")
    )
    rows, num_bits = codes.shape
    # The image of row i lights one pixel, whose weights give it the soft code of row i.
    height = -(-rows // 3)
    pixels = np.zeros((rows, 3, height, 1), np.float32)
    pixels.reshape(rows, -1)[np.arange(rows), np.arange(rows)] = 1
    kernel = np.zeros((3 * height, num_bits), np.float32)
    kernel[:rows] = np.arctanh(codes)
    params = {"hash": {"kernel": kernel, "bias": np.zeros(num_bits, np.float32)}}
    # Row i has label i alone, and so have the bank rows that it is like.
    labels = np.float32(similar.T > 0)
    optimizer = optax.sgd(1.0)

    class Nothing(objectives.Dph):
        def loss(self, state, soft_codes, labels, context):
            return jnp.zeros(len(soft_codes))

    nothing = Nothing()
    state = defenses.init_atrdh_state(
        {"params": params},
        optimizer,
        objectives.State(),
        objectives.CodeBank(jnp.sign(soft_codes), jnp.asarray(labels)),
        np.eye(rows),
        jax.random.key(0, impl="rbg"),
        hidden_width=4,
    )
    state = state.replace(defense=state.defense.replace(soft_codes=soft_codes))
    update = defenses.make_atrdh_update(
        LinearNet(num_bits), nothing, optimizer, seed=0, epsilon=0.0, step_size=0.0, num_steps=0
    )
    batch = {
        "image": golden.nhwc(pixels),
        "label": np.eye(rows, dtype=np.float32),
        # No row of the bank: that stays as the vector has it.
        "index": np.full(rows, len(labels), np.int32),
        "mask": np.ones(rows, np.float32),
        "target_label": np.eye(rows, dtype=np.float32),
    }
    batch["start"] = batch["image"]
    state, metrics = _on_one_device(update)(state, batch)
    formula.assert_close(metrics["loss"], formula.expected["loss"])
    # Through tanh to the weights of the row's one pixel.
    gradient = np.array(formula.expected["grad"]) * (1 - np.square(codes))
    formula.assert_close((kernel - state.params["hash"]["kernel"])[:rows], gradient)


def test_golden_formula_adam():
    formula = golden.formula("adam")
    words = re.search(r"lr=(\S+) betas=\((\S+),", training_test._description("adam"))
    rate, beta1 = map(float, words.groups())
    gradients = formula.inputs["grads"]
    optimizer = optimizers.make_optimizer(
        "adam", lambda _: rate, num_steps=len(gradients), beta1=beta1
    )
    path = training_test._minimise(optimizer, formula.inputs["p0"], gradients)
    formula.assert_close(path, formula.expected["p"])
