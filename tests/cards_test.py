"""Cards and the board: a card says what the records say, and what is none is refused."""

import json
import re

import pytest

from launch import command
from saat_jax import reports
from saat_jax.reports import cards
from tests.pages import Page
from tests.reports_test import EPSILON, PROTOCOL, write_run

COMMAND = "saat-jax --config demo --workdir runs/demo"
FLAG = {"flag": "transfer_wins", "meaning": "images from elsewhere are better", "advice": "x"}


def _record(model, attack, score, epsilon=None, *, targeted=False, **more):
    key = "t_map" if targeted else "map"
    return {
        "model": model,
        "attack": attack,
        "targeted": targeted,
        "metrics": {key: score},
        "protocol": PROTOCOL,
        "settings": None if epsilon is None else {"epsilon": epsilon},
        "interval": [score - 0.02, score + 0.02],
        "version": "0.2.0",
        "curves": {},
        "flags": [],
        **more,
    }


def _made(records, **given):
    arguments = {"title": "demo", "command": COMMAND, "weights": {"a": "0" * 64}, **given}
    return reports.cards_of_run(records, **arguments)


SUITE = {"epsilon": 8 / 255, "preset": "cheap", "version": 1}
BENIGN = _record("a", "benign", 0.9)
WORST = _record("a", "worst_case", 0.5, settings=SUITE, members={"flips": {}, "votes": {}})


def test_a_card_has_what_the_records_say():
    aimed = [
        _record("a", "t1", 0.4, 8 / 255, targeted=True),
        _record("a", "t2", 0.6, 8 / 255, targeted=True),
    ]
    (card,) = _made([BENIGN, WORST, *aimed])
    assert card.name == "demo: a" and card.track == "labels" and card.metric == "MAP@5000"
    assert card.clean == {"score": 0.9, "interval": [0.88, 0.92], "by": "benign"}
    assert (card.worst["score"], card.worst["by"]) == (0.5, "worst_case")
    # What a targeted attacker gets: the most, not the least.
    assert (card.targeted["score"], card.targeted["by"]) == (0.6, "t2")
    assert card.suite == {"preset": "cheap", "version": 1, "members": ["flips", "votes"]}
    assert (card.epsilon, card.norm, card.num_queries) == (8 / 255, "linf", 500)
    assert (card.weights, card.command, card.base_rate) == ("0" * 64, COMMAND, 0.35)


def test_images_from_elsewhere_leave_the_lowest_score_and_their_flags():
    settings = {"attack": "images", "epsilon": 8 / 255}
    better = _record("a", "elsewhere", 0.3, settings=settings, flags=[FLAG])
    worse = _record("a", "others", 0.7, settings=settings)
    (card,) = _made([BENIGN, WORST, better, worse])
    assert (card.worst["score"], card.worst["by"]) == (0.3, "elsewhere")
    assert [flag["flag"] for flag in card.flags] == ["transfer_wins"]
    assert card.suite["preset"] == "cheap"


def test_a_smaller_ball_lies_in_a_larger_one_and_other_norms_do_not():
    records = [
        BENIGN,
        _record("a", "small", 0.4, 4 / 255),
        _record("a", "large", 0.6, 8 / 255),
        _record("a", "round", 0.1, settings={"epsilon": 0.02, "norm": "l2"}),
        _record("a", "patch", 0.0, settings={"epsilon": 1 / 255, "patch": 0.1}),
        _record("a", "gan", 0.0, settings={"attack": "prosgan", "epsilon": None}),
        # Of another model, nothing; without its benign score, no card.
        _record("b", "large", 0.0, 4 / 255),
    ]
    found = {(c.norm, c.epsilon): c.worst for c in _made(records)}
    assert found.keys() == {("linf", 4 / 255), ("linf", 8 / 255), ("l2", 0.02)}
    assert [found["linf", e]["by"] for e in (4 / 255, 8 / 255)] == ["small", "small"]
    assert found["l2", 0.02]["score"] == 0.1
    with pytest.raises(ValueError, match="no model of the run was judged both"):
        _made([BENIGN, records[-1]])


