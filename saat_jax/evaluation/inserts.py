"""Images that an attacker puts into the database, so that many queries find them; and the scan.

Images are drawn into three parts: queries that are held out, carriers of which inserts are made,
and what is listed, whose codes the attacker sees.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from saat_jax import hamming, options, retrieval
from saat_jax.evaluation.matcher import Matcher, Task, quartiles
from saat_jax.retrieval import Rate

Record = dict[str, Any]

# Carriers that are tried for each insert; codes of the database that the attacker looks at; the
# share of pairs within the wider radius of a scan.
_TRIES, _NUM_SEEN, _WIDE = 4, 5000, 0.01


class Parts(NamedTuple):
    """Rows of what is listed, by their part.

    Attributes:
        held_out: `[num_held_out]` queries.
        carriers: `[num_carriers]` images of which inserts are made.
        database: `[num_database]` what is searched.
    """

    held_out: np.ndarray
    carriers: np.ndarray
    database: np.ndarray


def inserts(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    epsilon: float,
    numbers: Sequence[int] = (1, 2, 5, 10),
    k: int = 10,
    num_held_out: int = 500,
    num_carriers: int = 100,
    alert_rate: float = 0.01,
    progress: bool = False,
) -> Record:
    """Measures how many held-out queries some inserted images reach, and whether a scan sees them.

    The attacker sees codes of the database, looks for codes that reach many of them
    (`retrieval.hub_codes`), and drives images to these codes. A query is reached if an insert is
    within the point's radius; and, told beside it, if an insert is among the `k` nearest, of
    equally near ones the last. At a point of kind "top_k" the attacker aims at the lists, else at
    the radius. Beside the crafted inserts stand the same images untouched, and the wanted codes
    themselves, as if each image came all the way.

    Args:
        made: the matcher, at a point of kind "radius" or "top_k"; its limit is not used.
        folder: of the audit; the record is `<folder>/inserts.json`, the images are in `.npz`.
        epsilon: radius of the L-infinity ball in units of [0, 1], in whole grey levels.
        numbers: of inserts, at which reach is told.
        k: length of the list that a query gets; a point of kind "top_k" has its own.
        num_held_out: images that are queries alone; near-duplicates of these are too.
        num_carriers: images of which inserts are made, by the attacker's choice. Of the images a
            third at most are held out, and a third carriers.
        alert_rate: share of the database that may be suspects of the scan.
        progress: whether to show a progress bar.

    Returns:
        The record; its "reach" maps "radius" (unless the point has none) and "top_k" to
        "untouched", "crafted" and "codes", and these to the share of queries by number.

    Raises:
        ValueError: if there are too few images, or an argument is none.

    Example:
        >>> import tempfile
        >>> from saat_jax import encoders
        >>> images = np.random.default_rng(0).integers(0, 256, (18, 2, 4, 3)).astype(np.uint8)
        >>> encoder = encoders.from_jax(lambda x: x.mean(axis=(1, 3)) - 0.5, image_size=(2, 4))
        >>> made = Matcher(encoder, list(images), {"radius": 1})
        >>> folder = tempfile.mkdtemp()
        >>> record = inserts(made, folder=folder, epsilon=1.0, numbers=(1,), k=3)
        >>> record["num_held_out"], record["bits_from_target"]["median"]
        (6, 0.0)
    """
    counts = {"num_held_out": num_held_out, "num_carriers": num_carriers}
    options.check_numbers(epsilon=epsilon, k=k, alert_rate=alert_rate, **counts)
    numbers = sorted({*map(int, numbers)})
    if made.point.kind == "cosine" or not numbers or numbers[0] < 1:
        raise ValueError(
            "inserts need a point of kind 'radius' or 'top_k', and numbers from 1, got "
            f"{made.point.kind!r} and {numbers}"
        )
    k = int(made.point.value) if made.point.kind == "top_k" else k
    parts = _divided(made, num_held_out, num_carriers)
    if len(parts.carriers) < numbers[-1] or k >= len(parts.database):
        raise ValueError(
            f"{numbers[-1]} inserts and lists of {k} need as many carriers and more listed "
            f"images, got {len(parts.carriers)} and {len(parts.database)} of {len(made.photos)} "
            "images; give more images, or smaller numbers"
        )
    level = int(np.floor(255 * epsilon + 1e-3))
    settings: Record = {"level": level, "numbers": numbers, "k": k, "alert_rate": alert_rate}
    settings |= counts | {"tries": _TRIES, "seen": _NUM_SEEN}

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        codes = np.asarray(hamming.binarize(np.asarray(made.listed_outputs, np.float32)))
        database, asked = codes[parts.database], codes[parts.held_out]
        hubs = _aims(made, database, k, numbers[-1])
        task = _assigned(codes, parts.carriers, hubs)
        with tqdm(total=len(task.rows), desc="inserts", unit="image", disable=not progress) as bar:
            levels = np.full(len(task.rows), level)
            fooled = made.attack(task, levels, parts=unfinished, update=bar.update)
        outputs = made.encoder.run(fooled.images)
        best = _nearest_tries(np.asarray(hamming.binarize(outputs)), task, len(hubs))
        planted = {
            "untouched": codes[task.rows[best]],
            "crafted": np.asarray(hamming.binarize(outputs[best])),
            "codes": hubs,
        }
        limits = {"top_k": entry_limits(asked, database, k)}
        if made.point.kind == "radius":
            limits = {"radius": np.full(len(asked), made.point.value)} | limits
        reach: Record = {}
        arrays = {"rows": task.rows[best], "hubs": hubs, **parts._asdict()}
        for measure, limit in limits.items():
            reach[measure] = {}
            for kind, some in planted.items():
                found = reached(some, asked, limit)
                reach[measure][kind] = {str(n): _share(found[n - 1]) for n in numbers}
                arrays[f"{measure}/{kind}"] = found
        changed = np.sum(planted["crafted"] != hubs, axis=1).astype(float)
        before = np.sum(planted["untouched"] != hubs, axis=1).astype(float)
        record: Record = {
            **settings,
            **{f"num_{name}": len(rows) for name, rows in parts._asdict().items()},
            "reach": reach,
            "bits_from_target": quartiles(changed),
            "bits_from_target_untouched": quartiles(before),
            "scans": _scans(made, database, planted, k, alert_rate),
        }
        images = {f"insert_{n}": fooled.images[row] for n, row in enumerate(best.tolist())}
        return record, arrays | images

    return made.record("inserts", folder, settings, make)


def entry_limits(queries: np.ndarray, database: np.ndarray, k: int) -> np.ndarray:
    """The largest distance at which an insert is among the `k` nearest of a query. `[num_queries]`

    Of equally near ones it is the last, so that it must be nearer than the k-th; -1 if none is.

    Args:
        queries: `[num_queries, num_bits]` in {-1, +1}.
        database: `[num_database, num_bits]` in {-1, +1}.
        k: length of the list, at most `num_database`.

    Example:
        >>> entry_limits(np.array([[1, 1, 1]]), np.array([[1, 1, 1], [1, -1, -1]]), 2).tolist()
        [1.0]
    """
    return np.partition(_distances(queries, database), k - 1, axis=1)[:, k - 1] - 1


def reached(inserted: np.ndarray, queries: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether each query is reached by the first, the first two, ... `[num_inserts, num_queries]`

    Args:
        inserted: `[num_inserts, num_bits]` in {-1, +1}.
        queries: `[num_queries, num_bits]` in {-1, +1}.
        limits: `[num_queries]` the distance within which an insert is found.

    Example:
        >>> codes = np.array([[1, 1], [-1, -1]])
        >>> reached(codes, codes, np.zeros(2)).tolist()
        [[True, False], [True, True]]
    """
    return np.logical_or.accumulate(_distances(inserted, queries) <= limits, axis=0)


