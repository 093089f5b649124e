"""The tasks a config may name: config in, files of a run out.

<workdir>/config.json                     the settings as run
<workdir>/targets.npz                     target labels of the queries, drawn once
<workdir>/models/<model>/                 checkpoints, metrics.jsonl, TensorBoard's files
<workdir>/records/<model>/<attack>.json   what `evaluation.evaluate` writes
<workdir>/report.html                     what `reports.write_report` makes of it all
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from saat_jax import (
    attacks,
    checkpoints,
    datasets,
    defenses,
    evaluation,
    networks,
    objectives,
    reports,
    training,
)

Config = dict[str, Any]


class Run:
    """A config, its folder and its data, checked before any work is done.

    Args:
        config: plain nested dict, as `configs/` make it.
        workdir: folder of the run.

    Raises:
        ValueError: if the data or a name in the config is wrong.
    """

    def __init__(self, config: Config, workdir: str | pathlib.Path):
        self.config = config
        self.workdir = pathlib.Path(workdir).absolute()
        self.objective = objectives.create_objective(**config["objective"])
        _look_up(defenses.DEFENSES, config["defense"]["name"], "defence")
        for stage in ("pretrain", "defense"):
            schedule = training.make_schedule(
                **config[stage]["schedule"], num_epochs=1, steps_per_epoch=1
            )
            training.make_optimizer(**config[stage]["optimizer"], schedule=schedule, num_steps=1)
        evaluation.Protocol(**config["evaluation"]["protocol"], seed=config["seed"])
        self.suite = {
            name: evaluation.AttackSettings(**settings)
            for name, settings in config["attacks"].items()
        }
        self.network(config["model"])
        self.data = datasets.load_dataset(**config["data"], seed=config["seed"])
        # One image's state tells whether bits and classes suit the objective.
        self.first_objective_state(self.data.train.labels[:1])
        for stage in ("pretrain", "defense"):
            datasets.steps_per_epoch(self.data.train, config[stage]["batch_size"])
        for warning in self.data.warnings:
            print(f"note: {warning}")
        self.workdir.mkdir(parents=True, exist_ok=True)
        _write_json(self.workdir / "config.json", config)

    def network(self, model: Config) -> nn.Module:
        """The network of a "model" section."""
        options = {k: v for k, v in model.items() if k not in ("name", "num_bits", "weights")}
        return networks.create_network(model["name"], num_bits=model["num_bits"], **options)

    def first_objective_state(self, labels: np.ndarray) -> objectives.State:
        """The objective's state before training on images with these labels."""
        # A number that no update folds into the same seed: no step, nor its complement.
        rng = jax.random.fold_in(jax.random.key(self.config["seed"]), 2**31)
        return self.objective.init(rng, labels, self.config["model"]["num_bits"])

    def folder(self, model: str) -> pathlib.Path:
        """Where a model's checkpoints and metrics are."""
        return self.workdir / "models" / model

    def batches(self, split: datasets.Split) -> Any:
        """A split in row order, in batches for evaluation."""
        return datasets.eval_batches(
            split,
            batch_size=self.config["evaluation"]["batch_size"],
            image_size=self.data.image_size,
            resize=self.data.resize,
        )

    def encode(
        self, encode_fn: networks.EncodeFn, variables: Any, split: datasets.Split
    ) -> np.ndarray:
        """The codes of a split."""
        return evaluation.encode(encode_fn, variables, self.batches(split), size=len(split))

    def target_labels(self) -> np.ndarray:
        """The targets of the run: drawn and stored by the first who asks."""
        path = self.workdir / "targets.npz"
        fingerprint = self.data.fingerprint()
        if path.is_file():
            with np.load(path) as file:
                if str(file["data"]) == fingerprint:
                    return file["target_labels"]
        rng = np.random.default_rng(self.config["seed"])
        labels = attacks.select_target_labels(
            self.data.query.labels, self.data.database.labels, rng
        )
        temporary = path.with_name(".targets.npz")
        np.savez_compressed(temporary, target_labels=labels, data=fingerprint)
        os.replace(temporary, path)
        return labels

    def load_model(self, name: str) -> tuple[networks.EncodeFn, Any, Config]:
        """Reads a trained model: (encode_fn, variables, its checkpoint's record).

        Raises:
            ValueError: if it has not been trained to its end in this folder.
        """
        found = self.trained(name)
        variables = {
            "params": found.state["params"],
            "batch_stats": found.state.get("batch_stats") or {},
        }
        return networks.make_encode_fn(self.network(found.record["model"])), variables, found.record

    def trained(self, name: str) -> checkpoints.Checkpoint:
        """Reads a trained model's last checkpoint; its state is nested dicts.

        Raises:
            ValueError: if it has not been trained to its end in this folder.
        """
        folder = self.folder(name) / "checkpoints"
        with checkpoints.CheckpointFolder(folder) as saved:
            found = saved.restore()
        if found is None or found.step < found.record["num_steps"]:
            done = f"only {found.step} of its steps" if found else "nothing"
            raise ValueError(
                f"model {name!r} is not trained: {folder} holds {done}; run the task "
                f"{'train_hash' if name == 'pretrained' else 'train_saat'!r} with this --workdir"
            )
        return found


