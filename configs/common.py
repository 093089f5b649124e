"""The fields that every config shares, with the papers' values where they have any."""

from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

# As released with each paper: of the hashing network's training and of judging.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "saat": dict(
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        input_norm=True,
        k=5000,
        targets="disjoint",
        min_count=1,
    ),
    "prosgan": dict(
        learning_rate=0.05,
        momentum=0.0,
        weight_decay=1e-5,
        input_norm=False,
        k=None,
        targets="uniform",
        # Of DHTA's and P2P's released targets, which all attacks share here: most label vectors
        # are of a single image, whose code both would aim at.
        min_count=10,
    ),
}
# How a config may read the papers: as their released code has them, as they are printed, or both,
# one beside the other.
READINGS = ("released", "paper", "both")
# What is printed otherwise than released, by section, method and field: the two values. THA and
# ATRDH have those of SAAT's repository and of THA's own. docs/papers.md has the whole list.
_PRINTED: dict[str, dict[str, dict[str, tuple[Any, Any]]]] = {
    "attacks": {
        "mainstay": {
            "weighting": ("similarity", "count"),
            "loss": ("focused", "mean"),
            "random_start": (True, False),
        },
        "tha": {"anneal": (True, False)},
    },
    "defenses": {
        "saat": {
            "options.weighting": ("similarity", "count"),
            "options.random_start": (True, False),
            "options.anchor_codes": ("refreshed", "once"),
            "options.bank": ("aliased", "sign"),
            "options.quantization": ("mean", "sum"),
        },
        "atrdh": {
            "options.adversarial_weight": (2.0, 1.0),
            "options.softplus": (True, False),
        },
    },
    "learned": {
        "tha": {"options.softplus": (True, False)},
        "prosgan": {
            "sigmoid": (False, True),
            "options.reduction": ("mean", "sum"),
            "options.reconstruction": ("mse", "l2sum"),
            "options.hash_weight": (5.0, 1.0),
            "options.discriminator_every": (3, 1),
        },
    },
}
# SAAT's text has 1e-4 for mu in Section IV-A, as released, and calls this the best at Fig. 6.
_MU_OF_FIG_6 = 1e-3
# Of all defences while they train.
_INNER_ATTACK = dict(epsilon=8 / 255, step_size=2 / 255, num_steps=7, attack_mode="train")


