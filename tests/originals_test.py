"""Tests of saat_jax.datasets.originals, saat_jax.datasets.packed and launch.prepare."""

import dataclasses
import hashlib
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from launch import prepare, terminal
from saat_jax import datasets
from saat_jax.datasets import originals

SEED = 5


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _picture(path: pathlib.Path, seed: int, width: int = 20, height: int = 14) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height)).save(path)


def _labels(rows: int, columns: int) -> np.ndarray:
    """Random labels, none in row 3 and in most of the last rows."""
    labels = np.random.default_rng(columns).random((rows, columns)) < 0.2
    labels[[3, *range(rows - 3, rows)]] = 0
    return labels.astype(np.uint8)


FLICKR_CLASSES = """
animals baby baby_r1 bird bird_r1 car car_r1 clouds clouds_r1 dog dog_r1 female female_r1 flower
flower_r1 food indoor lake male male_r1 night night_r1 people people_r1 plant_life portrait
portrait_r1 river river_r1 sea sea_r1 sky structures sunset transport tree tree_r1 water
""".split()  # noqa: SIM905


def _flickr25k(source: pathlib.Path) -> tuple[dict[str, list[int]], list[str]]:
    """30 images as MIRFLICKR has them: (labels by path, names of the classes)."""
    labels = _labels(30, 38)
    for row in range(30):
        _picture(source / "mirflickr" / f"im{row + 1}.jpg", row)
    _write(source / "mirflickr" / "doc" / "license.txt", "")
    for name, column in zip(FLICKR_CLASSES, labels.T, strict=True):
        text = "".join(f"{row + 1}\r\n" for row in np.flatnonzero(column))
        _write(source / "mirflickr25k_annotations_v080" / f"{name}.txt", text)
    _write(source / "mirflickr25k_annotations_v080" / "README.txt", "About the annotations")
    return {f"im{i + 1}.jpg": row.tolist() for i, row in enumerate(labels)}, FLICKR_CLASSES


def _nuswide(source: pathlib.Path) -> tuple[dict[str, list[int]], list[str]]:
    """40 images and 24 concepts as NUS-WIDE has them; "sky" is everywhere, c0, c1, c2 rare."""
    labels = _labels(40, 24)
    labels[:, :3] = 0
    labels[5, :3], labels[6:9, 3:] = 1, 1
    labels[labels.any(axis=1), 23] = 1
    names = [*(f"c{i:02}" for i in range(23)), "sky"]
    paths = [f"{'actor' if i % 2 else 'zoo'}/{i:04}_{1000 + i}.jpg" for i in range(40)]
    for row, path in enumerate(paths):
        _picture(source / "Flickr" / path, row)
    windows = "".join(path.replace("/", "\\") + " \r\n" for path in paths)
    _write(source / "ImageList" / "Imagelist.txt", windows)
    for name, column in zip(names, labels.T, strict=True):
        text = "".join(f"{value}\n" for value in column)
        _write(source / "Groundtruth" / "AllLabels" / f"Labels_{name}.txt", text)
        _write(source / "Groundtruth" / "TrainTestLabels" / f"Labels_{name}_Train.txt", "0\n")
    return dict(zip(paths, labels[:, 3:].tolist(), strict=True)), names[3:]


def _coco(source: pathlib.Path) -> tuple[dict[str, list[int]], list[str]]:
    """20 + 15 images and 3 categories as MS-COCO has them, with gaps between the ids."""
    categories = [{"id": 7, "name": "train"}, {"id": 90, "name": "dog"}, {"id": 1, "name": "man"}]
    expected = {}
    for part, rows in (("train2014", 20), ("val2014", 15)):
        labels = _labels(rows, 3)
        labels[:2] = 1
        images, annotations = [], []
        for row in range(rows):
            name = f"COCO_{part}_{rows + 7 * row:012}.jpg"
            _picture(source / part / name, row)
            images.append({"id": rows + 7 * row, "file_name": name})
            # Two objects of a class are one label.
            for column in 2 * np.flatnonzero(labels[row]).tolist():
                # Column 0, 1, 2 are the ids 1, 7, 90.
                item = {"image_id": rows + 7 * row, "category_id": [1, 7, 90][column]}
                annotations.append(item | {"iscrowd": column % 2, "segmentation": []})
            expected[f"{part}/{name}"] = labels[row].tolist()
        tree = {"images": images, "annotations": annotations, "categories": categories}
        _write(source / "annotations" / f"instances_{part}.json", json.dumps(tree))
    return expected, ["man", "train", "dog"]


