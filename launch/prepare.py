r"""Makes lists of the papers' data sets and of your own images, and shards of any lists.

    saat-jax prepare flickr25k --source FOLDER --output data/flickr25k --splits saat
    saat-jax prepare own --source PHOTOS --output data/mine
    saat-jax prepare pack --root data/flickr25k --output data/flickr25k_256

Nothing is downloaded. FOLDER holds the owners' unpacked archives; where to get them is said if
anything is missing. PHOTOS holds a folder of images for each class, or any folders if --labels
names a table. The lists are of format A (README, "My images"); lists that you have need no
preparation.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch import terminal
from saat_jax import datasets, files
from saat_jax.datasets import originals, own


def prepare(
    name: str,
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    splits: str,
    seed: int,
    num_query: int | None = None,
    num_train: int | None = None,
    subset: bool = False,
    sets: Mapping[str, originals.OriginalSet] = originals.SETS,
) -> str:
    """Makes the lists of a set, all at once or not at all.

    Args:
        name: one of `sets`.
        source: folder of its unpacked archives.
        output: folder to make.
        splits: the paper, "saat" or "prosgan".
        seed: of the draw.
        num_query: number of queries; None for the paper's.
        num_train: number of training images; None for the paper's.
        subset: take the images that are there, and leave the published counts unchecked.
        sets: what is known of the sets.

    Returns:
        What was done, for the user.

    Raises:
        ValueError: the set is not whole, or the folder holds something else.
    """
    known = sets[name]
    sizes = {"num_query": num_query, "num_train": num_train}
    changed: dict[str, Any] = {key: size for key, size in sizes.items() if size is not None}
    protocol = dataclasses.replace(known.protocols[splits], **changed)
    source = source.resolve()
    settings = {
        "set": name,
        "splits": splits,
        "protocol": dataclasses.asdict(protocol),
        "seed": seed,
        "subset": subset,
        "source": str(source),
    }
    if _is_done(output, settings):
        return f"{output}: done already"
    try:
        original = known.read(source)
    except FileNotFoundError as error:
        # What os.listdir raises says more than it has to.
        what = f"{error.filename} is missing" if error.filename else str(error)
        raise ValueError(f"{what}\n{known.instructions}") from error
    if subset:
        original = originals.present_images(original)
    else:
        originals.check_original(name, source, original, known)
    rows = originals.split_rows(original, protocol, seed=seed)
    _write(output, original, rows, settings)
    return _told(output, original, rows, seed)


def _write(
    output: pathlib.Path,
    original: originals.Original,
    rows: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Writes lists and what made them, all at once or not at all."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    originals.write_lists(temporary, original, rows)
    made = {path.name: path.stat().st_size for path in temporary.iterdir() if path.is_file()}
    record = {"settings": settings, "inputs": _sizes(original.files), "lists": made}
    files.write_json(temporary / "prepared.json", record)
    os.replace(temporary, output)


def _told(
    output: pathlib.Path, original: originals.Original, rows: Mapping[str, Any], seed: int
) -> str:
    text = ", ".join(f"{split} {len(numbers)}" for split, numbers in rows.items())
    return f"{output}: {text}; {len(original.class_names)} classes; seed {seed}"


def prepare_own(
    source: pathlib.Path,
    output: pathlib.Path,
    *,
    labels: pathlib.Path | None = None,
    num_query: int | None = None,
    num_train: int | None = None,
    seed: int = 0,
) -> str:
    """Makes lists of one's own images, by folders or a table; arguments as of `own.read_own`.

    Images of the database that look like a query are left out, as finding them shows nothing.

    Args:
        source: folder of the images.
        output: folder to make.
        labels: table of labels; None for a folder for each class.
        num_query: number of queries; None for a tenth, at most 1,000.
        num_train: number of training images; None for all others, at most 10,000.
        seed: of the draw.

    Raises:
        ValueError: the images or labels are not sound, or the output holds something else.
    """
    source = source.resolve()
    original = own.read_own(source, labels)
    usual = own.sizes_of(int(original.labels.any(axis=1).sum()))
    queries = usual[0] if num_query is None else num_query
    known = originals.OriginalSet(lambda _: original, {}, {}, {}, "")
    settings = {
        "set": "own",
        "labels": labels and str(labels.resolve()),
        "num_query": num_query,
        "num_train": num_train,
        "seed": seed,
        "source": str(source),
    }
    if _is_done(output, settings):
        return f"{output}: done already"
    originals.check_original("own", source, original, known)
    protocol = originals.Protocol(queries, 1, by_class=True)
    rows = originals.split_rows(original, protocol, seed=seed)
    codes = own.difference_hashes([source / path for path in original.paths])
    pairs = own.look_alikes(codes[rows["test"]], codes[rows["database"]])
    alike = rows["database"][np.unique(pairs[:, 1])]
    rest = np.setdiff1d(rows["database"], alike)
    trained = originals.draw(original, rest, usual[1] if num_train is None else num_train, seed)
    rows = {"train": trained, "test": rows["test"], "database": rest}
    _write(output, original, rows, settings)
    dataset = datasets.load_dataset(source="lists", root=str(output), image_size=32, decode=False)
    datasets.write_png(output / "classes.png", own.picture(dataset))
    left_out = f"; {len(alike)} left out that look like queries" * bool(len(alike))
    return f"{_told(output, original, rows, seed)}{left_out}; look at {output / 'classes.png'}"


def _sizes(paths: Any) -> dict[str, int | None]:
    return {str(path): os.path.getsize(path) if os.path.isfile(path) else None for path in paths}


def _is_done(output: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds just these lists; ValueError if it holds anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / "prepared.json").is_file():
        raise ValueError(
            f"{output} holds files of another origin; name a new folder. Lists that you have need "
            f"no preparation: saat-jax check {output}"
        )
    record = files.read_json(
        output / "prepared.json",
        cure=f"delete {output} and give the same command again",
        fields={"settings": dict, "inputs": dict},
    )
    made = record["settings"]
    changed = [f"{k} {made.get(k)} -> {v}" for k, v in settings.items() if made.get(k) != v]
    if changed:
        problem = f"was made with other settings ({'; '.join(changed)})"
    elif record["inputs"] != _sizes(record["inputs"]):
        problem = "was made with other settings (files of the source changed)"
    # Of a folder made by an earlier version, nothing is known of its lists.
    elif lost := [
        name
        for name, size in record.get("lists", {}).items()
        if _sizes([output / name]) != {str(output / name): size}
    ]:
        problem = f"is damaged: {lost[0]} has another size than when it was made"
    else:
        return True
    raise ValueError(f"{output} {problem}; name a new folder, or delete it first")


def pack(options: argparse.Namespace) -> str:
    """Packs the images of lists; says what was done."""
    dataset = datasets.load_dataset(
        source="lists",
        root=options.root,
        image_size=options.image_size,
        resize=options.resize,
        remap=options.remap,
        # What is packed already has been decoded.
        decode=not os.path.isfile(os.path.join(options.output, "splits.npz")),
    )
    made = datasets.pack_images(dataset, options.output)
    size = sum(entry.stat().st_size for entry in os.scandir(options.output))
    return f"{options.output}: {'packed' if made else 'done already'}, {size / 1e6:.0f} MB"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status.

    Raises:
        ValueError: if something is wrong with the data.
    """
    parser = terminal.make_parser("prepare", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, known in originals.SETS.items():
        add = commands.add_parser(
            name,
            help=f"make the lists of {name}",
            epilog=known.instructions,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        ).add_argument
        add("--source", type=pathlib.Path, required=True, help="unpacked archives")
        add("--output", type=pathlib.Path, required=True, help="folder to make")
        add("--splits", choices=known.protocols, required=True, help="the paper")
        add("--seed", type=int, default=0, help="of the draw")
        add("--num_query", type=int, help="instead of the paper's")
        add("--num_train", type=int, help="instead of the paper's")
        help = "take the images that are there; published counts are not checked"
        add("--subset", action="store_true", help=help)
    add = commands.add_parser("own", help="make lists of your own images").add_argument
    add("--source", type=pathlib.Path, required=True, help="a folder of images for each class")
    add("--output", type=pathlib.Path, required=True, help="folder to make")
    help = "CSV or JSON of labels, instead of folders"
    add("--labels", type=pathlib.Path, metavar="TABLE", help=help)
    add("--num_query", type=int, help="by default a tenth of the images, at most 1,000")
    add("--num_train", type=int, help="by default all others, at most 10,000")
    add("--seed", type=int, default=0, help="of the draw")
    add = commands.add_parser("pack", help="write the images of lists into shards").add_argument
    add("--root", required=True, help="folder of the lists")
    add("--output", required=True, help="folder of the shards")
    add("--image_size", type=int, default=256, help="of the packed squares")
    add(
        "--resize",
        type=lambda text: None if text == "none" else int(text),
        default=256,
        help='short side before the centre crop; "none" squeezes the whole image',
    )
    add("--remap", metavar="OLD=NEW", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        datasets.parse_remap(getattr(options, "remap", ()))
    except ValueError as error:
        parser.error(str(error))
    if options.command == "pack":
        print(pack(options))
    elif options.command == "own":
        settings = vars(options)
        del settings["command"]
        print(prepare_own(**settings))
    else:
        settings = vars(options)
        print(prepare(settings.pop("command"), **settings))
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