def get_base() -> ml_collections.ConfigDict:
    """Returns the fields of a run: data, model, objective, pretrain, attacks, defenses,
    evaluation.
    """
    config = ml_collections.ConfigDict()
    # One of saat_jax.pipeline's TASKS: train_hash, harden, train_saat, evaluate, attack,
    # compare_attacks, chain, transfer, encode, search, report.
    config.task = "chain"
    # Of the initial weights, the order of the images, dropout, random starts, target labels.
    config.seed = 0
    # Of float32 products on accelerators: "highest" is exact, "tensorfloat32" faster on GPU.
    config.precision = "highest"
    # Whether an update reuses the memory of the state before it. False is for debugging.
    config.donate = True
    # What maps an update over devices: pmap, or shard_map, which gives the same bits.
    config.mapping = "pmap"
    # The first and the last step of each training to trace by JAX's profiler; () for none.
    config.profile = ()
    config.data = dict(
        # One of saat_jax/datasets' SOURCES: digits, lists, packed, tfds.
        source="digits",
        # Height and width that the network sees, in pixels.
        image_size=224,
        # Short side before the centre crop, in pixels; None squeezes the whole image.
        resize=config_dict.placeholder(int),
    )
    config.model = dict(
        # One of saat_jax/networks' NETWORKS: alexnet, convnet, vgg11 ... vgg19, vgg11_bn ...,
        # resnet18 ... resnet152, vit_tiny16 ... vit_b16_siglip.
        name="alexnet",
        num_bits=32,
        # Whether ImageNet's mean and standard deviation are applied inside the network.
        input_norm=True,
        # A state dict of PyTorch to start from (.npz, .safetensors, .pth); empty for none.
        weights="",
        # A hash layer in closed form on the features of the training images, in place of training:
        # pca, itq or lsh; empty for training.
        head="",
        # Of all before the hash layer: float32 or bfloat16. See docs/cost.md.
        dtype="float32",
        # Whether gradients compute most activations anew instead of keeping them.
        remat=False,
    )
    # One of saat_jax/objectives' OBJECTIVES: csq, dph, dpn, dpsh, hashnet, hswd, orthohash; and
    # beside the name its options, the arguments of make_csq, ..., in a config that sets them.
    config.objective = dict(name="dph")
    config.pretrain = dict(
        num_epochs=100,
        # Images of one step, on all devices; and steps that make one update.
        batch_size=32,
        accumulate=1,
        schedule=dict(name="thirds", learning_rate=0.01),
        optimizer=dict(name="sgd", momentum=0.9, weight_decay=5e-4),
        # Whether crops lie anywhere in the image, and half of them are mirrored.
        augment=False,
        # Epochs between evaluations of MAP.
        evaluate_every=10,
        # Steps between log lines, and between checkpoints within an epoch.
        log_every=20,
        checkpoint_every=500,
    )
    # By the name of the record. Pixel units of [0, 1]: 1 / 255 is one grey level, 1/255 on the
    # command line.
    mainstay = dict(
        attack="mainstay", epsilon=8 / 255, step_size=1 / 255, num_steps=100, loss="focused",
        anneal=True, random_start=True,
    )  # fmt: skip
    config.attacks = dict(
        mainstay=dict(mainstay, targeted=False),
        mainstay_targeted=dict(mainstay, targeted=True),
    )
    # Hardened models by name.
    config.defenses = dict(hardened=saat())
    # Networks that attacks train for a model, see configs/attacks.py; and the models that
    # "transfer" crafts on and judges, as WORKDIR:MODEL.
    config.learned = dict()
    config.transfer = dict(models=())
    config.evaluation = dict(
        # Which models to judge; none named is every one that is trained.
        models=(),
        # "latest", the papers' choice, or "best": that of the highest MAP, chosen on the queries.
        checkpoint="latest",
        batch_size=128,
        # k = 5000 as SAAT; None ranks the whole database, as ProS-GAN.
        protocol=dict(k=5000, ties="average", normalizer="hits", targets="disjoint", min_count=1),
        # Queries kept for the report's pictures.
        num_examples=6,
        # By which suite the worst case is sought, beside the attacks above: "standard", "cheap" for
        # a first look, or "" for none; and within which balls, in pixel units of [0, 1].
        attack_suite="",
        epsilons=(8 / 255,),
    )
    # Of which model "encode" writes the codes: of the run's images, or of a folder's.
    config.encode = dict(model="pretrained", images="")
    # Which images, a file or a folder, "search" looks for in the codes that "encode" has written:
    # "train", "query", "database", or "images" for those of a folder.
    config.search = dict(model="pretrained", queries="", codes="database", num_results=10)
    return config


def check_variant(name: str, variant: str, known: Sequence[str]) -> None:
    """Refuses a variant that a config does not have."""
    if variant not in known:
        raise ValueError(
            f"unknown variant {variant!r} of configs/{name}.py; expected one of {list(known)}"
        )


def use_protocol(config: ml_collections.ConfigDict, name: str, *, pretrained: bool = True) -> None:
    """Trains and judges a hashing network as a paper's released code does; one of `PROTOCOLS`.

    Without pretrained weights the optimizer stays as it is.
    """
    values = PROTOCOLS[name]
    config.model.input_norm = values["input_norm"]
    if pretrained:
        config.pretrain.schedule.learning_rate = values["learning_rate"]
        config.pretrain.optimizer.update(
            momentum=values["momentum"], weight_decay=values["weight_decay"]
        )
    # A reference, since a mere None could not be set to a number.
    config.evaluation.protocol.k = config_dict.FieldReference(values["k"], int)
    config.evaluation.protocol.update(targets=values["targets"], min_count=values["min_count"])


def as_printed(config: ml_collections.ConfigDict) -> None:
    """Gives whatever has the released value that of the papers' text, in place.

    Fields that have another value, such as the weights of a sweep, keep it.
    """
    with config.unlocked():
        for kind, methods in _PRINTED.items():
            for name, section in config[kind].items():
                for field, (released, printed) in methods.get(_method(name, section), {}).items():
                    *inner, last = field.split(".")
                    place = section[inner[0]] if inner else section
                    if place.get(last, released) == released:
                        place[last] = printed
                if "class_nodes" in section:
                    section.prototypes = _joint_prototypes(config)
        if config.data.get("resize") is not None:
            # The whole image, without a crop.
            config.data.resize = config_dict.placeholder(int)


def _method(name: str, section: ml_collections.ConfigDict) -> str:
    """What a section of attacks, defenses or learned is one of."""
    if "class_nodes" in section:
        return "prosgan"
    return section.get("attack", section.get("name", name))