def test_a_model_that_hardly_retrieves_is_flagged():
    benign = {**BENIGN, "flags": [{**FLAG, "flag": "near_chance"}]}
    (card,) = _made([benign, WORST])
    assert [flag["flag"] for flag in card.flags] == ["near_chance"]


def _rate(count, trials=40, interval=(0.1, 0.3)):
    return {"count": count, "trials": trials, "rate": count / trials, "interval": [*interval]}


AUDIT = {
    "encoder": {"name": "pdq", "num_bits": 256, "fingerprint": "a" * 64},
    "point": {"radius": 31},
    "listed": 254,
    "edits": {"JPEG 75": {"unmatched": _rate(1)}, "crop 5 %": {"unmatched": _rate(3)}},
    "tasks": {
        "evade": [
            {"epsilon": 1 / 255, "png": _rate(8)},
            {"epsilon": 2 / 255, "png": _rate(40, interval=(0.9, 1.0))},
        ],
        "collide": [
            {"epsilon": 1 / 255, "png": _rate(0)},
            {"epsilon": 2 / 255, "png": _rate(4)},
        ],
    },
    "false_match": _rate(0, 32131, (0.0, 0.0001)),
    "flags": [FLAG],
    "seed": 0,
    "version": "0.2.0",
}


def test_an_audit_has_a_card_for_each_radius():
    small, large = reports.cards_of_audit(AUDIT, dataset="coco", command="x")
    assert (small.track, small.name) == ("audit", "pdq, radius 31")
    assert small.worst == {"score": 0.8, "interval": [0.7, 0.9], "by": "evade"}
    assert large.worst["score"] == 0 and large.worst["interval"] == pytest.approx([0, 0.1])
    # 4 of 80 edited copies are lost.
    assert small.clean["score"] == pytest.approx(0.95)
    assert large.targeted["score"] == 0.1
    assert small.point["value"] == 31 and small.point["false_match"]["interval"] == [0, 0.0001]
    assert small.weights == "a" * 64 and len(small.flags) == 1
    for card in (small, large):
        assert reports.check_card(json.loads(json.dumps(card.asdict())), "card") == card
    without = {**AUDIT, "tasks": {"collide": AUDIT["tasks"]["collide"]}}
    with pytest.raises(ValueError, match="needs the task 'evade'"):
        reports.cards_of_audit(without, dataset="coco", command="x")


def test_a_card_is_read_as_it_was_written(tmp_path):
    (card,) = _made([BENIGN, WORST], page="../runs/demo/report.html")
    reports.write_card(card, tmp_path / "a.json")
    assert reports.read_card(tmp_path / "a.json") == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"track": None}, "unknown track None; expected one of"),
        ({"track": "best"}, "track: unknown track 'best'; expected one of"),
        ({"score": 1}, "the card has no field 'score'; it has"),
        ({"clean": ...}, "the card lacks 'clean'"),
        ({"clean": 0.5}, "clean must be a section of fields, got 0.5"),
        ({"worst": {"score": 54.0}}, "worst.score must be a number from 0 to 1, got 54.0"),
        ({"worst": {"score": float("nan")}}, "worst.score must be a number from 0 to 1, got nan"),
        ({"worst": {"score": 0.5, "interval": [0.6, 0.4]}}, "worst.interval must be its low"),
        ({"worst": {"score": 0.5, "interval": [0.4]}}, "worst.interval must be its low"),
        ({"epsilon": 8}, "epsilon must be a number from 0 to 1, got 8: 8 grey levels are 8 / 255"),
        ({"norm": "l0"}, "unknown norm 'l0'"),
        ({"num_bits": "32"}, "num_bits must be a whole number"),
        ({"num_queries": True}, "num_queries must be a whole number"),
        ({"weights": "abc"}, "weights must be a SHA-256 of 64 hexadecimal digits, got 'abc'"),
        ({"flags": [{"flag": "x"}]}, "lacks 'meaning'"),
        ({"suite": {"preset": "cheap"}}, "suite lacks 'version'"),
        ({"page": "javascript:alert(1)"}, "page must be a relative path or an address of http"),
        ({"page": "//evil.example"}, "page must be a relative path or an address of http"),
        ({"point": {"kind": "radius", "value": 31}}, "point must be given of the track 'audit'"),
        ({"track": "audit"}, "point must be given of the track 'audit', and of no other"),
        ({"format_version": 2}, "format_version 1, got 2"),
    ],
)
def test_what_is_no_card_is_refused(tmp_path, change, message):
    (card,) = _made([BENIGN, WORST])
    fields = {k: v for k, v in {**card.asdict(), **change}.items() if v is not ...}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        reports.read_card(path)
    assert str(path) in str(refused.value) and "`saat-jax card`" in str(refused.value)


