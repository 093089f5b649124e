"""One change for all images, learned on some, judged on the rest; and what moves on to others."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks, mainstay, options
from saat_jax.datasets.photos import Photos
from saat_jax.evaluation import crafting
from saat_jax.evaluation.matcher import Matcher, Task
from saat_jax.evaluation.methods import AttackSettings, Learned, TargetCodes

Record = dict[str, Any]


def universal(
    made: Matcher,
    *,
    folder: str | os.PathLike[str],
    epsilon: float,
    patch: float = 0.0,
    task: str = "evade",
    num_steps: int = 300,
    progress: bool = False,
) -> Record:
    """Learns one perturbation for all images on every other one, and judges it on the rest.

    To evade, each image leaves its own code; to collide, all go to one victim, which is of those
    that it is learned on. Random noise of the same size, or a patch of random pixels, stands beside
    it.

    Args:
        made: the matcher; its images are all of one size.
        folder: of the audit; the record is `<folder>/universal.json`, the perturbation in `.npz`.
        epsilon: radius of the L-infinity ball in units of [0, 1], in whole grey levels.
        patch: share of the area that a patch covers, in place of a perturbation; 0 for none.
        task: "evade" or "collide".
        num_steps: steps of learning.
        progress: not used; it takes one program.

    Raises:
        ValueError: if images are of several sizes or fewer than four, or an argument is none.
    """
    del progress
    options.check_numbers(epsilon=epsilon, patch=patch, num_steps=num_steps)
    options.check_word("task", task, ("evade", "collide"))
    photos = made.photos
    shapes = {image.shape for image in photos.images}
    if len(shapes) > 1 or len(made.rows) < 4:
        raise ValueError(
            "a universal perturbation needs at least four images of one size, got "
            f"{len(made.rows)} of {len(shapes)} sizes; give `size`, to which all are squeezed"
        )
    level = int(np.floor(255 * epsilon + 1e-3))
    settings = {"level": level, "patch": patch, "task": task, "num_steps": num_steps}

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        del unfinished
        learned, judged = made.rows[::2], made.rows[1::2]
        victim = learned[made.seed % len(learned)]
        wanted = (
            (lambda rows: rows[:, None])
            if task == "evade"
            else (lambda rows: np.full((len(rows), 1), victim))
        )
        mask, (height, width, _) = None, photos.images[0].shape
        if patch:
            mask = attacks.patch_mask(height, width, share=patch)
        own = Task(task, learned, wanted(learned))
        if task == "collide":
            own = own.some(learned != victim)
        weights = -own.sign * np.where(made.listed_outputs[own.wanted[:, 0]] >= 0, 1, -1)
        scale = made.scale
        learn = jax.jit(
            lambda variables, images, weights, key: attacks.universal(
                made.encoder.encode_fn,
                variables,
                images,
                weights,
                key,
                epsilon=level / 255,
                num_steps=num_steps,
                batch_size=made.batch_size,
                scale=scale,
                mask=mask,
            )
        )
        key = jax.random.key(made.seed)
        found = learn(
            made.encoder.variables,
            _stacked(photos, own.rows),
            jnp.asarray(weights, jnp.float32),
            key,
        )
        noise = jax.random.uniform(jax.random.fold_in(key, 1), found.shape)
        if mask is None:
            noise = level / 255 * jnp.sign(noise - 0.5)
        rest = Task(task, judged, wanted(judged))
        record: Record = {**settings, "learned_on": len(own.rows)}
        for name, change in {"untouched": None, "random": noise, "universal": found}.items():
            for where, some in {"held_out": rest, "learned": own}.items():
                outputs = made.encoder.run(_changed(photos, some.rows, change, level, mask))
                record.setdefault(where, {})[name] = made.rate(some, outputs).asdict()
        return record, {"perturbation": np.asarray(found), "held_out": judged}

    return made.record("universal", folder, settings, make)


def learned_universal(
    encoder: crafting.Encoder,
    images: np.ndarray,
    labels: np.ndarray,
    codes: np.ndarray,
    settings: AttackSettings,
    *,
    seed: int,
    batch_size: int,
    identity: dict[str, Any],
) -> Learned:
    """What the attack "universal" adds to queries, learned on training images.

    Away from the own labels it is one perturbation, which lowers the agreement of all codes with
    the mainstay votes of their labels; towards target labels one for each of them.

    Args:
        encoder: the attacked model.
        images: `[num, height, width, channels]` in [0, 1], to learn on.
        labels: `[num, num_classes]` theirs.
        codes: `[num, num_bits]` in {-1, +1}, theirs.
        settings: the attack's.
        seed: of starts and draws.
        batch_size: images of a step.
        identity: what made the model, in JSON's types.
    """
    encode_fn, variables = encoder
    scale = attacks.measure_logits(encode_fn, variables, jnp.asarray(images[:batch_size]))
    patch, options_given = settings.options.get("patch", 0.0), settings.options
    mask = attacks.patch_mask(*images.shape[1:3], share=patch) if patch else None
    learn = jax.jit(
        lambda variables, images, weights, key: attacks.universal(
            encode_fn,
            variables,
            images,
            weights,
            key,
            epsilon=settings.epsilon or 0.0,
            num_steps=options_given["num_steps"],
            batch_size=batch_size,
            scale=scale,
            mask=mask,
        )
    )

    def target_codes(asked: np.ndarray, targeted: bool) -> TargetCodes:
        # Away from labels, all are one.
        wanted, rows = np.unique(asked * targeted, axis=0, return_inverse=True)
        found = []
        for number, label in enumerate(wanted):
            steered = np.tile(label, (len(images), 1)) if targeted else labels
            votes = np.asarray(mainstay.mainstay_votes(steered, codes, labels))
            key = jax.random.fold_in(jax.random.key(seed), number)
            found.append(learn(variables, images, -votes if targeted else votes, key))
        shared = {"perturbations": jnp.stack(found)}
        return TargetCodes(rows.reshape(-1).astype(np.int32), None, shared)

    return Learned(target_codes, identity)


def _stacked(photos: Photos, rows: np.ndarray) -> jax.Array:
    return jnp.asarray(np.stack([photos.images[row] for row in rows]) / np.float32(255))


def _changed(
    photos: Photos, rows: np.ndarray, change: jax.Array | None, level: int, mask: jax.Array | None
) -> list[np.ndarray]:
    """8-bit images with a perturbation or a patch."""
    if change is None:
        return [photos.images[row] for row in rows]
    images = _stacked(photos, rows)
    changed = attacks.put_on(images, change, epsilon=level / 255, mask=mask)
    radius = level / 255 if mask is None else None
    return [*crafting.round_inside(np.asarray(changed), np.asarray(images), radius)]


def transfer_matches(
    matchers: Mapping[str, Matcher],
    *,
    folder: str | os.PathLike[str],
    epsilon: float,
    progress: bool = False,
) -> Record:
    """Attacks the first of each matcher's images by its gradient, and judges them by all matchers.

    Each is judged at its own point, on the image as it is sent, squeezed to its own size if it has
    one.

    Args:
        matchers: by name, of the same images.
        folder: of the audit; the record is `<folder>/transfer.json`.
        epsilon: radius of the L-infinity ball in units of [0, 1], in whole grey levels.
        progress: whether to tell of each.

    Returns:
        The record; its "matrix" maps source and target to the share of images that evade.

    Raises:
        ValueError: if the matchers are of other images, or fewer than two.
    """
    options.check_numbers(epsilon=epsilon)
    first, *others = matchers.values()
    if not others or any(other.photos.names != first.photos.names for other in others):
        raise ValueError(
            f"transfer needs two matchers or more of the same images, got {[*matchers]}"
        )
    level = int(np.floor(255 * epsilon + 1e-3))
    settings = {"level": level, "matchers": {name: m.made_from for name, m in matchers.items()}}

    def make(unfinished: pathlib.Path) -> tuple[Record, dict[str, np.ndarray]]:
        matrix: Record = {}
        for name, source in matchers.items():
            if progress:
                print(f"attack on {name}", flush=True)
            task = source.task("evade")
            levels = np.full(len(task.rows), level)
            images = source.attack(task, levels, parts=unfinished / name).images
            matrix[name] = {}
            for other, target in matchers.items():
                sent = Photos((), tuple(images)).fitted(target.encoder.image_size).images
                outputs = target.encoder.run(sent)
                matrix[name][other] = target.rate(target.task("evade"), outputs).asdict()
        points = {name: matcher.point.asdict() for name, matcher in matchers.items()}
        return {"level": level, "points": points, "matrix": matrix}, {"rows": first.rows}

    return first.record("transfer", folder, settings, make)
