"""Ranking metrics: against brute force over tie orders, and against the papers' code."""

import math

import chex
import jax
import numpy as np
import pytest

from benchmarks import retrieval as benchmark
from saat_jax import retrieval
from saat_jax.retrieval import counting, planes
from tests import golden, reference

NORMALIZERS = retrieval.NORMALIZERS


def _random_problem(seed, *, num_queries=4, num_database=9, num_bits=3, num_classes=3, zeros=True):
    """Few bits, so that ties abound; zero entries, and a query without a label."""
    rng = np.random.default_rng(seed)
    query_codes = rng.choice([-1, 0, 1] if zeros else [-1, 1], (num_queries, num_bits))
    database_codes = rng.choice([-1, 1], (num_database, num_bits))
    query_labels = rng.random((num_queries, num_classes)) < 0.4
    query_labels[-1] = False
    database_labels = rng.random((num_database, num_classes)) < 0.4
    return (
        query_codes.astype(np.float32),
        database_codes.astype(np.float32),
        query_labels.astype(np.float32),
        database_labels.astype(np.float32),
    )


def _orders(problem, *, ties):
    """Per query, the relevance in rank order of every ranking that `ties` averages over."""
    for rankings in _shared_orders(problem, ties=ties):
        yield [[int(shared > 0) for shared in order] for order in rankings]


def _shared_orders(problem, *, ties):
    """The same with the numbers of shared labels."""
    query_codes, database_codes, query_labels, database_labels = problem
    for code, label in zip(query_codes, query_labels, strict=True):
        distances = reference.hamming_distances(code, database_codes)
        shared = [int(sum(a * b for a, b in zip(label, x, strict=True))) for x in database_labels]
        rankings = (
            reference.tie_orders(distances) if ties == "average" else [reference.ranking(distances)]
        )
        yield [[shared[item] for item in order] for order in rankings]


def _all_metrics(problem, *, ties, k=5):
    """Every metric of a problem, in one flat list."""
    curve = retrieval.precision_recall_curve(*problem, ties=ties)["precision"]
    precision = retrieval.precision_at_n(*problem, cutoffs=range(1, 6), ties=ties)
    averages = [
        retrieval.average_precision(*problem, k=k, ties=ties, normalizer=normalizer)
        for normalizer in NORMALIZERS
    ]
    graded = retrieval.graded_scores(*problem, k=k, ties=ties)
    return np.concatenate([curve, precision, *averages, *graded.values()])


