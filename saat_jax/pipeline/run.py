"""A run: a config, its folder and its data.

<workdir>/config.json                     the settings as run
<workdir>/targets.npz                     target labels of the queries, drawn once
<workdir>/models/<model>/                 checkpoints, metrics.jsonl, TensorBoard's files
<workdir>/learned/<model>/<network>/      the same of networks trained to attack that model
<workdir>/records/<model>/<attack>.json   what `evaluation.evaluate` writes
<workdir>/transfer/<attack>.json          what `evaluation.transfer` writes
<workdir>/report.html                     what `reports.write_report` makes of it all
"""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from saat_jax import (
    attacks,
    checkpoints,
    datasets,
    defenses,
    evaluation,
    files,
    generative,
    networks,
    objectives,
    optimizers,
    prototypes,
    training,
)
from saat_jax.pipeline.validation import check_numbers, check_options, find_learners

Config = dict[str, Any]
# (encode_fn, variables, the checkpoint they are from).
Model = tuple[networks.EncodeFn, Any, checkpoints.Checkpoint]


class Run:
    """A config, its folder and its data, checked before any work is done.

    Args:
        config: plain nested dict, as `configs/` make it.
        workdir: folder of the run.
        data: if loaded already; by default that of the config.
        guest: whether another run borrows this one's models, and must leave its folder as it is
            but for learned/.

    Raises:
        ValueError: if the data or a setting of the config is wrong.
    """

    def __init__(
        self,
        config: Config,
        workdir: str | pathlib.Path,
        data: datasets.Dataset | None = None,
        *,
        guest: bool = False,
    ):
        self.config = config
        self._guest = guest
        self.workdir = pathlib.Path(workdir).absolute()
        self.suite = {
            name: evaluation.AttackSettings.create(**settings)
            for name, settings in config["attacks"].items()
        }
        learners = find_learners(config, self.suite)
        stages = {
            "pretrain": config["pretrain"],
            **{f"defenses.{name}": stage for name, stage in config["defenses"].items()},
            **{f"learned.{name}": config["learned"][name] for name in learners},
        }
        check_numbers({**stages, "evaluation": config["evaluation"]})
        model = self.network(config["model"])
        self.objective = objectives.create_objective(**config["objective"])
        made = {
            place: make_optimizer(stage, num_epochs=1, steps_per_epoch=1)[1]
            for place, stage in stages.items()
        }
        for name, stage in config["defenses"].items():
            if stage["first_bank"] not in ("eval", "train"):
                raise ValueError(
                    f'defenses.{name}.first_bank must be "eval" or "train", got '
                    f"{stage['first_bank']!r}"
                )
            make_update = look_up(defenses.DEFENSES, stage["name"], "defence")
            check_options(f"defenses.{name}", make_update, stage["options"])
            optimizer = made[f"defenses.{name}"]
            make_update(model, self.objective, optimizer, seed=0, **stage["options"])
        self.protocol = evaluation.Protocol(
            **config["evaluation"]["protocol"], seed=config["seed"], precision=config["precision"]
        )
        self.data = data or load_data(config)
        # One image's state tells whether bits and classes suit the objective.
        state = self.first_objective_state(self.data.train.labels[:1])
        scaled = [place for place, stage in stages.items() if stage.get("training_scale")]
        if state.scale is None and scaled:
            raise ValueError(
                f"{scaled[0]}.training_scale needs an objective with a tanh scale "
                f"(hashnet, hswd), got {config['objective']['name']!r}; set it to False"
            )
        augmented = [place for place, stage in stages.items() if stage.get("augment")]
        if augmented and not isinstance(self.data.train.images, np.ndarray | None):
            raise ValueError(
                f"{augmented[0]}.augment cannot be True for packed images, which come as packed; "
                "set it to False, or use the lists"
            )
        for name, attack in learners.items():
            place, stage = f"learned.{name}", config["learned"][name]
            if attack != "prosgan":
                check_options(place, prototypes.prototype_loss, stage["options"])
                continue
            check_options(place, generative.make_gan_update, stage["options"])
            nets, pair = make_gan(stage, self.data.num_classes), [made[place]] * 2
            encode_fn = networks.make_encode_fn(model)
            generative.make_gan_update(
                *nets, encode_fn, *pair, steps_per_epoch=1, **stage["options"]
            )
            first = functools.partial(generative.init_state, image_size=self.data.image_size)
            # Their sizes without the networks: not every image size will do.
            jax.eval_shape(functools.partial(first, *nets, *pair, {}), jax.random.key(0))
        for warning in self.data.warnings:
            print(f"note: {warning}")
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.target_labels = self._target_labels()

    # The fingerprint reads every pixel held in memory: once is enough.
    @functools.cached_property
    def identity(self) -> Config:
        """What every stage of the run has in common: another value is another run."""
        config = self.config
        # Rematerialisation changes no result. What the weights are is known by their content, see
        # `stages.train_hash`, not by where they lie.
        model = {k: v for k, v in config["model"].items() if k != "remat"} | {"weights": ""}
        return {
            "model": model,
            **{name: config[name] for name in ("objective", "seed", "precision")},
            # Last, as other settings make other data: their names say more.
            "data": self.data.fingerprint(),
        }

    def other(self, workdir: str) -> "Run":
        """Another run on the same data, to be attacked as this config says.

        Raises:
            ValueError: if there is none in the folder, or its data or seed are not this run's.
        """
        path = pathlib.Path(workdir) / "config.json"
        if not path.is_file():
            raise ValueError(f"no run in {workdir!r}: {path} is missing; name a run's --workdir")
        config = json.loads(path.read_text())
        mine = {name: self.config[name] for name in ("data", "seed", "precision")}
        training.check_identity(config, mine, path.parent)
        ours = {name: self.config[name] for name in ("attacks", "learned", "evaluation")}
        return Run({**config, **ours}, workdir, self.data, guest=True)

    def accept(self) -> None:
        """Stores the config: it fits what the folder holds."""
        if jax.process_index() == 0 and not self._guest:
            files.write_json(self.workdir / "config.json", self.config)

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

    def encode(
        self, encode_fn: networks.EncodeFn, variables: Any, split: datasets.Split
    ) -> np.ndarray:
        """The codes of a split."""
        batch_size = self.config["evaluation"]["batch_size"]
        batches = evaluation.batches_from(self.data, split, batch_size)(0)
        return evaluation.encode(encode_fn, variables, batches, size=len(split))

    def _target_labels(self) -> np.ndarray:
        """The targets of the run, drawn once and stored."""
        path = self.workdir / "targets.npz"
        rule = {"protocol": self.protocol.targets, "min_count": self.protocol.min_count}
        made_for = f"{self.identity['data']} seed {self.config['seed']} {rule}"
        if path.is_file():
            stored = files.read_arrays(path)
            if str(stored["made_for"]) == made_for:
                return stored["target_labels"]
        rng = np.random.default_rng(self.config["seed"])
        labels = attacks.select_target_labels(
            self.data.query.labels,
            self.data.database.labels,
            rng,
            protocol=self.protocol.targets,
            min_count=self.protocol.min_count,
        )
        if jax.process_index() == 0 and not self._guest:
            files.write_arrays(path, {"target_labels": labels, "made_for": np.array(made_for)})
        return labels

    def load_model(self, name: str) -> Model:
        """Reads a trained model.

        Raises:
            ValueError: if it has not been trained to its end in this folder, or was trained
                with other data or settings than this run's.
        """
        folder = self.folder(name) / "checkpoints"
        with checkpoints.CheckpointFolder(folder, read_only=True) as saved:
            latest = saved.record()
            if latest is None or latest["step"] < latest["num_steps"]:
                task = "train_hash" if name == "pretrained" else "harden"
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
        encode_fn = networks.make_encode_fn(self.network(self.config["model"]))
        # On the device once, not with every batch.
        return encode_fn, jax.device_put(variables), found


def load_data(config: Config) -> datasets.Dataset:
    """Reads and checks the data of a config."""
    remap = dict(pair.split("=", 1) for pair in config["data"].get("remap", ()))
    return datasets.load_dataset(**{**config["data"], "remap": remap}, seed=config["seed"])


def decisive(stage: Config) -> Config:
    """What of a stage decides its result, and so must stay the same for a run to go on."""
    return {name: value for name, value in stage.items() if not name.endswith("_every")}


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
    stage: Config, *, num_epochs: int, steps_per_epoch: int, updates: Sequence[int] | None = None
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


def look_up(table: dict[str, Any], name: str, what: str) -> Any:
    """An entry of a table; ValueError lists the names if there is none."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; expected one of {sorted(table)}")
    return table[name]
