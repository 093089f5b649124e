r"""Runs a task of a config.

    python -m launch.main --config configs/demo.py --workdir runs/demo
    python -m launch.main --config configs/lists.py:small --workdir runs/mine \
        --config.data.root=FOLDER --config.task=train_hash

With --distributed each process of a job runs the same command, on a folder that all see.

A finished stage is skipped, a stopped one goes on where it was; both are found in the workdir.
"""

import logging
import os
import runpy
import sys
from importlib import metadata
from typing import Any

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with its variant if it has any: FILE[:VARIANT].", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", ".jax_cache", "Folder for compiled programs; empty for none."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Whether this is one of several processes; Slurm and pods are detected."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "ADDRESS:PORT of the first process, where the job is not detected."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: list[str]) -> None:
    """Checks the flags, starts JAX and hands the config to its task."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; settings are --config.NAME=VALUE")
    places = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not _DISTRIBUTED.value and places != (None, None, None):
        raise app.UsageError("--coordinator, --num_processes and --process_id need --distributed")
    config = _CONFIG.value.to_dict()
    start_jax(config["precision"], _CACHE.value)

    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import parallel, pipeline

    if _DISTRIBUTED.value:
        parallel.start(*places)
    pipeline.run(config, str(_WORKDIR.value))


def _with_cpu_flag(flags: str) -> str:
    """XLA's flags and that of its own code on CPUs, unless they have it."""
    name = "--xla_cpu_experimental_ynn_fusion_type"
    return flags if name in flags else f"{flags} {name}=individual_dot".strip()


def start_jax(precision: str, compilation_cache: str = ".jax_cache") -> None:
    """Sets what JAX and the libraries around it must know before their first use.

    Args:
        precision: of float32 products on accelerators; `config.precision`.
        compilation_cache: folder for compiled programs; empty for none.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # The library that XLA takes for convolutions on CPUs is 3 to 7 times slower than XLA's own code
    # at their gradients by kernels; for matrix products it stays. An XLA that does not know the
    # flag would refuse to start.
    if metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = _with_cpu_flag(os.environ.get("XLA_FLAGS", ""))
    logging.getLogger().setLevel(logging.WARNING)
    # Orbax warns that a folder opened for reading is only read, and prints the traceback of a save
    # that failed in the background above the message that says what to do.
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    import jax

    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_default_matmul_precision", precision)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a config file or a setting that fails is answered by one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(str(error).rstrip().splitlines()[-1].strip())
    except (AttributeError, KeyError) as error:
        sys.exit(_unknown_field() or f"{type(error).__name__}: {error}")
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _unknown_field() -> str | None:
    """Names the first setting of the command line that the config does not have."""
    arguments = [argument.lstrip("-") for argument in " ".join(sys.argv[1:]).split()]
    text = " ".join(arguments).replace("config ", "config=")
    path, _, variant = text.partition("config=")[2].split()[0].partition(":")
    # The flag itself has no value yet: it is this setting that it fails on.
    config = runpy.run_path(path)["get_config"](*[variant] if variant else [])
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("config."):
            continue
        section: Any = config
        place = "config"
        for part in name.split(".")[1:]:
            if part not in section:
                return f"{place} has no field {part!r}; it has {sorted(section)}"
            section, place = section[part], f"{place}.{part}"
    return None


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        app.run(main, flags_parser=_parse)
    except (ValueError, ArithmeticError, ModuleNotFoundError, OSError) as error:
        # What to mend stands in the message; a traceback would bury it.
        if os.environ.get("SAAT_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(SAAT_TRACEBACK=1 shows where)")
