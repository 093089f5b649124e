"""Average and weighted precision, gain, and curves of precision, from groups of tied items."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from saat_jax import options
from saat_jax.retrieval import counting, planes

Array = counting.Array
# Items of groups of ties, and those that share labels, as `counting.tie_groups` yields them.
Groups = Iterable[tuple[np.ndarray, np.ndarray]]

# What the sum of an average precision is divided by, of k, the hits and the relevant items.
NORMALIZERS = options.Choices(
    "normalizer",
    {
        "hits": lambda k, hits, relevant: hits,
        "min(k,relevant)": lambda k, hits, relevant: np.minimum(k, relevant),
    },
)
# Rows of histograms in work at a time.
_ROWS_AT_A_TIME = 1024


def map_at_k(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    k: int | None = None,
    ties: str = "average",
    normalizer: str = "hits",
) -> float:
    """Mean average precision at k over all queries, those without a relevant item included.

    The targeted variant, t-MAP, is this function with the target labels as `query_labels`.
    Arguments and errors are those of `average_precision`.

    Returns:
        A number in [0, 1]; the papers print it as percent.

    Reference:
        SAAT and ProS-GAN, released `cal_map`: `ties="index"`, `normalizer="hits"`; SAAT has
        `k=5000`, ProS-GAN and THA the whole database.
    """
    return float(
        np.mean(
            average_precision(
                query_codes,
                database_codes,
                query_labels,
                database_labels,
                k=k,
                ties=ties,
                normalizer=normalizer,
            )
        )
    )


def average_precision(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    k: int | None = None,
    ties: str = "average",
    normalizer: str = "hits",
) -> np.ndarray:
    """Average precision at k of every query, which `map_at_k` averages.

    Sums hits-so-far / rank over the relevant items among the first k, and divides by their
    number ("hits") or by the number there could be ("min(k,relevant)").

    Args:
        query_codes: `[num_queries, num_bits]` in {-1, 0, +1}; a zero counts as half a bit.
        database_codes: `[num_database, num_bits]` in {-1, 0, +1}.
        query_labels: `[num_queries, num_classes]` multi-hot; the target labels for t-MAP.
        database_labels: `[num_database, num_classes]` multi-hot.
        k: length of the returned list; None, or more than there are, is the whole database.
        ties: "average" over all orders of tied items (exact), or "index" for database order.
        normalizer: "hits" (both papers) or "min(k,relevant)".

    Returns:
        `[num_queries]` float64 in [0, 1]; zero where nothing relevant is among the first k.

    Raises:
        ValueError: naming the argument: if shapes disagree or are empty, codes are packed,
            boolean, of 0 and 1 alone or not rounded, labels are not multi-hot, `k` is no whole
            number from one on, or a name is unknown.
    """
    packed = counting.pack(query_codes, database_codes, query_labels, database_labels)
    k = _list_length(k, packed.num_database)
    if ties != "index":
        groups = counting.tie_groups(packed, ties=ties, k=k)
        return _average_precisions(groups, k=k, normalizer=normalizer)
    normalize = NORMALIZERS[normalizer]
    values = []
    for hits, (num_relevant,) in counting.rankings(packed, k=k):
        ranks = np.flatnonzero(hits) + 1
        best = normalize(k, len(ranks), num_relevant)
        values.append(np.sum(np.arange(1, len(ranks) + 1) / ranks) / max(best, 1))
    return np.array(values)


def expected_average_precision(
    counts: np.ndarray,
    relevant_counts: np.ndarray,
    *,
    k: int | None = None,
    normalizer: str = "hits",
) -> np.ndarray:
    """Average precision at k from histograms, averaged over every order of tied items.

    Takes what `distance_histograms` returns, summed over the shards of a database:
    `average_precision` with `ties="average"` for a database that no machine holds whole.

    Args:
        counts: `[num_queries, num_levels]` items at each distance, nearest first.
        relevant_counts: `[num_queries, num_levels]` relevant items at each distance.
        k: length of the returned list; None, or more than there are, is the whole database.
        normalizer: "hits" or "min(k,relevant)".

    Returns:
        `[num_queries]` float64 in [0, 1].

    Raises:
        ValueError: if shapes disagree, rows count different or empty databases, `k` is below
            one, or the name is unknown.

    Reference:
        The expectation over tie orders of McSherry and Najork, ECIR 2008, in closed form.
    """
    groups, num_database = _histogram_groups(counts, relevant_counts)
    return _average_precisions(groups, k=_list_length(k, num_database), normalizer=normalizer)


def ndcg_at_k(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    k: int | None = None,
    ties: str = "average",
) -> float:
    """Normalized discounted cumulative gain at k over all queries: the mean of `graded_scores`.

    Example:
        >>> codes = np.array([[1, 1], [1, -1], [-1, -1]])
        >>> labels = np.array([[1, 1], [1, 0], [1, 1]])
        >>> round(ndcg_at_k(codes[:1], codes, labels[:1], labels), 4)
        0.9514
    """
    arrays = query_codes, database_codes, query_labels, database_labels
    return float(np.mean(graded_scores(*arrays, k=k, ties=ties)["ndcg"]))


def weighted_map_at_k(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    k: int | None = None,
    ties: str = "average",
    normalizer: str = "hits",
) -> float:
    """Weighted mean average precision at k (WAP) over all queries: the mean of `graded_scores`.

    Example:
        >>> codes = np.array([[1, 1], [1, -1], [-1, -1]])
        >>> labels = np.array([[1, 1], [1, 0], [1, 1]])
        >>> round(weighted_map_at_k(codes[:1], codes, labels[:1], labels), 4)
        1.7222
    """
    arrays = query_codes, database_codes, query_labels, database_labels
    scores = graded_scores(*arrays, k=k, ties=ties, normalizer=normalizer)
    return float(np.mean(scores["wap"]))


def graded_scores(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    k: int | None = None,
    ties: str = "average",
    normalizer: str = "hits",
) -> dict[str, np.ndarray]:
    """Scores of every query by which an item is the more relevant the more labels it shares.

    With r shared labels, the gain of an item is 2^r - 1 and its discount log2(1 + rank): "ndcg"
    is the sum of gain / discount over the first k items, divided by that of the best order of
    the database. "wap" is average precision with the cumulative gain in the place of precision:
    at each relevant item, the shared labels of all items so far divided by the rank. Where no
    query and item share more than one label it is the average precision.

    Args:
        query_codes, database_codes, query_labels, database_labels: as `average_precision`.
        k: length of the returned list; None, or more than there are, is the whole database.
        ties: "average" or "index".
        normalizer: of "wap", as of `average_precision`.

    Returns:
        "ndcg", in [0, 1], and "wap", from zero to the most labels that are shared:
        `[num_queries]` float64 each, zero where nothing is relevant.

    Raises:
        ValueError: on the inputs `average_precision` refuses.

    Reference:
        Zhao et al., DSRH, CVPR 2015; Zhang et al., IDHN, IEEE TMM 2020.
    """
    packed = counting.pack(query_codes, database_codes, query_labels, database_labels)
    k = _list_length(k, packed.num_database)
    options.check_word("normalizer", normalizer, NORMALIZERS)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))])
    ndcg, wap = [], []
    for pair in counting.tie_groups(packed, ties=ties, k=k, num_grades=packed.num_grades):
        ndcg.append(_normalized_gain(*pair, discounts, k=k))
        wap.append(_average_precisions([pair], k=k, normalizer=normalizer))
    return {"ndcg": np.concatenate(ndcg), "wap": np.concatenate(wap)}


def precision_recall_curve(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    recall_levels: Sequence[float] | np.ndarray | None = None,
    ties: str = "average",
) -> dict[str, np.ndarray]:
    """Precision at fixed levels of recall, averaged over all queries.

    A query with n relevant items reaches level r at its m-th hit, m = trunc(n * r) in
    float64; its precision there is m / (rank of that hit), and zero if m is zero. With
    `ties="average"` the rank is the mean rank of the m-th hit over all orders of tied items:
    start + j * (size + 1) / (relevant + 1) for the j-th hit of a group of ties.

    Args:
        query_codes, database_codes, query_labels, database_labels: as `average_precision`.
        recall_levels: `[num_levels]` in (0, 1]; by default 0.01, 0.02, ... 1.
        ties: "average" or "index".

    Returns:
        "recall", the levels, and "precision": `[num_levels]` float64 each.

    Raises:
        ValueError: on the inputs `average_precision` refuses, or levels outside (0, 1].

    Reference:
        SAAT, Fig. 3, released `cal_pr` with `ties="index"`.
        Differs from the released code: where m is zero the precision is zero; the code fails
        there if the first item is relevant.
    """
    packed = counting.pack(query_codes, database_codes, query_labels, database_labels)
    groups = counting.tie_groups(packed, ties=ties, k=packed.num_database)
    return _precision_recall_curve(groups, recall_levels)


def expected_precision_recall_curve(
    counts: np.ndarray,
    relevant_counts: np.ndarray,
    *,
    recall_levels: Sequence[float] | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """`precision_recall_curve` with `ties="average"`, from histograms.

    Args:
        counts, relevant_counts: as `expected_average_precision`.
        recall_levels: `[num_levels]` in (0, 1]; by default 0.01, 0.02, ... 1.

    Returns:
        "recall", the levels, and "precision": `[num_levels]` float64 each.

    Raises:
        ValueError: on histograms `expected_average_precision` refuses, or levels outside (0, 1].
    """
    groups, _ = _histogram_groups(counts, relevant_counts)
    return _precision_recall_curve(groups, recall_levels)


def precision_at_n(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    cutoffs: Sequence[int] | np.ndarray,
    ties: str = "average",
) -> np.ndarray:
    """Share of relevant items among the first N, averaged over all queries.

    Args:
        query_codes, database_codes, query_labels, database_labels: as `average_precision`.
        cutoffs: `[num_cutoffs]` integers N, from one to `num_database`.
        ties: "average" or "index".

    Returns:
        `[num_cutoffs]` float64 in [0, 1].

    Raises:
        ValueError: on the inputs `average_precision` refuses, or cutoffs that are not
            integers between one and the size of the database.

    Reference:
        SAAT, Fig. 4: N = 100, 110, ... 1000, with `ties="index"`.
    """
    packed = counting.pack(query_codes, database_codes, query_labels, database_labels)
    ranks = _check_cutoffs(cutoffs, packed.num_database)
    groups = counting.tie_groups(packed, ties=ties, k=int(ranks.max(initial=1)))
    return _precision_at_n(groups, ranks)


def expected_precision_at_n(
    counts: np.ndarray, relevant_counts: np.ndarray, *, cutoffs: Sequence[int] | np.ndarray
) -> np.ndarray:
    """`precision_at_n` with `ties="average"`, from histograms.

    Args:
        counts, relevant_counts: as `expected_average_precision`.
        cutoffs: `[num_cutoffs]` integers N, from one to the size of the database.

    Returns:
        `[num_cutoffs]` float64 in [0, 1].

    Raises:
        ValueError: on histograms `expected_average_precision` refuses, or cutoffs that
            `precision_at_n` refuses.
    """
    groups, num_database = _histogram_groups(counts, relevant_counts)
    return _precision_at_n(groups, _check_cutoffs(cutoffs, num_database))


def _histogram_groups(counts: np.ndarray, relevant_counts: np.ndarray) -> tuple[Groups, int]:
    """Checked histograms as groups of ties, and the size of the database."""
    counts, relevant_counts = np.asarray(counts), np.asarray(relevant_counts)
    sizes = np.unique(counts.sum(axis=-1))
    if counts.ndim != 2 or counts.shape != relevant_counts.shape or len(sizes) != 1 or not sizes[0]:
        raise ValueError(
            "expected counts and relevant_counts of shape [num_queries, num_levels] whose rows "
            f"count one database, got shapes {counts.shape} and {relevant_counts.shape} and "
            f"database sizes {sizes.tolist()}; add the shards' histograms of the same queries"
        )
    parts = planes.slices(len(counts), _ROWS_AT_A_TIME)
    return [(counts[rows], relevant_counts[rows, :, None]) for rows in parts], int(sizes[0])


def _check_cutoffs(cutoffs: Sequence[int] | np.ndarray, num_database: int) -> np.ndarray:
    ranks = np.asarray(cutoffs)
    if ranks.ndim != 1 or np.any((ranks < 1) | (ranks > num_database) | (ranks % 1 != 0)):
        raise ValueError(
            f"cutoffs must be a list of integers from 1 to {num_database}, the size of the "
            f"database, got {cutoffs}; leave out the larger ones"
        )
    return ranks


def _precision_recall_curve(
    groups: Groups, recall_levels: Sequence[float] | np.ndarray | None
) -> dict[str, np.ndarray]:
    levels = np.arange(1, 101) * 0.01 if recall_levels is None else np.asarray(recall_levels, float)
    if levels.ndim != 1 or not np.all((levels > 0) & (levels <= 1)):
        raise ValueError(f"recall_levels must be a list of numbers in (0, 1], got {recall_levels}")
    precisions = []
    for counts, relevant in _each_query(groups):
        hits_by = np.cumsum(relevant)
        hits = np.trunc(hits_by[-1] * levels)
        group = np.searchsorted(hits_by, hits)
        start = np.cumsum(counts)[group] - counts[group]
        place = (hits - hits_by[group] + relevant[group]) * (counts[group] + 1)
        precisions.append(hits / np.maximum(start + place / (relevant[group] + 1), 1))
    return {"recall": levels, "precision": np.mean(precisions, axis=0)}


def _precision_at_n(groups: Groups, ranks: np.ndarray) -> np.ndarray:
    precisions = []
    for counts, relevant in _each_query(groups):
        ends = np.cumsum(counts)
        group = np.searchsorted(ends, ranks)
        missing = (ends[group] - ranks) * relevant[group] / counts[group]
        precisions.append((np.cumsum(relevant)[group] - missing) / ranks)
    return np.mean(precisions, axis=0)


def _each_query(groups: Groups) -> Groups:
    """The groups query by query: items, and relevant items. `[num_groups]` each"""
    for counts, sharing in groups:
        yield from zip(counts, sharing[..., 0], strict=True)


def _list_length(k: int | None, num_database: int) -> int:
    options.check_numbers(k=k)
    return num_database if k is None else min(int(k), num_database)


def _average_precisions(groups: Groups, *, k: int, normalizer: str) -> np.ndarray:
    """Average precision at k of every query, from its groups of tied items. `[num_queries]`"""
    normalize = NORMALIZERS[normalizer]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
    return np.concatenate(
        [_average_precision(*pair, harmonic, k=k, normalize=normalize) for pair in groups]
    )


def _average_precision(
    counts: np.ndarray,
    sharing: np.ndarray,
    harmonic: np.ndarray,
    *,
    k: int,
    normalize: Callable[..., np.ndarray],
) -> np.ndarray:
    """Average precision at k of some queries, weighted where there are grades. `[rows]`"""
    relevant, gains = sharing[..., 0], sharing.sum(axis=-1)
    ends = np.cumsum(counts, axis=1)
    starts = ends - counts
    before = np.cumsum(gains, axis=1) - gains
    # The gain of a relevant item of a group, on average.
    mean = gains / np.maximum(relevant, 1)
    last = np.argmax(ends >= k, axis=1)[:, None]
    is_whole = np.arange(ends.shape[1]) < last
    hits = np.where(is_whole, relevant, 0)
    gain = _expected_gain(
        np.minimum(starts, k), before, mean, np.where(is_whole, counts, 0), hits, harmonic
    ).sum(axis=1, keepdims=True)
    # The list ends within group `last`: which of its items make it is a draw of chance, and
    # with it the number of hits that "hits" divides by.
    start, ahead, share, size, at_hand = (
        np.take_along_axis(x, last, axis=1) for x in (starts, before, mean, counts, relevant)
    )
    places = k - start
    drawn, probability = _hits_drawn(size, at_hand, places)
    gain = gain + _expected_gain(start, ahead, share, places, drawn, harmonic)
    total = relevant.sum(axis=1, keepdims=True)
    best = normalize(k, hits.sum(axis=1, keepdims=True) + drawn, total)
    return _sum_in_order(probability * gain / np.maximum(best, 1))[:, 0]


def _normalized_gain(
    counts: np.ndarray, sharing: np.ndarray, discounts: np.ndarray, *, k: int
) -> np.ndarray:
    """Normalized discounted cumulative gain at k of some queries. `[rows]`"""
    # 2^r - 1 is the sum of 1, 2, 4 ... over the r grades of an item. All are divided by a power of
    # two that keeps any number of them finite.
    weights = 2.0 ** np.arange(-sharing.shape[-1], 0)
    ends = np.cumsum(counts, axis=1)
    spread = discounts[np.minimum(ends, k)] - discounts[np.minimum(ends - counts, k)]
    gain = np.sum(sharing @ weights / np.maximum(counts, 1) * spread, axis=1)
    # In the best order the items of a grade or more stand at the head, whatever the grade.
    best = discounts[np.minimum(sharing.sum(axis=1), k)] @ weights
    return gain / np.where(best, best, 1)


def _expected_gain(
    start: np.ndarray,
    before: np.ndarray,
    mean: np.ndarray,
    places: np.ndarray,
    hits: np.ndarray,
    harmonic: np.ndarray,
) -> np.ndarray:
    """Expected sum of gain-so-far / rank over the hits among `places` ranks after `start`.

    `hits` of them are relevant, in random order, with the gain `mean` on average, and `before` is
    the gain ahead. Place j is a hit with probability hits / places, with (j - 1) (hits - 1) /
    (places - 1) hits of its own group ahead on average; the sums of 1 / rank are differences of
    harmonic numbers.
    """
    inverse_ranks = harmonic[start + places] - harmonic[start]
    ahead = (hits - 1) / np.maximum(places - 1, 1) * (places - (start + 1) * inverse_ranks)
    return hits / np.maximum(places, 1) * ((before + mean) * inverse_ranks + mean * ahead)


def _hits_drawn(
    size: np.ndarray, relevant: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of hits among `places` of `size` items, and their probabilities. `[rows, width]`

    Takes `[rows, 1]` each. Where numbers run out before `width`, the probability is zero.
    """
    mean = places * relevant // size
    # Hoeffding: what lies further from the mean is less than the rounding of float64. The bound
    # holds for each of the four, since places and relevant items could change their parts.
    fewest_drawn = np.minimum.reduce([places, relevant, size - places, size - relevant])
    reach = np.sqrt(20 * fewest_drawn).astype(np.int64) + 2
    fewest = np.maximum(np.maximum(0, places - size + relevant), mean - reach)
    most = np.minimum(np.minimum(places, relevant), mean + reach)
    hits = fewest + np.arange((most - fewest).max() + 1)
    fewer, more = hits[:, :-1], hits[:, 1:]
    # The hypergeometric law by the ratio of neighbours: no factorial can overflow.
    growth = (relevant - fewer) * (places - fewer)
    decline = more * (size - relevant - places + more)
    ratio = np.where(more <= most, growth / np.maximum(decline, 1), 1)
    logarithm = np.pad(np.cumsum(np.log(ratio), axis=1), ((0, 0), (1, 0)))
    weight = np.exp(logarithm - logarithm.max(axis=1, keepdims=True)) * (hits <= most)
    return hits, weight / _sum_in_order(weight)


def _sum_in_order(terms: np.ndarray) -> np.ndarray:
    """Sums of rows, the same to the last bit whatever zeros follow. `[rows, 1]`"""
    return np.cumsum(terms, axis=1)[:, -1:]
