"""The report site: tables and figures of both papers beside ours, as files linked by an index.

Works from the file system: relative links, no script, no network.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.reproduce import grid, panels, published
from launch.reproduce.claims import Claim, Point, Tally, check_claims
from launch.reproduce.panels import Drawing
from launch.reproduce.published import Cell, Table
from launch.reproduce.statements import run_noise
from saat_jax import files
from saat_jax.reports import gallery
from saat_jax.reports.page import MINUS, environment

_CLAIMS = "Claims of the papers"


def write_site(
    folder: str | os.PathLike[str],
    cells: Sequence[Cell],
    drawings: Sequence[Drawing],
    points: Sequence[Point] = (),
    *,
    stand_in: str = "",
    provenance: Mapping[str, str],
    notes: Sequence[str] = (),
    runs: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes `index.html` and what it links: `tables/`, `figures/`, `claims.html`.

    A table is written as HTML, Markdown and CSV, a figure as HTML, PNG and SVG. Equal input
    gives equal bytes; each file is replaced whole.

    Args:
        folder: where the site goes.
        cells: the published figures of the tables to show, those not yet run included.
        drawings: the figures to show.
        points: those of the figures that claims are about.
        stand_in: name of the set that stands for all of the papers', if one does: it is shown
            once, without the published figures, which are of others.
        provenance: what made our values, by name; printed on every page.
        notes: warnings in a sentence each; printed at the top of every page.
        runs: path of a run's report, relative to `folder`, by its title.

    Returns:
        The path of the index.

    Raises:
        ValueError: if two cells are of the same published figure, or a record is broken.
    """
    site = _Site(pathlib.Path(folder), provenance, notes)
    tables = published.make_tables(published.as_stand_in(cells, stand_in) if stand_in else cells)
    claims = check_claims(cells, points, one_set=bool(stand_in))
    for table in tables:
        site.write_table(table, stand_in)
    shown = [site.write_figure(drawing) for drawing in drawings]
    site.write_claims(claims, stand_in)
    measured, wanted = (
        {grid.source(grid.measurement(cell.row), one_set=bool(stand_in)) for cell in part}
        for part in ([cell for cell in cells if cell.values], cells)
    )
    verdicts = [claim.ours.verdict for claim in claims]
    known = len(claims) - verdicts.count("not run")
    words = [f"of {known} checked", f"{len(claims)} in all"]
    if noisy := verdicts.count("within noise"):
        words.insert(1, f"{noisy} within noise")
    tiles = [
        (
            "Numbers measured",
            f"{len(measured):,}",
            f"of {len(wanted):,} distinct ones, for {len(cells):,} published",
        ),
        ("Claims that hold", str(verdicts.count("holds")), ", ".join(words)),
    ]
    if not stand_in:
        remark = "of MAP and t-MAP, absolute, in points"
        tiles.append(("Mean difference", _mean_gap(cells), remark))
    return site.write_page(
        "index",
        "index.html",
        "Both papers, reproduced",
        tiles=tiles,
        stand_in=stand_in,
        tables=[
            (
                table.title,
                f"tables/{_file_name(table.table_id)}",
                f"{sum(bool(cell.values) for cell in table.cells)} of {len(table.cells)}",
                _mean_gap(table.cells),
            )
            for table in tables
        ],
        figures=[
            (_figure_title(drawing), f"figures/{_file_name(drawing.id)}", is_shown)
            for drawing, is_shown in zip(drawings, shown, strict=True)
        ],
        claims=claims,
        runs=runs or {},
    )


