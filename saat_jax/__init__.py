"""Attack and harden deep-hashing image retrieval in JAX.

The names below are the functional API: pure functions on plain arrays, which need neither
TensorFlow nor the training code.
"""

from importlib import metadata
from typing import Any

from saat_jax.attacks import (
    Collide,
    Displace,
    Evade,
    Reach,
    alpha_schedule,
    hag,
    pgd,
    sdha,
    select_target_labels,
)
from saat_jax.defenses import DEFENSES
from saat_jax.evaluation import ATTACKS, audit, standard_suite
from saat_jax.hamming import (
    binarize,
    hamming_distance,
    pack_codes,
    unpack_codes,
)
from saat_jax.mainstay import (
    anchor_codes,
    center_codes,
    mainstay_codes,
    mainstay_votes,
)
from saat_jax.networks import (
    create_network,
    load_torch_weights,
    make_encode_fn,
)
from saat_jax.objectives import OBJECTIVES
from saat_jax.perturbation import perturbation_metrics
from saat_jax.retrieval import (
    OperatingPoint,
    map_at_k,
    precision_at_n,
    precision_recall_curve,
)

__version__ = metadata.version("saat-jax")


def __getattr__(name: str) -> Any:
    """Of the names below, the one that can load what a run has trained, on first use."""
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from saat_jax.pipeline import load_encoder

    return load_encoder


__all__ = [
    "ATTACKS",
    "DEFENSES",
    "OBJECTIVES",
    "Collide",
    "Displace",
    "Evade",
    "OperatingPoint",
    "Reach",
    "alpha_schedule",
    "anchor_codes",
    "audit",
    "binarize",
    "center_codes",
    "create_network",
    "hag",
    "hamming_distance",
    "load_encoder",
    "load_torch_weights",
    "mainstay_codes",
    "mainstay_votes",
    "make_encode_fn",
    "map_at_k",
    "pack_codes",
    "perturbation_metrics",
    "pgd",
    "precision_at_n",
    "precision_recall_curve",
    "sdha",
    "select_target_labels",
    "standard_suite",
    "unpack_codes",
]
