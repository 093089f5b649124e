"""The stages of a run that train something; each is skipped if done, and goes on if stopped."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from launch.run import (
    Config,
    Model,
    Run,
    decisive,
    look_up,
    make_gan,
    make_optimizer,
)
from saat_jax import (
    checkpoints,
    datasets,
    defenses,
    evaluation,
    files,
    generative,
    hamming,
    networks,
    objectives,
    prototypes,
    training,
)


def _latest_record(folder: pathlib.Path) -> Config | None:
    """The record of the newest checkpoint of what was trained in a folder; None for none."""
    with checkpoints.CheckpointFolder(folder / "checkpoints", read_only=True) as saved:
        return saved.record()


def _train(
    run: Run,
    folder: pathlib.Path,
    stage: Config,
    *,
    steps_per_epoch: int,
    make_update: Callable[[optax.GradientTransformation], Any],
    make_state: Callable[[optax.GradientTransformation], training.State],
    batches_from: Callable[[int], Any],
    record: Config,
    evaluate: Callable[[training.State], dict[str, float]] | None = None,
) -> None:
    """Trains to the end of a stage in a folder, unless that is done."""
    title = str(folder.relative_to(run.workdir))
    num_steps = steps_per_epoch * stage["num_epochs"]
    if (latest := _latest_record(folder)) is not None:
        training.check_identity(latest["identity"], record["identity"], folder)
        if latest["step"] == num_steps:
            print(f"{title}: trained already, {num_steps} steps")
            return
    run.accept()
    schedule, optimizer = make_optimizer(
        stage, num_epochs=stage["num_epochs"], steps_per_epoch=steps_per_epoch
    )
    training.train(
        make_update(optimizer),
        make_state(optimizer),
        batches_from,
        folder=folder,
        steps_per_epoch=steps_per_epoch,
        num_epochs=stage["num_epochs"],
        schedule=schedule,
        record=record,
        evaluate=evaluate,
        evaluate_every=stage.get("evaluate_every", 1),
        log_every=stage["log_every"],
        checkpoint_every=stage["checkpoint_every"],
        title=title,
        donate=run.config["donate"],
    )


def _train_batches(
    run: Run, stage: Config, start_step: int, *, whole: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a stage: this process' rows, or whole ones."""
    return datasets.train_batches(
        run.data.train,
        batch_size=stage["batch_size"],
        seed=run.config["seed"],
        num_epochs=stage["num_epochs"],
        start_step=start_step,
        image_size=run.data.image_size,
        resize=run.data.resize,
        augment=stage.get("augment", False),
        process_index=0 if whole else jax.process_index(),
        process_count=1 if whole else jax.process_count(),
    )


def _train_hashing_network(
    run: Run,
    name: str,
    stage: Config,
    model: nn.Module,
    make_update: Callable[..., defenses.UpdateFn],
    make_state: Callable[[Any], defenses.TrainState],
    made_from: Config,
) -> None:
    """Trains one model of the run on the images of the training set."""
    data = run.data
    encode_fn = networks.make_encode_fn(model)

    def evaluate(state: defenses.TrainState) -> dict[str, float]:
        variables = training.variables_of(state)
        query, database = (run.encode(encode_fn, variables, s) for s in (data.query, data.database))
        labels = (data.query.labels, data.database.labels)
        return {"map": run.protocol.map_at_k(query, database, *labels)}

    _train(
        run,
        run.folder(name),
        stage,
        steps_per_epoch=datasets.steps_per_epoch(data.train, stage["batch_size"]),
        make_update=functools.partial(make_update, model, run.objective),
        make_state=make_state,
        batches_from=functools.partial(_train_batches, run, stage),
        record={
            "model": run.config["model"],
            "classes": list(data.class_names),
            "identity": run.identity | made_from,
        },
        evaluate=evaluate,
    )


def weights_digest(weights: str, folder: pathlib.Path) -> str:
    """Digests the file that training starts from; a model trained to its end does without it.

    Args:
        weights: path of the file; empty for none.
        folder: of the model.

    Returns:
        SHA-256 as 64 hexadecimal digits; empty for none.

    Raises:
        ValueError: if there is no such file, and training is not done.
    """
    if not weights:
        return ""
    path = pathlib.Path(weights)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    latest = _latest_record(folder)
    if latest is None or latest["step"] < latest["num_steps"]:
        raise ValueError(f"expected a file of weights, got {weights}, which does not exist")
    return latest["identity"]["weights"]


