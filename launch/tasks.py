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
        ValueError: if the data or a setting of the config is wrong.
    """

    def __init__(self, config: Config, workdir: str | pathlib.Path):
        self.config = config
        self.workdir = pathlib.Path(workdir).absolute()
        _check_numbers(config)
        model = self.network(config["model"])
        self.objective = objectives.create_objective(**config["objective"])
        for stage in ("pretrain", "defense"):
            schedule = training.make_schedule(
                **config[stage]["schedule"], num_epochs=1, steps_per_epoch=1
            )
            optimizer = training.make_optimizer(
                **config[stage]["optimizer"], schedule=schedule, num_steps=1
            )
        make_update = _look_up(defenses.DEFENSES, config["defense"]["name"], "defence")
        make_update(model, self.objective, optimizer, seed=0, **config["defense"]["options"])
        self.protocol = evaluation.Protocol(
            **config["evaluation"]["protocol"], seed=config["seed"], precision=config["precision"]
        )
        self.suite = {
            name: evaluation.AttackSettings(**settings)
            for name, settings in config["attacks"].items()
        }
        remap = dict(pair.split("=", 1) for pair in config["data"].get("remap", ()))
        self.data = datasets.load_dataset(**{**config["data"], "remap": remap}, seed=config["seed"])
        # One image's state tells whether bits and classes suit the objective.
        self.first_objective_state(self.data.train.labels[:1])
        for warning in self.data.warnings:
            print(f"note: {warning}")
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.target_labels = self._target_labels()

    # The fingerprint reads every pixel held in memory: once is enough.
    @functools.cached_property
    def identity(self) -> Config:
        """What every stage of the run has in common: another value is another run."""
        return {
            "model": self.config["model"],
            "objective": self.config["objective"],
            "seed": self.config["seed"],
            "precision": self.config["precision"],
            # Last, as other settings make other data: their names say more.
            "data": self.data.fingerprint(),
        }

    def accept(self) -> None:
        """Stores the config: it fits what the folder holds."""
        path = self.workdir / "config.json"
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(self.config, indent=1))
        os.replace(temporary, path)

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

    def _target_labels(self) -> np.ndarray:
        """The targets of the run, drawn once and stored."""
        path = self.workdir / "targets.npz"
        made_for = f"{self.identity['data']} seed {self.config['seed']}"
        if path.is_file():
            with np.load(path) as file:
                if str(file["made_for"]) == made_for:
                    return file["target_labels"]
        rng = np.random.default_rng(self.config["seed"])
        labels = attacks.select_target_labels(
            self.data.query.labels, self.data.database.labels, rng
        )
        temporary = path.with_name(".targets.npz")
        np.savez_compressed(temporary, target_labels=labels, made_for=made_for)
        os.replace(temporary, path)
        return labels

    def load_model(self, name: str) -> tuple[networks.EncodeFn, Any, checkpoints.Checkpoint]:
        """Reads a trained model: (encode_fn, variables, the checkpoint they are from).

        Raises:
            ValueError: if it has not been trained to its end in this folder, or was trained
                with other data or settings than this run's.
        """
        folder = self.folder(name) / "checkpoints"
        with checkpoints.CheckpointFolder(folder, read_only=True) as saved:
            latest = saved.record()
            if latest is None or latest["step"] < latest["num_steps"]:
                task = "train_hash" if name == "pretrained" else "train_saat"
                done = f"step {latest['step']} of {latest['num_steps']}" if latest else "nothing"
                raise ValueError(
                    f"model {name!r} is not trained: {folder} holds {done}; run the task "
                    f"{task!r} with this --workdir"
                )
            training.check_identity(latest["identity"], self.identity, folder)
            found = saved.restore(best=self.config["evaluation"]["checkpoint"] == "best")
        if found is None:
            raise ValueError(f"{folder} holds no best checkpoint; use evaluation.checkpoint=latest")
        state = found.state
        variables = {"params": state["params"], "batch_stats": state.get("batch_stats") or {}}
        encode_fn = networks.make_encode_fn(self.network(found.record["model"]))
        # On the device once, not with every batch.
        return encode_fn, jax.device_put(variables), found


def _look_up(table: dict[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; expected one of {sorted(table)}")
    return table[name]


def _check_numbers(config: Config) -> None:
    """Refuses counts that would fail only after hours of work."""
    for section in ("pretrain", "defense", "evaluation"):
        for name, value in config[section].items():
            counts = name.startswith("num_") or name.endswith("_every") or name == "batch_size"
            if counts and value < 1:
                raise ValueError(f"{section}.{name} must be at least 1, got {value}")
    devices = jax.device_count()
    for section in ("pretrain", "defense"):
        if (rows := config[section]["batch_size"]) % devices:
            raise ValueError(
                f"{section}.batch_size must be a multiple of the {devices} devices, got {rows}"
            )
    if (checkpoint := config["evaluation"]["checkpoint"]) not in ("latest", "best"):
        raise ValueError(f'evaluation.checkpoint must be "latest" or "best", got {checkpoint!r}')


def _settings(stage: Config) -> Config:
    """What of a stage decides its result, and so must stay the same for a run to go on."""
    return {name: value for name, value in stage.items() if not name.endswith("_every")}


def _train(
    run: Run,
    name: str,
    stage: Config,
    model: nn.Module,
    make_update: Callable[..., defenses.UpdateFn],
    make_state: Callable[[Any], defenses.TrainState],
    made_from: Config,
) -> None:
    """Trains one model of the run with the settings of a stage, unless that is done."""
    config, data, folder = run.config, run.data, run.folder(name)
    steps_per_epoch = datasets.steps_per_epoch(data.train, stage["batch_size"])
    num_steps = steps_per_epoch * stage["num_epochs"]
    identity = run.identity | made_from
    with checkpoints.CheckpointFolder(folder / "checkpoints", read_only=True) as saved:
        latest = saved.record()
    if latest is not None:
        training.check_identity(latest["identity"], identity, folder)
        if latest["step"] == num_steps:
            print(f"{name}: trained already, {num_steps} steps in {folder}")
            return
    run.accept()

    schedule = training.make_schedule(
        **stage["schedule"], num_epochs=stage["num_epochs"], steps_per_epoch=steps_per_epoch
    )
    optimizer = training.make_optimizer(
        **stage["optimizer"], schedule=schedule, num_steps=num_steps
    )
    encode_fn = networks.make_encode_fn(model)

    def evaluate(variables: Any) -> dict[str, float]:
        query, database = (run.encode(encode_fn, variables, s) for s in (data.query, data.database))
        labels = (data.query.labels, data.database.labels)
        return {"map": run.protocol.map_at_k(query, database, *labels)}

    training.train(
        make_update(model, run.objective, optimizer),
        make_state(optimizer),
        functools.partial(_train_batches, data, stage, config["seed"]),
        folder=folder,
        steps_per_epoch=steps_per_epoch,
        num_epochs=stage["num_epochs"],
        schedule=schedule,
        record={
            "model": config["model"],
            "classes": list(data.class_names),
            "identity": identity,
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

    update = functools.partial(defenses.make_hashing_update, seed=config["seed"])
    made_from = {"pretrain": _settings(config["pretrain"])}
    _train(run, "pretrained", config["pretrain"], model, update, make_state, made_from)


def train_saat(run: Run) -> None:
    """Hardens the pretrained model by adversarial training: model "hardened"."""
    config, data = run.config, run.data
    encode_fn, variables, pretrained = run.load_model("pretrained")
    stage = config["defense"]

    def make_state(optimizer: Any) -> defenses.TrainState:
        codes = run.encode(encode_fn, variables, data.train)
        bank = objectives.CodeBank(jax.numpy.asarray(codes), jax.numpy.asarray(data.train.labels))
        # Class codes, counts and parameters go on from the end of pretraining.
        remembered = pretrained.state["objective"]
        state = objectives.State(**{k: v for k, v in remembered.items() if v is not None})
        if state.bank is not None:
            state = dataclasses.replace(state, bank=bank)
        return defenses.init_state(variables, optimizer, state, bank)

    update = functools.partial(
        defenses.DEFENSES[stage["name"]], seed=config["seed"], **stage["options"]
    )
    model = run.network(pretrained.record["model"])
    made_from = {"pretrained": pretrained.record["identity"], "defense": _settings(stage)}
    _train(run, "hardened", stage, model, update, make_state, made_from)


def evaluate(run: Run, *, save_images: bool = False) -> None:
    """Judges models without and under every attack of the config, and prints the table."""
    settings = run.config["evaluation"]
    trained = [name for name in ("pretrained", "hardened") if run.folder(name).is_dir()]
    for name in settings["models"] or trained or ["pretrained"]:
        encode_fn, variables, found = run.load_model(name)
        run.accept()
        evaluation.evaluate(
            encode_fn,
            variables,
            run.data,
            run.suite,
            run.target_labels,
            protocol=run.protocol,
            folder=run.workdir / "records" / name,
            identity={"record": found.record["identity"], "step": found.step},
            batch_size=settings["batch_size"],
            num_examples=settings["num_examples"],
            save_images=save_images,
            progress=True,
        )
    show_report(run.workdir)


def attack(run: Run) -> None:
    """As `evaluate`, and writes every adversarial image as PNG beside the records."""
    evaluate(run, save_images=True)


def show_report(workdir: pathlib.Path) -> None:
    """Prints the table of the records made so far and writes the page."""
    print(reports.summary_table(reports.load_records(workdir)))
    print(f"report: {reports.write_report(workdir)}")


def chain(run: Run) -> None:
    """Trains, attacks, hardens and attacks again."""
    train_hash(run)
    train_saat(run)
    evaluate(run)


TASKS: dict[str, Callable[[Run], None]] = {
    "train_hash": train_hash,
    "attack": attack,
    "train_saat": train_saat,
    "evaluate": evaluate,
    "chain": chain,
}


def run(config: Config, workdir: str | pathlib.Path) -> None:
    """Runs the config's task: one of `TASKS`, or "report", which needs no data.

    Raises:
        ValueError: if there is no such task, or the config or its data are wrong.
    """
    if config["task"] == "report":
        show_report(pathlib.Path(workdir).absolute())
    else:
        task = _look_up({**TASKS, "report": None}, config["task"], "task")
        task(Run(config, workdir))
