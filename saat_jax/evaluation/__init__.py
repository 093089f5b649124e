"""A model in, robustness records out: named attacks, one protocol, one record for each."""

from saat_jax.evaluation.crafting import (
    AttackResult,
    Encoder,
    attack_queries,
    encode,
)
from saat_jax.evaluation.judging import (
    attacker_knowledge,
    batches_from,
)
from saat_jax.evaluation.methods import (
    ATTACKS,
    Attack,
    AttackerKnowledge,
    AttackSettings,
    Learned,
    TargetCodes,
)
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.records import evaluate
from saat_jax.evaluation.transfer import transfer

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AttackSettings",
    "AttackerKnowledge",
    "Encoder",
    "Learned",
    "Protocol",
    "TargetCodes",
    "attack_queries",
    "attacker_knowledge",
    "batches_from",
    "encode",
    "evaluate",
    "transfer",
]
