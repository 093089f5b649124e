"""Training updates: plain hashing, and adversarial training by SAAT, CgAT and ATRDH, or by a
teacher, without labels.

Each `make_*_update` builds one pure per-device function
`update(state, batch, *, axis_name) -> (state, metrics)`, which `parallel.map_update` maps over
devices. A batch is a dict of the device's rows:

    image  [rows, height, width, channels] float32 in [0, 1]
    label  [rows, num_classes] multi-hot float
    index  [rows] int, the image's row in the training set; the set's size for padding
    mask   [rows] float, 1 for real rows and 0 for padding, which then has no influence at all
    start  optional, like image: where an inner attack begins instead of at random
    target_label  optional, like label: what ATRDH's attack aims at, instead of a random label

Losses are local shares of global means: each device sums over its rows, divides by the number
of real rows on all devices, and gradients are added up over devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from saat_jax import options
from saat_jax.defenses.atrdh import (
    AtrdhState,
    init_atrdh_state,
    make_atrdh_update,
)
from saat_jax.defenses.cgat import make_cgat_update
from saat_jax.defenses.common import (
    Batch,
    TrainState,
    UpdateFn,
    init_state,
    training_pass,
)
from saat_jax.defenses.hashing import make_hashing_update
from saat_jax.defenses.saat import (
    init_minimax_state,
    make_saat_update,
)
from saat_jax.defenses.teacher import Teacher, init_teacher_state, make_teacher_update

__all__ = [
    "DEFENSES",
    "AtrdhState",
    "Batch",
    "Defense",
    "Teacher",
    "TrainState",
    "UpdateFn",
    "init_atrdh_state",
    "init_minimax_state",
    "init_state",
    "init_teacher_state",
    "make_atrdh_update",
    "make_cgat_update",
    "make_hashing_update",
    "make_saat_update",
    "make_teacher_update",
    "training_pass",
]


@dataclasses.dataclass(frozen=True)
class Defense:
    """A named defence, whose options are listed here once.

    Attributes:
        make_update: called as `make_saat_update` is, with the options.
        first_state: called as `init_minimax_state` is: what it makes of a pretrained network to
            begin with.
        options: of `make_update`, with their defaults; `...` for one that must be given.
        state_options: the same of `first_state`.
    """

    make_update: Callable[..., UpdateFn]
    first_state: Callable[..., TrainState] = init_minimax_state
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_INNER_ATTACK = {
    "epsilon": ...,
    "step_size": ...,
    "num_steps": ...,
    "attack_mode": "train",
    "random_start": True,
    "direction": "sign",
    "random_radius": False,
    "warmup_steps": 0,
    # Of the update, for all of them.
    "weight_perturbation": 0.0,
}
# What neither SAAT nor CgAT has of itself.
_MINIMAX = {"objective_weight": 0.0, "teacher_weight": 1.0, "ramp_steps": 0}
# What a config may name. Add one of your own by `DEFENSES.register("mine", Defense(function))`.
DEFENSES: options.Choices[Defense] = options.Choices(
    "defence",
    {
        "atrdh": Defense(
            make_atrdh_update,
            init_atrdh_state,
            options={**_INNER_ATTACK, "adversarial_weight": 2.0, "softplus": True},
            state_options={"hidden_width": 4096},
        ),
        "cgat": Defense(
            make_cgat_update,
            state_options={"teacher": False},
            options={
                **_INNER_ATTACK,
                **_MINIMAX,
                "adversarial_weight": 1.0,
                "bank": "aliased",
                "ties": "positive",
            },
        ),
        "saat": Defense(
            make_saat_update,
            state_options={"teacher": False},
            options={
                **_INNER_ATTACK,
                **_MINIMAX,
                "adversarial_weight": 1.0,
                "quantization_weight": 1e-4,
                "quantization": "mean",
                "bank": "aliased",
                "anchor_codes": "refreshed",
                "loss": "mean",
                "weighting": "similarity",
                "ties": "positive",
            },
        ),
        "teacher": Defense(
            make_teacher_update,
            init_teacher_state,
            options={**_INNER_ATTACK, "clean_weight": 1.0, "max_drift": 0.0},
        ),
    },
)
