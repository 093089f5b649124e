"""An encoder, images and an operating point in, one record out: how a matcher is fooled.

No labels: an attacked copy of a listed image is to match it no more (evasion), and an image is to
match a listed image that it is not (collision). What counts is the image as it is sent, with 8 bits
a channel, encoded by the encoder's own runtime.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from saat_jax import attacks, files, hamming, options, retrieval
from saat_jax.datasets.photos import Photos, as_file, edited, load_photos
from saat_jax.encoders import Encoder, by_shape, parity
from saat_jax.evaluation import flags
from saat_jax.evaluation.record_files import RecordFiles, digest_of
from saat_jax.retrieval import OperatingPoint, Rate

Array = jax.Array

# What is attacked, by the name of the task: whether a match is wanted, and of how many of the
# listed images any will do.
TASKS: dict[str, tuple[bool, int]] = {
    "evade": (False, 1),
    "collide": (True, 1),
    "collide_any": (True, 16),
}
# By the kind of the point, the losses of the searches; the bits' weights are the code to leave, or
# the opposite of that to reach, the nearest bits more if it says so.
_MEMBERS: dict[str, dict[str, dict[str, Any]]] = {
    "codes": {
        "flight": {"loss": "weighted"},
        "soft": {"loss": "soft_gain"},
        "nearest_bits": {"loss": "weighted"},
    },
    "cosine": {"cosine": {"loss": "plain_gain"}, "soft": {"loss": "soft_gain"}},
}
_NUM_STEPS, _NUM_QUERIES = 100, 300
# How the attacked image may be sent; the first is what the searches are judged by.
_SENT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "png": lambda image: as_file(image, "png"),
    "jpeg_95": lambda image: as_file(image, "jpeg", 95),
    "jpeg_75": lambda image: as_file(image, "jpeg", 75),
}
EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
# Images by which the size of logits and the chance of an encoder are measured.
_NUM_TESTED = 8
_NUM_EXAMPLES = 4
# Of so many images the distances of all pairs are kept, for the page.
_NUM_PAIRED = 200
# Length of the list that an index is asked for, unless the point has its own.
_NUM_ASKED = 50
Record = dict[str, Any]


def audit(
    encoder: Encoder,
    images: str | os.PathLike[str] | Sequence[np.ndarray] | Photos,
    point: OperatingPoint | Mapping[str, Any],
    listed: str | os.PathLike[str] | Sequence[np.ndarray] | Photos | None = None,
    *,
    folder: str | os.PathLike[str],
    epsilons: Sequence[float] = EPSILONS,
    limit: int | None = None,
    longest: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    indexes: Mapping[str, retrieval.MakeIndex] | None = None,
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
        listed: what collisions are to be with; by default the images themselves.
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
        progress: whether to show a progress bar.

    Returns:
        The record, which `<folder>/audit.json` has too. One that is there with the same identity
        is not made again; an audit that was stopped goes on after its last batch.

    Raises:
        ValueError: if an image cannot be read, two are the same, the images are too few for the
            point, or an argument is wrong.
        OSError: if something cannot be written.
    """
    options.check_numbers(epsilons=tuple(epsilons), seed=seed, batch_size=batch_size)
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
        "steps": _NUM_STEPS,
        "members": _MEMBERS,
        "indexes": [*(indexes or {})],
        "version": metadata.version("saat-jax"),
    }
    place = RecordFiles(pathlib.Path(folder), "audit", digest_of(made_from))
    if (record := place.read({"tasks": dict})) is not None and place.arrays.is_file():
        return record
    with jax.default_matmul_precision("highest"):
        return _Audit(encoder, photos, others, point, limit, seed, batch_size, indexes or {}).run(
            place, levels, progress
        )


