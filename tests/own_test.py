"""Lists of one's own images: folders, tables, look-alikes, and what is no data set."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import prepare
from saat_jax import datasets
from saat_jax.datasets import own
from saat_jax.datasets.__main__ import main
from saat_jax.datasets.checks import ManifestError


def _photo(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((48, 40), Image.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of ten photos; one photo is there twice, resized and as JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(30):
        place = folder / ("cat", "dog", "a tree")[number % 3]
        path = (place / "inner" if number % 2 else place) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(number).save(path)
    _photo(0).resize((96, 80)).save(folder / "cat" / "copy.jpg", quality=90)
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


def _load(root):
    return datasets.load_dataset(source="lists", root=str(root), image_size=32)


def test_a_folder_for_each_class_becomes_lists(photos, tmp_path, capsys):
    prepare.main(["own", "--source", str(photos), "--output", str(tmp_path / "lists")])
    told = capsys.readouterr().out
    data = _load(tmp_path / "lists")
    assert data.class_names == ("a tree", "cat", "dog")
    assert len(data.query) == 4 and len(data.train) == len(data.database)
    assert len(data.query) + len(data.database) + told.count("1 left out") == 31
    for split in (data.query, data.database):
        for path, label in zip(split.paths, split.labels, strict=True):
            assert data.class_names[int(label.argmax())] in path
    assert not {*data.query.paths} & {*data.database.paths}
    assert (tmp_path / "lists" / "classes.png").is_file()
    prepare.main(["own", "--source", str(photos), "--output", str(tmp_path / "lists")])
    assert "done already" in capsys.readouterr().out


def test_the_same_seed_draws_the_same_and_sizes_are_kept(photos, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare.prepare_own(photos, tmp_path / name, num_query=6, num_train=9, seed=seed)
    a, b, c = (_load(tmp_path / name) for name in "abc")
    assert (len(a.query), len(a.train)) == (6, 9)
    texts = [(tmp_path / name / "test_img.txt").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert a.query.labels.sum(axis=0).tolist() == [2, 2, 2] and len(b.query) == len(c.query)


def test_what_looks_like_a_query_is_not_in_the_database(photos, tmp_path):
    for seed in range(40):
        prepare.prepare_own(photos, tmp_path / str(seed), num_query=12, seed=seed)
        names = {
            part: (tmp_path / str(seed) / f"{part}_img.txt").read_text()
            for part in ("test", "database")
        }
        twins = ("images/cat/0.png\n", "images/cat/copy.jpg\n")
        where = [[part for part in names if twin in names[part]] for twin in twins]
        if ["test"] in where and where != [["test"], ["test"]]:
            assert [] in where
            return
    raise AssertionError("no draw had one of the two among its queries")


@pytest.mark.parametrize("kind", ["words.csv", "columns.csv", "labels.json"])
def test_tables_of_labels_say_the_same(kind, photos, tmp_path):
    table = tmp_path / kind
    rows = {"cat/0.png": ["cat", "pet"], "dog/4.png": ["pet"], "cat/6.png": ["cat"]}
    rows["dog/inner/1.png"] = []
    if kind == "labels.json":
        table.write_text(json.dumps(rows))
    elif kind == "words.csv":
        lines = [f"{path},{'; '.join(words)}" for path, words in rows.items()]
        table.write_text("\n".join(["Path,labels", *lines]))
    else:
        lines = [f"{path},{'cat' in words:d},{'pet' in words:d}" for path, words in rows.items()]
        table.write_text("\n".join(["file,cat,pet", *lines]))
    original = own.read_own(photos, table)
    assert original.class_names == ["cat", "pet"] and original.paths == sorted(rows)
    expected = [[name in rows[path] for name in ("cat", "pet")] for path in sorted(rows)]
    np.testing.assert_array_equal(original.labels, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,labels\na.png,cat", "expected one column of"),
        ("path,cat,dog\na.png,1", "line 2 has not the 3 cells"),
        ("path,cat\na.png,yes", "line 2 has 'yes' where 0 or 1 is expected"),
        ("path,labels\na.png,cat\na.png,dog", "line 3 has 'a.png' again"),
        ("path,labels\na.png,", "1 images with 0 labels found"),
    ],
)
def test_a_table_that_is_none_is_refused(text, message, photos, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        own.read_own(photos, tmp_path / "labels.csv")


def test_images_of_a_table_that_are_not_there_are_named(photos, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"cat/0.png": ["x"], "gone.png": ["y"]}))
    with pytest.raises(ManifestError, match="1 of 2 images missing \\(gone.png"):
        prepare.prepare_own(photos, tmp_path / "out", labels=tmp_path / "labels.json")
    assert not (tmp_path / "out").exists()


def test_check_tells_which_queries_are_in_the_database_too(photos, tmp_path, capsys):
    prepare.prepare_own(photos, tmp_path, num_query=4, num_train=9, seed=0)
    data = _load(tmp_path)
    assert main(["check", str(tmp_path)]) == 0 and "look like" not in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--look-alikes"]) == 0
    told = capsys.readouterr().out
    assert "0 of 4 queries look like another image of database" in told
    # A query that is put into the database again, smaller and under another name.
    query = data.query.paths[0]
    Image.open(query).resize((40, 33)).save(data.database.paths[0])
    assert main(["check", str(tmp_path), "--look-alikes"]) == 0
    told = capsys.readouterr().out
    assert "1 of 4 queries look like another image of database" in told
    assert f"{query} and {data.database.paths[0]}" in told
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path), "--look-alikes", "--no-decode"])
    assert "leave --no-decode out" in capsys.readouterr().err
