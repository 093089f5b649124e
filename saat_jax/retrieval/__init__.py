"""How well codes retrieve: average precision, precision-recall curve, precision at N.

A query ranks the whole database by Hamming distance; an item is relevant if it shares a
label with the query. Everything works on groups of tied items, nearest first: the items at one
distance (`ties="average"`, the mean over all orders of tied items), or every item by itself
(`ties="index"`, tied items in database order). Codes and labels are packed into 32-bit words; the
device compares them (exact integers), and float64 numbers are made on the host. Knows nothing of
images, networks or attacks.

Beside the packed codes and labels, the query-item pairs in work at a time take
`MAX_WORKING_BYTES` at most, however many there are; only `ties="index"` needs more where one
query's ranking of the whole database does.
"""

from saat_jax.retrieval.counting import MAX_WORKING_BYTES as MAX_WORKING_BYTES
from saat_jax.retrieval.counting import TIES as TIES
from saat_jax.retrieval.counting import distance_histograms as distance_histograms
from saat_jax.retrieval.metrics import NORMALIZERS as NORMALIZERS
from saat_jax.retrieval.metrics import average_precision as average_precision
from saat_jax.retrieval.metrics import expected_average_precision as expected_average_precision
from saat_jax.retrieval.metrics import expected_precision_at_n as expected_precision_at_n
from saat_jax.retrieval.metrics import (
    expected_precision_recall_curve as expected_precision_recall_curve,
)
from saat_jax.retrieval.metrics import map_at_k as map_at_k
from saat_jax.retrieval.metrics import precision_at_n as precision_at_n
from saat_jax.retrieval.metrics import precision_recall_curve as precision_recall_curve
