r"""Runs a task of a config.

    saat-jax --config demo --workdir runs/demo
    saat-jax --config lists:small --workdir runs/mine \
        --config.data.root=FOLDER --config.task=train_hash
    saat-jax --config defenses:digits --workdir runs/three --seeds 0 1 2

A config is FILE[:VARIANT], or the name of one that comes with the library, such as demo:smoke. Its
fields are set by --config.NAME=VALUE, numbers as 0.5 or 8/255. --reading has methods as released
or as their papers print them, or the latter beside the former by the name NAME_paper. With
--distributed each process of a job runs the same command, on a folder that all see.

A finished stage is skipped, a stopped one goes on where it was; both are found in the workdir.
"""

import argparse
import os
import pathlib
import shlex
import sys
from importlib import metadata

from configs import common
from launch import settings, terminal


def main(arguments: list[str] | None = None) -> None:
    """Makes the config, starts JAX and hands the config to its task.

    Raises:
        ValueError: if the config, a setting or the platform is wrong.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    check_job_flags(parser, options)
    config = settings.load_config(options.config)
    common.read_papers(config, options.reading)
    settings.override(config, rest)
    folders = {options.workdir: config.get("seed")}
    if options.seeds:
        if "encoder" in config:
            parser.error("--seeds is for runs that train; an audit has one seed, config.seed")
        folders = {f"{options.workdir}/seed_{seed}": seed for seed in options.seeds}
    # The run sets the precision of its config, once that is checked.
    start_jax("highest", options.compilation_cache)

    join_job(options)
    # Imported here, so that a wrong flag is answered at once.
    import jax

    from saat_jax import pipeline, reports

    for folder, config.seed in folders.items():
        pipeline.run(config, folder)
        if jax.process_index() == 0:
            _note_command(pathlib.Path(folder), sys.argv[1:] if arguments is None else arguments)
    if options.seeds and jax.process_index() == 0:
        reports.show_comparison([options.workdir], pathlib.Path(options.workdir, "comparison.html"))


def _note_command(workdir: pathlib.Path, arguments: list[str]) -> None:
    """Adds a command to those that made what a workdir holds, for its cards."""
    from saat_jax import files, pipeline

    path, line = workdir / pipeline.COMMANDS, shlex.join(["saat-jax", *arguments])
    lines = files.whole_lines(path)
    if line not in lines:
        files.write_bytes(path, "".join(f"{told}\n" for told in [*lines, line]).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saat-jax",
        usage="%(prog)s --config CONFIG --workdir FOLDER [--config.NAME=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="FILE[:VARIANT] or NAME[:VARIANT]")
    add("--workdir", required=True, help="folder of the run; made if absent")
    add(
        "--reading",
        choices=common.READINGS,
        default="released",
        help="of the papers, see docs/papers.md",
    )
    add("--seeds", type=int, nargs="+", help="a run for each, in WORKDIR/seed_N, and a comparison")
    add("--compilation_cache", default=".jax_cache", help="folder for compiled programs, or empty")
    add_job_flags(parser)
    return parser


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what tells a process of the others of its job."""
    add = parser.add_argument
    add("--distributed", action="store_true", help="one of several processes, such as Slurm's")
    add("--coordinator", help="ADDRESS:PORT of the first process, where the job is not detected")
    add("--num_processes", type=int, help="how many processes there are")
    add("--process_id", type=int, help="which of them this is, from 0")
    add("--wait", type=int, default=120, help="seconds to wait for the other processes")


def _places(options: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    return options.coordinator, options.num_processes, options.process_id


def check_job_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses flags of a job without --distributed."""
    if not options.distributed and _places(options) != (None, None, None):
        parser.error("--coordinator, --num_processes and --process_id need --distributed")


def join_job(options: argparse.Namespace) -> None:
    """Starts the devices, of all processes of the job if there are several; after `start_jax`.

    Raises:
        ValueError: if there is no such job or platform.
        TimeoutError: if the others did not come.
    """
    from saat_jax import parallel

    if options.distributed:
        parallel.start(*_places(options), timeout=options.wait)
    else:
        parallel.check_platform()


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
    # With a single thread an encoder that JAX calls back would wait forever.
    # Systems without affinities are taken to have more.
    if len(getattr(os, "sched_getaffinity", lambda _: (0, 1))(0)) == 1:
        os.environ.setdefault("PJRT_NPROC", "2")
    terminal.quiet()

    import jax

    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_default_matmul_precision", precision)


if __name__ == "__main__":
    sys.exit(terminal.run(main))
