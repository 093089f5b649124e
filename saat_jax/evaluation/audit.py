"""An encoder, images and an operating point in, one record out: how a matcher is fooled.

No labels: an attacked copy of a listed image is to match it no more (evasion), and an image is to
match a listed image that it is not (collision). What counts is the image as it is sent, with 8 bits
a channel, encoded by the encoder's own runtime.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from saat_jax import datasets, options, retrieval
from saat_jax.encoders import Encoder, parity
from saat_jax.evaluation import flags, matcher
from saat_jax.evaluation.matcher import Fooled, Images, Matcher, Task, quartiles
from saat_jax.retrieval import OperatingPoint, Rate

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
# As what the attacked image may be sent beside PNG, by which the searches are judged.
_SENT = ("jpeg_95", "jpeg_75")
# What happens to images without an attacker.
_EDITS = ("jpeg_95", "jpeg_75", "resize_50", "crop_5", "brightness_110", "screenshot_90")
# Images that are encoded again to see whether the codes stay; of each task, shown on the page; of
# which the distances of all pairs are kept.
_NUM_AGAIN, _NUM_EXAMPLES, _NUM_PAIRED = 8, 4, 200
Record = dict[str, Any]


def audit(
    encoder: Encoder,
    images: Images,
    point: OperatingPoint | Mapping[str, Any],
    listed: Images | None = None,
    *,
    folder: str | os.PathLike[str],
    epsilons: Sequence[float] = EPSILONS,
    progress: bool = False,
    **given: Any,
) -> Record:
    """Measures how easily a matcher is evaded and made to collide at its operating point.

    Args:
        encoder, images, point, listed: as of `Matcher`.
        folder: where the record and the attacked images go, as PNG.
        epsilons: radii of the L-infinity ball in units of [0, 1]; 8-bit images know only whole
            grey levels, of which each is rounded down.
        progress: whether to show a progress bar.
        **given: what else a `Matcher` takes.

    Returns:
        The record, which `<folder>/audit.json` has too. One that is there with the same identity
        is not made again; an audit that was stopped goes on after its last batch.

    Raises:
        ValueError: if an image cannot be read, two are the same, the images are too few for the
            point, or an argument is wrong.
        OSError: if something cannot be written.
    """
    return attack(
        Matcher(encoder, images, point, listed, **given),
        folder=folder,
        epsilons=epsilons,
        progress=progress,
    )


def attack(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    epsilons: Sequence[float] = EPSILONS,
    progress: bool = False,
) -> Record:
    """Attacks a matcher by its gradient, within balls of several sizes; arguments as of `audit`."""
    options.check_numbers(epsilons=tuple(epsilons))
    levels = _levels(epsilons)

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        return _make(made, levels, pathlib.Path(folder), unfinished, progress)

    return made.record("audit", folder, {"levels": levels}, make)


def _levels(epsilons: Sequence[float]) -> list[int]:
    """Whole grey levels, from the least."""
    levels = sorted({int(np.floor(255 * epsilon + 1e-3)) for epsilon in epsilons})
    if not levels or levels[0] < 1:
        raise ValueError(
            f"epsilons must be at least 1 / 255, one grey level of an 8-bit image, got {epsilons}"
        )
    return levels


def _make(
    made: Matcher, levels: list[int], folder: pathlib.Path, unfinished: pathlib.Path, progress: bool
) -> tuple[Record, dict[str, np.ndarray]]:
    """Attacks some of the photos, and writes the images."""
    record, arrays = _without_attack(made)
    tasks = [task for name in matcher.TASKS if len((task := made.task(name)).rows)]
    total = sum(len(task.rows) for task in tasks) * len(levels)
    found: dict[str, dict[int, Fooled]] = {}
    record |= {"tasks": {}, "smallest_epsilon": {}}
    with tqdm(total=total, desc="audit", unit="image", disable=not progress) as bar:
        for task in tasks:
            parts = unfinished / task.name
            by_level: dict[int, Fooled] = {}
            for level in levels:
                fooled = made.attack(
                    task,
                    np.full(len(task.rows), level),
                    parts=parts / str(level),
                    update=bar.update,
                    # Compared where there is most to be found.
                    gradient_free=level == levels[-1],
                )
                by_level[level] = fooled.after([None, *by_level.values()][-1])
            smallest = made.smallest(task, by_level, parts)
            found[task.name] = by_level
            outputs = {level: made.encoder.run(by_level[level].images) for level in levels}
            record["tasks"][task.name] = [
                {"epsilon": level / 255, **_told(made, task, fooled, outputs[level])}
                for level, fooled in by_level.items()
            ]
            record["smallest_epsilon"][task.name] = quartiles(smallest)
            arrays |= _kept(made, task, by_level, smallest, outputs)
            _save_images(folder / "images" / task.name, made, task, by_level)
    record["flags"] = flags.raised(_flags(made, record, found))
    return record, arrays


def _without_attack(made: Matcher) -> tuple[Record, dict[str, np.ndarray]]:
    """What is known before any attack."""
    encoder, point = made.encoder, made.point
    false_match = None
    if point.kind != "top_k":
        rate = retrieval.false_match_rate(point, made.listed_outputs, made.groups)
        false_match = {**rate.asdict(), "least": rate.least}
    own = made.task("evade")
    edits: dict[str, Record] = {}
    changed = []
    for name in _EDITS:
        outputs = made.run_edited([made.photos.images[row] for row in own.rows], name)
        changed.append(made.changed(own, outputs).astype(np.float32))
        edits[name] = {
            "unmatched": made.rate(own, outputs).asdict(),
            "changed": quartiles(changed[-1]),
        }
    passes = len(made.members) * (matcher.NUM_STEPS + 1)
    record = {
        "parity": dataclasses.asdict(parity(encoder, made.photos.images, made.outputs)),
        "false_match": false_match,
        "edits": edits,
        "indexes": {
            name: Rate(int(match.sum()), len(own.rows)).asdict()
            for name, match in made.by_index(made.outputs[own.rows], own.wanted).items()
        },
        "forward_passes": passes or matcher.NUM_QUERIES + 1,
        "backward_passes": passes,
    }
    few, groups = made.listed_outputs[:_NUM_PAIRED], made.groups[:_NUM_PAIRED]
    different = np.triu(groups[:, None] != groups, k=1)
    arrays = {
        "names": np.array(made.photos.names),
        "listed_names": np.array(made.listed.names),
        "pairs": point.apart(few, few)[different].astype(np.float32),
        "edited": np.concatenate(changed),
    }
    if point.kind == "cosine":
        arrays["listed_outputs"] = made.listed_outputs
    else:
        arrays["listed_codes"] = retrieval.pack(made.listed_outputs)
    return record, arrays


def _told(made: Matcher, task: Task, fooled: Fooled, outputs: np.ndarray) -> Record:
    """What is said of a task within one radius, of images and what they are encoded to."""
    told = {"png": made.rate(task, outputs).asdict()}
    # A PNG has every level of an image.
    for name in _SENT:
        told[name] = made.rate(task, made.run_edited(fooled.images, name)).asdict()
    told["changed"] = quartiles(made.changed(task, outputs))
    told["indexes"] = {
        index: Rate(int(np.sum(match == (task.sign > 0))), len(task.rows)).asdict()
        for index, match in made.by_index(outputs, task.wanted).items()
    }
    names = [*made.members, matcher.GRADIENT_FREE]
    counts = np.bincount(fooled.member, minlength=len(names)).tolist()
    told["members"] = dict(zip(names, counts, strict=True))
    return told


def _kept(
    made: Matcher,
    task: Task,
    by_level: Mapping[int, Fooled],
    smallest: np.ndarray,
    outputs: Mapping[int, np.ndarray],
) -> dict[str, np.ndarray]:
    """What is kept of every attacked image, and a few of them: those first that change least."""
    every = by_level.values()
    kept: dict[str, Any] = {
        "rows": task.rows,
        "wanted": task.wanted,
        "smallest": smallest,
        "gain": np.stack([fooled.gain for fooled in every]),
        "member": np.stack([fooled.member for fooled in every]),
        "apart": np.stack([made.changed(task, found) for found in outputs.values()]),
    }
    for number, place in enumerate(np.argsort(smallest, kind="stable")[:_NUM_EXAMPLES]):
        done = [level for level, fooled in by_level.items() if fooled.gain[place] > 0]
        level = [*done, [*by_level][-1]][0]
        one, row, output = task.some(np.array([place])), task.rows[place], outputs[level][[place]]
        apart = made.point.apart(output, made.listed_outputs[one.wanted])[0]
        before = made.changed(one, made.outputs[[row]])[0]
        kept |= {
            f"example_{number}/name": made.photos.names[row],
            f"example_{number}/original": made.photos.images[row],
            f"example_{number}/attacked": by_level[level].images[place],
            f"example_{number}/wanted": made.listed.images[one.wanted[0, np.argmin(apart)]],
            f"example_{number}/told": [level, before, apart.min(), bool(done)],
        }
    return {f"{task.name}/{name}": np.asarray(value) for name, value in kept.items()}


def _save_images(
    folder: pathlib.Path, made: Matcher, task: Task, by_level: Mapping[int, Fooled]
) -> None:
    """The attacked images as PNG, a folder for each radius."""
    for level, fooled in by_level.items():
        for row, image in zip(task.rows, fooled.images, strict=True):
            path = folder / str(level) / pathlib.Path(made.photos.names[row]).with_suffix(".png")
            datasets.write_png(path, image)


def _flags(
    made: Matcher, record: Record, found: Mapping[str, Mapping[int, Fooled]]
) -> dict[str, float]:
    """Values by flag."""
    few = made.photos.images[:_NUM_AGAIN]
    again = [made.encoder.run(few) for _ in range(5)]
    values = {
        "random_output": float(np.mean(np.any(np.stack(again) != again[0], axis=(0, 2)))),
        "runtime_differs": record["parity"]["bits_differ"] / record["parity"]["num_bits"],
    }
    last = [[*by_level.values()][-1] for by_level in found.values()]
    gain, free, searched, blind, member = (
        np.concatenate([getattr(fooled, name) for fooled in last])
        for name in ("gain", "gradient_free", "searched", "blind", "member")
    )
    values |= {
        "no_gradient": float(np.mean(blind)),
        "gradient_free_wins": float(np.mean((free > 0) & (member == len(made.members)))),
        "lost_in_8_bits": float(np.mean((searched > 0) & (gain <= 0))),
    }
    shrunk = [
        (before.gain > 0) & (after.alone <= 0)
        for by_level in found.values()
        for before, after in zip([*by_level.values()][:-1], [*by_level.values()][1:], strict=True)
    ]
    if shrunk:
        values["not_monotone"] = float(np.mean(np.concatenate(shrunk)))
    return values