def test_example_worked_by_hand():
    # Distances 0, 1, 1, 2; items 1 and 3 are relevant. By index the hits have ranks 2 and 4;
    # in the other order of the tied items 1 and 2 they have ranks 3 and 4.
    query_codes = np.array([[1, 1]])
    database_codes = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    labels, item_labels = np.array([[1, 0]]), np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    problem = query_codes, database_codes, labels, item_labels
    by_index, otherwise = (1 / 2 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2
    assert retrieval.map_at_k(*problem, ties="index") == pytest.approx(by_index)
    assert retrieval.map_at_k(*problem) == pytest.approx((by_index + otherwise) / 2)
    # Cut at 2, the only hit is at rank 2 or missing: of one hit, or of two that could be.
    assert retrieval.map_at_k(*problem, k=2) == pytest.approx((1 / 2 + 0) / 2)
    least = retrieval.map_at_k(*problem, k=2, normalizer="min(k,relevant)")
    assert least == pytest.approx((1 / 4 + 0) / 2)
    # The first hit stands at rank 2.5 on average, the second at 4.
    curve = retrieval.precision_recall_curve(*problem, recall_levels=[0.25, 0.5, 1])
    np.testing.assert_allclose(curve["precision"], [0, 1 / 2.5, 2 / 4])
    curve = retrieval.precision_recall_curve(*problem, recall_levels=[0.5, 1], ties="index")
    np.testing.assert_allclose(curve["precision"], [1 / 2, 2 / 4])
    precision = retrieval.precision_at_n(*problem, cutoffs=[1, 2, 3, 4])
    np.testing.assert_allclose(precision, [0, 0.5 / 2, 1 / 3, 2 / 4])
    counts, relevant = retrieval.distance_histograms(*problem)
    np.testing.assert_array_equal(counts, [[1, 0, 2, 0, 1]])
    np.testing.assert_array_equal(relevant, [[0, 0, 1, 0, 1]])


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("ties", retrieval.TIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_matches_every_tie_order(seed, ties, normalizer):
    problem = _random_problem(seed)
    rankings = list(_orders(problem, ties=ties))
    for k in range(1, 11):
        expected = [
            np.mean([reference.average_precision(one, k, normalizer) for one in orders])
            for orders in rankings
        ]
        actual = retrieval.average_precision(*problem, k=k, ties=ties, normalizer=normalizer)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
        mean = retrieval.map_at_k(*problem, k=k, ties=ties, normalizer=normalizer)
        assert mean == pytest.approx(np.mean(expected), abs=1e-12)
    # The last k exceeded the database, which is what None stands for.
    actual = retrieval.average_precision(*problem, ties=ties, normalizer=normalizer)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ties", retrieval.TIES)
@pytest.mark.parametrize("seed", [3, 4])
def test_curves_match_every_tie_order(seed, ties):
    problem = _random_problem(seed)
    rankings = list(_orders(problem, ties=ties))
    levels = np.array([0.1, 0.34, 0.5, 0.75, 1.0])
    curve = retrieval.precision_recall_curve(*problem, recall_levels=levels, ties=ties)
    expected = [
        np.mean([reference.precision_at_recall(orders, level) for orders in rankings])
        for level in levels
    ]
    np.testing.assert_array_equal(curve["recall"], levels)
    np.testing.assert_allclose(curve["precision"], expected, rtol=0, atol=1e-12)
    cutoffs = np.arange(1, 10)
    expected = [
        np.mean(
            [np.mean([reference.precision_at_n(one, n) for one in orders]) for orders in rankings]
        )
        for n in cutoffs
    ]
    actual = retrieval.precision_at_n(*problem, cutoffs=cutoffs, ties=ties)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ties", retrieval.TIES)
@pytest.mark.parametrize("seed", [12, 13])
def test_graded_scores_match_every_tie_order(seed, ties):
    problem = _random_problem(seed, num_classes=9)
    rankings = list(_shared_orders(problem, ties=ties))
    assert max(max(one) for orders in rankings for one in orders) > 2
    for k in (1, 2, 5, 9, 10):
        scores = retrieval.graded_scores(*problem, k=k, ties=ties)
        expected = [np.mean([reference.ndcg(one, k) for one in orders]) for orders in rankings]
        np.testing.assert_allclose(scores["ndcg"], expected, rtol=0, atol=1e-12)
        assert retrieval.ndcg_at_k(*problem, k=k, ties=ties) == pytest.approx(np.mean(expected))
        for normalizer in NORMALIZERS:
            expected = [
                np.mean([reference.weighted_precision(one, k, normalizer) for one in orders])
                for orders in rankings
            ]
            options = {"k": k, "ties": ties, "normalizer": normalizer}
            actual = retrieval.graded_scores(*problem, **options)["wap"]
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
            mean = retrieval.weighted_map_at_k(*problem, **options)
            assert mean == pytest.approx(np.mean(expected))


def test_graded_scores_worked_by_hand():
    # Shared labels 2, 0, 1, 3 in rank order. Gains 3, 0, 1, 7 over log2 of 2, 3, 4, 5, against
    # 7, 3, 1, 0; and the sums so far 2, 2, 3, 6 over the rank, at the three relevant items.
    codes = np.array([[1, 1, 1], [1, 1, -1], [1, -1, -1], [-1, -1, -1]])
    labels = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]])
    problem = codes[:1], codes, np.array([[1, 1, 1, 0]]), labels
    best = 7 + 3 / math.log2(3) + 1 / 2
    assert retrieval.ndcg_at_k(*problem) == pytest.approx((3 + 1 / 2 + 7 / math.log2(5)) / best)
    assert retrieval.weighted_map_at_k(*problem) == pytest.approx((2 / 1 + 3 / 3 + 6 / 4) / 3)
    # Cut at two: one hit, of three that could be.
    assert retrieval.ndcg_at_k(*problem, k=2) == pytest.approx(3 / (7 + 3 / math.log2(3)))
    least = retrieval.weighted_map_at_k(*problem, k=2, normalizer="min(k,relevant)")
    assert least == pytest.approx(2 / 2)


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_where_one_label_is_shared_at_most_the_weights_are_none(ties):
    query_codes, database_codes, *_ = _random_problem(14, num_database=60)
    rng = np.random.default_rng(0)
    labels, item_labels = np.eye(3)[rng.integers(3, size=4)], np.eye(3)[rng.integers(3, size=60)]
    problem = query_codes, database_codes, labels, item_labels
    expected = retrieval.map_at_k(*problem, k=7, ties=ties)
    actual = retrieval.weighted_map_at_k(*problem, k=7, ties=ties)
    assert actual == pytest.approx(expected, abs=1e-14)


