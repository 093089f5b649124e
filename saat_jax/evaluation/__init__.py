"""A model in, robustness records out: named attacks, one protocol, one record for each."""

from saat_jax.evaluation.crafting import (
    AttackResult,
    Encoder,
    attack_queries,
    encode,
)
from saat_jax.evaluation.methods import (
    ATTACKS,
    Attack,
    AttackSettings,
    Guides,
    Knowledge,
    Learned,
)
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.records import (
    batches_from,
    evaluate,
    gather_knowledge,
)
from saat_jax.evaluation.transfer import transfer

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AttackSettings",
    "Encoder",
    "Guides",
    "Knowledge",
    "Learned",
    "Protocol",
    "attack_queries",
    "batches_from",
    "encode",
    "evaluate",
    "gather_knowledge",
    "transfer",
]
