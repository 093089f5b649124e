"""Runs: a config in, trained models, learned attacks, records and a report out.

A run is a folder. What is finished there is not done again, and what was stopped goes on:

<workdir>/config.json                     the settings as run, and of all that the folder holds
<workdir>/targets.npz                     target labels of the queries, drawn once
<workdir>/models/<model>/                 checkpoints, logs of metrics and speed, TensorBoard's
<workdir>/learned/<model>/<network>/      the same of networks trained to attack that model
<workdir>/records/<model>/<attack>.json   what `evaluation.evaluate` writes
<workdir>/transfer/<attack>.json          what `evaluation.transfer` writes
<workdir>/codes/<model>/                  what the task "encode" writes
<workdir>/commands.txt                    the commands that were run there
<workdir>/report.html                     what `reports.write_report` makes of it all
<workdir>/.lock                           who writes to the folder at the time

`run` does what a config's task says. The parts can be had one by one:

    run = pipeline.Run(config, "runs/mine")
    pipeline.train_hash(run)
    pipeline.harden(run, "hardened")
    pipeline.judge(run, "hardened")
    pipeline.show_report(run.workdir)

Every setting is checked before any work is done:

    >>> config = {"task": "chain", "seed": -1}
    >>> validate(config)
    Traceback (most recent call last):
    ValueError: the config lacks 'precision'; it has the fields [...]
"""

from saat_jax.pipeline.audits import load_encoder
from saat_jax.pipeline.codes import encode, search
from saat_jax.pipeline.exports import COMMANDS, export_model, make_cards
from saat_jax.pipeline.learners import learn_attacks
from saat_jax.pipeline.parts import Config, load_data
from saat_jax.pipeline.runs import Run, TrainedModel
from saat_jax.pipeline.stages import harden, train_hash
from saat_jax.pipeline.tasks import judge, run, show_report, transfer
from saat_jax.pipeline.validation import TASKS, Settings, validate
from saat_jax.pipeline.workdir import locked, stored_config

__all__ = [
    "COMMANDS",
    "TASKS",
    "Config",
    "Run",
    "Settings",
    "TrainedModel",
    "encode",
    "export_model",
    "harden",
    "judge",
    "learn_attacks",
    "load_data",
    "load_encoder",
    "locked",
    "make_cards",
    "run",
    "search",
    "show_report",
    "stored_config",
    "train_hash",
    "transfer",
    "validate",
]
