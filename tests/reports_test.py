"""Tests of the reports, on a small made-up run."""

import ast
import base64
import html.parser
import io
import json
import pathlib
import re

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from saat_jax import reports

EPSILON = 8 / 255
PROTOCOL = {
    "dataset": "digits",
    "k": 5000,
    "ties": "average",
    "normalizer": "hits",
    "num_queries": 500,
    "num_database": 2000,
    "num_train": 1000,
    "num_bits": 32,
    "num_classes": 10,
    "base_rate": 0.35,
    "seed": 0,
    "targets": "disjoint",
}
METRICS = {
    ("pretrained", "benign"): {"map": 0.9012, "t_map": 0.1234},
    ("pretrained", "mainstay"): {"map": 0.0981, "theory_map": 0.0970},
    ("pretrained", "mainstay_targeted"): {"t_map": 0.8812, "theory_t_map": 0.8900},
    ("hardened", "benign"): {"map": 0.8403, "t_map": 0.1301},
    ("hardened", "mainstay"): {"map": 0.4510, "theory_map": 0.1100},
    ("hardened", "mainstay_targeted"): {"t_map": 0.3050, "theory_t_map": 0.8700},
}
PERTURBATION = {
    "linf": EPSILON,
    "l2": 1.52,
    "mse": 7.53e-4,
    "psnr": 31.23,
    "root_mean_square": 0.02744,
    "matrix_norm_linf": 0.94,
    "matrix_norm_l2": 0.52,
}
NUM_QUERIES = 4
SIDE = 32


def write_run(
    workdir: pathlib.Path,
    *,
    metrics: dict[tuple[str, str], dict[str, float]] = METRICS,
    protocol: dict[str, object] = PROTOCOL,
    side: int = SIDE,
) -> pathlib.Path:
    """Writes the files of a finished run; returns its folder."""
    rng = np.random.default_rng(0)
    _write_json(workdir / "config.json", {"seed": 0, "attack": {"epsilon": EPSILON}})
    for i, model in enumerate(dict.fromkeys(model for model, _ in metrics)):
        lines = []
        for step in range(20, 640, 20):
            lines.append({"step": step, "epoch": step / 63, "loss": 1 / (1 + step / 60) + 0.2 * i})
            if step % 100 == 0:
                lines.append({"step": step, "epoch": step / 63, "map": 0.9 - 30 / step - 0.05 * i})
        path = workdir / "models" / model / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = np.eye(10, dtype=bool)[:NUM_QUERIES] | np.eye(10, dtype=bool)[5 : 5 + NUM_QUERIES]
    targets = np.roll(labels, 2, axis=1)
    benign = np.stack([_digits(np.flatnonzero(row), side) for row in labels])
    for (model, attack), numbers in metrics.items():
        targeted = attack.endswith("targeted")
        score = numbers.get("t_map" if targeted else "map", 0.5)
        _write_json(
            workdir / "records" / model / f"{attack}.json",
            {
                "model": model,
                "attack": attack,
                "targeted": targeted,
                "metrics": numbers,
                "curves": _curves(score, attack == "benign"),
                "perturbation": None if attack == "benign" else PERTURBATION,
                "settings": None
                if attack == "benign"
                else {"epsilon": EPSILON, "step_size": 1 / 255, "num_steps": 100, "loss": "mean"},
                "protocol": protocol,
                "seconds_per_image": 0.012,
                "device": "cpu",
                "version": "0.1.0",
                "step": 630,
            },
        )
        relevant = rng.random((NUM_QUERIES, 10)) < score
        wanted = targets if targeted else labels
        top = [
            [_digits(np.flatnonzero(row if hit else ~row)[:2], side) for hit in hits]
            for row, hits in zip(wanted, relevant, strict=True)
        ]
        change = EPSILON * np.sign(rng.normal(size=benign.shape)) * (attack != "benign")
        np.savez(
            workdir / "records" / model / f"{attack}.npz",
            images=np.clip(benign + change, 0, 1).astype(np.float32),
            benign_images=benign,
            top_images=np.round(255 * np.array(top)).astype(np.uint8),
            top_relevant=relevant,
            labels=labels,
            target_labels=targets,
            class_names=np.array(list("0123456789")),
        )
    return workdir


def _write_json(path: pathlib.Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _digits(digits: np.ndarray, side: int) -> np.ndarray:
    canvas = PIL.Image.new("RGB", (SIDE, SIDE), (48, 56, 70))
    draw = PIL.ImageDraw.Draw(canvas)
    for place, digit in enumerate(digits):
        draw.text((3 + 14 * place, 4 + 9 * place), str(digit), (240, 220, 150 + 50 * place))
    return np.asarray(canvas.resize((side, side)), np.float32) / 255


def _curves(score: float, is_benign: bool) -> dict[str, dict[str, list[float]]]:
    recall = np.arange(1, 101) / 100
    n = np.arange(100, 1001, 10)

    def pair(level: float, suffix: str) -> dict[str, dict[str, list[float]]]:
        precision = 0.35 + (level - 0.35) * (1 - recall**4)
        at_n = level + (0.35 - level) * (n / 2000) ** 2
        return {
            f"precision_recall{suffix}": {
                "recall": recall.tolist(),
                "precision": precision.tolist(),
            },
            f"precision_at_n{suffix}": {"n": n.tolist(), "precision": at_n.tolist()},
        }

    return pair(score, "") | (pair(0.05 + score / 10, "_target") if is_benign else {})
