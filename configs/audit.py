r"""How easily a matcher is evaded, and made to collide, at its operating point.

    saat-jax audit --config audit:pdq --workdir runs/audit
    saat-jax audit --config audit:phash --config.images=FOLDER
    saat-jax audit --config audit:encoder --config.encoder=mine.py:make --config.images=FOLDER
    saat-jax audit --config audit:run --config.encoder=runs/demo:hardened --config.images=FOLDER

No labels: images, an encoder and a threshold. Without a folder of one's own it takes 13 photos of
scikit-image. Variants: the perceptual hashes pdq, phash, dhash and ahash at the thresholds that
their makers name, or that are usual; "encoder" is a file's function that gives a PyTorch module, a
JAX function or an encoder, or an ONNX file; "run" a model that this library has trained. The last
two choose the radius by the false-match rate.
"""

import ml_collections
from ml_collections import config_dict

from configs import common

VARIANTS = ("pdq", "phash", "dhash", "ahash", "encoder", "run")
# PDQ's is from its documentation; the others, of 64 bits, are what is usual.
_RADII = {"pdq": 31.0, "phash": 10.0, "dhash": 10.0, "ahash": 5.0}


def get_config(variant: str = "pdq") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("audit", variant, VARIANTS)
    config = ml_collections.ConfigDict()
    # The part to make: audit (by the gradient), edits,
    # queries, universal, inserts, transfer, certify; report only writes the page.
    config.task = "audit"
    # Of the starts, and of which image is to be taken for which.
    config.seed = 0
    # A perceptual hash, WORKDIR:MODEL, FILE.py:FUNCTION or FILE.onnx.
    config.encoder = variant if variant in _RADII else ""
    # Folder of images, all different; empty for scikit-image's.
    config.images = ""
    # Folder of what collisions are to be with; empty for the images themselves.
    config.listed = ""
    # Regular expression: images in whose names it finds the same text are near-duplicates.
    config.groups = ""
    # At most so many images are attacked; None for all.
    config.limit = config_dict.placeholder(int)
    # Larger images are brought down to such a long side, in pixels; None leaves them as they are.
    config.longest = config_dict.FieldReference(320, int)
    # All are squeezed to such a square, in pixels; None leaves them as they are.
    config.size = config_dict.placeholder(int)
    # What is searched beside arrays: flat, hash or ivf of faiss, or pgvector:ADDRESS.
    config.index = ""
    config.point = dict(
        # radius (bits that may differ), cosine or top_k.
        kind="radius",
        value=config_dict.FieldReference(_RADII.get(variant), float),
        # Instead of a value: the loosest at which so few pairs of different images match.
        false_match_rate=config_dict.placeholder(float),
    )
    if variant not in _RADII:
        config.point.false_match_rate = 0.01
    # Radii of the ball, from small to large.
    config.epsilons = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    # Edits of the images, and an attack that survives some of them.
    config.edits = dict(
        epsilon=4 / 255,
        survive=("jpeg_75",),
        # Recall is told at the threshold that keeps it.
        at_precision=0.99,
        # Such as ("jpeg_75", "crop_10"); None for all kinds at their usual strengths.
        names=config_dict.placeholder(tuple),
    )
    # Attacks that see a service's answers alone.
    config.queries = dict(
        epsilon=8 / 255,
        # Queries that an image may take.
        budget=5000,
        answers=("distances", "ranks", "match"),
        games=("square", "nes", "spsa"),
        # evade, collide or collide_any.
        task="evade",
        # Queries a second that the service allows, for the cost.
        per_second=1.0,
    )
    # One perturbation for all images, or a patch that covers a share of the area.
    config.universal = dict(epsilon=8 / 255, patch=0.0, task="evade", num_steps=300)
    # Images that are put into the database, to be found by as many queries as possible.
    config.inserts = dict(
        epsilon=8 / 255,
        # Of inserts, at which reach is told.
        numbers=(1, 2, 5, 10),
        # Length of the list that a query gets.
        k=10,
        # Images that are queries alone, and images of which inserts are made; a third at most each.
        num_held_out=500,
        num_carriers=100,
        # Share of the codes that may be suspects of the scan.
        alert_rate=0.01,
    )
    # Images crafted on each encoder, judged by all: others as ENCODER=RADIUS, or ENCODER alone at a
    # false-match rate of 1 %.
    config.transfer = dict(epsilon=8 / 255, encoders=("phash=10", "dhash=10", "ahash=5"))
    # What is proved of the matcher that decides by noisy copies; norms of the whole change.
    config.certify = dict(sigma=0.25, num_draws=1000, alpha=0.001, epsilons=(0.1, 0.25, 0.5, 1.0))
    # Images of one size that are attacked together.
    config.batch_size = 16
    return config
