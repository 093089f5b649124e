"""A model in, robustness records out: named attacks, one protocol, one record for each."""

from saat_jax.evaluation.crafting import AttackResult as AttackResult
from saat_jax.evaluation.crafting import Encoder as Encoder
from saat_jax.evaluation.crafting import attack_queries as attack_queries
from saat_jax.evaluation.crafting import encode as encode
from saat_jax.evaluation.methods import ATTACKS as ATTACKS
from saat_jax.evaluation.methods import Attack as Attack
from saat_jax.evaluation.methods import AttackSettings as AttackSettings
from saat_jax.evaluation.methods import Guides as Guides
from saat_jax.evaluation.methods import Knowledge as Knowledge
from saat_jax.evaluation.methods import Learned as Learned
from saat_jax.evaluation.protocol import Protocol as Protocol
from saat_jax.evaluation.records import batches_from as batches_from
from saat_jax.evaluation.records import evaluate as evaluate
from saat_jax.evaluation.records import gather_knowledge as gather_knowledge
from saat_jax.evaluation.records import transfer as transfer
