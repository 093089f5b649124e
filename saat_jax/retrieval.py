"""How well codes retrieve: average precision, precision-recall curve, precision at N.

A query ranks the whole database by Hamming distance; an item is relevant if it shares a
label with the query. The device only counts (exact integers); the host turns the counts into
float64 numbers. Everything works on groups of tied items, nearest first: the items at one
distance (`ties="average"`, the mean over all orders of tied items), or every item by itself
(`ties="index"`, tied items in database order). Knows nothing of images, networks or attacks.

The query-item pairs in work at a time take `MAX_WORKING_BYTES` at most, however many there
are. Only `ties="index"` needs more where a single ranking, `_BYTES_PER_PAIR` bytes for each
database item, is larger; it also holds the whole database on the device.
"""

from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import hamming

Array = jax.Array | np.ndarray

TIES = ("average", "index")
NORMALIZERS = ("hits", "min(k,relevant)")

MAX_WORKING_BYTES = 256 * 2**20
# Two float32 products, the level, the relevance and the int64 ranking of a query-item pair.
_BYTES_PER_PAIR = 32
_MAX_DATABASE_BLOCK = 2**16


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
        ValueError: if shapes disagree, the database is empty, codes are not rounded, labels
            are not multi-hot, `k` is below one, or a name is unknown.
    """
    arrays = _check_inputs(query_codes, database_codes, query_labels, database_labels)
    groups = _tie_groups(*arrays, ties=ties)
    return _average_precisions(groups, len(database_codes), k=k, normalizer=normalizer)


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
    counts, relevant_counts = np.asarray(counts), np.asarray(relevant_counts)
    sizes = np.unique(counts.sum(axis=-1))
    if counts.ndim != 2 or counts.shape != relevant_counts.shape or len(sizes) != 1 or not sizes[0]:
        raise ValueError(
            "expected counts and relevant_counts of shape [num_queries, num_levels] whose rows "
            f"count one database, got shapes {counts.shape} and {relevant_counts.shape} and "
            f"database sizes {sizes.tolist()}; add the shards' histograms of the same queries"
        )
    groups = zip(counts, relevant_counts, strict=True)
    return _average_precisions(groups, int(sizes[0]), k=k, normalizer=normalizer)


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
    arrays = _check_inputs(query_codes, database_codes, query_labels, database_labels)
    levels = np.arange(1, 101) * 0.01 if recall_levels is None else np.asarray(recall_levels, float)
    if levels.ndim != 1 or not np.all((levels > 0) & (levels <= 1)):
        raise ValueError(f"recall_levels must be a list of numbers in (0, 1], got {recall_levels}")
    total = np.zeros(len(levels))
    for counts, relevant in _tie_groups(*arrays, ties=ties):
        hits_by = np.cumsum(relevant)
        hits = np.trunc(hits_by[-1] * levels)
        group = np.searchsorted(hits_by, hits)
        start = np.cumsum(counts)[group] - counts[group]
        place = (hits - hits_by[group] + relevant[group]) * (counts[group] + 1)
        total += hits / np.maximum(start + place / (relevant[group] + 1), 1)
    return {"recall": levels, "precision": total / len(query_codes)}


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
    arrays = _check_inputs(query_codes, database_codes, query_labels, database_labels)
    ranks = np.asarray(cutoffs)
    num_database = len(database_codes)
    if ranks.ndim != 1 or np.any((ranks < 1) | (ranks > num_database) | (ranks % 1 != 0)):
        raise ValueError(
            f"cutoffs must be a list of integers from 1 to {num_database}, the size of the "
            f"database, got {cutoffs}; leave out the larger ones"
        )
    total = np.zeros(len(ranks))
    for counts, relevant in _tie_groups(*arrays, ties=ties):
        ends = np.cumsum(counts)
        group = np.searchsorted(ends, ranks)
        missing = (ends[group] - ranks) * relevant[group] / counts[group]
        total += (np.cumsum(relevant)[group] - missing) / ranks
    return total / len(query_codes)


def distance_histograms(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the items, and the relevant items, at every distance of every query.

    Level i holds the items with <query, item> = num_bits - i, that is at Hamming distance
    i / 2: only even levels occur unless codes have zeros. The histograms of the shards of a
    database add up to those of the whole.

    Args:
        query_codes, database_codes, query_labels, database_labels: as `average_precision`.

    Returns:
        Items and relevant items: `[num_queries, 2 * num_bits + 1]` int64 each.

    Raises:
        ValueError: on the inputs `average_precision` refuses.
    """
    queries, database, labels, item_labels = _check_inputs(
        query_codes, database_codes, query_labels, database_labels
    )
    num_bits = queries.shape[1]
    block = min(len(database), _MAX_DATABASE_BLOCK)
    chunk = _chunk_size(len(queries), block)
    histograms = np.zeros((len(queries), 2 * num_bits + 1, 2), np.int64)
    for rows in _slices(len(queries), chunk):
        for columns in _slices(len(database), block):
            counted = _count_levels(
                _pad(queries[rows], chunk),
                _pad(database[columns], block),
                _pad(labels[rows], chunk),
                _pad(item_labels[columns], block),
            )
            histograms[rows] += np.asarray(counted)[: len(queries[rows])]
            # An item of padding is all zeros: at half the distance, and never relevant.
            histograms[rows, num_bits, 0] -= block - len(database[columns])
    return histograms.sum(axis=-1), histograms[..., 1]


