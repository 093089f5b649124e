"""Checks image lists: `saat-jax check FOLDER`, or `python -m saat_jax.datasets check FOLDER`."""

import argparse
import runpy
import sys

from saat_jax.datasets import own
from saat_jax.datasets.checks import ManifestError
from saat_jax.datasets.lists import load_lists, parse_remap
from saat_jax.datasets.splits import Dataset, relevant_share


def report(dataset: Dataset) -> str:
    """Describes a sound dataset: rows and labels of each split, relevant pairs, warnings."""
    lines = [f"{dataset.name}: {dataset.num_classes} classes"]
    for split in (dataset.train, dataset.query, dataset.database):
        counts = split.labels.sum(axis=1)
        lines.append(
            f"  {split.name:<9}{len(split):>8} rows; labels per image: "
            f"mean {counts.mean():.2f}, most {counts.max():.0f}, none in {(counts == 0).sum()} rows"
        )
    share = relevant_share(dataset.query.labels, dataset.database.labels)
    lines.append(f"  relevant query-database pairs: {share:.3f}, about the MAP of random codes")
    return "\n".join(lines + [f"  warning: {text}" for text in dataset.warnings])


def alike_lines(dataset: Dataset, *, shown: int = 5) -> list[str]:
    """Tells which queries look like an image of the database or of the training set.

    Args:
        dataset: of files.
        shown: pairs that are named for each of the two.
    """
    splits = (dataset.query, dataset.database, dataset.train)
    paths = sorted({path for split in splits for path in split.paths or ()})
    row_of = {path: row for row, path in enumerate(paths)}
    codes = own.difference_hashes(paths)
    queries = dataset.query.paths or ()
    lines = []
    for split in splits[1:]:
        others = split.paths or ()
        rows = [[row_of[path] for path in some] for some in (queries, others)]
        found = own.look_alikes(*(codes[some] for some in rows))
        pairs = [(queries[i], others[j]) for i, j in found if queries[i] != others[j]]
        count = len({query for query, _ in pairs})
        lines.append(f"  {count} of {len(queries)} queries look like another image of {split.name}")
        lines += [f"    {query} and {other}" for query, other in pairs[:shown]]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Prints the report, or the problems; returns the exit status, 1 if there are any."""
    parser = argparse.ArgumentParser(prog="saat-jax", description=__doc__)
    check = parser.add_subparsers(required=True).add_parser("check", help="check image lists")
    check.add_argument("folder", help="the folder of the lists")
    check.add_argument(
        "--remap",
        metavar="OLD=NEW",
        action="append",
        default=[],
        help="replace the beginning OLD of paths by NEW, which may be empty",
    )
    check.add_argument("--no-decode", action="store_true", help="only look whether images exist")
    check.add_argument(
        "--look-alikes", action="store_true", help="look for queries that are in the database too"
    )
    options = parser.parse_args(arguments)
    if options.look_alikes and options.no_decode:
        parser.error("--look-alikes reads the images; leave --no-decode out")
    try:
        remap = parse_remap(options.remap)
    except ValueError as error:
        parser.error(str(error))
    try:
        dataset = load_lists(
            root=options.folder, image_size=1, remap=remap, decode=not options.no_decode
        )
    except ManifestError as error:
        print(error, *(f"  warning: {text}" for text in error.warnings), sep="\n", file=sys.stderr)
        return 1
    print(report(dataset))
    if options.look_alikes:
        print("\n".join(alike_lines(dataset)))
    return 0


if __name__ == "__main__":
    # As the command, which has this one too, answers Ctrl-C and closed pipes.
    runpy.run_module("saat_jax", run_name="__main__")
