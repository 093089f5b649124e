"""The examples of the docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import saat_jax

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(saat_jax.__path__, "saat_jax.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["saat_jax", *MODULES])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not result.failed, f"{result.failed} of {result.attempted} examples"
