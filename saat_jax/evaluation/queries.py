"""How far an attacker comes who sees a service's answers and nothing of the encoder."""

import functools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from saat_jax import attacks, files, options, retrieval
from saat_jax.datasets.photos import Photos
from saat_jax.evaluation import crafting, flags
from saat_jax.evaluation.matcher import Matcher, Task
from saat_jax.retrieval import ANSWERS, Oracle, Rate

Record = dict[str, Any]

# Decisions are enough for it, and it uses nothing else.
_BY_MATCH = "hop_skip_jump"
# Numbers of queries at which success is told, as far as the budget goes.
_MARKS = (30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
# Length of the list that a service returns; seconds between two savings.
_LISTED, _SAVE_EVERY = 50, 30.0


class Played(NamedTuple):
    """What a query attack has come to, for each image.

    Attributes:
        first: `[num]` queries until the task was done within the ball; infinite if it was not.
        asked: `[num]` queries in all.
        size: `[num]` the smallest change that does the task, in units of [0, 1]; infinite if none.
    """

    first: np.ndarray
    asked: np.ndarray
    size: np.ndarray


def queries(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    epsilon: float,
    budget: int = 5000,
    answers: Sequence[str] = ANSWERS,
    games: Sequence[str] = tuple(attacks.GAMES),
    task: str = "evade",
    index: str = "",
    per_second: float = 1.0,
    progress: bool = False,
) -> Record:
    """Measures success against the number of queries, by what the service answers.

    Where it tells distances or ranks, the attacks of `games` climb them; where it tells only
    whether an image matches, HopSkipJump follows the border. What a whole distance or rank does not
    tell is told by how much of the list of what is wanted is returned. The attack by the gradient,
    which sees all, stands beside them.

    Args:
        made: the matcher.
        folder: of the audit; the record is `<folder>/queries.json`.
        epsilon: radius of the L-infinity ball in units of [0, 1], in whole grey levels.
        budget: queries an image may take, counted and kept by the service.
        answers: of `retrieval.ANSWERS`.
        games: of `attacks.GAMES`.
        task: of `matcher.TASKS`.
        index: name of the matcher's index that the service searches; empty for arrays.
        per_second: queries a second that the service allows, for the cost.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if an argument is none, or there is nothing to be done.
    """
    options.check_numbers(epsilon=epsilon, budget=budget, per_second=per_second)
    for answer in answers:
        options.check_word("answer", answer, ANSWERS)
    for game in games:
        attacks.GAMES[game]
    if index:
        options.check_word("index", index, made.indexes)
    level = int(np.floor(255 * epsilon + 1e-3))
    wanted = made.task(task)
    if not len(wanted.rows):
        raise ValueError(f"no image is left for the task {task!r}: all do it untouched")
    settings: Record = {"level": level, "budget": budget, "answers": [*answers], "games": [*games]}
    settings |= {"task": task, "per_second": per_second, "k": _LISTED, "index": index}

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        arrays_alone = retrieval.array_index(made.point)
        searched = made.indexes[index] if index else arrays_alone(made.listed_outputs)
        plan = [
            (answer, game)
            for answer in answers
            for game in ([_BY_MATCH] if answer == "match" else games)
        ]
        lines, arrays = [], {"rows": wanted.rows, "wanted": wanted.wanted}
        total = len(plan) * len(wanted.rows) * budget
        with tqdm(total=total, desc="queries", unit="query", disable=not progress) as bar:
            for answer, game in plan:
                place = unfinished / answer / game
                played = _play(made, wanted, searched, settings, answer, game, place, bar.update)
                lines.append({"answer": answer, "game": game, **_told(played, budget)})
                names = (f"{answer}/{game}/{name}" for name in Played._fields)
                arrays |= dict(zip(names, played, strict=True))
        inside = made.attack(
            wanted, np.full(len(wanted.rows), level), parts=unfinished / "white_box"
        )
        done = inside.gain > 0
        without = np.any([np.isfinite(arrays[f"{a}/{g}/first"]) for a, g in plan], axis=0)
        record = {
            **settings,
            "lines": lines,
            "white_box": Rate(int(done.sum()), len(done)).asdict(),
            "flags": flags.raised({"gradient_free_wins": float(np.mean(without & ~done))}),
        }
        return record, arrays | {"white_box": done}

    return made.record("queries", folder, settings, make)


def _told(played: Played, budget: int) -> Record:
    marks = [mark for mark in _MARKS if 2 * mark <= budget] + [budget]
    done = played.first[np.isfinite(played.first)]
    success = {str(m): Rate(int(np.sum(done <= m)), len(played.first)).asdict() for m in marks}
    return {
        "success": success,
        "median": float(np.median(done)) if len(done) else None,
        "asked": int(played.asked.sum()),
    }


def _play(
    made: Matcher,
    task: Task,
    index: retrieval.Index,
    settings: Record,
    answer: str,
    game: str,
    parts: pathlib.Path,
    update: Callable[[int], Any],
) -> Played:
    """Plays a game for each image of a task, batch by batch."""
    found, batches = [], [*made.batches(task)]
    for number, batch in enumerate(batches):
        some = task.some(batch)
        oracle = Oracle(
            made.encoder.run,
            index,
            made.point,
            some.wanted,
            kind=answer,
            k=settings["k"],
            budget=settings["budget"],
        )
        log = _Log(parts / f"{number:06d}.npz")
        found.append(_play_batch(made, some, oracle, settings["level"], game, log, update))
        log.save()
        # What was not needed is done too.
        update(int(oracle.left().sum()))
    order = np.argsort(np.concatenate(batches))
    return Played(*(np.concatenate(part)[order] for part in zip(*found, strict=True)))


def _play_batch(
    made: Matcher,
    task: Task,
    oracle: Oracle,
    level: int,
    name: str,
    log: "_Log",
    update: Callable[[int], Any],
) -> Played:
    """Plays a game for images of one size, until all are done or have no query left."""
    originals = np.stack([made.photos.images[row] for row in task.rows])
    rng = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(made.seed)))(task.rows)
    game = _game(made, task, originals, rng, name, level / 255, oracle.budget)
    radius = None if name == _BY_MATCH else level / 255
    centres = originals[:, None] / np.float32(255)
    # The list that what is wanted gets itself costs a query.
    shown = [made.listed.images[row] for row in task.wanted[:, 0]]
    neighbours = oracle.ask(np.arange(len(shown)), shown).rows
    best = Played(*(np.full(len(task.rows), value) for value in (np.inf, 1, np.inf)))
    tried = next(game)
    while (active := (oracle.left() > 0) & np.isinf(best.first)).any():
        images = crafting.round_inside(tried, centres, radius)
        if (told := log.recall()) is None:
            told = _ask(task, oracle, images, active, neighbours)
            log.keep(told)
        else:
            oracle.asked = oracle.asked + np.isfinite(told.gains).sum(axis=1)
        asked = np.isfinite(told.gains)
        update(int(asked.sum()))
        count = best.asked[:, None] + np.cumsum(asked, axis=1)
        change = np.abs(images.astype(int) - originals[:, None]).max(axis=(2, 3, 4))
        size = np.where(told.done, change, np.inf)
        first = np.where(size <= level, count, np.inf).min(axis=1)
        best = Played(
            first=np.minimum(best.first, first),
            asked=count[:, -1],
            size=np.minimum(best.size, size.min(axis=1) / 255),
        )
        tried = game.send(told.gains)
    return best


