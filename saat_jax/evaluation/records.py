"""A model in, robustness records out.

A record is one JSON file per model and attack, `<folder>/<attack>.json`: metrics with their
protocol, curves, perturbation sizes, settings, time. Beside it, `<attack>.npz` holds some
queries and what they retrieve, for people to look at. The record "benign" is the model
without an attack. A record that exists with the same identity is not made again.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import chex
import jax
import numpy as np

from saat_jax import datasets, files, hamming, networks
from saat_jax.evaluation import folders
from saat_jax.evaluation.crafting import AttackResult, Batches, attack_queries, encode
from saat_jax.evaluation.methods import (
    AttackerKnowledge,
    AttackSettings,
    Learned,
    TargetCodes,
    check_suite,
)
from saat_jax.evaluation.protocol import Protocol

_TOP = 10


def batches_from(
    dataset: datasets.Dataset, split: datasets.Split, batch_size: int
) -> Callable[[int], Batches]:
    """Maps a batch's number to the batches of a split from that one on, in row order.

    Of several processes, each gets its share of every batch.
    """
    return lambda start: datasets.eval_batches(
        split,
        batch_size=batch_size,
        image_size=dataset.image_size,
        resize=dataset.resize,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def attacker_knowledge(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    target_labels: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    learned: Mapping[str, Learned] | None = None,
    progress: bool = False,
) -> AttackerKnowledge:
    """Encodes a dataset into what an attacker of the model knows. Arguments as of `evaluate`."""
    database, query, train = (
        encode(
            encode_fn,
            variables,
            batches_from(dataset, split, batch_size)(0),
            size=len(split),
            binary=split is not dataset.query,
            title=f"encode {split.name}",
            progress=progress,
        )
        for split in (dataset.database, dataset.query, dataset.train)
    )
    return AttackerKnowledge(
        labels=dataset.query.labels,
        target_labels=target_labels,
        soft_codes=query,
        train_codes=train,
        train_labels=dataset.train.labels,
        database_codes=database,
        database_labels=dataset.database.labels,
        seed=seed,
        learned=learned or {},
    )


def check_targets(
    dataset: datasets.Dataset,
    suite: Mapping[str, AttackSettings],
    target_labels: np.ndarray | None,
) -> np.ndarray:
    """The target labels, all zero if there are none; ValueError if a targeted attack needs them."""
    if target_labels is not None:
        return target_labels
    if targeted := [name for name, attack in suite.items() if attack.targeted]:
        raise ValueError(f"attack {targeted[0]!r} is targeted and needs target_labels, got None")
    return np.zeros_like(dataset.query.labels)


def evaluate(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    suite: Mapping[str, AttackSettings],
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
        suite: the attacks by the name of their record.
        target_labels: `[num_queries, num_classes]`, one draw for all targeted attacks; None if
            there is none for some query, and no attack of the suite is targeted.
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
        ValueError: if an image cannot be read, a record is no JSON, or an attack lacks the network
            trained for it, or its target labels.
    """
    check_suite(suite)
    folder = pathlib.Path(folder)
    has_targets = target_labels is not None
    target_labels = check_targets(dataset, suite, target_labels)
    common = {"model": folder.name, **circumstances(dataset, protocol)}
    # Hashed once: what all records share.
    shared = {
        "model": identity,
        "data": dataset.fingerprint(),
        "targets": hashlib.sha256(target_labels.tobytes()).hexdigest(),
        "common": common,
        "examples": num_examples,
    }
    plan = {"benign": folders.digest_of({**shared, "settings": None})}
    for name, attack in suite.items():
        trained = (learned or {}).get(attack.learned)
        made_from = {"settings": attack.asdict(), "learned": trained and trained.identity}
        plan[name] = folders.digest_of({**shared, **made_from})
    records = {}
    for name, digest in plan.items():
        record = folders.finished(folder / f"{name}.json", digest)
        if record is None or not (folder / f"{name}.npz").is_file():
            continue
        has_images = record["images_saved"] and _num_images(folder / name) == len(dataset.query)
        if has_images or not (save_images and name in suite):
            records[name] = record
            # What a kill has left of an attack that is done, unless its images are not.
            of_images = folders.parts_of(folder, name, digest, "png", batch_size)
            folders.remove_parts(folder, name, None if has_images else of_images)
    if len(records) == len(plan):
        return records

    known = attacker_knowledge(
        encode_fn,
        variables,
        dataset,
        target_labels,
        seed=protocol.seed,
        batch_size=batch_size,
        learned=learned,
        progress=progress,
    )
    common["protocol"]["num_bits"] = known.database_codes.shape[1]
    rows = np.linspace(0, len(dataset.query) - 1, min(num_examples, len(dataset.query)), dtype=int)

    def store(name: str, codes: np.ndarray, images: np.ndarray, **fields: Any) -> None:
        examples = _examples(dataset, known, rows, codes, images, targeted=fields["targeted"])
        records[name] = {**common, "attack": name, **fields, "identity": plan[name]}
        if jax.process_index() == 0:
            # The record last: it says that all is there.
            files.write_arrays(folder / f"{name}.npz", examples)
            files.write_json(folder / f"{name}.json", records[name])

    if "benign" not in records:
        codes = np.asarray(hamming.binarize(known.soft_codes))
        images = datasets.load_images(
            dataset.query, rows, image_size=dataset.image_size, resize=dataset.resize
        )
        metrics, curves = _score(protocol, known, codes, targeted=False)
        if has_targets:
            target_metrics, target_curves = _score(protocol, known, codes, targeted=True)
            metrics |= target_metrics
            curves |= {f"{name}_target": curve for name, curve in target_curves.items()}
        store(
            "benign",
            codes,
            images,
            targeted=False,
            metrics=metrics,
            curves=curves,
            perturbation=None,
            settings=None,
            images_saved=False,
            seconds_per_image=None,
        )
    for name, attack in suite.items():
        if name in records:
            continue
        target_codes = attack.target_codes(known)
        kind = "png" if save_images else "codes"
        parts = folders.parts_of(folder, name, plan[name], kind, batch_size)
        folders.begin(folder, name, parts, save_images=save_images)
        result = attack_queries(
            encode_fn,
            variables,
            batches_from(dataset, dataset.query, batch_size),
            target_codes,
            attack,
            seed=protocol.seed,
            example_rows=rows,
            save=functools.partial(_save_image, folder / name) if save_images else None,
            parts=parts / str(jax.process_index()),
            title=f"attack {name}",
            progress=progress,
        )
        metrics, curves = _score(protocol, known, result.codes, targeted=attack.targeted)
        metrics |= _bounds(protocol, known, target_codes, result, targeted=attack.targeted)
        store(
            name,
            result.codes,
            result.examples / np.float32(255),
            targeted=attack.targeted,
            metrics=metrics,
            curves=curves,
            perturbation=result.perturbation,
            settings=attack.asdict(),
            images_saved=save_images,
            seconds_per_image=result.seconds_per_image,
        )
        folders.remove_parts(folder, name)
    return {name: records[name] for name in plan}


