"""The report site: tables and figures of both papers beside ours, as files linked by an index.

Works from the file system: relative links, no script, no network.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from launch.reproduce import panels, published
from launch.reproduce.claims import Claim, check_claims
from launch.reproduce.panels import Figure
from launch.reproduce.published import Cell, Table
from saat_jax import files
from saat_jax.reports import markup, results
from saat_jax.reports.style import CSS, SITE_CSS

_HOLDS = {True: "holds", False: "does not hold", None: "not run"}
_MARKS = {
    True: '<span class="mark yes">&#10003; holds</span>',
    False: '<span class="mark no">&#10007; does not hold</span>',
    None: '<span class="mark open">not run</span>',
}
_READING = (
    "In each cell, from the top: ours, its standard deviation where several seeds were run, the "
    "published figure, and ours minus the published. Units as in the paper: percent, unless "
    "the metric says otherwise."
)

_FRAMES = (
    "Left: the query. Then what it retrieves first: with a tick, the item carries a label of the "
    "query, or of the target for a targeted attack; with a cross, it does not."
)


def write_site(
    folder: str | os.PathLike[str],
    cells: Sequence[Cell],
    figures: Sequence[Figure],
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
        figures: the figures to show.
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
    shown = {figure.id: site.write_figure(figure) for figure in figures}
    site.write_claims(claims)
    sections = [
        _index_header(tables, claims, site.warnings),
        _index_tables(tables),
        _index_figures(figures, shown),
        _index_claims(claims),
        _index_runs(runs or {}),
    ]
    path = site.folder / "index.html"
    site.write_page(path, "Both papers, reproduced", "\n".join(filter(None, sections)))
    return path


class _Site:
    """A folder of pages that share provenance and warnings."""

    def __init__(
        self, folder: pathlib.Path, provenance: Mapping[str, str], notes: Sequence[str]
    ) -> None:
        self.folder = folder
        self.provenance = provenance
        self.notes = notes
        self.warnings = "".join(f'<p class="warning">{markup.text(note)}</p>\n' for note in notes)

    def write_page(self, path: pathlib.Path, title: str, body: str) -> None:
        facts = "".join(
            f"<dt>{markup.text(name)}</dt><dd>{markup.text(value)}</dd>"
            for name, value in self.provenance.items()
        )
        body += f'\n<section>\n<h2>How this was made</h2>\n<dl class="facts">{facts}</dl></section>'
        # A page opened as a file is not of the same origin as its images.
        page = markup.document(title, body, style=CSS + SITE_CSS, images="data: 'self' file:")
        files.write_bytes(path, page.encode())

    def header(self, title: str, note: str, *, up: int, more: str = "") -> str:
        return (
            f"<nav>{markup.link('index.html', 'All tables and figures', up=up)}</nav>\n"
            f"<h1>{markup.text(title)}</h1>\n{self.warnings}"
            + (f"<p>{markup.text(note)}</p>\n" if note else "")
            + more
        )

    def write_markdown(self, path: pathlib.Path, title: str, parts: Sequence[str]) -> None:
        facts = "".join(f"- {name}: {value}\n" for name, value in self.provenance.items())
        warnings = [f"**{note}**\n" for note in self.notes]
        files.write_bytes(
            path, "\n".join([f"# {title}\n", *warnings, *parts, *filter(None, [facts])]).encode()
        )

    def write_table(self, table: Table) -> None:
        path = self.folder / "tables" / _file_name(table.table_id)
        self.write_markdown(
            path.with_suffix(".md"),
            table.title,
            [
                f"{table.note}\n",
                "In each cell: ours (published, ours minus published).\n",
                published.to_markdown(table),
            ],
        )
        files.write_bytes(path.with_suffix(".csv"), published.to_csv(table).encode())
        links = _links(path.name, ("md", "csv"))
        body = self.header(table.title, table.note, up=1, more=links) + _table(table)
        self.write_page(path.with_suffix(".html"), table.title, body)

    def write_figure(self, figure: Figure) -> bool:
        """Writes a figure's files; tells whether there is anything to see yet."""
        path = self.folder / "figures" / _file_name(figure.id)
        title = _figure_title(figure)
        blocks = panels.make_blocks(figure)
        body = "<p>Not run yet.</p>\n"
        links = ""
        if blocks:
            for suffix, theme, kind in (
                (".png", "light", "png"),
                ("_dark.png", "dark", "png"),
                (".svg", "light", "svg"),
            ):
                content = panels.draw(blocks, theme=theme, kind=kind)
                files.write_bytes(path.with_name(path.name + suffix), content)
            links = _links(path.name, ("png", "svg"))
            parts = [_figure_part(block) for block in blocks]
            body = f'<div class="charts">\n{"".join(parts)}</div>\n'
            if any(getattr(panel, "kind", None) == "retrieval" for panel in figure.panels):
                body += f'<p class="note">{_FRAMES}</p>'
        body = self.header(title, figure.note, up=1, more=links) + body
        self.write_page(path.with_suffix(".html"), title, body)
        return bool(blocks)

    def write_claims(self, claims: Sequence[Claim]) -> None:
        title = "Claims of the papers"
        heads = ["claim", "here", "ours", "table", "text", "holds if"]
        head = '<th scope="col">claim</th><th scope="col" class="word">here</th>'
        head += "".join(f'<th scope="col">{name}</th>' for name in heads[2:])
        parts, body = [], ""
        for paper in dict.fromkeys(claim.paper for claim in claims):
            own = [claim for claim in claims if claim.paper == paper]
            lines = [
                [f"{c.statement} ({c.measure})", _HOLDS[c.holds], *_claim_numbers(c)] for c in own
            ]
            parts.append(f"## {paper}\n\n{published.markdown_rows([heads, *lines])}")
            body += (
                f'<tbody><tr><th scope="rowgroup" colspan="{len(heads)}">{paper}</th></tr>\n'
                + "".join(_claim_row(c.statement, c, _claim_numbers(c)) for c in own)
                + "</tbody>\n"
            )
        note = (
            "Ours and table: the measure, computed from our tables and from the published ones. "
            "Text: what the paper's text states, which can differ a little from its own tables."
        )
        self.write_markdown(self.folder / "claims.md", title, [f"{note}\n", *parts])
        links = _links("claims", ("md",))
        table = markup.frame("", head, body, style="list claims")
        page = self.header(title, note, up=0, more=links) + table
        self.write_page(self.folder / "claims.html", title, page)


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _links(name: str, kinds: Sequence[str]) -> str:
    words = {"md": "Markdown", "csv": "CSV", "png": "PNG", "svg": "SVG"}
    links = "".join(markup.link(f"{name}.{kind}", words[kind]) for kind in kinds)
    return f'<p class="files">{links}</p>\n'


