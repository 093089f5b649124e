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
