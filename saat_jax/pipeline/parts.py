"""What the sections of a config describe: networks, schedules, optimizers, data."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from saat_jax import datasets, generative, networks, objectives, optimizers, prototypes

# Plain nested dicts, as `configs/` make them.
Config = dict[str, Any]


def load_data(config: Config) -> datasets.Dataset:
    """Reads and checks the data of a config."""
    return datasets.load_dataset(**config["data"], seed=config["seed"])


def make_network(model: Config) -> nn.Module:
    """The network of a "model" section."""
    options = {k: v for k, v in model.items() if k not in ("name", "num_bits", "weights", "head")}
    return networks.create_network(model["name"], num_bits=model["num_bits"], **options)


def make_gan(
    stage: Config, num_classes: int
) -> tuple[generative.Generator, generative.Discriminator]:
    """The generator and the discriminator of a section of config.learned."""
    return generative.Generator(stage["base_width"]), generative.Discriminator(
        num_classes,
        class_nodes=stage["class_nodes"],
        sigmoid=stage["sigmoid"],
        base_width=stage["base_width"],
    )


def make_optimizer(
    stage: Config, num_epochs: int, steps_per_epoch: int, *, updates: Sequence[int] | None = None
) -> tuple[optimizers.Schedule, optax.GradientTransformation]:
    """The learning rate by step, and the optimizer, of a training stage."""
    # Where nothing is trained, the optimizer must still be one.
    schedule = optimizers.make_schedule(
        **stage["schedule"], num_epochs=max(num_epochs, 1), steps_per_epoch=steps_per_epoch
    )
    num_steps = num_epochs * steps_per_epoch
    return schedule, optimizers.make_optimizer(
        **stage["optimizer"],
        schedule=schedule,
        num_steps=num_steps,
        accumulate=stage.get("accumulate", 1),
        updates=updates,
    )


def make_discriminator_optimizer(
    stage: Config, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimizer of the steps, not all of an epoch, in which the discriminator learns."""
    num_epochs, every = stage["num_epochs"], stage["options"]["discriminator_every"]
    steps = range(num_epochs * steps_per_epoch)
    updates = [step for step in steps if step % steps_per_epoch % every == 0]
    return make_optimizer(stage, num_epochs, steps_per_epoch, updates=updates)[1]


def pretraining(config: Config) -> Config:
    """The stage of model "pretrained": no epochs, if its hash layer is found in closed form."""
    return config["pretrain"] | ({"num_epochs": 0} if config["model"].get("head") else {})


def decisive(stage: Config) -> Config:
    """What of a stage decides its result, and so must stay the same for a run to go on."""
    return {name: value for name, value in stage.items() if not name.endswith("_every")}


def first_objective_state(
    objective: objectives.Objective, config: Config, labels: np.ndarray
) -> objectives.State:
    """The objective's state before training on images with these labels."""
    # A number that no update folds into the same seed: no step, nor its complement.
    rng = jax.random.fold_in(jax.random.key(config["seed"]), 2**31)
    return objective.init(rng, labels, config["model"]["num_bits"])


def _no_codes(variables: Any, images: jax.Array, alpha: Any) -> jax.Array:
    raise NotImplementedError("an update that is made is not run")


def make_joint_net(
    stage: Config, num_bits: int, num_classes: int
) -> prototypes.ProsganPrototypeNet | None:
    """The PrototypeNet that a section of config.learned trains together with its generator, by its
    part `prototypes`; None if it has none.
    """
    if "prototypes" not in stage:
        return None
    sizes = {name: size for name, size in stage["prototypes"].items() if name != "options"}
    net: Any = prototypes.create_prototype_net(
        "prosgan", num_bits=num_bits, num_classes=num_classes, **sizes
    )
    return net


def make_gan_update(
    stage: Config,
    nets: tuple[generative.Generator, generative.Discriminator],
    joint_net: prototypes.ProsganPrototypeNet | None,
    encode_fn: networks.EncodeFn,
    pair: tuple[optax.GradientTransformation, optax.GradientTransformation],
    steps_per_epoch: int,
) -> Callable[..., Any]:
    """The update of generator and discriminator, and of the PrototypeNet between them, if any.

    Raises:
        ValueError: if a loss is unknown or a number out of its range.
    """
    given = dict(stage["options"])
    if joint_net is None:
        return generative.make_gan_update(
            *nets, encode_fn, *pair, steps_per_epoch=steps_per_epoch, **given
        )
    if (every := given.pop("discriminator_every")) != 1:
        raise ValueError(
            "options.discriminator_every must be 1 where prototypes are trained with the "
            f"generator, got {every}"
        )
    # PrototypeNet's is the generator's too: the paper has one learning rate.
    by_name = dict(zip(("prototypes", "generator", "discriminator"), (pair[0], *pair), strict=True))
    prototype_options = stage["prototypes"]["options"]
    return generative.make_joint_update(
        *nets, joint_net, encode_fn, by_name, prototype_options=prototype_options, **given
    )


def check_gan(stage: Config, data: datasets.Dataset, num_bits: int) -> None:
    """Makes what ProS-GAN's training is made of, but for its numbers, or raises a ValueError."""
    nets, (_, optimizer) = make_gan(stage, data.num_classes), make_optimizer(stage, 1, 1)
    pair = optimizer, optimizer
    make_gan_update(
        stage, nets, make_joint_net(stage, num_bits, data.num_classes), _no_codes, pair, 1
    )
    first: Any = functools.partial(generative.init_state, image_size=data.image_size)
    jax.eval_shape(lambda rng: first(*nets, *pair, {}, rng), jax.random.key(0))
