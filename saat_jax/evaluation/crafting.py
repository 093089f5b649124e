"""Queries in, codes out: encoding a split, and attacking the queries batch by batch."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from tqdm import tqdm

from saat_jax import files, hamming, networks, parallel, perturbation
from saat_jax.evaluation.methods import AttackSettings, TargetCodes

Array = jax.Array
Batches = Iterable[dict[str, np.ndarray]]


class Encoder(NamedTuple):
    """A trained network: `encode_fn(variables, images, alpha)` and its variables."""

    encode_fn: networks.EncodeFn
    variables: chex.ArrayTree


def encode(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    batches: Batches,
    *,
    size: int,
    binary: bool = True,
    title: str = "encode",
    progress: bool = False,
) -> np.ndarray:
    """Encodes a split. `[size, num_bits]` float32, in {-1, +1} if `binary`

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        batches: dicts with "image", "index" and "mask", of one shape.
        size: number of rows of the split.
        binary: whether to round; else the codes are soft, in (-1, 1).
        title: of the progress bar.
        progress: whether to show the bar.

    Raises:
        FloatingPointError: if a code is not finite.
        ValueError: if the batches do not cover the split.
    """
    encoder, variables = jax.jit(encode_fn), parallel.on_every_device(variables)
    codes, seen = None, np.zeros(size, bool)
    with tqdm(total=size, desc=title, disable=not progress, unit="image") as bar:
        for batch in batches:
            image = parallel.split_rows(batch["image"])
            soft_codes = np.asarray(encoder(variables, image, 1.0))
            real = batch["mask"] > 0
            if codes is None:
                codes = np.zeros((size, soft_codes.shape[1]), np.float32)
            if not np.isfinite(soft_codes[real]).all():
                raise FloatingPointError("the network returns NaN or infinite codes")
            codes[batch["index"][real]] = soft_codes[real]
            seen[batch["index"][real]] = True
            bar.update(int(real.sum()))
    if codes is not None:
        codes, seen = parallel.join_rows(codes, seen)
    if codes is None or not seen.all():
        raise ValueError(f"the batches cover {int(seen.sum())} of {size} rows; pass them all")
    return np.asarray(hamming.binarize(codes)) if binary else codes


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack made of the queries.

    Attributes:
        codes: `[num_queries, num_bits]` in {-1, +1}, of the adversarial images.
        rounded_codes: the same of the images rounded to 8 bits.
        transferred: the same as `codes`, by the name of another model that judged.
        examples: `[num_examples, height, width, channels]` uint8, some rounded images.
        perturbation: the summary of `perturbation.summarize_perturbation`.
        seconds_per_image: wall clock of crafting and encoding, compilation left out.
    """

    codes: np.ndarray
    rounded_codes: np.ndarray
    transferred: dict[str, np.ndarray]
    examples: np.ndarray
    perturbation: dict[str, float]
    seconds_per_image: float


