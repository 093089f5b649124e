"""The update of generator and discriminator, its state and its learning rate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

from saat_jax import networks, options, parallel
from saat_jax.generative import losses
from saat_jax.generative.models import Discriminator, Generator

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class GanState:
    """All that GAN training changes, and the hash network that it attacks.

    Attributes:
        step: int32 number of updates done.
        params: of "generator" and "discriminator".
        spectral: the discriminator's singular vectors.
        opt_states: of "generator" and "discriminator".
        discriminator_loss: of the last step that updated the discriminator.
        hash_variables: the hash network's, never changed. Here, and not closed over, since
            a program with that many constants takes minutes to compile.
    """

    step: Array
    params: dict[str, chex.ArrayTree]
    spectral: chex.ArrayTree
    opt_states: dict[str, chex.ArrayTree]
    discriminator_loss: Array
    hash_variables: chex.ArrayTree


def init_state(
    generator: Generator,
    discriminator: Discriminator,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    hash_variables: chex.ArrayTree,
    rng: Array,
    *,
    image_size: int,
    num_semantics: int = 512,
) -> GanState:
    """The state before the first update.

    Args:
        generator: the generator.
        discriminator: the discriminator.
        generator_optimizer: an optax transformation.
        discriminator_optimizer: another.
        hash_variables: of the hash network under attack.
        rng: key of the initial parameters.
        image_size: height and width of the images, a multiple of 16, at least 32 pixels.
        num_semantics: length of a semantic vector.

    Raises:
        ValueError: if the image size does not fit.
    """
    generator_rng, discriminator_rng = jax.random.split(rng)
    images = jnp.zeros((1, image_size, image_size, 3))
    # The discriminator first: its sizes are the fewer.
    discriminator_variables = jax.jit(discriminator.init)(discriminator_rng, images)
    generator_variables = jax.jit(generator.init)(
        generator_rng, images, jnp.zeros((1, num_semantics))
    )
    return GanState(
        step=jnp.zeros((), jnp.int32),
        params={
            "generator": generator_variables["params"],
            "discriminator": discriminator_variables["params"],
        },
        spectral=discriminator_variables["spectral"],
        opt_states={
            "generator": generator_optimizer.init(generator_variables["params"]),
            "discriminator": discriminator_optimizer.init(discriminator_variables["params"]),
        },
        discriminator_loss=jnp.zeros(()),
        hash_variables=hash_variables,
    )


def make_gan_update(
    generator: Generator,
    discriminator: Discriminator,
    encode_fn: networks.EncodeFn,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    *,
    steps_per_epoch: int,
    reconstruction_weight: float,
    hash_weight: float = 5.0,
    adversarial_weight: float = 1.0,
    reconstruction: str = "mse",
    hash_loss: str = "linear",
    discriminator_every: int = 3,
    reduction: losses.Reduction = "mean",
) -> Callable[..., tuple[GanState, Metrics]]:
    """Builds the update of ProS-GAN's second stage.

    Images are generated; in the first and then every third step of an epoch the discriminator
    learns to tell them from the real ones; then the generator learns from the discriminator as
    it now is, from the hash network, and from the distance to the real images.

    A batch is a dict of the device's rows:

        image         [rows, height, width, 3] float32 in [0, 1]
        label         [rows, num_classes] multi-hot float
        target_label  [rows, num_classes] multi-hot float, what to aim at
        semantics     [rows, semantics] float, the target labels' semantic vectors
        target_code   [rows, num_bits] the target labels' codes, in {-1, +1}
        mask          [rows] float, 1 for real rows and 0 for padding

    Losses are shares of means over the real rows of all devices, as in `defenses`.

    Args:
        generator: the generator.
        discriminator: the discriminator.
        encode_fn: of the hash network, in evaluation mode.
        generator_optimizer: an optax transformation; in the paper Adam with betas 0.5 and
            0.999.
        discriminator_optimizer: another.
        steps_per_epoch: number of updates in an epoch.
        reconstruction_weight: alpha of the paper: 100 for FLICKR-25K, else 50.
        hash_weight: 5 as released, 1 in the paper, 0 for the ablation GAN.
        adversarial_weight: beta of the paper.
        reconstruction: "mse" of signed images as released, or "l2sum" as in the paper.
        hash_loss: "linear", or "focused" as in the journal version.
        discriminator_every: steps between updates of the discriminator: 3 as released, 1 in
            the paper.
        reduction: of rows and of scores: their "mean" as released, or their "sum" as in the paper.

    Returns:
        `update(state, batch, *, axis_name) -> (state, metrics)`; its metrics are the
        generator's "loss" with its terms "adversarial_loss", "hash_loss" and
        "reconstruction_loss", and "discriminator_loss" of the last step that had one.

    Raises:
        ValueError: if a loss is unknown or a number out of its range.

    Reference:
        ProS-GAN, Eq. 5 and Algorithm 1. Differs from the released code in the
        spectral norm, see `SpectralConv`.
    """
    options.check_numbers(steps_per_epoch=steps_per_epoch, discriminator_every=discriminator_every)
    generator_loss = make_generator_loss(
        reconstruction_weight=reconstruction_weight,
        hash_weight=hash_weight,
        adversarial_weight=adversarial_weight,
        reconstruction=reconstruction,
        hash_loss=hash_loss,
        reduction=reduction,
    )

    def update(state: GanState, batch: Batch, *, axis_name: str) -> tuple[GanState, Metrics]:
        share = share_of(batch["mask"], axis_name, reduction)
        images = 2 * batch["image"] - 1

        def generate_batch(params: chex.ArrayTree) -> Array:
            made: Any = generator.apply({"params": params}, images, batch["semantics"])
            return made

        generated, pull_back = jax.vjp(generate_batch, state.params["generator"])

        def train_discriminator(params: Any, spectral: Any, opt_state: Any, _: Array) -> Any:
            (loss, moved), gradients = jax.value_and_grad(loss_of_discriminator, has_aux=True)(
                params, spectral, discriminator, images, generated, batch, share, reduction
            )
            loss, gradients = lax.psum((loss, gradients), axis_name)
            params, opt_state = take_step(discriminator_optimizer, gradients, opt_state, params)
            return params, moved, opt_state, loss

        judge, spectral, judge_opt_state, judge_loss = lax.cond(
            state.step % steps_per_epoch % discriminator_every == 0,
            train_discriminator,
            lambda *unchanged: unchanged,
            state.params["discriminator"],
            state.spectral,
            state.opt_states["discriminator"],
            state.discriminator_loss,
        )

        def loss_fn(generated: Array) -> tuple[Array, Any]:
            scores, moved = discriminate(discriminator, judge, spectral, generated)
            soft_codes = encode_fn(state.hash_variables, (generated + 1) / 2, 1.0)
            loss, metrics = generator_loss(scores, soft_codes, generated, images, batch, share)
            return loss, (metrics, moved)

        gradient, (metrics, spectral) = jax.grad(loss_fn, has_aux=True)(generated)
        metrics, (gradients,) = lax.psum((metrics, pull_back(gradient)), axis_name)
        before = state.opt_states["generator"], state.params["generator"]
        params, opt_state = take_step(generator_optimizer, gradients, *before)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params={"generator": params, "discriminator": judge},
            spectral=spectral,
            opt_states={"generator": opt_state, "discriminator": judge_opt_state},
            discriminator_loss=judge_loss,
        )
        return state, metrics | {"discriminator_loss": judge_loss}

    return update


def make_generator_loss(
    *,
    reconstruction_weight: float,
    hash_weight: float,
    adversarial_weight: float,
    reconstruction: str,
    hash_loss: str,
    reduction: losses.Reduction,
) -> Callable[..., tuple[Array, Metrics]]:
    """The generator's loss and its terms, of (scores, soft codes, generated, images, batch, share).

    Args: those of `make_gan_update`.

    Raises:
        ValueError: if a loss is unknown or a weight negative.
    """
    reconstruction_loss = losses.RECONSTRUCTION_LOSSES[reconstruction]
    code_loss = losses.HASH_LOSSES[hash_loss]
    options.check_word("reduction", reduction, ("mean", "sum"))
    options.check_numbers(
        reconstruction_weight=reconstruction_weight,
        hash_weight=hash_weight,
        adversarial_weight=adversarial_weight,
    )

    def generator_loss(
        scores: Array, soft_codes: Array, generated: Array, images: Array, batch: Batch, share: Any
    ) -> tuple[Array, Metrics]:
        terms = {
            "adversarial_loss": losses.score_loss(
                scores, batch["target_label"], generated=False, reduction=reduction
            ),
            "hash_loss": code_loss(soft_codes, batch["target_code"]),
            "reconstruction_loss": reconstruction_loss(generated, images),
        }
        metrics = jax.tree.map(share, terms)
        loss = (
            adversarial_weight * metrics["adversarial_loss"]
            + hash_weight * metrics["hash_loss"]
            + reconstruction_weight * metrics["reconstruction_loss"]
        )
        return loss, {**metrics, "loss": loss}

    return generator_loss


def share_of(mask: Array, axis_name: str, reduction: losses.Reduction) -> Callable[[Array], Array]:
    """What makes of `[rows]` losses a device's share of their mean, or sum, over all real rows."""
    if reduction == "mean":
        return parallel.mean_shares(mask, axis_name)
    return lambda rows: jnp.sum(rows * mask)


def discriminate(
    discriminator: Discriminator, params: chex.ArrayTree, spectral: chex.ArrayTree, images: Array
) -> tuple[Any, Any]:
    """The scores of images, and the singular vectors after them."""
    variables = {"params": params, "spectral": spectral}
    scores, updated = discriminator.apply(variables, images, mutable=["spectral"])
    return scores, updated["spectral"]


def loss_of_discriminator(
    params: chex.ArrayTree,
    spectral: chex.ArrayTree,
    discriminator: Discriminator,
    images: Array,
    generated: Array,
    batch: Batch,
    share: Callable[[Array], Array],
    reduction: losses.Reduction,
) -> tuple[Array, chex.ArrayTree]:
    """A device's share of the discriminator's loss, and the singular vectors after it."""
    real_scores, moved = discriminate(discriminator, params, spectral, images)
    generated_scores, moved = discriminate(discriminator, params, moved, generated)
    rows = losses.discriminator_loss(
        real_scores, generated_scores, batch["label"], batch["target_label"], reduction=reduction
    )
    return share(rows), moved


def take_step(
    optimizer: optax.GradientTransformation,
    gradients: chex.ArrayTree,
    opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """The parameters and the optimizer's state after one step."""
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
