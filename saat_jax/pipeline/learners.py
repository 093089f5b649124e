"""The networks that attacks learn for a model: PrototypeNets, ProS-GAN's generator."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from saat_jax import (
    checkpoints,
    datasets,
    evaluation,
    files,
    generative,
    hamming,
    networks,
    objectives,
    prototypes,
)
from saat_jax.pipeline.run import Config, Model, Run, decisive, make_gan, make_optimizer
from saat_jax.pipeline.stages import train_batches, train_stage


def learn_attacks(
    run: Run, name: str, model: Model, suite: Mapping[str, evaluation.AttackSettings]
) -> dict[str, evaluation.Learned]:
    """Trains what the attacks of a suite need to know of a model: PrototypeNet, generator.

    Args:
        run: gives the data and config.learned.
        name: of the model.
        model: as `run.load_model` returned it.
        suite: the attacks by name.

    Returns:
        The target codes by name, for `evaluation.evaluate`.
    """
    learners = {"tha": _learn_tha, "prosgan": _learn_prosgan}
    wanted = {attack.learned: attack.attack for attack in suite.values()}
    return {
        section: learners[attack](run, name, model, section)
        for section, attack in wanted.items()
        if attack in learners
    }


def _learn_prototypes(
    run: Run, name: str, model: Model, stage_name: str, net_name: str
) -> tuple[prototypes.ThaPrototypeNet, Any, Config]:
    """A PrototypeNet trained on a model's codes: (network, parameters, identity)."""
    stage, data = run.config["learned"][stage_name], run.data
    encode_fn, variables, found = model
    folder = run.workdir / "learned" / name / stage_name
    net = prototypes.create_prototype_net(
        net_name,
        num_bits=run.config["model"]["num_bits"],
        num_classes=data.num_classes,
        hidden_width=stage["hidden_width"],
    )
    num_steps = stage["num_epochs"] * stage["steps_per_epoch"]
    identity = {
        **run.identity,
        "attacked": found.record["identity"],
        "step": found.step,
        "learned": decisive(stage),
    }

    def make_state(optimizer: Any) -> prototypes.PrototypeState:
        codes = run.encode(encode_fn, variables, data.train)
        bank = objectives.CodeBank(jax.numpy.asarray(codes), jax.numpy.asarray(data.train.labels))
        rng = jax.random.key(run.config["seed"])
        return prototypes.init_prototype_state(net, optimizer, bank, rng)

    train_stage(
        run,
        folder,
        stage,
        steps_per_epoch=stage["steps_per_epoch"],
        make_update=lambda optimizer: prototypes.make_prototype_update(
            net, optimizer, **stage["options"]
        ),
        make_state=make_state,
        batches_from=lambda step: prototypes.target_label_batches(
            data.database.labels,
            batch_size=stage["batch_size"],
            seed=run.config["seed"],
            start_step=step,
            num_steps=num_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        record={"identity": identity},
    )
    return net, _trained(folder).state["params"], identity


def _trained(folder: pathlib.Path) -> checkpoints.Checkpoint:
    with checkpoints.CheckpointFolder(folder / "checkpoints", read_only=True) as saved:
        found = saved.restore()
    assert found is not None, f"{folder} was trained just now"
    return found


def _learn_tha(run: Run, name: str, model: Model, section: str) -> evaluation.Learned:
    net, params, identity = _learn_prototypes(run, name, model, section, "tha")

    def target_codes(labels: np.ndarray) -> evaluation.TargetCodes:
        codes = np.asarray(prototypes.prototype_codes(net, params, labels))
        return evaluation.TargetCodes(codes, codes)

    return evaluation.Learned(target_codes, identity)


def _scaled(encode_fn: networks.EncodeFn, scale: Any) -> networks.EncodeFn:
    """As the released ProS-GAN code sees a HashNet: with tanh's last scale of training."""
    return lambda variables, images, alpha: encode_fn(variables, images, alpha * scale)


def _save_grid(path: pathlib.Path, images: np.ndarray, generated: np.ndarray) -> None:
    """Three rows of images: as they are, as generated, and the change, eight times as strong."""
    from PIL import Image

    change = np.clip(0.5 + 8 * (generated - images), 0, 1)
    rows = [np.concatenate(list(row), axis=1) for row in (images, generated, change)]
    levels = np.round(255 * np.concatenate(rows)).astype(np.uint8)
    with files.replacing(path) as temporary:
        Image.fromarray(levels).save(temporary, format="png")


def make_discriminator_optimizer(
    stage: Config, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimizer of the steps, not all of an epoch, in which the discriminator learns."""
    num_epochs, every = stage["num_epochs"], stage["options"]["discriminator_every"]
    steps = range(num_epochs * steps_per_epoch)
    _, optimizer = make_optimizer(
        stage,
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        updates=[step for step in steps if step % steps_per_epoch % every == 0],
    )
    return optimizer


def _learn_prosgan(run: Run, name: str, model: Model, section: str) -> evaluation.Learned:
    """PrototypeNet first, then generator and discriminator."""
    stage, data = run.config["learned"][section], run.data
    net, prototype_params, made_from = _learn_prototypes(
        run, name, model, "prosgan_prototypes", "prosgan"
    )
    encode_fn, variables, found = model
    if stage["training_scale"]:
        encode_fn = _scaled(encode_fn, found.state["objective"]["scale"])
    folder = run.workdir / "learned" / name / section
    generator, discriminator = make_gan(stage, data.num_classes)
    steps_per_epoch = datasets.steps_per_epoch(data.train, stage["batch_size"])
    discriminator_optimizer = make_discriminator_optimizer(stage, steps_per_epoch)
    identity = {**run.identity, "prototypes": made_from, "learned": decisive(stage)}

    def semantics_and_codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known: Any = prototypes.encode_labels(net, prototype_params, labels)
        return np.asarray(known.semantics), np.asarray(hamming.binarize(known.soft_codes))

    # The targets that a batch may have, and what PrototypeNet makes of them.
    targets = np.unique(data.database.labels, axis=0).astype(np.float32)
    semantics, codes = semantics_and_codes(targets)
    table = {"target_label": targets, "semantics": semantics, "target_code": codes}
    seed = run.config["seed"]

    def batches_from(start_step: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(train_batches(run, stage, start_step), start_step):
            # Drawn for the images of the step, whichever process has them.
            rng = np.random.default_rng((seed, step))
            drawn = rng.integers(len(targets), size=stage["batch_size"])
            share = len(batch["index"])
            rows = drawn[jax.process_index() * share :][:share]
            yield batch | {name: values[rows] for name, values in table.items()}

    def generate(params: Any, images: Any, semantics: Any) -> Any:
        return generative.generate(
            encode_fn,
            variables,
            images,
            semantics,
            jax.random.key(0),
            targeted=True,
            epsilon=None,
            generator=generator,
            generator_params=params,
        )

    encode, generate = jax.jit(encode_fn), jax.jit(generate)

    def sample(state: generative.GanState) -> dict[str, float]:
        rows = np.arange(min(8, len(data.query)))
        images = datasets.load_images(
            data.query, rows, image_size=data.image_size, resize=data.resize
        )
        chosen = np.random.default_rng(seed).integers(len(targets), size=len(rows))
        generated = np.asarray(generate(state.params["generator"], images, semantics[chosen]))
        if jax.process_index() == 0:
            _save_grid(folder / "samples" / f"step_{int(state.step):07d}.png", images, generated)
        soft_codes = np.asarray(encode(variables, generated, 1.0))
        return {
            "sample_agreement": float(np.mean(np.sign(soft_codes) * codes[chosen])),
            "sample_rms": float(np.sqrt(np.mean(np.square(generated - images)))),
        }

    train_stage(
        run,
        folder,
        stage,
        steps_per_epoch=steps_per_epoch,
        make_update=lambda optimizer: generative.make_gan_update(
            generator,
            discriminator,
            encode_fn,
            optimizer,
            discriminator_optimizer,
            steps_per_epoch=steps_per_epoch,
            **stage["options"],
        ),
        make_state=lambda optimizer: generative.init_state(
            generator,
            discriminator,
            optimizer,
            discriminator_optimizer,
            variables,
            jax.random.key(seed),
            image_size=data.image_size,
        ),
        batches_from=batches_from,
        record={"identity": identity},
        evaluate=sample,
    )
    params = jax.device_put(_trained(folder).state["params"]["generator"])

    def target_codes(labels: np.ndarray) -> evaluation.TargetCodes:
        return evaluation.TargetCodes(
            *semantics_and_codes(labels), {"generator_params": params}, {"generator": generator}
        )

    return evaluation.Learned(target_codes, identity)
