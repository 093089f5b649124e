"""A model in, robustness records out: named attacks, one protocol, one record for each."""

from saat_jax.evaluation.audit import attack, audit
from saat_jax.evaluation.certify import certify
from saat_jax.evaluation.crafting import (
    AttackResult,
    Encoder,
    attack_queries,
    encode,
)
from saat_jax.evaluation.edited import edited
from saat_jax.evaluation.flags import FLAGS, Flag
from saat_jax.evaluation.inserts import inserts
from saat_jax.evaluation.judging import (
    attacker_knowledge,
    batches_from,
    surrogate,
)
from saat_jax.evaluation.matcher import Matcher
from saat_jax.evaluation.methods import (
    AIMS,
    ATTACKS,
    Attack,
    AttackerKnowledge,
    AttackSettings,
    Learned,
    TargetCodes,
)
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.queries import queries
from saat_jax.evaluation.records import evaluate
from saat_jax.evaluation.suites import (
    PRESETS,
    STANDARD,
    AnyAttack,
    Suite,
    all_members,
    create_attack,
    standard_suite,
)
from saat_jax.evaluation.transfer import transfer
from saat_jax.evaluation.universal import learned_universal, transfer_matches, universal

__all__ = [
    "AIMS",
    "ATTACKS",
    "FLAGS",
    "PRESETS",
    "STANDARD",
    "AnyAttack",
    "Attack",
    "AttackResult",
    "AttackSettings",
    "AttackerKnowledge",
    "Encoder",
    "Flag",
    "Learned",
    "Matcher",
    "Protocol",
    "Suite",
    "TargetCodes",
    "all_members",
    "attack",
    "attack_queries",
    "attacker_knowledge",
    "audit",
    "batches_from",
    "certify",
    "create_attack",
    "edited",
    "encode",
    "evaluate",
    "inserts",
    "learned_universal",
    "queries",
    "standard_suite",
    "surrogate",
    "transfer",
    "transfer_matches",
    "universal",
]
