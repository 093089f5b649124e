"""The section of images that are put into the database."""

from collections.abc import Mapping

import numpy as np

from saat_jax.reports import charts
from saat_jax.reports.charts import Chart, Line
from saat_jax.reports.sections import Record, Section, Table, number, rate

_SCANNED = ("caught", "false_alerts")
_KINDS = {"crafted": "crafted inserts", "untouched": "same images", "codes": "the wanted codes"}


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """Reach on held-out queries by the number of inserts, and what the scan finds."""
    del arrays
    numbers = [*map(str, record["numbers"])]
    words = {"radius": "within the radius", "top_k": f"in the top {record['k']}"}
    rows: list[list[str]] = []
    lines: list[Line] = []
    for measure, by_kind in record["reach"].items():
        for kind, name in _KINDS.items():
            shares = [by_kind[kind][n] for n in numbers]
            label = f"{name}, {words[measure]}"
            rows.append([label, *map(rate, shares)])
            band = tuple([share["interval"][end] for share in shares] for end in (0, 1))
            look = charts.look(len(lines)) | {"mark": "o"}
            ys = [share["rate"] for share in shares]
            lines.append(Line(label, [*map(float, numbers)], ys, **look, band=band))
    aim = "radius" if "radius" in record["reach"] else "top_k"
    return Section(
        title=f"Inserts within {record['level']}/255",
        note="The attacker sees the codes of the database, looks for codes that reach many of "
        "them, and drives images to these. Queries are images that are not in the database. In a "
        "list an insert comes after all that is equally near; the wanted codes stand for images "
        "that came all the way.",
        tables=[
            Table(
                "Share of held-out queries that find an insert, with its 95 % interval (Clopper "
                "and Pearson), by the number of inserts.",
                [f"{record['num_held_out']} queries", *numbers],
                rows,
            ),
            Table(
                "What a scan of the database finds of all these inserts.",
                ["planted, radius of the scan", "caught", "false alerts"],
                [
                    [
                        f"{_KINDS[line['kind']]}, {line['radius']}",
                        *(f"{line[x]['count']} of {line[x]['trials']}" for x in _SCANNED),
                    ]
                    for line in record["scans"]
                ],
            ),
        ],
        sentences=[
            f"{record['num_database']:,} images are listed; the attacker aims to be "
            f"{words[aim]}; bits from the wanted code, median: "
            f"{number(record['bits_from_target'])}, untouched "
            f"{number(record['bits_from_target_untouched'])}",
            *(_scanned(line, record["alert_rate"]) for line in record["scans"]),
        ],
        charts=[
            Chart(
                "inserts", "inserts", "Reach of inserts", "inserts", "share of queries", lines, True
            )
        ],
    )


def _scanned(line: Record, alert_rate: float) -> str:
    caught, alerts = (line[name] for name in _SCANNED)
    return (
        f"scan at radius {line['radius']}, alert rate {100 * alert_rate:g} %: "
        f"{caught['count']} of {caught['trials']} {_KINDS[line['kind']]} among the suspects, "
        f"{alerts['count']} false alerts in {alerts['trials']:,}"
    )