def test_all_damaged_cards_of_a_folder_are_named(tmp_path):
    (card,) = _made([BENIGN, WORST])
    reports.write_card(card, tmp_path / "good.json")
    (tmp_path / "cut.json").write_text('{"name": ')
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"(?s)cut.json is no JSON.*list.json must be an object"):
        reports.read_cards(tmp_path)
    with pytest.raises(ValueError, match="no cards in .*saat-jax card WORKDIR"):
        reports.read_cards(tmp_path / "none")


def test_the_commands_make_cards_and_a_board(tmp_path, capsys):
    folder = tmp_path / "runs" / "demo"
    write_run(folder)
    (folder / "report.html").write_text("<p>report</p>")
    with pytest.raises(ValueError, match=r"commands.txt is missing.*--command"):
        command.main(["card", str(folder)])
    (folder / "commands.txt").write_text(f"{COMMAND}\n")
    output = tmp_path / "cards"
    command.main(["card", str(folder), "--output", str(output)])
    paths = sorted(output.glob("*.json"))
    assert [reports.read_card(path).epsilon for path in paths] == [EPSILON] * len(paths)
    assert len(paths) == 2 and reports.read_card(paths[0]).page == "../runs/demo/report.html"
    # Nothing is left of the weights, so that nothing is said of them.
    assert reports.read_card(paths[0]).weights is None
    command.main(["board", str(output)])
    assert f"board of 2 cards: {output / 'board.html'}" in capsys.readouterr().out
    page = Page.read(output / "board.html")
    assert [link["href"] for link in page.all("a")] == ["../runs/demo/report.html"] * 2
    assert page.text.count(COMMAND) == 2


def test_the_board_shows_every_card_and_its_flags_beside_the_number(tmp_path):
    nasty = '<script>alert(1)</script> & "x"'
    (labelled,) = _made([BENIGN, {**WORST, "flags": [FLAG]}], title=nasty, page="gone.html")
    made = [labelled, *reports.cards_of_audit(AUDIT, dataset="coco", command="saat-jax audit")]
    for number, card in enumerate(made):
        reports.write_card(card, tmp_path / f"{number}.json")
    path = tmp_path / "board.html"
    assert reports.write_board(tmp_path, path) == 3
    content = path.read_bytes()
    page = Page.read(path)
    rows = [row for row in page.all("tr") if "data-track" in row.attributes]
    assert [row["data-track"] for row in rows] == ["labels", "audit", "audit"]
    assert [row["data-ball"] for row in rows] == ["L-inf 8/255", "L-inf 1/255", "L-inf 2/255"]
    worst = [row.one("td", "worst").text for row in rows]
    assert worst[0].startswith("50.0 % (48.0-52.0)") and "transfer wins" in worst[0]
    assert worst[1].startswith("80.0 % (70.0-90.0)")
    # Skill above chance: (0.5 - 0.35) / (1 - 0.35).
    assert "skill 0.23" in worst[0] and "skill" not in worst[1]
    # A page that is not there is not linked, and a name is no code.
    assert not page.all("a") and len(page.all("script")) == 1
    assert "<script>alert" in rows[0].one("th").text
    # The only script that may run is the page's own; nothing else is loaded.
    assert re.search(r"default-src 'none';.*script-src 'sha256-[\w+/]{43}='\"", content.decode())
    assert reports.write_board(tmp_path, path) == 3 and path.read_bytes() == content


def test_every_field_of_a_card_is_checked():
    (card,) = _made([BENIGN, WORST])
    assert {name.rstrip("?") for name in cards._FIELDS} == card.asdict().keys()