def test_long_lists_of_few_distances():
    # Large groups of ties: the closed form against the law of the total over single places,
    # E[hits before place j | place j is a hit] = (j - 1) (r - 1) / (n - 1).
    problem = _random_problem(5, num_queries=3, num_database=3000, num_bits=4, zeros=False)
    for k in (1, 700, 2999, 3000):
        expected = []
        for counts, relevant in zip(*retrieval.distance_histograms(*problem), strict=True):
            total, start, before = 0.0, 0, 0
            for n, r in zip(counts.tolist(), relevant.tolist(), strict=True):
                for j in range(1, min(n, k - start) + 1):
                    ahead = (j - 1) * (r - 1) / max(n - 1, 1)
                    total += r / n * (before + 1 + ahead) / (start + j)
                start, before = start + n, before + r
            expected.append(total / max(min(k, before), 1))
        actual = retrieval.average_precision(*problem, k=k, normalizer="min(k,relevant)")
        np.testing.assert_allclose(actual, expected, rtol=1e-11)
    np.testing.assert_allclose(
        retrieval.average_precision(*problem),
        retrieval.average_precision(*problem, normalizer="min(k,relevant)"),
        rtol=1e-11,
    )


def test_number_of_hits_is_drawn_without_replacement():
    # 300 of 1000 tied items are relevant and 50 make the list: simulate the draw.
    rng = np.random.default_rng(0)
    labels = np.repeat([[1], [0]], [300, 700], axis=0)
    codes = np.ones((1000, 2))
    actual = retrieval.map_at_k(codes[:1], codes, labels[:1], labels, k=50)
    samples = []
    for _ in range(4000):
        hits = rng.permutation(labels[:, 0])[:50]
        samples.append(np.sum(hits * np.cumsum(hits) / np.arange(1, 51)) / max(hits.sum(), 1))
    assert actual == pytest.approx(np.mean(samples), abs=4 * np.std(samples) / 4000**0.5)


@pytest.mark.parametrize(("size", "relevant", "k"), [(600, 300, 250), (600, 30, 590)])
def test_rare_numbers_of_hits_do_not_count(size, relevant, k):
    # The library leaves out what is less than rounding; here every number of hits has its part.
    place = np.arange(1, k + 1)
    expected = 0.0
    for hits in range(max(1, k - size + relevant), min(k, relevant) + 1):
        ways = math.comb(relevant, hits) * math.comb(size - relevant, k - hits)
        gain = np.sum(hits / k * (1 + (place - 1) * (hits - 1) / (k - 1)) / place)
        expected += ways / math.comb(size, k) * gain / hits
    actual = retrieval.expected_average_precision([[size]], [[relevant]], k=k)
    np.testing.assert_allclose(actual, [expected], rtol=1e-11)


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_one_mask_on_all_codes_changes_nothing(ties):
    query_codes, database_codes, *labels = _random_problem(6, num_database=40, num_bits=6)
    mask = np.random.default_rng(0).choice([-1, 1], 6)
    plain = _all_metrics((query_codes, database_codes, *labels), ties=ties)
    masked = _all_metrics((query_codes * mask, database_codes * mask, *labels), ties=ties)
    np.testing.assert_array_equal(plain, masked)


