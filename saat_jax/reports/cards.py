"""Cards: one JSON for a model and an evaluation of it, with what a number needs to be believed.

The fields are RobustBench's (model, paper, data, threat model, clean and worst-case score) and what
makes them checkable: intervals, flags, suite, command, digest of the weights, version of the code.
Scores are the higher the better for the defender, but those of a targeted attacker.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from saat_jax import files, options
from saat_jax.reports.records import METRICS, Record, is_benign, is_worst_case, settings_of
from saat_jax.reports.sections import kind_of

FORMAT_VERSION = 1
TRACKS = options.Choices(
    "track",
    {
        "labels": "MAP of queries, with labels",
        "audit": "matches at an operating point, without labels",
    },
)
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
_CURE = "make it again by `saat-jax card`"
_SHARE = options.Range(0, 1)
# Radii are quotients: what is equal but for rounding is equal.
_ROUNDING = 1e-9


def _score(place: str, value: Any) -> None:
    """A share with the ends of its interval, if that is known."""
    options.check_tree(place, value, {"score": _SHARE, "interval?": [_SHARE], "by?": str})
    interval = value.get("interval")
    if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
        raise ValueError(f"{place}.interval must be its low and its high end, got {interval}")


def _flags(place: str, value: Any) -> None:
    options.check_tree(place, value, list)
    for number, flag in enumerate(value):
        options.check_tree(f"{place}[{number}]", flag, {"flag": str, "meaning": str})


def _digest(place: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(
            f"{place} must be a SHA-256 of 64 hexadecimal digits, got "
            f"{options.shortened(repr(value), 80)}"
        )


def _page(place: str, value: Any) -> None:
    """A path below the board, or an address of the web: nothing that a click would run."""
    options.check_tree(place, value, str)
    if re.match(r"(?!https?://)[A-Za-z][A-Za-z0-9+.-]*:|[/\\]", value):
        raise ValueError(
            f"{place} must be a relative path or an address of http or https, got "
            f"{options.shortened(repr(value), 80)}"
        )


_FIELDS = {
    "format_version": int,
    "name": str,
    "paper?": str,
    "venue?": str,
    "authors?": str,
    "track": TRACKS,
    "dataset": str,
    "num_queries": options.number,
    "num_database": options.number,
    "num_bits": options.number,
    "norm": options.Choices("norm", NORMS),
    "epsilon": options.number,
    "metric": str,
    "clean": _score,
    "worst": _score,
    "targeted?": _score,
    "base_rate?": _SHARE,
    "point?": {"kind": str, "value": float, "false_match?": _score},
    "flags": _flags,
    "suite?": {"preset": str, "version": int, "members": [str]},
    "seed": options.number,
    "command": str,
    "weights?": _digest,
    "code_version": str,
    "page?": _page,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A model and an evaluation of it.

    A score is a dict of "score" in [0, 1], and where they are known "interval" (95 %, low and high
    end) and "by", the record it is from.

    Attributes:
        name: of the model.
        track: one of `TRACKS`.
        dataset: name of the data.
        num_queries: images that were attacked.
        num_database: images that they were searched in.
        num_bits: length of the codes.
        norm: of the ball, one of `NORMS`.
        epsilon: its radius in units of [0, 1].
        metric: what the scores are, in words.
        clean: score without an attacker.
        worst: the lowest score within the ball, of all records of the model.
        targeted: the most that a targeted attacker got; None if there was none.
        base_rate: MAP of a random order; None where there is none.
        point: the operating point of an audit: "kind", "value", "false_match".
        flags: why not to believe the worst case: "flag", "meaning".
        suite: the standard suite that was among the attacks: "preset", "version", "members".
        seed: of the evaluation.
        command: what makes it again.
        weights: digest of the weights, or of what an encoder's codes depend on; None if unknown.
        code_version: of the library that judged.
        page: of the run: a path relative to the board, or an address.
        paper: its title or address.
        venue: where it appeared.
        authors: of the paper.
        format_version: of the card.
    """

    name: str
    track: str
    dataset: str
    num_queries: int
    num_database: int
    num_bits: int
    norm: str
    epsilon: float
    metric: str
    clean: Mapping[str, Any]
    worst: Mapping[str, Any]
    targeted: Mapping[str, Any] | None
    base_rate: float | None
    point: Mapping[str, Any] | None
    flags: Sequence[Mapping[str, str]]
    suite: Mapping[str, Any] | None
    seed: int
    command: str
    weights: str | None
    code_version: str
    page: str | None = None
    paper: str | None = None
    venue: str | None = None
    authors: str | None = None
    format_version: int = FORMAT_VERSION

    def asdict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def stem(self) -> str:
        """What its file is called: the model, and the radius in grey levels."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{self.name} {self.dataset}").strip("_.")
        return f"{name[:120]}-{self.norm}-{255 * self.epsilon:.3g}"


def write_card(card: Card, path: pathlib.Path) -> None:
    """Writes a card; ValueError if it is none that `read_card` would take."""
    check_card(card.asdict(), str(path))
    files.write_json(path, card.asdict())


def check_card(fields: Mapping[str, Any], place: str) -> Card:
    """Makes a card of its fields.

    Args:
        fields: in JSON's types.
        place: where they are from, for the message.

    Raises:
        ValueError: naming the first field that is lacking, unknown or wrong, and the cure.

    Example:
        >>> check_card({"format_version": 1, "name": "mine"}, "a.json")
        Traceback (most recent call last):
        ValueError: a.json: the card lacks 'track'; it has the fields [...]; make it again ...
    """
    try:
        if fields.get("format_version") != FORMAT_VERSION:
            got = options.shortened(repr(fields.get("format_version")), 60)
            raise ValueError(f"the card must have the format_version {FORMAT_VERSION}, got {got}")
        options.check_tree("", fields, _FIELDS, whole="the card")
        if (fields.get("point") is None) != (fields["track"] == "labels"):
            raise ValueError("point must be given of the track 'audit', and of no other")
    except ValueError as error:
        raise ValueError(f"{place}: {error}; {_CURE}") from error
    return Card(**{**dict.fromkeys(name.rstrip("?") for name in _FIELDS), **fields})


def read_card(path: str | os.PathLike[str]) -> Card:
    """Reads and checks a card.

    Raises:
        ValueError: if it is no JSON, or as `check_card`.
    """
    path = pathlib.Path(path)
    return check_card(files.read_json(path, cure=_CURE), str(path))


def read_cards(folder: str | os.PathLike[str]) -> dict[pathlib.Path, Card]:
    """Reads the cards `*.json` of a folder, by path in the order of their names.

    Raises:
        ValueError: if there are none; or naming all that are damaged.
    """
    cards, faults = {}, []
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        try:
            cards[path] = read_card(path)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    if not cards:
        raise ValueError(
            f"no cards in {os.fspath(folder)!r}; `saat-jax card WORKDIR --output FOLDER` makes them"
        )
    return cards


def cards_of_run(
    records: Sequence[Record],
    *,
    title: str,
    command: str,
    weights: Mapping[str, str],
    page: str | None = None,
) -> list[Card]:
    """Makes a card for each model and each ball in which it was attacked.

    What was found within a smaller ball of the norm counts too: it lies in the larger one. So do
    images from elsewhere, judged again by the attack "images".

    Args:
        records: of a run, as `load_records` returns them.
        title: of the run; a card is named after it and the model.
        command: what made the records.
        weights: digests by model, where they are known.
        page: of the run.

    Raises:
        ValueError: if no model was judged both benign and within a ball.
    """
    cards = []
    for model in dict.fromkeys(record["model"] for record in records):
        own = [record for record in records if record["model"] == model]
        given = {"command": command, "weights": weights.get(model), "page": page}
        balls = {ball for r in own if not r["targeted"] and (ball := _ball(r))}
        # At most one.
        for benign in filter(is_benign, own):
            for ball in sorted(balls):
                inside = [record for record in own if _is_inside(record, ball)]
                name = f"{title}: {model}"
                cards.append(_card_of_run(benign, inside, ball, name=name, **given))
    if not cards:
        raise ValueError(
            "no model of the run was judged both without an attack and within a ball; run the "
            "task 'evaluate' there"
        )
    return cards


def _ball(record: Record) -> tuple[str, float] | None:
    """Norm and radius of a record's attack; None if it has none, as a patch."""
    settings = settings_of(record)
    if settings.get("epsilon") is None or settings.get("patch"):
        return None
    return settings.get("norm", "linf"), settings["epsilon"]


