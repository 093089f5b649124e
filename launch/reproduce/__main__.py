r"""Makes the tables and figures of both papers, beside the published numbers.

    saat-jax reproduce --table all --scale small --workdir runs/small
    saat-jax reproduce --table saat:II --table saat:fig3 --workdir runs/paper \
        --root saat:flickr25k=FOLDER --root nuswide=FOLDER --root saat:coco=FOLDER --weights FOLDER
    ... --dry-run      shows what would be done, and what it would cost on this machine
    ... --commands     prints one command for each network, for a cluster's array jobs
    ... --distributed  one of several processes, on a folder that all see

The papers divide FLICKR-25K and MS-COCO differently: with a paper's name before the set's, as in
saat:coco, a --root counts for that one alone. A folder of other sizes than the paper's is refused.

What tables share is done once; what is done is skipped, and refused if made with other settings;
what was stopped goes on. The result is <workdir>/index.html with all tables (also Markdown and
CSV), figures (PNG and SVG) and the papers' claims; each network's own run, with its report, is in
<workdir>/runs.
"""

import argparse
import ast
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from launch import terminal
from launch.main import add_job_flags, check_job_flags, join_job, start_jax
from launch.reproduce import grid, published, sets
from launch.reproduce.collect import collect
from launch.reproduce.estimate import show_plan
from launch.reproduce.plan import Job, PlanItem, commands, is_done, plan
from launch.reproduce.runner import run_all
from saat_jax import parallel
from saat_jax.options import check_numbers


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    ids = [*dict.fromkeys(row.table_id for row in published.load_published()), *grid.FIGURES]
    parser = terminal.make_parser("reproduce", __doc__)
    add = parser.add_argument
    add("--table", action="append", required=True, help=f"one of {' '.join(ids)}, or all")
    add("--workdir", required=True, type=pathlib.Path, help="folder of the site and its runs")
    add("--scale", choices=("full", "small"), default="full", help="small is for a CPU")
    names = [*grid.DATASETS.values(), "small"]
    roots = [*names, *(":".join(own) for own in sets.PUBLISHED)]
    add("--root", action="append", default=[], help=f"SET=FOLDER of lists: {', '.join(names)}")
    add("--any-lists", action="store_true", help="take lists of other sizes than the papers'")
    add("--weights", type=pathlib.Path, help="folder of ImageNet's weights, such as vgg11.pth")
    add("--from-scratch", action="store_true", help="at full scale, do without such weights")
    add("--seeds", type=int, nargs="+", default=[0], help="one run of everything for each")
    add(
        "--set",
        action="append",
        default=[],
        help="NAME=VALUE in every config: pretrain.num_epochs=1",
    )
    add("--only", help="one run of the plan, for array jobs")
    add("--dry-run", action="store_true", help="show the plan and its cost")
    add("--commands", action="store_true", help="print one command for each network")
    add("--collect", action="store_true", help="only write the site from what is there")
    add("--teraflops", type=float, help="speed for the estimate; by default this machine's")
    add_job_flags(parser)
    options = parser.parse_args(argv)
    if unknown := [name for name in options.table if name not in (*ids, "all")]:
        parser.error(f"unknown table {unknown[0]!r}; expected one of {', '.join(ids)}, or all")
    if wrong := [pair for pair in options.root + options.set if "=" not in pair]:
        parser.error(f"expected NAME=VALUE, got {wrong[0]!r}")
    if absent := [pair for pair in options.root if pair.partition("=")[0] not in roots]:
        parser.error(f"--root {absent[0]} is of no known set; expected one of {', '.join(roots)}")
    if options.weights and options.from_scratch:
        parser.error("--weights and --from-scratch exclude each other")
    check_job_flags(parser, options)
    check_numbers("", teraflops=options.teraflops)
    for seed in options.seeds:
        check_numbers("--seeds", seed=seed)
    if options.workdir.exists() and not options.workdir.is_dir():
        parser.error(f"--workdir {options.workdir} is a file; name a folder")
    if lost := [pair for pair in options.root if not pathlib.Path(pair.split("=", 1)[1]).is_dir()]:
        parser.error(f"--root {lost[0]}: there is no such folder")
    options.table = ids if "all" in options.table else list(dict.fromkeys(options.table))
    return options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check(job: Job, planned: Sequence[PlanItem], *, from_scratch: bool) -> None:
    """Refuses what would measure something else than the papers do, without saying so."""
    models = {model for item in planned for model in item.models}
    absent = {f"{m.paper}:{m.dataset}" for m in models if not job.small and not job.root(m)}
    if absent:
        raise ValueError(
            f"no lists of {', '.join(sorted(absent))}; add --root NAME=FOLDER for each "
            "(saat-jax prepare makes them), or try --scale small"
        )
    if not (job.small or job.weights or from_scratch):
        raise ValueError(
            "the papers start from ImageNet's weights; name their folder by --weights (the head of "
            "configs/train_hash.py says how torchvision writes them), or say --from-scratch"
        )
    for model in models:
        job.sizes(model)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command, and plans, runs and collects as it says."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parse(argv)
    job = Job(
        workdir=options.workdir.absolute(),
        small=options.scale == "small",
        roots=dict(pair.split("=", 1) for pair in options.root),
        weights=options.weights,
        seeds=tuple(options.seeds),
        settings={k: _literal(v) for k, v in (pair.split("=", 1) for pair in options.set)},
        any_lists=options.any_lists,
    )
    rows = grid.rows_of(options.table)
    figures = [figure for name, figure in grid.FIGURES.items() if name in options.table]
    planned = plan(job, grid.needed(rows, figures))
    if options.only and options.only not in {item.run_name for item in planned}:
        raise ValueError(f"no run {options.only!r} in the plan; --commands lists them")
    if options.commands:
        print(commands(planned, argv))
        return 0
    start_jax("highest")
    join_job(options)
    if options.dry_run:
        print(show_plan(job, planned, teraflops=options.teraflops))
        return 0
    failed = []
    if options.collect:
        for item in planned:
            # Refuses what was made with other settings.
            is_done(job, item)
    else:
        _check(job, planned, from_scratch=options.from_scratch)
        failed = run_all(job, planned, options.only)
    # The first process alone writes, when all have done their part.
    parallel.wait_for_all("collect")
    if not options.only and jax.process_index() == 0:
        print(f"\nresult: {collect(job, rows, figures)}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
