"""Every command that README, docs and configs show: looked through, or run as written.

    python -m benchmarks.commands            # a command each line, and what is wrong with it
    python -m benchmarks.commands --run      # also runs those marked, in a scratch folder

A block of Markdown under the line `<!-- run -->` is run; what needs data that is not bundled is
listed with the word in capitals that stands for it, such as FOLDER.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unittest import mock

from configs import common
from launch import command, settings
from launch import main as launch_main

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "launch/README.md", "docs/*.md", "docs/tutorials/*.md")
_BLOCK = re.compile(r"(?P<run><!-- run -->\n)?^```bash\n(?P<code>.*?)^```", re.M | re.S)
_INLINE = re.compile(r"`((?:saat-jax|python -m (?:benchmarks|launch|saat_jax))\b[^`]*)`")
_PLACEHOLDER = re.compile(
    r"\b(FOLDER|PHOTOS|WHEEL|FILE|OUTPUT|WORKDIR|CONFIG|COMMAND|ADDRESS|SET)\b"
)
# What stands in a shell and is not ours.
_FOREIGN = ("source", "cd", "pip", "python3", "apt-get", "unzip", "pre-commit", "for", "do", "done")


class Command(NamedTuple):
    """A command as a page shows it.

    Attributes:
        page: from the root of the checkout.
        text: on one line.
        inline: it stands in a sentence, where it may be short of arguments.
    """

    page: str
    text: str
    inline: bool


class Block(NamedTuple):
    """A block of commands, and whether it is marked as one that runs."""

    page: str
    code: str
    marked: bool


def blocks(root: pathlib.Path = ROOT) -> list[Block]:
    """The blocks of shell commands of all pages."""
    return [
        Block(str(path.relative_to(root)), found["code"], bool(found["run"]))
        for pattern in PAGES
        for path in sorted(root.glob(pattern))
        for found in _BLOCK.finditer(path.read_text("utf-8"))
    ]


def _lines(code: str) -> Iterator[str]:
    for line in code.replace("\\\n", " ").splitlines():
        # A loop counts once.
        line = re.sub(r"^\s*(for .*; do|do|done)\b", "", line).strip().replace("$seed", "0")
        for part in line.split(" && "):
            if part and not part.startswith("#"):
                yield part


def commands(root: pathlib.Path = ROOT) -> list[Command]:
    """All commands: of blocks, of sentences, and of the heads of configs."""
    found = [Command(b.page, line, False) for b in blocks(root) for line in _lines(b.code)]
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            prose = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
            for text in _INLINE.findall(prose):
                found.append(Command(str(path.relative_to(root)), " ".join(text.split()), True))
    for path in sorted(root.glob("configs/*.py")):
        head = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        for line in _lines(head):
            if line.startswith("saat-jax "):
                found.append(Command(str(path.relative_to(root)), line, False))
    return found


def needs(text: str) -> str:
    """What the reader must put in, or nothing."""
    return " ".join(dict.fromkeys(_PLACEHOLDER.findall(text.partition(" #")[0])))


class _Parsed(Exception):
    """The arguments of a command are known and sound."""


def _parse_then_stop(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> None:
    _, rest = parser.parse_known_args(arguments)
    if rest:
        raise ValueError(f"unknown arguments {rest}")
    raise _Parsed


def _refuse(parser: argparse.ArgumentParser, message: str) -> None:
    raise ValueError(message)


def _check_ours(words: list[str]) -> None:
    """Raises ValueError unless `saat-jax` takes the words."""
    if not words or words[0] in ("configs", "--help", "--version"):
        return
    name = "run" if words[0].startswith("-") else words[0]
    if not name.islower():
        return
    if name not in command.COMMANDS:
        raise ValueError(f"no command {name!r}")
    module, first, _ = command.COMMANDS[name]
    arguments = [*first, *(words if name != words[0] else words[1:])]
    with mock.patch.object(argparse.ArgumentParser, "error", _refuse):
        if module == "launch.main":
            options, rest = launch_main._parser().parse_known_args(arguments)
            if needs(options.config):
                return
            config = settings.load_config(options.config)
            common.read_papers(config, options.reading)
            settings.override(config, rest)
        else:
            stopped = mock.patch.object(argparse.ArgumentParser, "parse_args", _parse_then_stop)
            with stopped, contextlib.suppress(_Parsed):
                importlib.import_module(module).main(arguments)


def _check_module(name: str, flags: list[str]) -> None:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise ValueError(f"no module {name}")
    code = "".join(p.read_text("utf-8") for p in _sources(pathlib.Path(found.origin)))
    # Of the benchmarks some share flags that another of them adds.
    code += "".join(p.read_text("utf-8") for p in (ROOT / "benchmarks").glob("*.py"))
    for flag in flags:
        if f'"{flag.partition("=")[0]}"' not in code:
            raise ValueError(f"{name} has no flag {flag}")


def _sources(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]


def fault(told: Command) -> str:
    """What is wrong with a command, in words; nothing if it would start."""
    text = re.sub(r"\s\.\.\.(?=\s|$)", "", told.text)
    if "[" in text and "NAME=VALUE" in text:
        return ""
    try:
        words = shlex.split(text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        match words:
            case ["saat-jax", *rest] | ["python", "-m", "saat_jax", *rest]:
                _check_ours(rest)
            case ["python", "-m", "launch.main", *rest]:
                _check_ours(["run", *rest])
            case ["python", "-m", module, *rest]:
                _check_module(module, [word for word in rest if word.startswith("--")])
            case ["python", "-c", code]:
                ast.parse(code.strip())
            case ["make", target, *_]:
                if f"\n{target}:" not in (ROOT / "Makefile").read_text("utf-8"):
                    return f"no target {target}"
            case ["pip", "install", *rest]:
                extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
                known = (ROOT / "setup.cfg").read_text("utf-8")
                for extra in ",".join(extras).split(","):
                    if extra and not re.search(rf"^{extra} ?=", known, re.M):
                        return f"no extra {extra}"
            case [first, *_] if first not in _FOREIGN:
                return f"{first} is not known to benchmarks/commands.py"
    except (ValueError, SyntaxError, ModuleNotFoundError) as error:
        if told.inline and "required" in str(error):
            return ""
        return str(error)
    return ""


def run(block: Block, folder: pathlib.Path) -> tuple[str, float]:
    """Runs a block as written; how it ended, and seconds."""
    bin_folder = pathlib.Path(sys.executable).parent
    paths = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run(
        ["bash", "-e", "-c", block.code],
        cwd=folder,
        env=os.environ | paths,
        capture_output=True,
        text=True,
    )
    end = (done.stderr.strip().splitlines() or ["no word"])[-1]
    outcome = "done" if not done.returncode else f"exit status {done.returncode}: {end}"
    return outcome, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each command, or each block; 1 if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the blocks that are marked")
    options = parser.parse_args(arguments)
    wrong = 0
    for told in commands():
        found = fault(told)
        wrong += bool(found)
        lacking = f"needs {needs(told.text)}" if needs(told.text) else "ok"
        print(f"{found or lacking:<24}{told.page}: {told.text}")
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            for block in filter(lambda block: block.marked, blocks()):
                outcome, seconds = run(block, pathlib.Path(folder))
                wrong += outcome != "done"
                print(f"{outcome:<24}{seconds:8.1f} s  {block.page}: {block.code.strip()}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