def _claim_numbers(claim: Claim) -> list[str]:
    ours, table = (
        " and ".join(f"{value:,.2f}" for value in values) or "-"
        for values in (claim.ours, claim.published)
    )
    return [ours, table, claim.printed, claim.criterion]


def _claim_row(statement: str, claim: Claim, numbers: Sequence[str] = ()) -> str:
    measure = f"<span>{markup.text(claim.measure)}</span>" if numbers else ""
    return (
        f'<tr><th scope="row">{markup.text(statement)}{measure}</th>'
        f'<td class="word">{_MARKS[claim.holds]}</td>'
        + "".join(f"<td>{markup.text(number)}</td>" for number in numbers)
        + "</tr>\n"
    )


def _table(table: Table) -> str:
    """Lays a table out, every cell with ours, the published figure and the difference."""
    heads = table.columns
    two_levels = len(heads[0]) > 1
    starts = {i for i in range(1, len(heads)) if two_levels and heads[i][0] != heads[i - 1][0]}
    first = [' class="first"' if i in starts else "" for i in range(len(heads))]
    head = ""
    if two_levels:
        bounds = [0, *sorted(starts), len(heads)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            name = markup.text(heads[start][0])
            head += f'<th scope="colgroup" colspan="{end - start}"{first[start]}>{name}</th>'
        head = f"<td></td>{head}</tr>\n<tr>"
    head += "<td></td>" + "".join(
        f'<th scope="col"{style}>{markup.text(column[-1])}</th>'
        for column, style in zip(heads, first, strict=True)
    )
    body = ""
    for group, lines in table.groups.items():
        body += "<tbody>"
        if group:
            body += (
                f'<tr><th scope="rowgroup" colspan="{len(heads) + 1}">'
                f"<span>{markup.text(group)}</span></th></tr>\n"
            )
        for label, cells in lines.items():
            body += f'<tr><th scope="row">{markup.text(label)}</th>' + "".join(
                f"<td{style}>{_cell(cell)}</td>" for cell, style in zip(cells, first, strict=True)
            )
            body += "</tr>\n"
        body += "</tbody>\n"
    return markup.frame(_READING, head, body, style="published")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    ours, spread, value, gap = cell.shown
    if cell.page and cell.values:
        ours = markup.link(cell.page, ours, up=1)
    gap = gap.replace("-", results.MINUS) if cell.values else ""
    small = "".join(f"<span>{line}</span>" for line in (spread, value, gap) if line)
    return f"<b>{ours}</b>{small}"


def _figure_part(block: panels.Block) -> str:
    dark, light = (
        markup.data_uri("image/png", panels.draw([block], theme=theme, titles=False))
        for theme in ("dark", "light")
    )
    style = ' class="roomy" tabindex="0"' if panels.is_wide(block) else ""
    return (
        f"<figure{style}><figcaption>{markup.text(block.title)}</figcaption>"
        + markup.themed(dark, light, block.description)
        + "</figure>\n"
    )


def _figure_title(figure: Figure) -> str:
    paper, number = figure.id.split(":")
    name = {"saat": "SAAT", "prosgan": "ProS-GAN"}.get(paper, paper)
    return f"{name}, Figure {number.removeprefix('fig')}: {figure.title}"


def _index_header(tables: Sequence[Table], claims: Sequence[Claim], warnings: str) -> str:
    cells = [cell for table in tables for cell in table.cells]
    filled = sum(bool(cell.values) for cell in cells)
    known = [claim.holds for claim in claims if claim.holds is not None]
    tiles = [
        ("Numbers measured", f"{filled:,}", f"of {len(cells):,} published ones"),
        ("Claims that hold", str(sum(known)), f"of {len(known)} checked, {len(claims)} in all"),
        ("Mean difference", _mean_gap(cells), "of MAP and t-MAP, absolute, in points"),
    ]
    shown = "".join(
        f'<div><dt>{title}</dt><dd class="value">{value}</dd><dd>{note}</dd></div>'
        for title, value, note in tiles
    )
    return (
        '<header>\n<p class="kicker">SAAT and ProS-GAN: published and measured</p>\n'
        f"<h1>Tables and figures of both papers</h1>\n{warnings}"
        f'<dl class="tiles">{shown}</dl>\n</header>'
    )


def _mean_gap(cells: Sequence[Cell]) -> str:
    gaps = [
        abs(cell.difference)
        for cell in cells
        if cell.difference is not None and "MAP" in cell.row.metric
    ]
    return f"{sum(gaps) / len(gaps):.2f}" if gaps else "-"


def _index_tables(tables: Sequence[Table]) -> str:
    if not tables:
        return ""
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("table", "measured", "difference", "files")
    )
    body = ""
    for table in tables:
        path = f"tables/{_file_name(table.table_id)}"
        filled = sum(bool(cell.values) for cell in table.cells)
        body += (
            f'<tr><th scope="row">{markup.link(f"{path}.html", markup.text(table.title))}</th>'
            f"<td>{filled} of {len(table.cells)}</td><td>{_mean_gap(table.cells)}</td>"
            f'<td class="files">{markup.link(f"{path}.md", "MD")}'
            f"{markup.link(f'{path}.csv', 'CSV')}</td></tr>\n"
        )
    caption = "Difference: mean absolute difference of MAP and t-MAP from the published, in points."
    shown = markup.frame(caption, heads, f"<tbody>{body}</tbody>", style="list")
    return f"<section>\n<h2>Tables</h2>\n{shown}</section>"


