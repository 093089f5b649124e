"""Attack and harden deep-hashing image retrieval in JAX.

The names below are the functional API: pure functions on plain arrays, which need neither
TensorFlow nor the training code.
"""

__version__ = "0.1.0"

from saat_jax.attacks import alpha_schedule as alpha_schedule
from saat_jax.attacks import hag as hag
from saat_jax.attacks import pgd as pgd
from saat_jax.attacks import sdha as sdha
from saat_jax.attacks import select_target_labels as select_target_labels
from saat_jax.defenses import DEFENSES as DEFENSES
from saat_jax.evaluation import ATTACKS as ATTACKS
from saat_jax.hamming import binarize as binarize
from saat_jax.hamming import hamming_distance as hamming_distance
from saat_jax.hamming import pack_codes as pack_codes
from saat_jax.hamming import unpack_codes as unpack_codes
from saat_jax.mainstay import anchor_codes as anchor_codes
from saat_jax.mainstay import center_codes as center_codes
from saat_jax.mainstay import mainstay_codes as mainstay_codes
from saat_jax.mainstay import mainstay_votes as mainstay_votes
from saat_jax.networks import create_network as create_network
from saat_jax.networks import load_torch_weights as load_torch_weights
from saat_jax.networks import make_encode_fn as make_encode_fn
from saat_jax.objectives import OBJECTIVES as OBJECTIVES
from saat_jax.perturbation import perturbation_metrics as perturbation_metrics
from saat_jax.retrieval import map_at_k as map_at_k
from saat_jax.retrieval import precision_at_n as precision_at_n
from saat_jax.retrieval import precision_recall_curve as precision_recall_curve
