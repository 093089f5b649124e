"""The target labels: what the targeted attacks of a run are to retrieve."""

import numpy as np

from saat_jax import options
from saat_jax.labels import check_labels, share_label

# By protocol, whether a target has a label, and none of its query's.
PROTOCOLS = options.Choices("protocol of target labels", {"disjoint": True, "uniform": False})


def _distinct_labels(database_labels: np.ndarray, protocol: str, min_count: int) -> np.ndarray:
    """The label vectors a protocol draws from, in lexicographic order."""
    options.check_numbers(min_count=min_count)
    check_labels("database_labels", database_labels)
    distinct, counts = np.unique(np.asarray(database_labels), axis=0, return_counts=True)
    kept = counts >= min_count
    return distinct[kept & distinct.any(axis=1) if PROTOCOLS[protocol] else kept]


def target_candidates(
    labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    protocol: str = "disjoint",
    min_count: int = 1,
) -> list[np.ndarray]:
    """Lists, for each query, the rows of label vectors that it may get as its target.

    Args:
        labels: `[num_queries, num_classes]` multi-hot.
        database_labels: `[num_database, num_classes]` multi-hot.
        protocol: "disjoint" lists the label vectors that share no label with the query, the
            all-zero vector left out; "uniform" lists all, the all-zero one included.
        min_count: how often the database must hold a label vector for it to count.

    Returns:
        For each query an ascending array of row numbers of the distinct database label
        vectors in lexicographic order, without those that the protocol or `min_count` leaves
        out for every query.

    Raises:
        ValueError: if `protocol` is unknown, or these are no labels of the same classes.

    Example:
        >>> database_labels = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
        >>> target_candidates(np.array([[0, 0, 1]]), database_labels)[0].tolist()
        [0, 2]
    """
    distinct = _distinct_labels(database_labels, protocol, min_count)
    check_labels("labels", labels, num_classes=distinct.shape[1])
    if not PROTOCOLS[protocol]:
        return [np.arange(len(distinct))] * len(labels)
    return [np.flatnonzero(~row) for row in share_label(np.asarray(labels), distinct)]


def select_target_labels(
    labels: np.ndarray,
    database_labels: np.ndarray,
    rng: np.random.Generator,
    *,
    protocol: str = "disjoint",
    min_count: int = 1,
) -> np.ndarray:
    """Draws for each query a label vector of the database, by default one it shares nothing with.

    Draw once for a run, and let every targeted attack of the run use the same.

    Args:
        labels: `[num_queries, num_classes]` multi-hot labels of the queries.
        database_labels: `[num_database, num_classes]` multi-hot.
        rng: NumPy generator; one draw, with replacement, for each query.
        protocol: "disjoint" as in SAAT, or "uniform" as in ProS-GAN, whose targets may share
            labels with their queries or have none; see `target_candidates`.
        min_count: how often the database must hold a label vector for it to count. The
            releases of ProS-GAN and THA ask of DHTA's targets that they occur more often than
            the codes of an anchor are many: `num_codes + 1`.

    Returns:
        `[num_queries, num_classes]` multi-hot, in the dtype of `database_labels`.

    Raises:
        ValueError: as of `target_candidates`, or if `rng` is no generator or a query has no
            candidate.

    Reference:
        The released code of SAAT ("disjoint") and of ProS-GAN ("uniform").
    """
    if not hasattr(rng, "choice"):
        raise ValueError(
            "rng must be a NumPy generator, such as numpy.random.default_rng(0), got "
            f"{type(rng).__name__}"
        )
    candidates = target_candidates(labels, database_labels, protocol=protocol, min_count=min_count)
    hopeless = [query for query, rows in enumerate(candidates) if rows.size == 0]
    if hopeless:
        raise ValueError(
            f"the database has no label vector for {len(hopeless)} queries by the protocol "
            f"{protocol!r} with min_count={min_count} (first: query {hopeless[0]}); leave these "
            "queries out, lower min_count, or take another protocol"
        )
    chosen = [int(rng.choice(rows)) for rows in candidates]
    return _distinct_labels(database_labels, protocol, min_count)[chosen]
