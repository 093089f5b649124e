"""The README.md of a model folder, as hubs show it."""

from collections.abc import Mapping, Sequence
from typing import Any

from saat_jax.reports import tables
from saat_jax.reports.cards import NORMS, Card


def model_readme(config: Mapping[str, Any], cards: Sequence[Card]) -> str:
    """Writes the README.md of a hash network, in Markdown with Hugging Face's heading.

    Args:
        config: what config.json of the folder holds.
        cards: of what was judged; may be empty.
    """
    network, side = config["network"], config["image_size"]
    squeezed = "the whole image, squeezed to that"
    fitted = f"its short side brought to {config['resize']} pixels, the middle of it cut out"
    lines = [
        "---",
        "library_name: saat-jax",
        "pipeline_tag: image-feature-extraction",
        "tags: [hashing, image-retrieval, adversarial-robustness, jax]",
        "---",
        "",
        f"# {tables.printable(config['name'])}",
        "",
        f"A hash network, {network['name']}: an image becomes {network['num_bits']} bits, and "
        "images with near codes are alike.",
        "",
        "```python",
        "import saat_jax",
        'encoder = saat_jax.load_encoder("FOLDER")  # where this file lies',
        "codes = encoder.run(images) >= 0  # a list of [height, width, 3] uint8 images",
        "```",
        "",
        f"Images are RGB of {side} x {side} pixels: {fitted if config['resize'] else squeezed}.",
        "",
        "## How it holds under attack",
        "",
        *(_scores(cards) or ["Not judged yet."]),
        "",
        f"Weights {config['weights_sha256']}, by saat-jax {config['code_version']}.",
    ]
    return "\n".join(lines) + "\n"


def _scores(cards: Sequence[Card]) -> list[str]:
    lines = []
    for card in cards:
        radius = f"{255 * card.epsilon:.3g}/255" if card.norm == "linf" else f"{card.epsilon:.3g}"
        flags = "".join(f", FLAG {flag['flag']} ({flag['meaning']})" for flag in card.flags)
        lines += [
            f"- {card.metric} on {tables.printable(card.dataset)}, {card.num_queries} queries: "
            f"{tables.percent(card.clean['score'], 1)} clean, "
            f"{tables.percent(card.worst['score'], 1)} in the worst case within "
            f"{NORMS[card.norm]} {radius}{flags}",
        ]
    if cards:
        lines += ["", "Made by", "", "```", cards[0].command, "```"]
    return lines
