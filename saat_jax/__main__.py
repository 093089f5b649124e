"""The command `saat-jax`, also `python -m saat_jax`: what stands in `launch/`, found and run."""

import importlib
import pathlib
import sys


def main() -> int:
    """Runs the command of this process' arguments; returns the exit status.

    `launch` and `configs` lie beside the package in a checkout, and inside it when installed.
    """
    package = pathlib.Path(__file__).parent
    shipped = package / "shipped"
    sys.path.insert(0, str(shipped if shipped.is_dir() else package.parent))
    return importlib.import_module("launch.command").start()


if __name__ == "__main__":
    sys.exit(main())
