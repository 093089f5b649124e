r"""Hash training with every objective on every network, in the protocols of both papers.

    saat-jax --config train_hash:flickr25k,hashnet,vgg11,32 \
        --workdir runs/hashnet --config.data.root=FOLDER --config.model.weights=vgg11.pth

The variant is DATASET,OBJECTIVE,NETWORK,BITS or DATASET,OBJECTIVE,NETWORK,BITS,PROTOCOL:

DATASET    flickr25k (38 classes), nuswide (21), coco (80), or lists for any other. The papers'
           splits are in docs/data.md. FOLDER holds their lists (see README, "My images"); the
           name only tells which foreign beginning of paths HashNet's lists have.
OBJECTIVE  csq, dph, dpn, dpsh, hashnet, hswd, orthohash. Its options, --config.objective.NAME=,
           are in `_options` below and in docs/models.md.
NETWORK    alexnet, vgg11 ... vgg19, vgg11_bn ... vgg19_bn, resnet18 ... resnet152, vit_tiny16 ...
           vit_b16_siglip (docs/models.md) at 224 pixels; or convnet at 64 pixels with Adam, a
           cosine and 30 epochs, for a CPU.
BITS       code length.
PROTOCOL   saat, the default, or prosgan: the two papers' optimizers, judging, and what their
           released code does differently.

The papers start from ImageNet's weights. Nothing is downloaded here; torchvision writes them:

    python -c "import torch, torchvision.models as m; \
        torch.save(m.vgg11(weights='IMAGENET1K_V1').state_dict(), 'vgg11.pth')"

With --config.task=compare_attacks the network is then attacked by all attacks of that paper, as in
configs/attacks.py; with --config.task=chain it is hardened by SAAT before.

Run on 2 CPU cores beside other work, convnet, 32 bits: 10 epochs on 5,600 canvases of CIFAR-10
photos in 4 to 8 minutes for each objective, 5 epochs on 5,421 photos of the Grocery Store set in 3.
What came out is in docs/measured.md. At 224 pixels: not yet run.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import attacks, common, lists

VARIANTS = (
    "DATASET,OBJECTIVE,NETWORK,BITS",
    "DATASET,OBJECTIVE,NETWORK,BITS,PROTOCOL",
)
# Beginnings of paths in HashNet's lists, whose images are then looked for in the folder.
_REMAP = {
    "flickr25k": (),
    "nuswide": ("./data/nuswide_81/=",),
    "coco": ("/home/caozhangjie/run-czj/dataset/coco/=",),
    "lists": (),
}
_OBJECTIVES = ("csq", "dph", "dpn", "dpsh", "hashnet", "hswd", "orthohash")
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_VGGS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
_VITS = (
    "vit_tiny16",
    *(f"vit_{size}" for size in ("s16", "b16", "b32")),
    *(f"vit_{size}14_dinov2{suffix}" for size in "sb" for suffix in ("", "_registers")),
    *("vit_b16_clip", "vit_b32_clip", "vit_b16_siglip"),
)
_NETWORKS = ("alexnet", "convnet", *_RESNETS, *_VGGS, *_VITS)
# What their objectives differ in; see common.PROTOCOLS for the rest.
_OBJECTIVE_OPTIONS: dict[str, dict[str, Any]] = {
    # None is 10 / num_bits.
    "saat": dict(slope=None, known_labels=False),
    "prosgan": dict(slope=0.1, known_labels=True),
}


def _options(objective: str, *, slope: float | None, known_labels: bool) -> dict[str, Any]:
    """The options of an objective: what its `make_...` in saat_jax/objectives takes."""
    bank = dict(known_labels=known_labels)
    # References, here and below, since a mere None could not be set to a number.
    hashnet = dict(slope=config_dict.FieldReference(slope, float), scale_quirk=False, **bank)
    options: dict[str, dict[str, Any]] = {
        "csq": dict(quantization_weight=0.05, random_centers=False),
        "dph": bank,
        "dpn": dict(margin=1.0),
        "dpsh": dict(eta=50.0, normalizer="bank", **bank),
        "hashnet": hashnet,
        "hswd": dict(wasserstein_weight=0.1, **hashnet),
        "orthohash": dict(margin=0.2, scale=8.0),
    }
    return options[objective]


def parse_names(words: Sequence[str], variant: str) -> tuple[str, str, str, int]:
    """Data set, objective, network and code length, of the words of a variant.

    Raises:
        ValueError: if a word is unknown, quoting the whole variant.
    """
    known = (tuple(_REMAP), _OBJECTIVES, _NETWORKS, None)
    fits = len(words) == 4 and all(
        word in choices if choices else word.isdecimal() and int(word) > 0
        for word, choices in zip(words, known, strict=True)
    )
    if not fits:
        raise ValueError(
            f"unknown variant {variant!r}; expected DATASET,OBJECTIVE,NETWORK,BITS such as "
            f'"flickr25k,hashnet,vgg11,32"; DATASET: {" ".join(_REMAP)}; '
            f"OBJECTIVE: {' '.join(_OBJECTIVES)}; NETWORK: {' '.join(_NETWORKS)}; "
            f"BITS: a number from 1; then a PROTOCOL if you like: {' '.join(common.PROTOCOLS)}"
        )
    return words[0], words[1], words[2], int(words[3])


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is as the head of this file says."""
    words = variant.split(",")
    protocol = words.pop() if len(words) == 5 and words[4] in common.PROTOCOLS else "saat"
    return make_config(*parse_names(words, variant), protocol=protocol)


def make_config(
    dataset: str, objective: str, network: str, num_bits: int, *, protocol: str
) -> ml_collections.ConfigDict:
    """Returns the configuration of one hashing network in the protocol of a paper."""
    config = lists.get_config("small" if network == "convnet" else "")
    config.task = "train_hash"
    config.data.remap = _REMAP[dataset]
    common.use_protocol(config, protocol, pretrained=network != "convnet")
    config.model.update(name=network, num_bits=num_bits)
    # ProS-GAN has networks of its own for HashNet.
    normal = network in _RESNETS or (protocol, objective) == ("prosgan", "hashnet")
    config.model.hash_init = "normal" if normal else "torch"
    options = _options(objective, **_OBJECTIVE_OPTIONS[protocol])
    config.objective = dict(name=objective, **options)
    config.attacks = (
        attacks.prosgan_attacks() if protocol == "prosgan" else attacks.published_attacks()
    )
    config.learned = attacks.published_learners()
    if dataset == "flickr25k":
        config.learned.prosgan.options.reconstruction_weight = 100.0
    config.learned.prosgan.training_scale = (protocol, objective) == ("prosgan", "hashnet")
    if network == "convnet":
        attacks.shorten(config, num_steps=100)
    return config