def _index_figures(figures: Sequence[Figure], shown: Mapping[str, bool]) -> str:
    if not figures:
        return ""
    body = ""
    for figure in figures:
        path = f"figures/{_file_name(figure.id)}"
        title = markup.text(_figure_title(figure))
        image = (
            markup.themed(f"{path}_dark.png", f"{path}.png", "")
            if shown[figure.id]
            else '<p class="note">Not run yet.</p>'
        )
        body += f"<figure>{markup.link(f'{path}.html', f'<figcaption>{title}</figcaption>{image}')}"
        body += "</figure>\n"
    return f'<section>\n<h2>Figures</h2>\n<div class="thumbs">\n{body}</div></section>'


def _index_claims(claims: Sequence[Claim]) -> str:
    body = "".join(_claim_row(f"{c.paper}, {c.statement}", c) for c in claims)
    head = '<th scope="col">claim</th><th scope="col" class="word">here</th>'
    link = markup.link("claims.html", "The numbers behind them")
    table = markup.frame("", head, f"<tbody>{body}</tbody>", style="list")
    return f"<section>\n<h2>Claims of the papers</h2>\n<p>{link}</p>\n{table}</section>"


def _index_runs(runs: Mapping[str, str]) -> str:
    if not runs:
        return ""
    items = "".join(
        f"<li>{markup.link(path, markup.text(title))}</li>\n" for title, path in runs.items()
    )
    return f"<section>\n<h2>Runs</h2>\n<ul>\n{items}</ul></section>"
