"""How a number was measured."""

import dataclasses
from typing import Any, Literal

import numpy as np

from saat_jax import retrieval


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a number was measured; it goes into every record.

    Attributes:
        k: length of the ranked list; None for the whole database.
        ties: "average" or "index", see `retrieval.map_at_k`.
        normalizer: "hits" or "min(k,relevant)", see `retrieval.map_at_k`.
        seed: of random starts and target labels.
        targets: how target labels are drawn, see `attacks.select_target_labels`.
        min_count: how often the database must hold a target's labels, see there.
        precision: of float32 products on accelerators, as the run has set it in JAX.
    """

    k: int | None
    ties: str
    normalizer: str
    seed: int
    targets: Literal["disjoint", "uniform"] = "disjoint"
    min_count: int = 1
    precision: str = "highest"

    def __post_init__(self) -> None:
        # One query and one item: the names are checked before hours of work, not after.
        one = np.ones((1, 1), np.float32)
        self.map_at_k(one, one, one, one)

    def map_at_k(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> float:
        """MAP of query codes and labels against database codes and labels, in [0, 1]."""
        return retrieval.map_at_k(
            codes, database, labels, others, k=self.k, ties=self.ties, normalizer=self.normalizer
        )

    def curves(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> dict[str, Any]:
        """Precision-recall and precision@N up to 1,000 (SAAT, Fig. 3 and 4), as lists."""
        curve = retrieval.precision_recall_curve(codes, database, labels, others, ties=self.ties)
        cutoffs = np.unique(np.minimum(np.arange(100, 1001, 10), len(database)))
        precision = retrieval.precision_at_n(
            codes, database, labels, others, cutoffs=cutoffs, ties=self.ties
        )
        return {
            "precision_recall": {name: np.round(x, 6).tolist() for name, x in curve.items()},
            "precision_at_n": {"n": cutoffs.tolist(), "precision": np.round(precision, 6).tolist()},
        }
