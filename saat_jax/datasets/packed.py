"""Images at their final size in ArrayRecord shards, read in any order without decoding.

A folder of shards holds `packing.json`, what was packed and how; `images-00000.array_record`, ...,
uint8 pixels, a record for each distinct image; and `splits.npz`, the labels of each split and the
record of each of its rows. Records are not compressed: they are meant to be read fast.
"""

import concurrent.futures
import math
import os
import pathlib
from typing import Any

import numpy as np

from saat_jax import files, lazy, options, parallel
from saat_jax.datasets import images
from saat_jax.datasets.splits import Dataset, Split

_SPLITS = ("train", "query", "database")
_AGAIN = "Pack again into a new folder with: saat-jax prepare pack"
_PACKING = {
    "name": str,
    "fingerprint": str,
    "bytes": int,
    "class_names": [str],
    "image_size": options.number,
    "resize": (None, options.number),
    "num_images": options.number,
    "shard_size": options.Range(1, whole=True),
}


def pack_images(dataset: Dataset, folder: str, *, shard_size: int = 4096) -> bool:
    """Writes the image files of a dataset, brought to its size, into shards.

    A run that was stopped goes on after its last whole shard.

    Args:
        dataset: of image files, checked; its `image_size` and `resize` are those of the shards.
        folder: new, or that of the run that was stopped.
        shard_size: images in a shard.

    Returns:
        False if the folder held it all already.

    Raises:
        ValueError: the dataset holds pixels, or the folder something else.
    """
    splits = [getattr(dataset, name) for name in _SPLITS]
    if any(split.paths is None for split in splits):
        raise ValueError(f"dataset {dataset.name} holds pixels; only image files are packed")
    paths = sorted({path for split in splits for path in split.paths})
    packing = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "bytes": sum(map(os.path.getsize, paths)),
        "class_names": list(dataset.class_names),
        "image_size": dataset.image_size,
        "resize": dataset.resize,
        "num_images": len(paths),
        "shard_size": shard_size,
    }
    place = pathlib.Path(folder)
    if place.is_dir() and any(place.iterdir()):
        if not (place / "packing.json").is_file() or _read_packing(place) != packing:
            raise ValueError(f"{folder} holds something else; give a new folder")
        if (place / "splits.npz").is_file():
            return False
    files.write_json(place / "packing.json", packing)

    def load(path: str) -> bytes:
        image = images.open_image(path, exif=dataset.train.exif)
        return images.fit_image(
            image, image_size=dataset.image_size, resize=dataset.resize
        ).tobytes()

    record = lazy.require("array_record.python.array_record_module")
    progress = lazy.require("tqdm").tqdm(total=len(paths), desc="packing", delay=3, leave=False)
    with concurrent.futures.ThreadPoolExecutor(parallel.num_cpus()) as pool, progress:
        for number, start in enumerate(range(0, len(paths), shard_size)):
            part = paths[start : start + shard_size]
            if not _shard(place, number).is_file():
                with files.replacing(_shard(place, number)) as temporary:
                    writer = record.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
                    # A few at a time: all of a shard would fill the memory.
                    for i in range(0, len(part), 64):
                        for pixels in pool.map(load, part[i : i + 64]):
                            writer.write(pixels)
                            progress.update()
                    writer.close()
    numbers = {path: number for number, path in enumerate(paths)}
    arrays = {}
    for name, split in zip(_SPLITS, splits, strict=True):
        arrays[f"{name}_labels"] = split.labels.astype(np.uint8)
        arrays[f"{name}_records"] = np.array([numbers[path] for path in split.paths])
    files.write_arrays(place / "splits.npz", arrays)
    return True


def load_packed(
    *,
    image_size: int,
    root: str,
    resize: int | None = None,
    decode: bool = False,
    seed: int = 0,
) -> Dataset:
    """Opens shards; their images are those of the lists at the same sizes, to the bit.

    Args:
        image_size: height and width of the images, in pixels; a centre crop of the packed ones.
        root: the folder of the shards.
        resize: short side before the centre crop, that of the packing; None if there was none.
        decode: read every record once, which finds damaged ones.
        seed: unused, since shards leave nothing to chance.

    Returns:
        The dataset, its images on disk at their final size, so `resize` is None.

    Raises:
        ValueError: shards are missing, damaged, or of other sizes.
    """
    place = pathlib.Path(root)
    if not (place / "splits.npz").is_file():
        found = sorted(os.listdir(root)) if place.is_dir() else None
        raise ValueError(
            f"no packed images in {root}: found {found}; expected splits.npz. {_AGAIN}"
        )
    packing = _read_packing(place)
    margin = packing["image_size"] - image_size
    # Half of an odd margin, or of one whose half is odd, is rounded in another way.
    fits = margin == 0 or (resize is not None and margin > 0 and margin % 4 == 0)
    if resize != packing["resize"] or not fits:
        raise ValueError(
            f"{root} holds images of size {packing['image_size']} with resize {packing['resize']}; "
            f"asked for {image_size} with resize {resize}. Give the same, or, where there is a "
            f"resize, a size that is smaller by a multiple of 4. {_AGAIN}"
        )
    shards = _Shards(place, packing)
    if decode:
        shards.check()
    train, query, database = (
        Split(name, labels.astype(np.float32), images=PackedImages(shards, records, image_size))
        for name, (labels, records) in _read_splits(place, packing).items()
    )
    names = tuple(packing["class_names"])
    return Dataset(packing["name"], train, query, database, names, image_size, resize=None)


