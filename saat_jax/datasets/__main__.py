"""Checks image lists: `saat-jax check FOLDER`, or `python -m saat_jax.datasets check FOLDER`."""

import argparse
import runpy
import sys

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
    options = parser.parse_args(arguments)
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
    return 0


if __name__ == "__main__":
    # As the command, which has this one too, answers Ctrl-C and closed pipes.
    runpy.run_module("saat_jax", run_name="__main__")
