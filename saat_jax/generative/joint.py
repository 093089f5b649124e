"""ProS-GAN as printed: PrototypeNet, generator and discriminator, each moved in every step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

from saat_jax import hamming, networks, objectives, prototypes
from saat_jax.generative import losses
from saat_jax.generative.models import Discriminator, Generator
from saat_jax.generative.update import (
    GanState,
    discriminate,
    loss_of_discriminator,
    make_generator_loss,
    share_of,
    take_step,
)

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class JointState(GanState):
    """That of a GAN, whose "prototypes" in `params` and `opt_states` are PrototypeNet's.

    Attributes:
        bank: codes in {-1, +1} and labels of the training images; never changes.
    """

    bank: objectives.CodeBank


def join_states(gan: GanState, net: prototypes.PrototypeState) -> JointState:
    """The state before the first joint update, from those of both networks' own training."""
    params = {**gan.params, "prototypes": net.params}
    opt_states = {**gan.opt_states, "prototypes": net.opt_state}
    return JointState(**{**vars(gan), "params": params, "opt_states": opt_states}, bank=net.bank)


def make_joint_update(
    generator: Generator,
    discriminator: Discriminator,
    net: prototypes.ProsganPrototypeNet,
    encode_fn: networks.EncodeFn,
    optimizers: dict[str, optax.GradientTransformation],
    *,
    reconstruction_weight: float,
    hash_weight: float = 1.0,
    adversarial_weight: float = 1.0,
    reconstruction: str = "l2sum",
    hash_loss: str = "linear",
    reduction: losses.Reduction = "sum",
    prototype_options: dict[str, Any],
) -> Callable[..., tuple[JointState, Metrics]]:
    """Builds the update of ProS-GAN's Algorithm 1, which moves three networks in turn.

    PrototypeNet goes down L_pro + L_gen - L_dis: by its own loss, and by what its semantic vectors
    make of the generated images. Then the generator goes down L_gen, and then the discriminator
    L_dis, each with the networks that have moved before it. The code of a target label is a sign,
    and constant for all of them.

    A batch is that of `make_gan_update` without "semantics" and "target_code".

    Args:
        generator: the generator.
        discriminator: the discriminator.
        net: ProS-GAN's PrototypeNet.
        encode_fn: of the hash network, in evaluation mode.
        optimizers: of "prototypes", "generator" and "discriminator".
        reconstruction_weight: as of `make_gan_update`, and so are the others; their defaults are
            the paper's.
        hash_weight: see above.
        adversarial_weight: see above.
        reconstruction: see above.
        hash_loss: see above.
        reduction: see above.
        prototype_options: keyword arguments of `prototypes.prototype_loss`.

    Returns:
        `update(state, batch, *, axis_name) -> (state, metrics)`; its metrics are those of
        `make_gan_update` and "prototype_loss", each of before its network's step.

    Raises:
        ValueError: if a loss is unknown or a weight negative.

    Reference:
        ProS-GAN, Algorithm 1.
    """
    generator_loss = make_generator_loss(
        reconstruction_weight=reconstruction_weight,
        hash_weight=hash_weight,
        adversarial_weight=adversarial_weight,
        reconstruction=reconstruction,
        hash_loss=hash_loss,
        reduction=reduction,
    )

    def update(state: JointState, batch: Batch, *, axis_name: str) -> tuple[JointState, Metrics]:
        share = share_of(batch["mask"], axis_name, reduction)
        images, target_labels = 2 * batch["image"] - 1, batch["target_label"]

        def look_up(params: chex.ArrayTree) -> tuple[Array, Batch]:
            """The semantics, and the batch with the codes to aim at."""
            output: Any = net.apply({"params": params}, target_labels)
            codes = lax.stop_gradient(hamming.binarize(output.soft_codes))
            return output.semantics, {**batch, "target_code": codes}

        def generate(params: chex.ArrayTree, semantics: Array) -> Array:
            made: Any = generator.apply({"params": params}, images, semantics)
            return made

        def loss_of_generator(
            generated: Array, aimed: Batch, spectral: Any
        ) -> tuple[Array, tuple[Metrics, Array, Any]]:
            judge = state.params["discriminator"]
            scores, moved = discriminate(discriminator, judge, spectral, generated)
            soft_codes = encode_fn(state.hash_variables, (generated + 1) / 2, 1.0)
            loss, metrics = generator_loss(scores, soft_codes, generated, images, aimed, share)
            return loss, (metrics, scores, moved)

        def loss_of_prototypes(params: chex.ArrayTree) -> tuple[Array, Any]:
            semantics, aimed = look_up(params)
            generated = generate(state.params["generator"], semantics)
            loss, (_, scores, moved) = loss_of_generator(generated, aimed, state.spectral)
            # Of L_dis the half that sees the labels; real images do not.
            fooled = losses.score_loss(scores, target_labels, generated=True, reduction=reduction)
            return loss - 0.5 * share(fooled), moved

        def own_loss_of_prototypes(params: chex.ArrayTree) -> tuple[Array, Array]:
            # The circle loss ties all rows together.
            labels, mask = lax.all_gather((target_labels, batch["mask"]), axis_name, tiled=True)
            output: Any = net.apply({"params": params}, labels)
            terms = prototypes.prototype_loss(output, labels, state.bank, mask, **prototype_options)
            return terms["loss"], terms["loss"]

        params, opt_states = dict(state.params), dict(state.opt_states)

        def move(name: str, gradients: chex.ArrayTree) -> None:
            before = opt_states[name], params[name]
            params[name], opt_states[name] = take_step(optimizers[name], gradients, *before)

        gradients, spectral = jax.grad(loss_of_prototypes, has_aux=True)(params["prototypes"])
        own, prototype_loss = jax.grad(own_loss_of_prototypes, has_aux=True)(params["prototypes"])
        move("prototypes", jax.tree.map(jnp.add, own, lax.psum(gradients, axis_name)))

        semantics, aimed = look_up(params["prototypes"])

        def loss_of_images(params: chex.ArrayTree, spectral: Any) -> tuple[Array, Any]:
            loss, (metrics, _, moved) = loss_of_generator(
                generate(params, semantics), aimed, spectral
            )
            return loss, (metrics, moved)

        gradients, (metrics, spectral) = jax.grad(loss_of_images, has_aux=True)(
            params["generator"], spectral
        )
        metrics, gradients = lax.psum((metrics, gradients), axis_name)
        move("generator", gradients)
        generated = generate(params["generator"], semantics)

        (loss, spectral), gradients = jax.value_and_grad(loss_of_discriminator, has_aux=True)(
            params["discriminator"],
            *(spectral, discriminator, images, generated, batch, share, reduction),
        )
        loss, gradients = lax.psum((loss, gradients), axis_name)
        move("discriminator", gradients)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            spectral=spectral,
            opt_states=opt_states,
            discriminator_loss=loss,
        )
        found = {"discriminator_loss": loss, "prototype_loss": prototype_loss}
        return state, metrics | found

    return update
