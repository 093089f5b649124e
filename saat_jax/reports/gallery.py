"""Example images on the page: what an attack changes, and what the system then returns."""

from collections.abc import Sequence

import numpy as np

from saat_jax.reports import analysis, markup
from saat_jax.reports.records import Examples, Record, Run, display_name, is_benign, is_suite

_MAX_QUERIES = 6
# Where many attacks stand side by side.
_MAX_COMPARED_QUERIES = 3
_NUM_OPEN_QUERIES = 2
# Retrieved items are shown small: what has more pixels a side is shrunk, for a lighter page.
_MAX_THUMBNAIL = 112


def magnification(changes: Sequence[np.ndarray]) -> int:
    """Finds the largest whole factor that keeps every change within ±0.5; at least 1."""
    largest = max(float(np.abs(change).max(initial=0)) for change in changes)
    # Rounded first: 0.5 / (8 / 255) in float32 may fall just below a whole number.
    return max(1, int(round(0.5 / largest, 3))) if largest > 0 else 1


def image_grids(run: Run) -> str:
    """Shows the benign queries and what every attack on every model made of them."""
    attacked = [r for r in run.records if not is_benign(r) and _key(r) in run.examples]
    if is_suite(run.records):
        attacked = analysis.most_steps(attacked)
        groups = dict.fromkeys((r["model"], r["targeted"]) for r in attacked)
        grids = [
            _side_by_side(run, [r for r in attacked if (r["model"], r["targeted"]) == group])
            for group in groups
        ]
    else:
        attacks = dict.fromkeys(record["attack"] for record in attacked)
        grids = [_grid(run, [r for r in attacked if r["attack"] == attack]) for attack in attacks]
    if not grids:
        return ""
    return "<section>\n<h2>What the attack looks like</h2>\n" + "".join(grids) + "</section>"


def retrieval_strips(run: Run) -> str:
    """Shows, for each query, the ten nearest items by model and kind of query."""
    records = [record for record in run.records if _key(record) in run.examples]
    which = ""
    if is_suite(run.records):
        best = [r for found in analysis.strongest(records) for r in found.attacks.values()]
        records = [r for r in records if is_benign(r) or any(r is other for other in best)]
        which = " Shown are benign queries and the strongest attacks."
    if not records:
        return ""
    num_queries = min(len(run.examples[_key(record)]["images"]) for record in records)
    queries = [_query(run, records, i) for i in range(min(_MAX_QUERIES, num_queries))]
    more = "".join(queries[_NUM_OPEN_QUERIES:])
    return (
        "<section>\n<h2>What the system returns</h2>\n"
        "<p>Each line shows a query and the ten items nearest to it. A green frame with a tick "
        "means right: the item shares a label with the query. A red frame with a cross means "
        "wrong. For targeted attacks, green with a tick means that the item carries the label "
        f"the attacker wanted.{which}</p>\n"
        + "".join(queries[:_NUM_OPEN_QUERIES])
        + (f"<details><summary>More queries</summary>\n{more}</details>\n" if more else "")
        + "</section>"
    )


def _key(record: Record) -> tuple[str, str]:
    return record["model"], record["attack"]


def _grid(run: Run, records: Sequence[Record]) -> str:
    """Makes the table of one attack: a column per query, two rows per attacked model."""
    examples = [run.examples[_key(record)] for record in records]
    changes = [arrays["images"] - arrays["benign_images"] for arrays in examples]
    factor = magnification(changes)
    rows = [("benign query", examples[0]["benign_images"])]
    for record, arrays, change in zip(records, examples, changes, strict=True):
        rows += [
            (f"attack on {record['model']}", arrays["images"]),
            (f"its change, {factor} times", 0.5 + factor * change),
        ]
    columns = range(min(_MAX_QUERIES, *(len(images) for _, images in rows)))
    head = "<td></td>" + "".join(
        f'<th scope="col">{_query_title(records[0], examples[0], i)}</th>' for i in columns
    )
    body = ""
    for label, images in rows:
        body += f'<tr><th scope="row">{markup.text(label)}</th>'
        for i in columns:
            body += f"<td>{markup.picture(images[i], f'{label}, query {i + 1}')}</td>"
        body += "</tr>\n"
    name = display_name(records[0]["attack"])
    caption = (
        f"{name[:1].upper()}{name[1:]} attack. Its change is magnified {factor} times around "
        "grey; grey is no change."
    )
    if records[0]["targeted"]:
        caption += " Above each column: what the query shows, and the target."
    return markup.frame(caption, head, f"<tbody>{body}</tbody>", style="grid")


