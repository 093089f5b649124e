"""Makes the API reference from the docstrings: `python docs/api.py FOLDER`. A warning fails it."""

import pathlib
import pkgutil
import sys
import warnings

import chex


class ArrayTree:
    """Any nesting of arrays."""


# The alias of chex refers to itself by a name that pdoc cannot find; this one is shorter to read.
ArrayTree.__module__ = "chex"
chex.ArrayTree = ArrayTree

import pdoc  # noqa: E402

import saat_jax  # noqa: E402

warnings.simplefilter("error")
pdoc.render.configure(docformat="google")
names = [module.name for module in pkgutil.iter_modules(saat_jax.__path__)]
modules = [f"saat_jax.{name}" for name in names if name != "__main__"]
pdoc.pdoc("saat_jax", *modules, output_directory=pathlib.Path(sys.argv[1]))
