"""The papers' data sets as their owners distribute them: labels, published counts, splits.

MIRFLICKR-25K, NUS-WIDE and MS-COCO 2014 are read from their unpacked archives. A draw orders the
images by the SHA-256 of "SEED PATH", so that it is the same on every machine and for ever.

Reference:
    Sizes as in both papers; Huiskes and Lew, MIR 2008; Chua et al., CIVR 2009; Lin et al.,
    ECCV 2014.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from saat_jax import options
from saat_jax.datasets.checks import ManifestError

# Labels of MIRFLICKR: what may be seen in the image, and "_r1" for what it is about.
_FLICKR_POTENTIAL = """
animals baby bird car clouds dog female flower food indoor lake male night people plant_life
portrait river sea sky structures sunset transport tree water
"""
_FLICKR_RELEVANT = (
    "baby bird car clouds dog female flower male night people portrait river sea tree"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """A set as distributed.

    Attributes:
        folder: where the images are.
        paths: one for each image, from that folder.
        labels: [images, num_classes] uint8 multi-hot.
        class_names: one name for each label column.
        files: the files that were read.
        counts: how many of what there are, to be compared with the published numbers.
    """

    folder: pathlib.Path
    paths: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    files: Sequence[pathlib.Path]
    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        # They become lines of a list, and links to files.
        wrong = [
            path
            for path in self.paths
            if ".." in path.split("/") or path[:1] == "/" or path.splitlines() != [path]
        ]
        if wrong:
            what = f"{len(wrong)} paths that leave the folder of the images, or no paths"
            shown = options.shortened(repr(wrong[0]))
            raise _unsound(self.folder, f"{what} (first {shown})")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a paper divides a set.

    Attributes:
        num_query: number of queries.
        num_train: number of training images; they stand in the database too.
        keep_unlabelled: whether the database holds images without a label.
        draw_unlabelled: whether queries and training images may be without a label.
        by_class: draw one image of each class in turn instead of all alike.
    """

    num_query: int
    num_train: int
    keep_unlabelled: bool = True
    draw_unlabelled: bool = False
    by_class: bool = False


@dataclasses.dataclass(frozen=True)
class OriginalSet:
    """What is known of a set.

    Attributes:
        read: reads the folder of its unpacked archives.
        protocols: by paper, "saat" and "prosgan".
        published: its true `Original.counts`.
        md5: of its archives, by file name, where the owners publish them.
        instructions: what to get from where, and where to put it.
    """

    read: Callable[[pathlib.Path], Original]
    protocols: Mapping[str, Protocol]
    published: Mapping[str, int]
    md5: Mapping[str, str]
    instructions: str


def read_flickr25k(source: pathlib.Path) -> Original:
    """Reads MIRFLICKR-25K: 24 potential and 14 relevant labels, in alphabetical order.

    Args:
        source: holds `mirflickr/im1.jpg` ... and the folder `mirflickr25k_annotations_v080`.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ManifestError: a file is not what it should be.
    """
    folder = source / "mirflickr"
    annotations = _find(source / "mirflickr25k_annotations_v080", "plant_life.txt").parent
    names = sorted(
        [*_FLICKR_POTENTIAL.split(), *(f"{name}_r1" for name in _FLICKR_RELEVANT.split())]
    )
    found = [re.fullmatch(r"im(\d+)\.jpg", name) for name in os.listdir(folder)]
    numbers = np.array(sorted(int(match[1]) for match in found if match), np.int64)
    labels = np.zeros((len(numbers), len(names)), np.uint8)
    listed = [annotations / f"{name}.txt" for name in names]
    for column, file in enumerate(listed):
        words = file.read_text().split()
        if wrong := [word for word in words if not word.isdecimal()]:
            raise _unsound(file, f"{wrong[0]!r} is no image number")
        labels[:, column] = np.isin(numbers, np.array(words, np.int64))
    counts = {
        "mirflickr: files im*.jpg": len(numbers),
        "mirflickr25k_annotations_v080: images with a label": _num_labelled(labels),
    }
    return Original(
        folder, [f"im{number}.jpg" for number in numbers], labels, names, listed, counts
    )


