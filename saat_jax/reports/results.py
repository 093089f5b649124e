"""The tables of the page: attacks and models side by side, and transfer between models."""

from collections.abc import Sequence
from typing import Any

from saat_jax.reports import analysis, markup, tables
from saat_jax.reports.records import Record, Run, display_name, is_benign, is_suite

MINUS = "\N{MINUS SIGN}"
_WORD = ' class="word"'
# Quantities of a change beside those of `tables.PERTURBATIONS`: head, factor, unit.
_MORE_SIZES = {
    "linf": ("L-inf", 255, "/255"),
    "l2": ("L2", 1, ""),
    "psnr": ("PSNR", 1, " dB"),
}
_TERMS = {
    "theory": "the score of the code that the attack steers towards",
    "matrix L-inf": "what the SAAT paper prints as L_inf. It is a matrix norm of each colour "
    "channel, the largest sum of absolute changes along one row of pixels; not the largest change "
    "of a pixel, and it grows with the width of the image",
    "spectral L2": "what the SAAT paper prints as L_2. It is a matrix norm of each colour channel, "
    "the largest singular value of the changes; not their Euclidean length",
    "MSE": "mean squared change of colour values in [0, 1]",
    "Per.": "root of the mean MSE, the perceptibility of the ProS-GAN paper",
    "as 8-bit images": "MAP or t-MAP when the attacked images are rounded to 256 levels",
    "L-inf": "largest change of any colour value of any query, in steps of 1/255",
    "L2": "root of the sum of an image's squared changes, colour values in [0, 1]; mean",
    "PSNR": "peak signal-to-noise ratio of the mean MSE, for a peak of 1; higher is fainter",
}


def comparison(run: Run) -> str:
    """Shows every number of every attack on every model once, ranked, as bars."""
    if not run.records:
        return ""
    gains = [tables.gain_line(comparison) for comparison in analysis.compare(run.records)]
    return (
        "<section>\n<h2>Results</h2>\n"
        + "".join(f'<p class="wide">{markup.text(sentence(line))}</p>\n' for line in gains if line)
        + _scores(run)
        + _details(run)
        + "".join(
            f'<p class="note wide">{markup.text(sentence(line))}</p>\n'
            for line in tables.protocol_lines(run.records)
        )
        + "</section>"
    )


def sentence(line: str) -> str:
    """Turns a line for the terminal into a sentence of the page."""
    arrow = line.replace("->", "\N{RIGHTWARDS ARROW}").replace("(-", f"({MINUS}")
    return f"{arrow[0].upper()}{arrow[1:]}."


def transfer(run: Run) -> str:
    """Shows each transfer matrix as a table of shades."""
    if not run.transfer:
        return ""
    return (
        "<section>\n<h2>Does an attack carry over to another model?</h2>\n"
        "<p>Images are crafted on the model at the left and judged by the model above. In a frame: "
        "judged by the model that they were crafted on.</p>\n"
        + "".join(_matrix(matrix) for matrix in run.transfer)
        + "".join(
            f'<p class="note wide">{markup.text(sentence(line))}</p>\n'
            for line in tables.protocol_lines([{"model": "", **m} for m in run.transfer])
        )
        + "</section>"
    )


def _scores(run: Run) -> str:
    models = list(dict.fromkeys(record["model"] for record in run.records))
    several = len(models) > 1
    heads = ["query", *(["model"] if several else []), "score", "theory", "steps", "epsilon"]
    heads += [f"{first}\n{second}" for _, first, second in tables.PERTURBATIONS.values()]
    heads.append("seconds\n/image")
    best = [
        record
        for strongest in analysis.strongest(run.records)
        for record in strongest.attacks.values()
        if is_suite(run.records)
    ]
    body = ""
    for metric, group in analysis.by_metric(run.records).items():
        words = "counts items that share a label with the query; an attack wants it low"
        if metric.startswith("t-"):
            words = "counts items that carry the attacker's label; an attack wants it high"
        body += (
            f'<tbody><tr><th scope="rowgroup" colspan="{len(heads)}">{markup.text(metric)} '
            f"<span>{words}</span></th></tr>\n"
        )
        for attack in _ranked(group):
            rows = [(key, record) for key, record in group if record["attack"] == attack]
            for i, (key, record) in enumerate(rows):
                name = f'<th scope="row" rowspan="{len(rows)}">{markup.text(display_name(attack))}'
                body += (
                    f"<tr{_style(best, record)}>"
                    + (f"{name}</th>" if i == 0 else "")
                    + (f"<td{_WORD}>{markup.text(record['model'])}</td>" if several else "")
                    + _score_cells(key, record)
                    + "</tr>\n"
                )
        rates = [r["protocol"]["base_rate"] for _, r in group if "base_rate" in r["protocol"]]
        if rates and not metric.startswith("t-"):
            rest = len(heads) - 2 - several
            body += (
                f'<tr class="benign"><th scope="row" colspan="{1 + several}">base rate</th>'
                f'{_bar(rates[0])}<td colspan="{rest}"></td></tr>\n'
            )
        body += "</tbody>"
    head = "".join(
        f'<th scope="col"{_WORD if name == "model" else ""}>{markup.text(name)}</th>'
        for name in heads
    ).replace("\n", "<br>")
    caption = (
        "Retrieval by kind of query, the strongest attack first; its settings, the size of its "
        "change, and its time. The line across a bar is theory."
    )
    if best:
        caption += " In bold: the strongest inside the ball."
    return markup.frame(caption, head, body, style="scores")


