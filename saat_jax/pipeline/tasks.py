"""The tasks a config may name: config in, files of a run out (see `pipeline.run`)."""

import functools
import pathlib
from collections.abc import Callable, Collection

import jax

from saat_jax import defenses, evaluation, reports
from saat_jax.pipeline.learners import learn_attacks
from saat_jax.pipeline.run import Config, Run, look_up
from saat_jax.pipeline.stages import harden, train_hash


def train_defenses(run: Run, *, kind: str | None = None) -> None:
    """Trains every defence of the config, or those of one kind."""
    kinds = {name: stage["name"] for name, stage in run.config["defenses"].items()}
    wanted = [name for name, found in kinds.items() if kind in (None, found)]
    if not wanted:
        raise ValueError(f"config.defenses has no {kind or 'defence'}, it has {kinds}; add one")
    for name in wanted:
        harden(run, name)


def judge(
    run: Run, name: str, attacks: Collection[str] | None = None, *, save_images: bool = False
) -> None:
    """Judges one model without an attack and under every attack of the run, or some of them."""
    suite = {k: v for k, v in run.suite.items() if attacks is None or k in attacks}
    model = encode_fn, variables, found = run.load_model(name)
    run.accept()
    evaluation.evaluate(
        encode_fn,
        variables,
        run.data,
        suite,
        run.target_labels,
        protocol=run.protocol,
        folder=run.workdir / "records" / name,
        identity={"record": found.record["identity"], "step": found.step},
        batch_size=run.config["evaluation"]["batch_size"],
        learned=learn_attacks(run, name, model, suite),
        num_examples=run.config["evaluation"]["num_examples"],
        save_images=save_images,
        progress=True,
    )


def evaluate(run: Run, *, save_images: bool = False) -> None:
    """Judges models without and under every attack of the config, and prints the table."""
    names = ["pretrained", *run.config["defenses"]]
    trained = [name for name in names if run.folder(name).is_dir()]
    for name in run.config["evaluation"]["models"] or trained or ["pretrained"]:
        judge(run, name, save_images=save_images)
    show_report(run.workdir)


def attack(run: Run) -> None:
    """As `evaluate`, and writes every adversarial image as PNG beside the records."""
    evaluate(run, save_images=True)


def show_report(workdir: pathlib.Path) -> None:
    """Prints the table of the records made so far and writes the page."""
    if jax.process_index() == 0:
        print(reports.terminal_tables(reports.load_records(workdir)))
        print(f"report: {reports.write_report(workdir)}")


def chain(run: Run) -> None:
    """Trains, hardens by every defence, and attacks each model."""
    train_hash(run)
    train_defenses(run)
    evaluate(run)


def compare_attacks(run: Run) -> None:
    """Trains the hashing network, and judges it under every attack."""
    train_hash(run)
    evaluate(run)


def transfer(run: Run) -> None:
    """Crafts images on each model of other runs, judges them on all, and prints the matrices."""
    models, identities, learned = {}, {}, {}
    if not run.config["transfer"]["models"]:
        raise ValueError("config.transfer.models is empty; name models as WORKDIR:MODEL")
    for place in run.config["transfer"]["models"]:
        workdir, _, name = place.rpartition(":")
        other = run.other(workdir)
        model = encode_fn, variables, found = other.load_model(name)
        models[place] = evaluation.Encoder(encode_fn, variables)
        identities[place] = {"record": found.record["identity"], "step": found.step}
        learned[place] = learn_attacks(other, name, model, other.suite)
    run.accept()
    tables = evaluation.transfer(
        models,
        run.data,
        run.suite,
        run.target_labels,
        protocol=run.protocol,
        folder=run.workdir / "transfer",
        identities=identities,
        batch_size=run.config["evaluation"]["batch_size"],
        learned=learned,
        progress=True,
    )
    if jax.process_index() == 0:
        for table in tables.values():
            print(reports.transfer_table(table))
        print(f"report: {reports.write_report(run.workdir)}")


TASKS: dict[str, Callable[[Run], None]] = {
    "train_hash": train_hash,
    "harden": train_defenses,
    **{f"train_{kind}": functools.partial(train_defenses, kind=kind) for kind in defenses.DEFENSES},
    "evaluate": evaluate,
    "attack": attack,
    "compare_attacks": compare_attacks,
    "chain": chain,
    "transfer": transfer,
}


def run(config: Config, workdir: str | pathlib.Path) -> None:
    """Runs the config's task: one of `TASKS`, or "report", which needs no data.

    Raises:
        ValueError: if there is no such task, or the config or its data are wrong.
    """
    if config["task"] == "report":
        show_report(pathlib.Path(workdir).absolute())
    else:
        task = look_up({**TASKS, "report": None}, config["task"], "task")
        task(Run(config, workdir))