MAKE = {"flickr25k": _flickr25k, "nuswide": _nuswide, "coco": _coco}


def _run(*arguments) -> int:
    return terminal.run(lambda: prepare.main([str(argument) for argument in arguments]))


def _prepare(name, source, output, *more, splits="saat") -> int:
    sizes = ("--num_query", 4, "--num_train", 8, "--seed", SEED)
    return _run(
        name, "--source", source, "--output", output, "--splits", splits, "--subset", *sizes, *more
    )


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- labels and splits


@pytest.mark.parametrize("splits", ["saat", "prosgan"])
@pytest.mark.parametrize("name", MAKE)
def test_lists_hold_the_labels_and_the_protocol(tmp_path, capsys, name, splits):
    expected, names = MAKE[name](tmp_path / "source")
    assert _prepare(name, tmp_path / "source", tmp_path / "lists", splits=splits) == 0
    assert f"{len(names)} classes; seed {SEED}" in capsys.readouterr().out
    data = datasets.load_lists(root=str(tmp_path / "lists"), image_size=8)
    assert list(data.class_names) == names
    for split in (data.train, data.query, data.database):
        for path, label in zip(split.paths, split.labels, strict=True):
            key = path.removeprefix(str(tmp_path / "lists" / "images") + "/")
            assert label.tolist() == expected[key]
    train, query, database = (set(s.paths) for s in (data.train, data.query, data.database))
    assert (len(train), len(query)) == (8, 4) and train < database and not query & database
    labelled = sum(any(label) for label in expected.values())
    keeps_all = name == "flickr25k" or (name, splits) == ("coco", "saat")
    assert len(database) == (len(expected) if keeps_all else labelled) - 4
    if name != "flickr25k":
        assert data.train.labels.any(axis=1).all() and data.query.labels.any(axis=1).all()


@pytest.mark.parametrize(
    ("name", "splits", "sizes"),
    [
        ("flickr25k", "saat", (1000, 24_000, 5000)),
        ("flickr25k", "prosgan", (1700, 23_300, 5000)),
        ("nuswide", "saat", (2100, 193_734, 10_500)),
        ("coco", "saat", (5000, 118_287, 10_000)),
        ("coco", "prosgan", (5000, 117_218, 10_000)),
    ],
)
def test_sizes_are_those_of_the_papers(name, splits, sizes):
    """Without images: splits of sets that have as many as were published."""
    known = originals.SETS[name]
    counts = list(known.published.values())
    images = {"flickr25k": 25_000, "nuswide": 269_648, "coco": 82_783 + 40_504}[name]
    labels = np.zeros((images, 2), np.uint8)
    labels[: counts[-1], 0] = 1
    labels[: counts[-1] : 3, 1] = 1
    whole = originals.Original(pathlib.Path(), [str(i) for i in range(images)], labels, (), (), {})
    rows = originals.split_rows(whole, known.protocols[splits], seed=0)
    assert tuple(len(rows[split]) for split in ("test", "database", "train")) == sizes
    assert np.isin(rows["train"], rows["database"]).all()
    assert not np.isin(rows["test"], rows["database"]).any()


def test_draw_worked_by_hand():
    digests = {i: hashlib.sha256(f"7 {i}".encode()).hexdigest() for i in range(6)}
    order = sorted(range(6), key=digests.get)
    labels = np.ones((6, 1), np.uint8)
    data = originals.Original(pathlib.Path(), list("012345"), labels, (), (), {})
    rows = originals.split_rows(data, originals.Protocol(2, 3), seed=7)
    assert rows["test"].tolist() == sorted(order[:2])
    assert rows["train"].tolist() == sorted(order[2:5])
    assert rows["database"].tolist() == sorted(order[2:])


def test_classes_in_turn():
    # Class 0 has all 60 rows, class 1 ten of them, class 2 four: 4 of each come first.
    labels = np.zeros((60, 3), np.uint8)
    labels[:, 0], labels[10:20, 1], labels[12:16, 2] = 1, 1, 1
    data = originals.Original(pathlib.Path(), [str(i) for i in range(60)], labels, (), (), {})
    protocol = originals.Protocol(9, 51, by_class=True)
    rows = originals.split_rows(data, protocol, seed=0)
    assert labels[rows["test"], 1].sum() >= 3 and labels[rows["test"]].sum(axis=0)[2] >= 3
    drawn = np.concatenate([rows["test"], rows["train"]])
    np.testing.assert_array_equal(np.sort(drawn), np.arange(60))
    assert len(originals.split_rows(data, dataclasses.replace(protocol, by_class=False), seed=0))


