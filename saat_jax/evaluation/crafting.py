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

from saat_jax import attacks, files, hamming, networks, options, parallel, perturbation
from saat_jax.evaluation.methods import AttackSettings, TargetCodes

Array = jax.Array
Batch = Mapping[str, np.ndarray]
Batches = Iterable[Batch]

# Of fewer entries chance alone may make a set of codes without a negative one.
_MANY_ENTRIES = 64
# How far rounding moves a number.
_HALF_LEVEL = 0.5 / 255


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
        ValueError: if the batches do not cover the split, or what the encoder returns are no soft
            codes: of another shape, or all from 0 to 1.
    """
    encoder, variables = jax.jit(encode_fn), parallel.on_every_device(variables)
    values, rows = [], []
    with tqdm(total=size, desc=title, disable=not progress, unit="image") as bar:
        for batch in batches:
            image = parallel.split_rows(batch["image"])
            soft_codes = np.asarray(encoder(variables, image, 1.0))
            shape = "batch height width channels"
            options.check_shapes(image=(image, shape), soft_codes=(soft_codes, "batch num_bits"))
            real = batch["mask"] > 0
            if not np.isfinite(soft_codes[real]).all():
                raise FloatingPointError("the network returns NaN or infinite codes")
            values.append(soft_codes[real].astype(np.float32))
            rows.append(batch["index"][real])
            bar.update(len(rows[-1]))
    codes = _all_rows(values, rows, np.arange(size))
    if codes.size >= _MANY_ENTRIES and codes.min() >= 0:
        raise ValueError(
            "the encoder must return soft codes in (-1, 1), got none below 0, as of a sigmoid; "
            "return 2 * x - 1"
        )
    return np.asarray(hamming.binarize(codes)) if binary else codes


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack made of the queries.

    Attributes:
        codes: `[num_queries, num_bits]` in {-1, +1}, of the adversarial images.
        rounded_codes: the same of the images rounded to 8 bits.
        transferred: the same as `codes`, by the name of another model that judged.
        examples: `[num_examples, height, width, channels]` uint8, some rounded images.
        sizes: `[num_queries]` each, of `perturbation.perturbation_metrics`.
        notes: `[num_queries]` each, what a search tells beside the images; empty of others.
        seconds_per_image: wall clock of crafting and encoding, compilation left out.
    """

    codes: np.ndarray
    rounded_codes: np.ndarray
    transferred: dict[str, np.ndarray]
    examples: np.ndarray
    sizes: dict[str, np.ndarray]
    notes: dict[str, np.ndarray]
    seconds_per_image: float

    @property
    def perturbation(self) -> dict[str, float]:
        """The summary of the sizes."""
        return perturbation.summarize_perturbation(self.sizes)


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
    compiled: dict[Any, Any] | None = None,
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
        compiled: programs of earlier calls with the same model, to be used again where only
            arrays differ; this call's are added.
        title: of the progress bar.
        progress: whether to show the bar.

    Raises:
        ArithmeticError: if an image left the ball or [0, 1].
        ValueError: if the batches do not cover the queries, or are of more.
    """
    attack = _BatchAttack(
        {"": Encoder(encode_fn, variables), **(others or {})},
        target_codes,
        settings,
        seed,
        compiled,
    )
    results = [] if parts is None else finished_parts(parts)
    with tqdm(total=attack.num_queries, desc=title, disable=not progress, unit="image") as bar:
        bar.update(sum(len(part["row"]) for part in results))
        for number, batch in enumerate(batches_from(len(results)), len(results)):
            part, images = attack(batch)
            shown = np.isin(part["row"], example_rows)
            part |= {"example_row": part["row"][shown], "example": images[shown]}
            if save:
                for row, levels in zip(part["row"], images, strict=True):
                    save(int(row), levels)
            if parts is not None:
                files.write_arrays(parts / f"{number:06d}.npz", part)
            results.append(part)
            bar.update(len(images))
    return _joined(results, attack.num_queries, np.asarray(example_rows, int))


class _BatchAttack:
    """An attack on one batch after the other, and the models that judge its images.

    Args:
        models: by name; the one that is attacked has the name "".
        target_codes: as of `attack_queries`, and so are settings, seed and compiled.
    """

    def __init__(
        self,
        models: Mapping[str, Encoder],
        target_codes: TargetCodes,
        settings: AttackSettings,
        seed: int,
        compiled: dict[Any, Any] | None,
    ):
        self.num_queries = len(jax.tree.leaves(target_codes.codes)[0])
        self._models = {
            name: Encoder(jax.jit(encode_fn), parallel.on_every_device(variables))
            for name, (encode_fn, variables) in models.items()
        }
        self._craft = jax.jit(settings.build(models[""].encode_fn, target_codes))
        self._program = settings.program(target_codes)
        self._compiled = {} if compiled is None else compiled
        self._warm = False
        self._ball = settings.epsilon, settings.norm
        self._target_codes = jax.tree.map(np.asarray, target_codes.codes)
        self._arrays = parallel.on_every_device(dict(target_codes.arrays))
        self._keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))

    def __call__(self, batch: Batch) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What is kept of a batch, by name, and the images of its queries rounded to 8 bits."""
        image, real = batch["image"], batch["mask"] > 0
        if batch["index"][real].max(initial=0) >= self.num_queries:
            raise ValueError(
                f"the target codes are of {self.num_queries} queries, and a batch holds query "
                f"{batch['index'][real].max()}; make them of all"
            )
        # Padding takes the codes of the last query.
        rows = np.minimum(batch["index"], self.num_queries - 1)
        codes = jax.tree.map(lambda array: array[rows], self._target_codes)
        arguments = parallel.split_rows((image, codes, self._keys(batch["index"])))
        arguments = (self._models[""].variables, *arguments)
        key = repr((self._program, jax.tree.map(np.shape, arguments[1:])))
        if key not in self._compiled:
            self._compiled[key] = self._craft.lower(*arguments, **self._arrays).compile()
        if not self._warm:
            for name in self._models:
                self._codes(image, name)
            self._warm = True
        start = time.perf_counter()
        crafted = self._compiled[key](*arguments, **self._arrays)
        notes: dict[str, np.ndarray] = {}
        if isinstance(crafted, attacks.Found):
            notes = {
                f"notes/{name}": np.asarray(values)[real]
                for name, values in crafted._asdict().items()
                if name != "images"
            }
            crafted = crafted.images
        part = notes | {"codes": self._codes(crafted)[real], "row": batch["index"][real]}
        adversarial = np.asarray(crafted)
        part["seconds"] = np.array(time.perf_counter() - start)
        _audit(image[real], adversarial[real], *self._ball)
        rounded = round_inside(adversarial, image, *self._ball)
        _audit(image[real], rounded[real] / np.float32(255), *self._ball, rounded=True)
        part["rounded_codes"] = self._codes(rounded.astype(np.float32) / 255)[real]
        for name in filter(None, self._models):
            part[f"transferred/{name}"] = self._codes(crafted, name)[real]
        # Of padding too: a process may have nothing else.
        sizes = perturbation.perturbation_metrics(image, adversarial)
        part |= {f"perturbation/{name}": values[real] for name, values in sizes.items()}
        return part, rounded[real]

    def _codes(self, images: Any, name: str = "") -> np.ndarray:
        encode_fn, variables = self._models[name]
        soft_codes = encode_fn(variables, parallel.split_rows(images), 1.0)
        return np.asarray(hamming.binarize(soft_codes))


