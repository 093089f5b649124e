"""The hashing objectives: by hand, by loops, over devices, against the papers' code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import defenses, objectives
from saat_jax import options as declared
from tests import defenses_test, golden, reference

WRAPS = [jax.jit, lambda function: function]
NAMES = sorted(objectives.OBJECTIVES)
KEY = jax.random.key(0)
BANK_SIZE, NUM_BITS, NUM_CLASSES = 24, 8, 5


def _random_problem(seed, *, batch=4, bank_size=11, num_bits=6, num_classes=5):
    """A batch and a bank; one query and one row without a label, one row not seen."""
    rng = np.random.default_rng(seed)
    soft_codes = rng.uniform(-1, 1, (batch, num_bits)).astype(np.float32)
    labels = (rng.random((batch, num_classes)) < 0.4).astype(np.float32)
    bank_codes = rng.uniform(-1, 1, (bank_size, num_bits)).astype(np.float32)
    bank_labels = (rng.random((bank_size, num_classes)) < 0.4).astype(np.float32)
    labels[0], bank_labels[0], bank_codes[1], bank_labels[1] = 0, 0, 0, 0
    return soft_codes, labels, objectives.CodeBank(jnp.array(bank_codes), jnp.array(bank_labels))


# --- the state ---


@pytest.mark.parametrize("known_labels", [False, True])
def test_init_bank_has_seen_no_image(known_labels):
    labels = np.eye(5, 2, dtype=np.float32)
    bank = objectives.init_bank(labels, 3, known_labels=known_labels)
    assert bank.codes.shape == (5, 3) and not np.any(bank.codes)
    np.testing.assert_array_equal(bank.labels, labels * known_labels)
    assert bank.codes.dtype == bank.labels.dtype == jnp.float32


@pytest.mark.parametrize("wrap", WRAPS)
def test_update_bank_worked_by_hand(wrap):
    bank = objectives.CodeBank(jnp.ones((4, 2)), jnp.zeros((4, 1)))
    codes, labels = jnp.array([[0.5, -0.5], [0.25, 0], [9, 9]]), jnp.array([[1.0], [1], [9]])
    # Rows 2 and 0 are written; row 4 of a bank of 4 is padding.
    bank = wrap(objectives.update_bank)(bank, codes, labels, jnp.array([2, 0, 4]))
    np.testing.assert_array_equal(bank.codes, [[0.25, 0], [1, 1], [0.5, -0.5], [1, 1]])
    np.testing.assert_array_equal(bank.labels, [[1], [0], [1], [0]])


@pytest.mark.parametrize("seed", range(3))
def test_update_bank_matches_reference(seed):
    soft_codes, labels, bank = _random_problem(seed)
    index = np.random.default_rng(seed).permutation(len(bank.codes))[: len(soft_codes)]
    updated = objectives.update_bank(bank, soft_codes, labels, index)
    codes, bank_labels = np.array(bank.codes), np.array(bank.labels)
    for row, code, label in zip(index, soft_codes, labels, strict=True):
        codes[row], bank_labels[row] = code, label
    np.testing.assert_array_equal(updated.codes, codes)
    np.testing.assert_array_equal(updated.labels, bank_labels)


def test_bank_is_a_constant_for_differentiation():
    soft_codes, labels, bank = _random_problem(0)

    def total(soft_codes):
        return objectives.update_bank(bank, soft_codes, labels, jnp.arange(4)).codes.sum()

    np.testing.assert_array_equal(jax.grad(total)(soft_codes), 0)


def test_update_state_feeds_the_running_statistics_without_padding():
    state = objectives.State(mean=jnp.array([1.0]), var=jnp.array([1.0]))
    soft_codes, mask = jnp.array([[0.5], [-0.5], [9.0]]), jnp.array([1.0, 1, 0])
    # Mean 0 and unbiased variance (0.25 + 0.25) / 1, each taken in by a tenth.
    state = objectives.update_state(state, soft_codes, jnp.ones((3, 1)), jnp.arange(3), mask)
    np.testing.assert_allclose(state.mean, [0.9])
    np.testing.assert_allclose(state.var, [0.95])


def test_next_forward_moves_the_scale_at_multiples_of_200():
    state = objectives.HashNet().init(KEY, np.zeros((1, 1)), 1)
    scales = []
    for forwards in (0, 197, 198, 199, 200, 398, 399):
        state, scale = objectives.next_forward(
            dataclasses.replace(state, forwards=jnp.int32(forwards))
        )
        assert state.forwards == forwards + 1
        scales.append(float(scale))
    np.testing.assert_allclose(scales, [1, 1, 1, 2**0.5, 2**0.5, 2**0.5, 3**0.5], rtol=1e-6)


def test_objectives_without_continuation_have_scale_one():
    state = objectives.State()
    assert objectives.next_forward(state) == (state, 1.0)


# --- losses on pairs ---


def test_similarity_worked_by_hand():
    labels = jnp.array([[1.0, 1, 0], [0, 0, 0]])
    bank_labels = jnp.array([[0.0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    # A query without a label is similar to nothing, not even to its like.
    expected = [[1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(objectives.similarity(labels, bank_labels), expected)


def test_dph_worked_by_hand():
    bank = objectives.CodeBank(jnp.array([[1.0, 1], [1, -1]]), jnp.array([[1.0], [0]]))
    # Agreements (0.5 + 0.5) / 2 = 0.5 and 0; wanted are +1 and -1.
    loss = objectives.dph(jnp.array([[0.5, 0.5]]), jnp.ones((1, 1)), bank)
    np.testing.assert_allclose(loss, [(0.5**2 + 1) / 2])


def test_dpsh_worked_by_hand():
    bank = objectives.CodeBank(jnp.array([[1.0, 1], [1, -1]]), jnp.array([[1.0], [0]]))
    arguments = jnp.array([[0.5, 0.5]]), jnp.ones((1, 1)), bank
    # Logits 0.5, of a similar pair, and 0; both bits are 0.5 from their code.
    pairs = (np.log1p(np.exp(0.5)) - 0.5 + np.log(2)) / 2
    np.testing.assert_allclose(
        objectives.dpsh(*arguments, eta=3.0), [pairs + 3 * 0.5 / 2], rtol=1e-6
    )
    by_bits = objectives.dpsh(*arguments, eta=3.0, normalizer="bits")
    np.testing.assert_allclose(by_bits, [pairs + 3 * 0.25], rtol=1e-6)


def test_hashnet_worked_by_hand():
    # Three rows with one bit, the last of them padding, against a bank of two.
    bank = objectives.CodeBank(jnp.array([[1.0], [-1]]), jnp.array([[1.0, 0], [0, 1]]))
    soft_codes, mask = jnp.array([[0.5], [0.5], [0.5]]), jnp.array([1.0, 1, 0])
    labels = jnp.array([[1.0, 1], [0, 1], [1, 1]])
    # Row 0 is like both, logits +1 and -1: softplus(-1) + softplus(1). Row 1 is unlike the
    # first, softplus(1), and like the second, softplus(1). Three like pairs, one unlike.
    near, far = np.log1p(np.exp([-1, 1]))
    loss = objectives.hashnet(soft_codes, labels, bank, mask, slope=2.0)[:2]
    np.testing.assert_allclose(loss, [2 * (near + far) / 3, 2 * (far + far / 3)], rtol=1e-6)


def test_sliced_wasserstein_worked_by_hand():
    # First bit: 0.5 is the larger and gets +1, 0 gets -1. Second: both get +1. Padding, in the
    # middle, takes no code away.
    soft_codes = jnp.array([[0.5, 0], [-0.9, 0.9], [0, -0.5]])
    random_codes = jnp.array([[-1.0, 1], [-1, -1], [1, 1]])
    loss = objectives.sliced_wasserstein(soft_codes, random_codes, jnp.array([1.0, 0, 1]))
    np.testing.assert_allclose(loss[0], (0.25 + 1) / 2)
    np.testing.assert_allclose(loss[2], (1 + 2.25) / 2)


# --- losses on classes ---


def test_hadamard_rows_differ_in_half_of_their_bits():
    np.testing.assert_array_equal(
        objectives.hadamard(4), [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    )
    matrix = objectives.hadamard(16)
    np.testing.assert_array_equal(matrix @ matrix.T, 16 * np.eye(16))
    with pytest.raises(ValueError, match="power of two, got 12"):
        objectives.hadamard(12)


def test_class_codes_are_hadamard_rows_then_their_negatives():
    codes = objectives.class_codes(KEY, 6, 4)
    np.testing.assert_array_equal(codes[:4], objectives.hadamard(4))
    np.testing.assert_array_equal(codes[4:], -codes[:2])


@pytest.mark.parametrize(
    ("num_classes", "num_bits", "message"),
    [
        (21, 12, "0 Hadamard codes of 12 bits for 21 .* at least 10.5 .* random_centers=True"),
        (80, 32, "64 Hadamard codes of 32 bits for 80 .* at least 40 .* random_centers=True"),
    ],
)
def test_class_codes_fall_back_to_random_ones_under_their_flag_alone(
    num_classes, num_bits, message
):
    with pytest.raises(ValueError, match=message):
        objectives.class_codes(KEY, num_classes, num_bits)
    with pytest.raises(ValueError, match=message):
        objectives.create_objective("csq").init(KEY, np.zeros((3, num_classes)), num_bits)
    codes = objectives.class_codes(KEY, num_classes, num_bits, random_centers=True)
    assert codes.shape == (num_classes, num_bits)
    random_codes = codes[64:] if num_bits == 32 else codes
    np.testing.assert_array_equal(np.sum(random_codes == -1, axis=1), num_bits // 2)
    assert len({tuple(code) for code in np.asarray(random_codes).tolist()}) == len(random_codes)
    if num_bits == 32:
        matrix = objectives.hadamard(32)
        np.testing.assert_array_equal(codes[:64], np.concatenate([matrix, -matrix]))


def test_random_centers_leave_hadamard_codes_alone():
    np.testing.assert_array_equal(
        objectives.class_codes(KEY, 16, 8, random_centers=True), objectives.class_codes(KEY, 16, 8)
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "num_bits", "options"),
    [
        ("csq", 100, 16, {"random_centers": True}),
        ("csq", 2500, 64, {"random_centers": True}),
        ("csq", 900, 12, {"random_centers": True}),
        ("dpn", 924, 12, {}),
        ("orthohash", 256, 8, {}),
    ],
)
def test_no_two_classes_share_a_code(name, num_classes, num_bits, options):
    init = objectives.create_objective(name, **options).init
    codes = np.asarray(init(KEY, np.zeros((1, num_classes)), num_bits).class_codes)
    assert codes.shape == (num_classes, num_bits) and np.all(np.abs(codes) == 1)
    assert len(np.unique(codes, axis=0)) == num_classes
    np.testing.assert_array_equal(
        codes, init(KEY, np.zeros((1, num_classes)), num_bits).class_codes
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "num_bits", "num_codes"),
    # Of four bits six codes are balanced, all of them among Hadamard's eight.
    [("csq", 9, 4, 8), ("csq", 925, 12, 924), ("dpn", 7, 4, 6), ("orthohash", 17, 4, 16)],
)
def test_more_classes_than_codes_are_refused(name, num_classes, num_bits, num_codes):
    options = {"random_centers": True} if name == "csq" else {}
    objective = objectives.create_objective(name, **options)
    with pytest.raises(ValueError, match=f"{num_bits} bits have {num_codes} codes .*higher"):
        objective.init(KEY, np.zeros((1, num_classes)), num_bits)


@pytest.mark.parametrize("distances", [[3, 3, 3], [1, 4, 4], [2, 3, 4], [3, 2, 4], [4, 4, 4]])
def test_far_apart_means_every_pair_and_the_mean(distances):
    # Three codes of eight bits: a first, and others that differ from it and from each other.
    first = np.ones(8, np.float32)
    a, b, c = distances
    shared = (a + b - c) // 2
    rows = [first, first.copy(), first.copy()]
    rows[1][:a] = -1
    rows[2][a - shared : a - shared + b] = -1
    codes = np.array(rows)
    found = [np.sum(codes[i] != codes[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = min(found) > 2 and np.mean(found) >= 4
    assert objectives.centers._far_apart(codes) == expected


def test_class_centers_worked_by_hand():
    codes, tie_code = jnp.array([[1.0, 1], [1, -1]]), jnp.array([-1.0, 1])
    labels = jnp.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    # The classes agree on the first bit and split on the second; without a label, all is a tie.
    expected = [[1, 1], [1, -1], [1, 1], [-1, 1]]
    np.testing.assert_array_equal(objectives.class_centers(labels, codes, tie_code), expected)


def test_csq_worked_by_hand():
    # Bits right with probability 3/4 and 1/4, each 0.5 from a whole bit.
    loss = objectives.csq(jnp.array([[0.5, 0.5]]), jnp.array([[1.0, -1]]), quantization_weight=0.1)
    np.testing.assert_allclose(loss, [-np.log(3 / 16) / 2 + 0.1 * 0.25], rtol=1e-6)


def test_csq_of_a_wholly_wrong_bit_is_clamped_and_differentiable():
    soft_codes, centers = jnp.array([[1.0, 1.0]]), jnp.array([[1.0, -1]])
    np.testing.assert_allclose(objectives.csq(soft_codes, centers), [50])
    gradient = jax.grad(lambda u: objectives.csq(u, centers).sum())(soft_codes)
    assert np.all(np.isfinite(gradient))


def test_dpn_worked_by_hand():
    soft_codes, centers = jnp.array([[0.5, 0.75]]), jnp.array([[1.0, -1]])
    np.testing.assert_allclose(objectives.dpn(soft_codes, centers), [(0.5 + 1.75) / 2])
    np.testing.assert_allclose(objectives.dpn(soft_codes, centers, margin=0.25), [0.5])


def test_orthohash_worked_by_hand():
    # One bit, rows ±0.5 and padding: normalised to ±1, cosines with the classes ±1.
    soft_codes, mask = jnp.array([[0.5], [-0.5], [0.9]]), jnp.array([1.0, 1, 0])
    params = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    labels, codebook = jnp.array([[1.0, 0], [0, 0], [1, 1]]), jnp.array([[1.0], [-1]])
    loss = objectives.orthohash(soft_codes, labels, codebook, params, mask, margin=0.5, scale=2.0)
    # Logits 2 (1 - 0.5) and -2: log(1 + e^-3). The row without labels costs nothing.
    np.testing.assert_allclose(loss[:2], [np.log1p(np.exp(-3)), 0], rtol=1e-4)


SOFT, PARAMS = jnp.zeros((4, 8)), {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
BANK = objectives.CodeBank(jnp.zeros((9, 8)), jnp.zeros((9, 3)))
LABELS, MASK = jnp.zeros((4, 3)), jnp.ones(4)


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (objectives.csq, (SOFT, jnp.ones(8)), r"centers must .*rows=4, num_bits=8, got \(8,\)"),
        (objectives.csq, (SOFT, jnp.ones((1, 8))), r"centers must .*got \(1, 8\)"),
        (objectives.csq, (SOFT, SOFT > 0), "centers must be codes .*booleans"),
        (objectives.dpn, (SOFT, jnp.ones((1, 8))), "centers must .*got"),
        (objectives.dpn, (SOFT[0], jnp.ones((4, 8))), "soft_codes must .*got"),
        (objectives.dph, (SOFT, LABELS[:1], BANK), r"labels must .*batch=4, got \(1, 3\)"),
        (objectives.dph, (SOFT, LABELS[:, :2], BANK), "bank_labels must .*num_classes=2"),
        (objectives.dpsh, (SOFT[:, :1], LABELS, BANK), "bank_codes must .*num_bits=1"),
        (objectives.hashnet, (SOFT, LABELS, BANK, MASK[:1]), r"mask must .*batch=4, got \(1,\)"),
        (objectives.sliced_wasserstein, (SOFT, SOFT[:1], MASK), "random_codes must .*batch=4"),
        (objectives.class_centers, (LABELS, SOFT, SOFT[0]), "codes must .*num_classes=3"),
        (objectives.class_centers, (LABELS, SOFT[:3], SOFT[0, :1]), "tie_code must .*num_bits=8"),
        (objectives.orthohash, (SOFT, LABELS, SOFT, PARAMS, MASK), "codebook must .*classes=3"),
    ],
)
def test_losses_refuse_shapes_that_would_be_broadcast(loss, arguments, message, wrap):
    if loss is objectives.hashnet:
        loss = functools.partial(loss, slope=1.0)
    with pytest.raises(ValueError, match=message):
        wrap(loss)(*arguments)


# --- every objective ---


def _labels(rng, rows):
    labels = (rng.random((rows, NUM_CLASSES)) < 0.4).astype(np.float32)
    labels[0] = 0
    return labels


def _step(seed, *, rows=16, num_real=16):
    """(soft codes, labels, index, mask) of a batch whose last rows are padding."""
    rng = np.random.default_rng(seed)
    soft_codes = rng.uniform(-1, 1, (rows, NUM_BITS)).astype(np.float32)
    mask = (np.arange(rows) < num_real).astype(np.float32)
    index = np.where(mask, rng.permutation(BANK_SIZE)[:rows], BANK_SIZE).astype(np.int32)
    return soft_codes, _labels(rng, rows), index, mask


@functools.cache
def _objective(name):
    """(objective, state after one batch)"""
    objective = objectives.create_objective(name)
    labels = _labels(np.random.default_rng(1), BANK_SIZE)
    state = objective.init(KEY, labels, NUM_BITS)
    return objective, objectives.update_state(state, *_step(7))


def _losses(name, soft_codes, labels, index, mask):
    """The losses of a batch on one device, after the state has taken it in."""
    objective, state = _objective(name)
    state = objectives.update_state(state, soft_codes, labels, index, mask)
    return objective.loss(state, soft_codes, labels, objectives.Context(mask, KEY))


def _reference_losses(name, soft_codes, labels, index):
    _, state = _objective(name)
    state = objectives.update_state(state, soft_codes, labels, index, np.ones(len(labels)))
    bank, codes, tie_code = state.bank, state.class_codes, state.tie_code
    if bank is not None:
        bank = bank.codes, bank.labels
    rows = list(zip(soft_codes, labels, strict=True))
    if name == "dph":
        return [reference.dph(*row, *bank) for row in rows]
    if name == "dpsh":
        return [reference.dpsh(*row, *bank, eta=50) for row in rows]
    if name in ("hashnet", "hswd"):
        losses = reference.hashnet(soft_codes, labels, *bank, slope=10 / NUM_BITS)
        if name == "hashnet":
            return losses
        random_codes = jax.random.rademacher(KEY, soft_codes.shape, jnp.float32)
        return losses + 0.1 * reference.wasserstein(soft_codes, np.asarray(random_codes))
    if name == "orthohash":
        return reference.orthohash(soft_codes, labels, codes, margin=0.2, scale=8)
    centers = [reference.class_center(label, codes, tie_code) for label in labels]
    one_row = {"csq": functools.partial(reference.csq, weight=0.05), "dpn": reference.dpn}[name]
    return [one_row(code, center) for code, center in zip(soft_codes, centers, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_objectives_match_reference(name):
    soft_codes, labels, index, mask = _step(2)
    losses = _losses(name, soft_codes, labels, index, mask)
    expected = _reference_losses(name, soft_codes, labels, index)
    np.testing.assert_allclose(losses, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_no_influence(name):
    soft_codes, labels, index, mask = _step(3, num_real=11)
    expected = _losses(name, soft_codes, labels, index, mask)[:11]
    rng = np.random.default_rng(4)
    soft_codes[11:], labels[11:] = rng.uniform(-1, 1, (5, NUM_BITS)), 1
    losses = _losses(name, soft_codes, labels, index, mask)
    np.testing.assert_array_equal(losses[:11], expected)
    assert np.all(np.isfinite(losses))
    if name != "hswd":  # whose random codes belong to rows of the batch
        alone = _losses(name, soft_codes[:11], labels[:11], index[:11], mask[:11])
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_device_and_eight_agree(name):
    soft_codes, labels, index, mask = _step(5, num_real=11)
    count = mask.sum()

    def device(soft_codes, labels, index, mask, axis_name=None):
        objective, state = _objective(name)
        rows = soft_codes, labels, index, mask
        if axis_name:
            rows = jax.lax.all_gather(jax.lax.stop_gradient(rows), axis_name, tiled=True)

        def total(soft_codes, params):
            new = objectives.update_state(dataclasses.replace(state, params=params), *rows)
            context = objectives.Context(mask, KEY, axis_name)
            losses = objective.loss(new, soft_codes, labels, context)
            return jnp.sum(losses * mask) / count, (losses, new)

        gradients, (losses, new) = jax.grad(total, argnums=(0, 1), has_aux=True)(
            soft_codes, state.params
        )
        if axis_name:
            gradients = gradients[0], jax.lax.psum(gradients[1], axis_name)
        return losses, gradients[0], (gradients[1], new)

    one = jax.jit(device)(soft_codes, labels, index, mask)
    mapped = jax.pmap(functools.partial(device, axis_name="devices"), axis_name="devices")
    shards = [x.reshape(8, 2, *x.shape[1:]) for x in (soft_codes, labels, index, mask)]
    losses, gradient, shared = mapped(*shards)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(np.concatenate(losses)[:11], one[0][:11])
    close(np.concatenate(gradient), one[1])
    np.testing.assert_array_equal(one[1][11:], 0)
    for replica in (0, 7):
        jax.tree.map(lambda x, y: close(x[replica], y), shared, one[2])  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["no label", "all alike", "one row", "all padding"])
def test_losses_and_gradients_are_finite(name, kind):
    num_real = {"one row": 1, "all padding": 0}.get(kind, 4)
    soft_codes, labels, index, mask = _step(6, rows=4, num_real=num_real)
    # Also bits that are as good as ±1, and exactly 0.
    soft_codes[0, :3] = 1, -1, 0
    labels[:] = kind == "all alike"
    objective, state = _objective(name)
    for first in (state, objective.init(KEY, np.zeros((BANK_SIZE, NUM_CLASSES)), NUM_BITS)):
        new = objectives.update_state(first, soft_codes, labels, index, mask)

        def total(soft_codes, params, new=new):
            context = objectives.Context(mask, KEY)
            new = dataclasses.replace(new, params=params)
            return jnp.sum(objective.loss(new, soft_codes, labels, context) * mask)

        results = jax.value_and_grad(total, argnums=(0, 1))(soft_codes, new.params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((results, new)))


@pytest.mark.parametrize("name", NAMES)
def test_states_depend_on_the_key_alone(name):
    objective = objectives.create_objective(name)
    states = [objective.init(jax.random.key(seed), np.zeros((3, 4)), 16) for seed in (0, 0, 1)]
    same, other = (
        [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, pair), strict=True)]
        for pair in (states[:2], states[1:])
    )
    assert all(same)
    assert all(other) == (name in ("dph", "dpsh", "hashnet", "hswd"))


def test_hswd_draws_fresh_codes_for_every_key():
    objective, state = _objective("hswd")
    soft_codes, labels, _, mask = _step(8)
    losses = [
        objective.loss(state, soft_codes, labels, objectives.Context(mask, jax.random.key(seed)))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert np.any(losses[0] != losses[2])


def test_objectives_by_name():
    assert objectives.create_objective("dph") == objectives.Dph()
    assert objectives.create_objective("hashnet", scale_quirk=True).scale_quirk
    with pytest.raises(ValueError, match=r"unknown objective 'dhp'; expected one of \['csq'"):
        objectives.create_objective("dhp")
    with pytest.raises(
        ValueError, match=r"'csq' has no option 'eta'; it has \['quantization_weight'"
    ):
        objectives.create_objective("csq", eta=1.0)
    with pytest.raises(ValueError, match=r"'dpsh': unknown normalizer 'mean'.*\['bank', 'bits'\]"):
        objectives.create_objective("dpsh", normalizer="mean")
    with pytest.raises(ValueError, match="'dpsh': eta must be a number of 0 or more, got nan"):
        objectives.create_objective("dpsh", eta=float("nan"))


# --- against the released code ---

# Options by golden case: name of the objective, and of each option the constant that holds it.
CASES = {
    "objective_dph": ("dph", {}),
    "objective_dpsh": ("dpsh", {"eta": "yita"}),
    "objective_hashnet": ("hashnet", {"slope": "alpha"}),
    "objective_csq_multi": ("csq", {"quantization_weight": "p_lambda"}),
    "objective_csq_single": ("csq", {"quantization_weight": "p_lambda"}),
    "objective_dpn_multi": ("dpn", {"margin": "m"}),
    "objective_dpn_single": ("dpn", {"margin": "m"}),
    "objective_hswd": ("hswd", {"slope": "alpha", "wasserstein_weight": "quantization_alpha"}),
    "objective_ortho_multi": ("orthohash", {"margin": "m", "scale": "s"}),
    "objective_ortho_single": ("orthohash", {"margin": "m", "scale": "s"}),
    "cgat_loss_dph": ("dph", {}),
    "cgat_loss_dpsh": ("dpsh", {"eta": "eta"}),
    "cgat_loss_hashnet": ("hashnet", {"slope": "alpha"}),
    "cgat_loss_csq": ("csq", {"quantization_weight": "lambda"}),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_objective(name, monkeypatch):
    case = golden.load(name)
    kind, constants = CASES[name]
    options = {option: case.constants[constant] for option, constant in constants.items()}
    if name == "cgat_loss_dpsh":
        options["normalizer"] = "bits"
    objective = objectives.create_objective(kind, **options)
    num_bits, num_classes = case["u"].shape[-1], case["y"].shape[-1]
    size = len(case["U_after"][0]) if "U_after" in case.arrays else case["index"].max() + 1
    state = objective.init(KEY, np.zeros((size, num_classes)), num_bits)
    recorded = {"class_codes": ("hash_targets", "codebook"), "tie_code": ("random_center",)}
    for field, names in recorded.items():
        for array in names:
            if array in case.arrays:
                state = dataclasses.replace(state, **{field: case[array]})
    if "bn_weight" in case.arrays:
        state.params.update(scale=jnp.array(case["bn_weight"]), bias=jnp.array(case["bn_bias"]))
    rtol = case.tolerance("grad_u rel" if name.startswith("objective") else "grad rel")
    atol = case.tolerance("/ abs") if name.startswith("objective") else 1e-8

    def mean_loss(soft_codes, params, state):
        state = dataclasses.replace(state, params=params)
        context = objectives.Context(jnp.ones(len(soft_codes)), KEY)
        return objective.loss(state, soft_codes, labels, context).mean()

    for number, batch in enumerate(zip(case["u"], case["y"], case["index"], strict=True)):
        soft_codes, labels, index = batch
        if kind == "hswd":
            draws = jnp.sign(case["random_normal"][number])
            monkeypatch.setattr(jax.random, "rademacher", lambda *_, draws=draws: draws)
        state = objectives.update_state(state, soft_codes, labels, index, jnp.ones(len(soft_codes)))
        loss, (gradient, others) = jax.value_and_grad(mean_loss, argnums=(0, 1))(
            soft_codes, state.params, state
        )
        np.testing.assert_allclose(loss, case["loss"][number], rtol=case.tolerance("loss rel"))
        if kind == "orthohash":
            # The normalisation takes large numbers from each other: float32 holds `rtol` of the
            # largest entry, of which the released gradient too is that far from float64's.
            atol = rtol * np.abs(case["grad_u"][number]).max()
        np.testing.assert_allclose(gradient, case["grad_u"][number], rtol=rtol, atol=atol)
        if "U_after" in case.arrays:
            np.testing.assert_array_equal(state.bank.codes, case["U_after"][number])
        if "Y_after" in case.arrays:
            np.testing.assert_array_equal(state.bank.labels, case["Y_after"][number])
        if "center" in case.arrays:
            centers = objectives.class_centers(labels, state.class_codes, state.tie_code)
            np.testing.assert_array_equal(centers, case["center"][number])
        if kind == "orthohash":
            expected = {
                "bn_running_mean_after": state.mean,
                "bn_running_var_after": state.var,
                "grad_bn_weight": others["scale"],
                "grad_bn_bias": others["bias"],
            }
            for array, actual in expected.items():
                np.testing.assert_allclose(
                    actual, case[array][number], rtol=rtol, atol=atol, err_msg=array
                )


@pytest.mark.parametrize("name", ["objective_csq_multi", "objective_csq_single"])
def test_golden_class_codes(name):
    case = golden.load(name)
    num_classes, num_bits = case["hash_targets"].shape
    codes = objectives.class_codes(KEY, num_classes, num_bits)
    np.testing.assert_array_equal(codes, case["hash_targets"])


def test_golden_hashnet_scale():
    case = golden.load("hashnet_scale")
    scales, forwards = [], []
    # The step function in float64, as the released code computes it.
    with jax.enable_x64(True):
        state = objectives.State(forwards=jnp.int32(0), scale=jnp.float64(1))
        step = jax.jit(objectives.next_forward)
        for in_training, alpha in zip(case["training_mode"], case["alpha_argument"], strict=True):
            # An alpha that the caller names, or 1 in evaluation, is kept and not counted.
            if in_training and np.isnan(alpha):
                state, _ = step(state)
            else:
                scale = jnp.float64(1 if np.isnan(alpha) else alpha)
                state = dataclasses.replace(state, scale=scale)
            scales.append(float(state.scale))
            forwards.append(int(state.forwards))
    tolerance = float(case.tolerance_text)
    np.testing.assert_allclose(scales, case["scale_used"], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(forwards, case["iter_num"])


# --- against the formulas ---


def _formula_problem(formula):
    """The batch and the bank before it, of the formulas on banks."""
    names = ("u", "y", "index", "U_before", "Y_before")
    soft_codes, labels, index, codes, bank_labels = (
        np.array(formula.inputs[name], int if name == "index" else np.float32) for name in names
    )
    return soft_codes, labels, index, objectives.CodeBank(jnp.array(codes), jnp.array(bank_labels))


def test_golden_formula_bank_update():
    formula = golden.formula("bank_update")
    soft_codes, labels, index, bank = _formula_problem(formula)
    bank = objectives.update_bank(bank, soft_codes, labels, index)
    formula.assert_close(bank.codes, formula.expected["U_after"])
    formula.assert_close(bank.labels, formula.expected["Y_after"])
    formula.assert_close(objectives.similarity(labels, bank.labels), formula.expected["S"])


@pytest.mark.parametrize(
    ("name", "suffix", "loss_fn"),
    [
        ("dph_loss", "", objectives.dph),
        ("dpsh_loss", "", objectives.dpsh),
        ("dpsh_loss", "_cgat", functools.partial(objectives.dpsh, eta=0.001, normalizer="bits")),
        ("hashnet_loss", "_saat", "10/K"),
        ("hashnet_loss", "_01", 0.1),
    ],
)
def test_golden_formula_of_pairs(name, suffix, loss_fn):
    formula = golden.formula(name)
    soft_codes, labels, index, bank = _formula_problem(formula)
    if name == "hashnet_loss":
        slope = 10 / soft_codes.shape[1] if loss_fn == "10/K" else loss_fn
        loss_fn = functools.partial(objectives.hashnet, mask=jnp.ones(len(soft_codes)), slope=slope)
    bank = objectives.update_bank(bank, soft_codes, labels, index)
    loss, gradient = jax.value_and_grad(lambda u: loss_fn(u, labels, bank).mean())(soft_codes)
    formula.assert_close(loss, formula.expected[f"loss{suffix}"])
    formula.assert_close(gradient, formula.expected[f"grad{suffix}"])


def test_golden_formula_hashnet_scale():
    formula = golden.formula("hashnet_scale")
    state = objectives.HashNet().init(KEY, np.zeros((1, 1)), 1)
    wanted = formula.inputs["n"]

    def forward(state, _):
        return objectives.next_forward(state)

    _, scales = jax.lax.scan(forward, state, length=max(wanted))
    formula.assert_close(np.asarray(scales)[np.array(wanted) - 1], formula.expected["scale"])


def _assert_loss_and_gradient(formula, loss_fn, expected_loss="loss"):
    soft_codes = jnp.array(formula.inputs["u"], jnp.float32)
    loss, gradient = jax.value_and_grad(lambda u: loss_fn(u).mean())(soft_codes)
    formula.assert_close(loss, formula.expected[expected_loss])
    formula.assert_close(gradient, formula.expected["grad"])


def test_quantization_worked_by_hand_and_its_gradient():
    # Distances 0.5 and 0.5 of (0.5, -0.5) to (1, -1); zero counts as +1.
    codes = jnp.array([[0.5, -0.5], [0.0, -1.0]])
    np.testing.assert_allclose(objectives.quantization(codes), [0.25, 0.5])
    gradient = jax.grad(lambda x: objectives.quantization(x).sum())(codes)
    np.testing.assert_allclose(gradient, [[-0.5, 0.5], [-1.0, 0.0]])


def test_golden_formula_hadamard8():
    formula = golden.formula("hadamard8")
    formula.assert_close(objectives.hadamard(formula.inputs["n"]), formula.expected["H"])


def test_golden_formula_csq():
    formula = golden.formula("csq")
    num_bits = formula.inputs["K"]
    codes = objectives.class_codes(KEY, formula.inputs["num_class"], num_bits)
    formula.assert_close(objectives.hadamard(num_bits), formula.expected["hadamard"])
    formula.assert_close(codes, formula.expected["targets"])
    labels, tie_code = (jnp.array(formula.inputs[k], jnp.float32) for k in ("labels", "tie_code"))
    centers = objectives.class_centers(labels, codes, tie_code)
    formula.assert_close(centers, formula.expected["centers"])
    _assert_loss_and_gradient(formula, lambda u: objectives.csq(u, centers))


def test_golden_formula_dpn_loss():
    formula = golden.formula("dpn_loss")
    centers = jnp.array(formula.inputs["centers"], jnp.float32)
    _assert_loss_and_gradient(formula, lambda u: objectives.dpn(u, centers))


def test_golden_formula_hswd_term():
    formula = golden.formula("hswd_term")
    random_codes = jnp.array(formula.inputs["random_codes"], jnp.float32)
    mask = jnp.ones(len(random_codes))
    _assert_loss_and_gradient(
        formula, lambda u: objectives.sliced_wasserstein(u, random_codes, mask), "term"
    )


def test_golden_formula_ortho_loss():
    formula = golden.formula("ortho_loss")
    labels, codebook, scale, bias = (
        jnp.array(formula.inputs[k], jnp.float32) for k in ("y", "codebook", "bn_scale", "bn_bias")
    )
    params, mask = {"scale": scale, "bias": bias}, jnp.ones(len(labels))
    _assert_loss_and_gradient(
        formula, lambda u: objectives.orthohash(u, labels, codebook, params, mask)
    )


# --- an objective of one's own ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread(objectives.Objective):
    """Pulls every code towards plus or minus its strength."""

    strength: float = 1.0

    def init(self, rng, labels, num_bits):
        return objectives.State()

    def loss(self, state, soft_codes, labels, context):
        return jnp.mean(jnp.square(jnp.abs(soft_codes) - self.strength), axis=-1)


def test_an_objective_from_outside_is_named_and_trained(monkeypatch):
    table = objectives.OBJECTIVES
    monkeypatch.setattr(objectives, "OBJECTIVES", declared.Choices("objective", table))
    objectives.OBJECTIVES.register("spread", Spread)
    objective = objectives.create_objective("spread", strength=0.5)
    with pytest.raises(ValueError, match=r"objective 'spread' has no option 'eta'"):
        objectives.create_objective("spread", eta=1.0)
    with pytest.raises(ValueError, match="the objective 'mine' must be a subclass of Objective"):
        table.register("mine", lambda: None)
    model, optimizer = defenses_test.LinearNet(2), optax.sgd(0.5)
    params = {"hash": {"kernel": jnp.ones((12, 2)) / 12, "bias": jnp.zeros(2)}}
    state = defenses.init_state({"params": params}, optimizer, objective.init(KEY, LABELS, 2))
    run = defenses_test._on_one_device(
        defenses.make_hashing_update(model, objective, optimizer, seed=0)
    )
    losses = []
    for _ in range(3):
        state, metrics = run(state, defenses_test._batch(0, image_size=2))
        losses.append(float(metrics["loss"]))
    assert losses[0] > losses[1] > losses[2]