def _levels(epsilons: Sequence[float]) -> list[int]:
    """Whole grey levels, from the least."""
    levels = sorted({int(np.floor(255 * epsilon + 1e-3)) for epsilon in epsilons})
    if not levels or levels[0] < 1:
        raise ValueError(
            f"epsilons must be at least 1 / 255, one grey level of an 8-bit image, got {epsilons}"
        )
    return levels


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is wanted of some images.

    Attributes:
        name: one of `TASKS`.
        rows: `[num]` the attacked images.
        wanted: `[num, num_listed]` rows of what is listed: to be left, or to be matched.
    """

    name: str
    rows: np.ndarray
    wanted: np.ndarray

    @property
    def sign(self) -> np.float32:
        return np.float32(1 if TASKS[self.name][0] else -1)


@dataclasses.dataclass
class _Found:
    """The best image of each row of a task so far.

    Attributes:
        images: `[num]` uint8 arrays.
        gain: `[num]` judged by the encoder's runtime.
        member: `[num]` the number of the member that made it.
        alone: `[num]` gain of this radius alone, without the smaller ones.
        gradient_free: `[num]` the gain by the member without a gradient.
        searched: `[num]` the gain as the search saw it.
        blind: `[num]` whether no member had a gradient.
    """

    images: list[np.ndarray]
    gain: np.ndarray
    member: np.ndarray
    alone: np.ndarray
    gradient_free: np.ndarray
    searched: np.ndarray
    blind: np.ndarray


class _Audit:
    def __init__(
        self,
        encoder: Encoder,
        photos: Photos,
        others: Photos | None,
        point: OperatingPoint | Mapping[str, Any],
        limit: int | None,
        seed: int,
        batch_size: int,
        indexes: Mapping[str, retrieval.MakeIndex],
    ):
        self.encoder, self.photos, self.batch_size, self.seed = encoder, photos, batch_size, seed
        if len(set(map(np.ndarray.tobytes, photos.images))) < len(photos):
            raise ValueError("images must all be different, got copies; remove them")
        self.outputs = encoder.run(photos.images)
        # Of the images first: they are listed too.
        self.listed = (
            photos
            if others is None
            else Photos((*photos.names, *others.names), (*photos.images, *others.images))
        )
        self.listed_outputs = (
            self.outputs
            if others is None
            else np.concatenate([self.outputs, encoder.run(others.images)])
        )
        self.point = retrieval.point_of(point, self.listed_outputs)
        self.indexes = {name: make(self.listed_outputs) for name, make in indexes.items()}
        self.attacked = np.linspace(0, len(photos) - 1, min(limit or len(photos), len(photos)))
        self.attacked = self.attacked.astype(int)
        first = self.photos.images[0].shape
        alike = [i for i in photos.images if i.shape == first][:_NUM_TESTED]
        self.scale = attacks.measure_logits(
            encoder.encode_fn, encoder.variables, jnp.asarray(np.stack(alike) / np.float32(255))
        )
        encode_fn = jax.jit(encoder.encode_fn)
        soft = by_shape(photos.images, lambda x: encode_fn(encoder.variables, x, self.scale.alpha))
        self.logits = np.arctanh(np.clip(soft, -1 + 1e-7, 1 - 1e-7)) / self.scale.size
        self.members = dict(_MEMBERS["cosine" if self.point.kind == "cosine" else "codes"])
        if not encoder.differentiable:
            self.members = {}
        self._crafts: dict[str, Any] = {}
        self._edited: list[np.ndarray] = []

    def run(self, place: RecordFiles, levels: list[int], progress: bool) -> Record:
        """Makes the record, or goes on with it."""
        unfinished = place.unfinished("audit", self.batch_size)
        place.make_room(unfinished)
        tasks = [task for name in TASKS if len((task := self._task(name)).rows)]
        total = sum(len(task.rows) for task in tasks) * len(levels)
        record = self._described()
        arrays: dict[str, np.ndarray] = {"names": np.array(self.photos.names)}
        found: dict[str, dict[int, _Found]] = {}
        with tqdm(total=total, desc="audit", unit="image", disable=not progress) as bar:
            for task in tasks:
                found[task.name] = {}
                for level in levels:
                    radii = np.full(len(task.rows), level / 255, np.float32)
                    parts = unfinished / task.name / str(level)
                    best = self._attack(task, radii, parts, bar, last=level == levels[-1])
                    before = [*found[task.name].values()][-1:]
                    found[task.name][level] = _joined(best, *before)
        record["tasks"], smallest = {}, {}
        for task in tasks:
            by_level = found[task.name]
            record["tasks"][task.name] = [
                {"epsilon": level / 255, **self._told(task, by_level[level])} for level in levels
            ]
            smallest[task.name] = self._smallest(task, by_level, unfinished / task.name)
            record["tasks"][task.name][-1]["members"] = self._by_member(by_level[levels[-1]])
            arrays |= {
                f"{task.name}/rows": task.rows,
                f"{task.name}/wanted": task.wanted,
                f"{task.name}/smallest": smallest[task.name],
                f"{task.name}/gain": np.stack([by_level[level].gain for level in levels]),
                f"{task.name}/member": np.stack([by_level[level].member for level in levels]),
                f"{task.name}/apart": np.stack(
                    [
                        self._changed(task, self.encoder.run(by_level[level].images))
                        for level in levels
                    ]
                ),
                **self._examples(task, by_level, smallest[task.name]),
            }
            self._save(place.folder / "images" / task.name, task, by_level)
        if self.indexes:
            own = self.attacked[:, None]
            # Of images that nobody has touched.
            record["indexes"] = {
                name: Rate(int(found_by.sum()), len(own)).asdict()
                for name, found_by in self._by_index(self.outputs[self.attacked], own).items()
            }
        record["smallest_epsilon"] = {name: _quartiles(values) for name, values in smallest.items()}
        record["flags"] = flags.raised(self._flags(record, found))
        record["identity"] = place.identity
        files.write_arrays(place.arrays, arrays | self._kept())
        files.write_json(place.record, record)
        place.remove_unfinished()
        # As any later call finds it.
        stored = place.read()
        assert stored is not None
        return stored

    def _task(self, name: str) -> _Task:
        """Which listed image each is to leave, or to match."""
        wants_match, num_wanted = TASKS[name]
        rows = self.attacked
        if not wants_match:
            return _Task(name, rows, rows[:, None])
        distances = 1 - self._similarity(self.outputs[rows])
        distances[np.arange(len(rows)), rows] = np.inf
        num_wanted = min(num_wanted, len(self.listed) - 1)
        if name == "collide":
            # Any but itself, drawn for the image; in the order of the draw, those at least that
            # it does not match already.
            rng = np.random.default_rng(self.seed)
            drawn = np.array([rng.permutation(len(self.listed)) for _ in rows])
            own = drawn == rows[:, None]
            wanted = np.take_along_axis(drawn, np.argsort(own, axis=1, kind="stable"), axis=1)
        else:
            wanted = np.argsort(distances, axis=1, kind="stable")
        task = _Task(name, rows, wanted[:, :num_wanted] if num_wanted else wanted[:, :0])
        if not num_wanted:
            return _Task(name, rows[:0], task.wanted[:0])
        innocent = self._gain(task, self.outputs[rows]) <= 0
        return _Task(name, rows[innocent], task.wanted[innocent])

    def _similarity(self, outputs: np.ndarray) -> np.ndarray:
        listed = jnp.asarray(self.listed_outputs)[None]
        signs = outputs if self.point.kind == "cosine" else np.where(outputs >= 0, 1.0, -1.0)
        return np.array(
            self.point.similarity(jnp.asarray(signs, jnp.float32), listed.repeat(len(outputs), 0))
        )

    def _criterion(self, sign: Any, listed: Any) -> attacks.Match:
        return attacks.Match(self.point, listed, self._database, sign)

    @functools.cached_property
    def _database(self) -> Array | None:
        return jnp.asarray(self.listed_outputs) if self.point.kind == "top_k" else None

    def _gain(self, task: _Task, outputs: np.ndarray) -> np.ndarray:
        """Above zero where the task is done. `[num]`"""
        listed = jnp.asarray(self.listed_outputs[task.wanted])
        return np.asarray(self._criterion(task.sign, listed).gain(jnp.asarray(outputs)))

    def _attack(
        self, task: _Task, radii: np.ndarray, parts: pathlib.Path, bar: Any, *, last: bool = False
    ) -> _Found:
        """The best of all members for each row, within a radius of its own."""
        rows: list[np.ndarray] = []
        made: list[dict[str, np.ndarray]] = []
        for number, batch in enumerate(self._batches(task)):
            path = parts / f"{number:06d}.npz"
            try:
                part = files.read_arrays(path) if path.is_file() else None
            except ValueError:
                part = None
            if part is None:
                part = self._attack_batch(task, batch, radii, last)
                files.write_arrays(path, part)
            rows.append(batch)
            made.append(part)
            bar.update(len(batch))
        order = np.argsort(np.concatenate(rows))
        joined = {
            name: np.concatenate([part[name] for part in made])[order]
            for name in made[0]
            if name != "images"
        }
        images = [image for part in made for image in part["images"]]
        return _Found([images[row] for row in order], alone=joined["gain"], **joined)

    def _batches(self, task: _Task) -> Iterator[np.ndarray]:
        """Places in a task's rows, of images of one size."""
        shapes = [self.photos.images[row].shape for row in task.rows]
        for shape in dict.fromkeys(shapes):
            places = np.array([place for place, other in enumerate(shapes) if other == shape])
            for first in range(0, len(places), self.batch_size):
                yield places[first : first + self.batch_size]

    def _tried(self, *, last: bool) -> list[str]:
        """The members for a radius: the one without a gradient for the last alone, to compare."""
        return [*self.members, *(["square"] if last or not self.members else [])]

    def _attack_batch(
        self, task: _Task, batch: np.ndarray, radii: np.ndarray, last: bool
    ) -> dict[str, np.ndarray]:
        """What is kept of a batch: images, and what the runtime and the searches say of them."""
        # One program for all batches of a size: they are filled up with copies.
        filled = np.concatenate(
            [batch, np.repeat(batch[-1:], self._full(task, batch) - len(batch))]
        )
        rows = task.rows[filled]
        images = np.stack([self.photos.images[row] for row in rows])
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self.seed)))(rows)
        # Tasks with fewer are filled up too.
        wanted_rows = np.resize(task.wanted[filled].T, (self._num_wanted, len(filled))).T
        listed = jnp.asarray(self.listed_outputs[wanted_rows])
        wanted = self._criterion(task.sign, listed)
        # To be lowered is the agreement with them.
        toward = np.asarray(wanted.nearest(jnp.sign(jnp.asarray(self.outputs[rows]))))
        weights = -task.sign * np.where(toward >= 0, 1, -1).astype(np.float32)
        lowered = {
            "nearest_bits": weights / (1 + np.abs(self.logits[rows])) * 2,
        }
        judged, searched, blind, rounded = [], [], [], []
        for name in self._tried(last=last):
            aim = attacks.Aim(jnp.asarray(lowered.get(name, weights)), listed)
            found = self._craft(name)(
                self.encoder.variables,
                jnp.asarray(images / np.float32(255)),
                aim,
                keys,
                jnp.asarray(radii[filled]),
                (task.sign, self._database),
            )
            levels = np.floor(255 * radii[filled] + 1e-3)[:, None, None, None]
            crafted = np.round(255 * np.asarray(found.images))
            crafted = np.clip(crafted, images - levels, images + levels)
            rounded.append(np.clip(crafted, 0, 255).astype(np.uint8)[: len(batch)])
            outputs = self.encoder.run([_SENT["png"](image) for image in rounded[-1]])
            part = _Task(task.name, task.rows[batch], task.wanted[batch])
            judged.append(self._gain(part, outputs))
            searched.append(np.asarray(found.gain)[: len(batch)])
            blind.append(np.asarray(found.blind)[: len(batch)])
        member = np.argmax(judged, axis=0)
        return {
            "images": np.stack(rounded)[member, np.arange(len(batch))],
            "gain": np.max(judged, axis=0),
            "member": member,
            "gradient_free": judged[-1] if last else np.full(len(batch), -np.inf),
            "searched": np.max(searched, axis=0),
            "blind": np.all(blind[: len(self.members)], axis=0)
            if self.members
            else np.ones(len(batch), bool),
        }

    def _full(self, task: _Task, batch: np.ndarray) -> int:
        """How many images a batch of this size has at most, whatever the task."""
        shape = self.photos.images[task.rows[batch[0]]].shape
        alike = sum(self.photos.images[row].shape == shape for row in self.attacked)
        return min(alike, self.batch_size)

    @property
    def _num_wanted(self) -> int:
        return max(1, min(max(most for _, most in TASKS.values()), len(self.listed) - 1))

    def _craft(self, name: str) -> Callable[..., attacks.Found]:
        """The compiled search of a member."""
        if name not in self._crafts:
            search: Callable[..., attacks.Found]
            if name == "square":
                search = functools.partial(attacks.square_search, num_queries=_NUM_QUERIES)
            else:
                search = functools.partial(
                    attacks.auto_pgd_search, num_steps=_NUM_STEPS, **self.members[name]
                )

            def craft(
                variables: Any, images: Array, aim: Any, keys: Array, epsilon: Array, shared: Any
            ) -> attacks.Found:
                return search(
                    self.encoder.encode_fn,
                    variables,
                    images,
                    aim,
                    keys,
                    targeted=False,
                    epsilon=epsilon,
                    criterion=lambda shared, listed: attacks.Match(
                        self.point, listed, shared[1], shared[0]
                    ),
                    shared=shared,
                    scale=self.scale,
                )

            self._crafts[name] = jax.jit(craft)
        return self._crafts[name]

    def _smallest(
        self, task: _Task, by_level: dict[int, _Found], parts: pathlib.Path
    ) -> np.ndarray:
        """The smallest whole grey level at which each row is done; infinite if none is known."""
        low = np.zeros(len(task.rows), int)
        high = np.full(len(task.rows), np.iinfo(int).max)
        for level, found in by_level.items():
            done = found.gain > 0
            high = np.where(done & (high > level), level, high)
            low = np.where(done, low, level)
        known = high < np.iinfo(int).max
        number = 0
        while (open_ := known & (high - low > 1)).any():
            middle = np.where(open_, (low + high) // 2, high)
            chosen = _Task(task.name, task.rows[open_], task.wanted[open_])
            radii = (middle[open_] / 255).astype(np.float32)
            place = parts / f"halving_{number}"
            found = self._attack(chosen, radii, place, _Quiet())
            done = np.zeros(len(task.rows), bool)
            done[open_] = found.gain > 0
            high = np.where(open_ & done, middle, high)
            low = np.where(open_ & ~done, middle, low)
            number += 1
        return np.where(known, high, np.inf)

    def _told(self, task: _Task, found: _Found) -> Record:
        """What is said of a task at one radius."""
        told: Record = {}
        for name, send in _SENT.items():
            outputs = self.encoder.run([send(image) for image in found.images])
            told[name] = Rate(int(np.sum(self._gain(task, outputs) > 0)), len(task.rows)).asdict()
            if name == "png":
                told["changed"] = _quartiles(self._changed(task, outputs))
                told["indexes"] = {
                    index: Rate(int(np.sum(match == (task.sign > 0))), len(task.rows)).asdict()
                    for index, match in self._by_index(outputs, task.wanted).items()
                }
        return told

    def _by_index(self, outputs: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """Whether each index returns what is wanted, by its name. `[num]`"""
        return {
            name: retrieval.matches(index, self.point, outputs, wanted, k=_NUM_ASKED)
            for name, index in self.indexes.items()
        }

    def _changed(self, task: _Task, outputs: np.ndarray) -> np.ndarray:
        """Bits, or cosine, between the attacked image and the nearest of what is wanted."""
        listed = self.listed_outputs[task.wanted]
        return self._apart(outputs, listed).min(axis=1)

    def _apart(self, outputs: np.ndarray, listed: np.ndarray) -> np.ndarray:
        """Hamming distances, or one less the cosines. `[num, num_listed]`"""
        cosine = self.point.kind == "cosine"
        signs = outputs if cosine else np.where(outputs >= 0, 1, -1)
        similarity = np.asarray(
            self.point.similarity(jnp.asarray(signs, jnp.float32), jnp.asarray(listed))
        )
        return 1 - similarity if cosine else np.round((1 - similarity) * self.encoder.num_bits / 2)

    def _by_member(self, found: _Found) -> dict[str, int]:
        names = [*self.members, "square"]
        counts = np.bincount(found.member, minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def _described(self) -> Record:
        """Who, what, and where without an attack."""
        encoder, point = self.encoder, self.point
        clean = (
            retrieval.false_match_rate(point, self.listed_outputs)
            if point.kind != "top_k"
            else None
        )
        edits: dict[str, Record] = {}
        task = _Task("evade", self.attacked, self.attacked[:, None])
        changed: dict[str, list[np.ndarray]] = {}
        for row in self.attacked:
            for name, image in edited(self.photos.images[row]).items():
                changed.setdefault(name, []).append(image)
        for name, images in changed.items():
            fitted = Photos(self.photos.names, tuple(images)).fitted(encoder.image_size)
            outputs = encoder.run(fitted.images)
            lost = int(np.sum(self._gain(task, outputs) > 0))
            self._edited.append(self._changed(task, outputs).astype(np.float32))
            edits[name] = {
                "unmatched": Rate(lost, len(task.rows)).asdict(),
                "changed": _quartiles(self._edited[-1]),
            }
        passes = len(self.members) * (_NUM_STEPS + 1)
        return {
            "encoder": {
                "name": encoder.name,
                "num_bits": encoder.num_bits,
                "runtime": encoder.runtime,
                "fingerprint": encoder.fingerprint,
                "image_size": encoder.image_size,
                "differentiable": encoder.differentiable,
            },
            "parity": dataclasses.asdict(parity(encoder, self.photos.images)),
            "images": {"number": len(self.photos), "fingerprint": self.photos.fingerprint()},
            "listed": len(self.listed),
            "point": {
                **point.asdict(),
                "false_match": clean and {**clean.asdict(), "least": clean.least},
            },
            "edits": edits,
            "forward_passes": passes or _NUM_QUERIES + 1,
            "backward_passes": passes,
            "seed": self.seed,
            "version": metadata.version("saat-jax"),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }

    def _flags(self, record: Record, found: Mapping[str, Mapping[int, _Found]]) -> dict[str, float]:
        """Values by flag."""
        encoder = self.encoder
        few = self.photos.images[:_NUM_TESTED]
        again = [encoder.run(few) for _ in range(5)]
        differ = np.any(np.stack(again) != again[0], axis=(0, 2))
        last = [[*by_level.values()][-1] for by_level in found.values()]
        gain, free, searched, blind = (
            np.concatenate([getattr(each, name) for each in last])
            for name in ("gain", "gradient_free", "searched", "blind")
        )
        shrunk = [
            (before.gain > 0) & (after.alone <= 0)
            for by_level in found.values()
            for before, after in zip(
                [*by_level.values()][:-1], [*by_level.values()][1:], strict=True
            )
        ]
        by_gradient = np.concatenate([each.member for each in last]) < len(self.members)
        return {
            "random_output": float(np.mean(differ)),
            "runtime_differs": record["parity"]["bits_differ"] / record["parity"]["num_bits"],
            "no_gradient": float(np.mean(blind)),
            "gradient_free_wins": float(np.mean((free > 0) & ~by_gradient)),
            "lost_in_8_bits": float(np.mean((searched > 0) & (gain <= 0))),
            "not_monotone": float(np.mean(np.concatenate(shrunk))) if shrunk else 0.0,
        }

    def _kept(self) -> dict[str, np.ndarray]:
        """What is not attacked: codes, and how far different images are apart."""
        few = self.listed_outputs[:_NUM_PAIRED]
        apart = self._apart(few, np.broadcast_to(few, (len(few), *few.shape)))
        kept = {
            "listed_names": np.array(self.listed.names),
            "pairs": apart[np.triu_indices(len(few), k=1)].astype(np.float32),
            "edited": np.concatenate(self._edited),
        }
        if self.point.kind == "cosine":
            return kept | {"listed_outputs": self.listed_outputs.astype(np.float32)}
        codes = np.where(self.listed_outputs >= 0, 1, -1)
        return kept | {"listed_codes": np.asarray(hamming.pack_codes(codes))}

    def _examples(
        self, task: _Task, by_level: Mapping[int, _Found], smallest: np.ndarray
    ) -> dict[str, np.ndarray]:
        """A few images of a task, those first that take the smallest change."""
        kept: dict[str, np.ndarray] = {}
        for number, place in enumerate(np.argsort(smallest, kind="stable")[:_NUM_EXAMPLES]):
            done = [level for level, found in by_level.items() if found.gain[place] > 0]
            level = done[0] if done else [*by_level][-1]
            row = task.rows[place]
            one = _Task(task.name, task.rows[[place]], task.wanted[[place]])
            attacked = by_level[level].images[place]
            outputs = self.encoder.run([attacked])
            nearest = int(np.argmin(self._apart(outputs, self.listed_outputs[one.wanted])[0]))
            told = [
                level,
                self._changed(one, self.outputs[[row]])[0],
                self._changed(one, outputs)[0],
                bool(done),
            ]
            kept |= {
                f"{task.name}/example_{number}/{name}": np.asarray(value)
                for name, value in {
                    "name": self.photos.names[row],
                    "original": self.photos.images[row],
                    "attacked": attacked,
                    "wanted": self.listed.images[one.wanted[0, nearest]],
                    "told": told,
                }.items()
            }
        return kept

    def _save(self, folder: pathlib.Path, task: _Task, by_level: Mapping[int, _Found]) -> None:
        """The attacked images as PNG, a folder for each radius."""
        from PIL import Image

        for level, found in by_level.items():
            for row, image in zip(task.rows, found.images, strict=True):
                name = pathlib.Path(self.photos.names[row]).with_suffix(".png")
                path = folder / str(level) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as temporary:
                    Image.fromarray(image).save(temporary, format="png")


class _Quiet:
    def update(self, count: int) -> None:
        """Nothing."""


def _joined(found: _Found, before: _Found | None = None) -> _Found:
    """What was done within a smaller ball counts in a larger one."""
    if before is None:
        return found
    keep = before.gain > found.gain
    return dataclasses.replace(
        found,
        images=[a if k else b for k, a, b in zip(keep, before.images, found.images, strict=True)],
        gain=np.where(keep, before.gain, found.gain),
        member=np.where(keep, before.member, found.member),
    )


def _quartiles(values: np.ndarray) -> dict[str, Any]:
    """Median and quartiles; None where they lie above all that is known."""
    quantiles = np.quantile(values, [0.25, 0.5, 0.75], method="higher") if len(values) else []
    names = ("low", "median", "high")
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(names, quantiles, strict=False)
    }