def _is_inside(record: Record, ball: tuple[str, float]) -> bool:
    own = _ball(record)
    return own is not None and own[0] == ball[0] and own[1] <= ball[1] + _ROUNDING


def _card_of_run(
    benign: Record, inside: Sequence[Record], ball: tuple[str, float], *, name: str, **given: Any
) -> Card:
    protocol = benign["protocol"]
    metric = f"{METRICS['map']}@{protocol['k'] or 'all'}"
    worst = min((r for r in inside if not r["targeted"]), key=lambda r: r["metrics"]["map"])
    aimed = [record for record in inside if record["targeted"]]
    most = max(aimed, key=lambda r: r["metrics"]["t_map"], default=None)
    suite = [r for r in inside if is_worst_case(r) and not r["targeted"]]
    # Any search of the ball that is not to be believed spoils what is the lowest of all, and so
    # does a model that hardly retrieves.
    flags = {f["flag"]: f["meaning"] for r in (benign, *inside) for f in r.get("flags") or ()}
    return Card(
        name=name,
        track="labels",
        dataset=protocol["dataset"],
        num_queries=protocol["num_queries"],
        num_database=protocol["num_database"],
        num_bits=protocol["num_bits"],
        norm=ball[0],
        epsilon=ball[1],
        metric=metric,
        clean=_score_of(benign, "map"),
        worst=_score_of(worst, "map"),
        targeted=_score_of(most, "t_map") if most else None,
        base_rate=protocol.get("base_rate"),
        point=None,
        flags=[{"flag": flag, "meaning": meaning} for flag, meaning in flags.items()],
        suite=_suite_of(suite[-1]) if suite else None,
        seed=protocol["seed"],
        code_version=worst["version"],
        **given,
    )


