"""The section of certificates."""

from collections.abc import Mapping

import numpy as np

from saat_jax.reports.sections import Record, Section, Table, rate


def section(record: Record, arrays: Mapping[str, np.ndarray]) -> Section:
    """What is proved within Euclidean balls, and for a linear hash within grey levels."""
    del arrays
    lines = record["lines"]
    rows = [
        ["proved: not evaded", *(rate(line["no_evasion"]) for line in lines)],
        ["proved: no collision", *(rate(line["no_collision"]) for line in lines)],
        ["bits that may flip, median", *(f"{line['flips']:g}" for line in lines)],
        ["distance at most, median", *(_known(line["distance"]) for line in lines)],
    ]
    tables = [
        Table(
            "Share of images, with its 95 % interval (Clopper and Pearson), by the Euclidean norm "
            "of the whole change.",
            ["the smoothed matcher", *(f"{line['epsilon']:g}" for line in lines)],
            rows,
        )
    ]
    sentences = [
        f"of {record['num_draws']} noisy copies of each image (deviation {record['sigma']:g}); a "
        f"statement about an image is wrong with a probability of {record['alpha']:g} at most",
        f"the smoothed matcher matches {rate(record['smoothed_matches'])} of the untouched images",
    ]
    if linear := record["linear"]:
        attacked = any("broken" in line for line in linear)
        more = [
            ["attacked: evaded", *(rate(x["broken"]) if "broken" in x else "-" for x in linear)],
            ["attacked: bits flipped, median", *(f"{x.get('flipped', '-')}" for x in linear)],
        ]
        tables.append(
            Table(
                "The hash itself, without noise: what no change of a pixel by so many grey levels "
                "can do, and what the attack of this audit has done.",
                ["the hash itself", *(f"{line['level']}/255" for line in linear)],
                [
                    ["proved: not evaded", *(rate(line["proved"]) for line in linear)],
                    ["bits that may flip, median", *(f"{line['flips']:g}" for line in linear)],
                    *(more if attacked else []),
                ],
            )
        )
        wrong = sum(line.get("contradictions", 0) for line in linear)
        if attacked:
            sentences.append(f"images on which the attack flipped more than was proved: {wrong}")
    return Section(
        title="What is proved",
        note="By randomised smoothing: a statement is about the smoothed matcher, which matches "
        "where most noisy copies of an image match, and must then be the one in use. Radii are "
        "Euclidean norms; a change of 8/255 everywhere has 12 at 224 pixels.",
        tables=tables,
        sentences=sentences,
    )


def _known(value: float | None) -> str:
    return "more than known" if value is None else f"{value:g}"