# ---- runs


@pytest.mark.parametrize("name", MAKE)
def test_runs_are_repeatable_and_recognised(tmp_path, capsys, name):
    source = tmp_path / "source"
    MAKE[name](source)
    _prepare(name, source, tmp_path / "a")
    before = _files(tmp_path / "a")
    capsys.readouterr()
    assert _prepare(name, source, tmp_path / "a") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}: done already\n"
    # A run that was stopped leaves a hidden folder behind, which is no obstacle.
    _write(tmp_path / ".b.tmp" / "train_img.txt", "half")
    _prepare(name, source, tmp_path / "b")
    assert _files(tmp_path / "a") == before == _files(tmp_path / "b")
    assert not (tmp_path / ".b.tmp").exists()
    _prepare(name, source, tmp_path / "c", "--seed", SEED + 1)
    assert _files(tmp_path / "c")["test_img.txt"] != before["test_img.txt"]
    capsys.readouterr()
    assert _prepare(name, source, tmp_path / "a", "--seed", SEED + 1) == 1
    assert f"made with other settings (seed {SEED} -> {SEED + 1})" in capsys.readouterr().err
    changed = next(iter(json.loads(before["prepared.json"])["inputs"]))
    with open(changed, "a") as file:
        file.write("\n")
    assert _prepare(name, source, tmp_path / "a") == 1
    assert "(files of the source changed)" in capsys.readouterr().err
    assert _files(tmp_path / "a") == before


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    _coco(tmp_path / "source")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.files, "write_json", stop)
    assert _prepare("coco", tmp_path / "source", tmp_path / "lists") == 130
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prepared.json", "", "prepared.json is no JSON .*; delete .* and give the same"),
        ("prepared.json", "[]", "prepared.json must be an object of JSON, got a list"),
        ("prepared.json", "{}", "prepared.json: it lacks .settings"),
        ("train_img.txt", "", "is damaged: train_img.txt has another size"),
    ],
)
def test_a_damaged_folder_is_not_done_already(tmp_path, capsys, name, content, message):
    _coco(tmp_path / "source")
    assert _prepare("coco", tmp_path / "source", tmp_path / "lists") == 0
    (tmp_path / "lists" / name).write_text(content)
    assert _prepare("coco", tmp_path / "source", tmp_path / "lists") == 1
    assert re.search(message, capsys.readouterr().err)


def test_lists_that_a_user_has_are_left_alone(tmp_path, capsys):
    _coco(tmp_path / "source")
    _write(tmp_path / "mine" / "train_img.txt", "a.jpg\n")
    assert _prepare("coco", tmp_path / "source", tmp_path / "mine") == 1
    error = capsys.readouterr().err
    assert "files of another origin" in error and "saat-jax check" in error
    assert (tmp_path / "mine" / "train_img.txt").read_text() == "a.jpg\n"


# ---- what may be wrong


def _counts(name: str, source: pathlib.Path) -> originals.OriginalSet:
    """The set with the numbers of its synthetic folder in place of the published ones."""
    known = originals.SETS[name]
    return dataclasses.replace(known, published=known.read(source).counts)


@pytest.mark.parametrize("name", MAKE)
def test_published_counts_are_known_by_their_names(tmp_path, name):
    MAKE[name](tmp_path)
    assert (
        originals.SETS[name].read(tmp_path).counts.keys() == originals.SETS[name].published.keys()
    )


@pytest.mark.parametrize("name", MAKE)
def test_whole_sets_are_checked(tmp_path, capsys, name):
    source = tmp_path / "source"
    MAKE[name](source)
    options = {"splits": "saat", "seed": 0, "num_query": 2, "num_train": 3}
    known = _counts(name, source)
    text = prepare.prepare(name, source, tmp_path / "a", **options, sets={name: known})
    assert text.startswith(f"{tmp_path / 'a'}: train 3, test 2, database ")
    place = list(known.published)[-1]
    wrong = dataclasses.replace(known, published={**known.published, place: 1234})
    with pytest.raises(ValueError) as caught:
        prepare.prepare(name, source, tmp_path / "b", **options, sets={name: wrong})
    assert caught.value.problems == (
        f"{place}: {known.published[place]}, expected 1234 as published. Get it again.",
    )
    # A synthetic folder is not the published set, and says so in one line for each number.
    assert _run(name, "--source", source, "--output", tmp_path / "c", "--splits", "saat") == 1
    assert "expected 195834" in capsys.readouterr().err or name != "nuswide"


