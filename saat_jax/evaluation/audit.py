"""An encoder, images and an operating point in, one record out: how a matcher is fooled.

No labels: an attacked copy of a listed image is to match it no more (evasion), and an image is to
match a listed image that it is not (collision). What counts is the image as it is sent, with 8 bits
a channel, encoded by the encoder's own runtime.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from saat_jax import datasets, files, options, retrieval
from saat_jax.datasets.photos import Photos, as_jpeg, edited, load_photos
from saat_jax.encoders import Encoder, parity
from saat_jax.evaluation import flags, matcher
from saat_jax.evaluation.matcher import Fooled, Matcher, Task
from saat_jax.evaluation.record_files import RecordFiles, digest_of
from saat_jax.retrieval import OperatingPoint, Rate

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
# As what the attacked image may be sent beside PNG, by which the searches are judged.
_QUALITIES = (95, 75)
# Images that are encoded again to see whether the codes stay; of each task, shown on the page; of
# which the distances of all pairs are kept.
_NUM_AGAIN, _NUM_EXAMPLES, _NUM_PAIRED = 8, 4, 200
# What is told of an encoder.
_TOLD = ("name", "num_bits", "runtime", "fingerprint", "image_size", "differentiable")
Record = dict[str, Any]
Images = str | os.PathLike[str] | Sequence[np.ndarray] | Photos


def audit(
    encoder: Encoder,
    images: Images,
    point: OperatingPoint | Mapping[str, Any],
    listed: Images | None = None,
    *,
    folder: str | os.PathLike[str],
    epsilons: Sequence[float] = EPSILONS,
    limit: int | None = None,
    longest: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    indexes: Mapping[str, retrieval.MakeIndex] | None = None,
    groups: str | None = None,
    progress: bool = False,
) -> Record:
    """Measures how easily a matcher is evaded and made to collide at its operating point.

    Args:
        encoder: as `load_encoder` gives it.
        images: a folder, or `[height, width, 3]` uint8 arrays, or "" for scikit-image's photos;
            all different. They are listed, attacked copies of them are to go unrecognised, and
            they are to be taken for other listed ones.
        point: an `OperatingPoint`, or what `retrieval.point_of` makes one of, such as
            `{"radius": 31}` or `{"false_match_rate": 0.001}`.
        listed: what is listed beside them.
        folder: where the record and the attacked images go, as PNG.
        epsilons: radii of the L-infinity ball in units of [0, 1]; 8-bit images know only whole
            grey levels, of which each is rounded down.
        limit: so many of the images are attacked, evenly spaced; None for all.
        longest: larger images are brought down to such a long side first, in pixels; smaller ones
            take less time, and are harder to fool.
        seed: of the starts, and of which image is to be taken for which.
        batch_size: images of one size that are attacked together.
        indexes: what makes the indexes that the listed images are in, by name, such as
            `retrieval.faiss_index("ivf")`: what they return of the attacked images is told beside.
        groups: a regular expression; images, listed ones too, in whose names it finds the same
            text are near-duplicates. An attacked copy is to match none of them, none is a victim
            of another, and their pairs are no false matches.
        progress: whether to show a progress bar.

    Returns:
        The record, which `<folder>/audit.json` has too. One that is there with the same identity
        is not made again; an audit that was stopped goes on after its last batch.

    Raises:
        ValueError: if an image cannot be read, two are the same, the images are too few for the
            point, or an argument is wrong.
        OSError: if something cannot be written.
    """
    numbers = {"seed": seed, "batch_size": batch_size, "limit": limit, "longest": longest}
    options.check_numbers(epsilons=tuple(epsilons), **numbers)
    levels = _levels(epsilons)
    photos = load_photos(images, longest=longest).fitted(encoder.image_size)
    others: Photos | None = None
    if listed is not None:
        others = load_photos(listed, longest=longest).fitted(encoder.image_size)
    made_from = {
        "encoder": encoder.fingerprint,
        "images": photos.fingerprint(),
        "listed": others and others.fingerprint(),
        "point": point.asdict() if isinstance(point, OperatingPoint) else dict(point),
        "levels": levels,
        "limit": limit,
        "seed": seed,
        "members": [matcher.MEMBERS, matcher.NUM_STEPS, matcher.NUM_QUERIES],
        "indexes": [*(indexes or {})],
        "groups": groups or None,
        "version": metadata.version("saat-jax"),
    }
    place = RecordFiles(pathlib.Path(folder), "audit", digest_of(made_from))
    if (record := place.read({"tasks": dict})) is not None and place.arrays.is_file():
        return record
    with jax.default_matmul_precision("highest"):
        made = Matcher(
            encoder,
            photos,
            others,
            point,
            indexes=indexes or {},
            groups=groups,
            limit=limit,
            seed=seed,
            batch_size=batch_size,
        )
        _make(made, levels, place, batch_size, progress)
    # As any later call finds it.
    stored = place.read()
    assert stored is not None
    return stored


def _levels(epsilons: Sequence[float]) -> list[int]:
    """Whole grey levels, from the least."""
    levels = sorted({int(np.floor(255 * epsilon + 1e-3)) for epsilon in epsilons})
    if not levels or levels[0] < 1:
        raise ValueError(
            f"epsilons must be at least 1 / 255, one grey level of an 8-bit image, got {epsilons}"
        )
    return levels


def _make(
    made: Matcher,
    levels: list[int],
    place: RecordFiles,
    batch_size: int,
    progress: bool,
) -> None:
    """Attacks some of the photos, and writes record, arrays and images."""
    unfinished = place.unfinished("audit", batch_size)
    place.make_room(unfinished)
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
            record["smallest_epsilon"][task.name] = _quartiles(smallest)
            arrays |= _kept(made, task, by_level, smallest, outputs)
            _save_images(place.folder / "images" / task.name, made, task, by_level)
    record["flags"] = flags.raised(_flags(made, record, found))
    record["identity"] = place.identity
    files.write_arrays(place.arrays, arrays)
    # The record last: it says that all is there.
    files.write_json(place.record, record)
    place.remove_unfinished()


def _without_attack(made: Matcher) -> tuple[Record, dict[str, np.ndarray]]:
    """Who, what and where; and what is known before any attack."""
    encoder, point = made.encoder, made.point
    false_match = None
    if point.kind != "top_k":
        rate = retrieval.false_match_rate(point, made.listed_outputs, made.groups)
        false_match = {**rate.asdict(), "least": rate.least}
    own = made.task("evade")
    edits: dict[str, Record] = {}
    changed = []
    copies = [edited(made.photos.images[row]) for row in own.rows]
    for name in copies[0]:
        images = Photos((), tuple(copy[name] for copy in copies)).fitted(encoder.image_size).images
        outputs = encoder.run(images)
        changed.append(made.changed(own, outputs).astype(np.float32))
        lost = int(np.sum(made.gain(own, outputs) > 0))
        edits[name] = {
            "unmatched": Rate(lost, len(own.rows)).asdict(),
            "changed": _quartiles(changed[-1]),
        }
    passes = len(made.members) * (matcher.NUM_STEPS + 1)
    record = {
        "encoder": {field: getattr(encoder, field) for field in _TOLD},
        "parity": dataclasses.asdict(parity(encoder, made.photos.images, made.outputs)),
        "images": {"number": len(made.photos), "fingerprint": made.photos.fingerprint()},
        "listed": len(made.listed),
        "near_duplicates": len(made.listed) - len(np.unique(made.groups)),
        "point": {**point.asdict(), "false_match": false_match},
        "edits": edits,
        "indexes": {
            name: Rate(int(match.sum()), len(own.rows)).asdict()
            for name, match in made.by_index(made.outputs[own.rows], own.wanted).items()
        },
        "forward_passes": passes or matcher.NUM_QUERIES + 1,
        "backward_passes": passes,
        "seed": made.seed,
        "version": metadata.version("saat-jax"),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
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
    told: Record = {}
    sent = {
        f"jpeg_{quality}": made.encoder.run([as_jpeg(image, quality) for image in fooled.images])
        for quality in _QUALITIES
    }
    # A PNG has every level of an image.
    for name, found in {"png": outputs, **sent}.items():
        told[name] = Rate(int(np.sum(made.gain(task, found) > 0)), len(task.rows)).asdict()
    told["changed"] = _quartiles(made.changed(task, outputs))
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


def _quartiles(values: np.ndarray) -> dict[str, float | None]:
    """Median and quartiles; None where they lie above all that is known."""
    quantiles = np.quantile(values, [0.25, 0.5, 0.75], method="higher").tolist()
    names = ("low", "median", "high")
    return {n: v if np.isfinite(v) else None for n, v in zip(names, quantiles, strict=True)}
