r"""Makes the tables and figures of both papers, beside the published numbers.

    python -m launch.reproduce --table all --scale small --workdir runs/small
    python -m launch.reproduce --table saat:II --table saat:fig3 --workdir runs/paper \
        --root flickr25k=FOLDER --root nuswide=FOLDER --root coco=FOLDER --weights FOLDER
    ... --dry-run      shows what would be done, and what it would cost
    ... --commands     prints one command for each network, for a cluster's array jobs

What tables share is done once; what is done is skipped, and refused if made with other settings;
what was stopped goes on. The result is <workdir>/index.html with all tables (also Markdown and
CSV), figures (PNG and SVG) and the papers' claims; each network's own run, with its report, is in
<workdir>/runs.
"""

import argparse
import ast
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from launch.main import start_jax
from launch.reproduce import grid, panels, published, site
from launch.reproduce.grid import Measurement
from launch.reproduce.plan import (
    Config,
    Job,
    Stage,
    attacks_of,
    commands,
    cost,
    is_done,
    mark_done,
    plan,
    show_plan,
)
from saat_jax import reports
from saat_jax.pipeline import stages, tasks
from saat_jax.pipeline.run import Run, load_data


class Runner:
    """Runs stages one after the other, in this process.

    What the stages of a run share, its data above all, is made once.
    """

    def __init__(self, job: Job, planned: Sequence[Stage]):
        self.job = job
        self._planned = planned
        self._last: tuple[str, Run] | None = None
        self._data: tuple[str, Any] | None = None

    def __call__(self, stage: Stage) -> None:
        """Does a stage's work, unless it is done."""
        if stage.action == "transfer":
            tasks.transfer(self._transfer_run(stage))
            return
        run = self._run(stage)
        if stage.action == "train":
            stages.train_hash(run)
        elif stage.action == "harden":
            stages.harden(run, stage.form)
        else:
            tasks.judge(run, stage.form, stage.attacks)
            reports.write_report(run.workdir)

    def _run(self, stage: Stage) -> Run:
        if self._last is None or self._last[0] != stage.run:
            # A run compiles programs of its own: those of the last are in the way.
            self._last = None
            jax.clear_caches()
            own = [s for s in self._planned if s.run == stage.run]
            config = self.job.config(
                stage.models[0],
                stage.seed,
                forms=[s.form for s in own if s.action == "harden"],
                attacks=attacks_of(own),
            )
            self._last = stage.run, self._with_data(config, self.job.folder(stage.run))
        return self._last[1]

    def _transfer_run(self, stage: Stage) -> Run:
        config = self.job.config(stage.models[0], stage.seed, attacks=stage.attacks)
        config["task"] = "transfer"
        config["transfer"] = {
            "models": [
                f"{self.job.folder(self.job.run_name(model, stage.seed))}:pretrained"
                for model in stage.models
            ]
        }
        return self._with_data(config, self.job.folder(stage.run))

    def _with_data(self, config: Config, folder: pathlib.Path) -> Run:
        key = json.dumps([config["data"], config["seed"]])
        if self._data is None or self._data[0] != key:
            self._data = key, load_data(config)
        return Run(config, folder, self._data[1])


def value_of(job: Job, point: Measurement, seed: int) -> float | None:
    """A measured quantity in its printed unit; None if it is not there."""
    if point.target is not None:
        return _transferred_value(job, point, seed)
    path = record_of(job, point, seed)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    value = (record.get(point.section) or {} if point.section else record).get(point.quantity)
    return None if value is None else point.factor * value


def record_of(job: Job, point: Measurement, seed: int) -> pathlib.Path:
    """Where the record of a measurement is."""
    folder = job.folder(job.run_name(point.model, seed))
    return folder / "records" / point.form / f"{point.attack}.json"