@pytest.mark.parametrize("name", MAKE)
def test_missing_files_are_answered_by_instructions(tmp_path, capsys, name):
    assert _prepare(name, tmp_path / "none", tmp_path / "lists") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'none'}" in error.splitlines()[0] and "is missing" in error
    assert originals.SETS[name].instructions in error
    assert ("a person has to ask" in error) == (name == "nuswide")


def test_missing_images(tmp_path, capsys):
    expected, _ = _nuswide(tmp_path)
    known = _counts("nuswide", tmp_path)
    shutil.rmtree(tmp_path / "Flickr" / "zoo")
    with pytest.raises(ValueError, match=r"20 of 40 images missing \(zoo/0000_1000.jpg, ..."):
        originals.check_original("nuswide", tmp_path, known.read(tmp_path), known)
    assert _prepare("nuswide", tmp_path, tmp_path / "lists") == 0
    there = sum(any(label) for path, label in expected.items() if path.startswith("actor"))
    assert f"database {there - 4};" in capsys.readouterr().out


def test_archives_are_checked_by_md5(tmp_path):
    _flickr25k(tmp_path)
    known = _counts("flickr25k", tmp_path)
    (tmp_path / "mirflickr25k.zip").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"mirflickr25k.zip: MD5 .*, expected a23d0a85"):
        originals.check_original("flickr25k", tmp_path, known.read(tmp_path), known)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("flickr25k", "mirflickr25k_annotations_v080/dog.txt", "3\n4x\n", "'4x' is no image num"),
        ("nuswide", "Groundtruth/AllLabels/Labels_c01.txt", "1\n" * 39, "39 lines, but 40 in"),
        ("nuswide", "Groundtruth/AllLabels/Labels_c01.txt", "2\n" * 40, "'2' is neither 0 nor"),
        ("coco", "annotations/instances_val2014.json", '{"images": [', "no instances as COCO"),
        ("coco", "annotations/instances_val2014.json", "{}", "no instances as COCO"),
        (
            "coco",
            "annotations/instances_val2014.json",
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            "other categories",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, capsys, name, file, text, message):
    MAKE[name](tmp_path / "source")
    _write(tmp_path / "source" / file, text)
    assert _prepare(name, tmp_path / "source", tmp_path / "lists") == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "source" / file) in error and message in error


def test_too_few_images(tmp_path, capsys):
    _coco(tmp_path / "source")
    assert _prepare("coco", tmp_path / "source", tmp_path / "lists", "--num_train", 33) == 1
    assert "4 queries and 33 training images asked of" in capsys.readouterr().err


# ---- packing


@pytest.fixture
def lists(tmp_path) -> pathlib.Path:
    """Ten images of ten shapes, some of them odd, and one twice in the training list."""
    rows = [f"{i}.png" for i in range(10)]
    for i, name in enumerate(rows):
        _picture(tmp_path / "lists" / name, i, 31 + 3 * (i % 3), 30 + 5 * (i % 4))
    for split, part in {
        "train": [*rows[:4], rows[0]],
        "test": rows[7:],
        "database": rows[:7],
    }.items():
        _write(tmp_path / "lists" / f"{split}_img.txt", "\n".join(part))
        _write(
            tmp_path / "lists" / f"{split}_label.txt", "\n".join(f"1 {int(n[0]) % 2}" for n in part)
        )
    return tmp_path / "lists"


def _batches(data: datasets.Dataset) -> list[dict]:
    sizes = {"batch_size": 4, "image_size": data.image_size, "resize": data.resize}
    return [
        *datasets.train_batches(data.train, **sizes, seed=1, num_epochs=2),
        *datasets.eval_batches(data.query, **sizes),
    ]


