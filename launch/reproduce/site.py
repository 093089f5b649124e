"""The report site: tables and figures of both papers beside ours, as files linked by an index.

Works from the file system: relative links, no script, no network.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.reproduce import panels, published
from launch.reproduce.claims import Claim, check_claims
from launch.reproduce.panels import Drawing
from launch.reproduce.published import Cell, Table
from saat_jax import files
from saat_jax.reports import gallery
from saat_jax.reports.page import MINUS, environment

_HOLDS = {True: "holds", False: "does not hold", None: "not run"}
_CLAIMS = "Claims of the papers"


def write_site(
    folder: str | os.PathLike[str],
    cells: Sequence[Cell],
    drawings: Sequence[Drawing],
    *,
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
        provenance: what made our values, by name; printed on every page.
        notes: warnings in a sentence each; printed at the top of every page.
        runs: path of a run's report, relative to `folder`, by its title.

    Returns:
        The path of the index.

    Raises:
        ValueError: if two cells are of the same published figure, or a record is broken.
    """
    site = _Site(pathlib.Path(folder), provenance, notes)
    tables = published.make_tables(cells)
    claims = check_claims(cells)
    for table in tables:
        site.write_table(table)
    shown = [site.write_figure(drawing) for drawing in drawings]
    site.write_claims(claims)
    placed = [cell for table in tables for cell in table.cells]
    known = [claim.holds for claim in claims if claim.holds is not None]
    return site.write_page(
        "index",
        "index.html",
        "Both papers, reproduced",
        tiles=[
            ("Numbers measured", f"{_filled(placed):,}", f"of {len(placed):,} published ones"),
            ("Claims that hold", sum(known), f"of {len(known)} checked, {len(claims)} in all"),
            ("Mean difference", _mean_gap(placed), "of MAP and t-MAP, absolute, in points"),
        ],
        tables=[
            (
                table.title,
                f"tables/{_file_name(table.table_id)}",
                f"{_filled(table.cells)} of {len(table.cells)}",
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

    def write_table(self, table: Table) -> None:
        name = f"tables/{_file_name(table.table_id)}"
        reading = "In each cell: ours (published, ours minus published).\n"
        parts = [f"{table.note}\n", reading, published.to_markdown(table)]
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

    def write_claims(self, claims: Sequence[Claim]) -> None:
        heads = ["claim", "here", "ours", "table", "text", "holds if"]
        papers: dict[str, list[tuple[Claim, list[str]]]] = {}
        for claim in claims:
            papers.setdefault(claim.paper, []).append((claim, _claim_numbers(claim)))
        note = (
            "Ours and table: the measure, computed from our tables and from the published ones. "
            "Text: what the paper's text states, which can differ a little from its own tables."
        )
        parts = [f"{note}\n"]
        for paper, lines in papers.items():
            rows = [[f"{c.statement} ({c.measure})", _HOLDS[c.holds], *own] for c, own in lines]
            parts.append(f"## {paper}\n\n{published.markdown_rows([heads, *rows])}")
        self.write_markdown("claims", _CLAIMS, parts)
        values = {"note": note, "kinds": ["md"], "heads": heads, "papers": papers}
        self.write_page("claims", "claims.html", _CLAIMS, **values)


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _figure_title(drawing: Drawing) -> str:
    paper, number = drawing.id.split(":")
    name = {"saat": "SAAT", "prosgan": "ProS-GAN"}.get(paper, paper)
    return f"{name}, Figure {number.removeprefix('fig')}: {drawing.title}"


def _claim_numbers(claim: Claim) -> list[str]:
    """Ours, that of the table, that of the text, and when the claim holds."""
    figures = (
        " and ".join(f"{value:,.2f}" for value in values) or "-"
        for values in (claim.ours, claim.published)
    )
    return [*figures, claim.printed, claim.criterion]


def _filled(cells: Sequence[Cell]) -> int:
    return sum(bool(cell.values) for cell in cells)


def _mean_gap(cells: Sequence[Cell]) -> str:
    gaps = [
        abs(cell.difference)
        for cell in cells
        if cell.difference is not None and "MAP" in cell.row.metric
    ]
    return f"{sum(gaps) / len(gaps):.2f}" if gaps else "-"
