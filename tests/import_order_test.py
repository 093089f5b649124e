"""Which module may import which, and what must not be imported at all."""

import ast
import pathlib
import subprocess
import sys

import pytest

import saat_jax

ROOT = pathlib.Path(saat_jax.__file__).parent
CHECKOUT = ROOT.parent
# A module imports of its own group what stands in a lower row. A new module gets its place here.
LIBRARY = (
    (
        "certificates",
        "checkpoints",
        "files",
        "hamming",
        "labels",
        "lazy",
        "options",
        "optimizers",
        "parallel",
        "perturbation",
    ),
    ("attacks", "datasets", "edits", "mainstay", "networks", "objectives", "reports", "retrieval"),
    ("encoders", "prototypes"),
    ("defenses", "generative"),
    ("evaluation", "training"),
    ("pipeline",),
)
# Floor 0 may use what is left of it in this row.
FLOOR = (
    "options",
    "files",
    "labels",
    "hamming",
    "optimizers",
    "parallel",
    "perturbation",
)
LAUNCH = (
    ("settings", "terminal"),
    ("board", "card", "compare", "export", "main", "prepare", "scan"),
    ("reproduce",),
    ("command",),
)
CONFIGS = (
    ("common",),
    ("audit", "demo", "lists"),
    ("attacks", "tfds"),
    ("defenses", "train_hash"),
    ("reproduce",),
)
GROUPS = {"saat_jax": LIBRARY, "launch": LAUNCH, "configs": CONFIGS}
# What each group may import of the others.
ALLOWED = {"saat_jax": set(), "configs": set(), "launch": {"saat_jax", "configs"}}
# Of the command line and the checkout: the library needs neither.
FORBIDDEN = {"ml_collections", "absl", "configs", "launch"}
# Imported inside the functions that need them: the extras, and what is slow to start.
LAZY = {
    "tensorflow",
    "tensorflow_datasets",
    "array_record",
    "jinja2",
    "sklearn",
    "matplotlib",
    "PIL",
    "torch",
    "safetensors",
    "onnx",
    "onnxruntime",
    "pdqhash",
    "imagehash",
    "skimage",
    "faiss",
    "psycopg",
}
FILES = sorted(path for name in GROUPS for path in (CHECKOUT / name).rglob("*.py"))
LIBRARY_FILES = [path for path in FILES if path.is_relative_to(ROOT)]
# The packages themselves re-export from all of their modules.
INNER = [path for path in FILES if path.parent.parent != CHECKOUT or path.name != "__init__.py"]


def _name(path):
    return str(path.relative_to(CHECKOUT))


def _group(path):
    return path.relative_to(CHECKOUT).parts[0]


def _module(path):
    """The module, or the package, of its group that a file belongs to."""
    return path.relative_to(CHECKOUT).parts[1].removesuffix(".py")


def _imports(tree, path):
    """Every dotted name that a tree imports; for "from a import b" both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: import by the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _siblings(tree, path):
    """The modules of its group that a file imports, without its own package."""
    parts = [name.split(".") for name in _imports(tree, path)]
    modules = {part[1] for part in parts if part[0] == _group(path) and len(part) > 1}
    return modules - {_module(path)}


def _top_level(tree):
    """The nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _top_level(node)


def test_parsing_sees_every_kind_of_import():
    source = """
import saat_jax.hamming
from saat_jax import attacks, mainstay as votes
from saat_jax.datasets.images import load_images
def function():
    from saat_jax import networks
"""
    expected = {"hamming", "attacks", "mainstay", "datasets", "networks"}
    assert _siblings(ast.parse(source), ROOT / "evaluation.py") == expected


@pytest.mark.parametrize("path", INNER, ids=_name)
def test_imports_point_down(path):
    module, group = _module(path), _group(path)
    rank = {name: row for row, names in enumerate(GROUPS[group]) for name in names}
    if module == "__main__":
        return
    assert module in rank, f"{module} is new: give it a row"
    for imported in _siblings(ast.parse(path.read_text()), path):
        assert imported in rank, f"{module} imports {imported}, which stands in no row"
        below = rank[imported] < rank[module]
        if module in FLOOR and imported in FLOOR:
            below = FLOOR.index(imported) < FLOOR.index(module)
        assert below, f"{module} imports {imported}, which is not of a lower row"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_groups_point_one_way(path):
    tops = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()), path)}
    others = tops & GROUPS.keys() - {_group(path)}
    assert others <= ALLOWED[_group(path)]


@pytest.mark.parametrize("path", [p for p in INNER if p in LIBRARY_FILES], ids=_name)
def test_the_package_itself_is_not_used_inside(path):
    """`import saat_jax` inside the library would go around the rows."""
    tree = ast.parse(path.read_text())
    assert not any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "saat_jax"
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=_name)
def test_library_is_free_of_the_launcher(path):
    tops = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()), path)}
    assert not tops & FORBIDDEN


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=_name)
def test_extras_are_imported_where_they_are_used(path):
    tree = ast.parse(path.read_text())
    at_import = ast.Module([node for node in _top_level(tree) if isinstance(node, ast.stmt)], [])
    statements = [n for n in at_import.body if isinstance(n, ast.Import | ast.ImportFrom)]
    tops = {n.split(".")[0] for n in _imports(ast.Module(statements, []), path)}
    assert not tops & LAZY
    if _module(path) != "datasets":
        anywhere = {name.split(".")[0] for name in _imports(tree, path)}
        assert not anywhere & {"tensorflow", "tensorflow_datasets", "sklearn"}


@pytest.mark.parametrize(
    "modules",
    [["saat_jax"], [f"saat_jax.{name}" for row in LIBRARY for name in row]],
)
def test_import_does_not_load_the_extras(modules):
    code = (
        f"import sys, {', '.join(modules)}\n"
        f"loaded = {sorted(LAZY | FORBIDDEN)!r}\n"
        "print([name for name in loaded if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = ast.literal_eval(result.stdout.splitlines()[-1])
    assert not set(loaded) & {"tensorflow", "matplotlib", "configs", "launch"}
