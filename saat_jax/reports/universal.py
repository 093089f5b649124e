"""The sections of universal perturbations, and of what moves on to other matchers."""

from collections.abc import Mapping

import numpy as np

from saat_jax.reports.sections import Record, Section, Table, rate


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """What one change for all images does."""
    del arrays
    covered = f"a patch of {100 * record['patch']:g} % of the area"
    what = covered if record["patch"] else f"a perturbation within {record['level']}/255"
    aim = "evades its original" if record["task"] == "evade" else "matches one victim"
    names = [*record["held_out"]]
    return Section(
        title=f"One for all: {what}",
        note="Learned on every other image, and judged on the rest. Random pixels of the same size "
        "stand beside it.",
        tables=[
            Table(
                "Share of images, with its 95 % interval (Clopper and Pearson).",
                [aim, *names],
                [
                    [f"{words}, {record[where][names[0]]['trials']} images"]
                    + [rate(record[where][name]) for name in names]
                    for where, words in (("held_out", "held out"), ("learned", "learned on"))
                ],
            )
        ],
    )


def transfer_section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """Images crafted on each matcher, judged by all."""
    del arrays
    names = [*record["matrix"]]
    points = "; ".join(
        f"{name}: {' '.join(f'{kind} {value:g}' for kind, value in point.items())}"
        for name, point in record["points"].items()
    )
    return Section(
        title=f"Transfer within {record['level']}/255",
        note="Images are attacked by the gradient of one matcher, and judged by all, each at its "
        "own point.",
        tables=[
            Table(
                "Share of images that evade, with its 95 % interval (Clopper and Pearson).",
                ["crafted on / judged by", *names],
                [
                    [name, *(rate(record["matrix"][name][other]) for other in names)]
                    for name in names
                ],
            )
        ],
        sentences=[f"points: {points}"],
    )
