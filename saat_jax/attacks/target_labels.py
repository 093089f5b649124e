"""The labels that targeted attacks of a run aim at."""

import numpy as np


def target_candidates(labels: np.ndarray, database_labels: np.ndarray) -> list[np.ndarray]:
    """Lists, for each query, the rows of label vectors that share no label with it.

    Args:
        labels: `[num_queries, num_classes]` multi-hot.
        database_labels: `[num_database, num_classes]` multi-hot.

    Returns:
        For each query an ascending array of row numbers of the distinct database label
        vectors in lexicographic order, the all-zero vector left out.
    """
    distinct = _distinct_labels(database_labels)
    return [np.flatnonzero(row == 0) for row in np.asarray(labels) @ distinct.T]


def _distinct_labels(database_labels: np.ndarray) -> np.ndarray:
    distinct = np.unique(np.asarray(database_labels), axis=0)
    return distinct[distinct.any(axis=1)]


def select_target_labels(
    labels: np.ndarray, database_labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws for each query a label vector of the database that shares no label with it.

    Draw once for a run, and let every targeted attack of the run use the same.

    Args:
        labels: `[num_queries, num_classes]` multi-hot labels of the queries.
        database_labels: `[num_database, num_classes]` multi-hot.
        rng: NumPy generator; one draw for each query.

    Returns:
        `[num_queries, num_classes]` multi-hot, in the dtype of `database_labels`.

    Raises:
        ValueError: if a query shares a label with every label vector of the database.

    Reference:
        The "disjoint" protocol of the released SAAT code.
    """
    candidates = target_candidates(labels, database_labels)
    hopeless = [query for query, rows in enumerate(candidates) if rows.size == 0]
    if hopeless:
        raise ValueError(
            f"{len(hopeless)} queries share a label with every label vector of the database, "
            f"so they have no target (first: query {hopeless[0]}); leave these queries out"
        )
    chosen = [int(rng.choice(rows)) for rows in candidates]
    return _distinct_labels(database_labels)[chosen]
