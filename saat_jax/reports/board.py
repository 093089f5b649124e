"""The board: cards side by side on one page that sorts and filters itself, without a server."""

import base64
import hashlib
import os
import pathlib
from typing import Any

from saat_jax import files
from saat_jax.reports import page, tables
from saat_jax.reports.cards import NORMS, TRACKS, Card, read_cards

_SCRIPT = pathlib.Path(__file__).parent / "templates" / "board.js"


def write_board(folder: str | os.PathLike[str], path: pathlib.Path) -> int:
    """Writes the page of a folder of cards. Equal cards give equal bytes.

    Args:
        folder: of cards `*.json`.
        path: of the page; a card's page is looked for from here, and linked if it is there.

    Returns:
        The number of cards.

    Raises:
        ModuleNotFoundError: if a package that the page takes is not installed.
        ValueError: as `cards.read_cards`.
    """
    cards = [*read_cards(folder).values()]
    page.check_packages()
    cards.sort(key=lambda card: (card.track != "labels", card.epsilon, -card.worst["score"]))
    script = _SCRIPT.read_text(encoding="utf-8")
    content = (
        page.environment()
        .get_template("board.html")
        .render(
            rows=[_row(card, path.parent) for card in cards],
            tracks={track: TRACKS[track] for track in dict.fromkeys(c.track for c in cards)},
            balls=_balls(cards),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    files.write_bytes(path, content.encode())
    return len(cards)


def _balls(cards: list[Card]) -> list[str]:
    return list(dict.fromkeys(_ball(c) for c in sorted(cards, key=lambda c: (c.norm, c.epsilon))))


def _ball(card: Card) -> str:
    radius = f"{255 * card.epsilon:.3g}/255" if card.norm == "linf" else f"{card.epsilon:.3g}"
    return f"{NORMS[card.norm]} {radius}"


def _row(card: Card, place: pathlib.Path) -> dict[str, Any]:
    """What the template shows of a card."""
    skill = None
    if card.base_rate is not None and card.base_rate < 1:
        skill = (card.worst["score"] - card.base_rate) / (1 - card.base_rate)
    return {
        "card": card,
        "ball": _ball(card),
        "page": _link(card.page, place),
        "skill": skill,
        "told": {
            name: _told(score)
            for name in ("clean", "worst", "targeted")
            if (score := getattr(card, name)) is not None
        },
        "false_match": _false_matches(card),
    }


def _link(address: str | None, place: pathlib.Path) -> str | None:
    """The address of a card's page, if it is one of the web or a file that is there."""
    if address is None or address.startswith(("http://", "https://")):
        return address
    return address if (place / address).is_file() else None


def _false_matches(card: Card) -> str:
    """The rate of false matches of an operating point, if it is known: often below what shows."""
    if (share := (card.point or {}).get("false_match")) is None:
        return ""
    low, high = (f"{100 * end:.2g}" for end in share.get("interval") or (share["score"],) * 2)
    return f"false matches {low} to {high} % of pairs"


def _told(score: Any) -> str:
    """A score with its interval, in percent."""
    if score is None:
        return "-"
    if score.get("interval") is None:
        return tables.percent(score["score"], 1)
    low, high = (f"{100 * end:.1f}" for end in score["interval"])
    return f"{tables.percent(score['score'], 1)} ({low}-{high})"
