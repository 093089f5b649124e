"""The tasks that a config may name: config in, files of a run out."""

import pathlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax

from saat_jax import datasets, defenses, evaluation, parallel, reports, training
from saat_jax.pipeline import audits, codes, stages
from saat_jax.pipeline.learners import learn_attacks
from saat_jax.pipeline.parts import Config
from saat_jax.pipeline.runs import Run
from saat_jax.pipeline.workdir import check_workdir, locked


def judge(
    run: Run, name: str, attacks: Collection[str] | None = None, *, save_images: bool = False
) -> None:
    """Judges one model without an attack and under every attack of the run, or some of them."""
    suite = {k: v for k, v in run.suite.items() if attacks is None or k in attacks}
    if name in run.config["defenses"]:
        # What misled a gradient may not mislead that of the network before it was hardened.
        suite = {k: _with_surrogate(attack) for k, attack in suite.items()}
    model = run.load_model(name)
    run.accept()
    evaluation.evaluate(
        model.encode_fn,
        model.variables,
        run.data,
        suite,
        run.targets_of(suite),
        protocol=run.protocol,
        folder=run.workdir / "records" / name,
        identity=model.identity,
        batch_size=run.config["evaluation"]["batch_size"],
        learned=learn_attacks(run, name, model, suite),
        num_examples=run.config["evaluation"]["num_examples"],
        save_images=save_images,
        progress=True,
    )


def _with_surrogate(attack: evaluation.AnyAttack) -> evaluation.AnyAttack:
    if not isinstance(attack, evaluation.Suite):
        return attack
    return attack.joined_by("surrogate", attack="surrogate", num_steps=evaluation.suites.NUM_STEPS)


def show_report(workdir: pathlib.Path) -> None:
    """Writes the page of the records made so far, and prints their table."""
    if jax.process_index() == 0:
        reports.show_report(workdir)


def transfer(run: Run) -> None:
    """Crafts images on each model of other runs, judges them on all, and prints the matrices."""
    models, identities, learned = {}, {}, {}
    if not run.config["transfer"]["models"]:
        raise ValueError("config.transfer.models is empty; name models as WORKDIR:MODEL")
    for place in run.config["transfer"]["models"]:
        workdir, _, name = place.rpartition(":")
        other = run.other(workdir)
        model = other.load_model(name)
        models[place] = evaluation.Encoder(model.encode_fn, model.variables)
        identities[place] = model.identity
        with locked(other.workdir):
            learned[place] = learn_attacks(other, name, model, other.suite)
    run.accept()
    evaluation.transfer(
        models,
        run.data,
        run.suite,
        run.targets_of(run.suite),
        protocol=run.protocol,
        folder=run.workdir / "transfer",
        identities=identities,
        batch_size=run.config["evaluation"]["batch_size"],
        learned=learned,
        progress=True,
    )
    show_report(run.workdir)


class Part(NamedTuple):
    """A part of a task.

    Attributes:
        run: does it.
        words: what is left of it, in words, to be told before it is begun.
    """

    run: Callable[[Run], None]
    words: Callable[[Run], list[str]]


def _training_words(run: Run, name: str, stage: Config) -> list[str]:
    per_epoch = datasets.steps_per_epoch(run.data.train, stage["batch_size"])
    left = per_epoch * stage["num_epochs"] - training.reached(run.folder(name))
    if left <= 0:
        return []
    speed = training.last_speed(run.folder(name))
    known = speed.get("devices") == parallel.describe_devices() and "step_ms" in speed
    minutes = left * speed["step_ms"] / 60_000 if known else 0
    return [f"train {name} {left} steps" + f" (about {minutes:.1f} minutes)" * known]


def _defenses_of(run: Run, kind: str | None) -> list[str]:
    kinds = {name: stage["name"] for name, stage in run.config["defenses"].items()}
    wanted = [name for name, found in kinds.items() if kind in (None, found)]
    if not wanted:
        raise ValueError(f"config.defenses has no {kind or 'defence'}, it has {kinds}; add one")
    return wanted


