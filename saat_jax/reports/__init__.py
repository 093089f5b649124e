"""Reports: the files a run leaves, as a terminal table, PNG figures and one HTML page.

Reads `config.json`, `models/<model>/metrics.jsonl`, `records/<model>/<attack>.{json,npz}`,
`learned/<model>/<network>/` and `transfer/<attack>.json` below a work directory. A run may be
unfinished, or a file damaged: what is sound is shown, the rest is named. Knows nothing of networks,
attacks or devices.

Vocabulary: a *record* is the judgement of one model on one kind of query (`benign`, or the
name of an attack); *hardening* is what turns the model `pretrained` into any other model.
"""

from saat_jax.reports.audits import PARTS, audit_table, show_audit
from saat_jax.reports.board import write_board
from saat_jax.reports.cards import (
    Card,
    cards_of_audit,
    cards_of_run,
    check_card,
    read_card,
    read_cards,
    write_card,
)
from saat_jax.reports.compare import show_comparison
from saat_jax.reports.model_readme import model_readme
from saat_jax.reports.page import show_report, write_report
from saat_jax.reports.records import BASE_MODEL, load_records
from saat_jax.reports.tables import (
    attack_table,
    iterations_table,
    summary_table,
    terminal_tables,
    transfer_table,
)

__all__ = [
    "BASE_MODEL",
    "PARTS",
    "Card",
    "attack_table",
    "audit_table",
    "cards_of_audit",
    "cards_of_run",
    "check_card",
    "iterations_table",
    "load_records",
    "model_readme",
    "read_card",
    "read_cards",
    "show_audit",
    "show_comparison",
    "show_report",
    "summary_table",
    "terminal_tables",
    "transfer_table",
    "write_board",
    "write_card",
    "write_report",
]
