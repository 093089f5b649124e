"""Images on the page: what attacks change, and pictures that carry their own bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from saat_jax.reports import analysis, charts
from saat_jax.reports.records import Examples, Record, RunFiles, is_benign, is_suite, key_of

MAX_QUERIES = 6
# Where many attacks stand side by side.
_MAX_COMPARED_QUERIES = 3
# An image with at most this many pixels a side is shown enlarged, every pixel a square.
_MAX_PIXELATED = 112


def magnification(changes: Sequence[np.ndarray]) -> int:
    """Finds the largest whole factor that keeps every change within ±0.5; at least 1."""
    largest = max(float(np.abs(change).max(initial=0)) for change in changes)
    # Rounded first: 0.5 / (8 / 255) in float32 may fall just below a whole number.
    return max(1, int(round(0.5 / largest, 3))) if largest > 0 else 1


def image_groups(run: RunFiles) -> list[dict[str, Any]]:
    """Sorts the attacked queries into the tables that show them.

    One attack on all models side by side, its changes magnified alike; or, where there are many
    attacks, all of an aim on one model.
    """
    attacked = [r for r in run.records if not is_benign(r) and key_of(r) in run.examples]
    many = is_suite(run.records)
    groups: dict[Any, list[Record]] = {}
    for record in analysis.most_steps(attacked) if many else attacked:
        group = (record["model"], record["targeted"]) if many else record["attack"]
        groups.setdefault(group, []).append(record)
    return [_image_group(run, records, many) for records in groups.values()]


def _image_group(run: RunFiles, records: list[Record], many: bool) -> dict[str, Any]:
    examples = [run.examples[key_of(record)] for record in records]
    changes = [arrays["images"] - arrays["benign_images"] for arrays in examples]
    factors = [magnification([change] if many else changes) for change in changes]
    shown = zip(records, examples, changes, factors, strict=True)
    most = _MAX_COMPARED_QUERIES if many else MAX_QUERIES
    return {
        "targeted": records[0]["targeted"],
        "examples": examples[0],
        "queries": range(min(most, *map(len, changes))),
        "attacks": [
            {
                "record": record,
                "images": arrays["images"],
                "magnified": 0.5 + factor * change,
                "factor": factor,
            }
            for record, arrays, change, factor in shown
        ],
    }


def class_names(examples: Examples, field: str, index: int) -> str:
    """Names the classes of an example; at most three, since a cell is narrow."""
    classes = np.flatnonzero(examples[field][index])
    names = [str(examples["class_names"][c]) for c in classes]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join(names[:3] + more) or "no label"


def embed(image: np.ndarray, max_side: int | None = None) -> tuple[str, bool]:
    """Writes an image as an address that holds it, and tells whether its pixels are to be seen.

    Pixels are kept exactly (PNG), unless a side passes `max_side`: then the image is shrunk to
    fit, and stored as JPEG.

    Args:
        image: `[height, width, 3]`, float32, shown clipped to [0, 1], or uint8.
        max_side: in pixels.
    """
    # Imported here, as Matplotlib is: reading records and printing the table do without.
    import PIL.Image

    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    canvas = PIL.Image.fromarray(image)
    kind = "png"
    if max_side is not None and max(canvas.size) > max_side:
        canvas.thumbnail((max_side, max_side))
        kind = "jpeg"
    buffer = io.BytesIO()
    canvas.save(buffer, kind, quality=85)
    is_small = kind == "png" and max(canvas.size) <= _MAX_PIXELATED
    return address(buffer.getvalue(), kind), is_small


def drawn(chart: charts.Chart) -> dict[str, str]:
    """The addresses of a chart's images by theme."""
    return {theme: address(charts.draw(chart, theme=theme)) for theme in charts.THEMES}


def address(content: bytes, kind: str = "png") -> str:
    """Writes an image file as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