def read_nuswide(source: pathlib.Path, *, num_classes: int = 21) -> Original:
    """Reads NUS-WIDE with its most frequent concepts, in alphabetical order.

    Args:
        source: holds `ImageList/Imagelist.txt`, `Groundtruth/AllLabels/Labels_CONCEPT.txt` and
            the images, `Flickr/FOLDER/FILE.jpg`.
        num_classes: how many concepts to keep.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ManifestError: a file is not what it should be.
    """
    image_list = _find(source / "ImageList", "Imagelist.txt")
    paths = [line.strip().replace("\\", "/") for line in image_list.read_text().splitlines()]
    listed = sorted(_find(source / "Groundtruth", "Labels_sky.txt").parent.glob("Labels_*.txt"))
    columns = []
    for file in listed:
        words = file.read_text().split()
        if len(words) != len(paths):
            raise _unsound(file, f"{len(words)} lines, but {len(paths)} in {image_list.name}")
        if wrong := set(words) - {"0", "1"}:
            raise _unsound(file, f"{min(wrong)!r} is neither 0 nor 1")
        columns.append(np.array(words, "S1").view(np.uint8) - ord("0"))
    frequent = np.argsort([-int(column.sum()) for column in columns], kind="stable")
    kept = sorted(frequent[:num_classes])
    labels = np.stack([columns[i] for i in kept], axis=1)
    names = [listed[i].stem.removeprefix("Labels_") for i in kept]
    counts = {
        "Imagelist.txt: images": len(paths),
        "AllLabels: concepts": len(listed),
        f"AllLabels: images with one of the {num_classes} concepts": _num_labelled(labels),
    }
    return Original(source / "Flickr", paths, labels, names, [image_list, *listed], counts)


