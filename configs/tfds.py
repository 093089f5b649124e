r"""The chain with a small network on images of TensorFlow Datasets.

    saat-jax --config tfds:voc/2007 --workdir runs/voc

Variants: coco/2014, coco/2017, voc/2007, voc/2012, cifar10, cifar100. The first use downloads the
set, up to 25 GB for COCO. Not yet run on a downloaded set; the pipeline is tested with TFDS's mock
data.
"""

import ml_collections
from ml_collections import config_dict

from configs import common, lists

VARIANTS = ("coco/2014", "coco/2017", "voc/2007", "voc/2012", "cifar10", "cifar100")


def get_config(variant: str = "voc/2007") -> ml_collections.ConfigDict:
    """Returns the configuration; `variant` is one of `VARIANTS`."""
    common.check_variant("tfds", variant, VARIANTS)
    config = lists.get_config("small")
    config.data = dict(
        source="tfds",
        name=variant,
        image_size=64,
        num_query=500,
        num_database=4000,
        num_train=2000,
        # Where TFDS keeps its data sets; None is its own default.
        data_dir=config_dict.placeholder(str),
    )
    return config