def _ranked(group: Sequence[tuple[str, Record]]) -> list[str]:
    """Names the kinds of queries: benign, then the attacks from the strongest on first model."""
    scores: dict[str, float] = {}
    for key, record in group:
        score = record["metrics"][key] * (-1 if key == "t_map" else 1)
        scores.setdefault(record["attack"], -2.0 if is_benign(record) else score)
    return sorted(scores, key=lambda attack: scores[attack])


def _style(best: Sequence[Record], record: Record) -> str:
    if is_benign(record):
        return ' class="benign"'
    return ' class="best"' if any(record is other for other in best) else ""


def _score_cells(key: str, record: Record) -> str:
    bar = _bar(record["metrics"][key], record["metrics"].get(f"theory_{key}"))
    return bar + "".join(f"<td>{cell}</td>" for cell in tables.attack_cells(key, record)[1:])


def _bar(value: float, theory: float | None = None) -> str:
    mark = "" if theory is None else f'<span style="left:{100 * theory:.2f}%"></span>'
    return (
        f'<td class="bar">{tables.percent(value)}<span style="--value:{100 * value:.2f}%">'
        f"{mark}</span></td>"
    )


def _details(run: Run) -> str:
    """Folds away the other measures of the change, and what all of them mean."""
    measured = [record for record in run.records if record.get("perturbation")]
    if not measured:
        return ""
    found = {name for record in measured for name in record["perturbation"]}
    # A quantity that is in no list shows under its own name.
    other = sorted(found - set(tables.PERTURBATIONS) - set(_MORE_SIZES))
    sizes = {**_MORE_SIZES, **{name: (name, 1, "") for name in other}}
    rows = []
    for record in measured:
        row = [f"{record['model']}: {display_name(record['attack'])}"]
        rounded = [v for name, v in record["metrics"].items() if name.endswith("_8bit")]
        row.append(tables.percent(rounded[0] if rounded else None))
        for name, (_, factor, unit) in sizes.items():
            value = record["perturbation"].get(name)
            row.append("-" if value is None else f"{value * factor:.3g}{unit}")
        rows.append(row)
    heads = ["model: query", "as 8-bit images", *(head for head, *_ in sizes.values())]
    terms = "".join(
        f"<dt>{markup.text(term)}</dt><dd>{markup.text(words)}.</dd>"
        for term, words in _TERMS.items()
    )
    return (
        "<details><summary>More measures of the change, and what they mean</summary>\n"
        + markup.table("Over all attacked queries.", heads, rows)
        + f'<dl class="terms">{terms}</dl>\n</details>\n'
    )


def _matrix(matrix: dict[str, Any]) -> str:
    targets = list(matrix["benign"])
    head = "<th></th>" + "".join(f'<th scope="col">{markup.text(name)}</th>' for name in targets)
    body = ""
    for source, row in {"benign": matrix["benign"], **matrix["matrix"]}.items():
        body += f'<tr><th scope="row">{markup.text(source)}</th>'
        for target in targets:
            white_box = ' class="own"' if source == target else ""
            body += (
                f'<td{white_box} style="--value:{100 * row[target]:.0f}%">'
                f"{tables.percent(row[target])}</td>"
            )
        body += "</tr>\n"
    caption = f"{tables.transfer_title(matrix)}. The stronger the colour, the higher."
    return markup.frame(caption, head, f"<tbody>{body}</tbody>", style="heat")
