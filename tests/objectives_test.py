"""The code bank and the hashing losses: by hand, by loops, against the papers' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import objectives
from tests import golden, reference

WRAPS = [jax.jit, lambda function: function]


def _random_problem(seed, *, batch=4, bank_size=11, num_bits=6, num_classes=5):
    """A batch and a bank; one query and one row without a label, one row not seen."""
    rng = np.random.default_rng(seed)
    soft_codes = rng.uniform(-1, 1, (batch, num_bits)).astype(np.float32)
    labels = (rng.random((batch, num_classes)) < 0.4).astype(np.float32)
    bank_codes = rng.uniform(-1, 1, (bank_size, num_bits)).astype(np.float32)
    bank_labels = (rng.random((bank_size, num_classes)) < 0.4).astype(np.float32)
    labels[0], bank_labels[0], bank_codes[1], bank_labels[1] = 0, 0, 0, 0
    return soft_codes, labels, objectives.CodeBank(jnp.array(bank_codes), jnp.array(bank_labels))


# --- the bank ---


def test_init_bank_is_empty():
    bank = objectives.init_bank(5, 3, 2)
    assert bank.codes.shape == (5, 3) and bank.labels.shape == (5, 2)
    assert not np.any(bank.codes) and not np.any(bank.labels)
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


# --- losses ---


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


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("seed", range(3))
def test_dph_matches_reference(seed, wrap):
    soft_codes, labels, bank = _random_problem(seed)
    expected = [
        reference.dph(code, label, bank.codes, bank.labels)
        for code, label in zip(soft_codes, labels, strict=True)
    ]
    loss = wrap(objectives.dph)(soft_codes, labels, bank)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_objectives_are_finite_and_per_example(name):
    objective = objectives.OBJECTIVES[name]
    soft_codes, labels, bank = _random_problem(4)
    empty = objective.init(len(bank.codes), soft_codes.shape[1], labels.shape[1])
    full = objectives.update_bank(empty, soft_codes, labels, jnp.arange(len(labels)))
    for state in (empty, full):
        loss = objective.loss(soft_codes, labels, state)
        assert loss.shape == labels.shape[:1]
        total = jax.grad(lambda *arguments: objective.loss(*arguments).sum())
        gradient = total(soft_codes, labels, state)
        assert np.all(np.isfinite(loss)) and np.all(np.isfinite(gradient))
        # Batch mates do not matter once the bank is given.
        for row in range(len(labels)):
            one = slice(row, row + 1)
            alone = objective.loss(soft_codes[one], labels[one], state)
            np.testing.assert_allclose(alone, loss[one], rtol=1e-6)


def test_objectives_by_name():
    assert objectives.OBJECTIVES["dph"].loss is objectives.dph


# --- against the released code ---


def _mean_loss(soft_codes, labels, bank, index):
    """The released loss function: the bank first, then the mean over the batch."""
    bank = objectives.update_bank(bank, soft_codes, labels, index)
    return objectives.dph(soft_codes, labels, bank).mean(), bank


def test_golden_objective_dph():
    case = golden.load("objective_dph")
    constants = case.constants
    bank = objectives.init_bank(constants["num_train"], constants["bit"], constants["num_class"])
    step = jax.jit(jax.value_and_grad(_mean_loss, has_aux=True))
    for number, batch in enumerate(zip(case["u"], case["y"], case["index"], strict=True)):
        soft_codes, labels, index = batch
        (loss, bank), gradient = step(soft_codes, labels, bank, index)
        np.testing.assert_allclose(loss, case["loss"][number], rtol=case.tolerance("loss rel"))
        rtol, atol = case.tolerance("grad_u rel"), case.tolerance("/ abs")
        np.testing.assert_allclose(gradient, case["grad_u"][number], rtol=rtol, atol=atol)
        np.testing.assert_array_equal(bank.codes, case["U_after"][number])
        np.testing.assert_array_equal(bank.labels, case["Y_after"][number])


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


def test_golden_formula_dph_loss():
    formula = golden.formula("dph_loss")
    soft_codes, labels, index, bank = _formula_problem(formula)
    loss, gradient = jax.value_and_grad(_mean_loss, has_aux=True)(soft_codes, labels, bank, index)
    formula.assert_close(loss[0], formula.expected["loss"])
    formula.assert_close(gradient, formula.expected["grad"])


def test_quantization_worked_by_hand_and_its_gradient():
    # Distances 0.5 and 0.5 of (0.5, -0.5) to (1, -1); zero counts as +1.
    codes = jnp.array([[0.5, -0.5], [0.0, -1.0]])
    np.testing.assert_allclose(objectives.quantization(codes), [0.25, 0.5])
    gradient = jax.grad(lambda x: objectives.quantization(x).sum())(codes)
    np.testing.assert_allclose(gradient, [[-0.5, 0.5], [-1.0, 0.0]])
