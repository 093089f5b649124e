"""A model in, robustness records out.

A record is one JSON file per model and attack, `<folder>/<attack>.json`: metrics with their
protocol, curves, perturbation sizes, settings, time. Beside it, `<attack>.npz` holds some
queries and what they retrieve, for people to look at. The record "benign" is the model
without an attack. A record that exists with the same identity is not made again; one of other
settings is kept in `<folder>/earlier/`, with the start of its identity in its name.
"""

import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

from saat_jax import datasets, files, hamming, networks, options
from saat_jax.evaluation import flags, judging, worst_case
from saat_jax.evaluation.crafting import Encoder
from saat_jax.evaluation.judging import JudgedModel
from saat_jax.evaluation.methods import Learned
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.record_files import RecordFiles, digest_of
from saat_jax.evaluation.suites import AnyAttack, Suite

_TOP = 10
_AT_A_TIME = 256
_NUM_RESAMPLES = 1000
# What is read of a record that is there.
_FIELDS = {"metrics": dict, "images_saved": bool}
Record = dict[str, Any]


def evaluate(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    suite: Mapping[str, AnyAttack],
    target_labels: np.ndarray | None,
    *,
    protocol: Protocol,
    folder: str | pathlib.Path,
    identity: dict[str, Any],
    batch_size: int,
    learned: Mapping[str, Learned] | None = None,
    num_examples: int = 6,
    save_images: bool = False,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Judges a model without an attack and under every attack of a suite.

    A record that is there with the same identity is not made again; an attack that was stopped
    goes on after its last batch.

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        dataset: gives train (the code bank), query and database.
        suite: the attacks by the name of their record; of a `Suite`, such as `standard_suite`
            gives, the worst of its members counts, query by query.
        target_labels: `[num_queries, num_classes]`, one draw for all targeted attacks; None if
            there are none. Without them "benign" has no t-MAP.
        protocol: how to measure.
        folder: where the records go; its name is the model's.
        identity: what made the model, in JSON's types; part of each record's identity.
        batch_size: images in a batch.
        learned: the networks trained for those attacks of the suite that need one.
        num_examples: how many queries to keep for people to look at.
        save_images: whether to write all adversarial images as PNG beside the records.
        progress: whether to show progress bars.

    Returns:
        The records by name, "benign" first.

    Raises:
        ArithmeticError: if an attacked image left the ball or [0, 1], or a code is not finite.
        OSError: if a record cannot be written, as on a full disk.
        ValueError: if an image cannot be read, a record is damaged, an attack has no name for a
            file or lacks the network trained for it, or an argument is wrong.
    """
    options.check_numbers(batch_size=batch_size, num_examples=num_examples)
    judging.check_suite(suite, dataset, target_labels)
    folder = pathlib.Path(folder)
    common = {"model": folder.name, **judging.common_fields(dataset, protocol)}
    shared = {
        "model": identity,
        **judging.common_identity(dataset, target_labels, common),
        "examples": num_examples,
    }
    plan = {
        name: RecordFiles(folder, name, digest_of({**shared, **made_from}))
        for name, made_from in _made_from(suite, learned or {}).items()
    }
    records = {}
    for name, place in plan.items():
        with_images = save_images and name in suite
        record = _finished(place, batch_size, len(dataset.query), with_images=with_images)
        if record is not None:
            records[name] = record
    if len(records) == len(plan):
        return records

    model = judging.prepare(
        Encoder(encode_fn, variables),
        dataset,
        target_labels,
        protocol=protocol,
        batch_size=batch_size,
        learned=learned,
        progress=progress,
    )
    common["protocol"]["num_bits"] = model.known.database_codes.shape[1]
    common["num_unlabelled"] = judging.num_unlabelled(dataset)
    tests = flags.ModelTests(model)
    rows = np.linspace(0, len(dataset.query) - 1, min(num_examples, len(dataset.query)), dtype=int)
    for name, place in plan.items():
        if name in records:
            continue
        if name in suite:
            fields, arrays = _under_attack(model, suite[name], tests, place, rows, save_images)
        else:
            fields, arrays = _without_attack(model, tests, place, rows)
        records[name] = {**common, "attack": name, **fields, "identity": place.identity}
        if jax.process_index() == 0:
            # The record last: it says that all is there.
            files.write_arrays(place.arrays, arrays)
            files.write_json(place.record, records[name])
        place.remove_unfinished()
    return {name: records[name] for name in plan}


def _made_from(
    suite: Mapping[str, AnyAttack], learned: Mapping[str, Learned]
) -> dict[str, dict[str, Any]]:
    """What each record is made from beside what all share, by name."""
    made_from: dict[str, dict[str, Any]] = {judging.BENIGN: {"settings": None}}
    for name, attack in suite.items():
        networks = [learned.get(member.learned) for member in attack.members.values()]
        identities = [network and network.identity for network in networks]
        made_from[name] = {
            "settings": attack.asdict(),
            "learned": identities if isinstance(attack, Suite) else identities[0],
        }
    return made_from


def _finished(
    place: RecordFiles, batch_size: int, num_queries: int, *, with_images: bool
) -> Record | None:
    """A record that is there with all that belongs to it, or None."""
    record = place.read(_FIELDS)
    if record is None or not place.arrays.is_file():
        return None
    num_images = sum(1 for _ in place.images.glob("*.png"))
    has_images = record["images_saved"] and num_images == num_queries
    if with_images and not has_images:
        return None
    # What a kill has left of an attack that is done, unless its images are not.
    place.remove_unfinished(None if has_images else place.unfinished("png", batch_size))
    return record


def _without_attack(
    model: JudgedModel, tests: flags.ModelTests, place: RecordFiles, rows: np.ndarray
) -> tuple[Record, dict[str, np.ndarray]]:
    """The fields and the arrays of the record of a model without an attack."""
    place.make_room()
    metrics, curves = model.scores(model.benign_codes, targeted=False)
    if model.known.target_labels is not None:
        target_metrics, target_curves = model.scores(model.benign_codes, targeted=True)
        metrics |= target_metrics
        curves |= {f"{name}_target": curve for name, curve in target_curves.items()}
    queries = _of_queries(model, model.benign_codes, targeted=False)
    fields = {
        "targeted": False,
        "metrics": metrics,
        "interval": _interval(model, queries["average_precision"]),
        "flags": flags.raised(tests.values | tests.near_chance()),
        "curves": curves,
        "perturbation": None,
        "settings": None,
        "images_saved": False,
        "seconds_per_image": None,
    }
    images = _load(model.dataset, model.dataset.query, rows)
    examples = _examples(model, rows, queries["nearest_rows"][rows], images, targeted=False)
    arrays = {"database_codes": np.asarray(hamming.pack_codes(model.known.database_codes))}
    for split in (model.dataset.query, model.dataset.database):
        if split.paths is not None:
            arrays[f"{split.name}_paths"] = np.array(split.paths)
    return fields, {**examples, **queries, **arrays}


def _under_attack(
    model: JudgedModel,
    settings: AnyAttack,
    tests: flags.ModelTests,
    place: RecordFiles,
    rows: np.ndarray,
    save_images: bool,
) -> tuple[Record, dict[str, np.ndarray]]:
    """The fields and the arrays of the record of an attack."""
    unfinished = place.unfinished("png" if save_images else "codes", model.batch_size)
    place.make_room(unfinished, save_images=save_images)
    targeted, title = settings.targeted, f"attack {place.name}"
    told: Record = {}
    arrays: dict[str, np.ndarray] = {}
    theory: np.ndarray | None

    def saving(folder: pathlib.Path) -> Callable[[int, np.ndarray], None] | None:
        return functools.partial(_save_image, folder) if save_images else None

    if isinstance(settings, Suite):
        outcome = worst_case.run_members(
            model,
            settings,
            parts=unfinished,
            example_rows=rows,
            save_into=lambda name: saving(unfinished / name / "images"),
            title=title,
        )
        result = outcome.worst()
        theory = worst_case.best_codes(model, targeted=targeted)
        values = flags.of_suite(outcome, tests)
        told = {"members": outcome.by_member(model.mean_over_judged)}
        arrays = {"member": outcome.best}
        if save_images and jax.process_index() == 0:
            names = list(settings.members)
            _keep_images(place.images, [unfinished / names[i] / "images" for i in outcome.best])
    else:
        target_codes = settings.target_codes(model.known)
        result = model.attack(
            settings,
            target_codes,
            example_rows=rows,
            save=saving(place.images),
            parts=unfinished / str(jax.process_index()),
            title=title,
        )
        theory, values = target_codes.theory, {}
    metrics, curves = model.scores(result.codes, targeted=targeted)
    queries = _of_queries(model, result.codes, targeted=targeted)
    rounded = model.average_precision(result.rounded_codes, targeted=targeted)
    # What the attack reaches as 8-bit images, and what it would at best.
    metric = judging.metric_of(targeted)
    metrics[f"{metric}_8bit"] = model.mean_over_judged(rounded)
    if theory is not None:
        metrics[f"theory_{metric}"] = model.map_at_k(theory, targeted=targeted)
    sign = 1 if targeted else -1
    values |= flags.of_attack(model, result, queries["average_precision"], rounded, sign)
    forward, backward = settings.passes
    fields = {
        "targeted": targeted,
        "metrics": metrics,
        "interval": _interval(model, queries["average_precision"]),
        "flags": flags.raised(tests.values | values),
        **told,
        "curves": curves,
        "perturbation": result.perturbation,
        "settings": settings.asdict(),
        "images_saved": save_images,
        "forward_passes": forward,
        "backward_passes": backward,
        "seconds_per_image": result.seconds_per_image,
    }
    images = result.examples / np.float32(255)
    examples = _examples(model, rows, queries["nearest_rows"][rows], images, targeted=targeted)
    return fields, {**examples, **queries, **arrays}


def _of_queries(model: JudgedModel, codes: np.ndarray, *, targeted: bool) -> dict[str, np.ndarray]:
    """What is kept of every query: its average precision, its code, and what lies nearest."""
    nearest, near = [], []
    # Some at a time: all distances of a large database would fill the memory.
    for row in range(0, len(codes), _AT_A_TIME):
        part = codes[row : row + _AT_A_TIME]
        distances = np.asarray(hamming.hamming_distance(part, model.known.database_codes))
        nearest.append(np.argsort(distances, axis=1, kind="stable")[:, :_TOP])
        near.append(np.take_along_axis(distances, nearest[-1], axis=1))
    return {
        "average_precision": model.average_precision(codes, targeted=targeted),
        "query_codes": np.asarray(hamming.pack_codes(codes)),
        "nearest_rows": np.concatenate(nearest).astype(np.int32),
        "nearest_distances": np.concatenate(near).astype(np.uint16),
    }


def _interval(model: JudgedModel, scores: np.ndarray) -> list[float]:
    """95 % by bootstrap over the queries that count. `[low, high]`"""
    judged = scores[model.protocol.judged_rows(model.known.labels)]
    rng = np.random.default_rng(model.protocol.seed)
    draws = rng.integers(len(judged), size=(_NUM_RESAMPLES, len(judged)))
    return np.quantile(judged[draws].mean(axis=1), [0.025, 0.975]).tolist()


def _examples(
    model: JudgedModel, rows: np.ndarray, top: np.ndarray, images: np.ndarray, *, targeted: bool
) -> dict[str, np.ndarray]:
    """Some queries, as handed to the system, with the rows `top` that they retrieve first."""
    dataset, known = model.dataset, model.known
    found = _load(dataset, dataset.database, top.ravel()).reshape(*top.shape, *images.shape[1:])
    wanted = known.labels_for(targeted)[rows]
    # Without targets an example has none: no label is set.
    targets = 0 * known.labels if known.target_labels is None else known.target_labels
    return {
        "images": images,
        "benign_images": _load(dataset, dataset.query, rows),
        "top_images": np.round(found * 255).astype(np.uint8),
        "top_relevant": np.einsum("qc,qtc->qt", wanted, known.database_labels[top]) > 0,
        "labels": known.labels[rows] > 0,
        "target_labels": targets[rows] > 0,
        "class_names": np.array(dataset.class_names),
    }


def _load(dataset: datasets.Dataset, split: datasets.Split, rows: np.ndarray) -> np.ndarray:
    return datasets.load_images(split, rows, image_size=dataset.image_size, resize=dataset.resize)


def _save_image(folder: pathlib.Path, row: int, image: np.ndarray) -> None:
    datasets.write_png(folder / f"{row:06d}.png", image)


def _keep_images(folder: pathlib.Path, places: Sequence[pathlib.Path]) -> None:
    """Takes each query's image out of one of several folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, place in enumerate(places):
        shutil.copyfile(place / f"{row:06d}.png", folder / f"{row:06d}.png")
