"""Mainstay votes and codes: by hand, by loops, by brute force, and against the papers' code."""

import fractions
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saat_jax import mainstay
from tests import golden, reference

WEIGHTINGS = ("similarity", "count")
WRAPS = [jax.jit, lambda function: function]


def _random_problem(seed, *, batch=5, bank_size=23, num_bits=12, num_classes=6):
    """Multi-hot labels; a query and a bank row have none, a query has all."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((batch, num_classes)) < 0.3).astype(np.float32)
    bank_labels = (rng.random((bank_size, num_classes)) < 0.3).astype(np.float32)
    labels[0], labels[1], bank_labels[0] = 0, 1, 0
    code_bank = rng.choice([-1, 1], (bank_size, num_bits)).astype(np.float32)
    return labels, code_bank, bank_labels


@pytest.mark.parametrize("wrap", WRAPS)
def test_votes_worked_by_hand(wrap):
    code_bank = np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
    bank_labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    # First query, for: (1 + 1) / 2 and (1 - 1) / 2; against: -(-1) and -(-1).
    # Second query, nothing for; against: -(1 + 1 - 1) / 3 and -(1 - 1 - 1) / 3.
    votes = wrap(mainstay.mainstay_votes)(labels, code_bank, bank_labels)
    np.testing.assert_allclose(votes, [[2, 1], [-1 / 3, 1 / 3]], rtol=1e-6)


def test_weightings_worked_by_hand():
    # Cosines 1 and 1 / sqrt(2). "similarity" shares 1 among them, "count" divides by 2.
    code_bank = np.array([[1], [-1]], np.float32)
    bank_labels = np.array([[1, 0], [1, 1]], np.float32)
    labels = np.array([[1, 0]], np.float32)
    far = 0.5**0.5
    votes = mainstay.mainstay_votes(labels, code_bank, bank_labels)
    np.testing.assert_allclose(votes, [[(1 - far) / (1 + far)]], rtol=1e-6)
    votes = mainstay.mainstay_votes(labels, code_bank, bank_labels, weighting="count")
    np.testing.assert_allclose(votes, [[(1 - far) / 2]], rtol=1e-6)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_votes_match_reference(wrap, weighting, seed):
    labels, code_bank, bank_labels = _random_problem(seed)
    votes = wrap(lambda *arrays: mainstay.mainstay_votes(*arrays, weighting=weighting))
    expected = [
        reference.mainstay_votes(label, code_bank, bank_labels, weighting) for label in labels
    ]
    actual = votes(labels, code_bank, bank_labels)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.all(np.abs(actual) <= 2 + 1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_votes_of_soft_codes_match_reference(weighting):
    labels, code_bank, bank_labels = _random_problem(2)
    code_bank = np.tanh(code_bank * np.random.default_rng(2).random(code_bank.shape, np.float32))
    expected = [
        reference.mainstay_votes(label, code_bank, bank_labels, weighting) for label in labels
    ]
    votes = mainstay.mainstay_votes(labels, code_bank, bank_labels, weighting=weighting)
    np.testing.assert_allclose(votes, expected, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_code_is_better(weighting):
    labels, code_bank, bank_labels = _random_problem(3, num_bits=5)
    codes = mainstay.mainstay_codes(labels, code_bank, bank_labels, weighting=weighting)
    for label, code in zip(labels, np.asarray(codes), strict=True):
        problem = label, code_bank, bank_labels, weighting
        best = min(
            reference.mainstay_objective(other, *problem)
            for other in itertools.product([-1, 1], repeat=5)
        )
        assert reference.mainstay_objective(code, *problem) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_codes_are_rounded_votes(weighting):
    problem = _random_problem(4)
    votes = np.asarray(mainstay.mainstay_votes(*problem, weighting=weighting))
    for ties in ("positive", "zero"):
        codes = mainstay.mainstay_codes(*problem, weighting=weighting, ties=ties)
        assert codes.shape == votes.shape
        np.testing.assert_array_equal(np.asarray(codes)[votes != 0], np.sign(votes[votes != 0]))


@pytest.mark.parametrize("wrap", WRAPS)
def test_tied_bit(wrap):
    # The two positives disagree on the first bit; there are no negatives.
    problem = np.ones((1, 1)), np.array([[1.0, -1], [-1, -1]]), np.ones((2, 1))
    codes = wrap(lambda *arrays: mainstay.mainstay_codes(*arrays))(*problem)
    np.testing.assert_array_equal(codes, [[1, -1]])
    codes = wrap(lambda *arrays: mainstay.mainstay_codes(*arrays, ties="zero"))(*problem)
    np.testing.assert_array_equal(codes, [[0, -1]])


def test_query_without_label_flees_the_whole_bank():
    _, code_bank, bank_labels = _random_problem(5)
    votes = mainstay.mainstay_votes(np.zeros((1, 6), np.float32), code_bank, bank_labels)
    np.testing.assert_allclose(votes[0], -code_bank.mean(0), atol=1e-6)


def test_bank_row_without_label_is_a_negative():
    code_bank = np.array([[1, 1], [-1, 1]], np.float32)
    votes = mainstay.mainstay_votes(np.ones((1, 1)), code_bank, np.array([[1.0], [0.0]]))
    np.testing.assert_allclose(votes, [[2, 0]], atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bank_order_and_batch_mates_do_not_matter(weighting):
    labels, code_bank, bank_labels = _random_problem(6)
    votes = mainstay.mainstay_votes(labels, code_bank, bank_labels, weighting=weighting)
    order = np.random.default_rng(6).permutation(len(code_bank))
    other = mainstay.mainstay_votes(
        labels, code_bank[order], bank_labels[order], weighting=weighting
    )
    np.testing.assert_allclose(votes, other, atol=1e-6)
    alone = [
        mainstay.mainstay_votes(label[None], code_bank, bank_labels, weighting=weighting)[0]
        for label in labels
    ]
    np.testing.assert_allclose(votes, alone, atol=1e-6)


def test_gradient_is_finite():
    # Also where a norm or a sum of weights is zero.
    labels, code_bank, bank_labels = _random_problem(7)
    gradient = jax.grad(lambda bank: mainstay.mainstay_votes(labels, bank, bank_labels).sum())
    assert np.all(np.isfinite(gradient(jnp.asarray(code_bank))))


def test_unknown_options_are_refused():
    problem = _random_problem(8)
    with pytest.raises(ValueError, match="unknown weighting 'paper'"):
        mainstay.mainstay_votes(*problem, weighting="paper")
    with pytest.raises(ValueError, match="unknown weighting"):
        mainstay.mainstay_codes(*problem, weighting="")
    with pytest.raises(ValueError, match="unknown ties 'negative'"):
        mainstay.mainstay_codes(*problem, ties="negative")


@pytest.mark.parametrize(
    ("wrap", "grouped"), [(jax.jit, False), (lambda function: function, False), (jax.jit, True)]
)
@pytest.mark.parametrize("name", golden.names("mainstay_"))
def test_golden_mainstay(name, wrap, grouped):
    case = golden.load(name)
    bank = case["train_code"], case["train_label"]
    problem = case["label"], *([mainstay.group_bank(*bank)] if grouped else bank)
    bound = case.tolerance("|margin64| >")
    margin = case["margin64"]
    votes = np.asarray(wrap(mainstay.mainstay_votes)(*problem))
    np.testing.assert_allclose(votes, margin, rtol=0, atol=bound)
    codes = np.asarray(wrap(lambda *p: mainstay.mainstay_codes(*p, ties="zero"))(*problem))
    clear = np.abs(margin) > bound
    if "margin64 == 0" in case.tolerance_text:
        clear |= margin == 0
        np.testing.assert_array_equal(votes[margin == 0], 0)
    np.testing.assert_array_equal(codes[clear], case["code"][clear])
    # The library's own default: as released, but for the tied bits.
    codes = np.asarray(mainstay.mainstay_codes(*problem))
    decided = np.abs(margin) > bound
    np.testing.assert_array_equal(codes[decided], case["code"][decided])
    assert set(np.unique(codes)) <= {-1.0, 1.0}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_golden_formula_mainstay(weighting):
    formula = golden.formula("mainstay")
    labels, code_bank, bank_labels = (
        np.array(formula.inputs[key], np.float32)
        for key in ("labels", "train_codes", "train_labels")
    )
    word = {"similarity": "code", "count": "paper"}[weighting]
    expected = {kind: np.array(formula.expected[f"{kind}_{word}"]) for kind in ("presign", "code")}
    votes = mainstay.mainstay_votes(labels, code_bank, bank_labels, weighting=weighting)
    formula.assert_close(votes, expected["presign"])
    codes = mainstay.mainstay_codes(
        labels, code_bank, bank_labels, weighting=weighting, ties="zero"
    )
    clear = np.abs(expected["presign"]) > formula.tolerance
    np.testing.assert_array_equal(np.asarray(codes)[clear], expected["code"][clear])
    # Rows with one bit each: the votes are the weights themselves.
    weights = -mainstay.mainstay_votes(
        labels, -np.eye(len(code_bank), dtype=np.float32), bank_labels, weighting=weighting
    )
    attract, repel = (np.array(formula.expected[f"w_{side}_{word}"]) for side in ("pos", "neg"))
    formula.assert_close(weights, attract - repel)


def test_golden_formula_theorem1():
    formula = golden.formula("theorem1")
    label, code_bank, bank_labels = (
        np.array(formula.inputs[key], np.float32)
        for key in ("labels", "train_codes", "train_labels")
    )
    problem = label, code_bank, bank_labels, "count"
    codes = list(itertools.product([-1, 1], repeat=code_bank.shape[1]))
    values = [reference.mainstay_objective(code, *problem) for code in codes]
    np.testing.assert_allclose(
        values, formula.expected["psi_all_lexicographic"], atol=formula.tolerance
    )
    assert min(values) == pytest.approx(formula.expected["psi_min"], abs=formula.tolerance)
    code = mainstay.mainstay_codes(label[None], code_bank, bank_labels, weighting="count")[0]
    np.testing.assert_array_equal(code, formula.expected["b_argmin"])
    np.testing.assert_array_equal(code, codes[int(np.argmin(values))])


def test_golden_formula_mainstay_zero_bit():
    formula = golden.formula("mainstay_zero_bit")
    problem = [
        np.array(formula.inputs[key], np.float32)
        for key in ("labels", "train_codes", "train_labels")
    ]
    formula.assert_close(mainstay.mainstay_votes(*problem), formula.expected["presign"])
    codes = mainstay.mainstay_codes(*problem, ties="zero")
    np.testing.assert_array_equal(codes, formula.expected["code"])


def test_labels_and_codes_of_any_type_give_the_same_votes():
    rng = np.random.default_rng(0)
    labels, bank_labels = rng.random((5, 6)) < 0.4, rng.random((30, 6)) < 0.4
    bank = rng.choice([-1, 1], (30, 8))
    expected = mainstay.mainstay_votes(*(np.float32(x) for x in (labels, bank, bank_labels)))
    actual = mainstay.mainstay_votes(labels, bank.astype(np.int8), bank_labels)
    np.testing.assert_array_equal(actual, expected)


# --- a bank grouped by label vectors ---


def test_groups_worked_by_hand():
    code_bank = np.array([[1, 1], [1, -1], [-1, 1], [1, 1], [-1, -1]], np.int8)
    bank_labels = np.array([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1]])
    bank = mainstay.group_bank(code_bank, bank_labels)
    # Fewest labels first; no row has the label 0 alone.
    np.testing.assert_array_equal(bank.labels, [[0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(bank.groups, [2, 1, 2, 0, 2])
    np.testing.assert_array_equal(bank.sums, [[1, 1, 1], [1, -1, 1], [-1, 1, 3]])
    assert bank.ends == (1, 2, 3) and bank.codes.dtype == np.int8
    # Row 4 becomes (1, 1); the other row is padding.
    bank = mainstay.refresh_rows(bank, jnp.array([[1.0, 1], [-1, -1]]), jnp.array([4, 5]))
    np.testing.assert_array_equal(bank.sums, [[1, 1, 1], [1, -1, 1], [1, 3, 3]])
    np.testing.assert_array_equal(bank.codes, [*code_bank[:4], [1, 1]])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        *(functools.partial(mainstay.mainstay_votes, weighting=word) for word in WEIGHTINGS),
        mainstay.center_votes,
        mainstay.consensus_codes,
    ],
)
def test_a_grouped_bank_votes_as_its_rows_do(function, soft):
    labels, code_bank, bank_labels = _random_problem(9, bank_size=60, num_classes=4)
    if soft:
        code_bank = np.tanh(code_bank * np.random.default_rng(2).random(code_bank.shape))
    bank = mainstay.group_bank(code_bank, bank_labels)
    assert len(bank.labels) < len(code_bank)
    expected = function(labels, code_bank, bank_labels)
    np.testing.assert_allclose(function(labels, bank), expected, atol=1e-6)


def _is_tied(label, bits, bank_labels):
    """Whether a bit's vote is zero, in integers: roots and their sums would round."""
    overlap = bank_labels @ label
    far = overlap == 0
    if far.all():
        return bits.sum() == 0
    rows = overlap * (max(far.sum(), 1) * bits - bits[far].sum())
    # Each is divided by the root of its number of labels, m * sqrt(free), free of squares.
    parts = {}
    for row, number in zip(rows[~far], bank_labels[~far].sum(1), strict=True):
        m = max(m for m in range(1, 9) if number % m**2 == 0)
        free = number // m**2
        parts[free] = parts.get(free, 0) + fractions.Fraction(int(row), m)
    return not any(parts.values())