@pytest.mark.parametrize(
    ("packed", "used"),
    [((24, 24), (16, 24)), ((20, 26), (20, 26)), ((20, 26), (12, 26)), ((16, None), (16, None))],
)
def test_packed_pixels_are_those_of_the_lists(lists, tmp_path, packed, used):
    dataset = datasets.load_lists(root=str(lists), image_size=packed[0], resize=packed[1])
    assert datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)
    sizes = {"image_size": used[0], "resize": used[1]}
    expected = datasets.load_dataset(source="lists", root=str(lists), **sizes)
    data = datasets.load_dataset(
        source="packed", root=str(tmp_path / "shards"), decode=True, **sizes
    )
    assert data.class_names == expected.class_names and data.resize is None
    for batch, other in zip(_batches(data), _batches(expected), strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)
    actual = datasets.load_images(data.query, [2, 0], image_size=used[0], resize=None)
    np.testing.assert_array_equal(
        actual, datasets.load_images(expected.query, [2, 0], **sizes), strict=True
    )
    assert datasets.check_dataset(data) == ()


def _pack(lists, shards, *more) -> int:
    return _run(
        "pack", "--root", lists, "--output", shards, "--image_size", 16, "--resize", 20, *more
    )


def test_packing_goes_on_and_is_recognised(lists, tmp_path, capsys, monkeypatch):
    dataset = datasets.load_lists(root=str(lists), image_size=16, resize=20)
    datasets.pack_images(dataset, str(tmp_path / "whole"), shard_size=4)

    write, written = datasets.packed.files.replacing, []

    def stop_at_the_third(path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path)

    monkeypatch.setattr(datasets.packed.files, "replacing", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)
    assert written == ["packing.json", "images-00000.array_record", "images-00001.array_record"]
    monkeypatch.setattr(datasets.packed.files, "replacing", write)
    with pytest.raises(ValueError, match="no packed images"):
        datasets.load_packed(root=str(tmp_path / "shards"), image_size=16, resize=20)
    first = (tmp_path / "shards" / written[1]).stat().st_mtime_ns
    assert datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)
    assert (tmp_path / "shards" / written[1]).stat().st_mtime_ns == first
    for name, content in _files(tmp_path / "whole").items():
        assert content == (tmp_path / "shards" / name).read_bytes(), name
    assert not datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)
    load = dict(image_size=16, resize=20)
    prints = [
        datasets.load_packed(root=str(tmp_path / name), **load).fingerprint()
        for name in ("whole", "shards")
    ]
    assert prints[0] == prints[1]
    assert _pack(lists, tmp_path / "new") == 0 and _pack(lists, tmp_path / "new") == 0
    assert "new: done already" in capsys.readouterr().out
    assert _pack(lists, lists) == 1
    assert "holds something else" in capsys.readouterr().err


def test_sizes_that_do_not_fit_leave_no_folder(lists, tmp_path, capsys):
    assert _pack(lists, tmp_path / "shards", "--image_size", 24) == 1
    assert "must be at least image_size = 24, got 20" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_shards_refuse_other_sizes_and_damage(lists, tmp_path):
    dataset = datasets.load_lists(root=str(lists), image_size=16, resize=20)
    datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)

    def load(image_size=16, resize=20, **options):
        return datasets.load_packed(
            root=str(tmp_path / "shards"), image_size=image_size, resize=resize, **options
        )

    for sizes in ((16, None), (16, 16), (20, 20), (14, 20)):
        with pytest.raises(ValueError, match="holds images of size 16 with resize 20; asked for"):
            load(*sizes)
    data = load()
    sizes = dict(batch_size=2, seed=0, num_epochs=1, image_size=16, resize=None)
    with pytest.raises(ValueError, match="use the lists for augmented training"):
        next(datasets.train_batches(data.train, **sizes, augment=True))
    with pytest.raises(ValueError, match="only image files are packed"):
        datasets.pack_images(data, str(tmp_path / "again"))


def test_damaged_shards_are_named(lists, tmp_path):
    # Several of the blocks of 64 KiB that have checksums of their own.
    dataset = datasets.load_lists(root=str(lists), image_size=128)
    datasets.pack_images(dataset, str(tmp_path / "shards"), shard_size=4)
    shard = tmp_path / "shards" / "images-00001.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 255
    shard.write_bytes(content)

    def load(**options):
        return datasets.load_packed(root=str(tmp_path / "shards"), image_size=128, **options)

    data = load()
    with pytest.raises(ValueError, match="images-00001.array_record is damaged. Pack again"):
        list(datasets.eval_batches(data.database, batch_size=7, image_size=128, resize=None))
    with pytest.raises(ValueError, match="images-00001.array_record is damaged. Pack again"):
        load(decode=True)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="images-00001.array_record: 0 images, expected 4"):
        load()
    shard.unlink()
    with pytest.raises(ValueError, match="images-00001.array_record: 0 images, expected 4"):
        load()


