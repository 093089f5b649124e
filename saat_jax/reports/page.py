"""The report's page: one HTML file with its images and styles inside."""

import json
import os
import pathlib
from typing import Any

from saat_jax import files
from saat_jax.reports import analysis, figures, gallery, markup, results, tables
from saat_jax.reports.records import BASE_MODEL, Run, display_name, is_benign, is_suite, load_run
from saat_jax.reports.style import CSS

# A chart, and its PNG by theme.
Drawing = tuple[figures.Chart, dict[str, bytes]]
# Title, fraction, note.
Tile = tuple[str, float | None, str]


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
    for chart, images in drawings:
        files.write_bytes(workdir / "figures" / f"{chart.name}.png", images["light"])
        files.write_bytes(workdir / "figures" / f"{chart.name}_dark.png", images["dark"])
    path = workdir / "report.html"
    files.write_bytes(path, _page(run, drawings).encode())
    return path


def _page(run: Run, drawings: list[Drawing]) -> str:
    protocol = [*run.records, *run.transfer, {"protocol": {}}][0]["protocol"]
    subject = str(protocol.get("dataset", "unfinished run"))
    if "num_bits" in protocol:
        subject += f", {protocol['num_bits']} bits"
    sections = [
        _header(run, subject),
        results.comparison(run),
        _charts(
            "How many steps an attack needs",
            "No steps: benign queries. The dotted line is theory.",
            "steps",
            drawings,
        ),
        results.transfer(run),
        gallery.image_grids(run),
        gallery.retrieval_strips(run),
        _charts(
            "Retrieval curves",
            "Colour and mark tell the attack; lines are listed as they lie, from the top."
            if is_suite(run.records)
            else "Colour tells the kind of query, line style the model.",
            "curves",
            drawings,
        ),
        _charts("Training", "", "training", drawings),
        _learned(run, drawings),
        _settings(run),
    ]
    return markup.document(
        f"Robustness report: {subject}", "\n".join(filter(None, sections)), style=CSS
    )


def _header(run: Run, subject: str) -> str:
    missing = ""
    if run.missing:
        items = "".join(f"<li>{markup.text(item)}</li>" for item in run.missing)
        missing = f'<div class="missing"><p>Not there yet:</p><ul>{items}</ul></div>'
    question, answer, tiles = _summary(run)
    shown = "".join(
        f'<div><dt>{markup.text(title)}</dt><dd class="value">{_big(value)}</dd>'
        f"<dd>{markup.text(note)}</dd></div>"
        for title, value, note in tiles
    )
    return (
        f'<header>\n<p class="kicker">Robustness report: {markup.text(subject)}</p>\n'
        f'<h1>{question}</h1>\n<p class="lead">{markup.text(answer)}</p>\n'
        f'<dl class="tiles">{shown}</dl>\n{missing}</header>'
    )


def _summary(run: Run) -> tuple[str, str, list[Tile]]:
    """The page in ten seconds: a question, its answer, and at most four numbers."""
    if run.transfer and not run.records:
        return "Do attacks carry over from one model to another?", "See the tables below.", []
    comparison = _headline(run)
    before = [tables.percent(v, 1) for v in (comparison.clean_before, comparison.attacked_before)]
    after = [tables.percent(v, 1) for v in (comparison.clean_after, comparison.attacked_after)]
    question = "How much does this retrieval system lose under attack"
    balls = [best for best in analysis.strongest(run.records) if best.model == BASE_MODEL]
    if comparison.model is None and is_suite(run.records) and balls and "-" not in before:
        return (f"{question}?", *_suite_summary(run, max(balls, key=_num_attacks)))
    question += ", and does training win it back?"
    if "-" in before:
        answer = "Not known yet: the pretrained model has not been judged clean and under attack."
    else:
        answer = f"An attack takes the system's MAP from {before[0]} to {before[1]}."
        if "-" in after or not comparison.comparable:
            answer += " Whether training wins it back is not known yet."
        else:
            answer += (
                f" After adversarial training it leaves {after[1]}, and MAP on clean queries goes "
                f"from {before[0]} to {after[0]}."
            )
    return question, answer, _tiles(run, comparison)


def _headline(run: Run) -> analysis.Comparison:
    comparisons = analysis.compare(run.records)
    return next((c for c in comparisons if c.model == "hardened"), comparisons[0])


def _num_attacks(best: analysis.Strongest) -> int:
    return sum(best.num_attacks.values())


