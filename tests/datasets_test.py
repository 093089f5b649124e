"""Tests of saat_jax.datasets."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from saat_jax import datasets
from saat_jax.datasets import __main__ as command
from saat_jax.datasets import digits, images
from tests import golden

SHARED = pathlib.Path(os.environ.get("SHARED_DIR", pathlib.Path(__file__).parents[2] / "shared"))


def _picture(seed: int, width: int = 24, height: int = 18) -> Image.Image:
    """Smooth random colours, as photos are, so that JPEG keeps them."""
    small = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _write_lists(root: pathlib.Path, splits: dict[str, list[tuple[str, str]]]) -> None:
    """Writes format A, and a picture for each path that has none."""
    for name, rows in splits.items():
        (root / f"{name}_img.txt").write_text("".join(f"{path}\n" for path, _ in rows))
        (root / f"{name}_label.txt").write_text("".join(f"{label}\n" for _, label in rows))
        for number, (path, _) in enumerate(rows):
            file = root / path
            if not file.exists() and file.resolve().is_relative_to(root.resolve()):
                file.parent.mkdir(parents=True, exist_ok=True)
                _picture(number).save(file)


def _sound() -> dict[str, list[tuple[str, str]]]:
    labels = ["1 0 0", "0 1 1", "1 1 0", "0 0 1 "]
    database = [(f"images/d{i}.jpg", labels[i % 4]) for i in range(6)]
    return {
        "train": database[:4],
        "test": [(f"images/q{i}.png", labels[i]) for i in range(3)],
        "database": database,
    }


def _load(root: pathlib.Path, **options) -> datasets.Dataset:
    options = {"image_size": 8, "root": str(root), **options}
    return datasets.load_dataset(source="lists", **options)


def _file_split(root: pathlib.Path, rows: int) -> datasets.Split:
    paths = []
    for row in range(rows):
        _picture(row, 20 + row, 30 - row).save(root / f"{row}.jpg")
        paths.append(str(root / f"{row}.jpg"))
    labels = np.eye(3, dtype=np.float32)[np.arange(rows) % 3]
    return datasets.Split("train", labels, tuple(paths))


def _pixel_split(rows: int, size: int = 8) -> datasets.Split:
    pixels = np.random.default_rng(rows).integers(256, size=(rows, size, size, 3), dtype=np.uint8)
    return datasets.Split("train", np.eye(rows, 4, dtype=np.float32), images=pixels)


def _assert_same(batches: list[dict], others: list[dict]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


# ---- geometry and pixels


def test_golden_resize_crop_geometry():
    formula = golden.formula("resize_crop_geometry")
    expected = formula.expected["out"]
    # The sizes stand in the results: the short side, and the one crop that gives every offset.
    (resize,) = {min(width, height) for width, height, _, _ in expected}
    crops = [
        crop
        for crop in range(1, resize + 1)
        if all(
            (round((width - crop) / 2), round((height - crop) / 2)) == (left, top)
            for width, height, left, top in expected
        )
    ]
    assert crops
    for (width, height), out in zip(formula.inputs["wh"], expected, strict=True):
        actual = datasets.resize_crop_geometry(width, height, resize=resize, crop=crops[0])
        assert list(actual) == out


@pytest.mark.parametrize("seed", range(3))
def test_geometry_matches_the_float_formula(seed):
    for width, height in np.random.default_rng(seed).integers(1, 5000, (200, 2)).tolist():
        short, long = sorted((width, height))
        sides = {short: 256, long: int(256 * long / short)} if short < long else {short: 256}
        w, h = sides[width], sides[height]
        expected = (w, h, round((w - 224) / 2), round((h - 224) / 2))
        assert datasets.resize_crop_geometry(width, height, resize=256, crop=224) == expected


def test_geometry_without_crop_and_with_one_that_does_not_fit():
    assert datasets.resize_crop_geometry(30, 20, resize=None, crop=8) == (8, 8, 0, 0)
    with pytest.raises(ValueError, match="at least image_size = 9, got 8"):
        datasets.resize_crop_geometry(30, 20, resize=8, crop=9)
    with pytest.raises(ValueError, match="image_size must be a whole number from 1"):
        datasets.resize_crop_geometry(30, 20, resize=8, crop=0)


def _pillow(path: str, image_size: int, resize: int | None) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    width, height = image.size
    w, h, left, top = datasets.resize_crop_geometry(width, height, resize=resize, crop=image_size)
    image = image.resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)), np.int64)


@pytest.mark.parametrize(("image_size", "resize"), [(64, 72), (40, None), (224, 256), (160, 201)])
def test_pixels_match_pillow(image_size, resize):
    folder = SHARED / "data" / "coco256" / "images"
    if not folder.is_dir():
        pytest.skip(f"no photos: {folder} is absent; set SHARED_DIR")
    paths = tuple(str(path) for path in sorted(folder.iterdir())[:16])
    split = datasets.Split("query", np.ones((len(paths), 1), np.float32), paths)
    loaded = datasets.load_images(split, range(len(paths)), image_size=image_size, resize=resize)
    actual = np.rint(loaded * 255).astype(np.int64)
    expected = np.array([_pillow(path, image_size, resize) for path in paths])
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_colour_model_becomes_rgb_as_in_pillow(tmp_path, mode):
    path = str(tmp_path / ("image.jpg" if mode == "CMYK" else "image.png"))
    _picture(0).convert(mode).save(path)
    split = datasets.Split("query", np.ones((1, 1), np.float32), (path,))
    actual = datasets.load_images(split, [0], image_size=18, resize=18)[0]
    np.testing.assert_array_equal(np.rint(actual * 255), _pillow(path, 18, 18))


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    _picture(0).save(tmp_path / "turned.jpg", exif=exif)
    split = datasets.Split("query", np.ones((1, 1), np.float32), (str(tmp_path / "turned.jpg"),))
    actual = datasets.load_images(split, [0], image_size=18, resize=18)[0]
    np.testing.assert_array_equal(np.rint(actual * 255), _pillow(split.paths[0], 18, 18))


def test_load_images_takes_rows_in_any_order(tmp_path):
    split = _file_split(tmp_path, 4)
    all_rows = datasets.load_images(split, range(4), image_size=8, resize=10)
    some = datasets.load_images(split, np.array([2, 0]), image_size=8, resize=10)
    assert some.dtype == np.float32 and some.min() >= 0 and some.max() <= 1
    np.testing.assert_array_equal(some, all_rows[[2, 0]])
    assert datasets.load_images(split, [], image_size=8, resize=None).shape == (0, 8, 8, 3)


def test_pixels_in_memory_are_treated_as_files_are(tmp_path):
    pixels = np.array([np.asarray(_picture(row)) for row in range(3)])
    for row in range(3):
        _picture(row).save(tmp_path / f"{row}.png")
    labels = np.ones((3, 1), np.float32)
    memory = datasets.Split("query", labels, images=pixels)
    files = datasets.Split("query", labels, tuple(str(tmp_path / f"{i}.png") for i in range(3)))
    sizes = {"batch_size": 2, "image_size": 9, "resize": 11}
    _assert_same(
        list(datasets.eval_batches(memory, **sizes)), list(datasets.eval_batches(files, **sizes))
    )
    np.testing.assert_array_equal(
        datasets.load_images(memory, [1], image_size=9, resize=11),
        datasets.load_images(files, [1], image_size=9, resize=11),
    )


# ---- batches


def test_batches_worked_by_hand():
    # Three rows in batches of two: the second has one real row and one of padding.
    pixels = np.zeros((3, 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = [0, 51, 255]
    split = datasets.Split("query", np.array([[1, 0], [0, 1], [1, 1]], np.float32), images=pixels)
    first, last = datasets.eval_batches(split, batch_size=2, image_size=1, resize=None)
    np.testing.assert_array_equal(first["image"][:, 0, 0, 0], np.array([0, 0.2], np.float32))
    np.testing.assert_array_equal(last["image"][:, 0, 0, 0], [1, 0])
    np.testing.assert_array_equal(last["label"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(last["index"], [2, 3])
    np.testing.assert_array_equal(last["mask"], [1, 0])
    assert {key: value.dtype.name for key, value in last.items()} == {
        "image": "float32",
        "label": "float32",
        "index": "int32",
        "mask": "float32",
    }
    assert datasets.steps_per_epoch(split, 2) == 2
    assert datasets.steps_per_epoch(split, 3) == 1


@pytest.fixture(params=["files", "memory"])
def split(request, tmp_path):
    return _file_split(tmp_path, 11) if request.param == "files" else _pixel_split(11)


TRAINING = {"batch_size": 4, "seed": 5, "num_epochs": 3, "image_size": 8, "resize": None}


def test_every_row_comes_once_per_epoch_in_a_new_order(split):
    batches = list(datasets.train_batches(split, **TRAINING))
    assert len(batches) == 9
    orders = [np.concatenate([b["index"] for b in batches[i : i + 3]]) for i in (0, 3, 6)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(12))
        assert order[-1] == len(split)
    assert not np.array_equal(orders[0], orders[1])
    for batch in batches:
        real = batch["mask"] > 0
        np.testing.assert_array_equal(real, batch["index"] < len(split))
        np.testing.assert_array_equal(batch["label"][real], split.labels[batch["index"][real]])
        expected = datasets.load_images(split, batch["index"][real], image_size=8, resize=None)
        np.testing.assert_array_equal(batch["image"][real], expected)
        assert not batch["image"][~real].any() and not batch["label"][~real].any()


@pytest.mark.parametrize("start_step", [1, 3, 5, 9])
def test_resumed_batches_equal_uninterrupted_ones(split, start_step):
    whole = list(datasets.train_batches(split, **TRAINING))
    resumed = list(datasets.train_batches(split, **TRAINING, start_step=start_step))
    _assert_same(resumed, whole[start_step:])


def _augmented(split, **changes):
    return list(
        datasets.train_batches(split, **TRAINING | {"resize": 11, "augment": True}, **changes)
    )


def test_augmented_images_are_crops_of_the_fitted_image_half_of_them_mirrored(split):
    seen = set()
    for batch in _augmented(split):
        for row, image in zip(batch["index"][batch["mask"] > 0], batch["image"], strict=False):
            (whole,) = datasets.load_images(split, [row], image_size=11, resize=11)
            views = {
                (top, left, mirrored): whole[top : top + 8, left : left + 8][:, :: 1 - 2 * mirrored]
                for top in range(4)
                for left in range(4)
                for mirrored in (0, 1)
            }
            seen |= {place for place, view in views.items() if np.array_equal(view, image)}
    assert {mirrored for *_, mirrored in seen} == {0, 1}
    assert {top for top, *_ in seen} == {left for _, left, _ in seen} == {0, 1, 2, 3}


def test_augmentation_keeps_the_rows_and_can_be_resumed_and_shared(split):
    whole = _augmented(split)
    plain = list(datasets.train_batches(split, **TRAINING))
    for augmented, other in zip(whole, plain, strict=True):
        for name in ("label", "index", "mask"):
            np.testing.assert_array_equal(augmented[name], other[name])
    _assert_same(_augmented(split, start_step=4), whole[4:])
    halves = [_augmented(split, process_index=i, process_count=2) for i in (0, 1)]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*halves, strict=True)
    ]
    _assert_same(joined, whole)
    # Every epoch draws anew.
    first, second = (
        {row: image.tobytes() for b in part for row, image in zip(b["index"], b["image"])}  # noqa: B905
        for part in (whole[:3], whole[3:6])
    )
    assert any(first[row] != second[row] for row in range(len(split)))


def test_another_seed_gives_another_order(split):
    first = next(datasets.train_batches(split, **TRAINING))["index"]
    other = next(datasets.train_batches(split, **TRAINING | {"seed": 6}))["index"]
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("iterate", ["train", "eval"])
@pytest.mark.parametrize("num_devices", [3, 8])
def test_batches_are_filled_up_to_the_devices(split, iterate, num_devices):
    sizes = {"batch_size": 4, "image_size": 8, "resize": 9}
    if iterate == "train":
        read = functools.partial(datasets.train_batches, split, **TRAINING | sizes)
    else:
        read = functools.partial(datasets.eval_batches, split, **sizes)
    for plain, filled in zip(read(), read(num_devices=num_devices), strict=True):
        rows = -(-4 // num_devices) * num_devices
        assert all(len(values) == rows for values in filled.values())
        for name, values in plain.items():
            np.testing.assert_array_equal(filled[name][:4], values)
        assert not filled["mask"][4:].any() and not filled["image"][4:].any()
        assert (filled["index"][4:] == len(split)).all()


@pytest.mark.parametrize("iterate", ["train", "eval"])
def test_shares_of_four_processes_join_to_the_global_batch(split, iterate):
    sizes = {"batch_size": 4, "image_size": 8, "resize": 9}

    def batches(**processes):
        if iterate == "train":
            return list(datasets.train_batches(split, **TRAINING | sizes, **processes))
        return list(datasets.eval_batches(split, **sizes, **processes))

    shares = [batches(process_index=i, process_count=4) for i in range(4)]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    _assert_same(joined, batches())


def test_eval_batches_keep_the_order_of_rows(split):
    batches = list(datasets.eval_batches(split, batch_size=4, image_size=8, resize=None))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(12))
    assert sum(b["mask"].sum() for b in batches) == len(split)


def test_batch_larger_than_the_split():
    (batch,) = datasets.eval_batches(_pixel_split(2), batch_size=5, image_size=8, resize=None)
    np.testing.assert_array_equal(batch["mask"], [1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "positive multiple of the 1 processes, got 0; try 1"),
        ({"batch_size": 6, "process_count": 4}, "the 4 processes, got 6; try 4"),
        ({"process_index": 1}, "process_index must be in 0 to process_count - 1 = 0, got 1"),
        ({"start_step": -1}, "start_step must be a whole number from 0"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"resize": 4}, "at least image_size = 8, got 4"),
    ],
)
def test_batches_refuse_bad_values_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        datasets.train_batches(_pixel_split(3), **TRAINING | change)


def test_batches_refuse_an_empty_split():
    with pytest.raises(ValueError, match="has no rows"):
        datasets.eval_batches(_pixel_split(0), batch_size=1, image_size=8, resize=None)


def test_image_that_vanishes_during_a_run_is_named(tmp_path):
    split = _file_split(tmp_path, 3)
    os.remove(split.paths[1])
    with pytest.raises(ValueError, match=r"split 'train' cannot be read: .*1\.jpg"):
        list(datasets.eval_batches(split, batch_size=3, image_size=8, resize=None))


# ---- records


def test_split_refuses_what_does_not_fit_together():
    labels = np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match="either paths or images"):
        datasets.Split("query", labels)
    with pytest.raises(ValueError, match="either paths or images"):
        datasets.Split("query", labels, ("a", "b"), np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="3 images and labels of shape"):
        datasets.Split("query", labels, ("a", "b", "c"))
    with pytest.raises(ValueError, match="expected uint8"):
        datasets.Split("query", labels, images=np.zeros((2, 4, 4, 3), np.float32))


def test_fingerprint_sees_every_part_and_not_the_place(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "set").mkdir(parents=True)
        _write_lists(tmp_path / name / "set", _sound())
    dataset = _load(tmp_path / "here" / "set")
    assert len(dataset.fingerprint()) == 64
    assert dataset.fingerprint() == _load(tmp_path / "there" / "set").fingerprint()
    labels = dataset.query.labels.copy()
    labels[0, 0] = 1 - labels[0, 0]
    paths = (dataset.query.paths[1], dataset.query.paths[0], *dataset.query.paths[2:])
    memory = datasets.load_dataset(source="digits", image_size=16, num_query=3)
    pixels = memory.query.images.copy()
    pixels[0, 0, 0, 0] ^= 1
    others = [
        dataset,
        dataclasses.replace(dataset, name="other"),
        dataclasses.replace(dataset, class_names=("x", "y", "z")),
        dataclasses.replace(dataset, image_size=9),
        dataclasses.replace(dataset, resize=9),
        dataclasses.replace(dataset, query=dataclasses.replace(dataset.query, labels=labels)),
        dataclasses.replace(dataset, query=dataclasses.replace(dataset.query, paths=paths)),
        memory,
        dataclasses.replace(memory, query=dataclasses.replace(memory.query, images=pixels)),
    ]
    assert len({other.fingerprint() for other in others}) == len(others)


# ---- lists


def test_format_a(tmp_path):
    _write_lists(tmp_path, _sound())
    (tmp_path / "classes.txt").write_text("cat\nhot dog\nbird\n")
    dataset = _load(tmp_path, resize=10)
    assert dataset.name == tmp_path.name and dataset.warnings == ()
    assert dataset.class_names == ("cat", "hot dog", "bird") and dataset.num_classes == 3
    assert (dataset.image_size, dataset.resize) == (8, 10)
    assert [len(s) for s in (dataset.train, dataset.query, dataset.database)] == [4, 3, 6]
    np.testing.assert_array_equal(dataset.query.labels, [[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    assert dataset.query.labels.dtype == np.float32
    assert dataset.query.paths[1] == str(tmp_path / "images" / "q1.png")


def test_format_b_with_foreign_prefixes(tmp_path):
    _write_lists(tmp_path, _sound())
    expected = _load(tmp_path)
    for name in ("train", "test", "database"):
        pairs = zip(
            (tmp_path / f"{name}_img.txt").read_text().split(),
            (tmp_path / f"{name}_label.txt").read_text().splitlines(),
            strict=True,
        )
        text = "".join(f"/home/someone/coco/{path} {label}\r\n" for path, label in pairs)
        (tmp_path / f"{name}.txt").write_text("\ufeff" + text, newline="")
        os.remove(tmp_path / f"{name}_img.txt")
    actual = _load(tmp_path, remap={"/home/someone/coco/": ""})
    assert actual.fingerprint() == expected.fingerprint()
    assert actual.class_names == ("0", "1", "2")
    moved = _load(tmp_path, remap={"/home/someone/coco": str(tmp_path)})
    assert moved.fingerprint() == expected.fingerprint()
    with pytest.raises(datasets.ManifestError, match=r"train.txt: 4 paths that leave"):
        _load(tmp_path)


def test_all_problems_come_in_one_report(tmp_path):
    splits = _sound()
    splits["train"] += [
        ("../outside.jpg", "1 0 0"),
        ("/etc/passwd", "1 0 0"),
        ("images/deep/../../../out.jpg", "1 0 0"),
        ("images/wide.jpg", "1 0 0 1"),
        ("images/word.jpg", "1 zero 0"),
        ("images/bare.jpg", ""),
        ("", "1 0 0"),
        ("images/last.jpg", "1 0 0"),
    ]
    splits["test"] += [
        ("images/gone.jpg", "1 0 0"),
        ("images/cut.jpg", "0 1 0"),
        ("images/two.jpg", "0 2 0"),
        ("images/zero.jpg", "0 0 0"),
        ("images/d0.jpg", "1 0 0"),
        ("images/d5.jpg", "1 0 0"),
    ]
    splits["database"] += [("images/text.jpg", "1 0 0"), ("images/d5.jpg", "0 1 0")]
    _write_lists(tmp_path, splits)
    os.remove(tmp_path / "images" / "gone.jpg")
    cut = tmp_path / "images" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    (tmp_path / "images" / "text.jpg").write_text("no image")
    with open(tmp_path / "database_label.txt", "a") as file:
        file.write("1 0 0\n")
    with pytest.raises(datasets.ManifestError) as caught:
        _load(tmp_path)
    problems = set(caught.value.problems)
    place = str(tmp_path / "images")
    expected = [
        "database_img.txt: 8 rows, but 9 in database_label.txt.",
        f"train_img.txt: 3 paths that leave {tmp_path} (line 5: ../outside.jpg; line 6: "
        "/etc/passwd; line 7: images/deep/../../../out.jpg).",
        "train_label.txt: 1 rows with other than 3 label columns (line 8: 4 columns).",
        "train_label.txt: 1 rows with labels that are no numbers (line 9: 1 zero 0).",
        "train_label.txt: 1 lines without labels (line 10: images/bare.jpg).",
        "train_img.txt: 1 lines without a path (line 11).",
        f"test_img.txt: 1 missing images (line 4: {place}/gone.jpg).",
        f"test_img.txt: 1 undecodable images (line 5: {place}/cut.jpg: image file is truncated",
        f"database_img.txt: 1 undecodable images (line 7: {place}/text.jpg: no image of",
        "test_label.txt: 1 labels other than 0 and 1 (line 6, column 2: 2).",
        f"test_img.txt: 2 queries that also stand in database (line 8: {place}/d0.jpg; "
        f"line 9: {place}/d5.jpg).",
        f"test_img.txt: 1 queries that also stand in train (line 8: {place}/d0.jpg).",
    ]
    for start in expected:
        (found,) = [text for text in problems if text.startswith(start)]
        assert len(found) > len(start), "says how to mend it"
        problems.remove(found)
    assert not problems
    assert str(caught.value).startswith(f"12 problems in {tmp_path}:\n  1. ")
    warnings = "\n".join(caught.value.warnings)
    assert f"test_label.txt: 1 rows without any label (line 7: {place}/zero.jpg)" in warnings
    assert f"database_img.txt: 1 rows that repeat an earlier one (line 8: {place}" in warnings
    assert f"train images not in the database (line 12: {place}/last.jpg)" in warnings


def test_many_examples_are_cut_short(tmp_path):
    splits = _sound()
    splits["database"] += [(f"images/x{i}.jpg", "1 0") for i in range(5)]
    _write_lists(tmp_path, splits)
    with pytest.raises(
        datasets.ManifestError, match=r"5 rows .* \(line 7: .*; line 9: [^;]*; \.\.\.\)"
    ):
        _load(tmp_path)


def test_class_names_fix_the_number_of_columns(tmp_path):
    _write_lists(tmp_path, _sound())
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(datasets.ManifestError) as caught:
        _load(tmp_path)
    assert len(caught.value.problems) == 3
    assert "6 rows with other than 2 label columns" in str(caught.value)


def test_missing_and_empty_lists(tmp_path):
    with pytest.raises(datasets.ManifestError, match="no lists"):
        _load(tmp_path)
    with pytest.raises(datasets.ManifestError, match="no lists: the folder cannot be read"):
        _load(tmp_path / "absent")
    _write_lists(tmp_path, _sound())
    os.remove(tmp_path / "database_label.txt")
    (tmp_path / "test_img.txt").write_text("\n\n")
    with pytest.raises(datasets.ManifestError) as caught:
        _load(tmp_path)
    assert "database_label.txt: missing" in str(caught.value)
    assert "test_img.txt: empty" in str(caught.value)


def test_corrupt_images_are_dropped_only_if_asked_to(tmp_path):
    _write_lists(tmp_path, _sound())
    for name in ("d1.jpg", "q0.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    with pytest.raises(datasets.ManifestError, match="3 problems"):
        _load(tmp_path)
    with pytest.raises(ValueError, match="skip_corrupt needs decode=True"):
        _load(tmp_path, skip_corrupt=True, decode=False)
    dataset = _load(tmp_path, skip_corrupt=True)
    assert [len(s) for s in (dataset.train, dataset.query, dataset.database)] == [3, 2, 5]
    np.testing.assert_array_equal(dataset.query.labels, [[0, 1, 1], [1, 1, 0]])
    assert dataset.warnings[1].startswith("test_img.txt: 1 corrupt images dropped (line 1: ")
    assert len(dataset.warnings) == 3
    assert _load(tmp_path, decode=False).warnings == ()
    for i in range(3):
        (tmp_path / "images" / f"q{i}.png").write_bytes(b"")
    with pytest.raises(datasets.ManifestError, match="test_img.txt: 3 undecodable"):
        _load(tmp_path, skip_corrupt=True)


def test_check_dataset_of_arrays():
    dataset = datasets.load_dataset(source="digits", image_size=16, num_query=4)
    assert datasets.check_dataset(dataset) == ()
    labels = dataset.query.labels.copy()
    labels[0] = 0
    query = dataclasses.replace(dataset.query, labels=labels)
    (warning,) = datasets.check_dataset(dataclasses.replace(dataset, query=query))
    assert warning.startswith("split query: 1 rows without any label (row 0)")
    labels[2, 3] = 0.5
    broken = dataclasses.replace(
        dataset,
        query=query,
        train=datasets.Split("train", np.ones((0, 9), np.float32), ()),
    )
    with pytest.raises(datasets.ManifestError) as caught:
        datasets.check_dataset(broken)
    assert [text.split(".")[0] for text in caught.value.problems] == [
        "split train: no rows",
        "split train: 9 label columns for 10 classes",
        "split query: 1 labels other than 0 and 1 (row 2, column 4: 0",
    ]


@pytest.mark.parametrize("name", ["coco256", "cifarmosaic64"])
def test_shared_data_are_sound(name):
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip(f"no shared data: {root} is absent; set SHARED_DIR")
    dataset = _load(root, decode=name == "coco256")
    names = (root / "classes.txt").read_text().splitlines()
    assert dataset.class_names == tuple(names)
    for split, file in ((dataset.train, "train"), (dataset.query, "test")):
        assert len(split) == len((root / f"{file}_img.txt").read_text().splitlines())
        expected = np.loadtxt(root / f"{file}_label.txt", np.float32)
        np.testing.assert_array_equal(split.labels, expected)
    assert not set(dataset.query.paths) & set(dataset.database.paths)
    batch = next(datasets.eval_batches(dataset.query, batch_size=6, image_size=32, resize=40))
    assert batch["image"].shape == (6, 32, 32, 3) and 0.1 < batch["image"].mean() < 0.9


def _spoilt(root: pathlib.Path, edits: dict[str, str | bytes | None]) -> datasets.ManifestError:
    _write_lists(root, _sound())
    for name, content in edits.items():
        (root / name).unlink(missing_ok=True)
        if isinstance(content, str):
            content = content.encode()
        if content is None:
            (root / name).mkdir()
        elif content:
            (root / name).write_bytes(content)
    with pytest.raises(datasets.ManifestError) as caught:
        _load(root)
    assert len(str(caught.value)) < 4000
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", str(caught.value))
    return caught.value


FORMAT_A = ["train_img.txt", "train_label.txt", "test_img.txt", "test_label.txt"]
FORMAT_A += ["database_img.txt", "database_label.txt"]
GONE: dict[str, str | bytes | None] = dict.fromkeys(FORMAT_A, b"")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"train_label.txt": b"", "train_labels.txt": "1"}, r"label.txt: missing.*labels.txt"),
        ({"train_label.txt": None}, "train_label.txt: cannot be read, is a directory"),
        (
            {"train_label.txt": "1 0 0\n1 x 0\n1 0 0\n1 0 0\n"},
            r"train_label.txt: 1 .*\(line 2: 1 x",
        ),
        ({"train_label.txt": "1,0,0\n" * 4}, "train_label.txt: 4 rows with commas"),
        ({"test_img.txt": "images\\q0.png\n" * 3}, r"write / in place of \\\."),
        ({"test_img.txt": "é\n".encode("utf-16")}, "test_img.txt: of another encoding than UTF-8"),
        ({"test_img.txt": "caf\xe9.png\n".encode("latin-1") * 3}, r"caf\\udce9.*are no UTF-8"),
        ({"test_img.txt": "\x1b[31mred\n" * 3}, "3 missing images.*x1b"),
        ({"test_img.txt": "x" * 10**6}, r"\(1,000,000 characters\)|0,0\d\d characters"),
        ({"classes.txt": "\n\n"}, "classes.txt: empty"),
        ({"classes.txt": b"caf\xe9\nb\nc\n"}, "classes.txt: 1 lines in another encoding"),
        (
            {**GONE, "train.txt": "a.jpg,1,0\n", "test.txt": "b 1 0", "database.txt": "a.jpg 1 0"},
            "train.txt: 1 rows with commas",
        ),
        ({"train.txt": "a.jpg 1 0\n"}, "train.txt: of format B, beside .* of format A"),
        (
            {"train_img.txt": "1 0 0\n", "train_label.txt": "images/d0.jpg\n"},
            "holds labels, and train_label.txt the paths. Swap them",
        ),
    ],
)
def test_what_is_wrong_with_lists_is_named(tmp_path, edits, message):
    assert re.search(message, str(_spoilt(tmp_path, edits)))


def test_one_column_is_the_index_of_a_class(tmp_path):
    _write_lists(tmp_path, _sound())
    for name, rows in {"train": 4, "test": 3, "database": 6}.items():
        text = "".join(f"{row % 3}\n" for row in range(rows))
        (tmp_path / f"{name}_label.txt").write_text(text)
    dataset = _load(tmp_path)
    np.testing.assert_array_equal(dataset.train.labels, np.eye(3)[[0, 1, 2, 0]])
    (warning,) = dataset.warnings
    assert warning.startswith("one label column: read as the index of each row's class, 0 to 2")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(datasets.ManifestError, match="other than the index of a class .*line 3: 2"):
        _load(tmp_path)


def test_names_in_another_unicode_form_are_found(tmp_path):
    splits = _sound()
    splits["test"][0] = ("images/cafe\u0301.png", "1 0 0")
    _write_lists(tmp_path, splits)
    (tmp_path / "test_img.txt").write_text("images/caf\xe9.png\nimages/q1.png\nimages/q2.png\n")
    dataset = _load(tmp_path)
    assert "in another Unicode form" in dataset.warnings[0]
    assert dataset.query.paths[0].endswith("cafe\u0301.png")


# ---- files of images


def _bomb(path: pathlib.Path, width: int, height: int) -> None:
    Image.new("1", (width, height)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: _bomb(path, 20_000, 20_000), "67,108,864 pixels"),
        (lambda path: _bomb(path, 1, 20_000), "1 x 20,000 pixels.*100 times as long"),
        (lambda path: path.write_text("<html>"), "no image of a known format"),
        (lambda path: _picture(0).save(path, format="TIFF"), "tiff; expected a jpeg, png"),
        (
            lambda path: _picture(0).save(
                path, format="GIF", save_all=True, append_images=[_picture(1)]
            ),
            "animation of 2 frames",
        ),
        (lambda path: path.write_bytes(b""), "a file of 0 bytes"),
        (lambda path: path.unlink(), "no such file|missing"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder or a device"),
    ],
)
def test_the_check_refuses_what_the_run_refuses(tmp_path, spoil, message):
    _write_lists(tmp_path, _sound())
    query = _load(tmp_path).query
    spoil(tmp_path / "images" / "q1.png")
    with pytest.raises(datasets.ManifestError, match=rf"(?i)test_img.txt: 1 .*({message})"):
        _load(tmp_path)
    with pytest.raises(ValueError, match=rf"(?i)q1.png: .*({message}).*saat-jax check"):
        list(datasets.eval_batches(query, batch_size=3, image_size=8, resize=10))


def test_the_format_counts_and_not_the_name(tmp_path):
    _write_lists(tmp_path, _sound())
    _picture(3).save(tmp_path / "images" / "q1.png", format="WEBP", lossless=True)
    query = _load(tmp_path).query
    actual = datasets.load_images(query, [1], image_size=18, resize=18)
    np.testing.assert_array_equal(np.rint(actual[0] * 255), _pillow(query.paths[1], 18, 18))


def test_images_are_turned_upright_if_asked_to(tmp_path):
    _write_lists(tmp_path, _sound())
    exif = Image.Exif()
    exif[274] = 6
    _picture(0).save(tmp_path / "images" / "q0.png", exif=exif)
    plain, turned = _load(tmp_path), _load(tmp_path, exif=True)
    assert plain.fingerprint() != turned.fingerprint()
    sizes = {"image_size": 18, "resize": 18}
    actual = datasets.load_images(turned.query, [0], **sizes)
    expected = np.rot90(datasets.load_images(plain.query, [0], **sizes), -1, axes=(1, 2))
    np.testing.assert_array_equal(actual, expected)


def test_sizes_after_resizing_are_bounded(tmp_path):
    _bomb(tmp_path / "long.png", 5000, 50)
    split = datasets.Split("query", np.ones((1, 1), np.float32), (str(tmp_path / "long.png"),))
    with pytest.raises(ValueError, match="resized to 1,638,400 x 16,384 pixels by resize=16384"):
        datasets.load_images(split, [0], image_size=8, resize=2**14)


def test_pictures_are_read_by_pillow_alone_and_by_tensorflow_alike(tmp_path):
    _write_lists(tmp_path, _sound())
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'array_record'):\n"
        "    sys.modules[name] = None\n"
        "from saat_jax import datasets\n"
        f"data = datasets.load_dataset(source='lists', root={str(tmp_path)!r}, image_size=8)\n"
        "sizes = dict(image_size=8, resize=None)\n"
        "(batch,) = datasets.eval_batches(data.query, batch_size=4, **sizes)\n"
        "assert batch['mask'].sum() == 3 and batch['image'].any()\n"
        "datasets.load_images(data.train, [0, 1], **sizes)\n"
        "import numpy as np\n"
        "sizes |= dict(batch_size=2, seed=0, num_epochs=2, augment=True)\n"
        "batches = list(datasets.train_batches(data.train, **sizes))\n"
        f"np.save({str(tmp_path / 'read.npy')!r}, np.stack([b['image'] for b in batches]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    data = datasets.load_dataset(source="lists", root=str(tmp_path), image_size=8)
    batches = datasets.train_batches(
        data.train, image_size=8, resize=None, batch_size=2, seed=0, num_epochs=2, augment=True
    )
    by_tensorflow = np.stack([batch["image"] for batch in batches])
    assert by_tensorflow.std() > 0.1
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), by_tensorflow)


# ---- digits


def _digits(**options) -> datasets.Dataset:
    sizes = {"num_query": 50, "num_database": 80, "num_train": 30}
    return datasets.load_dataset(source="digits", **{"image_size": 32, **sizes, **options})


def test_digits_are_fixed_by_the_seed():
    dataset = _digits(seed=3)
    assert dataset.fingerprint() == _digits(seed=3).fingerprint()
    assert dataset.fingerprint() != _digits(seed=4).fingerprint()
    assert [len(s) for s in (dataset.train, dataset.query, dataset.database)] == [30, 50, 80]
    assert dataset.query.images.shape == (50, 32, 32, 3)
    np.testing.assert_array_equal(dataset.train.images, dataset.database.images[:30])
    np.testing.assert_array_equal(dataset.train.labels, dataset.database.labels[:30])
    counts = dataset.database.labels.sum(axis=1)
    assert set(counts) == {1, 2, 3}
    assert dataset.database.labels.any(axis=0).all()


def test_digits_are_neither_black_nor_white_and_scale_with_contrast():
    pixels = _digits().query.images.astype(int)
    assert pixels.min() > 0 and pixels.max() < 255
    spread = np.ptp(pixels, axis=(1, 2, 3))
    faint = np.ptp(_digits(contrast=0.5).query.images.astype(int), axis=(1, 2, 3))
    np.testing.assert_allclose(faint, spread / 2, atol=1)
    assert (spread > 30).all()


@pytest.mark.parametrize("seed", range(3))
def test_scans_of_queries_and_database_are_disjoint(seed):
    query, database = digits.divide_scans(97, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate([query, database])), np.arange(97))
    assert 0 < len(query) < len(database)


@pytest.mark.parametrize("image_size", [16, 32, 45])
def test_labels_name_the_digits_in_the_image(image_size):
    # The scan of digit k is one flat square of k + 1 elevenths of ink, so that the image's
    # levels above the background, over the largest one, say which digits it shows.
    ink = np.broadcast_to(np.arange(1, 11)[:, None, None] / 11, (10, 8, 8))
    pixels, labels = digits.compose(
        ink,
        np.arange(10),
        60,
        np.random.default_rng(0),
        image_size=image_size,
        contrast=1.0,
    )
    cell = image_size // 2
    for image, label in zip(pixels[..., 0].astype(int), labels, strict=True):
        steps = image - image.min()
        levels = {
            steps[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].max()
            for i in range(2)
            for j in range(2)
        } - {0}
        shown = np.flatnonzero(label) + 1
        assert len(levels) == len(shown)
        assert (np.unique(steps) == sorted(levels | {0})).all()
        np.testing.assert_allclose(sorted(levels), shown / shown[-1] * max(levels), atol=1)


def test_enlargement_worked_by_hand():
    # Four new pixels over two old: centres at -0.25 (held), 0.25, 0.75 and 1.25 (held).
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(digits._enlargement(2, 4), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 15}, "at least 16"),
        ({"num_train": 81}, "num_train must be between 1 and num_database = 80, got 81"),
        ({"num_query": 0}, "num_query must be a whole number from 1"),
        ({"contrast": 0}, "contrast must be a number above 0"),
        ({"resize": 40}, "source 'digits' has no option 'resize'; it has .*'image_size'"),
        ({"colour": True}, "source 'digits' has no option 'colour'"),
    ],
)
def test_digits_refuse_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        _digits(**options)


def test_load_dataset_names_what_exists():
    with pytest.raises(
        ValueError, match=r"'list'; expected one of \['digits', 'lists', 'packed', 'tfds'\]"
    ):
        datasets.load_dataset(source="list", image_size=8)
    with pytest.raises(ValueError, match="source 'lists' needs the option 'root'"):
        datasets.load_dataset(source="lists", image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "list"}, "unknown source 'list'; expected one of"),
        ({"colour": 1}, "source 'lists' has no option 'colour'; it has "),
        ({"root": ""}, "source 'lists' needs the option 'root'"),
        ({"root": 3}, "root must be a text, got 3"),
        ({"image_size": 0}, "image_size must be a whole number from 1"),
        ({"image_size": "32"}, "image_size must be a whole number"),
        ({"resize": 0}, "resize must be a whole number from 1"),
        ({"resize": 7}, "at least image_size = 8, got 7"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"skip_corrupt": "yes"}, "skip_corrupt must be True or False, got"),
        ({"exif": 1}, "exif must be True or False"),
        ({"remap": "/home/me"}, "remap expects OLD=NEW, beginnings of paths, got '/home/me'"),
        ({"remap": ("a=b", 3)}, "remap expects OLD=NEW, beginnings of paths, got '3'"),
        ({"remap": 3}, "remap expects OLD=NEW"),
    ],
)
def test_options_are_checked_before_anything_is_read(options, message):
    given = {"source": "lists", "root": "/absent", "image_size": 8} | options
    for check in (datasets.check_options, datasets.load_dataset):
        with pytest.raises(ValueError, match=message):
            check(**given)


# ---- TFDS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "num_classes"), [("coco/2017", 80), ("voc/2007", 20), ("cifar10", 10)]
)
def test_tfds_by_name(name, num_classes):
    tfds = pytest.importorskip("tensorflow_datasets")
    options = {"image_size": 16, "resize": 20, "num_query": 3, "num_database": 5, "num_train": 2}

    def load(**changes):
        with tfds.testing.mock_data(num_examples=7):
            return datasets.load_dataset(source="tfds", name=name, **options | changes)

    dataset = load()
    assert dataset.num_classes == num_classes and dataset.resize is None
    assert dataset.database.images.shape == (5, 16, 16, 3)
    assert [len(s) for s in (dataset.train, dataset.query, dataset.database)] == [2, 3, 5]
    counts = dataset.database.labels.sum(axis=1)
    assert (counts == 1).all() if name == "cifar10" else (counts > 1).all()
    database = {image.tobytes() for image in dataset.database.images}
    assert all(image.tobytes() in database for image in dataset.train.images)
    assert dataset.fingerprint() == load().fingerprint()
    assert dataset.fingerprint() != load(seed=1).fingerprint()
    with pytest.raises(ValueError, match="8 rows asked of split 'train'.* which has 7"):
        load(num_database=8)
    with pytest.raises(ValueError, match="num_train must be between 1 and num_database = 5"):
        load(num_train=6)


# ---- the command, and what an import costs


def test_command_reports_a_sound_folder(tmp_path, capsys):
    _write_lists(tmp_path, _sound() | {"train": [("images/t.jpg", "1 0 1")]})
    assert command.main(["check", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "3 classes" in text and "labels per image: mean 2.00, most 2, none in 0 rows" in text
    # Queries 100, 011, 110 against 100, 011, 110, 001, 100, 011: 3 + 4 + 5 of 18 pairs.
    assert "relevant query-database pairs: 0.667" in text
    assert "warning: train_img.txt: 1 train images not in the database" in text


def test_command_lists_problems_and_fails(tmp_path, capsys):
    _write_lists(tmp_path, _sound())
    os.remove(tmp_path / "images" / "q1.png")
    assert command.main(["check", str(tmp_path), "--no-decode", "--remap", "no/=such"]) == 1
    assert "1 problem in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["check", str(tmp_path), "--remap", "nothing"])


def test_relevant_share_adds_up_over_chunks():
    rng = np.random.default_rng(0)
    labels, others = (rng.random((rows, 4)) < 0.3 for rows in (9, 13))
    expected = np.mean([[(a & b).any() for b in others] for a in labels])
    for rows in (1, 4, 100):
        share = command.relevant_share(labels.astype(float), others.astype(float), rows=rows)
        assert share == pytest.approx(expected)


def test_import_and_digits_need_no_tensorflow():
    code = (
        "import sys; from saat_jax import datasets as d\n"
        "assert 'sklearn' not in sys.modules\n"
        "s = d.load_dataset(source='digits', image_size=32).query\n"
        "next(d.eval_batches(s, batch_size=4, image_size=32, resize=None))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_may_be_a_path(tmp_path):
    _write_lists(tmp_path, _sound())
    assert len(datasets.load_dataset(source="lists", root=tmp_path, image_size=8).query) == 3
    assert datasets.check_options("digits", num_query=5, root="", remap=()) == {"num_query": 5}


def test_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"pip install no_such_package$"):
        images.lazy.require("no_such_package")
