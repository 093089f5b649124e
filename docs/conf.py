"""The manual: pages of this folder, docstrings, configs and `--help`, by Sphinx: `make manual`."""

import ast
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import saat_jax  # noqa: E402

project = "saat_jax"
version = release = saat_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["records"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
# Attributes become fields of their class, which documents them once.
napoleon_use_ivar = True
html_theme = "furo"
html_title = f"saat_jax {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


def _marked(line):
    """A line of our docstrings, Markdown's single backticks, in reStructuredText."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(`[^`]+`)", line)
    # Bars and double stars mean something outside of code.
    plain = [re.sub(r"(\||\*\*)", r"\\\1", part) for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]] + [""]
    return "".join(a + b for a, b in zip(plain, code, strict=True))


def _docstring(app, what, name, thing, options, lines):
    lines[:] = map(_marked, lines)


def setup(app):
    """Hooks into Sphinx; before napoleon, which numbers its own by 500."""
    app.connect("autodoc-process-docstring", _docstring, priority=400)


def _write(place, text):
    path = DOCS / "reference" / "made" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def _write_modules():
    names = [m.name for m in pkgutil.iter_modules(saat_jax.__path__) if m.name != "__main__"]
    for name in ["saat_jax", *(f"saat_jax.{name}" for name in names)]:
        importlib.import_module(name)
        # A class has one place; functions may have two.
        classes = [n for n in saat_jax.__all__ if isinstance(getattr(saat_jax, n), type)]
        left_out = "" if name == "saat_jax" else f"   :exclude-members: {', '.join(classes)}\n"
        body = f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n{left_out}```\n"
        _write(f"{name}.md", f"# {name}\n\n{body}")


def _write_configs():
    parts = ["# Configs\n\nThe heads of the files in `configs/`. `saat-jax configs` lists them.\n"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in ("__init__", "common"):
            head = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            parts.append(f"## {path.stem}\n\n```text\n{head}\n```\n")
    _write("configs.md", "\n".join(parts))


def _write_commands():
    from launch import command

    parts = ["# Commands\n\nWhat each says to `--help`.\n"]
    for words in ([], *([name] for name in command.COMMANDS if name != "configs")):
        told = subprocess.run(
            [sys.executable, "-m", "saat_jax", *words, "--help"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        parts.append(f"## {' '.join(['saat-jax', *words])}\n\n```text\n{told.stdout}```\n")
    _write("commands.md", "\n".join(parts))


_write_modules()
_write_configs()
_write_commands()
