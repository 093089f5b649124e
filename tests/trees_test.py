"""Shapes of trees: each kind, what it takes, and what is said of the rest."""

import pytest

from saat_jax import options

COLOURS = options.Choices("colour", {"red": 1, "blue": 2})
SHAPE = {
    "name": str,
    "share?": options.Range(0, 1),
    "colour": COLOURS,
    "num_bits": options.number,
    "sizes": [float],
    "section": {"*": options.anything},
    "nothing": (None, bool),
}
TREE = {
    "name": "x",
    "share": 0.5,
    "colour": "red",
    "num_bits": 8,
    "sizes": (1, 2.5),
    "section": {"epsilon": 0.1, "other": ["a"]},
    "nothing": None,
}


def test_what_is_of_its_shape_is_taken():
    options.check_tree("", TREE, SHAPE)
    options.check_tree("", {**TREE, "share": None, "nothing": True}, SHAPE)
    options.check_tree("", {"a": 1}, {"*": options.whatever})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "^name must be a text, got 3$"),
        ({"share": 2}, "^share must be a number from 0 to 1, got 2$"),
        (
            {"colour": "green"},
            r"^colour: unknown colour 'green'; expected one of",
        ),
        ({"num_bits": -4}, "^num_bits must be a whole number from 1"),
        ({"num_bits": None}, "^num_bits must be a whole number from 1"),
        ({"sizes": ()}, "^sizes must be a list that is not empty"),
        ({"sizes": "many"}, "^sizes must be a list, got 'many'"),
        ({"sizes": [1, True]}, r"^sizes\[1\] must be a number, got True"),
        ({"sizes": [float("nan")]}, r"^sizes\[0\] must be a number, got nan"),
        (
            {"section": {"epsilon": 8}},
            "^section.epsilon must be a number .*got 8: 8 grey",
        ),
        ({"section": {"inner": {"epsilon": "8"}}}, "^section.inner.epsilon must be a number"),
        ({"nothing": 1}, "^nothing must be True or False, got 1"),
        (
            {"x" * 10**6: 1},
            r"^it has no field 'x+.* it has .'colour'",
        ),
    ],
)
def test_what_is_not_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        options.check_tree("", {**TREE, **changes}, SHAPE)


def test_what_is_lacking_is_named():
    with pytest.raises(ValueError, match="^a.b lacks 'name'; it has the fields"):
        options.check_tree("a.b", {}, SHAPE)
    with pytest.raises(ValueError, match=r"^it must be a section of fields, got \[\]"):
        options.check_tree("", [], SHAPE)