def _divided(made: Matcher, num_held_out: int, num_carriers: int) -> Parts:
    """Draws the parts; near-duplicates are of one part."""
    num_photos = len(made.photos)
    groups = np.unique(made.groups[:num_photos])
    drawn = np.random.default_rng(made.seed).permutation(groups)
    third = len(groups) // 3
    first, second = min(num_held_out, third), min(num_carriers, third)
    held_out = np.isin(made.groups, drawn[:first])
    carriers = np.isin(made.groups, drawn[first : first + second])
    # What is listed beside the images is no query, and no carrier.
    own = np.arange(len(made.listed)) < num_photos
    rows = (held_out & own, carriers & own, ~held_out & ~carriers)
    return Parts(*map(np.flatnonzero, rows))


def _aims(made: Matcher, database: np.ndarray, k: int, num_hubs: int) -> np.ndarray:
    """The codes that inserts are driven to. `[num_hubs, num_bits]`"""
    rng = np.random.default_rng(made.seed)
    seen = database[np.sort(rng.permutation(len(database))[:_NUM_SEEN])]
    if made.point.kind == "radius":
        limits = np.full(len(seen), made.point.value)
    else:
        # Each is its own nearest.
        limits = entry_limits(seen, database, min(k + 1, len(database)))
    return retrieval.hub_codes(seen, limits, num_hubs=num_hubs)


