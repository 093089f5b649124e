"""How a number was measured."""

import dataclasses
from typing import Any, Literal

import numpy as np

from saat_jax import options, retrieval


@dataclasses.dataclass(frozen=True)
class Protocol(options.Options):
    """How a number was measured; it goes into every record.

    Attributes:
        k: length of the ranked list; None for the whole database.
        ties: "average" or "index", see `retrieval.map_at_k`.
        normalizer: "hits" or "min(k,relevant)", see `retrieval.map_at_k`.
        seed: of random starts and target labels.
        targets: how target labels are drawn, see `attacks.select_target_labels`.
        min_count: how often the database must hold a target's labels, see there.
        precision: of float32 products on accelerators, as the run has set it in JAX.
        unlabelled_queries: whether queries without a label, to which nothing is relevant, count
            "zero", as in the papers, or the means "skip" them.

    Raises:
        ValueError: if a value is none that the field can have.
    """

    k: int | None
    ties: Literal["average", "index"]
    normalizer: Literal["hits", "min(k,relevant)"]
    seed: int
    targets: Literal["disjoint", "uniform"] = "disjoint"
    min_count: int = 1
    precision: str = "highest"
    unlabelled_queries: Literal["zero", "skip"] = "zero"

    def settings(self) -> dict[str, Any]:
        """All fields by name, in JSON's types, as records hold them."""
        settings = dataclasses.asdict(self)
        if self.unlabelled_queries == "zero":
            # What records have always meant: said, it would make other records of them.
            del settings["unlabelled_queries"]
        return settings

    def judged_rows(self, labels: np.ndarray) -> np.ndarray:
        """Which queries count, by their labels. `[num_judged]`

        Raises:
            ValueError: if none does.
        """
        rows = np.arange(len(labels))
        if self.unlabelled_queries == "skip":
            rows = np.flatnonzero(np.any(labels, axis=1))
        if not len(rows):
            raise ValueError("no query has a label; set unlabelled_queries to 'zero'")
        return rows

    def map_at_k(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> float:
        """MAP of query codes and labels against database codes and labels, in [0, 1]."""
        rows = self.judged_rows(labels)
        return float(np.mean(self.average_precision(codes[rows], database, labels[rows], others)))

    def average_precision(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> np.ndarray:
        """Average precision of each query, of those that do not count too. `[num_queries]`"""
        return retrieval.average_precision(
            codes, database, labels, others, k=self.k, ties=self.ties, normalizer=self.normalizer
        )

    def graded_scores(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> dict[str, float]:
        """The means of `retrieval.graded_scores`: "ndcg" and "wap"."""
        rows = self.judged_rows(labels)
        arrays = codes[rows], database, labels[rows], others
        scores = retrieval.graded_scores(
            *arrays, k=self.k, ties=self.ties, normalizer=self.normalizer
        )
        return {name: float(np.mean(values)) for name, values in scores.items()}

    def curves(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> dict[str, Any]:
        """Precision-recall and precision@N up to 1,000 (SAAT, Fig. 3 and 4), as lists."""
        rows = self.judged_rows(labels)
        arrays = codes[rows], database, labels[rows], others
        curve = retrieval.precision_recall_curve(*arrays, ties=self.ties)
        cutoffs = np.unique(np.minimum(np.arange(100, 1001, 10), len(database)))
        precision = retrieval.precision_at_n(*arrays, cutoffs=cutoffs, ties=self.ties)
        return {
            "precision_recall": {name: np.round(x, 6).tolist() for name, x in curve.items()},
            "precision_at_n": {"n": cutoffs.tolist(), "precision": np.round(precision, 6).tolist()},
        }
