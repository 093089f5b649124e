"""The report's page: one HTML file with its images and styles inside."""

import json
import os
import pathlib
from typing import Any

from saat_jax.reports import figures, gallery, markup, tables
from saat_jax.reports.records import Run, display_name, load_run
from saat_jax.reports.style import CSS

# A chart, and its PNG by theme.
Drawing = tuple[figures.Chart, dict[str, bytes]]
_MINUS = "\N{MINUS SIGN}"
# Per quantity: column head, factor of the shown number, unit, explanation.
_PERTURBATIONS = {
    "linf": (
        "L-inf",
        255,
        "/255",
        "largest change of any colour value of any query, in steps of 1/255",
    ),
    "l2": (
        "L2",
        1,
        "",
        "root of the sum of an image's squared changes, colour values in [0, 1]; mean",
    ),
    "mse": ("MSE", 1e4, "e-4", "mean squared change of colour values in [0, 1]"),
    "psnr": (
        "PSNR",
        1,
        " dB",
        "peak signal-to-noise ratio of the mean MSE, for a peak of 1; higher is fainter",
    ),
    "root_mean_square": (
        "RMS",
        1e2,
        "e-2",
        'root of the mean MSE; "Per." in the ProS-GAN paper',
    ),
    "matrix_norm_linf": (
        'papers\' "L_inf"',
        1,
        "",
        "what the SAAT paper prints as L_inf. It is a matrix norm of each colour channel, the "
        "largest sum of absolute changes along one row of pixels; not the largest change of a "
        "pixel, and it grows with the width of the image",
    ),
    "matrix_norm_l2": (
        'papers\' "L_2"',
        1,
        "",
        "what the SAAT paper prints as L_2. It is a matrix norm of each colour channel, the "
        "largest singular value of the changes; not their Euclidean length",
    ),
}


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `figures/*.png` and the self-contained page `report.html` of a run.

    The page needs no other file and no network. Equal input gives equal bytes; each file is
    replaced whole, so a reader never meets half of one.

    Args:
        workdir: folder of the run. Files it lacks are named on the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: if the folder does not exist, or a file in it is broken.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"expected the folder of a run, got {workdir}; has the run been started?")
    run = load_run(workdir)
    drawings = [
        (chart, {theme: figures.draw(chart, theme=theme) for theme in figures.THEMES})
        for chart in figures.make_charts(run)
    ]
    (workdir / "figures").mkdir(exist_ok=True)
    for chart, images in drawings:
        _replace(workdir / "figures" / f"{chart.name}.png", images["light"])
        _replace(workdir / "figures" / f"{chart.name}_dark.png", images["dark"])
    path = workdir / "report.html"
    _replace(path, _page(run, drawings).encode())
    return path


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _page(run: Run, drawings: list[Drawing]) -> str:
    protocol = run.records[0]["protocol"] if run.records else {}
    subject = str(protocol.get("dataset", "unfinished run"))
    if "num_bits" in protocol:
        subject += f", {protocol['num_bits']} bits"
    sections = [
        _header(run, subject),
        _results(run),
        gallery.image_grids(run),
        gallery.retrieval_strips(run),
        _charts(
            "Retrieval curves",
            "Colour tells the kind of query, line style the model.",
            "curves",
            drawings,
        ),
        _perceptibility(run),
        _charts("Training", "", "training", drawings),
        _settings(run),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The page loads nothing, whatever a name or a setting may contain.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>Robustness report: {markup.text(subject)}</title>\n<style>{CSS}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n</html>\n"
    )


def _header(run: Run, subject: str) -> str:
    comparison = _headline(run)
    missing = ""
    if run.missing:
        items = "".join(f"<li>{markup.text(item)}</li>" for item in run.missing)
        missing = f'<div class="missing"><p>Not there yet:</p><ul>{items}</ul></div>'
    return (
        f'<header>\n<p class="kicker">Robustness report: {markup.text(subject)}</p>\n'
        "<h1>How much does this retrieval system lose under attack, and does training win it "
        f'back?</h1>\n<p class="lead">{markup.text(_answer(comparison))}</p>\n'
        f"{_tiles(run, comparison)}\n{missing}</header>"
    )


def _headline(run: Run) -> tables.Comparison:
    comparisons = tables.compare(run.records)
    return next((c for c in comparisons if c.model == "hardened"), comparisons[0])


def _answer(comparison: tables.Comparison) -> str:
    """Answers the page's question in a sentence or two, with the numbers there are."""
    before = [tables.percent(v, 1) for v in (comparison.clean_before, comparison.attacked_before)]
    after = [tables.percent(v, 1) for v in (comparison.clean_after, comparison.attacked_after)]
    if "-" in before:
        return "Not known yet: the pretrained model has not been judged clean and under attack."
    answer = f"An attack takes the system's MAP from {before[0]} to {before[1]}."
    if "-" in after or not comparison.comparable:
        return f"{answer} Whether training wins it back is not known yet."
    return (
        f"{answer} After adversarial training it leaves {after[1]}, and MAP on clean queries goes "
        f"from {before[0]} to {after[0]}."
    )