def _transferred_value(job: Job, point: Measurement, seed: int) -> float | None:
    assert point.target is not None
    folder = job.folder(job.transfer_name(point.model, seed)) / "transfer"
    paths = sorted(folder.glob("*.json"))
    if point.attack != "benign":
        paths = [path for path in paths if path.stem == point.attack]
    if not paths:
        return None
    table = json.loads(paths[0].read_text())
    source, target = (
        f"{job.run_name(model, seed)}:pretrained" for model in (point.model, point.target)
    )

    def found(entries: dict[str, Any], name: str) -> Any:
        # By the end of the name: the folder may have moved.
        return next((v for k, v in entries.items() if pathlib.Path(k).name == name), None)

    row = table["benign"] if point.attack == "benign" else found(table["matrix"], source)
    value = found(row or {}, target)
    return None if value is None else point.factor * value


def collect(
    job: Job, rows: Sequence[published.Published], figures: Sequence[grid.Figure]
) -> pathlib.Path:
    """Writes the site from what has been measured so far; returns its index."""
    found = []
    for row in rows:
        point = grid.measurement(row)
        values = [value_of(job, point, seed) for seed in job.seeds]
        page = job.folder(job.run_name(point.model, job.seeds[0])) / "report.html"
        found.append(
            published.Cell(
                row,
                tuple(value for value in values if value is not None),
                str(page.relative_to(job.workdir)) if page.is_file() else "",
            )
        )
    folders = sorted(path.parent for path in (job.workdir / "runs").glob("*/report.html"))
    return site.write_site(
        job.workdir,
        found,
        [_drawn(job, figure) for figure in figures],
        provenance=_provenance(job),
        notes=_notes(job),
        runs={path.name: str((path / "report.html").relative_to(job.workdir)) for path in folders},
    )


def _drawn(job: Job, figure: grid.Figure) -> panels.Figure:
    """A figure with the records of its measurements, those of the first seed."""
    seed = job.seeds[0]
    found: list[Any] = []
    for panel in figure.panels:
        if panel.kind == "sweep":
            lines = {
                label: [(x, record_of(job, p, seed), p.quantity) for x, p in points]
                for label, points in panel.lines.items()
            }
            found.append(panels.SweepPanel(panel.title, panel.x_label, lines))
            continue
        records = {
            label: record_of(job, points[0][1], seed) for label, points in panel.lines.items()
        }
        if panel.kind in ("retrieval", "images"):
            pictures = {label: path.with_suffix(".npz") for label, path in records.items()}
            found.append(panels.ExamplePanel(panel.title, pictures, kind=panel.kind, top=panel.top))
        else:
            found.append(panels.CurvePanel(panel.title, panel.kind, records))
    return panels.Figure(figure.id, figure.title, found, figure.note)


def _commit() -> str:
    # Not the installed package's: the code that runs.
    here = pathlib.Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        git = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def _provenance(job: Job) -> dict[str, str]:
    devices = jax.devices()
    return {
        "protocol": "saat: MAP@5000, disjoint targets; prosgan: MAP of the whole database, "
        "uniform targets; both averaged over tied items",
        "scale": "small" if job.small else "full",
        "seeds": ", ".join(map(str, job.seeds)),
        "hardware": f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, jax {importlib.metadata.version('jax')}",
        "commit": _commit(),
        "settings": json.dumps(job.settings) if job.settings else "as in configs/reproduce.py",
    }


