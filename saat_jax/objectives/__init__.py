"""Hashing objectives: what makes the codes of images that share a label alike.

`create_objective(name, **options)` returns an `Objective`: how its state begins, and its loss.
All that an objective remembers is in one `State`, of which each fills in what it needs: the
bank of soft codes, the codes of the classes, HashNet's count of forward passes, the parameters
and statistics of OrthoHash's batch normalisation. A training step goes

    state, alpha = next_forward(state)                 # tanh scale of the forward pass
    state = update_state(state, ...)                   # rows of all devices, before the loss
    losses = objective.loss(state, soft_codes, labels, context)

Losses are one value per example, of which the mean over the real rows of all devices is the
published loss. They differentiate the soft codes and `state.params` and nothing else.
Knows nothing of images or networks.
"""

import inspect
from collections.abc import Callable
from typing import Any

from saat_jax.objectives.centers import (
    class_centers,
    class_codes,
    csq,
    dpn,
    hadamard,
    make_csq,
    make_dpn,
    make_orthohash,
    orthohash,
)
from saat_jax.objectives.pairwise import (
    dph,
    dpsh,
    hashnet,
    make_dph,
    make_dpsh,
    make_hashnet,
    make_hswd,
    sliced_wasserstein,
)
from saat_jax.objectives.state import (
    CodeBank,
    Context,
    Objective,
    State,
    init_bank,
    next_forward,
    quantization,
    similarity,
    update_bank,
    update_state,
)

__all__ = [
    "OBJECTIVES",
    "CodeBank",
    "Context",
    "Objective",
    "State",
    "class_centers",
    "class_codes",
    "create_objective",
    "csq",
    "dph",
    "dpn",
    "dpsh",
    "hadamard",
    "hashnet",
    "init_bank",
    "make_csq",
    "make_dph",
    "make_dpn",
    "make_dpsh",
    "make_hashnet",
    "make_hswd",
    "make_orthohash",
    "next_forward",
    "orthohash",
    "quantization",
    "similarity",
    "sliced_wasserstein",
    "update_bank",
    "update_state",
]

# The objectives a config may name; the keyword arguments are their options.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "csq": make_csq,
    "dph": make_dph,
    "dpn": make_dpn,
    "dpsh": make_dpsh,
    "hashnet": make_hashnet,
    "hswd": make_hswd,
    "orthohash": make_orthohash,
}


def create_objective(name: str, **options: Any) -> Objective:
    """Builds an objective by name.

    Args:
        name: a key of `OBJECTIVES`.
        **options: keyword arguments of its function there.

    Raises:
        ValueError: if there is no such objective, or it has no such option.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; expected one of {sorted(OBJECTIVES)}")
    known = sorted(inspect.signature(OBJECTIVES[name]).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"objective {name!r} has no option {unknown[0]!r}; it has {known}")
    return OBJECTIVES[name](**options)
