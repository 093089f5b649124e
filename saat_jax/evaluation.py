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
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import numpy as np
from tqdm import tqdm

import saat_jax
from saat_jax import attacks, datasets, hamming, mainstay, networks, perturbation, retrieval

Array = jax.Array
Batches = Iterable[dict[str, np.ndarray]]
_TOP = 10


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a number was measured; it goes into every record.

    Attributes:
        k: length of the ranked list; None for the whole database.
        ties: "average" or "index", see `retrieval.map_at_k`.
        normalizer: "hits" or "min(k,relevant)", see `retrieval.map_at_k`.
        seed: of random starts and target labels.
        precision: of float32 products on accelerators, as the run has set it in JAX.
    """

    k: int | None
    ties: str
    normalizer: str
    seed: int
    precision: str = "highest"

    def __post_init__(self) -> None:
        # One query and one item: the names are checked before hours of work, not after.
        one = np.ones((1, 1), np.float32)
        self.map_at_k(one, one, one, one)

    def map_at_k(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> float:
        """MAP of query codes and labels against database codes and labels, in [0, 1]."""
        return retrieval.map_at_k(
            codes, database, labels, others, k=self.k, ties=self.ties, normalizer=self.normalizer
        )

    def curves(
        self, codes: np.ndarray, database: np.ndarray, labels: np.ndarray, others: np.ndarray
    ) -> dict[str, Any]:
        """Precision-recall and precision@N up to 1,000 (SAAT, Fig. 3 and 4), as lists."""
        curve = retrieval.precision_recall_curve(codes, database, labels, others, ties=self.ties)
        cutoffs = np.unique(np.minimum(np.arange(100, 1001, 10), len(database)))
        precision = retrieval.precision_at_n(
            codes, database, labels, others, cutoffs=cutoffs, ties=self.ties
        )
        return {
            "precision_recall": {name: np.round(x, 6).tolist() for name, x in curve.items()},
            "precision_at_n": {"n": cutoffs.tolist(), "precision": np.round(precision, 6).tolist()},
        }


def encode(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    batches: Batches,
    *,
    size: int,
    title: str = "encode",
    progress: bool = False,
) -> np.ndarray:
    """Encodes a split. `[size, num_bits]` float32 in {-1, +1}

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        batches: dicts with "image", "index" and "mask", of one shape.
        size: number of rows of the split.
        title: of the progress bar.
        progress: whether to show the bar.

    Raises:
        FloatingPointError: if a code is not finite.
        ValueError: if the batches do not cover the split.
    """
    encoder, variables = jax.jit(encode_fn), jax.device_put(variables)
    codes, seen = None, np.zeros(size, bool)
    with tqdm(total=size, desc=title, disable=not progress, unit="image") as bar:
        for batch in batches:
            soft_codes = np.asarray(encoder(variables, batch["image"], 1.0))
            real = batch["mask"] > 0
            if codes is None:
                codes = np.zeros((size, soft_codes.shape[1]), np.float32)
            if not np.isfinite(soft_codes[real]).all():
                raise FloatingPointError("the network returns NaN or infinite codes")
            codes[batch["index"][real]] = hamming.binarize(soft_codes[real])
            seen[batch["index"][real]] = True
            bar.update(int(real.sum()))
    if codes is None or not seen.all():
        raise ValueError(f"the batches cover {int(seen.sum())} of {size} rows; pass them all")
    return codes


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An attack of a suite, by name and hyperparameters.

    Attributes:
        attack: one of `attacks.ATTACKS`.
        targeted: towards the target labels' codes, or away from the own labels'.
        epsilon: radius of the ball in units of [0, 1].
        step_size: in the same units.
        num_steps: number of steps.
        loss: one of `attacks.CODE_LOSSES`.
        anneal: whether the tanh scale follows `attacks.alpha_schedule`, else it is 1.
        random_start: whether to start at a random point of the ball.
    """

    attack: str
    targeted: bool
    epsilon: float
    step_size: float
    num_steps: int
    loss: str = "focused"
    anneal: bool = True
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.attack not in attacks.ATTACKS:
            raise ValueError(
                f"unknown attack {self.attack!r}; expected one of {sorted(attacks.ATTACKS)}"
            )
        attacks.code_loss(self.loss, targeted=self.targeted)
        if self.epsilon < 0 or self.num_steps < 0:
            raise ValueError(
                "epsilon and num_steps must not be negative, got "
                f"{self.epsilon:.6g} and {self.num_steps}"
            )

    def build(self, encode_fn: networks.EncodeFn) -> Any:
        """The attack as a function of (variables, images, target codes, keys)."""
        return functools.partial(
            attacks.ATTACKS[self.attack],
            encode_fn,
            targeted=self.targeted,
            epsilon=self.epsilon,
            step_size=self.step_size,
            num_steps=self.num_steps,
            loss=self.loss,
            alphas=attacks.alpha_schedule(self.num_steps) if self.anneal else None,
            random_start=self.random_start,
        )


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack made of the queries.

    Attributes:
        codes: `[num_queries, num_bits]` in {-1, +1}, of the adversarial images.
        rounded_codes: the same of the images rounded to 8 bits.
        perturbation: the summary of `perturbation.summarize_perturbation`.
        seconds_per_image: wall clock of crafting and encoding, compilation left out.
    """

    codes: np.ndarray
    rounded_codes: np.ndarray
    perturbation: dict[str, float]
    seconds_per_image: float


def attack_queries(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    batches: Batches,
    target_codes: np.ndarray,
    settings: AttackSettings,
    *,
    seed: int,
    keep: Callable[[int, np.ndarray], None] = lambda row, image: None,
    title: str = "attack",
    progress: bool = False,
) -> AttackResult:
    """Attacks every query. How the queries are batched changes the result by rounding only.

    Memory holds one batch of images, however many queries there are.

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        batches: the queries, as `datasets.eval_batches` yields them.
        target_codes: `[num_queries, num_bits]` codes to flee or to reach.
        settings: the attack.
        seed: of random starts; each query has its own key.
        keep: called with each query's row and its adversarial image rounded to 8 bits,
            `[height, width, channels]` uint8.
        title: of the progress bar.
        progress: whether to show the bar.

    Raises:
        RuntimeError: if an image left the ball or [0, 1].
    """
    size = len(target_codes)
    craft = jax.jit(settings.build(encode_fn))
    encoder, variables = jax.jit(encode_fn), jax.device_put(variables)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    codes, rounded_codes = [], []
    metrics: dict[str, list[np.ndarray]] = {}
    seconds, compiled = 0.0, None
    with tqdm(total=size, desc=title, disable=not progress, unit="image") as bar:
        for batch in batches:
            real = batch["mask"] > 0
            rows = np.minimum(batch["index"], size - 1)
            arguments = (variables, batch["image"], target_codes[rows], keys(batch["index"]))
            if compiled is None:
                compiled = craft.lower(*arguments).compile()
                encoder(variables, batch["image"], 1.0).block_until_ready()
            start = time.perf_counter()
            crafted = compiled(*arguments)
            batch_codes = hamming.binarize(encoder(variables, crafted, 1.0))
            adversarial = np.asarray(crafted)
            codes.append(np.asarray(batch_codes)[real])
            seconds += time.perf_counter() - start
            _audit(batch["image"][real], adversarial[real], settings.epsilon)
            rounded = _round_inside(adversarial, batch["image"], settings.epsilon)
            _audit(batch["image"][real], rounded[real] / np.float32(255), settings.epsilon)
            for name, values in perturbation.perturbation_metrics(
                batch["image"][real], adversarial[real]
            ).items():
                metrics.setdefault(name, []).append(values)
            rounded_soft = encoder(variables, rounded.astype(np.float32) / 255, 1.0)
            rounded_codes.append(np.asarray(hamming.binarize(rounded_soft))[real])
            for row, image in zip(batch["index"][real], rounded[real], strict=True):
                keep(int(row), image)
            bar.update(int(real.sum()))
    return AttackResult(
        codes=np.concatenate(codes),
        rounded_codes=np.concatenate(rounded_codes),
        perturbation=perturbation.summarize_perturbation(
            {name: np.concatenate(values) for name, values in metrics.items()}
        ),
        seconds_per_image=seconds / size,
    )


def _round_inside(adversarial: np.ndarray, images: np.ndarray, epsilon: float) -> np.ndarray:
    """Rounds images to 8 bits without leaving the ball, by the nearest level inside it."""
    # A level that float32 puts a hair outside counts as inside.
    low = np.ceil(255 * (images - epsilon) - 1e-3)
    high = np.floor(255 * (images + epsilon) + 1e-3)
    # Where the ball holds no level at all, the audit tells.
    levels = np.clip(np.round(255 * adversarial), low, np.maximum(low, high))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _audit(images: np.ndarray, adversarial: np.ndarray, epsilon: float) -> None:
    """Refuses images outside the ball or [0, 1]."""
    # The width of float32 near 1, and of the levels that rounding counts as inside.
    inside = np.abs(adversarial - images).max(initial=0) <= epsilon + 1e-5
    in_range = adversarial.min(initial=0) >= 0 and adversarial.max(initial=1) <= 1
    if not (np.isfinite(adversarial).all() and inside and in_range):
        raise RuntimeError(
            f"the attack left the ball of radius {epsilon:.6g} or the range [0, 1] (largest "
            f"change {np.abs(adversarial - images).max():.6g}); its result is not reported"
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
    num_examples: int = 6,
    save_images: bool = False,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Judges a model without an attack and under every attack of a suite.

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        dataset: gives train (the mainstay bank), query and database.
        suite: the attacks by the name of their record.
        target_labels: `[num_queries, num_classes]`, one draw for all targeted attacks.
        protocol: how to measure.
        folder: where the records go; its name is the model's.
        identity: what made the model, in JSON's types; part of each record's identity.
        batch_size: images in a batch.
        num_examples: how many queries to keep for people to look at.
        save_images: whether to write all adversarial images as PNG beside the records.
        progress: whether to show progress bars.

    Returns:
        The records by name, "benign" first.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "model": folder.name,
        "protocol": {
            "dataset": dataset.name,
            "num_queries": len(dataset.query),
            "num_database": len(dataset.database),
            "num_train": len(dataset.train),
            "num_classes": dataset.num_classes,
            "image_size": dataset.image_size,
            "base_rate": datasets.relevant_share(dataset.query.labels, dataset.database.labels),
            "targets": "disjoint",
            **dataclasses.asdict(protocol),
        },
        "version": saat_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    settings = {name: dataclasses.asdict(attack) for name, attack in suite.items()}
    # Hashed once: what all records share.
    shared = {
        "model": identity,
        "data": dataset.fingerprint(),
        "targets": hashlib.sha256(target_labels.tobytes()).hexdigest(),
        "common": common,
        "examples": num_examples,
    }
    plan = {
        name: _digest({**shared, "settings": settings.get(name)}) for name in ("benign", *suite)
    }
    records = {}
    for name, digest in plan.items():
        record = _finished(folder / f"{name}.json", digest)
        images_wanted = save_images and name in suite
        if record and not (images_wanted and _num_images(folder / name) < len(dataset.query)):
            records[name] = record
    if len(records) == len(plan):
        return records

    batches = functools.partial(
        datasets.eval_batches,
        batch_size=batch_size,
        image_size=dataset.image_size,
        resize=dataset.resize,
    )
    database_codes, query_codes, train_codes = (
        encode(
            encode_fn,
            variables,
            batches(split),
            size=len(split),
            title=f"encode {split.name}",
            progress=progress,
        )
        for split in (dataset.database, dataset.query, dataset.train)
    )
    common["protocol"]["num_bits"] = database_codes.shape[1]
    score = functools.partial(_score, protocol, database_codes, dataset.database.labels)
    rows = np.linspace(0, len(dataset.query) - 1, min(num_examples, len(dataset.query)), dtype=int)
    look = functools.partial(_examples, dataset, database_codes, target_labels, rows)
    own, target = dataset.query.labels, target_labels
    benign = datasets.load_images(
        dataset.query, rows, image_size=dataset.image_size, resize=dataset.resize
    )

    def store(name: str, examples: dict[str, np.ndarray], **fields: Any) -> None:
        records[name] = {**common, "attack": name, **fields, "identity": plan[name]}
        _write(folder, name, records[name], examples)

    if "benign" not in records:
        metrics, curves = score(query_codes, own, "map")
        target_metrics, target_curves = score(query_codes, target, "t_map")
        curves |= {f"{name}_target": curve for name, curve in target_curves.items()}
        store(
            "benign",
            look(query_codes, benign, targeted=False),
            targeted=False,
            metrics=metrics | target_metrics,
            curves=curves,
            perturbation=None,
            settings=None,
            seconds_per_image=None,
        )

    for name, attack in suite.items():
        if name in records:
            continue
        labels = target if attack.targeted else own
        kept: dict[int, np.ndarray] = {}

        def keep(row: int, image: np.ndarray, name: str = name, kept: Any = kept) -> None:
            if row in rows:
                kept[row] = image
            if save_images:
                _save_image(folder / name / f"{row:06d}.png", image)

        anchors = _anchors(labels, train_codes, dataset.train.labels)
        result = attack_queries(
            encode_fn,
            variables,
            batches(dataset.query),
            anchors,
            attack,
            seed=protocol.seed,
            keep=keep,
            title=f"attack {name}",
            progress=progress,
        )
        prefix = "t_map" if attack.targeted else "map"
        metrics, curves = score(result.codes, labels, prefix)
        theory = anchors if attack.targeted else -anchors
        for measure, codes in (
            (f"theory_{prefix}", theory),
            (f"{prefix}_8bit", result.rounded_codes),
        ):
            metrics[measure] = protocol.map_at_k(
                codes, database_codes, labels, dataset.database.labels
            )
        adversarial = np.zeros((len(rows), *benign.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            adversarial[place] = kept[row] / np.float32(255)
        store(
            name,
            look(result.codes, adversarial, targeted=attack.targeted),
            targeted=attack.targeted,
            metrics=metrics,
            curves=curves,
            perturbation=result.perturbation,
            settings=settings[name],
            seconds_per_image=result.seconds_per_image,
        )
    return {name: records[name] for name in plan}


def _anchors(labels: np.ndarray, codes: np.ndarray, code_labels: np.ndarray) -> np.ndarray:
    """Mainstay codes of many label vectors, some at a time: votes need `rows x bank_size`."""
    parts = [labels[row : row + 256] for row in range(0, len(labels), 256)]
    return np.concatenate([mainstay.mainstay_codes(part, codes, code_labels) for part in parts])


def _score(
    protocol: Protocol,
    database_codes: np.ndarray,
    database_labels: np.ndarray,
    codes: np.ndarray,
    labels: np.ndarray,
    name: str,
) -> tuple[dict[str, float], dict[str, Any]]:
    arrays = (codes, database_codes, labels, database_labels)
    return {name: protocol.map_at_k(*arrays)}, protocol.curves(*arrays)


def _examples(
    dataset: datasets.Dataset,
    database_codes: np.ndarray,
    target_labels: np.ndarray,
    rows: np.ndarray,
    codes: np.ndarray,
    images: np.ndarray,
    *,
    targeted: bool,
) -> dict[str, np.ndarray]:
    """Some queries, as handed to the system, with what they retrieve first."""
    distances = np.asarray(hamming.hamming_distance(codes[rows], database_codes))
    top = np.argsort(distances, axis=1, kind="stable")[:, :_TOP]
    load = functools.partial(
        datasets.load_images, image_size=dataset.image_size, resize=dataset.resize
    )
    found = load(dataset.database, top.ravel()).reshape(*top.shape, *images.shape[1:])
    wanted = (target_labels if targeted else dataset.query.labels)[rows]
    relevant = np.einsum("qc,qtc->qt", wanted, dataset.database.labels[top]) > 0
    return {
        "images": images,
        "benign_images": load(dataset.query, rows),
        "top_images": np.round(found * 255).astype(np.uint8),
        "top_relevant": relevant,
        "labels": dataset.query.labels[rows] > 0,
        "target_labels": target_labels[rows] > 0,
        "class_names": np.array(dataset.class_names),
    }


def _save_image(path: pathlib.Path, image: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _num_images(folder: pathlib.Path) -> int:
    return sum(1 for _ in folder.glob("*.png"))


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _finished(path: pathlib.Path, identity: str) -> dict[str, Any] | None:
    """A record already made for the same model, data and settings, or None."""
    if not path.is_file() or not path.with_suffix(".npz").is_file():
        return None
    record = json.loads(path.read_text())
    return record if record.get("identity") == identity else None


def _write(
    folder: pathlib.Path, name: str, record: dict[str, Any], examples: dict[str, np.ndarray]
) -> None:
    """Writes the examples, then the record, each whole or not at all."""
    temporary = folder / f".{name}.npz"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **examples)  # type: ignore[arg-type]
    os.replace(temporary, folder / f"{name}.npz")
    temporary = folder / f".{name}.json"
    temporary.write_text(json.dumps(record, indent=1))
    os.replace(temporary, folder / f"{name}.json")