def _look_up(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; expected one of {sorted(table)}")
    return table[name]


def _write_json(path: pathlib.Path, tree: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(tree, indent=1))
    os.replace(temporary, path)


def _settings(stage: Config) -> Config:
    """What of a stage decides its result, and so must stay the same for a run to go on."""
    return {name: value for name, value in stage.items() if not name.endswith("_every")}


def _train(
    run: Run,
    name: str,
    stage: Config,
    model: nn.Module,
    make_update: Callable[..., defenses.UpdateFn],
    make_state: Callable[..., defenses.TrainState],
    identity: Config,
) -> None:
    """Trains one model of the run, with the schedule of a stage."""
    config, data = run.config, run.data
    steps_per_epoch = datasets.steps_per_epoch(data.train, stage["batch_size"])
    num_steps = steps_per_epoch * stage["num_epochs"]
    schedule = training.make_schedule(
        **stage["schedule"], num_epochs=stage["num_epochs"], steps_per_epoch=steps_per_epoch
    )
    optimizer = training.make_optimizer(
        **stage["optimizer"], schedule=schedule, num_steps=num_steps
    )
    encode_fn = networks.make_encode_fn(model)
    protocol = evaluation.Protocol(**config["evaluation"]["protocol"], seed=config["seed"])

    def evaluate(variables: Any) -> dict[str, float]:
        query, database = (run.encode(encode_fn, variables, s) for s in (data.query, data.database))
        labels = (data.query.labels, data.database.labels)
        return {"map": protocol.map_at_k(query, database, *labels)}

    training.train(
        make_update(model, run.objective, optimizer),
        make_state(optimizer),
        functools.partial(_train_batches, data, stage, config["seed"]),
        folder=run.folder(name),
        steps_per_epoch=steps_per_epoch,
        num_epochs=stage["num_epochs"],
        schedule=schedule,
        record={
            "model": config["model"],
            "classes": list(data.class_names),
            "identity": {**identity, "data": data.fingerprint(), "seed": config["seed"]},
        },
        evaluate=evaluate,
        evaluate_every=stage["evaluate_every"],
        log_every=stage["log_every"],
        checkpoint_every=stage["checkpoint_every"],
        title=f"train {name}",
    )


def _train_batches(data: datasets.Dataset, stage: Config, seed: int, start_step: int) -> Any:
    return datasets.train_batches(
        data.train,
        batch_size=stage["batch_size"],
        seed=seed,
        num_epochs=stage["num_epochs"],
        start_step=start_step,
        image_size=data.image_size,
        resize=data.resize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def train_hash(run: Run) -> None:
    """Trains the hashing network: model "pretrained"."""
    config, data = run.config, run.data
    model = run.network(config["model"])

    def make_state(optimizer: Any) -> defenses.TrainState:
        variables = networks.init_variables(
            model, jax.random.key(config["seed"]), image_size=data.image_size
        )
        if config["model"]["weights"]:
            variables, report = networks.load_torch_weights(variables, config["model"]["weights"])
            print(f"weights: loaded {len(report.loaded)} tensors, {report}")
        state = run.first_objective_state(data.train.labels)
        return defenses.init_state(variables, optimizer, state)

    identity = {
        **{k: config[k] for k in ("model", "objective")},
        "pretrain": _settings(config["pretrain"]),
    }
    update = functools.partial(defenses.make_hashing_update, seed=config["seed"])
    _train(run, "pretrained", config["pretrain"], model, update, make_state, identity)


def train_saat(run: Run) -> None:
    """Hardens the pretrained model by adversarial training: model "hardened"."""
    config, data = run.config, run.data
    encode_fn, variables, record = run.load_model("pretrained")
    stage = config["defense"]
    name = record["identity"]["objective"]["name"]
    if config["objective"]["name"] != name:
        raise ValueError(
            f"the pretrained model was trained with objective {name!r}, got "
            f"{config['objective']['name']!r}; harden it with its own objective"
        )

    def make_state(optimizer: Any) -> defenses.TrainState:
        codes = run.encode(encode_fn, variables, data.train)
        bank = objectives.CodeBank(jax.numpy.asarray(codes), jax.numpy.asarray(data.train.labels))
        # The class codes, counts and parameters go on from the end of pretraining.
        remembered = run.trained("pretrained").state["objective"]
        state = objectives.State(**{k: v for k, v in remembered.items() if v is not None})
        if state.bank is not None:
            state = dataclasses.replace(state, bank=bank)
        return defenses.init_state(variables, optimizer, state, bank)

    identity = {
        "pretrained": record["identity"],
        "objective": config["objective"],
        "defense": _settings(stage),
    }
    update = functools.partial(
        defenses.DEFENSES[stage["name"]], seed=config["seed"], **stage["options"]
    )
    model = run.network(record["model"])
    _train(run, "hardened", stage, model, update, make_state, identity)


def evaluate(run: Run, *, models: tuple[str, ...] = (), save_images: bool = False) -> None:
    """Judges models without and under every attack of the config, and prints the table."""
    config = run.config
    for name in models or config["evaluation"]["models"]:
        encode_fn, variables, record = run.load_model(name)
        evaluation.evaluate(
            encode_fn,
            variables,
            run.data,
            run.suite,
            run.target_labels(),
            protocol=evaluation.Protocol(**config["evaluation"]["protocol"], seed=config["seed"]),
            folder=run.workdir / "records" / name,
            identity={"record": record["identity"], "step": record["step"]},
            batch_size=config["evaluation"]["batch_size"],
            num_examples=config["evaluation"]["num_examples"],
            save_images=save_images,
            progress=True,
        )
    report(run)


def attack(run: Run) -> None:
    """As `evaluate`, and writes every adversarial image as PNG beside the records."""
    evaluate(run, save_images=True)


def report(run: Run) -> None:
    """Prints the table of the records made so far and writes the page."""
    print(reports.summary_table(reports.load_records(run.workdir)))
    print(f"report: {reports.write_report(run.workdir)}")


def chain(run: Run) -> None:
    """Trains, attacks, hardens and attacks again."""
    train_hash(run)
    train_saat(run)
    evaluate(run, models=("pretrained", "hardened"))


TASKS: dict[str, Callable[[Run], None]] = {
    "train_hash": train_hash,
    "attack": attack,
    "train_saat": train_saat,
    "evaluate": evaluate,
    "report": report,
    "chain": chain,
}


def run(config: Config, workdir: str | pathlib.Path) -> None:
    """Runs the config's task.

    Raises:
        ValueError: if there is no such task, or the config or its data are wrong.
    """
    _look_up(TASKS, config["task"], "task")(Run(config, workdir))