class _Site:
    """A folder of pages that share provenance and warnings."""

    def __init__(
        self, folder: pathlib.Path, provenance: Mapping[str, str], notes: Sequence[str]
    ) -> None:
        self.folder = folder
        self.provenance = provenance
        self.notes = notes
        self._templates = environment(__package__)

    def write_page(self, name: str, template: str, title: str, **values: Any) -> pathlib.Path:
        """Fills a template; `name` is the page's path in the folder, without its ending."""
        path = self.folder / f"{name}.html"
        page = self._templates.get_template(template).render(
            title=title,
            name=path.stem,
            up="../" * name.count("/"),
            provenance=self.provenance,
            notes=self.notes,
            minus=MINUS,
            **values,
        )
        files.write_bytes(path, page.encode())
        return path

    def write_markdown(self, name: str, title: str, parts: Sequence[str]) -> None:
        facts = "".join(f"- {name}: {value}\n" for name, value in self.provenance.items())
        warnings = [f"**{note}**\n" for note in self.notes]
        text = "\n".join([f"# {title}\n", *warnings, *parts, *filter(None, [facts])])
        files.write_bytes(self.folder / f"{name}.md", text.encode())

    def write_table(self, table: Table, stand_in: str) -> None:
        name = f"tables/{_file_name(table.table_id)}"
        beside = "." if stand_in else " (published, ours minus published)."
        parts = [f"{table.note}\n", f"In each cell: ours{beside}\n", published.to_markdown(table)]
        self.write_markdown(name, table.title, parts)
        files.write_bytes(self.folder / f"{name}.csv", published.to_csv(table).encode())
        # The upper of two levels of heads.
        upper = [column[0] if len(column) > 1 else "" for column in table.columns]
        self.write_page(
            name,
            "table.html",
            table.title,
            note=table.note,
            kinds=("md", "csv"),
            table=table,
            stand_in=stand_in,
            groups=[(head, len(list(group))) for head, group in itertools.groupby(upper)],
            starts=[False, *(one != other for one, other in itertools.pairwise(upper))],
        )

    def write_figure(self, drawing: Drawing) -> bool:
        """Writes a figure's files; tells whether there is anything to see yet."""
        name = f"figures/{_file_name(drawing.id)}"
        blocks = panels.make_blocks(drawing)
        for ending, theme in ((".png", "light"), ("_dark.png", "dark"), (".svg", "light")):
            if blocks:
                content = panels.draw(blocks, theme=theme, kind=ending[-3:])
                files.write_bytes(self.folder / f"{name}{ending}", content)
        self.write_page(
            name,
            "figure.html",
            _figure_title(drawing),
            note=drawing.note,
            kinds=("png", "svg") if blocks else (),
            parts=[
                {
                    "title": block.title,
                    "description": block.description,
                    "is_wide": panels.is_wide(block),
                    **{
                        theme: gallery.address(panels.draw([block], theme=theme, titles=False))
                        for theme in ("dark", "light")
                    },
                }
                for block in blocks
            ],
            has_marks=any(getattr(panel, "kind", None) == "retrieval" for panel in drawing.panels),
        )
        return bool(blocks)

    def write_claims(self, claims: Sequence[Claim], stand_in: str) -> None:
        tables = "tables (other sets)" if stand_in else "tables"
        heads = ["claim", "here", "cells", "ours", tables, "text", "queries"]
        papers: dict[str, list[tuple[Claim, list[tuple[str, str]]]]] = {}
        for claim in claims:
            papers.setdefault(claim.paper, []).append((claim, _claim_cells(claim)))
        rules = _rules()
        parts = ["".join(f"- {rule}\n" for rule in rules)]
        for paper, lines in papers.items():
            rows = [
                [f"{c.statement} ({c.criterion})", *("; ".join(filter(None, cell)) for cell in own)]
                for c, own in lines
            ]
            parts.append(f"## {paper}\n\n{published.markdown_rows([heads, *rows])}")
        self.write_markdown("claims", _CLAIMS, parts)
        values = {"note": "", "rules": rules, "kinds": ["md"], "heads": heads}
        self.write_page("claims", "claims.html", _CLAIMS, papers=papers, **values)


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _figure_title(drawing: Drawing) -> str:
    paper, number = drawing.id.split(":")
    name = {"saat": "SAAT", "prosgan": "ProS-GAN"}.get(paper, paper)
    return f"{name}, Figure {number.removeprefix('fig')}: {drawing.title}"


def _rules() -> list[str]:
    """How claims are counted, in sentences."""
    noise = run_noise()
    means = " and ".join(f"{mean:.2f} ({name})" for name, (mean, _) in noise.items())
    most = max(most for _, most in noise.values())
    return [
        "A claim is about cells of the papers' tables. It holds if every cell does; where the "
        "paper gives means, if the means do. Cells that are one measurement count once.",
        "Of several seeds, a gap counts if its mean is farther from the bound than twice its "
        "standard error; else it is within noise. One seed does not know its noise.",
        "The papers' own noise is a yardstick: Tables III and IV of SAAT print the MAP of the same "
        f"benign queries after two trainings, in the mean {means} points apart, at most "
        f"{most:.2f}. Clear are gaps of more than that; close is what is no farther apart.",
        "Ours and tables: the measure, from our numbers and from the published ones. Text: what "
        "the paper's text states, which can differ a little from its tables. Where it states no "
        "figure, the claim says in words what a table or figure is there to show; where the "
        "paper's own tables contradict it, the claim says so.",
    ]


def _claim_cells(claim: Claim) -> list[tuple[str, str]]:
    """The verdict and what follows it on the page: texts, each with a remark or none."""
    ours = claim.ours
    remarks = [
        f"{ours.num_clear} clearly" if ours.num_clear is not None else "",
        f"{ours.num_missing} not run" if ours.num_known and ours.num_missing else "",
    ]
    return [
        (ours.verdict, ""),
        (_count(ours), ", ".join(filter(None, remarks))),
        (_figures(ours), ""),
        (_figures(claim.published), _count(claim.published).strip("-")),
        (claim.printed or "-", ""),
        (", ".join(f"{count:,}" for count in claim.num_queries) or "-", ""),
    ]


def _count(tally: Tally) -> str:
    return f"{tally.num_held} of {tally.num_known}" if tally.num_known else "-"


def _figures(tally: Tally) -> str:
    spreads = [f" ±{spread:,.2f}" for spread in tally.spreads] or [""] * len(tally.figures)
    pairs = zip(tally.figures, spreads, strict=True)
    return ", ".join(f"{figure:,.2f}{spread}" for figure, spread in pairs) or "-"


def _mean_gap(cells: Sequence[Cell]) -> str:
    gaps = [
        abs(cell.difference)
        for cell in cells
        if cell.difference is not None and "MAP" in cell.row.metric
    ]
    return f"{sum(gaps) / len(gaps):.2f}" if gaps else "-"