def _assigned(codes: np.ndarray, carriers: np.ndarray, hubs: np.ndarray) -> Task:
    """The nearest carriers that are left for each hub, as many tries for each."""
    tries = min(_TRIES, len(carriers) // len(hubs))
    apart, rows, left = _distances(hubs, codes[carriers]), [], np.zeros(len(carriers))
    for line in apart:
        chosen = np.argsort(line + left, kind="stable")[:tries]
        left[chosen] = np.inf
        rows += carriers[chosen].tolist()
    wanted = np.zeros((len(rows), 1), int)
    return Task("collide", np.array(rows), wanted, np.repeat(hubs, tries, axis=0))


def _nearest_tries(codes: np.ndarray, task: Task, num_hubs: int) -> np.ndarray:
    """Of the tries for each hub the place of the one that came nearest. `[num_hubs]`"""
    apart = np.sum(codes != task.codes, axis=1).reshape(num_hubs, -1)
    return np.arange(num_hubs) * apart.shape[1] + np.argmin(apart, axis=1)


def _scans(
    made: Matcher, database: np.ndarray, planted: dict[str, np.ndarray], k: int, alert_rate: float
) -> list[Record]:
    """What the scan finds of inserts among the database, at the matcher's radius and a wider one.

    A point of kind "top_k" has no radius; there it is the usual distance of the last of a list.
    """
    pairs = np.cumsum(retrieval.distances_of_pairs(database))
    wide = int(np.searchsorted(pairs, _WIDE * pairs[-1]))
    own = int(made.point.value)
    if made.point.kind == "top_k":
        own = int(np.median(entry_limits(database, database, min(k + 1, len(database))))) + 1
    lines = []
    for radius in dict.fromkeys((own, wide)):
        for kind, codes in planted.items():
            found = retrieval.scan(
                retrieval.pack(np.concatenate([database, codes])),
                num_bits=database.shape[1],
                radius=radius,
                alert_rate=alert_rate,
                seed=made.seed,
            )
            caught = int(np.sum(found.suspects >= len(database)))
            line: Record = {"radius": radius, "kind": kind, "caught": _told(caught, len(codes))}
            line["false_alerts"] = _told(len(found.suspects) - caught, len(database))
            lines.append(line)
    return lines


def _share(found: np.ndarray) -> Record:
    return _told(int(found.sum()), len(found))


def _told(count: int, trials: int) -> Record:
    return Rate(count, trials).asdict()


def _distances(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(hamming.hamming_distance(codes, others))
