"""What can be proved of a matcher: by noise for the smoothed one, exactly for a linear hash."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from saat_jax import certificates, encoders, files, hamming, options
from saat_jax.evaluation import crafting
from saat_jax.evaluation.matcher import Matcher
from saat_jax.retrieval import Rate

Record = dict[str, Any]

# Grey levels at which a linear hash is certified.
_LEVELS = (1, 2, 4, 8)


def certify(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    sigma: float = 0.25,
    num_draws: int = 1000,
    alpha: float = 0.001,
    epsilons: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    progress: bool = False,
) -> Record:
    """Proves that images are not evaded, or do not collide, within Euclidean balls.

    What is proved is of the smoothed matcher: two images match if most noisy copies of the one
    match the other's listed code. Of PDQ it is also told what may happen at all to its own bits
    within L-infinity balls, without noise, and beside it how many images the attack of the audit in
    the same folder has evaded.

    Args:
        made: the matcher, at a point of kind "radius".
        folder: of the audit; the record is `<folder>/certify.json`.
        sigma: deviation of the noise, in units of [0, 1].
        num_draws: noisy copies of an image.
        alpha: probability that a statement about an image is wrong.
        epsilons: Euclidean norms of the whole change, in units of [0, 1]; at 224 pixels a change
            of 8 / 255 everywhere has a norm of 12.
        progress: whether to show a progress bar.

    Returns:
        The record; `<folder>/certify.npz` has the radii of each image, the radii of its bits, and
        the distances of its noisy copies.

    Raises:
        ValueError: if the point is no radius, the encoder has no JAX function, or a number is none.
    """
    options.check_numbers(sigma=sigma, num_draws=num_draws, alpha_error=alpha)
    if made.point.kind != "radius":
        raise ValueError(f"certificates are for a point of kind 'radius', got {made.point}")
    settings: Record = {
        "sigma": sigma,
        "num_draws": num_draws,
        "alpha": alpha,
        "epsilons": [*map(float, epsilons)],
    }

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        own, other, bits = _drawn(made, sigma, num_draws, unfinished, progress)
        limit, given = made.point.value, {"sigma": sigma, "alpha": alpha}
        evade = certificates.evasion_radius((own <= limit).sum(axis=1), num_draws, **given)
        collide = certificates.collision_radius((other <= limit).sum(axis=1), num_draws, **given)
        radii = certificates.bit_radii(bits, num_draws, **given)
        lines = []
        for epsilon in settings["epsilons"]:
            flips = certificates.max_flips(radii, epsilon)
            bound = certificates.distance_bound(own, epsilon, **given)
            lines.append(
                {
                    "epsilon": epsilon,
                    "no_evasion": Rate(int(np.sum(evade > epsilon)), len(evade)).asdict(),
                    "no_collision": Rate(int(np.sum(collide > epsilon)), len(collide)).asdict(),
                    "flips": float(np.median(flips)),
                    "distance": float(np.median(bound)) if np.isfinite(bound).all() else None,
                }
            )
        votes = np.mean(own <= limit, axis=1) > 0.5
        record = {
            **settings,
            "smoothed_matches": Rate(int(votes.sum()), len(votes)).asdict(),
            "lines": lines,
            "linear": _linear(made, pathlib.Path(folder)),
        }
        arrays = {"rows": made.rows, "evasion_radius": evade, "collision_radius": collide}
        return record, arrays | {"bit_radii": radii, "distances": own, "others": other}

    return made.record("certify", folder, settings, make)


def _drawn(
    made: Matcher, sigma: float, num_draws: int, parts: pathlib.Path, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the noisy copies of each image: distances to the nearest of its own group and to the
    nearest of all others, `[num, num_draws]`, and how many have each bit, `[num, num_bits]`.
    """
    listed = np.asarray(hamming.binarize(np.asarray(made.listed_outputs, np.float32)))
    draw = encoders.draw_outputs(made.encoder, sigma=sigma)
    found = crafting.finished_parts(parts)
    bar = tqdm(total=len(made.rows), desc="certify", unit="image", disable=not progress)
    with bar:
        bar.update(len(found))
        for number, row in enumerate(made.rows[len(found) :].tolist(), len(found)):
            alike = made.groups == made.groups[row]
            own, other, bits = [], [], np.zeros(made.encoder.num_bits, int)
            key = jax.random.fold_in(jax.random.key(made.seed), row)
            for outputs in draw(made.photos.images[row], key, num_draws):
                codes = np.where(outputs >= 0, 1.0, -1.0).astype(np.float32)
                apart = np.round((codes.shape[1] - codes @ listed.T) / 2)
                own.append(np.where(alike, apart, np.inf).min(axis=1))
                other.append(np.where(alike, np.inf, apart).min(axis=1))
                bits += (codes > 0).sum(axis=0)
            part = {"own": np.concatenate(own), "other": np.concatenate(other), "bits": bits}
            found.append(part)
            files.write_arrays(parts / f"{number:06d}.npz", part)
            bar.update()
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    return stacked["own"], stacked["other"], stacked["bits"]


def _linear(made: Matcher, folder: pathlib.Path) -> list[Record]:
    """Of a linear hash what may flip in L-infinity balls, and what the audit's attack has done."""
    if made.encoder.name not in encoders.LINEAR_HASHES:
        return []
    attacked = _attacked(folder)
    lines = []
    for level in _LEVELS:
        flips = []
        for row in made.rows:
            image = made.photos.images[row]
            hashed = encoders.LINEAR_HASHES[made.encoder.name](*image.shape[:2])
            flips.append(certificates.linear_flips(hashed, image, level)[1])
        proved = np.array(flips) <= made.point.value
        line: Record = {
            "level": level,
            "flips": float(np.median(flips)),
            "proved": Rate(int(proved.sum()), len(proved)).asdict(),
        }
        if level in attacked and len(attacked[level][0]) == len(proved):
            broken, apart = attacked[level]
            line["broken"] = Rate(int(broken.sum()), len(broken)).asdict()
            line["flipped"] = float(np.median(apart))
            line["contradictions"] = int(np.sum(apart > flips))
        lines.append(line)
    return lines


def _attacked(folder: pathlib.Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By grey level, of each image that the audit in a folder attacked: evaded, and bits apart."""
    if not (folder / "audit.json").is_file():
        return {}
    record = files.read_json(folder / "audit.json", fields={"tasks": dict})
    arrays = files.read_arrays(folder / "audit.npz", names=("evade/gain", "evade/apart"))
    levels = [round(255 * line["epsilon"]) for line in record["tasks"]["evade"]]
    pairs = zip(arrays["evade/gain"] > 0, arrays["evade/apart"], strict=True)
    return dict(zip(levels, pairs, strict=True))