_RECORDS = np.zeros(3, np.int64)
_SPLITS = {f"{n}_labels": np.eye(3, 2) for n in ("train", "query", "database")} | {
    f"{n}_records": _RECORDS for n in ("train", "query", "database")
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("packing.json", b"", "packing.json is no JSON"),
        ("packing.json", b"null", "packing.json must be an object of JSON"),
        ("packing.json", b"[]", "packing.json must be an object of JSON, got a list"),
        ("packing.json", b"{}", "packing.json: it lacks 'name'"),
        ("packing.json", {"image_size": -1}, "packing.json: image_size must be a whole number"),
        ("packing.json", {"shard_size": 0}, "packing.json: shard_size must be"),
        ("packing.json", {"class_names": "abc"}, "packing.json: class_names must be a list"),
        ("packing.json", {"image_size": 20}, "an image of 768 bytes; expected 20 x 20 x 3"),
        ("packing.json", {"num_images": 3}, "images, expected 3"),
        ("splits.npz", b"", "splits.npz cannot be read"),
        ("splits.npz", b"null", "splits.npz cannot be read"),
        ("splits.npz", {}, "splits.npz lacks the arrays"),
        ("splits.npz", _SPLITS | {"query_records": _RECORDS + 99}, "split query has labels"),
        ("splits.npz", _SPLITS | {"train_records": _RECORDS[:2]}, "split train has labels"),
        ("splits.npz", _SPLITS | {"train_records": _RECORDS / 2}, "split train has labels"),
        ("splits.npz", _SPLITS | {"train_labels": np.eye(3, 9)}, "split train has labels"),
    ],
)
def test_a_damaged_folder_of_shards_is_named(lists, tmp_path, name, content, message):
    dataset = datasets.load_lists(root=str(lists), image_size=16, resize=20)
    datasets.pack_images(dataset, str(tmp_path / "shards"))
    file, image_size = tmp_path / "shards" / name, 16
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif name == "splits.npz":
        np.savez(file, **content)
    else:
        packing = json.loads(file.read_text()) | content
        file.write_text(json.dumps(packing))
        image_size = max(packing["image_size"], 1)
    with pytest.raises(ValueError, match=rf"{message}.*Pack again into a new folder"):
        datasets.load_packed(
            root=str(tmp_path / "shards"), image_size=image_size, resize=20, decode=True
        )


def _original(path: str) -> originals.Original:
    return originals.Original(pathlib.Path("images"), [path], np.ones((1, 1)), ["cat"], [], {})


@pytest.mark.parametrize("path", ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "a\nb.jpg", ""])
def test_paths_of_an_original_stay_in_its_folder(path):
    assert _original("a/..b.jpg").paths == ["a/..b.jpg"]
    with pytest.raises(datasets.ManifestError, match="1 paths that leave the folder of the images"):
        _original(path)


@pytest.mark.parametrize("layout", ["A", "B"])
def test_lists_of_either_format_and_foreign_paths_are_packed_as_they_are(lists, tmp_path, layout):
    for split in ("train", "test", "database"):
        paths = (lists / f"{split}_img.txt").read_text().split()
        labels = (lists / f"{split}_label.txt").read_text().splitlines()
        if layout == "A":
            _write(lists / f"{split}_img.txt", "".join(f"/home/someone/x/{p}\n" for p in paths))
        else:
            pairs = zip(paths, labels, strict=True)
            _write(lists / f"{split}.txt", "".join(f"/home/someone/x/{p} {y}\n" for p, y in pairs))
            (lists / f"{split}_img.txt").unlink()
    assert _pack(lists, tmp_path / "shards", "--remap", "/home/someone/x/=") == 0
    data = datasets.load_packed(root=str(tmp_path / "shards"), image_size=16, resize=20)
    np.testing.assert_array_equal(data.query.labels, [[1, 1], [1, 0], [1, 1]])
    assert len(data.train) == 5 and len(data.database) == 7
