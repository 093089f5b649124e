"""Bad inputs, one of each kind; `python -m benchmarks.bad_inputs` tries them all."""

import pytest

from benchmarks import bad_inputs


@pytest.mark.parametrize("room", bad_inputs.ROOMS)
def test_one_of_each_kind_is_answered(room, tmp_path):
    wrong = []
    for number, case in enumerate(bad_inputs.one_a_kind(room)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if (verdict := bad_inputs.judge(case, folder)) != "answered":
            wrong.append(f"{case.kind}: {case.title}: {verdict}")
    assert not wrong, "\n".join(wrong)


def test_there_are_thousands():
    rooms = {room: sum(1 for _ in bad_inputs.ROOMS[room]()) for room in ("api", "configs", "lists")}
    assert sum(rooms.values()) > 2000


def test_what_is_no_answer_is_told(tmp_path):
    def case(act, says=("epsilon",)):
        return bad_inputs.Case("kind", "title", lambda _: act(), says)

    def fail(error):
        raise error

    for act, verdict in (
        (lambda: fail(ValueError("epsilon must be a number")), "answered"),
        (lambda: fail(ValueError("something is wrong")), "unclear: does not say"),
        (lambda: fail(ValueError("epsilon" + "x" * 10_000)), "unclear: 10007 characters"),
        (lambda: fail(ValueError("epsilon \x1b[31m")), "unclear"),
        (lambda: fail(KeyError("epsilon")), "traceback: KeyError"),
        (lambda: fail(TypeError("unsupported operand epsilon")), "traceback"),
        (lambda: 3, "wrong: accepted, gave '3'"),
    ):
        assert bad_inputs.judge(case(act), tmp_path).startswith(verdict)
