"""What the sections of a config describe: networks, schedules, optimizers, data."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from saat_jax import datasets, generative, networks, objectives, optimizers

# Plain nested dicts, as `configs/` make them.
Config = dict[str, Any]


def load_data(config: Config) -> datasets.Dataset:
    """Reads and checks the data of a config."""
    return datasets.load_dataset(**config["data"], seed=config["seed"])


def make_network(model: Config) -> nn.Module:
    """The network of a "model" section."""
    options = {k: v for k, v in model.items() if k not in ("name", "num_bits", "weights")}
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
    schedule = optimizers.make_schedule(
        **stage["schedule"], num_epochs=num_epochs, steps_per_epoch=steps_per_epoch
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


def check_gan(stage: Config, data: datasets.Dataset) -> None:
    """Makes what ProS-GAN's training is made of, but for its numbers, or raises a ValueError."""
    nets, (_, optimizer) = make_gan(stage, data.num_classes), make_optimizer(stage, 1, 1)
    pair = optimizer, optimizer
    generative.make_gan_update(*nets, _no_codes, *pair, steps_per_epoch=1, **stage["options"])
    first: Any = functools.partial(generative.init_state, image_size=data.image_size)
    jax.eval_shape(lambda rng: first(*nets, *pair, {}, rng), jax.random.key(0))
