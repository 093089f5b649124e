"""Folders of lists of images."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bad_inputs.judging import Case
from saat_jax import datasets


def _picture(path: pathlib.Path, seed: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def _write_lists(root: pathlib.Path) -> None:
    """A sound folder of lists, format A."""
    for split, rows in {"train": 4, "test": 3, "database": 6}.items():
        name = "q" if split == "test" else "d"
        paths = [f"images/{name}{row}.png" for row in range(rows)]
        for row, path in enumerate(paths):
            _picture(root / path, row + (100 if split == "test" else 0))
        (root / f"{split}_img.txt").write_text("".join(f"{path}\n" for path in paths))
        lines = ["1 0 0", "0 1 1", "1 1 0", "0 0 1"]
        (root / f"{split}_label.txt").write_text(
            "".join(f"{lines[row % 4]}\n" for row in range(rows))
        )


def _load(root: pathlib.Path, **options: Any) -> Any:
    found = datasets.load_dataset(**dict(source="lists", root=str(root), image_size=16) | options)
    datasets.load_images(found.query, np.arange(len(found.query)), image_size=16, resize=None)
    return found


def cases() -> Iterator[Case]:
    """Folders of lists, each damaged in one place."""

    def damage(kind: str, title: str, says: tuple[str, ...] | None, *edits: Any) -> Case:
        def act(folder: pathlib.Path) -> Any:
            _write_lists(folder)
            for name, content in edits:
                path = folder / name
                if callable(content):
                    content(path)
                elif content is None:
                    path.unlink()
                else:
                    path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return _load(folder)

        return Case(kind, title, act, says)

    def folder_instead(path: pathlib.Path) -> None:
        path.unlink()
        path.mkdir()

    wrong_labels = {
        "a label of 7": "1 0 7",
        "a label of -1": "1 0 -1",
        "a label of nan": "1 0 nan",
        "a word for a label": "1 0 cat",
        "a label too few": "1 0",
        "a label too many": "1 0 0 1",
        "commas between labels": "1,0,0",
        "a label of 40 digits": f"1 0 {'9' * 40}",
    }
    for split in ("train", "test", "database"):
        lists = (f"{split}_img.txt", f"{split}_label.txt")
        for title, line in wrong_labels.items():
            content = (
                "0 1 1\n" * 2 + line + "\n" + "0 1 1\n" * {"train": 1, "test": 0}.get(split, 3)
            )
            yield damage(
                "a wrong label", f"{title} in {split}", (lists[1], "line 3"), (lists[1], content)
            )
        for name in lists:
            yield damage("a list that is gone", name, (name.removesuffix(".txt"),), (name, None))
            yield damage("an empty list", name, (split,), (name, b""))
            yield damage(
                "a list in UTF-16", name, (name, "UTF|encod"), (name, "é 1\n".encode("utf-16"))
            )
            yield damage("a list of bytes", name, (name,), (name, bytes(range(128, 256)) * 3))
            yield damage(
                "a folder for a list", name, (name, "folder|directory"), (name, folder_instead)
            )
            yield damage("a flood in a list", name, (split,), (name, "x" * 2_000_000))
            yield damage(
                "control codes in a list", name, (split,), (name, "\x1b[31mred\x1b[0m\n" * 3)
            )
        for title, line in {
            "an image that is not there": "images/none.png",
            "a path out of the folder": "../../../etc/passwd",
            "an absolute path": "/etc/passwd",
            "a path of 100,000 characters": "x" * 100_000,
            "a path with a backslash": "images\\d0.png",
        }.items():
            content = (f"{line}\n" * {"train": 4, "test": 3}.get(split, 6),)
            yield damage("a wrong path", f"{title} in {split}", (lists[0],), (lists[0], *content))
    image = "images/q0.png"
    files: dict[str, tuple[bytes | str, str]] = {
        "an empty image": (b"", "q0.png"),
        "a text for an image": ("no image", "q0.png"),
        "a page for an image": ("<!DOCTYPE html><html></html>", "q0.png"),
        "half an image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "q0.png"),
    }
    for title, (content, said) in files.items():
        yield damage("an image that is none", title, (said,), (image, content))
    bombs: dict[str, tuple[int, int]] = {"20000 x 20000": (20000, 20000), "1 x 100000": (1, 100000)}
    for title, size in bombs.items():
        yield damage(
            "an image of too many pixels",
            title,
            ("q0.png", "pixels|large|size"),
            (image, lambda path, size=size: Image.new("1", size).save(path)),
        )
    for title, options in {"named .png": {"format": "WEBP"}, "as PNG": {}}.items():
        yield damage(
            "a picture in WebP", title, None, (image, lambda path, o=options: _picture(path, **o))
        )
    yield damage("an empty classes.txt", "", ("classes.txt",), ("classes.txt", b""))
    yield damage(
        "a classes.txt in Latin-1",
        "",
        ("classes.txt",),
        ("classes.txt", "caf\xe9\nb\nc\n".encode("latin-1")),
    )
    yield damage("too few names of classes", "", ("classes.txt",), ("classes.txt", "a\nb\n"))
