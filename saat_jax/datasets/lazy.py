"""Imports that cost seconds or are optional, made on first use."""

import functools
import importlib
import os
from types import ModuleType


def require(module: str) -> ModuleType:
    """Imports an optional module, or says how to install it.

    Raises:
        ModuleNotFoundError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this data source needs {module} (missing: {error.name}); "
            "install it with: pip install 'saat-jax[data]'"
        ) from error


@functools.cache
def tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerators: it only reads images here."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf = require("tensorflow")
    tf.config.set_visible_devices([], "GPU")
    return tf