class PackedImages:
    """Images on disk that are indexed as an array is.

    Attributes:
        shape: (rows, height, width, 3).
        dtype: uint8.
        ndim: 4.
        digest: stands for the pixels.
    """

    def __init__(self, shards: "_Shards", records: np.ndarray, image_size: int):
        """Takes the centre of the images of these records."""
        self.shape: tuple[int, ...] = (len(records), image_size, image_size, 3)
        self.dtype, self.ndim, self.digest = np.dtype(np.uint8), 4, shards.digest
        self._shards, self._records = shards, records

    def __len__(self) -> int:
        return len(self._records)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuses to fill the memory, which only another size or augmenting asks for."""
        raise ValueError("packed images come as packed: use the lists for augmented training")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows in any order. [len(rows), height, width, 3] uint8"""
        size = self.shape[1]
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, image in self._shards.read(self._records[rows]):
            start = (len(image) - size) // 2
            pixels[i] = image[start : start + size, start : start + size]
        return pixels


class _Shards:
    """The records of all shards under one numbering."""

    def __init__(self, place: pathlib.Path, packing: dict[str, Any]):
        record = lazy.require("array_record.python.array_record_module")
        self.digest = str(packing["fingerprint"]).encode()
        self._size, self._shard_size = packing["image_size"], packing["shard_size"]
        self._place, self._readers = place, []
        for number, start in enumerate(range(0, packing["num_images"], self._shard_size)):
            shard = _shard(place, number)
            # Without a look-ahead, which random access has no use for.
            reader = record.ArrayRecordReader(str(shard), "readahead_buffer_size:0")
            expected = min(self._shard_size, packing["num_images"] - start)
            # The reader takes a missing or truncated file for an empty one.
            if reader.num_records() != expected:
                raise ValueError(
                    f"{shard}: {reader.num_records()} images, expected {expected}. {_AGAIN}"
                )
            self._readers.append(reader)

    def read(self, numbers: np.ndarray) -> Any:
        """Yields (place in `numbers`, [height, width, 3] pixels), shard by shard."""
        shards, records = np.divmod(numbers, self._shard_size)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            try:
                contents = self._readers[shard].read(records[places].tolist())
            except RuntimeError as error:
                raise ValueError(f"{_shard(self._place, shard)} is damaged. {_AGAIN}") from error
            shape = (self._size, self._size, 3)
            for place, content in zip(places, contents, strict=True):
                if len(content) != math.prod(shape):
                    raise ValueError(
                        f"{_shard(self._place, shard)}: an image of {len(content)} bytes; expected "
                        f"{self._size} x {self._size} x 3, as packing.json says. {_AGAIN}"
                    )
                yield place, np.frombuffer(content, np.uint8).reshape(shape)

    def check(self) -> None:
        """Reads everything, since a damaged record is found by reading it."""
        for number, reader in enumerate(self._readers):
            for start in range(0, reader.num_records(), 64):
                stop = min(start + 64, reader.num_records())
                for _ in self.read(number * self._shard_size + np.arange(start, stop)):
                    pass


def _shard(place: pathlib.Path, number: int) -> pathlib.Path:
    return place / f"images-{number:05d}.array_record"


def _read_packing(place: pathlib.Path) -> dict[str, Any]:
    return files.read_json(place / "packing.json", cure=_AGAIN, fields=_PACKING)


def _read_splits(
    place: pathlib.Path, packing: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The labels and the records of each split."""
    file, num_classes = place / "splits.npz", len(packing["class_names"])
    wanted = [f"{name}_{what}" for name in _SPLITS for what in ("labels", "records")]
    arrays, splits = files.read_arrays(file, cure=_AGAIN, names=wanted), {}
    for name in _SPLITS:
        labels, records = arrays[f"{name}_labels"], arrays[f"{name}_records"]
        if (
            records.ndim != 1
            or records.dtype.kind not in "iu"
            or labels.shape != (len(records), num_classes)
            or labels.dtype.kind not in "iuf"
            or (records < 0).any()
            or (records >= packing["num_images"]).any()
        ):
            raise ValueError(
                f"{file}: split {name} has labels {labels.dtype} {labels.shape} and records "
                f"{records.dtype} {records.shape}; expected {num_classes} columns, and for each "
                f"row the number of one of {packing['num_images']} images. {_AGAIN}"
            )
        splits[name] = labels, records
    return splits
