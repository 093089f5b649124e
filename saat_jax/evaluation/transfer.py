"""The transfer matrix: images crafted on each model, judged by all."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from saat_jax import datasets, files, hamming
from saat_jax.evaluation import folders
from saat_jax.evaluation.crafting import Encoder, attack_queries
from saat_jax.evaluation.methods import AttackSettings, Learned, check_suite
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.records import (
    attacker_knowledge,
    batches_from,
    check_targets,
    circumstances,
    map_of,
    metric_of,
)


def transfer(
    models: Mapping[str, Encoder],
    dataset: datasets.Dataset,
    suite: Mapping[str, AttackSettings],
    target_labels: np.ndarray | None,
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
        target_labels: `[num_queries, num_classes]`, one draw for all; None as of `evaluate`.
        protocol: how to measure.
        folder: where the matrices go.
        identities: what made each model.
        batch_size: images in a batch.
        learned: by model, as of `evaluate`.
        progress: whether to show progress bars.

    Returns:
        The matrices by attack.

    Raises:
        ArithmeticError: as of `evaluate`; so are OSError and ValueError.

    Reference:
        ProS-GAN, Tables 3 and 5 to 7.
    """
    check_suite(suite)
    folder = pathlib.Path(folder)
    target_labels = check_targets(dataset, suite, target_labels)
    known = {
        name: attacker_knowledge(
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
    common = circumstances(dataset, protocol)
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
        digest = folders.digest_of({**shared, "settings": attack.asdict(), "learned": trained})
        path = folder / f"{name}.json"
        table = folders.finished(path, digest) or {
            **common,
            "attack": name,
            "metric": metric_of(attack.targeted),
            "settings": attack.asdict(),
            "benign": {
                target: map_of(
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
            crafted_on = folders.digest_of({"matrix": digest, "source": source})
            parts = folders.parts_of(folder, name, crafted_on, "codes", batch_size)
            folders.begin(folder, name, parts)
            result = attack_queries(
                encode_fn,
                variables,
                batches_from(dataset, dataset.query, batch_size),
                attack.target_codes(known[source]),
                attack,
                seed=protocol.seed,
                others={target: model for target, model in models.items() if target != source},
                parts=parts / str(jax.process_index()),
                title=f"attack {name} on {source}",
                progress=progress,
            )
            codes = {**result.transferred, source: result.codes}
            table["matrix"][source] = {
                target: map_of(protocol, known[target], codes[target], attack.targeted)
                for target in models
            }
            if jax.process_index() == 0:
                files.write_json(path, table)
        folders.remove_parts(folder, name)
        tables[name] = table
    return tables
