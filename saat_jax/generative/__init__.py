"""ProS-GAN: a generator that makes adversarial images in one pass, and its training.

The generator turns an image and the semantic vector of target labels into an image whose code
is that of the labels; the discriminator tells real images from generated ones and names their
labels. Both see *signed* images, in [-1, 1]; batches and the attack keep to [0, 1]. Semantic
vectors and target codes are arrays of the batch, of a PrototypeNet that is trained before, as
released; or PrototypeNet is trained along, as printed (`make_joint_update`).
"""

from saat_jax.generative.attack import generate
from saat_jax.generative.joint import (
    JointState,
    join_states,
    make_joint_update,
)
from saat_jax.generative.losses import (
    HASH_LOSSES,
    RECONSTRUCTION_LOSSES,
    discriminator_loss,
    focused_hash_loss,
    linear_hash_loss,
    mean_reconstruction,
    score_loss,
    sum_reconstruction,
)
from saat_jax.generative.models import (
    Discriminator,
    Generator,
    LabelDecoder,
    ResidualBlock,
    SpectralConv,
    Upsample,
    double_size,
    instance_norm,
    power_iteration,
)
from saat_jax.generative.update import (
    GanState,
    init_state,
    make_gan_update,
)

__all__ = [
    "HASH_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "Discriminator",
    "GanState",
    "Generator",
    "JointState",
    "LabelDecoder",
    "ResidualBlock",
    "SpectralConv",
    "Upsample",
    "discriminator_loss",
    "double_size",
    "focused_hash_loss",
    "generate",
    "init_state",
    "instance_norm",
    "join_states",
    "linear_hash_loss",
    "make_gan_update",
    "make_joint_update",
    "mean_reconstruction",
    "power_iteration",
    "score_loss",
    "sum_reconstruction",
]
