"""The section of edits."""

from collections.abc import Mapping

import numpy as np

from saat_jax.reports.sections import Record, Section, Table, apart_in, number, rate

_SENT = ("alone", "attacked", "surviving")


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """What edits do alone, on top of an attack, and on top of one that survives them."""
    del arrays
    level, survive = record["level"], ", ".join(record["survive"])
    share = f"recall at {100 * record['at_precision']:g} % precision"
    heads = ["no match any more", "alone", f"attack, {level}/255", f"attack through {survive}"]
    rows = [
        [
            name.replace("_", " "),
            *(rate(line[sent]) for sent in _SENT),
            f"{100 * line['recall']:.1f} %",
            number(line["changed"]),
        ]
        for name, line in record["edits"].items()
    ]
    sentences = [
        f"{name.replace('_', ' ')} alone misses {rate(line['alone'])}, with the attack before it "
        f"{rate(line['attacked'])}, with the attack that survives it {rate(line['surviving'])}"
        for name, line in record["edits"].items()
        if name in record["survive"]
    ]
    return Section(
        title="Edits, alone and around an attack",
        note="An edit is done to the listed image itself, to the image of an attack that does not "
        "know of edits, and to that of one that goes through some of them. Recall is that of the "
        "edits alone, at the loosest threshold at which the wanted share of the queries that find "
        "anything find their original.",
        tables=[
            Table(
                "Share of images that are matched no more, with its 95 % interval (Clopper and "
                "Pearson).",
                [*heads, share, f"{apart_in(record)}, median"],
                rows,
            )
        ],
        sentences=sentences,
    )