def test_ties_of_a_grouped_bank_are_exact():
    rng = np.random.default_rng(0)
    labels = np.array(list(itertools.product([0, 1], repeat=4)))
    for bank_size in (6, 14):
        bank_labels = labels[rng.choice(len(labels), bank_size)]
        code_bank = rng.choice([-1, 1], (bank_size, 128))
        votes = mainstay.mainstay_votes(labels, mainstay.group_bank(code_bank, bank_labels))
        tied = [[_is_tied(row, bits, bank_labels) for bits in code_bank.T] for row in labels]
        assert np.sum(tied) > 20
        np.testing.assert_array_equal(np.asarray(votes) == 0, tied)


def test_refreshed_sums_are_those_of_the_refreshed_bank():
    _, code_bank, bank_labels = _random_problem(10, bank_size=200, num_classes=3)
    rng = np.random.default_rng(10)
    bank = mainstay.group_bank(code_bank, bank_labels)
    refresh = jax.jit(mainstay.refresh_rows, donate_argnums=0)
    for _ in range(20):
        index = rng.choice(201, 32, replace=False)
        codes = rng.choice([-1, 1], (32, 12)).astype(np.float32)
        real = index < 200
        code_bank[index[real]] = codes[real]
        bank = refresh(bank, codes, index)
    expected = mainstay.group_bank(code_bank, bank_labels)
    jax.tree.map(np.testing.assert_array_equal, bank, expected)


