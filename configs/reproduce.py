r"""One cell of the papers' grid: a hashing network with all that their tables ask of it.

    saat-jax reproduce --table saat:II --workdir runs/paper --root nuswide=FOLDER ...

makes whole tables; it takes its configs from here. To run one network by hand:

    saat-jax --config reproduce:saat,nuswide,dph,alexnet,32 \
        --workdir runs/paper/saat-nuswide-dph-alexnet-32 --config.data.root=FOLDER

The variant is PAPER,DATASET,OBJECTIVE,NETWORK,BITS, or the same and ",small": the grid on the
bundled digits, for a CPU, with narrow convolutional networks in the place of each backbone, a few
hundred images, and 100 attack steps (SDHA 300) where the papers take 1,500 or 2,000. PAPER is saat
or prosgan, the others as in configs/train_hash.py.

At small scale all tables and figures took 99 minutes on two CPU cores that had other work beside
it, and 92 minutes of CPU time. At full scale not yet run.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import common, train_hash

VARIANTS = (
    "PAPER,DATASET,OBJECTIVE,NETWORK,BITS",
    "PAPER,DATASET,OBJECTIVE,NETWORK,BITS,small",
)

# SAAT's Table VI.
STEPS = (1, 10, 50, 500, 1000)
# The grids of SAAT's Fig. 6 and ProS-GAN's Fig. 4 are not published: these are ours. An option
# of SAAT training, and its values.
WEIGHTS = {
    "adversarial_weight": (0.01, 0.1, 0.5, 2.0, 5.0),
    "quantization_weight": (0.0, 1e-5, 1e-3, 1e-2, 1e-1),
}
# Generators beside the published one: changes of its section in config.learned.
GENERATORS: dict[str, dict[str, float]] = {
    "gan": {"hash_weight": 0.0},
    "prosgan1": {"class_nodes": False},
    **{f"prosgan_{w:g}": {"reconstruction_weight": w} for w in (10.0, 25.0, 100.0, 200.0)},
}

# What stands for each backbone at small scale: the widths of a convnet.
_SMALL_WIDTHS = {
    "alexnet": (12, 24, 48, 48),
    "vgg11": (8, 16, 32, 48),
    "vgg16": (12, 24, 32, 48),
    "vgg19": (8, 24, 48, 64),
    "resnet18": (12, 16, 32, 48),
}


def weighted(option: str, value: float) -> str:
    """The name of a form hardened with one weight changed; a config's names have no points."""
    return f"saat_{option}_{value:g}".replace(".", "p")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is as the head of this file says."""
    words = variant.split(",")
    small = words[-1] == "small"
    if len(words) != 5 + small or words[0] not in ("saat", "prosgan"):
        raise ValueError(
            f"unknown variant {variant!r} of configs/reproduce.py; expected "
            'PAPER,DATASET,OBJECTIVE,NETWORK,BITS such as "saat,nuswide,dph,alexnet,32", or '
            '"prosgan,coco,dpsh,vgg11,12,small"; PAPER: saat prosgan'
        )
    paper, *names = words[:5]
    return make_config(paper, *train_hash.parse_names(names, variant), small=small)


def swept() -> dict[str, list[str]]:
    """The settings that tables and figures vary: the names of the forms that differ in each."""
    names = {
        f"defenses.saat.options.{option}": [weighted(option, value) for value in values]
        for option, values in WEIGHTS.items()
    }
    names["attacks.mainstay.num_steps"] = [f"mainstay_{steps}" for steps in STEPS]
    for name, changes in GENERATORS.items():
        for field in changes:
            place = "" if field == "class_nodes" else "options."
            names.setdefault(f"learned.prosgan.{place}{field}", []).append(name)
    return names


def make_config(
    paper: str,
    dataset: str,
    objective: str,
    network: str,
    num_bits: int,
    *,
    small: bool = False,
    data: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """Returns the configuration of one network of a paper's grid.

    Args:
        paper: "saat" or "prosgan".
        dataset: as of configs/train_hash.py, and so are objective, network and num_bits.
        small: whether for a CPU.
        data: that section, if it is to be another one.
        settings: further values by dotted name. What a table or figure varies is made of them: a
            field of defenses.saat, attacks.mainstay or learned.prosgan is one of all their forms.

    Raises:
        ValueError: if it has no such field, or the field is of another kind.
    """
    if small and network not in _SMALL_WIDTHS:
        raise ValueError(f"{network!r} has no small form; expected one of {[*_SMALL_WIDTHS]}")
    config = train_hash.make_config(
        "lists" if small else dataset,
        objective,
        "convnet" if small else network,
        num_bits,
        protocol=paper,
    )
    config.task = "chain" if paper == "saat" else "compare_attacks"
    config.defenses = {}
    if paper == "saat":
        config.defenses = {"atrdh": common.atrdh(), "saat": common.saat()}
    if small:
        _shrink(config, network)
    if data:
        config.data = dict(data)
    config.lock()
    left = {name: v for name, v in (settings or {}).items() if not _set(config, name, v)}
    with config.unlocked():
        _add_forms(config, paper)
    for name, value in left.items():
        if not _set(config, name, value):
            raise ValueError(f"{name}={value!r} does not fit the config: it has no such field")
    return config.unlock()


def _set(config: ml_collections.ConfigDict, name: str, value: Any) -> bool:
    """Sets a field by its dotted name; tells whether there is one."""
    try:
        config.update_from_flattened_dict({name: value})
    except (AttributeError, KeyError):
        return False
    except TypeError as error:
        raise ValueError(f"{name}={value!r} does not fit the config: {error}") from error
    return True


def _add_forms(config: ml_collections.ConfigDict, paper: str) -> None:
    """What tables and figures vary: weights and steps of SAAT, or ProS-GAN's generators."""
    if paper == "saat":
        for option, values in WEIGHTS.items():
            for value in values:
                stage = config.defenses.saat.to_dict()
                stage["options"][option] = value
                config.defenses[weighted(option, value)] = stage
        steps = config.attacks.mainstay.to_dict()
        config.attacks.update({f"mainstay_{t}": dict(steps, num_steps=t) for t in STEPS})
        return
    published = config.learned.prosgan.to_dict()
    for name, changes in GENERATORS.items():
        stage = {k: v for k, v in changes.items() if k not in published["options"]}
        options = {k: v for k, v in changes.items() if k in published["options"]}
        config.learned[name] = published | stage | {"options": published["options"] | options}
        config.attacks[name] = config.attacks.prosgan.to_dict() | {"learned": name}


def _shrink(config: ml_collections.ConfigDict, network: str) -> None:
    """The bundled digits, narrow networks, few images, few steps."""
    config.data = dict(
        source="digits",
        image_size=32,
        num_query=32,
        num_database=640,
        num_train=320,
        contrast=0.8,
    )
    config.model.widths = _SMALL_WIDTHS[network]
    common.use_adam(config)
    # DPSH learns slowly: after 25 epochs its MAP is 45 to 50, after 60 more than 70.
    config.pretrain.update(num_epochs=60, evaluate_every=60)
    if "eta" in config.objective:
        # DPSH's quantisation is divided by the number of training images: as among 5,000.
        config.objective.eta *= config.data.num_train / 5000
    for stage in config.defenses.values():
        stage.update(num_epochs=4, evaluate_every=4)
        if stage.name == "atrdh":
            stage.state.hidden_width = 256
    for name in ("tha", "prosgan_prototypes"):
        config.learned[name].update(num_epochs=4, steps_per_epoch=50, hidden_width=256)
    config.learned.prosgan.update(num_epochs=4, base_width=8, evaluate_every=4)
    config.learned.prosgan.schedule.learning_rate = 1e-3
    config.evaluation.batch_size = 32