def _side_by_side(run: Run, records: Sequence[Record]) -> str:
    """Makes the table of a model's attacks: a column for each, a row per query with its changes."""
    examples = [run.examples[_key(record)] for record in records]
    labels = [display_name(record["attack"]) for record in records]
    changes = [arrays["images"] - arrays["benign_images"] for arrays in examples]
    factors = [magnification([change]) for change in changes]
    head = '<td></td><th scope="col">benign</th>' + "".join(
        f'<th scope="col">{markup.text(label)}<br>change \N{MULTIPLICATION SIGN}{factor}</th>'
        for label, factor in zip(labels, factors, strict=True)
    )
    body = ""
    for i in range(min(_MAX_COMPARED_QUERIES, *(len(change) for change in changes))):
        benign = markup.picture(examples[0]["benign_images"][i], f"benign, query {i + 1}")
        body += f'<tr><th scope="row">{_query_title(records[0], examples[0], i)}</th><td>{benign}'
        for label, arrays, change, factor in zip(labels, examples, changes, factors, strict=True):
            body += (
                f"</td><td>{markup.picture(arrays['images'][i], f'{label}, query {i + 1}')}"
                + markup.picture(0.5 + factor * change[i], f"change by {label}, query {i + 1}")
            )
        body += "</td></tr>\n"
    kind = "Targeted" if records[0]["targeted"] else "Non-targeted"
    caption = (
        f"{kind} attacks on {records[0]['model']}. Below each image its change, magnified around "
        "grey."
    )
    if records[0]["targeted"]:
        caption += " At the left: what the query shows, and the target."
    return markup.frame(caption, head, f"<tbody>{body}</tbody>", style="grid compared")


def _query_title(record: Record, examples: Examples, index: int) -> str:
    title = markup.text(_class_names(examples, "labels", index))
    if record["targeted"]:
        target = _class_names(examples, "target_labels", index)
        title += f"<br>\N{RIGHTWARDS ARROW} {markup.text(target)}"
    return title


def _query(run: Run, records: Sequence[Record], index: int) -> str:
    strips = "".join(_strip(record, run.examples[_key(record)], index) for record in records)
    shows = _class_names(run.examples[_key(records[0])], "labels", index)
    return (
        f'<div class="query">\n<h3>Query {index + 1} <span>shows {markup.text(shows)}</span></h3>\n'
        f"{strips}</div>\n"
    )


def _strip(record: Record, examples: Examples, index: int) -> str:
    """Makes one line: what was asked of which model, and the ten items that came back."""
    label = f"{record['model']}, {display_name(record['attack'])}"
    hits = examples["top_relevant"][index]
    score = f"{np.sum(hits)} of {len(hits)} right"
    if record["targeted"]:
        target = _class_names(examples, "target_labels", index)
        score = f"{np.sum(hits)} of {len(hits)} show the target {target}"
    items = ""
    for image, hit in zip(examples["top_images"][index], hits, strict=True):
        style, alt, mark = ("hit", "right", "&#10003;") if hit else ("miss", "wrong", "&#10007;")
        thumbnail = markup.picture(image, alt, max_side=_MAX_THUMBNAIL)
        items += f'<li class="{style}">{thumbnail}<span aria-hidden="true">{mark}</span></li>'
    query = markup.picture(examples["images"][index], "query", max_side=_MAX_THUMBNAIL)
    return (
        f'<div class="strip"><p>{markup.text(label)} <span>{markup.text(score)}</span></p>'
        f"{query}<ol>{items}</ol></div>\n"
    )


def _class_names(examples: Examples, field: str, index: int) -> str:
    """Names the classes of an example; at most three, since a cell is narrow."""
    classes = np.flatnonzero(examples[field][index])
    names = [str(examples["class_names"][c]) for c in classes]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join(names[:3] + more) or "no label"
