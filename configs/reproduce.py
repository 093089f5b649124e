r"""One cell of the papers' grid: a hashing network with all that their tables ask of it.

    saat-jax reproduce --table saat:II --workdir runs/paper --root nuswide=FOLDER ...

makes whole tables; it takes its configs from here. To run one network by hand:

    saat-jax --config reproduce:saat,nuswide,dph,alexnet,32 \
        --workdir runs/paper/saat-nuswide-dph-alexnet-32 --config.data.root=FOLDER

The variant is PAPER,DATASET,OBJECTIVE,NETWORK,BITS, or the same and ",small": the grid on the
bundled digits, for a CPU, with narrow convolutional networks in the place of each backbone, a few
hundred images, and 100 attack steps where the papers take 1,500 or 2,000. PAPER is saat or
prosgan, the others as in configs/train_hash.py.

At small scale all tables and figures took 58 minutes on two CPU cores beside other work. At full
scale not yet run.
"""

from typing import Any

import ml_collections

from configs import attacks, common, train_hash

VARIANTS = (
    "PAPER,DATASET,OBJECTIVE,NETWORK,BITS",
    "PAPER,DATASET,OBJECTIVE,NETWORK,BITS,small",
)

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


def make_config(
    paper: str, dataset: str, objective: str, network: str, num_bits: int, *, small: bool = False
) -> ml_collections.ConfigDict:
    """Returns the configuration of one network of a paper's grid; `small` is for a CPU."""
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
    config.defenses = _defenses() if paper == "saat" else {}
    config.attacks.update(_further_attacks(paper))
    config.learned.update(_generators(config.learned.prosgan.to_dict()))
    if small:
        _shrink(config, network)
    return config


def _defenses() -> dict[str, Any]:
    """ATRDH and SAAT; and SAAT with other weights, for its Fig. 6."""
    forms = {"atrdh": common.atrdh(), "saat": common.saat()}
    for name, value in WEIGHTS.items():
        forms |= {weighted(name, v): _weighted_saat(name, v) for v in value}
    return forms


def _weighted_saat(name: str, value: float) -> dict[str, Any]:
    stage = common.saat()
    stage["options"][name] = value
    return stage


def _further_attacks(paper: str) -> dict[str, Any]:
    """More steps for SAAT's Table VI; the generators of ProS-GAN's Fig. 4."""
    if paper == "saat":
        steps = attacks.published_attacks()["mainstay"]
        return {f"mainstay_{t}": dict(steps, num_steps=t) for t in (500, 1000)}
    generator = attacks.published_attacks()["prosgan"]
    return {name: dict(generator, learned=name) for name in GENERATORS}


def _generators(published: dict[str, Any]) -> dict[str, Any]:
    """ProS-GAN without its hashing loss, without class nodes, and with other weights."""
    changed = {}
    for name, changes in GENERATORS.items():
        stage = {k: v for k, v in changes.items() if k not in published["options"]}
        options = {k: v for k, v in changes.items() if k in published["options"]}
        changed[name] = published | stage | {"options": published["options"] | options}
    return changed


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
    config.pretrain.update(num_epochs=25, evaluate_every=25)
    if "eta" in config.objective:
        # DPSH's quantisation is divided by the number of training images: as among 5,000.
        config.objective.eta *= config.data.num_train / 5000
    for stage in config.defenses.values():
        stage.update(num_epochs=4, evaluate_every=4)
        if stage.name == "atrdh":
            stage.state.hidden_width = 256
    for name in ("tha", "prosgan_prototypes"):
        config.learned[name].update(num_epochs=4, steps_per_epoch=50, hidden_width=256)
    for name in ("prosgan", *GENERATORS):
        config.learned[name].update(num_epochs=4, base_width=8, evaluate_every=4)
        config.learned[name].schedule.learning_rate = 1e-3
    config.evaluation.batch_size = 32
