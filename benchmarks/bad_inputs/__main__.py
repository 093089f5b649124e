"""Tries all inputs, and prints the figure and those that are not answered."""

import argparse
import pathlib
import sys
import tempfile
from collections import Counter

from benchmarks import bad_inputs


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all are answered."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_inputs")
    parser.add_argument("--room", choices=sorted(bad_inputs.ROOMS), action="append")
    options = parser.parse_args(argv)
    verdicts: Counter[str] = Counter()
    for room in options.room or bad_inputs.ROOMS:
        for case in bad_inputs.ROOMS[room]():
            with tempfile.TemporaryDirectory() as folder:
                verdict = bad_inputs.judge(case, pathlib.Path(folder))
            verdicts[verdict.partition(":")[0]] += 1
            if verdict != "answered":
                print(f"{room}: {case.kind}: {case.title}: {verdict}", flush=True)
    total = sum(verdicts.values())
    print(f"{verdicts['answered']} of {total} answered; {dict(verdicts)}")
    return 0 if verdicts["answered"] == total else 1


if __name__ == "__main__":
    sys.exit(main())