@jax.jit
def _levels_and_relevance(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> tuple[Array, Array]:
    """Twice the distance, uint16, and whether a label is shared. `[num_queries, num_database]`"""
    distance = hamming.hamming_distance(
        jnp.asarray(query_codes, jnp.float32), jnp.asarray(database_codes, jnp.float32)
    )
    shared = jnp.matmul(
        jnp.asarray(query_labels, jnp.float32), jnp.asarray(database_labels, jnp.float32).T
    )
    return (2 * distance).astype(jnp.uint16), shared > 0


@jax.jit
def _count_levels(*arrays: Array) -> Array:
    """Irrelevant and relevant items per level. `[num_queries, 2 * num_bits + 1, 2]` int32"""
    levels, relevant = _levels_and_relevance(*arrays)
    num_bins = 2 * (2 * arrays[0].shape[1] + 1)
    bins = 2 * levels.astype(jnp.int32) + relevant
    counted = jax.vmap(lambda row: jnp.bincount(row, length=num_bins))(bins)
    return counted.reshape(len(bins), -1, 2)


def _tie_groups(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    ties: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, query by query, the items and relevant items of each group, nearest first."""
    _check_name("ties", ties, TIES)
    if ties == "average":
        yield from zip(
            *distance_histograms(query_codes, database_codes, query_labels, database_labels),
            strict=True,
        )
        return
    chunk = _chunk_size(len(query_codes), len(database_codes))
    ones = np.ones(len(database_codes), np.int64)
    for rows in _slices(len(query_codes), chunk):
        levels, relevant = _levels_and_relevance(
            _pad(query_codes[rows], chunk),
            database_codes,
            _pad(query_labels[rows], chunk),
            database_labels,
        )
        # NumPy sorts 16-bit integers by radix: several times faster than XLA on a CPU.
        for level, is_relevant in zip(
            np.asarray(levels)[: len(query_codes[rows])], np.asarray(relevant), strict=False
        ):
            yield ones, is_relevant[np.argsort(level, kind="stable")].astype(np.int64)


def _average_precisions(
    groups: Iterable[tuple[np.ndarray, np.ndarray]],
    num_database: int,
    *,
    k: int | None,
    normalizer: str,
) -> np.ndarray:
    if k is not None and (k < 1 or k % 1):
        raise ValueError(f"k must be an integer of at least 1, or None for all items, got {k}")
    _check_name("normalizer", normalizer, NORMALIZERS)
    k = num_database if k is None else min(int(k), num_database)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
    return np.array(
        [
            _average_precision(counts, relevant, harmonic, k=k, normalizer=normalizer)
            for counts, relevant in groups
        ]
    )


def _average_precision(
    counts: np.ndarray, relevant: np.ndarray, harmonic: np.ndarray, *, k: int, normalizer: str
) -> float:
    """Average precision at k of one query, from its groups of tied items."""
    ends = np.cumsum(counts)
    starts = ends - counts
    before = np.cumsum(relevant) - relevant
    last = np.searchsorted(ends, k)
    gain = _expected_gain(
        starts[:last], before[:last], counts[:last], relevant[:last], harmonic
    ).sum()
    # The list ends within group `last`: which of its items make it is a draw of chance, and
    # with it the number of hits that "hits" divides by.
    places = k - starts[last]
    hits, probability = _hits_drawn(counts[last], relevant[last], places)
    gain = gain + _expected_gain(starts[last], before[last], places, hits, harmonic)
    best = before[last] + hits if normalizer == "hits" else min(k, relevant.sum())
    return float(np.sum(probability * gain / np.maximum(best, 1)))


def _expected_gain(
    start: np.ndarray,
    before: np.ndarray,
    places: np.ndarray,
    hits: np.ndarray,
    harmonic: np.ndarray,
) -> np.ndarray:
    """Expected sum of hits-so-far / rank over `places` ranks after `start`.

    `hits` of them are relevant, in random order, and `before` hits stand ahead. Place j is
    a hit with probability hits / places, with (j - 1) (hits - 1) / (places - 1) hits of its
    own group ahead on average; the sums of 1 / rank are differences of harmonic numbers.
    """
    inverse_ranks = harmonic[start + places] - harmonic[start]
    ahead = (hits - 1) / np.maximum(places - 1, 1) * (places - (start + 1) * inverse_ranks)
    return hits / np.maximum(places, 1) * ((before + 1) * inverse_ranks + ahead)


def _hits_drawn(size: int, relevant: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Possible numbers of hits among `places` of `size` items, and their probabilities."""
    hits = np.arange(max(0, places - size + relevant), min(places, relevant) + 1)
    fewer, more = hits[:-1], hits[1:]
    # The hypergeometric law by the ratio of neighbours: no factorial can overflow.
    growth = np.log((relevant - fewer) * (places - fewer))
    decline = np.log(more * (size - relevant - places + more))
    logarithm = np.concatenate([[0.0], np.cumsum(growth - decline)])
    weight = np.exp(logarithm - logarithm.max())
    return hits, weight / weight.sum()


def _chunk_size(num_queries: int, num_items: int) -> int:
    return max(1, min(num_queries, MAX_WORKING_BYTES // (_BYTES_PER_PAIR * num_items)))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    """Adds rows of zeros up to `size`, so that a short last block is not compiled anew."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")


def _check_inputs(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    queries, database = np.asarray(query_codes), np.asarray(database_codes)
    labels, item_labels = np.asarray(query_labels), np.asarray(database_labels)
    shapes = [array.shape for array in (queries, database, labels, item_labels)]
    if (
        {len(shape) for shape in shapes} != {2}
        or not len(queries) == len(labels) > 0
        or not len(database) == len(item_labels) > 0
        or not queries.shape[1] == database.shape[1] > 0
        or not labels.shape[1] == item_labels.shape[1] > 0
    ):
        raise ValueError(
            "expected query_codes [num_queries, num_bits], database_codes [num_database, "
            "num_bits], query_labels [num_queries, num_classes] and database_labels "
            "[num_database, num_classes], none empty, got shapes "
            f"{', '.join(map(str, shapes))}; every code needs its row of multi-hot labels"
        )
    for name, codes in (("query_codes", queries), ("database_codes", database)):
        if codes.dtype.kind in "bu":
            raise ValueError(
                f"{name} must hold -1 and +1, got dtype {codes.dtype}; "
                "turn packed codes into codes with unpack_codes, and bits with 2.0 * bits - 1"
            )
        _check_values(name, codes, (-1, 0, 1), "round soft codes with binarize first")
    for name, rows in (("query_labels", labels), ("database_labels", item_labels)):
        _check_values(name, rows, (0, 1), "make the labels multi-hot")
    return queries, database, labels, item_labels


def _check_values(name: str, rows: np.ndarray, known: tuple[int, ...], remedy: str) -> None:
    for block in _slices(len(rows), _MAX_DATABASE_BLOCK):
        wrong = rows[block][~np.isin(rows[block], known)]
        if wrong.size:
            raise ValueError(f"{name} must hold only {known}, got {wrong.flat[0]}; {remedy}")
