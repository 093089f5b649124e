"""A model under judgement: what an attacker knows of it, and how its codes score."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks, datasets, hamming, labels, networks, options
from saat_jax.evaluation import record_files
from saat_jax.evaluation.crafting import AttackResult, Batches, Encoder, attack_queries, encode
from saat_jax.evaluation.methods import (
    AttackerKnowledge,
    AttackSettings,
    Learned,
    TargetCodes,
    aim_of_search,
    mainstay_target_codes,
)
from saat_jax.evaluation.protocol import Protocol
from saat_jax.evaluation.suites import AnyAttack

BENIGN = "benign"
# In the identity of records: the library's when it last began to give other numbers, so that a
# newer one finds what an older one has finished.
MEASURED_AS = "0.1.0"
# Untouched queries by which the size of logits is measured.
_NUM_MEASURED = 64


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
        num_devices=jax.device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def attacker_knowledge(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    target_labels: np.ndarray | None,
    *,
    protocol: Protocol,
    batch_size: int,
    learned: Mapping[str, Learned] | None = None,
    progress: bool = False,
) -> AttackerKnowledge:
    """Encodes a dataset into what an attacker of the model knows. Arguments as of `evaluate`."""

    def measure_logits() -> attacks.LogitScale:
        # Of the same images on every process, whatever the batches.
        images = datasets.load_images(
            dataset.query,
            np.arange(min(_NUM_MEASURED, len(dataset.query))),
            image_size=dataset.image_size,
            resize=dataset.resize,
        )
        return attacks.measure_logits(encode_fn, variables, jnp.asarray(images))

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
        seed=protocol.seed,
        learned=learned or {},
        k=protocol.k,
        normalizer=protocol.normalizer,
        measure_logits=measure_logits,
    )


def surrogate(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    dataset: datasets.Dataset,
    target_labels: np.ndarray | None,
    *,
    identity: dict[str, Any],
    **arguments: Any,
) -> Learned:
    """Another model, on which the attack "surrogate" crafts its images.

    Args:
        encode_fn: of that model, and so are the variables.
        variables: what `encode_fn` needs.
        dataset: as of `evaluate`, and so are the target labels.
        target_labels: `[num_queries, num_classes]`, or None.
        identity: what made the model, in JSON's types.
        **arguments: further ones of `attacker_knowledge`.
    """
    knowledge = functools.partial(
        attacker_knowledge, encode_fn, variables, dataset, target_labels, **arguments
    )
    known = functools.cache(knowledge)

    def target_codes(_: np.ndarray, targeted: bool) -> TargetCodes:
        found = aim_of_search(known(), targeted=targeted, aim="votes", restart=0)
        return found._replace(
            arrays={**found.arrays, "surrogate": variables},
            static={**found.static, "surrogate_fn": encode_fn},
        )

    return Learned(target_codes, identity)


@dataclasses.dataclass(frozen=True)
class JudgedModel:
    """A model, the data that it is judged on, and what its attacker knows.

    Attributes:
        encoder: the model.
        dataset: the data.
        known: as of `attacker_knowledge`.
        protocol: how to measure.
        batch_size: images in a batch.
        progress: whether to show progress bars.
        compiled: programs of its attacks.
    """

    encoder: Encoder
    dataset: datasets.Dataset
    known: AttackerKnowledge
    protocol: Protocol
    batch_size: int
    progress: bool
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def benign_codes(self) -> np.ndarray:
        """Codes of the untouched queries. `[num_queries, num_bits]` in {-1, +1}"""
        return np.asarray(hamming.binarize(self.known.soft_codes))

    def map_at_k(self, codes: np.ndarray, *, targeted: bool) -> float:
        """MAP, or t-MAP if targeted, of the queries' codes."""
        return self.protocol.map_at_k(*self._problem(codes, targeted))

    def average_precision(self, codes: np.ndarray, *, targeted: bool) -> np.ndarray:
        """Average precision of every query, of those too that do not count. `[num_queries]`"""
        return self.protocol.average_precision(*self._problem(codes, targeted))

    def mean_over_judged(self, values: np.ndarray) -> float:
        """Mean over the queries that count, of a value for each of all."""
        return float(np.mean(values[self.protocol.judged_rows(self.known.labels)]))

    def mainstay_codes(self, *, targeted: bool) -> np.ndarray:
        """Mainstay codes of all queries."""
        return mainstay_target_codes(self.known, targeted=targeted).codes

    def scores(
        self, codes: np.ndarray, *, targeted: bool
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """MAP, NDCG and WAP of the queries' codes, to the targets if targeted, and the curves."""
        problem = self._problem(codes, targeted)
        values = {"map": self.protocol.map_at_k(*problem)} | self.protocol.graded_scores(*problem)
        metrics = {f"{'t_' * targeted}{name}": value for name, value in values.items()}
        return metrics, self.protocol.curves(*problem)

    def attack(
        self, settings: AttackSettings, target_codes: TargetCodes, **arguments: Any
    ) -> AttackResult:
        """Attacks every query. Further arguments are those of `attack_queries`."""
        return attack_queries(
            *self.encoder,
            batches_from(self.dataset, self.dataset.query, self.batch_size),
            target_codes,
            settings,
            seed=self.protocol.seed,
            compiled=self.compiled,
            progress=self.progress,
            **arguments,
        )

    def _problem(self, codes: np.ndarray, targeted: bool) -> tuple[np.ndarray, ...]:
        known = self.known
        return codes, known.database_codes, known.labels_for(targeted), known.database_labels


def prepare(
    encoder: Encoder,
    dataset: datasets.Dataset,
    target_labels: np.ndarray | None,
    *,
    protocol: Protocol,
    batch_size: int,
    learned: Mapping[str, Learned] | None,
    progress: bool,
) -> JudgedModel:
    """A model with all that its judgement needs. Arguments as of `evaluate`."""
    known = attacker_knowledge(
        *encoder,
        dataset,
        target_labels,
        protocol=protocol,
        batch_size=batch_size,
        learned=learned,
        progress=progress,
    )
    return JudgedModel(encoder, dataset, known, protocol, batch_size, progress)


def metric_of(targeted: bool) -> str:
    """The name of the metric of an attack."""
    return "t_map" if targeted else "map"


def check_suite(
    suite: Mapping[str, AnyAttack],
    dataset: datasets.Dataset,
    target_labels: np.ndarray | None,
) -> None:
    """Refuses names that no record can have, and targeted attacks without fit target labels.

    Raises:
        ValueError: naming the attack or the argument.
    """
    for name, attack in suite.items():
        options.check_name("attack", name)
        if name in (BENIGN, record_files.EARLIER):
            raise ValueError(
                f"an attack cannot be named {name!r}, which has a meaning among the records; "
                "choose another name"
            )
        if attack.targeted and target_labels is None:
            raise ValueError(f"attack {name!r} is targeted and needs target_labels, got None")
    if target_labels is not None:
        labels.check_labels("target_labels", target_labels, num_classes=dataset.num_classes)
        names = "num_queries num_classes"
        arrays = {"query_labels": dataset.query.labels, "target_labels": target_labels}
        options.check_shapes(**{name: (array, names) for name, array in arrays.items()})


def common_fields(dataset: datasets.Dataset, protocol: Protocol) -> dict[str, Any]:
    """What all records of a run say of how they were made."""
    query_labels = dataset.query.labels[protocol.judged_rows(dataset.query.labels)]
    return {
        "protocol": {
            "dataset": dataset.name,
            "num_queries": len(dataset.query),
            "num_database": len(dataset.database),
            "num_train": len(dataset.train),
            "num_classes": dataset.num_classes,
            "image_size": dataset.image_size,
            "base_rate": datasets.relevant_share(query_labels, dataset.database.labels),
            **protocol.settings(),
        },
        "version": metadata.version("saat-jax"),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def common_identity(
    dataset: datasets.Dataset, target_labels: np.ndarray | None, common: dict[str, Any]
) -> dict[str, Any]:
    """What of a record's identity all records of a run share, in JSON's types."""
    # None are those that have no label.
    targets = np.zeros_like(dataset.query.labels) if target_labels is None else target_labels
    return {
        "data": dataset.fingerprint(),
        "targets": hashlib.sha256(targets.tobytes()).hexdigest(),
        "common": {**common, "version": MEASURED_AS},
    }


def num_unlabelled(dataset: datasets.Dataset) -> int:
    """How many queries have no label."""
    return int(np.count_nonzero(~np.any(dataset.query.labels, axis=1)))
