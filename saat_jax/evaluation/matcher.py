"""A matcher under attack: an encoder, what is listed, a point, and the searches that fool it."""

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

from saat_jax import attacks, edits, files, options, retrieval
from saat_jax.datasets.photos import Photos, groups_of, load_photos
from saat_jax.encoders import Encoder, by_shape
from saat_jax.evaluation import crafting
from saat_jax.evaluation.record_files import RecordFiles, digest_of
from saat_jax.retrieval import OperatingPoint

Array = jax.Array

# What is attacked, by the name of the task: whether a match is wanted, and of how many of the
# listed images any will do.
TASKS: dict[str, tuple[bool, int]] = {
    "evade": (False, 1),
    "collide": (True, 1),
    "collide_any": (True, 16),
}
# By what the point looks at, the losses of the searches. The weights of the bits are the code to
# leave, or the opposite of that to reach; of "nearest_bits" the nearest to their threshold more.
MEMBERS: dict[str, dict[str, dict[str, Any]]] = {
    "codes": {
        "flight": {"loss": "weighted"},
        "soft": {"loss": "soft_gain"},
        "nearest_bits": {"loss": "weighted"},
    },
    "cosine": {"cosine": {"loss": "plain_gain"}, "soft": {"loss": "soft_gain"}},
}
# The one without a gradient, and how long each searches.
GRADIENT_FREE = "square"
NUM_STEPS, NUM_QUERIES = 100, 300
# Length of the list that an index is asked for, unless the point has its own.
_NUM_ASKED = 50
# Images by which the size of logits is measured.
_NUM_MEASURED = 8
# What is told of an encoder.
_TOLD = ("name", "num_bits", "runtime", "fingerprint", "image_size", "differentiable")
Images = str | os.PathLike[str] | Sequence[np.ndarray] | Photos


@dataclasses.dataclass(frozen=True)
class Task:
    """What is wanted of some images.

    Attributes:
        name: one of `TASKS`.
        rows: `[num]` the attacked images.
        wanted: `[num, num_wanted]` rows of what is listed: to be left, or to be matched.
        codes: `[num, num_bits]` codes of nothing that is listed, to be matched in place of
            `wanted`; None if there are none.
    """

    name: str
    rows: np.ndarray
    wanted: np.ndarray
    codes: np.ndarray | None = None

    @property
    def sign(self) -> np.float32:
        """+1 if a match is wanted, else -1."""
        return np.float32(1 if TASKS[self.name][0] else -1)

    def some(self, places: np.ndarray) -> "Task":
        """Of some of its images."""
        codes = None if self.codes is None else self.codes[places]
        return Task(self.name, self.rows[places], self.wanted[places], codes)


@dataclasses.dataclass
class Fooled:
    """The best image for each row of a task, within a radius.

    Attributes:
        images: `[num]` uint8 arrays.
        gain: `[num]` judged by the encoder's runtime; above zero where the task is done.
        member: `[num]` the number of the member that made it.
        alone: `[num]` the gain by this radius' own searches.
        gradient_free: `[num]` the gain by the member without a gradient; -inf where it was not
            tried.
        searched: `[num]` the gain as the searches saw it.
        blind: `[num]` whether no member had a gradient.
    """

    images: list[np.ndarray]
    gain: np.ndarray
    member: np.ndarray
    alone: np.ndarray
    gradient_free: np.ndarray
    searched: np.ndarray
    blind: np.ndarray

    def after(self, before: "Fooled | None") -> "Fooled":
        """What was done within a smaller radius counts here too."""
        if before is None:
            return self
        keep = before.gain > self.gain
        pairs = zip(keep, before.images, self.images, strict=True)
        return dataclasses.replace(
            self,
            images=[old if kept else new for kept, old, new in pairs],
            gain=np.where(keep, before.gain, self.gain),
            member=np.where(keep, before.member, self.member),
        )