def train_hash(run: Run) -> None:
    """Trains the hashing network: model "pretrained"."""
    config, data = run.config, run.data
    model, weights = run.network(config["model"]), config["model"]["weights"]
    made_from = {
        "pretrain": decisive(config["pretrain"]),
        # Its path says nothing of what is in it.
        "weights": weights_digest(weights, run.folder("pretrained")),
    }

    def make_state(optimizer: Any) -> defenses.TrainState:
        variables = networks.init_variables(
            model, jax.random.key(config["seed"]), image_size=data.image_size
        )
        if weights:
            variables, report = networks.load_torch_weights(variables, weights)
            print(f"weights: loaded {len(report.loaded)} tensors, {report}")
        state = run.first_objective_state(data.train.labels)
        return defenses.init_state(variables, optimizer, state)

    update = functools.partial(defenses.make_hashing_update, seed=config["seed"])
    _train_hashing_network(
        run, "pretrained", config["pretrain"], model, update, make_state, made_from
    )


def _training_codes(run: Run, stage: Config, model: nn.Module, variables: Any) -> np.ndarray:
    """Codes of the training images as training sees them: augmented, with dropout and batch
    statistics.
    """

    @jax.jit
    def soft_codes(variables: Any, batch: defenses.Batch) -> jax.Array:
        # A step that training does not reach.
        passing = defenses.training_pass(
            run.config["seed"], jax.numpy.int32(2**31 - 1), batch, None
        )
        params, batch_stats = variables["params"], variables["batch_stats"]
        return networks.forward(model, params, batch_stats, batch["image"], passing, 1.0)[0]

    codes = np.empty((len(run.data.train), run.config["model"]["num_bits"]), np.float32)
    # Every process needs all of them.
    for batch in _train_batches(run, stage | {"num_epochs": 1}, 0, whole=True):
        real = batch["mask"] > 0
        found = np.asarray(hamming.binarize(soft_codes(variables, batch)))
        codes[batch["index"][real]] = found[real]
    return codes


def harden(run: Run, name: str) -> None:
    """Hardens the pretrained model by a defence of the config: the model of that name."""
    config, data = run.config, run.data
    encode_fn, variables, pretrained = run.load_model("pretrained")
    stage = config["defenses"][name]
    model = run.network(config["model"])

    def make_state(optimizer: Any) -> defenses.TrainState:
        codes = (
            _training_codes(run, stage, model, variables)
            if stage["first_bank"] == "train"
            else run.encode(encode_fn, variables, data.train)
        )
        bank = objectives.CodeBank(jax.numpy.asarray(codes), jax.numpy.asarray(data.train.labels))
        # Class codes, counts and parameters go on from the end of pretraining.
        remembered = {k: v for k, v in pretrained.state["objective"].items() if v is not None}
        if "bank" in remembered:
            remembered["bank"] = objectives.CodeBank(**remembered["bank"])
        state = objectives.State(**jax.tree.map(jax.numpy.asarray, remembered))
        return defenses.FIRST_STATES[stage["name"]](
            variables,
            optimizer,
            state,
            bank,
            data.database.labels,
            jax.random.key(config["seed"]),
            **stage.get("state", {}),
        )

    update = functools.partial(
        look_up(defenses.DEFENSES, stage["name"], "defence"),
        seed=config["seed"],
        **stage["options"],
    )
    # The step tells the best checkpoint from the latest.
    start = {**pretrained.record["identity"], "step": pretrained.step}
    made_from = {"pretrained": start, "defense": decisive(stage)}
    _train_hashing_network(run, name, stage, model, update, make_state, made_from)


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
        The guides by name, for `evaluation.evaluate`.
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

    _train(
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

    def guides(labels: np.ndarray) -> evaluation.Guides:
        codes = np.asarray(prototypes.prototype_codes(net, params, labels))
        return evaluation.Guides(codes, codes)

    return evaluation.Learned(guides, identity)


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
        for step, batch in enumerate(_train_batches(run, stage, start_step), start_step):
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

    _train(
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

    def guides(labels: np.ndarray) -> evaluation.Guides:
        return evaluation.Guides(
            *semantics_and_codes(labels), {"generator_params": params}, {"generator": generator}
        )

    return evaluation.Learned(guides, identity)
