"""A run: a config, its folder and its data."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saat_jax import (
    attacks,
    checkpoints,
    datasets,
    evaluation,
    files,
    networks,
    options,
    training,
)
from saat_jax.pipeline import parts, validation
from saat_jax.pipeline.parts import Config
from saat_jax.pipeline.workdir import CURE, check_workdir, store_config, stored_config


class TrainedModel(NamedTuple):
    """A trained network.

    Attributes:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: on the device.
        checkpoint: what they are from.
    """

    encode_fn: networks.EncodeFn
    variables: Any
    checkpoint: checkpoints.Checkpoint

    @property
    def identity(self) -> Config:
        """What made it: part of the identity of all that is made from it."""
        return {"record": self.checkpoint.metadata["identity"], "step": self.checkpoint.step}


class Run:
    """A config, its folder and its data, checked before any work is done.

    Args:
        config: nested dicts, or an `ml_collections.ConfigDict` of them.
        workdir: folder of the run.
        data: if loaded already; by default that of the config.
        guest: whether another run borrows this one's models, and must leave its folder as it is
            but for learned/.

    Attributes:
        config: as plain nested dicts.
        workdir: absolute.
        data: the images.
        suite: the attacks by name.
        objective: the hashing objective.
        protocol: how results are measured.

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
        settings = validation.validate(config)
        self.config, self.suite, self.objective, self.protocol = settings
        self.workdir = check_workdir(workdir)
        self.data = data or parts.load_data(self.config)
        self._check_data(settings)
        self._guest = guest
        with files.telling(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
        if validation.TASKS[self.config["task"]]:
            # Now, since a query without a target must not stop a run after hours.
            self.targets_of(self.suite)

    def _check_data(self, settings: validation.Settings) -> None:
        """Refuses a config that does not suit its data; ValueError names the field."""
        config, data, stages = self.config, self.data, settings.stages
        # One image's state tells whether bits and classes suit the objective.
        state = parts.first_objective_state(self.objective, config, data.train.labels[:1])
        scaled = [place for place, stage in stages.items() if stage.get("training_scale")]
        if state.scale is None and scaled:
            raise ValueError(
                f"{scaled[0]}.training_scale needs an objective with a tanh scale "
                f"(hashnet, hswd), got {config['objective']['name']!r}; set it to False"
            )
        augmented = [place for place, stage in stages.items() if stage.get("augment")]
        if augmented and not isinstance(data.train.images, np.ndarray | None):
            raise ValueError(
                f"{augmented[0]}.augment cannot be True for packed images, which come as packed; "
                "set it to False, or use the lists"
            )
        for name, kind in settings.learners.items():
            if kind == "prosgan":
                with options.naming(f"learned.{name}"):
                    parts.check_gan(config["learned"][name], data, config["model"]["num_bits"])

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
        path, config = pathlib.Path(workdir) / "config.json", stored_config(workdir)
        mine = {name: self.config[name] for name in ("data", "seed", "precision")}
        training.check_identity(config, mine, path.parent)
        ours = {name: self.config[name] for name in ("attacks", "learned", "evaluation")}
        with options.naming(str(path)):
            return Run({**config, **ours}, workdir, self.data, guest=True)

    def accept(self) -> None:
        """Stores the config: it fits what the folder holds."""
        if jax.process_index() == 0 and not self._guest:
            store_config(self.workdir, self.config)

    def folder(self, model: str) -> pathlib.Path:
        """Where a model's checkpoints and metrics are."""
        return self.workdir / "models" / model

    def encode(
        self, encode_fn: networks.EncodeFn, variables: Any, split: datasets.Split
    ) -> np.ndarray:
        """The codes of a split. `[rows, num_bits]` float32 in {-1, +1}"""
        batch_size = self.config["evaluation"]["batch_size"]
        batches = evaluation.batches_from(self.data, split, batch_size)(0)
        return evaluation.encode(encode_fn, variables, batches, size=len(split))

    def load_images(self, split: datasets.Split, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Some images as the network sees them. `[rows, height, width, 3]` in [0, 1]"""
        return datasets.load_images(
            split, rows, image_size=self.data.image_size, resize=self.data.resize
        )

    @functools.cached_property
    def target_labels(self) -> np.ndarray:
        """The targets of the run, drawn once and stored. `[num_queries, num_classes]`

        Raises:
            ValueError: if a query has no target, or what is stored is damaged.
        """
        path = self.workdir / "targets.npz"
        rule = {"protocol": self.protocol.targets, "min_count": self.protocol.min_count}
        made_for = f"{self.identity['data']} seed {self.config['seed']} {rule}"
        shape = (len(self.data.query), self.data.num_classes)
        if path.is_file():
            stored = files.read_arrays(path, cure=CURE, names=("made_for", "target_labels"))
            if str(stored["made_for"]) == made_for:
                labels = stored["target_labels"]
                if labels.shape != shape or labels.dtype.kind not in "fiub":
                    raise ValueError(
                        f"{path} must have target_labels of shape {shape}, got {labels.dtype} "
                        f"{labels.shape}; {CURE}"
                    )
                return labels
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

    def targets_of(self, suite: Mapping[str, evaluation.AnyAttack]) -> np.ndarray | None:
        """The target labels; None if the data have none and no attack of the suite is targeted.

        Raises:
            ValueError: as `target_labels`.
        """
        candidates = attacks.target_candidates(
            self.data.query.labels,
            self.data.database.labels,
            protocol=self.protocol.targets,
            min_count=self.protocol.min_count,
        )
        needed = any(attack.targeted for attack in suite.values())
        return self.target_labels if needed or all(map(len, candidates)) else None

    def load_model(self, name: str) -> TrainedModel:
        """Reads a trained model.

        Raises:
            ValueError: if it has not been trained to its end in this folder, or was trained
                with other data or settings than this run's.
        """
        options.check_name("model", name)
        folder = self.folder(name) / "checkpoints"
        with training.open_checkpoints(self.folder(name)) as saved:
            latest = saved.metadata()
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
        variables = training.variables_of(found.state)
        encode_fn = networks.make_encode_fn(parts.make_network(self.config["model"]))
        # On the device once, not with every batch.
        return TrainedModel(encode_fn, jax.device_put(variables), found)
