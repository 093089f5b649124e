"""Imports that cost seconds or are optional, made on first use."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

# What brings a module, where it is called otherwise; TFDS does not bring TensorFlow itself.
_PACKAGES = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "imagehash": "ImageHash",
    "psycopg": "'psycopg[binary]'",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow tensorflow-datasets",
    "tensorflow_datasets": "tensorflow tensorflow-datasets",
}


def has(module: str) -> bool:
    """Whether a module is installed; it is not imported."""
    return importlib.util.find_spec(module) is not None


def require(module: str) -> ModuleType:
    """Imports an optional module, or says how to install it.

    Raises:
        ModuleNotFoundError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).split(".")[0]
        raise ModuleNotFoundError(
            f"this needs {missing}, which is not installed; install it with: "
            f"pip install {_PACKAGES.get(missing, missing)}",
            name=missing,
        ) from error


@functools.cache
def tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerators: it only feeds them here."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf = require("tensorflow")
    tf.config.set_visible_devices([], "GPU")
    return tf