class Matcher:
    """An encoder at its operating point, with what is listed. Nothing is encoded before its use.

    Args:
        encoder: as `load_encoder` gives it.
        images: a folder, or `[height, width, 3]` uint8 arrays, or "" for scikit-image's photos;
            all different. They are listed, and attacked.
        point: an `OperatingPoint`, or what `retrieval.point_of` makes one of, such as
            `{"radius": 31}` or `{"false_match_rate": 0.001}`.
        listed: what is listed beside them.
        limit: so many of the images are attacked, evenly spaced; None for all.
        longest: larger images are brought down to such a long side first, in pixels; smaller ones
            take less time, and are harder to fool.
        size: all images are squeezed to such a square first, in pixels.
        groups: a regular expression; images, listed ones too, in whose names it finds the same
            text are near-duplicates. An attacked copy is to match none of them, none is a victim
            of another, and their pairs are no false matches.
        indexes: what makes the indexes that the listed images are in, by name, such as
            `retrieval.faiss_index("ivf")`: what they return of attacked images is told beside.
        seed: of the starts, and of which image is to be taken for which.
        batch_size: images of one size that are attacked together.

    Raises:
        ValueError: if an image cannot be read, two are the same, or an argument is wrong; and when
            the point is looked at, if the images are too few for it.

    Attributes:
        photos: the images.
        listed: all that is listed, the photos first.
        rows: `[num]` of the photos those that are attacked.
        groups: `[num_listed]` numbers that near-duplicates share.
        members: the searches by the gradient, by name.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        point: OperatingPoint | Mapping[str, Any],
        listed: Images | None = None,
        *,
        limit: int | None = None,
        longest: int | None = None,
        size: int | None = None,
        groups: str | None = None,
        indexes: Mapping[str, retrieval.MakeIndex] | None = None,
        seed: int = 0,
        batch_size: int = 16,
    ):
        numbers = {"limit": limit, "longest": longest, "image_size": size}
        options.check_numbers(seed=seed, batch_size=batch_size, **numbers)
        square = (size, size) if size else None
        given: dict[str, Any] = {"limit": limit, "groups": groups, "indexes": indexes}
        self._given = given | {"seed": seed, "batch_size": batch_size}
        self.encoder, self.seed, self.batch_size = encoder, seed, batch_size
        loaded = load_photos(images, longest=longest).fitted(square)
        self.photos = photos = loaded.fitted(encoder.image_size)
        if len(set(map(np.ndarray.tobytes, photos.images))) < len(photos):
            raise ValueError("images must all be different, got copies; remove them")
        others = Photos((), ())
        if listed is not None:
            others = load_photos(listed, longest=longest).fitted(square)
        self._loaded = loaded, others if len(others) else None
        others = others.fitted(encoder.image_size)
        self.listed = Photos((*photos.names, *others.names), (*photos.images, *others.images))
        self.rows = np.linspace(0, len(photos) - 1, min(limit or len(photos), len(photos)))
        self.rows = self.rows.astype(int)
        self.groups = groups_of(self.listed.names, groups)
        self._indexes = indexes or {}
        self._point = point.asdict() if isinstance(point, OperatingPoint) else dict(point)
        self.made_from = {
            "encoder": encoder.fingerprint,
            "images": photos.fingerprint(),
            "listed": others.fingerprint() if len(others) else None,
            "point": self._point,
            "limit": limit,
            "seed": seed,
            "indexes": [*self._indexes],
            "groups": groups or None,
            "members": [MEMBERS, NUM_STEPS, NUM_QUERIES],
            "version": metadata.version("saat-jax"),
        }
        self._crafts: dict[tuple[str, tuple[str, ...]], Any] = {}

    def by(self, encoder: Encoder, point: OperatingPoint | Mapping[str, Any]) -> "Matcher":
        """The same images under another encoder, at a point of its own."""
        images, listed = self._loaded
        return Matcher(encoder, images, point, listed, **self._given)

    @functools.cached_property
    def listed_outputs(self) -> np.ndarray:
        """Of all that is listed, by the encoder's runtime. `[num_listed, num_bits]`"""
        return self.encoder.run(self.listed.images)

    @property
    def outputs(self) -> np.ndarray:
        """Of the photos. `[num_photos, num_bits]`"""
        return self.listed_outputs[: len(self.photos)]

    @functools.cached_property
    def point(self) -> OperatingPoint:
        """When two images match; ValueError if there are too few images to choose it by."""
        return retrieval.point_of(self._point, self.listed_outputs, self.groups)

    @functools.cached_property
    def indexes(self) -> dict[str, retrieval.Index]:
        """What the listed images are in, by name."""
        return {name: make(self.listed_outputs) for name, make in self._indexes.items()}

    @functools.cached_property
    def members(self) -> dict[str, dict[str, Any]]:
        """The searches by the gradient, by name."""
        by_gradient = MEMBERS["cosine" if self.point.kind == "cosine" else "codes"]
        return by_gradient if self.encoder.differentiable else {}

    @functools.cached_property
    def scale(self) -> attacks.LogitScale:
        """Of the encoder's logits, by some of the photos."""
        first, *_ = images = self.photos.images
        alike = [image for image in images if image.shape == first.shape][:_NUM_MEASURED]
        return attacks.measure_logits(
            self.encoder.encode_fn,
            self.encoder.variables,
            jnp.asarray(np.stack(alike) / np.float32(255)),
        )

    def told(self) -> dict[str, Any]:
        """Who is attacked, where and on what, for a record."""
        return {
            "encoder": {field: getattr(self.encoder, field) for field in _TOLD},
            "images": {
                "number": len(self.photos),
                "attacked": len(self.rows),
                "fingerprint": self.photos.fingerprint(),
            },
            "listed": len(self.listed),
            "near_duplicates": len(self.listed) - len(np.unique(self.groups)),
            "point": self.point.asdict(),
            "seed": self.seed,
            "version": metadata.version("saat-jax"),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }

    def record(
        self,
        name: str,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        make: Callable[[pathlib.Path], tuple[dict[str, Any], dict[str, np.ndarray]]],
    ) -> dict[str, Any]:
        """Makes a part of an audit, unless it is there.

        Args:
            name: of the part; `<folder>/<name>.json` has the record, `.npz` arrays beside it.
            folder: of the audit.
            settings: those of the part, in JSON's types.
            make: makes record and arrays; is told where to keep what is finished.
        """
        identity = digest_of({**self.made_from, **settings})
        place = RecordFiles(pathlib.Path(folder), name, identity)
        if (record := place.read()) is not None and place.arrays.is_file():
            return record
        unfinished = place.unfinished(name, self.batch_size)
        place.make_room(unfinished)
        with jax.default_matmul_precision("highest"):
            made, arrays = make(unfinished)
            record = {"part": name, **self.told(), **made, "identity": identity}
        files.write_arrays(place.arrays, arrays)
        # The record last: it says that all is there.
        files.write_json(place.record, record)
        place.remove_unfinished()
        # As any later call finds it.
        return files.read_json(place.record)

    @functools.cached_property
    def _logits(self) -> np.ndarray:
        """Of the photos, in multiples of their usual size. `[num_photos, num_bits]`"""
        logits_of = jax.jit(functools.partial(attacks.logits_of, self.encoder.encode_fn))
        return by_shape(
            self.photos.images, lambda x: logits_of(self.encoder.variables, x, self.scale)
        )

    @functools.cached_property
    def _num_wanted(self) -> int:
        """No task has more."""
        victims = min(max(number for _, number in TASKS.values()), len(self.listed) - 1)
        return max(victims, *map(len, self._alike.values()))

    @functools.cached_property
    def _alike(self) -> dict[int, np.ndarray]:
        """Of each attacked photo, the rows of its group."""
        return {row: np.flatnonzero(self.groups == self.groups[row]) for row in self.rows.tolist()}

    @functools.cached_property
    def _database(self) -> Array | None:
        return jnp.asarray(self.listed_outputs) if self.point.kind == "top_k" else None

    def task(self, name: str) -> Task:
        """What each attacked photo is to leave, or which listed ones it is to match.

        A chosen victim is drawn for the photo; of any victims the nearest will do. Neither is the
        photo itself or a near-duplicate. Photos that match theirs already are left out.
        """
        rows, (wants_match, num_wanted) = self.rows, TASKS[name]
        largest = max(map(len, self._alike.values()))
        if not wants_match:
            # The photo itself first; of smaller groups some are said twice.
            own = [
                np.resize([row, *found[found != row]], largest)
                for row, found in self._alike.items()
            ]
            return Task(name, rows, np.stack(own))
        num_wanted = min(num_wanted, len(self.listed) - largest)
        rng = np.random.default_rng(self.seed)
        wanted = np.empty((len(rows), num_wanted), int)
        for place, (row, found) in enumerate(self._alike.items()):
            if name == "collide":
                order = rng.permutation(len(self.listed))
            else:
                apart = self.point.apart(self.outputs[[row]], self.listed_outputs)[0]
                order = np.argsort(apart, kind="stable")
            wanted[place] = order[~np.isin(order, found)][:num_wanted]
        if not num_wanted:
            return Task(name, rows[:0], wanted[:0])
        task = Task(name, rows, wanted)
        return task.some(self.gain(task, self.outputs[rows]) <= 0)

    def gain(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        """Above zero where a task is done, in the units of the point. `[num]`"""
        listed = jnp.asarray(self._wanted_outputs(task))
        return np.asarray(self._criterion(task.sign, listed).gain(jnp.asarray(outputs)))

    def _wanted_outputs(self, task: Task) -> np.ndarray:
        """What is to be left, or to be matched. `[num, num_wanted, num_bits]`"""
        if task.codes is None:
            return self.listed_outputs[task.wanted]
        return task.codes[:, None].astype(np.float32)

    def rate(self, task: Task, outputs: np.ndarray) -> retrieval.Rate:
        """How often a task is done."""
        return retrieval.Rate(int(np.sum(self.gain(task, outputs) > 0)), len(task.rows))

    def run_edited(self, images: Sequence[np.ndarray], edit: str | None) -> np.ndarray:
        """What the encoder's runtime gives for images that were edited. `[num, num_bits]`"""
        if edit is None:
            return self.encoder.run(images)
        copies = Photos((), tuple(edits.apply(edit, image) for image in images))
        return self.encoder.run(copies.fitted(self.encoder.image_size).images)

    def _criterion(self, sign: Any, listed: Any) -> attacks.Match:
        return attacks.Match(self.point, listed, self._database, sign)

    def changed(self, task: Task, outputs: np.ndarray) -> np.ndarray:
        """How far outputs are apart from the nearest of what is wanted. `[num]`"""
        return self.point.apart(outputs, self._wanted_outputs(task)).min(axis=1)

    def by_index(self, outputs: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """Whether each index returns some of what is wanted, by its name. `[num]`"""
        return {
            name: retrieval.matches(index, self.point, outputs, wanted, k=_NUM_ASKED)
            for name, index in self.indexes.items()
        }

    def attack(
        self,
        task: Task,
        radii: np.ndarray,
        *,
        parts: pathlib.Path,
        update: Callable[[int], Any] = lambda count: None,
        gradient_free: bool = False,
        survive: Sequence[str] = (),
    ) -> Fooled:
        """The best of all members for each row of a task, within a radius of its own.

        Args:
            task: the task.
            radii: `[num]` in whole grey levels.
            parts: folder of what is finished, which is not done again.
            update: is told of every batch how many images it had.
            gradient_free: whether to try the member without a gradient too.
            survive: edits after each of which the task is to be done too.
        """
        made, batches = crafting.finished_parts(parts), [*self.batches(task)]
        update(sum(map(len, batches[: len(made)])))
        for number, batch in enumerate(batches[len(made) :], len(made)):
            made.append(self._attack_batch(task, batch, radii, gradient_free, tuple(survive)))
            files.write_arrays(parts / f"{number:06d}.npz", made[-1])
            update(len(batch))
        order = np.argsort(np.concatenate(batches))
        images = [image for part in made for image in part.pop("images")]
        joined = {name: np.concatenate([part[name] for part in made])[order] for name in made[0]}
        return Fooled([images[row] for row in order], alone=joined["gain"], **joined)

    def batches(self, task: Task) -> Iterator[np.ndarray]:
        """Places in a task's rows, of images of one size."""
        shapes = [self.photos.images[row].shape for row in task.rows]
        for shape in dict.fromkeys(shapes):
            places = np.array([place for place, other in enumerate(shapes) if other == shape])
            for first in range(0, len(places), self.batch_size):
                yield places[first : first + self.batch_size]

    def _attack_batch(
        self,
        task: Task,
        batch: np.ndarray,
        levels: np.ndarray,
        gradient_free: bool,
        survive: tuple[str, ...],
    ) -> dict[str, np.ndarray]:
        """What is kept of a batch: images, and what the runtime and the searches say of them."""
        # One program for all batches of a size, and for all tasks: what is less is filled up.
        shape = self.photos.images[task.rows[batch[0]]].shape
        alike = sum(self.photos.images[row].shape == shape for row in self.rows)
        missing = max(0, min(alike, self.batch_size) - len(batch))
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing)])
        wanted = self._wanted_outputs(task.some(filled))
        wanted = wanted[:, np.arange(self._num_wanted) % wanted.shape[1]]
        rows, within = task.rows[filled], (levels[filled] / 255).astype(np.float32)
        wished = self._criterion(task.sign, jnp.asarray(wanted))
        images = np.stack([self.photos.images[row] for row in rows]) / np.float32(255)
        arguments = (
            self.encoder.variables,
            jnp.asarray(images),
            jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self.seed)))(rows),
            jnp.asarray(within),
            dataclasses.replace(wished, listed=jnp.zeros(0)),
        )
        nearest = wished.nearest(jnp.asarray(self.outputs[rows]))
        # To be lowered is the agreement with them.
        weights = -task.sign * np.where(np.asarray(nearest) >= 0, 1, -1).astype(np.float32)
        near = {"nearest_bits": 2 * weights / (1 + np.abs(self._logits[rows]))}
        some, real = task.some(batch), slice(len(batch))
        judged, searched, blind, rounded = [], [], [], []
        free = gradient_free or not self.members
        for name in [*self.members, *([GRADIENT_FREE] if free else [])]:
            aim = attacks.Aim(jnp.asarray(near.get(name, weights)), wished.listed)
            found = self._craft(name, survive)(aim, *arguments)
            crafted = crafting.round_inside(
                np.asarray(found.images), images, within[:, None, None, None]
            )
            rounded.append(crafted[real])
            sent = [self.run_edited([*rounded[-1]], edit) for edit in (None, *survive)]
            judged.append(np.min([self.gain(some, outputs) for outputs in sent], axis=0))
            searched.append(np.asarray(found.gain)[real])
            blind.append(np.asarray(found.blind)[real])
        member = np.argmax(judged, axis=0)
        none = np.ones(len(batch), bool)
        return {
            "images": np.stack(rounded)[member, np.arange(len(batch))],
            "gain": np.max(judged, axis=0),
            "member": member,
            "gradient_free": judged[-1] if free else np.full(len(batch), -np.inf),
            "searched": np.max(searched, axis=0),
            "blind": np.all(blind[: len(self.members)], axis=0) if self.members else none,
        }

    def _craft(self, name: str, survive: tuple[str, ...]) -> Callable[..., attacks.Found]:
        """The compiled search of a member."""
        # Measured outside of the program.
        scale = self.scale
        if (name, survive) not in self._crafts:
            search = functools.partial(attacks.square_search, num_queries=NUM_QUERIES)
            if name in self.members:
                search = functools.partial(
                    attacks.auto_pgd_search, num_steps=NUM_STEPS, **self.members[name]
                )

            def encode_fn(variables: Any, images: Array, alpha: Any) -> Array:
                """Soft codes, in the mean over the image and its edited copies."""
                copies = [images, *(self._fit(edits.soften(edit, images)) for edit in survive)]
                codes = [self.encoder.encode_fn(variables, copy, alpha) for copy in copies]
                return sum(codes[1:], codes[0]) / len(codes)

            def craft(
                aim: attacks.Aim,
                variables: Any,
                images: Array,
                keys: Array,
                radii: Array,
                shared: Any,
            ) -> attacks.Found:
                return search(
                    encode_fn,
                    variables,
                    images,
                    aim,
                    keys,
                    targeted=False,
                    epsilon=radii,
                    criterion=lambda wished, listed: dataclasses.replace(wished, listed=listed),
                    shared=shared,
                    scale=scale,
                )

            self._crafts[name, survive] = jax.jit(craft)
        return self._crafts[name, survive]

    def _fit(self, images: Array) -> Array:
        """As `Photos.fitted`, with a gradient."""
        if self.encoder.image_size is None:
            return images
        return jax.image.resize(images, (len(images), *self.encoder.image_size, 3), "linear")

    def smallest(
        self, task: Task, by_level: Mapping[int, Fooled], parts: pathlib.Path
    ) -> np.ndarray:
        """The smallest whole grey level at which each row is done, by halving; else infinite.

        Args:
            task: the task.
            by_level: what was made of it, by radius in grey levels, from the least.
            parts: as of `attack`.
        """
        low, high = np.zeros(len(task.rows)), np.full(len(task.rows), np.inf)
        for level, found in by_level.items():
            done = found.gain > 0
            high = np.where(done, np.minimum(high, level), high)
            low = np.where(done, low, level)
        number = 0
        while (between := np.isfinite(high) & (high - low > 1)).any():
            middle = (low[between] + high[between]) // 2
            place = parts / f"halving_{number}"
            done = self.attack(task.some(between), middle, parts=place).gain > 0
            high[between] = np.where(done, middle, high[between])
            low[between] = np.where(done, low[between], middle)
            number += 1
        return high


def quartiles(values: np.ndarray) -> dict[str, float | None]:
    """Median and quartiles; None where they lie above all that is known."""
    quantiles = np.quantile(values, [0.25, 0.5, 0.75], method="higher").tolist()
    names = ("low", "median", "high")
    return {n: v if np.isfinite(v) else None for n, v in zip(names, quantiles, strict=True)}
