"""Reports: the files a run leaves, as a terminal table, PNG figures and one HTML page.

Reads `config.json`, `models/<model>/metrics.jsonl` and `records/<model>/<attack>.{json,npz}`
below a work directory. A run may be unfinished: what is there is shown, what is not is named.
Knows nothing of networks, attacks or devices, and needs neither JAX nor TensorFlow.

Vocabulary: a *record* is the judgement of one model on one kind of query (`benign`, or the
name of an attack); *hardening* is what turns the model `pretrained` into any other model.
"""

from saat_jax.reports.page import write_report
from saat_jax.reports.records import load_records
from saat_jax.reports.tables import summary_table

__all__ = ["load_records", "summary_table", "write_report"]