def _score_of(record: Record, key: str) -> dict[str, Any]:
    interval = record.get("interval")
    # A mean of shares may be rounded to above 1.
    score = min(1.0, record["metrics"][key])
    return {"score": score, "interval": interval, "by": record["attack"]}


def _suite_of(record: Record) -> dict[str, Any]:
    settings = settings_of(record)
    return {
        "preset": settings.get("preset", "own"),
        "version": settings.get("version", 0),
        "members": [*record["members"]],
    }


def cards_of_audit(
    record: Record, *, dataset: str, command: str, page: str | None = None
) -> list[Card]:
    """Makes a card for each radius of an audit: how many attacked images are still matched.

    Args:
        record: of the part "audit".
        dataset: name of the images.
        command: what made the record.
        page: of the audit.

    Raises:
        ValueError: if evasion was not among the tasks.
    """
    encoder, tasks = record["encoder"], record["tasks"]
    if "evade" not in tasks:
        raise ValueError(f"a card needs the task 'evade' of an audit, got {[*tasks]}")
    kind = kind_of(record)
    share = record.get("false_match")
    point = {"kind": kind, "value": record["point"][kind]}
    if share:
        point["false_match"] = {"score": share["rate"], "interval": share["interval"]}
    edits = [edit["unmatched"] for edit in record["edits"].values()]
    kept = 1 - sum(edit["count"] for edit in edits) / sum(edit["trials"] for edit in edits)
    aimed = tasks.get("collide", [None] * len(tasks["evade"]))
    return [
        Card(
            name=f"{encoder['name']}, {kind} {record['point'][kind]:g}",
            track="audit",
            dataset=dataset,
            num_queries=evaded["png"]["trials"],
            num_database=record["listed"],
            num_bits=encoder["num_bits"],
            norm="linf",
            epsilon=evaded["epsilon"],
            metric="images still matched",
            # Of copies of one image, which are not independent: no interval.
            clean={"score": kept, "interval": None, "by": f"{len(edits)} edits"},
            worst={**_matched(evaded["png"]), "by": "evade"},
            targeted=_matched_victim(collided["png"]) if collided else None,
            base_rate=None,
            point=point,
            flags=[{name: flag[name] for name in ("flag", "meaning")} for flag in record["flags"]],
            suite=None,
            seed=record["seed"],
            command=command,
            weights=encoder["fingerprint"],
            code_version=record["version"],
            page=page,
        )
        for evaded, collided in zip(tasks["evade"], aimed, strict=True)
    ]


def _matched(evaded: Mapping[str, Any]) -> dict[str, Any]:
    low, high = evaded["interval"]
    return {"score": 1 - evaded["rate"], "interval": [1 - high, 1 - low]}


def _matched_victim(collided: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": collided["rate"], "interval": collided["interval"], "by": "collide"}
