"""The stages of a run that train something; each is skipped if done, and goes on if stopped."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from tqdm import tqdm

from saat_jax import (
    datasets,
    defenses,
    hamming,
    networks,
    objectives,
    training,
)
from saat_jax.pipeline import parts
from saat_jax.pipeline.parts import Config, decisive
from saat_jax.pipeline.runs import Run

# What one would do after a task that ends with training.
_FOLLOWING = {"train_hash": "harden", "harden": "evaluate"}


def _latest_metadata(folder: pathlib.Path) -> Config | None:
    """That of the newest checkpoint of what was trained in a folder; None for none."""
    with training.open_checkpoints(folder) as saved:
        return saved.metadata()


def train_stage(
    run: Run,
    folder: pathlib.Path,
    stage: Config,
    *,
    steps_per_epoch: int,
    make_update: Callable[[optax.GradientTransformation], Any],
    make_state: Callable[[optax.GradientTransformation], training.State],
    batches_from: Callable[[int], Any],
    metadata: Config,
    evaluate: Callable[[training.State], dict[str, float]] | None = None,
) -> None:
    """Trains to the end of a stage in a folder, unless that is done."""
    title = str(folder.relative_to(run.workdir))
    num_steps = steps_per_epoch * stage["num_epochs"]
    if (latest := _latest_metadata(folder)) is not None:
        training.check_identity(latest["identity"], metadata["identity"], folder)
        if latest["step"] == num_steps:
            print(f"{title}: trained already, {num_steps} steps")
            return
    run.accept()
    schedule, optimizer = parts.make_optimizer(stage, stage["num_epochs"], steps_per_epoch)
    training.train(
        make_update(optimizer),
        make_state(optimizer),
        batches_from,
        folder=folder,
        steps_per_epoch=steps_per_epoch,
        num_epochs=stage["num_epochs"],
        schedule=schedule,
        metadata=metadata,
        evaluate=evaluate,
        evaluate_every=stage.get("evaluate_every", 1),
        log_every=stage["log_every"],
        checkpoint_every=stage["checkpoint_every"],
        title=title,
        donate=run.config.get("donate", True),
        mapping=run.config.get("mapping", "pmap"),
        profile=run.config.get("profile", ()),
    )


def train_batches(
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
        num_devices=jax.device_count(),
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

    train_stage(
        run,
        run.folder(name),
        stage,
        steps_per_epoch=datasets.steps_per_epoch(data.train, stage["batch_size"]),
        make_update=functools.partial(make_update, model, run.objective),
        make_state=make_state,
        batches_from=functools.partial(train_batches, run, stage),
        metadata={
            "model": run.config["model"],
            "classes": list(data.class_names),
            "identity": run.identity | made_from,
        },
        evaluate=evaluate,
    )
    if jax.process_index() == 0 and (found := training.last_map(run.folder(name))) is not None:
        following = _FOLLOWING.get(run.config["task"])
        hint = f"; next, with this --workdir: --config.task={following}" if following else ""
        print(f"{name}: MAP {100 * found:.2f} % without an attack, in {run.folder(name)}{hint}")


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
    latest = _latest_metadata(folder)
    if latest is None or latest["step"] < latest["num_steps"]:
        raise ValueError(f"expected a file of weights, got {weights}, which does not exist")
    return latest["identity"]["weights"]


def train_hash(run: Run) -> None:
    """Trains the hashing network, or fits its hash layer alone: model "pretrained"."""
    config, data = run.config, run.data
    model, weights = parts.make_network(config["model"]), config["model"]["weights"]
    stage, head = parts.pretraining(config), config["model"].get("head")
    made_from = {
        "pretrain": {"head": head} if head else decisive(stage),
        # Its path says nothing of what is in it.
        "weights": weights_digest(weights, run.folder("pretrained")),
    }

    def make_state(optimizer: Any) -> defenses.TrainState:
        variables = networks.init_variables(
            model, jax.random.key(config["seed"]), image_size=data.image_size
        )
        if weights:
            variables, report = networks.load_torch_weights(variables, weights)
            print(f"weights: {report}")
        if head:
            variables = _fit_head(run, model, variables, head)
        state = parts.first_objective_state(run.objective, config, data.train.labels)
        return defenses.init_state(variables, optimizer, state)

    update = functools.partial(defenses.make_hashing_update, seed=config["seed"])
    _train_hashing_network(run, "pretrained", stage, model, update, make_state, made_from)


def _fit_head(run: Run, model: nn.Module, variables: Any, head: str) -> dict[str, Any]:
    """Variables whose hash layer is fitted to the training images, on every process to all."""
    data, batch_size = run.data, run.config["evaluation"]["batch_size"]
    batches = datasets.eval_batches(
        data.train, batch_size=batch_size, image_size=data.image_size, resize=data.resize
    )
    total = -(-len(data.train) // batch_size)
    images = (batch["image"][batch["mask"] > 0] for batch in tqdm(batches, "features", total))
    return networks.fit_head(model, variables, images, head=head, seed=run.config["seed"])


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
    for batch in train_batches(run, stage | {"num_epochs": 1}, 0, whole=True):
        real = batch["mask"] > 0
        found = np.asarray(hamming.binarize(soft_codes(variables, batch)))
        codes[batch["index"][real]] = found[real]
    return codes


def harden(run: Run, name: str) -> None:
    """Hardens the pretrained model by a defence of the config: the model of that name."""
    config, data = run.config, run.data
    encode_fn, variables, pretrained = run.load_model("pretrained")
    stage = config["defenses"][name]
    defense = defenses.DEFENSES[stage["name"]]
    model = parts.make_network(config["model"])

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
        return defense.first_state(
            variables,
            optimizer,
            state,
            bank,
            data.database.labels,
            jax.random.key(config["seed"]),
            **stage.get("state", {}),
        )

    update = functools.partial(defense.make_update, seed=config["seed"], **stage["options"])
    # The step tells the best checkpoint from the latest.
    start = {**pretrained.metadata["identity"], "step": pretrained.step}
    made_from = {"pretrained": start, "defense": decisive(stage)}
    _train_hashing_network(run, name, stage, model, update, make_state, made_from)