def attack_queries(
    encode_fn: networks.EncodeFn,
    variables: chex.ArrayTree,
    batches_from: Callable[[int], Batches],
    target_codes: TargetCodes,
    settings: AttackSettings,
    *,
    seed: int,
    others: Mapping[str, Encoder] | None = None,
    example_rows: Sequence[int] | np.ndarray = (),
    save: Callable[[int, np.ndarray], None] | None = None,
    parts: pathlib.Path | None = None,
    title: str = "attack",
    progress: bool = False,
) -> AttackResult:
    """Attacks every query. How the queries are batched changes the result by rounding only.

    Memory holds one batch of images, however many queries there are.

    Args:
        encode_fn: maps (variables, images, alpha) to soft codes.
        variables: what `encode_fn` needs.
        batches_from: the queries from a batch's number on, as `datasets.eval_batches` yields
            them.
        target_codes: what steers the attack, a row for each query.
        settings: the attack.
        seed: of the attack's draws; each query has its own key.
        others: models that judge the same images beside the attacked one.
        example_rows: which queries' images to return.
        save: called with each query's row and its adversarial image rounded to 8 bits,
            `[height, width, channels]` uint8.
        parts: folder for what each batch gave, so that the attack goes on where it was stopped;
            it must belong to this very attack. None keeps nothing.
        title: of the progress bar.
        progress: whether to show the bar.

    Raises:
        ArithmeticError: if an image left the ball or [0, 1].
    """
    size = len(target_codes.codes)
    judges = {
        name: Encoder(jax.jit(judge.encode_fn), parallel.on_every_device(judge.variables))
        for name, judge in {"": Encoder(encode_fn, variables), **(others or {})}.items()
    }
    craft = jax.jit(settings.build(encode_fn, target_codes))
    arrays = parallel.on_every_device(dict(target_codes.arrays))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    results = [] if parts is None else _finished_parts(parts)
    compiled = None
    with tqdm(total=size, desc=title, disable=not progress, unit="image") as bar:
        bar.update(sum(len(part["row"]) for part in results))
        for number, batch in enumerate(batches_from(len(results)), len(results)):
            real = batch["mask"] > 0
            image = batch["image"]
            rows = np.minimum(batch["index"], size - 1)
            split = (image, target_codes.codes[rows], keys(batch["index"]))
            call = (judges[""].variables, *parallel.split_rows(split))
            if compiled is None:
                compiled = craft.lower(*call, **arrays).compile()
                for judge in judges.values():
                    judge.encode_fn(judge.variables, call[1], 1.0).block_until_ready()

            def judged(images: Any, name: str = "", real: Any = real) -> np.ndarray:
                images = parallel.split_rows(images)
                soft_codes = judges[name].encode_fn(judges[name].variables, images, 1.0)
                return np.asarray(hamming.binarize(soft_codes))[real]

            start = time.perf_counter()
            crafted = compiled(*call, **arrays)
            part = {"codes": judged(crafted), "row": batch["index"][real]}
            adversarial = np.asarray(crafted)
            part["seconds"] = np.array(time.perf_counter() - start)
            _audit(image[real], adversarial[real], settings.epsilon)
            rounded = _round_inside(adversarial, image, settings.epsilon)
            _audit(image[real], rounded[real] / np.float32(255), settings.epsilon)
            part["rounded_codes"] = judged(rounded.astype(np.float32) / 255)
            for name in others or {}:
                part[f"transferred/{name}"] = judged(crafted, name)
            # Of padding too: a process may have nothing else.
            sizes = perturbation.perturbation_metrics(image, adversarial)
            part |= {f"perturbation/{name}": values[real] for name, values in sizes.items()}
            shown = np.isin(part["row"], example_rows)
            part |= {"example_row": part["row"][shown], "example": rounded[real][shown]}
            if save:
                for row, levels in zip(part["row"], rounded[real], strict=True):
                    save(int(row), levels)
            if parts is not None:
                files.write_arrays(parts / f"{number:06d}.npz", part)
            results.append(part)
            bar.update(int(real.sum()))
    rows = np.concatenate([part["row"] for part in results])
    example_rows = np.asarray(example_rows, int)
    by_query = {
        name: _all_rows([part[name] for part in results], rows, np.arange(size))
        for name in results[0]
        if name not in ("row", "seconds", "example_row", "example")
    }
    shown = np.concatenate([part["example_row"] for part in results])

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in by_query.items() if k.startswith(prefix)}

    return AttackResult(
        codes=by_query["codes"],
        rounded_codes=by_query["rounded_codes"],
        transferred=named("transferred/"),
        examples=_all_rows([part["example"] for part in results], shown, example_rows),
        perturbation=perturbation.summarize_perturbation(named("perturbation/")),
        # With several processes, of this one, for its share of the queries.
        seconds_per_image=float(sum(part["seconds"] for part in results)) / max(len(rows), 1),
    )


def _all_rows(values: list[np.ndarray], rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Joins the batches of all processes, in the order of the wanted rows."""
    joined = np.concatenate(values)
    here = np.isin(wanted, rows)
    place = {row: i for i, row in enumerate(rows)}
    full = np.zeros((len(wanted), *joined.shape[1:]), joined.dtype)
    full[here] = joined[[place[row] for row in wanted[here]]]
    return parallel.join_rows(full, here)[0]


def _finished_parts(folder: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """What the first batches gave, as far as they are there and sound."""
    found: list[dict[str, np.ndarray]] = []
    while (path := folder / f"{len(found):06d}.npz").is_file():
        try:
            found.append(files.read_arrays(path))
        except ValueError:
            # Damaged on the disk: this batch and those after it are attacked again.
            break
    return found


def _round_inside(adversarial: np.ndarray, images: np.ndarray, epsilon: float | None) -> np.ndarray:
    """Rounds images to 8 bits without leaving the ball, by the nearest level inside it."""
    levels = np.round(255 * adversarial)
    if epsilon is not None:
        # A level that float32 puts a hair outside counts as inside.
        low = np.ceil(255 * (images - epsilon) - 1e-3)
        high = np.floor(255 * (images + epsilon) + 1e-3)
        # Where the ball holds no level at all, the audit tells.
        levels = np.clip(levels, low, np.maximum(low, high))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _audit(images: np.ndarray, adversarial: np.ndarray, epsilon: float | None) -> None:
    """Refuses images outside the ball or [0, 1]."""
    radius = np.inf if epsilon is None else epsilon
    # The width of float32 near 1, and of the levels that rounding counts as inside.
    inside = np.abs(adversarial - images).max(initial=0) <= radius + 1e-5
    in_range = adversarial.min(initial=0) >= 0 and adversarial.max(initial=1) <= 1
    if not (np.isfinite(adversarial).all() and inside and in_range):
        raise ArithmeticError(
            f"the attack left the ball of radius {radius:.6g} or the range [0, 1] (largest "
            f"change {np.abs(adversarial - images).max():.6g}); its result is not reported"
        )
