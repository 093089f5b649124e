"""The command `saat-jax`: what it can do, each by the main function of a module."""

import importlib
import sys
from importlib import metadata

from launch import terminal

# By the word that calls it: the module whose `main(arguments)` does it, what stands before the
# user's arguments, and what it does. Add a subcommand by adding a line.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": ("launch.main", (), "train, harden, attack, judge, as a config says; may be left out"),
    "audit": (
        "launch.main",
        ("--workdir", "runs/audit"),
        "how a matcher is fooled at its threshold, as --config audit:pdq says",
    ),
    "compare": ("launch.compare", (), "compare runs, over seeds and query by query"),
    "export": ("launch.export", (), "write a model of a run as a folder, to load or to share"),
    "card": ("launch.card", (), "write the cards of a run or an audit"),
    "board": ("launch.board", (), "make a page of a folder of cards"),
    "scan": ("launch.scan", (), "look for hubs in a database of codes"),
    "check": ("saat_jax.datasets.__main__", ("check",), "check a folder of images and lists"),
    "prepare": ("launch.prepare", (), "make the papers' lists from the owners' files; pack images"),
    "configs": ("launch.settings", (), "list the configs that come with the library"),
    "reproduce": ("launch.reproduce.__main__", (), "make the papers' tables and figures"),
}


def usage() -> str:
    """What `saat-jax --help` says."""
    lines = [f"  {name:<12}{what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saat-jax --config CONFIG --workdir FOLDER [--config.NAME=VALUE ...]",
            "       saat-jax COMMAND ...          (saat-jax COMMAND --help says more)",
            "",
            "  saat-jax --config demo:smoke --workdir runs/demo",
            "",
            *lines,
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Does what the first word says; a flag in its place means "run"."""
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments:
        case [] | ["--help" | "-h" | "help"]:
            print(usage())
            return 0 if arguments else 2
        case ["--version"]:
            print(f"saat-jax {metadata.version('saat-jax')}, jax {metadata.version('jax')}")
            return 0
    name = "run" if arguments[0].startswith("-") else arguments[0]
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; expected one of {[*COMMANDS]}")
    module, first, _ = COMMANDS[name]
    rest = arguments if name != arguments[0] else arguments[1:]
    return importlib.import_module(module).main([*first, *rest]) or 0


def start() -> int:
    """Runs the command of this process' own arguments; returns the exit status."""
    return terminal.run(main)