def _suite_summary(run: Run, best: analysis.Strongest) -> tuple[str, list[Tile]]:
    """Answers for many attacks on one model: the strongest of either kind."""
    benign = next(r for r in run.records if r["model"] == best.model and is_benign(r))
    sentences, tiles = [], list[Tile]()
    for key, record in best.attacks.items():
        title = analysis.TITLES[key]
        clean, attacked = benign["metrics"].get(key), record["metrics"][key]
        kind = "that steer towards chosen labels" if record["targeted"] else "that drive away"
        sentences.append(
            f"Of {best.num_attacks[key]} attacks {kind}, {display_name(record['attack'])} is the "
            f"strongest: it takes {title} from {tables.percent(clean, 1)} to "
            f"{tables.percent(attacked, 1)}."
        )
        tiles += [
            (f"Clean {title}", clean, "benign queries"),
            (f"Attacked {title}", attacked, analysis.query_label(record)),
        ]
    sentences.append(f"As 8-bit images, all of these stay within {best.epsilon:g} of 255 levels.")
    return " ".join(sentences), tiles


def _tiles(run: Run, comparison: analysis.Comparison) -> list[Tile]:
    strength = "".join(comparison.attacks) or "not yet known"
    if len(comparison.attacks) > 1:
        strength = f"worst of {len(comparison.attacks)} attacks"
    name = comparison.model or "hardened"
    gain = tables.times(comparison.attacked_before, comparison.attacked_after)
    cost = tables.points(comparison.clean_before, comparison.clean_after)
    if not comparison.comparable:
        gain = cost = "measured by another protocol"
    rates = [r["protocol"]["base_rate"] for r in run.records if "base_rate" in r["protocol"]]
    base_rate = f"base rate {tables.percent(rates[0], 1)}" if rates else "pretrained"
    return [
        ("Clean MAP", comparison.clean_before, base_rate),
        ("Attacked MAP", comparison.attacked_before, strength),
        (f"Attacked MAP, {name}", comparison.attacked_after, gain or "not yet known"),
        (
            f"Clean MAP, {name}",
            comparison.clean_after,
            cost.replace("-", results.MINUS) or "not yet known",
        ),
    ]


def _big(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return tables.percent(value, 1).replace(" %", " <small>%</small>")


def _charts(title: str, note: str, section: str, drawings: list[Drawing]) -> str:
    shown = [(chart, images) for chart, images in drawings if chart.section == section]
    if not shown:
        return ""
    body = "".join(
        f"<figure><figcaption>{markup.text(chart.title)}</figcaption>"
        + markup.themed(
            markup.data_uri("image/png", images["dark"]),
            markup.data_uri("image/png", images["light"]),
            chart.description,
        )
        + "</figure>\n"
        for chart, images in shown
    )
    body = f'<div class="charts">\n{body}</div>\n'
    intro = f"<p>{note}</p>\n" if note else ""
    return f"<section>\n<h2>{title}</h2>\n{intro}{body}</section>" if title else body


def _learned(run: Run, drawings: list[Drawing]) -> str:
    """Shows how the networks that attacks train came along: newest samples, and curves."""
    grids = "".join(
        f"<figure><figcaption>{markup.text(_sample_title(*key, path))}</figcaption>"
        f"{markup.picture_file(path, _sample_title(*key, path))}</figure>\n"
        for key, path in run.samples.items()
    )
    curves = _charts("", "", "learned", drawings)
    if not grids and not curves:
        return ""
    return (
        f'<section class="learned">\n<h2>What the attacks learned</h2>\n{grids}{curves}</section>'
    )


def _sample_title(model: str, network: str, path: pathlib.Path) -> str:
    step = int(path.stem.removeprefix("step_"))
    return (
        f"{display_name(network)} for {model} after {step} steps: queries, what it makes of them, "
        "and the change, magnified 8 times around grey"
    )


def _settings(run: Run) -> str:
    facts = ("device", "version")
    # The comparison shows the other two.
    found = dict.fromkeys(name for r in run.records for name in r.get("settings") or {})
    names = [name for name in found if name not in ("num_steps", "epsilon")]
    rows = [
        [f"{record['model']}: {display_name(record['attack'])}"]
        + [_value((record.get("settings") or {}).get(name)) for name in names]
        + [_value(record.get(name)) for name in facts]
        for record in run.records
    ]
    heads = ["model: query", *(name.replace("_", " ") for name in (*names, *facts))]
    table = ""
    if rows:
        table = (
            "<details><summary>Settings of the attacks</summary>\n"
            + markup.table("Beside steps and epsilon, see Results.", heads, rows)
            + "</details>\n"
        )
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