def _joined(
    results: list[dict[str, np.ndarray]], num_queries: int, example_rows: np.ndarray
) -> AttackResult:
    """What the batches of all processes give together."""
    rows = [part["row"] for part in results]

    def all_queries(name: str) -> np.ndarray:
        return _all_rows([part[name] for part in results], rows, np.arange(num_queries))

    def by_name(prefix: str) -> dict[str, np.ndarray]:
        names = [name for name in results[0] if name.startswith(prefix)]
        return {name.removeprefix(prefix): all_queries(name) for name in names}

    shown = [part["example_row"] for part in results]
    return AttackResult(
        codes=all_queries("codes"),
        rounded_codes=all_queries("rounded_codes"),
        transferred=by_name("transferred/"),
        examples=_all_rows([part["example"] for part in results], shown, example_rows),
        sizes=by_name("perturbation/"),
        notes=by_name("notes/"),
        # With several processes, of this one, for its share of the queries.
        seconds_per_image=float(sum(part["seconds"] for part in results))
        / max(sum(map(len, rows)), 1),
    )


def _all_rows(values: list[np.ndarray], rows: list[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Joins the batches of all processes, in the order of the wanted rows.

    Raises:
        ValueError: if a row is missing.
    """
    place = {row: i for i, row in enumerate(np.concatenate([[], *rows]).astype(int).tolist())}
    have = np.array([row in place for row in wanted.tolist()], bool)
    if values:
        joined = np.concatenate(values)
        full = np.zeros((len(wanted), *joined.shape[1:]), joined.dtype)
        full[have] = joined[[place[row] for row in wanted[have].tolist()]]
        full, have = parallel.join_rows(full, have)
    if not (values and have.all()):
        raise ValueError(
            f"the batches cover {np.count_nonzero(have)} of {len(wanted)} rows; pass them all"
        )
    return full


def finished_parts(folder: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """What the first batches gave, as far as they are there and sound."""
    found: list[dict[str, np.ndarray]] = []
    while (path := folder / f"{len(found):06d}.npz").is_file():
        try:
            found.append(files.read_arrays(path))
        except ValueError:
            # Damaged on the disk: this batch and those after it are attacked again.
            break
    return found


def round_inside(
    adversarial: np.ndarray,
    images: np.ndarray,
    epsilon: float | np.ndarray | None,
    norm: str = "linf",
) -> np.ndarray:
    """Rounds images to 8 bits without leaving the ball, by the nearest level inside it.

    Of another norm than "linf" no number moves farther than it was, or than half a level: an image
    that is not of 8 bits itself has no nearer one.
    """
    levels = np.round(255 * adversarial)
    if epsilon is not None:
        reach = epsilon
        if norm != "linf":
            reach = np.maximum(np.abs(adversarial - images), _HALF_LEVEL)
        # A level that float32 puts a hair outside counts as inside.
        low = np.ceil(255 * (images - reach) - 1e-3)
        high = np.floor(255 * (images + reach) + 1e-3)
        # Where the ball holds no level at all, the audit tells.
        levels = np.clip(levels, low, np.maximum(low, high))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _audit(
    images: np.ndarray,
    adversarial: np.ndarray,
    epsilon: float | None,
    norm: str,
    *,
    rounded: bool = False,
) -> None:
    """Refuses images outside the ball or [0, 1]."""
    radius = np.inf if epsilon is None else epsilon
    if rounded and norm != "linf":
        radius += _HALF_LEVEL
    change = float(np.max(attacks.NORMS[norm](adversarial - images), initial=0))
    # The width of float32 near 1, and of the levels that rounding counts as inside.
    inside = change <= radius + 1e-5
    in_range = adversarial.min(initial=0) >= 0 and adversarial.max(initial=1) <= 1
    if not (np.isfinite(adversarial).all() and inside and in_range):
        raise ArithmeticError(
            f"the attack left the ball of radius {radius:.6g} or the range [0, 1] (largest "
            f"change {change:.6g}); its result is not reported"
        )
