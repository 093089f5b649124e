"""Training updates: plain hashing, and adversarial training by SAAT, CgAT and ATRDH.

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

from collections.abc import Callable

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

__all__ = [
    "DEFENSES",
    "FIRST_STATES",
    "AtrdhState",
    "Batch",
    "TrainState",
    "UpdateFn",
    "init_atrdh_state",
    "init_minimax_state",
    "init_state",
    "make_atrdh_update",
    "make_cgat_update",
    "make_hashing_update",
    "make_saat_update",
    "training_pass",
]

# The defences a config may name, and what each makes of a pretrained network to begin with.
DEFENSES: dict[str, Callable[..., UpdateFn]] = {
    "atrdh": make_atrdh_update,
    "cgat": make_cgat_update,
    "saat": make_saat_update,
}
FIRST_STATES: dict[str, Callable[..., TrainState]] = {
    "atrdh": init_atrdh_state,
    "cgat": init_minimax_state,
    "saat": init_minimax_state,
}
