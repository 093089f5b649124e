"""Compares runs: means over seeds with their spread, differences query by query, one page."""

import argparse
import pathlib


def main(arguments: list[str] | None = None) -> None:
    """Prints the comparison and writes its page.

    Raises:
        ValueError: if a folder has no records, or there is nothing to compare.
    """
    parser = argparse.ArgumentParser(prog="saat-jax compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or of runs with --seeds"
    )
    parser.add_argument("--out", type=pathlib.Path, help="page; by default RUN/comparison.html")
    options = parser.parse_args(arguments)
    # Imported here, so that a wrong flag is answered at once.
    from saat_jax import reports

    path = options.out or pathlib.Path(options.runs[0]) / "comparison.html"
    reports.show_comparison(options.runs, path)
