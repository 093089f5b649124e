"""Slow truths in NumPy and plain loops; shares no code with the library."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

# --- codes and retrieval ---


def hamming_distances(query_code: np.ndarray, database_codes: np.ndarray) -> list[float]:
    """(num_bits - agreement) / 2 for every item: a zero entry is half a differing bit."""
    return [
        sum((1 - int(a) * int(b)) / 2 for a, b in zip(query_code, code, strict=True))
        for code in database_codes
    ]


def relevance(query_label: np.ndarray, database_labels: np.ndarray) -> list[int]:
    """One for every item that shares a label with the query, else zero."""
    return [
        int(any(a > 0 and b > 0 for a, b in zip(query_label, label, strict=True)))
        for label in database_labels
    ]


def ranking(distances: Sequence[float]) -> list[int]:
    """Items by (distance, index)."""
    return sorted(range(len(distances)), key=lambda item: (distances[item], item))


def tie_orders(distances: Sequence[float]) -> Iterator[list[int]]:
    """Every ranking that sorts by distance: all permutations of all groups of tied items."""
    groups = [
        [item for item, distance in enumerate(distances) if distance == level]
        for level in sorted(set(distances))
    ]
    for parts in itertools.product(*map(itertools.permutations, groups)):
        yield list(itertools.chain(*parts))


def average_precision(hits_by_rank: Sequence[int], k: int, normalizer: str) -> float:
    """AP at k of one ranking, given the relevance of its items in rank order."""
    hits, total = 0, 0.0
    for rank, hit in enumerate(hits_by_rank[:k], start=1):
        if hit:
            hits += 1
            total += hits / rank
    best = hits if normalizer == "hits" else min(k, sum(hits_by_rank))
    return total / best if best else 0.0


def rank_of_hit(hits_by_rank: Sequence[int], hit: int) -> int:
    """The rank, from one, at which the number of hits reaches `hit`."""
    seen = 0
    for rank, is_hit in enumerate(hits_by_rank, start=1):
        seen += is_hit
        if seen == hit:
            return rank
    raise ValueError(f"{hits_by_rank} has fewer than {hit} hits")


def precision_at_recall(rankings: Sequence[Sequence[int]], recall_level: float) -> float:
    """Hits over the mean rank, over rankings of the same items, of the hit that gives the recall.

    One ranking: the precision of the papers' curve.
    """
    hits = int(sum(rankings[0]) * recall_level)
    if hits == 0:
        return 0.0
    return hits / (sum(rank_of_hit(one, hits) for one in rankings) / len(rankings))


def precision_at_n(hits_by_rank: Sequence[int], n: int) -> float:
    """Share of relevant items among the first n."""
    return sum(hits_by_rank[:n]) / n


# --- perceptibility ---


def perceptibility(image: np.ndarray, adversarial: np.ndarray) -> dict[str, float]:
    """The distances between two `[height, width, channels]` images."""
    height, width, channels = image.shape
    entries, row_norms, spectral_norms = [], [], []
    for c in range(channels):
        matrix = [
            [float(adversarial[i, j, c]) - float(image[i, j, c]) for j in range(width)]
            for i in range(height)
        ]
        entries += [x for row in matrix for x in row]
        row_norms.append(max(sum(abs(x) for x in row) for row in matrix))
        spectral_norms.append(np.linalg.svd(np.array(matrix), compute_uv=False)[0])
    square = sum(x * x for x in entries)
    mse = square / len(entries)
    return {
        "linf": max(abs(x) for x in entries),
        "l2": square**0.5,
        "mse": mse,
        "psnr": 10 * np.log10(1 / mse) if mse else float("inf"),
        "matrix_norm_linf": sum(row_norms) / channels,
        "matrix_norm_l2": sum(spectral_norms) / channels,
    }