def test_what_cannot_be_grouped_is_refused():
    with pytest.raises(ValueError, match=r"0 or 1 to be grouped, got 0\.5"):
        mainstay.group_bank(np.ones((2, 3)), np.array([[1, 0], [0, 0.5]]))
    with pytest.raises(ValueError, match="needs its bank_labels"):
        mainstay.mainstay_votes(np.ones((1, 2)), np.ones((2, 3)))


# --- consensus codes (SDHA), centre codes (CgAT), anchor codes (P2P, DHTA) ---


@pytest.mark.parametrize("wrap", WRAPS)
def test_consensus_and_center_codes_worked_by_hand(wrap):
    code_bank = np.array([[1, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, -1, -1]], np.float32)
    bank_labels = np.array([[1, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    labels = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    problem = labels, code_bank, bank_labels
    # [1, 0, 1] less [-1, 0, 0]; the second row less the mean of the others; nothing to compare.
    votes = wrap(mainstay.center_votes)(*problem)
    np.testing.assert_allclose(votes, [[2, 0, 1], [4 / 3, -4 / 3, 2 / 3], [0, 0, 0]], rtol=1e-6)
    for function in (mainstay.consensus_codes, mainstay.center_codes):
        for ties, tied in [("positive", 1), ("zero", 0)]:
            codes = wrap(functools.partial(function, ties=ties))(*problem)
            np.testing.assert_array_equal(codes, [[1, tied, 1], [1, -1, 1], [0, 0, 0]])


@pytest.mark.parametrize("seed", [0, 1])
def test_consensus_and_centers_match_slow_truth(seed):
    labels, code_bank, bank_labels = _random_problem(seed)
    votes, consensus = [], []
    for label in labels:
        shares = np.array(reference.relevance(label, bank_labels)) > 0
        consensus.append(np.sign(code_bank[shares].sum(0)))
        near, far = code_bank[shares], code_bank[~shares]
        votes.append(near.mean(0) - far.mean(0) if len(near) and len(far) else 0 * code_bank[0])
    actual = mainstay.center_votes(labels, code_bank, bank_labels)
    np.testing.assert_allclose(actual, votes, atol=1e-6)
    np.testing.assert_array_equal(
        mainstay.consensus_codes(labels, code_bank, bank_labels, ties="zero"), consensus
    )


def test_center_code_is_zero_where_all_share_a_label():
    # Soft codes, whose sums round: nothing is left of them all the same.
    code_bank = np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)
    codes = mainstay.center_codes(np.ones((1, 2)), code_bank, np.ones((50, 2)))
    np.testing.assert_array_equal(codes, np.zeros((1, 7)))


def test_anchor_codes_worked_by_hand():
    code_bank = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.int8)
    bank_labels = np.array([[1, 1], [0, 0], [1, 0], [1, 0]])
    labels = np.array([[0, 0], [1, 1]], np.float32)
    # One row each has these labels, however often it is drawn.
    for num_codes in (1, 9):
        codes = mainstay.anchor_codes(labels, code_bank, bank_labels, 0, num_codes=num_codes)
        np.testing.assert_array_equal(codes, [[-1, 1], [1, 1]])
        assert codes.dtype == np.float32
    # Both rows of one label: the first bit is tied.
    for ties, tied in [("positive", 1), ("zero", 0)]:
        codes = mainstay.anchor_codes(
            [[1, 0]], code_bank, bank_labels, 0, num_codes=2, replace=False, ties=ties
        )
        np.testing.assert_array_equal(codes, [[tied, -1]])


def test_anchor_codes_take_a_key():
    labels, codes = np.ones((3, 1)), np.random.default_rng(0).choice([-1.0, 1.0], (50, 16))
    one, two, again = (
        mainstay.anchor_codes(labels, codes, np.ones((50, 1)), jax.random.key(seed))
        for seed in (0, 1, 0)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(one != two)


def test_anchor_codes_are_drawn_uniformly_with_replacement():
    # One row of four is positive: the sum of three draws is positive where two or three are.
    code_bank = np.array([[1], [-1], [-1], [-1]])
    labels = np.ones((4000, 1))
    codes = mainstay.anchor_codes(labels, code_bank, np.ones((4, 1)), 5, num_codes=3)
    expected = 3 * 0.25**2 * 0.75 + 0.25**3
    # Five standard deviations.
    atol = 5 * (expected * (1 - expected) / 4000) ** 0.5
    np.testing.assert_allclose(np.mean(codes > 0), expected, atol=atol)


def test_anchor_of_an_example_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0], (30, 2))
    code_bank, bank_labels = rng.choice([-1, 1], (40, 16)), rng.choice([0, 1], (40, 2))
    whole, again, other = (
        mainstay.anchor_codes(labels, code_bank, bank_labels, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(whole, again)
    assert np.any(whole != other)
    rows = np.array([7, 3, 20])
    part = mainstay.anchor_codes(labels[rows], code_bank, bank_labels, 0, rows=rows)
    np.testing.assert_array_equal(part, whole[rows])
    # Examples of the same labels have draws of their own.
    assert len(np.unique(whole, axis=0)) > 20


def test_anchors_without_candidates_are_refused():
    code_bank, bank_labels = np.ones((3, 4)), np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1]])
    labels = [[0, 0, 1], [0, 1, 0]]
    with pytest.raises(ValueError, match=r"row 1 .* labels \[1\], which 0 .* 1 must.*min_count=1"):
        mainstay.anchor_codes(labels, code_bank, bank_labels, 0)
    with pytest.raises(ValueError, match=r"row 8 .* labels \[0, 2\], which 2 .* 3 must"):
        mainstay.anchor_codes(
            [[1, 0, 1]], code_bank, bank_labels, 0, rows=[8], num_codes=3, replace=False
        )


