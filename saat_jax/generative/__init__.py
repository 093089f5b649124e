"""ProS-GAN: a generator that makes adversarial images in one pass, and its training.

The generator turns an image and the semantic vector of target labels into an image whose code
is that of the labels; the discriminator tells real images from generated ones and names their
labels. Both see *signed* images, in [-1, 1]; batches and the attack keep to [0, 1]. Semantic
vectors and target codes are arrays of the batch: what made them is not known here.
"""

from saat_jax.generative.attack import generate as generate
from saat_jax.generative.losses import HASH_LOSSES as HASH_LOSSES
from saat_jax.generative.losses import RECONSTRUCTION_LOSSES as RECONSTRUCTION_LOSSES
from saat_jax.generative.losses import discriminator_loss as discriminator_loss
from saat_jax.generative.losses import focused_hash_loss as focused_hash_loss
from saat_jax.generative.losses import linear_hash_loss as linear_hash_loss
from saat_jax.generative.losses import mean_reconstruction as mean_reconstruction
from saat_jax.generative.losses import score_loss as score_loss
from saat_jax.generative.losses import sum_reconstruction as sum_reconstruction
from saat_jax.generative.models import Discriminator as Discriminator
from saat_jax.generative.models import Generator as Generator
from saat_jax.generative.models import LabelDecoder as LabelDecoder
from saat_jax.generative.models import ResidualBlock as ResidualBlock
from saat_jax.generative.models import SpectralConv as SpectralConv
from saat_jax.generative.models import Upsample as Upsample
from saat_jax.generative.models import double_size as double_size
from saat_jax.generative.models import instance_norm as instance_norm
from saat_jax.generative.models import power_iteration as power_iteration
from saat_jax.generative.update import GanState as GanState
from saat_jax.generative.update import gan_schedule as gan_schedule
from saat_jax.generative.update import init_state as init_state
from saat_jax.generative.update import make_gan_update as make_gan_update