def test_database_order_changes_only_index_ties():
    query_codes, database_codes, query_labels, database_labels = _random_problem(7, num_database=40)
    order = np.random.default_rng(0).permutation(40)
    plain = query_codes, database_codes, query_labels, database_labels
    shuffled = query_codes, database_codes[order], query_labels, database_labels[order]
    np.testing.assert_array_equal(
        _all_metrics(plain, ties="average"), _all_metrics(shuffled, ties="average")
    )
    assert np.any(_all_metrics(plain, ties="index") != _all_metrics(shuffled, ties="index"))


def test_histograms_of_shards_add_up():
    query_codes, database_codes, query_labels, database_labels = _random_problem(8, num_database=50)
    problem = query_codes, database_codes, query_labels, database_labels
    whole = retrieval.distance_histograms(*problem)
    shards = [
        retrieval.distance_histograms(
            query_codes, database_codes[rows], query_labels, database_labels[rows]
        )
        for rows in (slice(0, 7), slice(7, 30), slice(30, 50))
    ]
    added = [np.sum(parts, axis=0) for parts in zip(*shards, strict=True)]
    np.testing.assert_array_equal(added, whole)
    for normalizer in NORMALIZERS:
        np.testing.assert_array_equal(
            retrieval.expected_average_precision(*added, k=11, normalizer=normalizer),
            retrieval.average_precision(*problem, k=11, normalizer=normalizer),
        )
    # One pass serves all metrics.
    cutoffs = [1, 7, 50]
    np.testing.assert_array_equal(
        retrieval.expected_precision_at_n(*added, cutoffs=cutoffs),
        retrieval.precision_at_n(*problem, cutoffs=cutoffs),
    )
    np.testing.assert_array_equal(
        retrieval.expected_precision_recall_curve(*added)["precision"],
        retrieval.precision_recall_curve(*problem)["precision"],
    )


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_blocks_change_nothing_and_compile_once(ties, monkeypatch):
    problem = _random_problem(9, num_queries=20, num_database=1300)
    expected = _all_metrics(problem, ties=ties)
    # A query for each of the eight devices at a time, the last chunk short, and for histograms
    # three blocks of 512 items, the last one with padding.
    chex.clear_trace_counter()
    monkeypatch.setattr(planes, "_MAX_BLOCK", 16)
    monkeypatch.setattr(planes, "rows_at_a_time", lambda planes: 1)
    monkeypatch.setattr(counting, "MAX_WORKING_BYTES", 1)
    for module, name in ((counting, "_keys"), (planes, "count")):
        # Once without grades, and once with them.
        function = chex.assert_max_traces(n=2)(getattr(module, name).__wrapped__)
        static = ("num_levels", "num_grades")
        monkeypatch.setattr(module, name, jax.jit(function, static_argnames=static))
    np.testing.assert_array_equal(_all_metrics(problem, ties=ties), expected)


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_one_device_gives_what_eight_give(ties, monkeypatch):
    problem = _random_problem(11, num_queries=20, num_database=50)
    assert jax.local_device_count() == 8
    expected = _all_metrics(problem, ties=ties)
    device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: device)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    np.testing.assert_array_equal(_all_metrics(problem, ties=ties), expected)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("num_bits", "zeros"),
    [(1, "both"), (2, "none"), (31, "queries"), (64, "both"), (127, "none"), (128, "none")]
    + [(200, "none"), (512, "none")],
)
def test_counts_and_rankings_of_any_length(num_bits, zeros, backend, monkeypatch):
    rng = np.random.default_rng(num_bits)
    queries, database = rng.choice([-1, 1], (3, num_bits)), rng.choice([-1, 1], (41, num_bits))
    for codes in {"none": [], "queries": [queries], "both": [queries, database]}[zeros]:
        codes[rng.random(codes.shape) < 0.2] = 0
    labels, item_labels = (rng.random((rows, 70)) < 0.1 for rows in (3, 41))
    problem = queries, database, labels, item_labels
    levels, relevant = num_bits - queries @ database.T, labels.astype(int) @ item_labels.T > 0
    if backend == "gpu":
        # What an accelerator does, on the CPU.
        monkeypatch.setattr(planes, "_keep", lambda _, function: function())
        static = ("num_levels", "num_grades")
        plain = jax.jit(planes.count.__wrapped__, static_argnames=static)
        monkeypatch.setattr(planes, "count", plain)
    actual = retrieval.distance_histograms(*problem)
    for row, level in enumerate(levels):
        for counts, items in zip(actual, (level, level[relevant[row]]), strict=True):
            np.testing.assert_array_equal(
                counts[row], np.bincount(items, minlength=2 * num_bits + 1)
            )
    expected = [
        reference.average_precision(hits[np.argsort(level, kind="stable")], 17, "hits")
        for level, hits in zip(levels, relevant, strict=True)
    ]
    actual = retrieval.average_precision(*problem, k=17, ties="index")
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    shared = labels.astype(int) @ item_labels.T
    assert shared.max() > 1
    expected = [
        reference.ndcg(hits[np.argsort(level, kind="stable")].tolist(), 17)
        for level, hits in zip(levels, shared, strict=True)
    ]
    actual = retrieval.graded_scores(*problem, k=17, ties="index")["ndcg"]
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_arrays_of_any_kind_give_the_same():
    problem = _random_problem(10, num_database=30)
    expected = _all_metrics(problem, ties="average")
    for convert in (jax.numpy.asarray, lambda rows: rows.astype(np.int8), np.float64):
        actual = _all_metrics([convert(rows) for rows in problem], ties="average")
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_edges(ties):
    one, label = np.ones((1, 8)), np.ones((1, 2))
    nothing = np.zeros((1, 2))
    # One query, one item; the same with every bit flipped: the rank is one all the same.
    assert retrieval.map_at_k(one, one, label, label, ties=ties) == 1
    assert retrieval.map_at_k(one, -one, label, label, k=3, ties=ties) == 1
    for problem in ((one, one, nothing, label), (one, one, label, nothing)):
        np.testing.assert_array_equal(_all_one(problem, ties=ties), 0)
    np.testing.assert_array_equal(_all_one((one, one, label, label), ties=ties)[-2:], 1)


