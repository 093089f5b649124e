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

from saat_jax.objectives.centers import class_centers as class_centers
from saat_jax.objectives.centers import class_codes as class_codes
from saat_jax.objectives.centers import csq as csq
from saat_jax.objectives.centers import dpn as dpn
from saat_jax.objectives.centers import hadamard as hadamard
from saat_jax.objectives.centers import make_csq as make_csq
from saat_jax.objectives.centers import make_dpn as make_dpn
from saat_jax.objectives.centers import make_orthohash as make_orthohash
from saat_jax.objectives.centers import orthohash as orthohash
from saat_jax.objectives.pairwise import dph as dph
from saat_jax.objectives.pairwise import dpsh as dpsh
from saat_jax.objectives.pairwise import hashnet as hashnet
from saat_jax.objectives.pairwise import make_dph as make_dph
from saat_jax.objectives.pairwise import make_dpsh as make_dpsh
from saat_jax.objectives.pairwise import make_hashnet as make_hashnet
from saat_jax.objectives.pairwise import make_hswd as make_hswd
from saat_jax.objectives.pairwise import sliced_wasserstein as sliced_wasserstein
from saat_jax.objectives.state import CodeBank as CodeBank
from saat_jax.objectives.state import Context as Context
from saat_jax.objectives.state import Objective as Objective
from saat_jax.objectives.state import State as State
from saat_jax.objectives.state import init_bank as init_bank
from saat_jax.objectives.state import next_forward as next_forward
from saat_jax.objectives.state import quantization as quantization
from saat_jax.objectives.state import similarity as similarity
from saat_jax.objectives.state import update_bank as update_bank
from saat_jax.objectives.state import update_state as update_state

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
