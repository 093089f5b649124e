"""Arguments of the API's functions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import saat_jax
from benchmarks.bad_inputs.judging import Case
from saat_jax import attacks, hamming, objectives, retrieval

NAN = float("nan")
IMAGES = (4, 8, 8, 3)


def _uniform(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def _codes(rows: int = 4, num_bits: int = 16) -> np.ndarray:
    return np.sign(_uniform((rows, num_bits)) - 0.5).astype(np.float32)


def _labels(rows: int = 4, num_classes: int = 5) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[np.arange(rows) % num_classes]


def _with(value: float, array: np.ndarray) -> np.ndarray:
    """An array with one entry of another value."""
    changed = array.copy()
    changed.flat[1] = value
    return changed


# What is handed over in the place of a good array, by kind.
BAD_IMAGES: dict[str, Callable[[np.ndarray], Any]] = {
    "images as a list": lambda x: x.tolist(),
    "images with NaN": lambda x: _with(NAN, x),
    "images of 0 to 255": lambda x: 255 * x,
    "images below 0": lambda x: x - 0.5,
    "uint8 images": lambda x: (255 * x).astype(np.uint8),
    "one image without its batch": lambda x: x[0],
    "images in PyTorch's order": lambda x: np.moveaxis(x, 3, 1),
}
BAD_CODES: dict[str, Callable[[np.ndarray], Any]] = {
    "codes of 0 and 1, floats": lambda x: (x + 1) / 2,
    "codes of 0 and 1, whole": lambda x: ((x + 1) / 2).astype(np.int32),
    "codes as booleans": lambda x: x > 0,
    "packed codes": lambda x: np.asarray(hamming.pack_codes(x)),
    "codes with NaN": lambda x: _with(NAN, x),
    "codes of 5": lambda x: 5 * x,
    "codes of another length": lambda x: x[:, : x.shape[1] // 2],
    "codes as a list": lambda x: x.tolist(),
    "one code without its rows": lambda x: x[0],
}
BAD_LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "labels with -1 for absent": lambda x: 2 * x - 1,
    "labels with NaN": lambda x: _with(NAN, x),
    "labels of another number of classes": lambda x: x[:, :-1],
    "labels of fewer rows": lambda x: x[:-1],
    "class indices for labels": lambda x: x.argmax(1),
    "labels as a list": lambda x: x.tolist(),
}
BAD_NUMBERS: dict[str, tuple[Any, ...]] = {
    "epsilon": (8, 1.5, NAN, float("inf"), -0.1, "8/255", np.float32(-0.03), True),
    "step_size": (NAN, -0.004, float("inf"), "1/255"),
    "num_steps": (-1, 2.5, "many", NAN),
    "k": ("ten", 0, -3, 2.5, NAN),
    "num_bits": ("16", 16.5, 0, -4, 10**9, NAN),
    "seed": (-1, 2**63, 0.5, "0"),
    "num_codes": (0, -1, 1.5),
    "decay": (NAN, -1.0, "1"),
    "learning_rate": (NAN, -0.1, 0, "fast"),
    "momentum": (NAN, -0.1, 2.0),
    "batch_scale": (NAN, -128, "128"),
}


def _encode(weights: Any, images: Any, alpha: Any = 1.0) -> jax.Array:
    return jnp.tanh(alpha * (images.reshape(len(images), -1) @ weights))


def _calls() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], dict[str, str]]]:
    """Functions of the API: title, function, good arguments, and which of them are what."""
    weights = _uniform((192, 16)) - 0.5
    key = jax.random.key(0)
    steps = dict(epsilon=8 / 255, step_size=1 / 255, num_steps=2)
    numbers = {name: name for name in steps}
    for name in ("pgd", "bim", "ni_fgsm", "si_ni_fgsm", "vmi_fgsm", "di_fgsm"):
        good = dict(images=_uniform(IMAGES), target_codes=_codes(), rng=key, targeted=False)
        function = functools.partial(getattr(attacks, name), _encode, weights)
        what = dict(images="images", target_codes="codes") | numbers
        # The others draw nothing.
        what |= dict(rng="key") if name in ("pgd", "vmi_fgsm", "di_fgsm") else {}
        yield name, function, good | steps, what
    for name in ("fgsm", "noise"):
        good = dict(images=_uniform(IMAGES), target_codes=_codes(), rng=key, targeted=False)
        function = functools.partial(getattr(attacks, name), _encode, weights)
        what = dict(images="images", epsilon="epsilon")
        yield name, function, good | dict(epsilon=8 / 255), what
    optimized = dict(images=_uniform(IMAGES), rng=key, targeted=False, epsilon=0.1, num_steps=2)
    what = dict(images="images", epsilon="epsilon", num_steps="num_steps")
    what |= dict(learning_rate="learning_rate", batch_scale="batch_scale")
    rates = dict(learning_rate=1.0, batch_scale=128)
    good = optimized | rates | dict(own_codes=_codes())
    yield (
        "hag",
        functools.partial(attacks.hag, _encode, weights),
        good,
        what | dict(own_codes="codes", momentum="momentum"),
    )
    good = optimized | rates | dict(labels=_labels(), code_bank=_codes(9), bank_labels=_labels(9))
    yield (
        "sdha",
        functools.partial(attacks.sdha, _encode, weights),
        good,
        what | dict(labels="labels", code_bank="codes", bank_labels="labels"),
    )
    for name in ("mainstay_votes", "mainstay_codes", "center_codes"):
        good = dict(labels=_labels(), code_bank=_codes(9), bank_labels=_labels(9))
        what = dict(labels="any labels", code_bank="bank", bank_labels="labels")
        yield name, getattr(saat_jax, name), good, what
    good |= dict(seed=0, num_codes=2)
    what = what | dict(seed="seed", num_codes="num_codes")
    yield "anchor_codes", saat_jax.anchor_codes, good, what
    codes = dict(codes=_codes(), other_codes=_codes(6))
    yield "hamming_distance", hamming.hamming_distance, codes, dict.fromkeys(codes, "codes")
    good = dict(query_codes=_codes(), database_codes=_codes(9))
    good |= dict(query_labels=_labels(), database_labels=_labels(9))
    what = dict(query_codes="codes", database_codes="codes")
    what |= dict(query_labels="labels", database_labels="labels")
    yield "map_at_k", retrieval.map_at_k, good | dict(k=5), what | dict(k="k")
    yield "precision_at_n", retrieval.precision_at_n, good | dict(cutoffs=[1, 5]), what
    yield "precision_recall_curve", retrieval.precision_recall_curve, good, what
    for name in ("mean_loss", "focused_loss"):
        good = dict(soft_codes=_codes() * 0.9, target_codes=_codes(), targeted=False)
        yield name, getattr(attacks, name), good, dict(target_codes="pair")
    good = dict(soft_codes=_codes() * 0.9, own_codes=_codes())
    yield "hag_loss", attacks.hag_loss, good, dict(own_codes="pair")
    for name in ("csq", "dpn"):
        good = dict(soft_codes=_codes() * 0.9, centers=_codes())
        yield name, getattr(objectives, name), good, dict(centers="pair")
    good = dict(images=_uniform(IMAGES), adversarial=_uniform(IMAGES))
    what = dict.fromkeys(good, "images")
    yield "perturbation_metrics", saat_jax.perturbation_metrics, good, what
    create = functools.partial(saat_jax.create_network, "convnet")
    yield "create_network", create, dict(num_bits=16), dict(num_bits="num_bits")


def cases() -> Iterator[Case]:
    """Each argument of each function in all the ways in which it can be wrong."""
    tables: dict[str, dict[str, Callable[[np.ndarray], Any]]] = {
        "images": BAD_IMAGES,
        "codes": BAD_CODES,
        "bank": {k: make for k, make in BAD_CODES.items() if "another length" not in k},
        "labels": BAD_LABELS,
        # With rows of their own.
        "any labels": {k: make for k, make in BAD_LABELS.items() if "fewer rows" not in k},
        "pair": {
            "codes without rows, broadcast": lambda x: x[0],
            "one row of codes, broadcast": lambda x: x[:1],
            "codes of width 1, broadcast": lambda x: x[:, :1],
        },
        "key": {
            "a number for a key": lambda x: 0,
            "fewer keys than images": lambda x: jax.random.split(x, 3),
        },
    }
    for title, function, good, what in _calls():
        for argument, nature in what.items():
            if nature in BAD_NUMBERS:
                changes = {f"{nature} out of range": list(BAD_NUMBERS[nature])}
            else:
                changes = {kind: [make(good[argument])] for kind, make in tables[nature].items()}
            for kind, values in changes.items():
                for value in values:
                    call = functools.partial(function, **good | {argument: value})
                    shown = f"={value!r}" if nature in BAD_NUMBERS else ""
                    said = "rng|key" if nature == "key" else argument
                    # Of two that do not fit, either may be named.
                    if "another" in kind or nature == "images":
                        said = "|".join([*what])
                    right = functools.partial(function, **good) if "as a list" in kind else None
                    yield Case(
                        kind, f"{title}: {argument}{shown}", lambda _, c=call: c(), (said,), right
                    )
    packed = np.asarray(hamming.pack_codes(_codes()))
    for number in (17, 0, -1):
        yield Case(
            "unpacking bits that are not there",
            f"unpack_codes: num_bits={number}",
            lambda _, n=number: hamming.unpack_codes(packed, num_bits=n),
            ("num_bits",),
        )