def circumstances(dataset: datasets.Dataset, protocol: Protocol) -> dict[str, Any]:
    """What all records of a run say of how they were made."""
    return {
        "protocol": {
            "dataset": dataset.name,
            "num_queries": len(dataset.query),
            "num_database": len(dataset.database),
            "num_train": len(dataset.train),
            "num_classes": dataset.num_classes,
            "image_size": dataset.image_size,
            "base_rate": datasets.relevant_share(dataset.query.labels, dataset.database.labels),
            **dataclasses.asdict(protocol),
        },
        "version": metadata.version("saat-jax"),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def metric_of(targeted: bool) -> str:
    """The name of the metric of an attack."""
    return "t_map" if targeted else "map"


def map_of(protocol: Protocol, known: AttackerKnowledge, codes: Any, targeted: bool) -> float:
    """MAP, or t-MAP if targeted, of the queries' codes."""
    return protocol.map_at_k(
        np.asarray(codes), known.database_codes, known.labels_for(targeted), known.database_labels
    )


def _score(
    protocol: Protocol, known: AttackerKnowledge, codes: np.ndarray, *, targeted: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """MAP or t-MAP of the queries' codes, and its curves."""
    curves = protocol.curves(
        codes, known.database_codes, known.labels_for(targeted), known.database_labels
    )
    return {metric_of(targeted): map_of(protocol, known, codes, targeted)}, curves


def _bounds(
    protocol: Protocol,
    known: AttackerKnowledge,
    target_codes: TargetCodes,
    result: AttackResult,
    *,
    targeted: bool,
) -> dict[str, float]:
    """What the attack reaches as 8-bit images, and what it would at best."""
    metric = metric_of(targeted)
    metrics = {f"{metric}_8bit": map_of(protocol, known, result.rounded_codes, targeted)}
    if target_codes.theory is not None:
        metrics[f"theory_{metric}"] = map_of(protocol, known, target_codes.theory, targeted)
    return metrics


def _examples(
    dataset: datasets.Dataset,
    known: AttackerKnowledge,
    rows: np.ndarray,
    codes: np.ndarray,
    images: np.ndarray,
    *,
    targeted: bool,
) -> dict[str, np.ndarray]:
    """Some queries, as handed to the system, with what they retrieve first."""
    distances = np.asarray(hamming.hamming_distance(codes[rows], known.database_codes))
    top = np.argsort(distances, axis=1, kind="stable")[:, :_TOP]
    load = functools.partial(
        datasets.load_images, image_size=dataset.image_size, resize=dataset.resize
    )
    found = load(dataset.database, top.ravel()).reshape(*top.shape, *images.shape[1:])
    relevant = (
        np.einsum("qc,qtc->qt", known.labels_for(targeted)[rows], known.database_labels[top]) > 0
    )
    return {
        "images": images,
        "benign_images": load(dataset.query, rows),
        "top_images": np.round(found * 255).astype(np.uint8),
        "top_relevant": relevant,
        "labels": dataset.query.labels[rows] > 0,
        "target_labels": known.target_labels[rows] > 0,
        "class_names": np.array(dataset.class_names),
    }


def _save_image(folder: pathlib.Path, row: int, image: np.ndarray) -> None:
    from PIL import Image

    with files.replacing(folder / f"{row:06d}.png") as temporary:
        Image.fromarray(image).save(temporary, format="png")


def _num_images(folder: pathlib.Path) -> int:
    return sum(1 for _ in folder.glob("*.png"))