def read_coco(source: pathlib.Path) -> Original:
    """Reads MS-COCO 2014, train and val: a class is present if any object of it is.

    Args:
        source: holds `annotations/instances_train2014.json`, `annotations/instances_val2014.json`
            and the images, `train2014/FILE.jpg` and `val2014/FILE.jpg`.

    Raises:
        FileNotFoundError: a file is missing.
        ManifestError: a file is not what it should be.
    """
    paths: list[str] = []
    parts, listed, counts = [], [], {}
    names: list[str] = []
    for part in ("train2014", "val2014"):
        file = _find(source / "annotations", f"instances_{part}.json")
        try:
            tree = json.loads(file.read_bytes())
            classes = sorted((item["id"], item["name"]) for item in tree["categories"])
            columns = {number: column for column, (number, _) in enumerate(classes)}
            rows = {image["id"]: row for row, image in enumerate(tree["images"])}
            labels = np.zeros((len(rows), len(classes)), np.uint8)
            for item in tree["annotations"]:
                labels[rows[item["image_id"]], columns[item["category_id"]]] = 1
            paths += [f"{part}/{image['file_name']}" for image in tree["images"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _unsound(file, f"no instances as COCO has them ({error!r})") from error
        if names not in ([], [name for _, name in classes]):
            raise _unsound(file, "other categories than in instances_train2014.json")
        names = [name for _, name in classes]
        parts.append(labels)
        listed.append(file)
        counts[f"{file.name}: images"] = len(rows)
        counts[f"{file.name}: categories"] = len(names)
    labels = np.concatenate(parts)
    counts["train and val: images with an object"] = _num_labelled(labels)
    return Original(source, paths, labels, names, listed, counts)


def check_original(name: str, source: pathlib.Path, original: Original, known: OriginalSet) -> None:
    """Compares a set with the numbers and checksums its owners published, and looks for images.

    Raises:
        ManifestError: they differ, or images are missing; lists every problem.
    """
    problems = [
        f"{place}: {original.counts.get(place)}, expected {count} as published. Get it again."
        for place, count in known.published.items()
        if original.counts.get(place) != count
    ]
    for archive, expected in known.md5.items():
        if (source / archive).is_file():
            with open(source / archive, "rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            if digest != expected:
                problems.append(f"{archive}: MD5 {digest}, expected {expected}. Get it again.")
    missing = [path for path in original.paths if not (original.folder / path).is_file()]
    if missing:
        problems.append(
            f"{original.folder}: {len(missing)} of {len(original.paths)} images missing "
            f"({missing[0]}, ...). Put them there, or use --subset.\n{known.instructions}"
        )
    if problems:
        raise ManifestError(f"{name} in {source}", problems)


def present_images(original: Original) -> Original:
    """Leaves out the images that are not there."""
    rows = [i for i, path in enumerate(original.paths) if (original.folder / path).is_file()]
    return dataclasses.replace(
        original, paths=[original.paths[i] for i in rows], labels=original.labels[rows]
    )


def split_rows(original: Original, protocol: Protocol, *, seed: int) -> dict[str, np.ndarray]:
    """Draws a protocol's splits.

    Args:
        original: the set.
        protocol: sizes, and what to draw from.
        seed: of the draw.

    Returns:
        Rows of `original` in ascending order by "train", "test" (the queries) and "database";
        the queries are in neither of the others.

    Raises:
        ValueError: there are too few images.
    """
    labelled = np.asarray(original.labels.any(axis=1))
    everything = np.arange(len(labelled))
    candidates = everything if protocol.draw_unlabelled else np.flatnonzero(labelled)
    wanted = protocol.num_query + protocol.num_train
    if min(protocol.num_query, protocol.num_train) < 1 or wanted > len(candidates):
        raise ValueError(
            f"{protocol.num_query} queries and {protocol.num_train} training images asked of "
            f"{len(candidates)}; choose num_query and num_train from 1, together at most as many"
        )

    order = _in_order(original, candidates, seed)
    drawn = _in_turn(order, original.labels) if protocol.by_class else iter(order)
    query = np.sort(list(itertools.islice(drawn, protocol.num_query)))
    train = np.sort(list(itertools.islice(drawn, protocol.num_train)))
    kept = everything if protocol.keep_unlabelled else np.flatnonzero(labelled)
    return {"train": train, "test": query, "database": np.setdiff1d(kept, query)}


def draw(original: Original, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many of some labelled rows, or all of them, drawn as `split_rows` draws. Ascending."""
    labelled = rows[original.labels[rows].any(axis=1)]
    return np.sort(_in_order(original, labelled, seed)[:count]).astype(int)


def _in_order(original: Original, rows: np.ndarray, seed: int) -> list[int]:
    def key(row: int) -> bytes:
        return hashlib.sha256(f"{seed} {original.paths[row]}".encode()).digest()

    return sorted(rows.tolist(), key=key)


def write_lists(folder: pathlib.Path, original: Original, splits: Mapping[str, np.ndarray]) -> None:
    """Writes lists of format A, and `images`, a link to the images, into a new folder."""
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(original.folder.resolve(), target_is_directory=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in original.class_names))
    for name, rows in splits.items():
        paths = "".join(f"images/{original.paths[row]}\n" for row in rows)
        (folder / f"{name}_img.txt").write_text(paths)
        labels = original.labels[rows]
        text = np.full((len(rows), 2 * labels.shape[1]), ord(" "), np.uint8)
        text[:, ::2] = labels + ord("0")
        text[:, -1] = ord("\n")
        (folder / f"{name}_label.txt").write_bytes(text.tobytes())


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A file in a folder, or in one inside it, as some archives have; its case does not matter."""
    found = sorted(path for path in folder.rglob("*") if path.name.lower() == name.lower())
    if not found:
        raise FileNotFoundError(f"{folder / name} is missing")
    return found[0]


def _unsound(file: pathlib.Path, what: str) -> ManifestError:
    return ManifestError(str(file), [f"{what}. Get the file again."])


def _num_labelled(labels: np.ndarray) -> int:
    return int(labels.any(axis=1).sum())


def _in_turn(order: Sequence[int], labels: np.ndarray) -> Iterator[int]:
    """Yields every labelled row once: the first of each class, then the next of each, ..."""
    queues = [iter([row for row in order if column[row]]) for column in labels.T]
    taken: set[int] = set()
    while len(taken) < len(order):
        for queue in queues:
            row = next((row for row in queue if row not in taken), None)
            if row is not None:
                taken.add(row)
                yield row


SETS: dict[str, OriginalSet] = {
    "flickr25k": OriginalSet(
        read_flickr25k,
        # The released lists have images without a label in every split.
        {
            "saat": Protocol(1000, 5000, draw_unlabelled=True),
            "prosgan": Protocol(1700, 5000, draw_unlabelled=True),
        },
        {
            "mirflickr: files im*.jpg": 25_000,
            "mirflickr25k_annotations_v080: images with a label": 24_581,
        },
        {"mirflickr25k.zip": "a23d0a8564ee84cda5622a6c2f947785"},
        """\
To get MIRFLICKR-25K (2.9 GB), in the folder of --source:
  curl -C - -O http://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k.zip
  curl -C - -O http://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k_annotations_v080.zip
  unzip -q mirflickr25k.zip
  unzip -q mirflickr25k_annotations_v080.zip -d mirflickr25k_annotations_v080
It then holds mirflickr/im1.jpg ... and mirflickr25k_annotations_v080/animals.txt ...
The owners' page: http://press.liacs.nl/mirflickr/mirdownload.html""",
    ),
    "nuswide": OriginalSet(
        read_nuswide,
        # 100 and 500 of each class: the released lists have 3.3 and 3.0 labels an image, the
        # whole set 2.1, so they were not drawn from all alike.
        dict.fromkeys(
            ("saat", "prosgan"), Protocol(2100, 10_500, keep_unlabelled=False, by_class=True)
        ),
        {
            "Imagelist.txt: images": 269_648,
            "AllLabels: concepts": 81,
            "AllLabels: images with one of the 21 concepts": 195_834,
        },
        {},
        """\
To get NUS-WIDE a person has to ask: fill in the owners' agreement form and send it to them; they
answer with a way to the images (269,648 files). The form and the lists are at
  https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html
In the folder of --source, unpack ImageList.zip and Groundtruth.zip from there, and the images, so
that it holds
  ImageList/Imagelist.txt
  Groundtruth/AllLabels/Labels_airport.txt ...
  Flickr/actor/0001_2124494179.jpg ...""",
    ),
    "coco": OriginalSet(
        read_coco,
        # SAAT counts every image, ProS-GAN those with an object. No released list holds a query
        # or training image without one.
        {
            "saat": Protocol(5000, 10_000),
            "prosgan": Protocol(5000, 10_000, keep_unlabelled=False),
        },
        {
            "instances_train2014.json: images": 82_783,
            "instances_train2014.json: categories": 80,
            "instances_val2014.json: images": 40_504,
            "instances_val2014.json: categories": 80,
            "train and val: images with an object": 122_218,
        },
        {},
        """\
To get MS-COCO 2014 (13 GB, 6 GB and 241 MB), in the folder of --source:
  curl -C - -O http://images.cocodataset.org/zips/train2014.zip
  curl -C - -O http://images.cocodataset.org/zips/val2014.zip
  curl -C - -O http://images.cocodataset.org/annotations/annotations_trainval2014.zip
  for f in train2014 val2014 annotations_trainval2014; do unzip -q $f.zip; done
It then holds train2014/*.jpg, val2014/*.jpg and annotations/instances_train2014.json ...
The owners' page: https://cocodataset.org/#download""",
    ),
}
