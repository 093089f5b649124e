"""PrototypeNet: its losses by hand and against slow loops, its training against the released."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import attacks, hamming, objectives, optimizers, parallel, prototypes, training
from tests import golden, tiny

WRAPS = [jax.jit, lambda function: function]
NUM_BITS, NUM_CLASSES, BANK_SIZE = 6, 4, 20
OPTIONS = [
    ("tha", {"pairs": "circle"}),
    ("tha", {"pairs": "circle", "softplus": False}),
    ("prosgan", {"pairs": "likelihood"}),
    ("prosgan", {"pairs": "likelihood", "reduction": "sum"}),
    ("prosgan", {"pairs": "circle"}),
]
OPTIMIZER = optax.adam(1e-2, b1=0.5)
# PyTorch's names of the layers.
LAYERS = {
    "feature.0": "hidden",
    "feature.2": "semantics",
    "hashing.0": "code",
    "classifier.0": "classes",
}


def _net(name):
    return prototypes.create_prototype_net(
        name, num_bits=NUM_BITS, num_classes=NUM_CLASSES, hidden_width=16, semantics_width=8
    )


def _bank(seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1.0, 1.0], (BANK_SIZE, NUM_BITS)).astype(np.float32)
    labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.4).astype(np.float32)
    return objectives.CodeBank(codes, labels)


def _batch(seed, *, num_real=13, rows=16):
    rng = np.random.default_rng(seed)
    return {
        "label": (rng.random((rows, NUM_CLASSES)) < 0.4).astype(np.float32),
        "mask": (np.arange(rows) < num_real).astype(np.float32),
    }


@functools.cache
def _first_state(name):
    init = functools.partial(prototypes.init_prototype_state, _net(name), OPTIMIZER)
    return jax.jit(init)(_bank(), jax.random.key(0, impl="rbg"))


def _output(name, seed, *, rows=16):
    """What a network might make of a batch."""
    rng = np.random.default_rng(seed)
    soft_codes = np.tanh(rng.normal(size=(rows, NUM_BITS))).astype(np.float32)
    if name == "tha":
        return soft_codes
    probabilities = rng.random((rows, NUM_CLASSES), np.float32)
    return prototypes.Prototypes(np.zeros((rows, 2), np.float32), soft_codes, probabilities)


# --- networks ---


def test_prosgan_net_has_the_published_size():
    net = prototypes.create_prototype_net("prosgan", num_bits=32, num_classes=21)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 21)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_214_965
    params.pop("classes")
    tha = prototypes.create_prototype_net("tha", num_bits=32, num_classes=21)
    chex.assert_trees_all_equal_shapes(
        params, jax.eval_shape(tha.init, jax.random.key(0), jnp.zeros((1, 21)))["params"]
    )


def test_a_net_of_four_layers_has_one_hidden_layer_more():
    net = prototypes.create_prototype_net(
        "prosgan", num_bits=6, num_classes=4, hidden_width=8, semantics_width=5, num_hidden=2
    )
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    params = net.init(jax.random.key(0), labels)["params"]
    x = labels
    for layer in ("hidden", "hidden_2"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    semantics = x @ params["semantics"]["kernel"] + params["semantics"]["bias"]
    codes = np.tanh(semantics @ params["code"]["kernel"] + params["code"]["bias"])
    output = net.apply({"params": params}, labels)
    np.testing.assert_allclose(output.semantics, semantics, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.soft_codes, codes, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="num_hidden must be a whole number"):
        prototypes.create_prototype_net("tha", num_bits=6, num_classes=4, num_hidden=0)


@pytest.mark.parametrize("name", sorted(prototypes.PROTOTYPE_NETS))
def test_nets_begin_with_pytorch_s_bounds(name):
    net = prototypes.create_prototype_net(name, num_bits=32, num_classes=9, hidden_width=400)
    params = jax.jit(net.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 9)))["params"]
    for layer, leaves in params.items():
        bound = leaves["kernel"].shape[0] ** -0.5
        for leaf in leaves.values():
            assert np.abs(leaf).max() <= bound
            # The variance of a uniform value in +-1/sqrt(n) is 1 / 3n.
        np.testing.assert_allclose(leaves["kernel"].std(), bound / 3**0.5, rtol=0.1, err_msg=layer)


def test_unknown_net_is_named():
    with pytest.raises(ValueError, match=r"'gan'; expected one of \['prosgan', 'tha'\]"):
        prototypes.create_prototype_net("gan", num_bits=8, num_classes=3)


@pytest.mark.parametrize("num_labels", [1, 21])
@pytest.mark.parametrize("name", sorted(prototypes.PROTOTYPE_NETS))
def test_encode_labels_in_batches(name, num_labels):
    net, params = _net(name), _first_state(name).params
    labels = _batch(0, rows=num_labels)["label"]
    whole = net.apply({"params": params}, labels)
    parts = prototypes.encode_labels(net, params, labels, batch_size=8)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
    soft_codes = whole if name == "tha" else whole.soft_codes
    codes = prototypes.prototype_codes(net, params, labels, batch_size=8)
    assert codes.shape == (num_labels, NUM_BITS)
    np.testing.assert_array_equal(codes, np.where(soft_codes >= 0, 1, -1))


# --- losses ---


def test_circle_pairs_worked_by_hand():
    labels = np.array([[1, 0], [9, 9], [0, 1], [0, 0]], np.float32)
    bank_labels = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], np.float32)
    # Row 0 keeps columns 1 to 3. Row 1 is padding and does not count, so row 2 is the second
    # and keeps columns 2 and 3. The third, which has no label, is unlike column 3.
    mask = np.array([1, 0, 1, 1], np.float32)
    positive, negative = prototypes.circle_pairs(labels, bank_labels, mask)
    np.testing.assert_array_equal(positive, [[0, 1, 0, 1], [0] * 4, [0, 0, 1, 0], [0] * 4])
    np.testing.assert_array_equal(negative, [[0, 0, 1, 0], [0] * 4, [0, 0, 0, 1], [0, 0, 0, 1]])


def test_circle_loss_worked_by_hand():
    similarities = np.array([0.5, -0.5, 0.2], np.float32)
    positive, negative = np.array([[1, 0, 0], [0, 1, 1]], bool)
    # Positive: weight 1.5, term -0.75, alone in its sum. Negative: weights 1.5 and 2.2.
    expected = -0.75 + np.log(np.exp(-0.75) + np.exp(0.44))
    loss = functools.partial(prototypes.circle_loss, similarities, positive, negative)
    np.testing.assert_allclose(loss(softplus=False), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(softplus=True), np.log1p(np.exp(expected)), rtol=1e-6)


@pytest.mark.parametrize("wrap", WRAPS)
def test_circle_loss_without_pairs_of_a_kind(wrap):
    similarities, none = jnp.array([0.5, -0.5]), np.zeros(2, bool)
    some = np.array([False, True])

    def loss(softplus):
        function = functools.partial(prototypes.circle_loss, softplus=softplus)
        return wrap(jax.value_and_grad(function))

    for positive, negative in ((some, none), (none, some), (none, none)):
        value, gradient = loss(True)(similarities, positive, negative)
        assert value == 0 and not gradient.any()
    # Without softplus the half that has pairs stays: a s = 1.5 * -0.5, with gradient a.
    value, gradient = loss(False)(similarities, none, some)
    assert value == -0.75
    np.testing.assert_allclose(gradient, [0, 1.5])
    value, gradient = loss(False)(similarities, some, none)
    assert value == 1.25
    np.testing.assert_allclose(gradient, [0, -2.5])
    value, gradient = loss(False)(similarities, none, none)
    assert value == 0 and not gradient.any()


def _slow_loss(output, labels, bank, *, pairs, softplus=True, reduction="mean"):
    """The terms of `prototype_loss` on real rows, by loops."""
    is_tha = not isinstance(output, prototypes.Prototypes)
    soft_codes = np.float64(output if is_tha else output.soft_codes)
    rows, columns = len(soft_codes), len(bank.codes)
    count, sums = (rows if reduction == "mean" else 1), {True: 0.0, False: 0.0}
    likelihood = 0.0
    for i, j in np.ndindex(rows, columns):
        shared = any(a and b for a, b in zip(labels[i], bank.labels[j], strict=True))
        product = sum(a * b for a, b in zip(soft_codes[i], bank.codes[j], strict=True))
        likelihood += np.log1p(np.exp(product / 2)) - shared * product / 2
        s = product / NUM_BITS
        if j > i:
            sums[shared] += np.exp(-max(2 - s, 0) * s if shared else max(2 + s, 0) * s)
    circle = np.log(sums[True]) + np.log(sums[False])
    circle = np.log1p(np.exp(circle)) if softplus else circle
    each = columns if reduction == "mean" else 1
    terms = {
        "pair_loss": (circle if pairs == "circle" else likelihood / each) / count,
        "quantization_loss": np.sum((1 - np.abs(soft_codes)) ** 2) / 1e4 / count,
    }
    if not is_tha:
        errors = [(p - y) ** 2 for p, y in zip(output[2].flat, labels.flat, strict=True)]
        terms["class_loss"] = sum(errors) / (len(errors) if reduction == "mean" else 1)
    return {"loss": sum(terms.values()), **terms}


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_loss_agrees_with_slow_loops(name, options):
    loss = jax.jit(functools.partial(prototypes.prototype_loss, **options))
    for seed, num_real in ((0, 16), (1, 5), (2, 1)):
        output, batch, bank = _output(name, seed), _batch(seed, num_real=num_real), _bank(seed)
        actual = loss(output, batch["label"], bank, batch["mask"])
        real = jax.tree.map(lambda x, n=num_real: x[:n], output)
        expected = _slow_loss(real, batch["label"][:num_real], bank, **options)
        assert actual.keys() == expected.keys()
        for term in expected:
            np.testing.assert_allclose(actual[term], expected[term], rtol=2e-5, err_msg=term)


@pytest.mark.parametrize(("name", "options"), OPTIONS[:4])
def test_loss_is_finite_at_the_edges(name, options):

    @jax.jit
    @jax.value_and_grad
    def loss(output, labels, bank, mask):
        return prototypes.prototype_loss(output, labels, bank, mask, **options)["loss"]

    # No label at all, shared labels alone, padding alone, a bank of one entry.
    bank = _bank()
    cases = [
        (np.zeros(NUM_CLASSES), np.ones(16), bank),
        (np.ones(NUM_CLASSES), np.ones(16), bank.replace(labels=np.ones_like(bank.labels))),
        (np.ones(NUM_CLASSES), np.zeros(16), bank),
        (np.ones(NUM_CLASSES), np.ones(16), jax.tree.map(lambda x: x[:1], bank)),
    ]
    for label, mask, case_bank in cases:
        labels = np.tile(label.astype(np.float32), (16, 1))
        value_and_gradient = loss(_output(name, 0), labels, case_bank, mask)
        chex.assert_tree_all_finite(value_and_gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "dpsh"}, "unknown pairs 'dpsh'"),
        ({"pairs": "circle", "reduction": "max"}, "unknown reduction 'max'"),
    ],
)
def test_loss_options_are_checked(options, message):
    batch = _batch(0)
    with pytest.raises(ValueError, match=message):
        prototypes.prototype_loss(
            _output("tha", 0), batch["label"], _bank(), batch["mask"], **options
        )


# --- batches of target labels ---


def test_target_label_batches():
    database = np.array([[0, 1], [1, 1], [0, 0], [0, 1], [1, 1], [1, 1]], np.float64)
    draw = functools.partial(prototypes.target_label_batches, database, batch_size=600, seed=3)
    batches = list(draw(num_steps=4))
    assert len(batches) == 4
    for batch in batches:
        assert batch["label"].dtype == batch["mask"].dtype == np.float32
        np.testing.assert_array_equal(batch["mask"], np.ones(600))
        # Each of the three distinct labels, however often the database has it.
        rows, counts = np.unique(batch["label"], axis=0, return_counts=True)
        np.testing.assert_array_equal(rows, [[0, 0], [0, 1], [1, 1]])
        assert counts.min() > 150
    assert not np.array_equal(batches[0]["label"], batches[1]["label"])
    # A restart replays the rest; two processes share each batch; another seed draws anew.
    chex.assert_trees_all_equal(list(draw(num_steps=4, start_step=2)), batches[2:])
    halves = [next(draw(num_steps=1, process_index=i, process_count=2)) for i in range(2)]
    joined = np.concatenate([half["label"] for half in halves])
    np.testing.assert_array_equal(joined, batches[0]["label"])
    # Batches that do not divide by the devices are filled up.
    filled = [
        next(draw(num_steps=1, num_devices=64, process_index=i, process_count=2)) for i in range(2)
    ]
    labels, mask = (np.concatenate([half[name] for half in filled]) for name in ("label", "mask"))
    assert len(mask) == 640 and mask.sum() == 600
    np.testing.assert_array_equal(labels[mask > 0], batches[0]["label"])
    other = next(draw(num_steps=1, seed=4))
    assert not np.array_equal(other["label"], batches[0]["label"])


@pytest.mark.parametrize("batch_size", [0, 7])
def test_batch_that_cannot_be_shared_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"multiple of the 2 processes, got {batch_size}"):
        prototypes.target_label_batches(
            np.eye(2), batch_size=batch_size, seed=0, num_steps=1, process_count=2
        )


# --- training ---


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
    mapped = parallel.map_update(update)

    def run(state, batch):
        state, metrics = mapped(parallel.replicate(state), parallel.shard_batch(batch))
        assert parallel.replicas_agree((state, metrics))
        return parallel.unreplicate(state), parallel.unreplicate(metrics)

    return run


@functools.cache
def _runner(number, devices):
    """The update of a row of `OPTIONS`, over one device or all eight."""
    name, options = OPTIONS[number]
    update = prototypes.make_prototype_update(_net(name), OPTIMIZER, **options)
    return {1: _on_one_device, 8: _on_all_devices}[devices](update)


@pytest.mark.parametrize("number", [0, 2])
def test_one_device_and_eight_agree_and_padding_has_no_influence(number):
    assert jax.local_device_count() == 8
    first = _first_state(OPTIONS[number][0])
    # The second batch is short: most devices have nothing but padding.
    batches = [_batch(seed, num_real=num_real) for seed, num_real in ((1, 16), (2, 3))]
    rubbish = [batch | {"label": batch["label"].copy()} for batch in batches]
    rubbish[1]["label"][3:] = 7
    one, eight, ends = _runner(number, 1), _runner(number, 8), []
    for run, data in ((one, batches), (eight, batches), (eight, rubbish)):
        state = first
        for batch in data:
            state, metrics = run(state, batch)
        ends.append((state, metrics))
    chex.assert_trees_all_equal_shapes_and_dtypes(*ends)
    chex.assert_trees_all_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(ends[1], ends[2])
    state, metrics = ends[0]
    chex.assert_tree_all_finite((state, metrics))
    assert state.step == 2 and state.step.dtype == np.int32
    chex.assert_trees_all_equal(state.bank, first.bank)
    for layer, leaves in state.params.items():
        assert not np.array_equal(leaves["kernel"], first.params[layer]["kernel"])


@pytest.mark.parametrize("number", [0, 2])
def test_training_finds_codes_of_the_labels(number):
    # All images of a class have one code, which the prototype of the class must come to.
    rng = np.random.default_rng(0)
    class_codes = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, -1, -1, -1], [-1] * 6], np.float32)
    classes = rng.integers(3, size=BANK_SIZE)
    labels, losses = np.eye(3, NUM_CLASSES, dtype=np.float32), []
    bank, name = objectives.CodeBank(class_codes[classes], labels[classes]), OPTIONS[number][0]
    state, run = _first_state(name).replace(bank=bank), _runner(number, 1)
    for batch in prototypes.target_label_batches(labels, batch_size=16, seed=0, num_steps=60):
        state, metrics = run(state, batch)
        losses.append(metrics["loss"])
    assert losses[-1] < losses[0]
    codes = prototypes.prototype_codes(_net(name), state.params, labels)
    distances = hamming.hamming_distance(codes, class_codes)
    np.testing.assert_array_equal(np.argmin(distances, axis=1), range(3))


def test_training_loop_resumes_with_the_same_bits(tmp_path):
    state, (name, options) = _first_state("tha"), OPTIONS[0]
    train = functools.partial(
        training.train,
        prototypes.make_prototype_update(_net(name), OPTIMIZER, **options),
        state,
        lambda step: prototypes.target_label_batches(
            _bank().labels, batch_size=16, seed=0, start_step=step, num_steps=4
        ),
        folder=tmp_path,
        steps_per_epoch=2,
        schedule=lambda step: 1e-2,
        metadata={"identity": {}},
        progress=False,
    )
    assert train(num_epochs=1).step == 2
    resumed = train(num_epochs=2)
    for batch in prototypes.target_label_batches(
        _bank().labels, batch_size=16, seed=0, num_steps=4
    ):
        state, _ = _runner(0, 8)(state, batch)
    chex.assert_trees_all_equal(resumed, state)


@pytest.mark.parametrize("cut", [{"codes": 2}, {"labels": 2}])
def test_bank_must_suit_the_network(cut):
    bank = _bank()
    bank = bank.replace(**{name: getattr(bank, name)[:, :width] for name, width in cut.items()})
    with pytest.raises(ValueError, match=r"codes of 6 bits as labels of 4 classes, got shapes \("):
        prototypes.init_prototype_state(_net("tha"), optax.sgd(1.0), bank, jax.random.key(0))


def test_schedule_is_the_published_one():
    schedule = optimizers.make_schedule("milestones", 1e-4, num_epochs=100, steps_per_epoch=300)
    steps, rates = (0, 14_999, 15_000, 22_499, 22_500, 29_999), (1, 1, 0.1, 0.1, 0.01, 0.01)
    np.testing.assert_allclose([schedule(step) for step in steps], np.array(rates) * 1e-4)


# --- against the released code ---


def _filled_net(case, name, names, shapes):
    """The network of a golden case and its parameters, filled as `gold_fills.py` says."""
    params = {}
    for number, (parameter, shape) in enumerate(zip(names, shapes, strict=True)):
        layer, kind = parameter.rsplit(".", 1)
        constants = case.constants
        values = golden.fills().fill_array(
            parameter, shape, number + constants["fill_offset"], constants["fill_gain"]
        )
        leaf = {"weight": "kernel", "bias": "bias"}[kind]
        params.setdefault(LAYERS[layer], {})[leaf] = values.T
    num_classes, hidden_width = params["hidden"]["kernel"].shape
    net = prototypes.create_prototype_net(
        name,
        num_bits=params["code"]["bias"].size,
        num_classes=num_classes,
        hidden_width=hidden_width,
        semantics_width=params["semantics"]["bias"].size,
    )
    return net, params


def _golden_leaf(params, parameter):
    """A parameter by PyTorch's name, in PyTorch's layout."""
    layer, kind = parameter.rsplit(".", 1)
    return np.asarray(params[LAYERS[layer]][{"weight": "kernel", "bias": "bias"}[kind]]).T


@pytest.mark.parametrize("name", ["tha", "prosgan"])
def test_golden_prototype_net(name):
    case = golden.load(f"{name}_prototype_net")
    _, names, shapes, _ = zip(*case.constants["state_dict"], strict=True)
    net, params = _filled_net(case, name, names, shapes)
    output, states = net.apply({"params": params}, case["label"], capture_intermediates=True)
    semantics = states["intermediates"]["semantics"]["__call__"][0]
    atol = case.tolerance("abs")
    rtol = case.tolerance("rel") if "rel" in case.tolerance_text else 0
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    close(semantics, case["feature"])
    if name == "tha":
        close(output, case["code"])
    else:
        close(output.semantics, case["feature"])
        close(output.soft_codes, case["hash"])
        close(output.class_probabilities, case["label_pred"])


@pytest.mark.parametrize("name", ["tha", "prosgan"])
def test_golden_prototype_training(name):
    case = golden.load(f"{name}_prototype_training")
    constants, names = case.constants, case.constants["parameter_names"]
    is_tha = name == "tha"
    distinct = case["unique_label" if is_tha else "target_labels"]
    bank = objectives.CodeBank(
        *(case[key] for key in (("train_code", "train_label") if is_tha else ("B", "train_labels")))
    )
    classes, bits = distinct.shape[1], bank.codes.shape[1]
    widths = {"feature.0": (4096, classes), "feature.2": (512, 4096)}
    widths |= {"hashing.0": (bits, 512), "classifier.0": (classes, 512)}
    shapes = [
        widths[layer] if kind == "weight" else widths[layer][:1]
        for layer, kind in (parameter.rsplit(".", 1) for parameter in names)
    ]
    net, params = _filled_net(case, name, names, shapes)
    # ProS-GAN's are in the case's words only.
    betas = constants.get("betas", (0.5, 0.999))
    learning_rate = constants.get("lr", 1e-4)
    optimizer = optax.adam(learning_rate, *betas)
    options = {"pairs": "circle" if is_tha else "likelihood"}
    run = _on_one_device(prototypes.make_prototype_update(net, optimizer, **options))
    state = prototypes.PrototypeState(np.zeros((), np.int32), params, optimizer.init(params), bank)

    @jax.jit
    def gradient_of(params, labels, mask):
        def loss(params):
            output = net.apply({"params": params}, labels)
            return prototypes.prototype_loss(output, labels, bank, mask, **options)["loss"]

        return jax.grad(loss)(params)

    probe = golden.fills().probe
    rtol, gradient_rtol = case.tolerance("losses rel"), case.tolerance("gradients rel")
    atol, still = case.tolerance("parameters abs"), case.tolerance("|grad|")
    assert len(case["select_index"]) == len(case["loss"])
    moving = 0
    for step, rows in enumerate(case["select_index"]):
        batch = {"label": np.float32(distinct[rows]), "mask": np.ones(len(rows), np.float32)}
        soft_codes = prototypes.encode_labels(net, state.params, batch["label"])
        soft_codes = soft_codes if is_tha else soft_codes.soft_codes
        expected = case["code" if is_tha else "hash"][step]
        np.testing.assert_allclose(soft_codes, expected, rtol=rtol, atol=rtol)
        gradients = gradient_of(state.params, batch["label"], batch["mask"])
        state, metrics = run(state, batch)
        terms = {"loss": "loss", "pair_loss": "logloss", "quantization_loss": "regterm"}
        terms |= {} if is_tha else {"class_loss": "cls"}
        assert metrics.keys() == terms.keys()
        for term, key in terms.items():
            np.testing.assert_allclose(metrics[term], case[key][step], rtol=rtol, err_msg=term)
        for number, parameter in enumerate(names):
            probes, (_, _, largest) = (
                case["grad_probe"][step, number],
                case["grad_stat"][step][number],
            )
            gradient = probe(_golden_leaf(gradients, parameter), probes.size)
            np.testing.assert_allclose(
                gradient, probes, rtol=0, atol=gradient_rtol * largest, err_msg=parameter
            )
            moves = np.abs(probes) >= still
            moving += moves.sum()
            after = probe(_golden_leaf(state.params, parameter), probes.size)
            np.testing.assert_allclose(
                after[moves],
                case["param_probe_after"][step, number][moves],
                rtol=0,
                atol=atol,
                err_msg=parameter,
            )
    assert moving > case["grad_probe"].size / 2


def test_golden_tha_circle_loss():
    case = golden.load("tha_circle_loss")
    codes, labels = case["batch_feature"], case["batch_label"]
    num_bits, mask = codes.shape[1], np.ones(len(codes), np.float32)
    positive, negative = prototypes.circle_pairs(labels, case["labels"], mask)
    rtol = case.tolerance("rel")

    def similarities(codes):
        product = jnp.matmul(codes, case["features"].T, precision=jax.lax.Precision.HIGHEST)
        return product / num_bits

    for pairs, key in ((positive, "sp"), (negative, "sn")):
        kept = similarities(codes)[pairs]
        np.testing.assert_allclose(kept, case[key], rtol=rtol, atol=rtol)

    def loss(codes, positive, gamma=1.0):
        return prototypes.circle_loss(
            similarities(codes), positive, negative, softplus=True, gamma=gamma
        )

    np.testing.assert_allclose(loss(codes, positive, 4.0), case["loss_gamma4"], rtol=rtol)
    value, gradient = jax.value_and_grad(loss)(codes, positive)
    np.testing.assert_allclose(value, case["loss"], rtol=rtol)
    expected = case["grad_batch_feature"]
    np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    value, gradient = jax.value_and_grad(loss)(codes, np.zeros_like(positive))
    np.testing.assert_array_equal(value, case["loss_no_positive"])
    np.testing.assert_array_equal(gradient, case["grad_no_positive"])


def test_golden_formula_circle_loss():
    formula = golden.formula("circle_loss")
    positives, negatives = (np.array(formula.inputs[key], np.float32) for key in ("sp", "sn"))
    similarities = np.append(positives, negatives)
    positive = np.arange(len(similarities)) < len(positives)
    for softplus, key in ((True, "softplus"), (False, "plain")):
        loss = functools.partial(prototypes.circle_loss, softplus=softplus)
        value, gradient = jax.value_and_grad(loss)(jnp.array(similarities), positive, ~positive)
        formula.assert_close(value, formula.expected[f"loss_{key}"])
        formula.assert_close(gradient, formula.expected[f"grad_{key}"])


def _formula_arrays(formula):
    return {name: np.array(values, np.float32) for name, values in formula.inputs.items()}


def test_golden_formula_circle_pairs():
    formula = golden.formula("circle_pairs")
    arrays = _formula_arrays(formula)
    codes, mask = arrays["h"], np.ones(len(arrays["h"]), np.float32)
    bank = objectives.CodeBank(arrays["train_codes"], arrays["train_labels"])
    pairs = prototypes.circle_pairs(arrays["batch_labels"], bank.labels, mask)
    similarities = np.array(formula.expected["sim"])
    for kept, key in zip(pairs, ("sp", "sn"), strict=True):
        formula.assert_close(similarities[kept], formula.expected[key])
    terms = prototypes.prototype_loss(codes, arrays["batch_labels"], bank, mask, pairs="circle")
    formula.assert_close(terms["pair_loss"] * len(codes), formula.expected["loss_softplus"])


def test_golden_formula_prosgan_prototype_loss():
    formula = golden.formula("prosgan_prototype_loss")
    arrays = _formula_arrays(formula)
    codes, mask = arrays["h"], np.ones(len(arrays["h"]), np.float32)
    bank = objectives.CodeBank(arrays["train_codes"], arrays["train_labels"])
    output = prototypes.Prototypes(codes, codes, arrays["label_pred"])
    loss = functools.partial(
        prototypes.prototype_loss, output, arrays["target_labels"], bank, mask, pairs="likelihood"
    )
    terms = {"pair_loss": "j1", "quantization_loss": "j2", "class_loss": "j3"}
    released, printed = loss(), loss(reduction="sum")
    # The printed sums: over rows and bank, over rows alone, over rows and classes.
    sizes = len(codes) * len(bank.codes), len(codes), arrays["label_pred"].size
    for (term, key), size in zip(terms.items(), sizes, strict=True):
        formula.assert_close(released[term], formula.expected[key])
        formula.assert_close(printed[term] / size, formula.expected[key])
    formula.assert_close(released["loss"], formula.expected["total"])


def test_golden_tha_attack():
    case = golden.load("tha_attack")
    weights, epsilon = case.group("w0."), case.constants["eps"]
    images, target_codes = golden.nhwc(case["images"]), case["target_code"]
    model, variables = tiny.tiny_net(weights), tiny.tiny_variables(weights)

    @functools.partial(jax.jit, static_argnames=("num_steps", "step_size"))
    def attack(images, start, *, num_steps, alphas=None, step_size=1 / 255):
        return attacks.pgd(
            model.apply,
            variables,
            images,
            target_codes,
            jax.random.key(0),
            epsilon=epsilon,
            step_size=step_size,
            num_steps=num_steps,
            targeted=True,
            loss="mean",
            alphas=alphas,
            start=start,
        )

    def assert_close(adversarial, expected, num_steps):
        adversarial = np.asarray(adversarial)
        # Adds up to float32 rounding of a pixel near 1.
        assert np.abs(adversarial - images).max() <= epsilon + 1.2e-7
        equal = np.abs(adversarial - golden.nhwc(expected)) < case.tolerance("pixels with |diff|<")
        few = num_steps <= case.tolerance("at T<=")
        assert equal.mean() >= case.tolerance("|diff|<1e-6 >=" if few else ", >="), num_steps

    for key in case.group("adv_T"):
        num_steps = int(key)
        alphas = attacks.alpha_schedule(num_steps)
        adversarial = attack(images, images, num_steps=num_steps, alphas=alphas)
        assert_close(adversarial, case[f"adv_T{key}"], num_steps)
        losses, first = case[f"loss_T{key}"], case.tolerance("first iteration")
        codes = model.apply(variables, images, alphas[0])
        loss = attacks.mean_loss(codes, target_codes, targeted=True).mean()
        np.testing.assert_allclose(loss, losses[0], rtol=0, atol=first)
    # As ATRDH attacks in training: larger steps from a random start, at full scale.
    official = golden.manifest()[case.name]["official"]
    step, num_steps = map(int, re.search(r"step=(\d+), iteration=(\d+)", official).groups())
    start = images + golden.nhwc(case["atrdh_uniform_delta"])
    adversarial = attack(images, start, num_steps=num_steps, step_size=step / 255)
    assert_close(adversarial, case["atrdh_adv"], num_steps)
