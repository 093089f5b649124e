"""Which module may import which, and what must not be imported at all."""

import ast
import pathlib
import subprocess
import sys

import pytest

import saat_jax

ROOT = pathlib.Path(saat_jax.__file__).parent
# DESIGN.md, section 2. A new module gets its place here.
LAYERS = (
    ("hamming", "parallel", "checkpoints", "files"),
    (
        "networks",
        "objectives",
        "mainstay",
        "attacks",
        "retrieval",
        "perturbation",
        "datasets",
    ),
    ("prototypes", "generative"),
    ("defenses",),
    ("training", "evaluation", "reports"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# What the launcher needs, and the library must not.
FORBIDDEN = {"ml_collections", "absl", "configs", "launch"}
# Imported inside the functions that need them: the extras, and what is slow to start.
LAZY = {
    "tensorflow",
    "tensorflow_datasets",
    "array_record",
    "sklearn",
    "matplotlib",
    "PIL",
    "torch",
    "safetensors",
}
FILES = sorted(ROOT.rglob("*.py"))
# The files of the package's modules; the package itself re-exports from all of them.
INNER = [path for path in FILES if path != ROOT / "__init__.py"]


def _name(path):
    return str(path.relative_to(ROOT))


def _module(path):
    """The module, or the package, of the library that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(tree, path):
    """Every dotted name that a tree imports; for "from a import b" both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: import by the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _library_imports(tree, path):
    """The modules of the library that a tree imports, without its own package."""
    parts = [name.split(".") for name in _imports(tree, path)]
    modules = {part[1] for part in parts if part[0] == "saat_jax" and len(part) > 1}
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
    assert _library_imports(ast.parse(source), ROOT / "evaluation.py") == expected


@pytest.mark.parametrize("path", INNER, ids=_name)
def test_imports_point_down(path):
    module = _module(path)
    assert module in RANK, f"{module} is new: give it a layer"
    for imported in _library_imports(ast.parse(path.read_text()), path):
        assert imported in RANK, f"{module} imports {imported}, which is no module of a layer"
        below = imported == "hamming" or RANK[imported] < RANK[module]
        assert below, f"{module} imports {imported}, which is not of a lower layer"


@pytest.mark.parametrize("path", INNER, ids=_name)
def test_package_is_imported_for_its_version_only(path):
    """`import saat_jax` inside the library would go around the layers."""
    tree = ast.parse(path.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "saat_jax"
    }
    assert used <= {"__version__"}, f"{_name(path)} uses {used} of the package"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_library_is_free_of_the_launcher(path):
    tops = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()), path)}
    assert not tops & FORBIDDEN


@pytest.mark.parametrize("path", FILES, ids=_name)
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
    "modules", [["saat_jax"], [f"saat_jax.{name}" for name in sorted({_module(p) for p in INNER})]]
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
        cwd=ROOT.parent,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = ast.literal_eval(result.stdout.splitlines()[-1])
    assert not set(loaded) & {"tensorflow", "matplotlib", "configs", "launch"}
