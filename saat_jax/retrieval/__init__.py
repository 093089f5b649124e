"""How well codes retrieve: average precision, gain by shared labels, curves of precision.

A query ranks the whole database by Hamming distance; an item is relevant if it shares a label
with the query, and for graded scores the more, the more labels they share. Everything works on
groups of tied items, nearest first: the items at one distance (`ties="average"`, the mean over all
orders of tied items), or every item by itself (`ties="index"`, tied items in database order).
Codes and labels are packed into 32-bit words; the device compares them (exact integers), and
float64 numbers are made on the host. Knows nothing of images, networks or attacks.

Beside the packed codes and labels, the query-item pairs in work at a time take
`MAX_WORKING_BYTES` at most, however many there are; only `ties="index"` needs more where one
query's ranking of the whole database does.
"""

from saat_jax.retrieval.counting import (
    MAX_WORKING_BYTES,
    TIES,
    distance_histograms,
)
from saat_jax.retrieval.hubs import Scan, hub_codes, scan
from saat_jax.retrieval.indexes import (
    FAISS,
    Index,
    MakeIndex,
    array_index,
    faiss_index,
    matches,
    pack,
    pgvector_index,
    rescored,
)
from saat_jax.retrieval.metrics import (
    NORMALIZERS,
    average_precision,
    expected_average_precision,
    expected_precision_at_n,
    expected_precision_recall_curve,
    graded_scores,
    map_at_k,
    ndcg_at_k,
    precision_at_n,
    precision_recall_curve,
    weighted_map_at_k,
)
from saat_jax.retrieval.oracles import ANSWERS, Answer, Oracle
from saat_jax.retrieval.points import (
    KINDS,
    OperatingPoint,
    Rate,
    choose_point,
    distances_of_pairs,
    false_match_rate,
    point_of,
)
from saat_jax.retrieval.stored import StoredCodes, read_codes, read_table

__all__ = [
    "FAISS",
    "KINDS",
    "MAX_WORKING_BYTES",
    "ANSWERS",
    "NORMALIZERS",
    "TIES",
    "Answer",
    "Index",
    "MakeIndex",
    "Oracle",
    "OperatingPoint",
    "Rate",
    "Scan",
    "StoredCodes",
    "array_index",
    "average_precision",
    "choose_point",
    "distance_histograms",
    "distances_of_pairs",
    "expected_average_precision",
    "expected_precision_at_n",
    "expected_precision_recall_curve",
    "faiss_index",
    "false_match_rate",
    "graded_scores",
    "hub_codes",
    "map_at_k",
    "matches",
    "ndcg_at_k",
    "pack",
    "pgvector_index",
    "point_of",
    "precision_at_n",
    "precision_recall_curve",
    "read_codes",
    "read_table",
    "rescored",
    "scan",
    "weighted_map_at_k",
]
