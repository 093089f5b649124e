"""Codes of images by a trained model: written to files, and searched.

<workdir>/codes/<model>/<set>.npy    `[images, num_bytes]` uint8, packed as faiss takes them
<workdir>/codes/<model>/<set>.json   the model's identity, `num_bits`, and the path of each row
<workdir>/codes/<model>/<set>.faiss  a binary index of faiss, where that is installed
<workdir>/search.png                 each query, and beside it what was found, nearest first

<set> is train, query or database, or "images" for a folder of one's own.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from saat_jax import datasets, evaluation, files, hamming, options
from saat_jax.pipeline.learners import save_grid
from saat_jax.pipeline.runs import Run, TrainedModel

_MOST_DRAWN = 50
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def encode(run: Run) -> None:
    """Writes the codes of the run's images, or of those of the folder config.encode.images."""
    settings = run.config["encode"]
    model = run.load_model(settings["model"])
    splits = [run.data.train, run.data.query, run.data.database]
    if settings["images"]:
        splits = [_own_images(run, settings["images"])]
    for split in splits:
        codes = _codes(run, model, split, progress=True)
        packed = np.asarray(hamming.pack_codes(codes))
        if jax.process_index() == 0:
            path = run.workdir / "codes" / settings["model"] / f"{split.name}.npy"
            _write(path, packed, split, model, codes.shape[1])


def _codes(run: Run, model: TrainedModel, split: datasets.Split, *, progress: bool) -> np.ndarray:
    batch_size = run.config["evaluation"]["batch_size"]
    return evaluation.encode(
        model.encode_fn,
        model.variables,
        evaluation.batches_from(run.data, split, batch_size)(0),
        size=len(split),
        title=f"encode {split.name}",
        progress=progress,
    )


def _write(
    path: pathlib.Path, packed: np.ndarray, split: datasets.Split, model: Any, num_bits: int
) -> None:
    content = io.BytesIO()
    np.save(content, packed)
    files.write_bytes(path, content.getvalue())
    # The digits have no paths.
    paths = split.paths and [str(pathlib.Path(name).absolute()) for name in split.paths]
    about = {"made_from": model.identity, "num_bits": num_bits, "paths": paths}
    files.write_json(path.with_suffix(".json"), about)
    print(f"codes: {path}, {len(packed)} x {num_bits} bits")
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: no index is written; its add() takes the codes as they are")
        return
    if num_bits % 8:
        print(f"faiss indexes codes of whole bytes: none is written for {num_bits} bits")
        return
    index = faiss.IndexBinaryFlat(num_bits)
    index.add(packed)
    with files.replacing(path.with_suffix(".faiss")) as temporary:
        faiss.write_index_binary(index, str(temporary))


def _own_images(run: Run, place: str) -> datasets.Split:
    """A file, or the images of a folder and its folders, as a split without labels."""
    path = pathlib.Path(place).absolute()
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    paths = [str(p) for p in found if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not paths:
        raise ValueError(f"no images in {place!r}; expected files that end in {list(SUFFIXES)}")
    return _split(run, paths)


def _split(run: Run, paths: Sequence[str]) -> datasets.Split:
    labels = np.zeros((len(paths), run.data.num_classes), np.float32)
    return datasets.Split("images", labels, paths=tuple(paths))


def search(run: Run) -> None:
    """Finds the codes nearest to some images: prints a table, and draws them."""
    settings = run.config["search"]
    if not settings["queries"]:
        raise ValueError("config.search.queries is empty; name an image, or a folder of images")
    queries = _own_images(run, settings["queries"])
    model = run.load_model(settings["model"])
    options.check_name("set of codes", settings["codes"])
    path = run.workdir / "codes" / settings["model"] / f"{settings['codes']}.npy"
    packed, about = _read(path, model)
    codes = _codes(run, model, queries, progress=False)
    database = hamming.unpack_codes(packed, num_bits=about["num_bits"])
    distances = np.asarray(hamming.hamming_distance(codes, database)).astype(int)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : settings["num_results"]]
    if jax.process_index() > 0:
        return
    names = about["paths"] or [f"{settings['codes']}[{row}]" for row in range(len(packed))]
    for query, rows, far in zip(queries.paths or (), nearest, distances, strict=True):
        print(f"{options.shortened(query)}\n{'distance':>10}  image")
        for row in rows:
            print(f"{far[row]:>10}  {options.shortened(names[row])}")
    splits = {split.name: split for split in (run.data.train, run.data.query, run.data.database)}
    found = _split(run, names) if about["paths"] else splits[settings["codes"]]
    lines = [
        np.concatenate([run.load_images(queries, [number]), run.load_images(found, rows)])
        for number, rows in enumerate(nearest[:_MOST_DRAWN])
    ]
    save_grid(run.workdir / "search.png", lines)
    print(f"pictures: {run.workdir / 'search.png'}")


def _read(path: pathlib.Path, model: TrainedModel) -> tuple[np.ndarray, dict[str, Any]]:
    """Packed codes that a model has made, and what is known of them."""
    cure = "run the task 'encode' with this --workdir"
    if not path.is_file():
        raise ValueError(f"{path} is missing; {cure}")
    fields = {"made_from": dict, "num_bits": int, "paths": (None, list)}
    about = files.read_json(path.with_suffix(".json"), cure=cure, fields=fields)
    try:
        packed = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {cure}") from error
    shape = (len(about["paths"] or packed), -(-about["num_bits"] // 8))
    if about["made_from"] != model.identity or packed.shape != shape:
        raise ValueError(f"{path} is of another model, or other images than its .json; {cure}")
    return packed, about