def _joint_prototypes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The PrototypeNet that is trained together with the generator, of four layers."""
    alone = config.learned.prosgan_prototypes
    options = dict(alone.options.to_dict(), reduction="sum")
    return dict(hidden_width=alone.hidden_width, num_hidden=2, options=options)


def add_printed(config: ml_collections.ConfigDict) -> None:
    """Adds the printed form of each attack, defence and learned network that has one, in place.

    Its name is NAME_paper; of SAAT training there is also NAME_paper_fig6, with that figure's mu.
    Data and hashing network are the same for all, and as they are.
    """
    printed = config.copy_and_resolve_references()
    as_printed(printed)

    def differing(kind: str) -> dict[str, dict[str, Any]]:
        forms = {name: section.to_dict() for name, section in printed[kind].items()}
        return {n: form for n, form in forms.items() if form != config[kind][n].to_dict()}

    with config.unlocked(), printed.unlocked():
        for settings in printed.attacks.values():
            learned = settings.get("learned", settings.attack)
            if learned in differing("learned"):
                settings.learned = f"{learned}_paper"
        for kind in _PRINTED:
            for name, form in differing(kind).items():
                config[kind][f"{name}_paper"] = form
                if form.get("name") == "saat":
                    options = dict(form["options"], quantization_weight=_MU_OF_FIG_6)
                    config[kind][f"{name}_paper_fig6"] = dict(form, options=options)


def read_papers(config: ml_collections.ConfigDict, reading: str) -> None:
    """Makes a config follow one of `READINGS`, in place.

    Raises:
        ValueError: if it lacks a section that these change.
    """
    if reading == "released":
        return
    if missing := [kind for kind in ("data", *_PRINTED) if kind not in config]:
        raise ValueError(f"the config has no section {missing[0]!r}; see configs/common.py")
    {"paper": as_printed, "both": add_printed}[reading](config)


def saat() -> dict[str, Any]:
    """SAAT training as released but for `ties`: what a name in config.defenses may hold."""
    return dict(
        # One of saat_jax/defenses' DEFENSES: atrdh, cgat, saat, teacher.
        name="saat",
        num_epochs=20,
        batch_size=32,
        accumulate=1,
        schedule=dict(name="milestones", learning_rate=0.05),
        optimizer=dict(name="sgd", momentum=0.0, weight_decay=1e-5),
        augment=False,
        # "eval": the first code bank holds the training images' codes; "train": those that the
        # network gives while it trains, on augmented images and with dropout.
        first_bank="eval",
        evaluate_every=10,
        log_every=20,
        checkpoint_every=500,
        # Arguments of the defence's update. Not "update": ConfigDict has a method of that name.
        options=dict(
            _INNER_ATTACK,
            adversarial_weight=1.0,
            quantization_weight=1e-4,
            quantization="mean",
            bank="aliased",
            loss="mean",
            weighting="similarity",
            ties="positive",
        ),
    )


def cgat() -> dict[str, Any]:
    """CgAT as released."""
    return dict(
        saat(),
        name="cgat",
        num_epochs=30,
        schedule=dict(name="milestones", learning_rate=0.01),
        optimizer=dict(name="sgd", momentum=0.9, weight_decay=5e-4),
        augment=True,
        first_bank="train",
        options=dict(_INNER_ATTACK, adversarial_weight=1.0, bank="aliased", ties="zero"),
    )


def atrdh() -> dict[str, Any]:
    """ATRDH as in SAAT's repository."""
    return dict(
        saat(),
        name="atrdh",
        num_epochs=100,
        schedule=dict(name="milestones", learning_rate=1e-4),
        # Of the network and of PrototypeNet.
        optimizer=dict(name="adam", beta1=0.5, weight_decay=0.0),
        # THA's repository has 1 and False.
        options=dict(_INNER_ATTACK, adversarial_weight=2.0, softplus=True),
        # Arguments of the first state.
        state=dict(hidden_width=4096),
    )


def teacher() -> dict[str, Any]:
    """Hardening by a teacher, without labels."""
    return dict(
        saat(),
        name="teacher",
        options=dict(_INNER_ATTACK, clean_weight=1.0, max_drift=0.0),
    )


def use_adam(config: ml_collections.ConfigDict) -> None:
    """Sets both stages to Adam with a cosine schedule, for networks without pretrained weights.

    DPH's gradients are small: from random weights, SGD at the papers' rates needs far more epochs.
    """
    for stage in (config.pretrain, *config.defenses.values()):
        stage.schedule.update(name="cosine", learning_rate=3e-3)
        stage.optimizer = dict(name="adam", weight_decay=0.0)
