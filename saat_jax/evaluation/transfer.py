"""The transfer matrix: images crafted on each model, judged by all."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from saat_jax import datasets, files, options
from saat_jax.evaluation import judging, worst_case
from saat_jax.evaluation.crafting import Encoder
from saat_jax.evaluation.judging import JudgedModel
from saat_jax.evaluation.methods import Learned
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.record_files import RecordFiles, digest_of
from saat_jax.evaluation.suites import AnyAttack, Suite

# What is read of a table that is there.
_FIELDS = {"benign": dict, "matrix": dict}


def transfer(
    models: Mapping[str, Encoder],
    dataset: datasets.Dataset,
    suite: Mapping[str, AnyAttack],
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
    identity is not made again, source by source; a table of other settings is kept in
    `<folder>/earlier/`.

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
    options.check_numbers(batch_size=batch_size)
    judging.check_suite(suite, dataset, target_labels)
    learned = learned or {}
    judged = {
        name: judging.prepare(
            encoder,
            dataset,
            target_labels,
            protocol=protocol,
            batch_size=batch_size,
            learned=learned.get(name),
            progress=progress,
        )
        for name, encoder in models.items()
    }
    common = judging.common_fields(dataset, protocol)
    shared = {
        "models": dict(identities),
        **judging.common_identity(dataset, target_labels, common),
    }
    told = {**common, "num_unlabelled": judging.num_unlabelled(dataset)}
    tables = {}
    for name, attack in suite.items():
        trained = {
            model: trained_on[member.learned].identity
            for model, trained_on in learned.items()
            for member in attack.members.values()
            if member.learned in trained_on
        }
        digest = digest_of({**shared, "settings": attack.asdict(), "learned": trained})
        place = RecordFiles(pathlib.Path(folder), name, digest)
        tables[name] = _table(judged, attack, place, told)
    return tables


def _table(
    judged: Mapping[str, JudgedModel],
    attack: AnyAttack,
    place: RecordFiles,
    common: dict[str, Any],
) -> dict[str, Any]:
    """The matrix of an attack, stored after each source."""
    targeted = attack.targeted
    table = place.read(_FIELDS) or {
        **common,
        "attack": place.name,
        "metric": judging.metric_of(targeted),
        "settings": attack.asdict(),
        "benign": {
            target: model.map_at_k(model.benign_codes, targeted=targeted)
            for target, model in judged.items()
        },
        "matrix": {},
        "identity": place.identity,
    }
    for source, model in judged.items():
        if source in table["matrix"]:
            continue
        crafted_on = digest_of({"matrix": place.identity, "source": source})
        unfinished = place.unfinished("codes", model.batch_size, crafted_on)
        place.make_room(unfinished)
        others = {name: other.encoder for name, other in judged.items() if name != source}
        title = f"attack {place.name} on {source}"
        if isinstance(attack, Suite):
            result = worst_case.run_members(
                model, attack, parts=unfinished, others=others, title=title
            ).worst()
        else:
            result = model.attack(
                attack,
                attack.target_codes(model.known),
                others=others,
                parts=unfinished / str(jax.process_index()),
                title=title,
            )
        codes = {**result.transferred, source: result.codes}
        table["matrix"][source] = {
            target: judged[target].map_at_k(codes[target], targeted=targeted) for target in judged
        }
        if jax.process_index() == 0:
            files.write_json(place.record, table)
    place.remove_unfinished()
    return table