def _all_one(problem, *, ties):
    """The metrics of a database of one item."""
    curve = retrieval.precision_recall_curve(*problem, recall_levels=[0.5, 1], ties=ties)
    precision = retrieval.precision_at_n(*problem, cutoffs=[1], ties=ties)
    return [*curve["precision"], retrieval.map_at_k(*problem, ties=ties), *precision]


def test_default_recall_levels_are_percents_in_float64():
    # 100 relevant items alone: 0.29 * 100 is a little below 29, and the hits are truncated.
    codes, labels = np.ones((100, 1)), np.ones((100, 1))
    curve = retrieval.precision_recall_curve(codes[:1], codes, labels[:1], labels, ties="index")
    assert curve["recall"].shape == (100,) and curve["recall"][-1] == 1
    np.testing.assert_allclose(curve["recall"], np.linspace(0.01, 1, 100), rtol=1e-15)
    np.testing.assert_array_equal(curve["precision"], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_codes": np.ones((2, 5))}, "database_codes must have 5 bits .* got 4"),
        ({"query_codes": np.ones(2)}, r"query_codes must be of shape .* got \(2,\)"),
        ({"query_codes": np.zeros((2, 4))}, "query_codes must be codes in .* 0 and no -1"),
        ({"database_codes": np.eye(4)[:3]}, "database_codes must be .* 0 and no -1: 2 . bits - 1"),
        ({"database_codes": np.eye(4)[:3] > 0}, "database_codes must be .* booleans: 2.0 . bits"),
        ({"database_codes": np.ones((3, 4), np.uint8)}, "database_codes must .* unpack_codes"),
        ({"database_codes": np.full((3, 4), np.nan)}, "database_codes must be .* nan"),
        ({"database_codes": np.full((3, 4), "a")}, "database_codes must be codes .* dtype <U1"),
        ({"query_codes": np.full((2, 4), 3.0)}, "query_codes must be .* from 3 to 3"),
        ({"query_codes": np.full((2, 4), 0.9)}, "query_codes must hold .* 0.9; .*binarize"),
        ({"query_labels": np.ones((1, 2))}, r"query_labels must have one row .* \(1, 2\) and \(2,"),
        ({"query_labels": np.full((2, 2), 3)}, "query_labels must hold .* 3; .*multi-hot"),
        ({"query_labels": np.full((2, 2), -1)}, "query_labels must be multi-hot, .* got -1"),
        ({"query_labels": np.full((2, 2), np.nan)}, "query_labels must be multi-hot, .* got nan"),
        ({"database_labels": np.ones((3, 3))}, "database_labels must have 2 classes .* 3"),
        ({"database_labels": np.ones(3)}, "database_labels must be of shape .* by jax.nn.one_hot"),
        ({"database_labels": np.full((3, 2), "a")}, "database_labels must be numbers, .* <U1"),
        ({"database_codes": np.ones((0, 4)), "database_labels": np.ones((0, 2))}, "be empty"),
        ({"k": 0}, "k must be a whole number from 1 .* got 0"),
        ({"k": -1}, "k must be .* got -1"),
        ({"k": 2.5}, "k must be .* got 2.5"),
        ({"k": "all"}, "k must be .* got 'all'"),
        ({"ties": "stable"}, "unknown ties 'stable'; expected one of .'average', 'index'"),
        ({"normalizer": "all"}, "unknown normalizer 'all'; expected one of .'hits', 'min"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        "query_codes": np.ones((2, 4)),
        "database_codes": np.ones((3, 4)),
        "query_labels": np.ones((2, 2)),
        "database_labels": np.ones((3, 2)),
    }
    for function in (retrieval.map_at_k, retrieval.weighted_map_at_k):
        with pytest.raises(ValueError, match=message):
            function(**(arguments | change))


def test_bad_levels_cutoffs_and_histograms_are_refused():
    problem = np.ones((2, 4)), np.ones((3, 4)), np.ones((2, 2)), np.ones((3, 2))
    for levels in ([0.0, 1.0], [1.1], [np.nan], 0.5):
        with pytest.raises(ValueError, match="recall_levels must be"):
            retrieval.precision_recall_curve(*problem, recall_levels=levels)
    for cutoffs in ([0], [4], [1.5], 2):
        with pytest.raises(ValueError, match="from 1 to 3"):
            retrieval.precision_at_n(*problem, cutoffs=cutoffs)
    counts, relevant = retrieval.distance_histograms(*problem)
    for wrong in (counts[:, :-1], counts[0], counts * 0, counts * [[1], [2]]):
        with pytest.raises(ValueError, match="count one database"):
            retrieval.expected_average_precision(
                wrong, relevant if wrong.shape != relevant[0].shape else relevant[0]
            )


def test_the_benchmark_compares_with_the_published_metric():
    off = benchmark.verify(num_queries=2, num_database=6000, num_bits=8)
    assert off["largest difference, ties by index"] <= 1e-12


# --- the papers' own numbers ---


def _metrics_case(name):
    case = golden.load(name)
    problem = tuple(case[key] for key in ("query_code", "db_code", "query_label", "db_label"))
    # The tolerance reads "1e-9 absolute": its number comes first.
    return case, problem, {"rtol": 0, "atol": case.tolerance("")}


@pytest.mark.parametrize("name", golden.names("metrics_"))
def test_golden_metrics(name):
    case, problem, tolerance = _metrics_case(name)
    actual = [retrieval.map_at_k(*problem, k=int(k), ties="index") for k in case["top_ks"]]
    np.testing.assert_allclose(actual, case["map"], **tolerance)
    for precision in case.group("pr_").values():
        curve = retrieval.precision_recall_curve(
            *problem, recall_levels=precision[:, 0], ties="index"
        )
        np.testing.assert_allclose(curve["precision"], precision[:, 1], **tolerance)
    for key in ("top_n_precision", "top_n_default"):
        if key in case.arrays:
            cutoffs, precision = case[key].T
            actual = retrieval.precision_at_n(*problem, cutoffs=cutoffs, ties="index")
            np.testing.assert_allclose(actual, precision, **tolerance)


@pytest.mark.parametrize("name", golden.names("metrics_"))
def test_golden_metrics_averaged_over_ties_are_near(name):
    # No official number: the average stays within the best and the worst order of ties.
    case, (query_codes, database_codes, query_labels, database_labels), _ = _metrics_case(name)
    k = int(case["top_ks"][-1])
    extremes = []
    for code, label in zip(query_codes, query_labels, strict=True):
        distances = reference.hamming_distances(code, database_codes)
        relevant = reference.relevance(label, database_labels)
        for sign in (1, -1):
            order = sorted(range(len(distances)), key=lambda i: (distances[i], sign * relevant[i]))
            hits = [relevant[item] for item in order]
            extremes.append(reference.average_precision(hits, k, "hits"))
    worst, best = np.array(extremes).reshape(-1, 2).T
    actual = retrieval.average_precision(
        query_codes, database_codes, query_labels, database_labels, k=k
    )
    assert np.all(actual >= worst - 1e-12) and np.all(actual <= best + 1e-12)


def test_golden_prosgan_metrics():
    case, problem, tolerance = _metrics_case("prosgan_metrics")
    actual = retrieval.map_at_k(*problem, ties="index")
    np.testing.assert_allclose(actual, case["map"], **tolerance)
    actual = [retrieval.map_at_k(*problem, k=int(k), ties="index") for k in case["topks"]]
    np.testing.assert_allclose(actual, case["topmap"], **tolerance)


@pytest.mark.parametrize("name", ["map_ties", "map_no_ties", "map_zero_and_missing"])
def test_golden_formula_map(name):
    formula = golden.formula(name)
    problem = tuple(np.array(formula.inputs[key]) for key in ("qB", "rB", "qL", "rL"))
    k, expected = formula.inputs["k"], formula.expected
    tolerance = {"rtol": 0, "atol": formula.tolerance}
    for suffix, length in (("all", None), ("k", k)):
        actual = retrieval.average_precision(*problem, k=length, ties="index")
        np.testing.assert_allclose(actual, expected[f"AP_{suffix}"], **tolerance)
        actual = retrieval.map_at_k(*problem, k=length, ties="index")
        np.testing.assert_allclose(actual, expected[f"MAP_{suffix}"], **tolerance)
    actual = retrieval.average_precision(*problem, k=k)
    np.testing.assert_allclose(actual, expected["AP_k_mean_over_ties"], **tolerance)
    # The brute force of these tests has the same orders of ties.
    for row, orders in enumerate(_orders(problem, ties="average")):
        values = [reference.average_precision(one, k, "hits") for one in orders]
        for which in (np.min, np.max, np.mean):
            value = expected[f"AP_k_{which.__name__}_over_ties"][row]
            np.testing.assert_allclose(which(values), value, **tolerance)


@pytest.mark.parametrize("ties", retrieval.TIES)
def test_golden_formula_pr_curve(ties):
    formula = golden.formula("pr_curve")
    inputs, expected = formula.inputs, formula.expected
    problem = [
        np.array(rows) for rows in ([inputs["q"]], inputs["R"], [inputs["ql"]], inputs["RL"])
    ]
    levels = np.arange(1, len(expected["recall"]) + 1) * inputs["interval"]
    curve = retrieval.precision_recall_curve(*problem, recall_levels=levels, ties=ties)
    for name in ("recall", "precision"):
        np.testing.assert_allclose(curve[name], expected[name], rtol=0, atol=formula.tolerance)


def test_golden_formula_pr_trunc():
    formula = golden.formula("pr_trunc")
    num_relevant = formula.inputs["tp"]
    hits = np.array(formula.expected["hits"])
    # Behind as many irrelevant items hit m has rank num_relevant + m: its precision tells m.
    labels = np.repeat([[0], [1]], num_relevant, axis=0)
    codes = np.ones((2 * num_relevant, 1))
    levels = np.arange(1, len(hits) + 1) * formula.inputs["interval"]
    curve = retrieval.precision_recall_curve(
        codes[:1], codes, labels[-1:], labels, recall_levels=levels, ties="index"
    )
    expected = hits / (num_relevant + hits)
    np.testing.assert_allclose(curve["precision"], expected, rtol=0, atol=formula.tolerance)


def test_golden_formula_topn_precision():
    formula = golden.formula("topn_precision")
    relevant = np.array(formula.inputs["relevance_in_rank_order"])[:, None]
    codes = np.ones((len(relevant), 1))
    actual = retrieval.precision_at_n(
        codes[:1], codes, np.ones((1, 1)), relevant, cutoffs=formula.inputs["N"], ties="index"
    )
    np.testing.assert_allclose(
        actual, formula.expected["precision"], rtol=0, atol=formula.tolerance
    )
