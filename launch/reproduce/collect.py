"""From the records of all runs to the site: each published number beside its measured one."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from launch.reproduce import claims, grid, panels, published, sets, site
from launch.reproduce.grid import GridModel, Measurement
from launch.reproduce.plan import Job
from saat_jax import files, options


def value_of(job: Job, point: Measurement, seed: int) -> float | None:
    """A measured quantity in its printed unit; None if it is not there."""
    if point.target is not None:
        return _transferred_value(job, point, seed)
    path = record_of(job, point, seed)
    if not path.is_file():
        return None
    record = files.read_json(path)
    section = record.get(point.section) or {} if point.section else record
    return _number(path, point, section)


def _number(
    path: pathlib.Path, point: Measurement, entries: Any, name: str | None = None
) -> float | None:
    """An entry of a file in its printed unit; None if it is not there."""
    name = name or point.quantity
    value = entries.get(name) if isinstance(entries, dict) else entries
    if value is None:
        return None
    if problem := options.Range().problem(value):
        raise ValueError(f"{path}: {name} {problem}; delete the file and give the command again")
    return float(point.factor * value)


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
    table = files.read_json(paths[0], fields={"benign": dict, "matrix": dict})
    source, target = (
        f"{job.run_name(model, seed)}:pretrained" for model in (point.model, point.target)
    )

    def found(entries: dict[str, Any], name: str) -> Any:
        # By the end of the name: the folder may have moved.
        return next((v for k, v in entries.items() if pathlib.Path(k).name == name), None)

    row = table["benign"] if point.attack == "benign" else found(table["matrix"], source)
    return _number(paths[0], point, {target: found(row or {}, target)}, target)


def collect(
    job: Job, rows: Sequence[published.Published], figures: Sequence[grid.FigureSpec]
) -> pathlib.Path:
    """Writes the site from what has been measured so far; returns its index."""
    found = []
    models = {point.model: None for point in grid.needed(rows, figures)}
    num_queries = {model: job.sizes(model).query for model in models}

    def values_of(point: Measurement) -> tuple[float, ...]:
        values = (value_of(job, point, seed) for seed in job.seeds)
        return tuple(value for value in values if value is not None)

    for row in rows:
        point = grid.measurement(row)
        page = job.folder(job.run_name(point.model, job.seeds[0])) / "report.html"
        found.append(
            published.Cell(
                row,
                values_of(point),
                str(page.relative_to(job.workdir)) if page.is_file() else "",
                num_queries[point.model],
            )
        )
    sweeps = [panel for figure in figures for panel in figure.panels if panel.kind == "sweep"]
    lines = [line for panel in sweeps for line in panel.lines.values()]
    points = [
        claims.Point(point, values_of(point), num_queries[point.model])
        for line in lines
        for _, point in line
    ]
    folders = sorted(path.parent for path in (job.workdir / "runs").glob("*/report.html"))
    return site.write_site(
        job.workdir,
        found,
        [_drawn(job, figure) for figure in figures],
        points,
        stand_in=_stand_in(job),
        provenance=_provenance(job, models),
        notes=[*_notes(job), *set_notes(job, models)],
        runs={path.name: str((path / "report.html").relative_to(job.workdir)) for path in folders},
    )


def _stand_in(job: Job) -> str:
    """The name of the set that stands for all; empty at full scale."""
    return pathlib.Path(job.roots.get("small", "digits")).name if job.small else ""


def _drawn(job: Job, figure: grid.FigureSpec) -> panels.Drawing:
    """A figure with the records of its measurements, those of the first seed.

    What one set stands for is shown once, under that set's name.
    """

    def named(title: str) -> str:
        for dataset in grid.DATASETS if job.small else ():
            title = title.replace(dataset, _stand_in(job))
        return title

    seed = job.seeds[0]
    found: list[Any] = []
    for panel in figure.panels:
        if panel.kind == "sweep":
            lines = {
                label: [(x, record_of(job, p, seed), p.quantity) for x, p in points]
                for label, points in panel.lines.items()
            }
            found.append(panels.SweepPanel(named(panel.title), panel.x_label, lines))
            continue
        records = {
            label: record_of(job, points[0][1], seed) for label, points in panel.lines.items()
        }
        if panel.kind in ("retrieval", "images"):
            pictures = {label: path.with_suffix(".npz") for label, path in records.items()}
            found.append(
                panels.ExamplePanel(named(panel.title), pictures, kind=panel.kind, top=panel.top)
            )
        else:
            found.append(panels.CurvePanel(named(panel.title), panel.kind, records))
    once = [panel for i, panel in enumerate(found) if panel not in found[:i]]
    return panels.Drawing(figure.id, named(figure.title), once, figure.note)


def _commit() -> str:
    # Not the installed package's: the code that runs.
    here = pathlib.Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        git = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def _provenance(job: Job, models: Iterable[GridModel]) -> dict[str, str]:
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
        **_data(job, models),
    }


def _data(job: Job, models: Iterable[GridModel]) -> dict[str, str]:
    """What the networks were trained and judged on, by paper and set."""
    if job.small:
        model = next(iter(models))
        return {"data": f"{job.root(model) or 'the bundled digits'}: {job.sizes(model)}"}
    known = {f"{m.paper}, {m.dataset}": m for m in models if job.root(m)}
    weights = str(job.weights) if job.weights else "none: networks start from random numbers"
    return {"weights": weights, **{name: str(job.sizes(m)) for name, m in known.items()}}


def set_notes(job: Job, models: Iterable[GridModel]) -> list[str]:
    """Warnings of sets that are not as the papers have them."""
    known = {(m.paper, m.dataset): m for m in models if job.root(m) and not job.small}
    found = {place: sets.difference(*place, job.sizes(model)) for place, model in known.items()}
    return [
        f"The lists of {dataset} are not those of {paper}: they have {other}."
        for (paper, dataset), other in found.items()
        if other
    ]


def _notes(job: Job) -> list[str]:
    if not job.small:
        return []
    data = job.roots.get("small", "the bundled digits")
    return [
        f"Small scale: {data} and narrow networks stand for all data sets and backbones. The "
        "published numbers are of other data and cannot be compared; what can be seen here is the "
        "machinery, and the order of the attacks."
    ]