def _game(
    made: Matcher,
    task: Task,
    originals: np.ndarray,
    rng: jax.Array,
    name: str,
    epsilon: float,
    budget: int,
) -> attacks.Game:
    images = jnp.asarray(originals / np.float32(255))
    if name != _BY_MATCH:
        return attacks.GAMES[name](images, rng, epsilon=epsilon, num_queries=budget)
    if task.sign > 0:
        # The victim itself, brought to the size of the image.
        victims = Photos((), tuple(made.listed.images[row] for row in task.wanted[:, 0]))
        starts = np.stack(victims.fitted(originals.shape[1:3]).images) / np.float32(255)
        return attacks.hop_skip_jump_game(images, jnp.asarray(starts), rng)
    noise = jax.vmap(functools.partial(jax.random.uniform, shape=images.shape[1:]))(rng)
    return attacks.hop_skip_jump_game(images, noise, rng)


class _Told(NamedTuple):
    """Of `[batch, num]` images: gains, -inf where not asked, and whether the task is done."""

    gains: np.ndarray
    done: np.ndarray


def _ask(
    task: Task,
    oracle: Oracle,
    images: np.ndarray,
    active: np.ndarray,
    neighbours: np.ndarray | None,
) -> _Told:
    """Asks about `[batch, num, ...]` images, as many as each account has left."""
    num = images.shape[1]
    asked = active[:, None] & (np.arange(num) < oracle.left()[:, None])
    accounts, places = np.nonzero(asked)
    answer = oracle.ask(accounts, [*images[accounts, places]])
    told = _Told(np.full(asked.shape, -np.inf), np.zeros(asked.shape, bool))
    told.done[accounts, places] = answer.match == (task.sign > 0)
    told.gains[accounts, places] = task.sign * _closeness(
        answer, task.wanted[accounts], None if neighbours is None else neighbours[accounts]
    )
    return told