def _hardening(kind: str | None = None) -> Part:
    """Trains every defence of the config, or those of one kind."""

    def harden_all(run: Run) -> None:
        for name in _defenses_of(run, kind):
            stages.harden(run, name)

    def words(run: Run) -> list[str]:
        defences = run.config["defenses"]
        found = (_training_words(run, name, defences[name]) for name in _defenses_of(run, kind))
        return [words for each in found for words in each]

    return Part(harden_all, words)


def _judging(*, save_images: bool = False) -> Part:
    """Judges models without and under every attack of the config, and prints the table."""

    def judge_all(run: Run) -> None:
        names = ["pretrained", *run.config["defenses"]]
        trained = [name for name in names if run.folder(name).is_dir()]
        for name in run.config["evaluation"]["models"] or trained or ["pretrained"]:
            judge(run, name, save_images=save_images)
        show_report(run.workdir)

    def words(run: Run) -> list[str]:
        names = run.config["evaluation"]["models"] or ["pretrained", *run.config["defenses"]]
        records = [(name, record) for name in names for record in ("benign", *run.suite)]
        folder = run.workdir / "records"
        left = [
            pair for pair in records if not folder.joinpath(*pair).with_suffix(".json").exists()
        ]
        return [f"judge {len(left)} x {len(run.data.query)} queries"] if left else []

    return Part(judge_all, words)


def _transfer_words(run: Run) -> list[str]:
    count = len(run.config["transfer"]["models"])
    return [f"attack {count} models {len(run.suite)} x {len(run.data.query)} queries"]


def _pretraining_words(run: Run) -> list[str]:
    head, folder = run.config["model"].get("head"), run.folder("pretrained")
    if head:
        done = (folder / "checkpoints" / "latest").is_dir()
        return [] if done else [f"fit the head {head} of pretrained"]
    return _training_words(run, "pretrained", run.config["pretrain"])


TRAINING = Part(stages.train_hash, _pretraining_words)
# By the names of `validation.TASKS`.
_PARTS: dict[str, tuple[Part, ...]] = {
    "train_hash": (TRAINING,),
    "harden": (_hardening(),),
    **{f"train_{kind}": (_hardening(kind),) for kind in defenses.DEFENSES},
    "evaluate": (_judging(),),
    "attack": (_judging(save_images=True),),
    "compare_attacks": (TRAINING, _judging()),
    "chain": (TRAINING, _hardening(), _judging()),
    "transfer": (Part(transfer, _transfer_words),),
    "encode": (Part(codes.encode, lambda run: ["encode images"]),),
    "search": (Part(codes.search, lambda run: ["search codes"]),),
}


def run(config: Config, workdir: str | pathlib.Path) -> None:
    """Runs the config's task, one of `validation.TASKS`, or of `audits.PARTS` if it has an encoder.

    What is finished in the folder is not done again, what was stopped goes on.

    Args:
        config: nested dicts, or an `ml_collections.ConfigDict` of them.
        workdir: folder of the run, which no other program may use at the time.

    Raises:
        training.Interrupted: after SIGTERM or Ctrl-C while training, with the state saved.
        ArithmeticError: if training diverges, or an attack leaves its ball.
        OSError: if a file cannot be written, as on a full disk.
        ValueError: if the config, its data or a file of the folder is wrong, or the folder is in
            use.
    """
    folder = check_workdir(workdir)
    if hasattr(config, "get") and "encoder" in config:
        with locked(folder):
            audits.audit(config, folder)
        return
    if hasattr(config, "get") and config.get("task") == "report":
        # Needs no data, and no lock.
        show_report(folder)
        return
    with locked(folder):
        made = Run(config, folder)
        parts = _PARTS[made.config["task"]]
        words = [words for part in parts for words in part.words(made)]
        if jax.process_index() == 0:
            print(
                f"running on {parallel.describe_devices()}: {'; '.join(words) or 'all is done'}",
                flush=True,
            )
        with jax.default_matmul_precision(made.config["precision"]):
            for part in parts:
                part.run(made)