def _tiles(run: Run, comparison: tables.Comparison) -> str:
    strength = "".join(comparison.attacks) or "not yet known"
    if len(comparison.attacks) > 1:
        strength = f"worst of {len(comparison.attacks)} attacks"
    name = comparison.model or "hardened"
    gain = tables.times(comparison.attacked_before, comparison.attacked_after)
    cost = tables.points(comparison.clean_before, comparison.clean_after).replace("-", _MINUS)
    if not comparison.comparable:
        gain = cost = "measured by another protocol"
    rates = [r["protocol"]["base_rate"] for r in run.records if "base_rate" in r["protocol"]]
    base_rate = f"base rate {tables.percent(rates[0], 1)}" if rates else "pretrained"
    tiles = (
        ("Clean MAP", comparison.clean_before, base_rate),
        ("Attacked MAP", comparison.attacked_before, strength),
        (f"Attacked MAP, {name}", comparison.attacked_after, gain or "not yet known"),
        (f"Clean MAP, {name}", comparison.clean_after, cost or "not yet known"),
    )
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div><dt>{markup.text(title)}</dt><dd class="value">{_big(value)}</dd>'
            f"<dd>{markup.text(note)}</dd></div>"
            for title, value, note in tiles
        )
        + "</dl>"
    )


def _big(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return tables.percent(value, 1).replace(" %", " <small>%</small>")


def _results(run: Run) -> str:
    if not run.records:
        return ""
    models = list(dict.fromkeys(record["model"] for record in run.records))
    rows = tables.result_rows(run.records)
    body = ""
    for i, row in enumerate(rows):
        if i == 0 or row.metric != rows[i - 1].metric:
            span = len(models) + 1
            body += (
                f'{"</tbody>" if i else ""}<tbody><tr><th scope="rowgroup" colspan="{span}">'
                f"{markup.text(row.metric)}</th></tr>\n"
            )
        cells = "".join(f"<td>{tables.percent(row.values.get(model))}</td>" for model in models)
        body += f'<tr><th scope="row">{markup.text(row.label)}</th>{cells}</tr>\n'
    body += "</tbody>" if rows else ""
    gains = [tables.gain_line(comparison) for comparison in tables.compare(run.records)]
    heads = "".join(f'<th scope="col">{markup.text(name)}</th>' for name in ("query", *models))
    return (
        "<section>\n<h2>Results</h2>\n"
        + "".join(f'<p class="wide">{markup.text(_sentence(gain))}</p>\n' for gain in gains if gain)
        + markup.frame(
            "Retrieval by kind of query and by model. MAP counts items that share a label with "
            "the query, t-MAP items that share one with the attack's target. Theory: the score "
            "of the code that the attack steers towards.",
            heads,
            body,
        )
        + "".join(
            f'<p class="note wide">{markup.text(_sentence(line))}</p>\n'
            for line in tables.protocol_lines(run.records)
        )
        + "</section>"
    )


def _sentence(line: str) -> str:
    arrow = line.replace("->", "\N{RIGHTWARDS ARROW}").replace("(-", f"({_MINUS}")
    return f"{arrow[0].upper()}{arrow[1:]}."


def _charts(title: str, note: str, section: str, drawings: list[Drawing]) -> str:
    shown = [(chart, images) for chart, images in drawings if chart.section == section]
    if not shown:
        return ""
    body = "".join(
        f"<figure><figcaption>{markup.text(chart.title)}</figcaption><picture>"
        '<source media="(prefers-color-scheme: dark)" '
        f'srcset="{markup.data_uri("image/png", images["dark"])}">'
        f'<img alt="{markup.text(chart.description)}" '
        f'src="{markup.data_uri("image/png", images["light"])}"></picture></figure>\n'
        for chart, images in shown
    )
    intro = f"<p>{note}</p>\n" if note else ""
    return f'<section>\n<h2>{title}</h2>\n{intro}<div class="charts">\n{body}</div>\n</section>'


def _perceptibility(run: Run) -> str:
    measured = [record for record in run.records if record.get("perturbation")]
    if not measured:
        return ""
    found = {name for record in measured for name in record["perturbation"]}
    # A quantity that is not in the list shows under its own name.
    known = _PERTURBATIONS | {
        name: (name, 1, "", "") for name in sorted(found - set(_PERTURBATIONS))
    }
    shown = {name: entry for name, entry in known.items() if name in found}
    rows = [
        [f"{record['model']}: {tables.query_label(record)}"]
        + [
            f"{record['perturbation'][name] * factor:.3g}{unit}"
            if name in record["perturbation"]
            else "-"
            for name, (_, factor, unit, _) in shown.items()
        ]
        for record in measured
    ]
    heads = ["model: query", *(head for head, *_ in shown.values())]
    terms = "".join(
        f"<dt>{markup.text(head)}</dt><dd>{markup.text(words)}.</dd>"
        for head, _, _, words in shown.values()
        if words
    )
    return (
        "<section>\n<h2>Can one see it?</h2>\n"
        + markup.table(
            "Size of the change made to the queries, over all attacked queries.", heads, rows
        )
        + f'\n<dl class="terms">{terms}</dl>\n</section>'
    )


def _settings(run: Run) -> str:
    facts = ("seconds_per_image", "step", "device", "version")
    names = dict.fromkeys(name for r in run.records for name in r.get("settings") or {})
    rows = [
        [f"{record['model']}: {display_name(record['attack'])}"]
        + [_value((record.get("settings") or {}).get(name)) for name in names]
        + [_value(record.get(name)) for name in facts]
        for record in run.records
    ]
    heads = ["model: query", *(name.replace("_", " ") for name in (*names, *facts))]
    caption = "Settings of the attacks; step is the training step of the judged model."
    table = markup.table(caption, heads, rows) if rows else ""
    config = ""
    if run.config:
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        config = (
            "<details><summary>Configuration of the run</summary>\n"
            f'<pre tabindex="0">{markup.text(text)}</pre></details>\n'
        )
    if not table and not config:
        return ""
    return f"<section>\n<h2>How it was run</h2>\n{table}\n{config}</section>"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
