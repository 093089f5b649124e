"""Files that are whole or absent."""

import contextlib
import json

import numpy as np
import pytest

from saat_jax import files


def test_a_file_appears_when_it_is_written(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("hal")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_json_and_arrays_come_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [1, None, "y"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None, "y"]}
    arrays = {"a": np.arange(3), "b/c": np.array("text")}
    files.write_arrays(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz") as found:
        assert found["b/c"] == "text"
        np.testing.assert_array_equal(found["a"], arrays["a"])
    for name, array in files.read_arrays(tmp_path / "a.npz").items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_line_that_was_cut_is_left_out(tmp_path):
    path = tmp_path / "log"
    assert files.whole_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.whole_lines(path) == ['{"a": 1}', '{"a": 2}']


def test_damaged_arrays_are_one_kind_of_error(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=r"a\.npz cannot be read \(FileNotFoundError: .*start"):
        files.read_arrays(path)
    files.write_arrays(path, {"a": np.arange(3), "b": np.array("text")})
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([*whole[:place], whole[place] ^ 255, *whole[place + 1 :]])
        for content in (whole[:place], flipped):
            path.write_bytes(content)
            # A date or a name may be damaged unnoticed.
            with contextlib.suppress(ValueError):
                files.read_arrays(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no JSON .it is empty."),
        (b'{"a": 1', "is no JSON .JSONDecodeError"),
        (b"\xff{}", "is no JSON .UnicodeDecodeError"),
        (b"[" * 100_000, "is no JSON .RecursionError"),
        (b'{"a":' * 100_000, "is no JSON .RecursionError"),
        (b"9" * 5000, "is no JSON .ValueError"),
        (b"[1]", "must be an object of JSON, got a list"),
        (b"null", "must be an object of JSON, got a NoneType"),
        (b'{"model": null}', ": it lacks 'map'"),
        (b'{"map": "a", "model": null}', ": map must be a number, got 'a'"),
        (b'{"map": true, "model": null}', ": map must be a number, got True"),
        (b'{"map": 1, "model": 2}', ": model must be a text, got 2"),
    ],
)
def test_damaged_json_is_one_kind_of_error(content, fault, tmp_path):
    path = tmp_path / "a.json"
    fields = {"map": float, "model": (None, str)}
    for read in (files.read_json, files.read_json_lines):
        path.write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=rf"a\.json(, line 1,?)? ?{fault}.*; evaluate again$"):
            read(path, cure="evaluate again", fields=fields)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        files.read_json(tmp_path / "absent.json")


def test_json_is_read_with_the_fields_it_must_have(tmp_path):
    tree = {"map": 1, "model": None}
    files.write_json(tmp_path / "a.json", tree)
    assert files.read_json(tmp_path / "a.json", fields={"map": float, "model": (None, str)}) == tree
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_json_lines(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]
    assert files.read_json_lines(tmp_path / "none.jsonl") == []


def test_arrays_that_must_be_there(tmp_path):
    files.write_arrays(tmp_path / "a.npz", {"a": np.arange(3)})
    assert files.read_arrays(tmp_path / "a.npz", names=["a"]).keys() == {"a"}
    with pytest.raises(ValueError, match=r"a\.npz lacks the arrays \['b'\]; draw again"):
        files.read_arrays(tmp_path / "a.npz", names=["a", "b"], cure="draw again")