@pytest.mark.parametrize(
    "function",
    [
        mainstay.consensus_codes,
        mainstay.center_codes,
        lambda *problem, ties: mainstay.anchor_codes(*problem, 0, ties=ties),
    ],
)
def test_unknown_ties_are_refused(function):
    with pytest.raises(ValueError, match="unknown ties 'negative'"):
        function(*_random_problem(8), ties="negative")


@pytest.mark.parametrize("name", golden.names("cgat_center_"))
def test_golden_cgat_center(name):
    case = golden.load(name)
    labels, code_bank, bank_labels = problem = case["y"], case["bank"], case["L"]
    margin = case["margin64"]
    bound = case.tolerance("|margin64| >") if "margin64" in case.tolerance_text else 0
    # The margin is a difference of sums, the votes of means.
    count = (labels @ bank_labels.T > 0).sum(1, keepdims=True)
    votes = mainstay.center_votes(*problem) * count * (len(code_bank) - count)
    np.testing.assert_allclose(votes, margin, rtol=1e-5, atol=bound)
    codes = np.asarray(mainstay.center_codes(*problem, ties="zero"))
    clear = (np.abs(margin) > bound) | (bound == 0)
    np.testing.assert_array_equal(codes[clear], case["code"][clear])


def test_golden_formula_cgat_center():
    formula = golden.formula("cgat_center")
    problem = [
        np.array(formula.inputs[key], np.float32)
        for key in ("labels", "train_codes", "train_labels")
    ]
    codes = mainstay.center_codes(*problem, ties="zero")
    np.testing.assert_array_equal(codes, formula.expected["code"])


def _anchors_of(drawn):
    """Anchors of `[batch, num_codes, num_bits]` codes, all of which are drawn."""
    batch, num_codes, num_bits = drawn.shape
    labels = np.eye(batch)
    return mainstay.anchor_codes(
        labels,
        drawn.reshape(-1, num_bits),
        np.repeat(labels, num_codes, axis=0),
        0,
        num_codes=num_codes,
        replace=False,
        ties="zero",
    )


def test_golden_dhta_anchor():
    case = golden.load("dhta_anchor")
    for number, rows in case.group("idx_n").items():
        codes = _anchors_of(case["codes"][rows])
        np.testing.assert_array_equal(codes, case[f"anchor_n{number}"])


def test_golden_formula_anchor_code():
    formula = golden.formula("anchor_code")
    codes = np.array(formula.inputs["codes"])
    np.testing.assert_array_equal(_anchors_of(codes[None])[0], formula.expected["anchor"])