def _closeness(
    answer: retrieval.Answer, wanted: np.ndarray, neighbours: np.ndarray | None
) -> np.ndarray:
    """How near an answer says that images are to what is wanted, the higher the nearer. `[num]`

    Args:
        answer: the answer.
        wanted: `[num, num_wanted]` rows of what is listed.
        neighbours: `[num, k]` the list that what is wanted gets itself, if lists are told.
    """
    if answer.rows is None or neighbours is None:
        return np.where(answer.match, 1.0, -1.0)
    k = answer.rows.shape[1]
    found = (answer.rows[:, :, None] == wanted[:, None]).any(axis=2)
    place = np.where(found.any(axis=1), found.argmax(axis=1), k)
    apart = place.astype(float)
    if answer.apart is not None:
        # What is not in the list is farther than its last.
        beyond = np.pad(answer.apart, ((0, 0), (0, 1)), mode="edge")
        beyond[:, -1] += 1 / k
        apart = np.take_along_axis(beyond, place[:, None], axis=1)[:, 0]
    shared = (answer.rows[:, :, None] == neighbours[:, None]).any(axis=2).mean(axis=1)
    # Below the least that whole distances and ranks differ by.
    return -apart + 0.5 * shared


class _Log:
    """What a game was told, kept on the disk: told the same again, it goes on where it was."""

    def __init__(self, path: pathlib.Path):
        self._path, self._saved, self._next = path, time.monotonic(), 0
        self._told: list[_Told] = []
        if path.is_file():
            stored = files.read_arrays(path)
            ends = np.cumsum(stored["lengths"])[:-1]
            parts = (np.split(stored[name], ends, axis=1) for name in _Told._fields)
            self._told = [_Told(*part) for part in zip(*parts, strict=True)]

    def recall(self) -> _Told | None:
        """What was told next, if it was told before."""
        self._next += 1
        return self._told[self._next - 1] if self._next <= len(self._told) else None

    def keep(self, told: _Told) -> None:
        """Keeps what was told, and saves from time to time."""
        self._told.append(told)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Saves all."""
        joined = (np.concatenate(part, axis=1) for part in zip(*self._told, strict=True))
        arrays = dict(zip(_Told._fields, joined, strict=True))
        lengths = np.array([told.gains.shape[1] for told in self._told])
        files.write_arrays(self._path, {**arrays, "lengths": lengths})
        self._saved = time.monotonic()
