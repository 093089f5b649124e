"""What edits do to a match, alone and on top of an attack, and what an attack does that survives.

As tools of trust and safety report it: how many edited copies are still found, at the operating
point, and at the threshold that keeps a wanted precision.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from saat_jax import edits, options
from saat_jax.evaluation.matcher import Matcher, quartiles

Record = dict[str, Any]


def edited(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    epsilon: float,
    survive: Sequence[str] = ("jpeg_75",),
    at_precision: float = 0.99,
    names: Sequence[str] | None = None,
    progress: bool = False,
) -> Record:
    """Measures what each edit does to listed images, and to attacked copies of them.

    The attack is evasion, once for the image as it is sent, and once for all that it is edited to
    as well: by the mean of the soft codes over the edits, judged by the worst of them.

    Args:
        made: the matcher.
        folder: of the audit; the record is `<folder>/edits.json`.
        epsilon: radius of the L-infinity ball in units of [0, 1], in whole grey levels.
        survive: edits that the second attack is to survive, each such as "jpeg_75".
        at_precision: to be kept by the threshold at which recall is told: of the queries that find
            anything, the share that finds its original before anything else is listed.
        names: edits that are measured; None for all kinds at their usual strengths.
        progress: whether to show a progress bar.

    Returns:
        The record: for each edit the share of unmatched copies alone, after the attack, and after
        the attack that survives, with intervals; recall at the precision.

    Raises:
        ValueError: if an edit or a number is none.
    """
    options.check_numbers(epsilon=epsilon, at_precision=at_precision)
    names = edits.all_edits() if names is None else tuple(names)
    for name in (*names, *survive):
        edits.named(name)
    level = int(np.floor(255 * epsilon + 1e-3))
    settings: Record = {"level": level, "survive": [*survive], "names": [*names]}
    settings["at_precision"] = at_precision

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        task = made.task("evade")
        levels = np.full(len(task.rows), level)
        total = 2 * len(task.rows) + len(names) + 1
        lines: dict[str, Record] = {}
        arrays: dict[str, np.ndarray] = {"rows": task.rows}
        with tqdm(total=total, desc="edits", unit="image", disable=not progress) as bar:
            plain = made.attack(task, levels, parts=unfinished / "plain", update=bar.update)
            through = made.attack(
                task, levels, parts=unfinished / "through", update=bar.update, survive=survive
            )
            clean = [made.photos.images[row] for row in task.rows]
            sent = {"alone": clean, "attacked": plain.images, "surviving": through.images}
            for name in (None, *names):
                outputs = {key: made.run_edited(images, name) for key, images in sent.items()}
                own, other = _apart(made, task.rows, outputs["alone"])
                recall, threshold = recall_at(own, other, at_precision)
                lines[name or "none"] = {
                    **{key: made.rate(task, outputs[key]).asdict() for key in sent},
                    "recall": recall,
                    "threshold": threshold,
                    "changed": quartiles(own),
                }
                arrays |= {f"{name or 'none'}/own": own, f"{name or 'none'}/other": other}
                bar.update()
        return {**settings, "edits": lines}, arrays

    return made.record("edits", folder, settings, make)


def _apart(made: Matcher, rows: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far outputs are from the nearest of their own group, and of all others. `[num]` each"""
    apart = made.point.apart(outputs, made.listed_outputs)
    alike = made.groups[rows][:, None] == made.groups
    own = np.where(alike, apart, np.inf).min(axis=1)
    return own, np.where(alike, np.inf, apart).min(axis=1)


def recall_at(own: np.ndarray, other: np.ndarray, precision: float) -> tuple[float, float | None]:
    """The largest recall of any threshold that keeps a precision, and that threshold.

    A query within a threshold of its original is a hit, one within it of something else a fault.

    Args:
        own: `[num]` how far each query is from its original.
        other: `[num]` how far it is from the nearest of all others.
        precision: hits of hits and faults.

    Returns:
        The share of queries that are hits, and the largest such threshold; 0 and None if there is
        none.

    Example:
        >>> recall_at(np.array([1.0, 2, 9]), np.array([5.0, 3, 8]), 1.0)
        (0.6666666666666666, 2.0)
    """
    thresholds = np.unique(own)
    hits = np.searchsorted(np.sort(own), thresholds, side="right")
    faults = np.searchsorted(np.sort(other), thresholds, side="right")
    kept = hits >= precision * (hits + faults)
    if not kept.any():
        return 0.0, None
    best = np.flatnonzero(kept)[-1]
    return float(hits[best] / len(own)), float(thresholds[best])
