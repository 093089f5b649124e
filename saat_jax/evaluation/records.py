"""A model in, robustness records out.

A record is one JSON file per model and attack, `<folder>/<attack>.json`: metrics with their
protocol, curves, perturbation sizes, settings, time. Beside it, `<attack>.npz` holds some
queries and what they retrieve, for people to look at. The record "benign" is the model
without an attack. A record that exists with the same identity is not made again.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np

import saat_jax
from saat_jax import datasets, files, hamming, networks
from saat_jax.evaluation.crafting import AttackResult, Batches, Encoder, attack_queries, encode
from saat_jax.evaluation.methods import AttackSettings, Guides, Knowledge, Learned
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


def gather_knowledge(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    target_labels: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    learned: Mapping[str, Learned] | None = None,
    progress: bool = False,
) -> Knowledge:
    """Encodes a dataset: what an attacker of the model knows. Arguments as of `evaluate`."""
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
    return Knowledge(
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


def evaluate(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    suite: Mapping[str, AttackSettings],
    target_labels: np.ndarray,
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
        target_labels: `[num_queries, num_classes]`, one draw for all targeted attacks.
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
    """
    folder = pathlib.Path(folder)
    common = {"model": folder.name, **_circumstances(dataset, protocol)}
    # Hashed once: what all records share.
    shared = {
        "model": identity,
        "data": dataset.fingerprint(),
        "targets": hashlib.sha256(target_labels.tobytes()).hexdigest(),
        "common": common,
        "examples": num_examples,
    }
    plan = {"benign": _digest({**shared, "settings": None})}
    for name, attack in suite.items():
        trained = (learned or {}).get(attack.learned)
        made_from = {"settings": attack.asdict(), "learned": trained and trained.identity}
        plan[name] = _digest({**shared, **made_from})
    records = {}
    for name, digest in plan.items():
        record = _finished(folder / f"{name}.json", digest)
        if record is None or not (folder / f"{name}.npz").is_file():
            continue
        # Images of this very attack, and all of them.
        has_images = record["images_saved"] and _num_images(folder / name) == len(dataset.query)
        if has_images or not (save_images and name in suite):
            records[name] = record
    if len(records) == len(plan):
        return records

    known = gather_knowledge(
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
        target_metrics, target_curves = _score(protocol, known, codes, targeted=True)
        curves |= {f"{name}_target": curve for name, curve in target_curves.items()}
        store(
            "benign",
            codes,
            images,
            targeted=False,
            metrics=metrics | target_metrics,
            curves=curves,
            perturbation=None,
            settings=None,
            images_saved=False,
            seconds_per_image=None,
        )
    for name, attack in suite.items():
        if name in records:
            continue
        guides = attack.guides(known)
        # Parts of another attack, or in other batches, are not this one's.
        kind = "png" if save_images else "codes"
        parts = folder / f".{name}-{plan[name][:16]}-{kind}-{_share(batch_size)}"
        result = attack_queries(
            encode_fn,
            variables,
            batches_from(dataset, dataset.query, batch_size),
            guides,
            attack,
            seed=protocol.seed,
            example_rows=rows,
            save=functools.partial(_save_image, folder / name) if save_images else None,
            parts=parts,
            title=f"attack {name}",
            progress=progress,
        )
        metrics, curves = _score(protocol, known, result.codes, targeted=attack.targeted)
        metrics |= _bounds(protocol, known, guides, result, targeted=attack.targeted)
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
        shutil.rmtree(parts)
    return {name: records[name] for name in plan}


def transfer(
    models: Mapping[str, Encoder],
    dataset: datasets.Dataset,
    suite: Mapping[str, AttackSettings],
    target_labels: np.ndarray,
    *,
    protocol: Protocol,
    folder: str | pathlib.Path,
    identities: Mapping[str, dict[str, Any]],
    batch_size: int,
    learned: Mapping[str, Mapping[str, Learned]] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Crafts images on each model and judges them on all: the transfer matrix of each attack.

    One file for each attack, `<folder>/<attack>.json`; its "matrix" maps source and target to
    the metric, "benign" maps target to that of untouched queries. What was there with the same
    identity is not made again, source by source.

    Args:
        models: the models by name; their codes may differ in length.
        dataset: as of `evaluate`, the same for all models.
        suite: the attacks by the name of their matrix.
        target_labels: `[num_queries, num_classes]`, one draw for all.
        protocol: how to measure.
        folder: where the matrices go.
        identities: what made each model.
        batch_size: images in a batch.
        learned: by model, as of `evaluate`.
        progress: whether to show progress bars.

    Returns:
        The matrices by attack.

    Reference:
        ProS-GAN, Tables 3 and 5 to 7.
    """
    folder = pathlib.Path(folder)
    known = {
        name: gather_knowledge(
            *model,
            dataset,
            target_labels,
            seed=protocol.seed,
            batch_size=batch_size,
            learned=(learned or {}).get(name),
            progress=progress,
        )
        for name, model in models.items()
    }
    common = _circumstances(dataset, protocol)
    shared = {
        "models": dict(identities),
        "data": dataset.fingerprint(),
        "targets": hashlib.sha256(target_labels.tobytes()).hexdigest(),
        "common": common,
    }
    tables = {}
    for name, attack in suite.items():
        trained = {
            model: networks_of[attack.learned].identity
            for model, networks_of in (learned or {}).items()
            if attack.learned in networks_of
        }
        digest = _digest({**shared, "settings": attack.asdict(), "learned": trained})
        path = folder / f"{name}.json"
        table = _finished(path, digest) or {
            **common,
            "attack": name,
            "metric": _metric(attack.targeted),
            "settings": attack.asdict(),
            "benign": {
                target: _map(
                    protocol, known[target], hamming.binarize(k.soft_codes), attack.targeted
                )
                for target, k in known.items()
            },
            "matrix": {},
            "identity": digest,
        }
        for source, (encode_fn, variables) in models.items():
            if source in table["matrix"]:
                continue
            crafted_on = _digest({"matrix": digest, "source": source})
            parts = folder / f".{name}-{crafted_on[:16]}-{_share(batch_size)}"
            result = attack_queries(
                encode_fn,
                variables,
                batches_from(dataset, dataset.query, batch_size),
                attack.guides(known[source]),
                attack,
                seed=protocol.seed,
                others={target: model for target, model in models.items() if target != source},
                parts=parts,
                title=f"attack {name} on {source}",
                progress=progress,
            )
            codes = {**result.transferred, source: result.codes}
            table["matrix"][source] = {
                target: _map(protocol, known[target], codes[target], attack.targeted)
                for target in models
            }
            if jax.process_index() == 0:
                files.write_json(path, table)
            shutil.rmtree(parts)
        tables[name] = table
    return tables


def _circumstances(dataset: datasets.Dataset, protocol: Protocol) -> dict[str, Any]:
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
        "version": saat_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def _share(batch_size: int) -> str:
    """Tells apart how the queries are batched and spread over processes."""
    return f"{batch_size}-{jax.process_index()}-of-{jax.process_count()}"


def _metric(targeted: bool) -> str:
    return "t_map" if targeted else "map"


def _map(protocol: Protocol, known: Knowledge, codes: Any, targeted: bool) -> float:
    return protocol.map_at_k(
        np.asarray(codes), known.database_codes, known.aim(targeted), known.database_labels
    )


def _score(
    protocol: Protocol, known: Knowledge, codes: np.ndarray, *, targeted: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """MAP or t-MAP of the queries' codes, and its curves."""
    curves = protocol.curves(
        codes, known.database_codes, known.aim(targeted), known.database_labels
    )
    return {_metric(targeted): _map(protocol, known, codes, targeted)}, curves


def _bounds(
    protocol: Protocol, known: Knowledge, guides: Guides, result: AttackResult, *, targeted: bool
) -> dict[str, float]:
    """What the attack reaches as 8-bit images, and what it would at best."""
    metric = _metric(targeted)
    metrics = {f"{metric}_8bit": _map(protocol, known, result.rounded_codes, targeted)}
    if guides.theory is not None:
        metrics[f"theory_{metric}"] = _map(protocol, known, guides.theory, targeted)
    return metrics


def _examples(
    dataset: datasets.Dataset,
    known: Knowledge,
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
    relevant = np.einsum("qc,qtc->qt", known.aim(targeted)[rows], known.database_labels[top]) > 0
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


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _finished(path: pathlib.Path, identity: str) -> dict[str, Any] | None:
    """A record already made for the same model, data and settings, or None."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record.get("identity") == identity else None