def _notes(job: Job) -> list[str]:
    if not job.small:
        return []
    data = job.roots.get("small", "the bundled digits")
    return [
        f"Small scale: {data} and narrow networks stand for all data sets and backbones. Measured "
        "and published numbers are of different data and cannot be compared; what can be seen "
        "here is the machinery, and the order of the attacks."
    ]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    ids = [*dict.fromkeys(row.table_id for row in published.load_published()), *grid.FIGURES]
    parser = argparse.ArgumentParser(
        prog="python -m launch.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--table", action="append", required=True, help=f"one of {' '.join(ids)}, or all")
    add("--workdir", required=True, type=pathlib.Path, help="folder of the site and its runs")
    add("--scale", choices=("full", "small"), default="full", help="small is for a CPU")
    sets = [*grid.DATASETS.values(), "small"]
    add("--root", action="append", default=[], help=f"SET=FOLDER of lists: {', '.join(sets)}")
    add("--weights", type=pathlib.Path, help="folder of pretrained weights, such as vgg11.pth")
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
    add("--teraflops", type=float, default=20.0, help="rate for the estimate, in TFLOP/s")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.table if name not in (*ids, "all")]:
        parser.error(f"unknown table {unknown[0]!r}; expected one of {', '.join(ids)}, or all")
    if wrong := [pair for pair in options.root + options.set if "=" not in pair]:
        parser.error(f"expected NAME=VALUE, got {wrong[0]!r}")
    if absent := [pair for pair in options.root if pair.partition("=")[0] not in sets]:
        parser.error(f"--root {absent[0]} is of no known set; expected one of {', '.join(sets)}")
    options.table = ids if "all" in options.table else list(dict.fromkeys(options.table))
    return options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check_roots(job: Job, planned: Sequence[Stage]) -> None:
    absent = {m.dataset for s in planned for m in s.models} - set(job.roots)
    if absent and not job.small:
        raise ValueError(
            f"no lists of {', '.join(sorted(absent))}; add --root NAME=FOLDER for each "
            "(python -m launch.prepare makes them), or try --scale small"
        )


def run_all(job: Job, planned: Sequence[Stage], only: str | None) -> list[str]:
    """Runs the stages that are not done; returns what failed, in words."""
    mine = [stage for stage in planned if only in (None, stage.run)]
    todo = [stage for stage in mine if not is_done(job, stage)]
    weights = {stage.title: cost(job, stage) for stage in todo}
    failed: dict[tuple[str, str], str] = {}
    runner, start, spent = Runner(job, planned), time.monotonic(), 0.0
    print(f"{len(mine)} stages, {len(mine) - len(todo)} of them done")
    for number, stage in enumerate(todo, 1):
        past = time.monotonic() - start
        rest = past * (sum(weights.values()) - spent) / spent if spent else 0
        times = f"{past / 60:.0f} min, about {rest / 60:.0f} left"
        print(f"\n[{number}/{len(todo)}] {stage.title}; {times}")
        needed = {(job.run_name(model, stage.seed), "pretrained") for model in stage.models}
        # A model that others need, or records.
        made = stage.form if stage.action in ("train", "harden") else stage.title
        try:
            if broken := failed.keys() & {*needed, (stage.run, stage.form)}:
                raise ValueError(f"{' '.join(min(broken))} failed")
            runner(stage)
            mark_done(job, stage)
        # Out of memory is a RuntimeError.
        except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
            failed[stage.run, made] = f"{stage.title}: {type(error).__name__}: {error}"
            print(failed[stage.run, made], file=sys.stderr)
        spent += weights[stage.title]
    return list(failed.values())


def main(argv: Sequence[str]) -> int:
    """Parses the command, and plans, runs and collects as it says."""
    options = _parse(argv)
    job = Job(
        workdir=options.workdir.absolute(),
        small=options.scale == "small",
        roots=dict(pair.split("=", 1) for pair in options.root),
        weights=options.weights,
        seeds=tuple(options.seeds),
        settings={k: _literal(v) for k, v in (pair.split("=", 1) for pair in options.set)},
    )
    rows = grid.rows_of(options.table)
    figures = [figure for name, figure in grid.FIGURES.items() if name in options.table]
    planned = plan(job, grid.needed(rows, figures))
    if options.only and options.only not in {stage.run for stage in planned}:
        raise ValueError(f"no run {options.only!r} in the plan; --commands lists them")
    if options.commands:
        print(commands(planned, argv))
        return 0
    start_jax("highest")
    if options.dry_run:
        print(show_plan(job, planned, teraflops=options.teraflops))
        return 0
    failed = []
    if options.collect:
        for stage in planned:
            # Refuses what was made with other settings.
            is_done(job, stage)
    else:
        _check_roots(job, planned)
        failed = run_all(job, planned, options.only)
    if not options.only:
        print(f"\nresult: {collect(job, rows, figures)}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, ArithmeticError, ModuleNotFoundError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
