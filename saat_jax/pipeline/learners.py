"""The networks that attacks learn for a model: PrototypeNets, ProS-GAN's generator."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from saat_jax import (
    checkpoints,
    datasets,
    evaluation,
    generative,
    hamming,
    networks,
    objectives,
    prototypes,
    training,
)
from saat_jax.pipeline import parts
from saat_jax.pipeline.parts import Config, decisive
from saat_jax.pipeline.runs import Run, TrainedModel
from saat_jax.pipeline.stages import train_batches, train_stage

# Training images that a universal perturbation is learned on, which are in memory together.
_NUM_UNIVERSAL = 512


def learn_attacks(
    run: Run, name: str, model: TrainedModel, suite: Mapping[str, evaluation.AnyAttack]
) -> dict[str, evaluation.Learned]:
    """Trains what the attacks of a suite need to know of a model: PrototypeNet, generator.

    Args:
        run: gives the data and config.learned.
        name: of the model.
        model: as `Run.load_model` returned it.
        suite: the attacks by name.

    Returns:
        The target codes by name, for `evaluation.evaluate`.
    """
    learners = {
        "tha": _learn_tha,
        "prosgan": _learn_prosgan,
        "surrogate": _surrogate,
        "universal": _learn_universal,
    }
    wanted = {attack.learned: attack.attack for attack in evaluation.all_members(suite)}
    return {
        section: learners[attack](run, name, model, section)
        for section, attack in wanted.items()
        if attack in learners
    }


def _learn_universal(run: Run, name: str, model: TrainedModel, section: str) -> evaluation.Learned:
    """One perturbation for all queries, learned on some training images; no section has it."""
    del name
    found = {str(a.asdict()): a for a in evaluation.all_members(run.suite) if a.learned == section}
    several = {(a.epsilon, *sorted(a.options.items())) for a in found.values()}
    if len(several) > 1:
        raise ValueError(
            f"attacks with different settings share the universal perturbation {section!r}; give "
            "each a name of its own by the option `learned`"
        )
    settings = next(iter(found.values()))
    if (settings.epsilon is None) != bool(settings.options.get("patch")):
        raise ValueError(
            f"the attack {section!r} needs an epsilon, or a patch and no epsilon, got epsilon "
            f"{settings.epsilon} and patch {settings.options.get('patch', 0.0)}"
        )
    train = run.data.train
    rows = np.linspace(0, len(train) - 1, min(len(train), _NUM_UNIVERSAL)).astype(int)
    codes = run.encode(model.encode_fn, model.variables, train)
    return evaluation.learned_universal(
        evaluation.Encoder(model.encode_fn, model.variables),
        run.load_images(train, rows),
        train.labels[rows],
        codes[rows],
        settings,
        seed=run.config["seed"],
        batch_size=run.config["evaluation"]["batch_size"],
        identity={**run.identity, **_attacked(model)},
    )


class _PrototypeNet(NamedTuple):
    """A PrototypeNet trained on a model's codes, and what made it."""

    net: prototypes.ThaPrototypeNet
    params: Any
    identity: Config

    def semantics_and_codes(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ProS-GAN's generator reads, and the codes in {-1, +1} that it aims at."""
        known: Any = prototypes.encode_labels(self.net, self.params, labels)
        return np.asarray(known.semantics), np.asarray(hamming.binarize(known.soft_codes))


def _learn_prototypes(
    run: Run, name: str, model: TrainedModel, section: str, net_name: str
) -> _PrototypeNet:
    stage, data = run.config["learned"][section], run.data
    folder = run.workdir / "learned" / name / section
    net = prototypes.create_prototype_net(
        net_name,
        num_bits=run.config["model"]["num_bits"],
        num_classes=data.num_classes,
        hidden_width=stage["hidden_width"],
        num_hidden=stage.get("num_hidden", 1),
    )
    num_steps = stage["num_epochs"] * stage["steps_per_epoch"]
    identity = {**run.identity, **_attacked(model), "learned": decisive(stage)}

    train_stage(
        run,
        folder,
        stage,
        steps_per_epoch=stage["steps_per_epoch"],
        make_update=lambda optimizer: prototypes.make_prototype_update(
            net, optimizer, **stage["options"]
        ),
        make_state=lambda optimizer: _first_prototypes(run, model, net, optimizer),
        batches_from=lambda step: prototypes.target_label_batches(
            data.database.labels,
            batch_size=stage["batch_size"],
            seed=run.config["seed"],
            start_step=step,
            num_steps=num_steps,
            num_devices=jax.device_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        metadata={"identity": identity},
    )
    return _PrototypeNet(net, _trained(folder).state["params"], identity)


def _attacked(model: TrainedModel) -> Config:
    """What made the model that a network is trained to attack."""
    return {"attacked": model.checkpoint.metadata["identity"], "step": model.checkpoint.step}


def _first_prototypes(
    run: Run, model: TrainedModel, net: prototypes.ThaPrototypeNet, optimizer: Any
) -> prototypes.PrototypeState:
    """PrototypeNet before its first update, with the codes of the training images."""
    train = run.data.train
    codes = run.encode(model.encode_fn, model.variables, train)
    bank = objectives.CodeBank(jax.numpy.asarray(codes), jax.numpy.asarray(train.labels))
    rng = jax.random.key(run.config["seed"])
    return prototypes.init_prototype_state(net, optimizer, bank, rng)


def _trained(folder: pathlib.Path) -> checkpoints.Checkpoint:
    with training.open_checkpoints(folder) as saved:
        found = saved.restore()
    assert found is not None, f"{folder} was trained just now"
    return found


def _learn_tha(run: Run, name: str, model: TrainedModel, section: str) -> evaluation.Learned:
    net, params, identity = _learn_prototypes(run, name, model, section, "tha")

    def target_codes(labels: np.ndarray, targeted: bool) -> evaluation.TargetCodes:
        codes = np.asarray(prototypes.prototype_codes(net, params, labels))
        return evaluation.TargetCodes(codes, codes)

    return evaluation.Learned(target_codes, identity)


# Of the target labels that a generator's training may draw, "target_label" and what else a batch
# needs of them.
_Targets = Mapping[str, np.ndarray]


def _aimed_batches(
    run: Run, stage: Config, targets: _Targets, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a stage, each image with a target."""
    for step, batch in enumerate(train_batches(run, stage, start_step), start_step):
        # Drawn for the images of the step, whichever process has them.
        rng = np.random.default_rng((run.config["seed"], step))
        drawn: Any = rng.integers(len(targets["target_label"]), size=stage["batch_size"])
        share = len(batch["index"])
        # Whatever it is for the rows that fill the batch up.
        rows = np.resize(drawn, share * jax.process_count())[jax.process_index() * share :][:share]
        yield batch | {name: values[rows] for name, values in targets.items()}


def _scaled(encode_fn: networks.EncodeFn, scale: Any) -> networks.EncodeFn:
    """As the released ProS-GAN code sees a HashNet: with tanh's last scale of training."""
    return lambda variables, images, alpha: encode_fn(variables, images, alpha * scale)


def _make_sampler(
    run: Run,
    encode_fn: networks.EncodeFn,
    variables: Any,
    generator: generative.Generator,
    targets: np.ndarray,
    known: Callable[[Any], _PrototypeNet],
    folder: pathlib.Path,
) -> Callable[[generative.GanState], dict[str, float]]:
    """What measures a generator on a few queries, and leaves a picture of them in a folder."""

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
        rows = np.arange(min(8, len(run.data.query)))
        images = run.load_images(run.data.query, rows)
        rng = np.random.default_rng(run.config["seed"])
        chosen = targets[rng.integers(len(targets), size=len(rows))]
        semantics, codes = known(state.params).semantics_and_codes(chosen)
        generated = generate(state.params["generator"], images, semantics)
        generated = np.asarray(generated)
        if jax.process_index() == 0:
            change = np.clip(0.5 + 8 * (generated - images), 0, 1)
            save_grid(folder / f"step_{int(state.step):07d}.png", [images, generated, change])
        soft_codes = np.asarray(encode(variables, generated, 1.0))
        return {
            "sample_agreement": float(np.mean(np.sign(soft_codes) * codes)),
            "sample_rms": float(np.sqrt(np.mean(np.square(generated - images)))),
        }

    return sample


def save_grid(path: pathlib.Path, rows: list[np.ndarray]) -> None:
    """Writes rows of images as a PNG, each `[columns, height, width, 3]` in [0, 1]."""
    lines = [np.concatenate(list(row), axis=1) for row in rows]
    datasets.write_png(path, np.round(255 * np.concatenate(lines)).astype(np.uint8))


def _learn_prosgan(run: Run, name: str, model: TrainedModel, section: str) -> evaluation.Learned:
    """PrototypeNet first, then generator and discriminator; or, as printed, all three together."""
    stage, data = run.config["learned"][section], run.data
    encode_fn, variables, found = model
    if stage["training_scale"]:
        encode_fn = _scaled(encode_fn, found.state["objective"]["scale"])
    folder = run.workdir / "learned" / name / section
    nets = parts.make_gan(stage, data.num_classes)
    joint_net = parts.make_joint_net(stage, run.config["model"]["num_bits"], data.num_classes)
    steps_per_epoch = datasets.steps_per_epoch(data.train, stage["batch_size"])
    discriminator_optimizer = parts.make_discriminator_optimizer(stage, steps_per_epoch)
    labels = np.unique(data.database.labels, axis=0).astype(np.float32)
    targets = {"target_label": labels}
    identity = {**run.identity, "learned": decisive(stage)}
    if joint_net:
        identity |= _attacked(model)
    else:
        learned = _learn_prototypes(run, name, model, "prosgan_prototypes", "prosgan")
        identity["prototypes"] = learned.identity
        semantics, codes = learned.semantics_and_codes(labels)
        targets |= {"semantics": semantics, "target_code": codes}

    def known(params: Any) -> _PrototypeNet:
        return _PrototypeNet(joint_net, params["prototypes"], {}) if joint_net else learned

    def make_state(optimizer: Any) -> generative.GanState:
        state = generative.init_state(
            *nets,
            optimizer,
            discriminator_optimizer,
            variables,
            jax.random.key(run.config["seed"]),
            image_size=data.image_size,
        )
        if joint_net is None:
            return state
        return generative.join_states(state, _first_prototypes(run, model, joint_net, optimizer))

    train_stage(
        run,
        folder,
        stage,
        steps_per_epoch=steps_per_epoch,
        make_update=lambda optimizer: parts.make_gan_update(
            stage, nets, joint_net, encode_fn, (optimizer, discriminator_optimizer), steps_per_epoch
        ),
        make_state=make_state,
        batches_from=lambda step: _aimed_batches(run, stage, targets, step),
        metadata={"identity": identity},
        evaluate=_make_sampler(
            run, encode_fn, variables, nets[0], labels, known, folder / "samples"
        ),
    )
    trained = _trained(folder).state["params"]
    params = jax.device_put(trained["generator"])

    def target_codes(labels: np.ndarray, targeted: bool) -> evaluation.TargetCodes:
        return evaluation.TargetCodes(
            *known(trained).semantics_and_codes(labels),
            {"generator_params": params},
            {"generator": nets[0]},
        )

    return evaluation.Learned(target_codes, identity)


def _surrogate(run: Run, name: str, model: TrainedModel, section: str) -> evaluation.Learned:
    """The network before it was hardened; trained already."""
    pretrained = run.load_model("pretrained")
    return evaluation.surrogate(
        pretrained.encode_fn,
        pretrained.variables,
        run.data,
        run.targets_of(run.suite),
        identity=pretrained.identity,
        protocol=run.protocol,
        batch_size=run.config["evaluation"]["batch_size"],
    )
