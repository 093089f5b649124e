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

from typing import Any

from saat_jax import options as declared_options
from saat_jax.objectives.centers import (
    Csq,
    Dpn,
    OrthoHash,
    class_centers,
    class_codes,
    csq,
    dpn,
    hadamard,
    orthohash,
)
from saat_jax.objectives.pairwise import (
    Dph,
    Dpsh,
    HashNet,
    Hswd,
    dph,
    dpsh,
    hashnet,
    sliced_wasserstein,
)
from saat_jax.objectives.state import (
    CodeBank,
    Context,
    Objective,
    State,
    init_bank,
    next_forward,
    pair_likelihood,
    quantization,
    similarity,
    update_bank,
    update_state,
)

__all__ = [
    "OBJECTIVES",
    "CodeBank",
    "Context",
    "Csq",
    "Dph",
    "Dpn",
    "Dpsh",
    "HashNet",
    "Hswd",
    "Objective",
    "OrthoHash",
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
    "next_forward",
    "orthohash",
    "pair_likelihood",
    "quantization",
    "similarity",
    "sliced_wasserstein",
    "update_bank",
    "update_state",
]

# The objectives a config may name; their fields are their options.
OBJECTIVES: declared_options.Choices[type[Objective]] = declared_options.Choices(
    "objective",
    {
        "csq": Csq,
        "dph": Dph,
        "dpn": Dpn,
        "dpsh": Dpsh,
        "hashnet": HashNet,
        "hswd": Hswd,
        "orthohash": OrthoHash,
    },
    base=Objective,
)


def create_objective(name: str, **options: Any) -> Objective:
    """Builds an objective by name.

    Args:
        name: a key of `OBJECTIVES`.
        **options: fields of its class there.

    Raises:
        ValueError: if there is no such objective, or it has no such option or value of one.

    Example:
        >>> create_objective("dpn", margin=0.5)
        Dpn(margin=0.5)
        >>> create_objective("csq", eta=1.0)
        Traceback (most recent call last):
        ValueError: objective 'csq' has no option 'eta'; it has ['quantization_weight', ...
    """
    made = OBJECTIVES[name]
    return declared_options.create(made, f"objective {name!r}", options)
