"""What the members of the standard suite take beside their passes through the network.

    python -m benchmarks.suite_cost WORKDIR:MODEL

Searches for one batch of the model's queries by each kind of member, and takes PGD's steps of the
reported attack, which are little more than their passes; programs take turns. Prints for each
member the time of a query beyond that of its passes, the sum of the presets, and the memory that
XLA gives the program beside its arguments.
"""

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import interleaved
from saat_jax import datasets, evaluation, files
from saat_jax.evaluation import judging
from saat_jax.pipeline.runs import Run

NUM_QUERIES, EPSILON = 100, 8 / 255


def members() -> dict[str, evaluation.AttackSettings]:
    """Those of the full preset, and the reported attack in as many steps."""
    suite = evaluation.standard_suite(epsilon=EPSILON)
    reported = evaluation.AttackSettings.create(
        attack="mainstay", targeted=False, epsilon=EPSILON, step_size=1 / 255, num_steps=100
    )
    both = suite.members | dict(evaluation.standard_suite(epsilon=EPSILON, preset="cheap").members)
    return {"reported": reported, **both}


def make_search(place: str, name: str) -> Callable[[], Any]:
    """One member's search for a batch."""
    compiled, arguments, arrays = _compiled(place, members()[name])
    return lambda: jax.block_until_ready(compiled(*arguments, **arrays))


def _compiled(place: str, settings: evaluation.AttackSettings) -> tuple[Any, Any, Any]:
    workdir, _, name = place.rpartition(":")
    config = files.read_json(pathlib.Path(workdir) / "config.json", cure="name a run's folder")
    run = Run(config, workdir, guest=True)
    found = run.load_model(name)
    model = judging.prepare(
        evaluation.Encoder(found.encode_fn, found.variables),
        run.data,
        run.target_labels,
        protocol=run.protocol,
        batch_size=NUM_QUERIES,
        learned=None,
        progress=False,
    )
    rows = np.arange(NUM_QUERIES)
    images = datasets.load_images(
        run.data.query, rows, image_size=run.data.image_size, resize=run.data.resize
    )
    target_codes = settings.target_codes(model.known)
    codes = jax.tree.map(lambda array: array[rows], target_codes.codes)
    arguments = (found.variables, images, codes, jax.random.split(jax.random.key(0), NUM_QUERIES))
    search = jax.jit(settings.build(found.encode_fn, target_codes))
    return (
        search.lower(*arguments, **target_codes.arrays).compile(),
        arguments,
        target_codes.arrays,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", help="WORKDIR:MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # Starts of one kind take the same time.
    kinds = {n: m for n, m in members().items() if not n.endswith(("_2", "_3", "_4"))}
    programs: dict[str, interleaved.Program] = {
        name: (make_search, {"place": given.place, "name": name}, {}) for name in kinds
    }
    results = interleaved.take_turns(programs, rounds=given.rounds)
    reported = results["reported"].seconds
    beyond = {}
    print(f"{'':18} ms a query  beyond its passes     MiB")
    for name, member in kinds.items():
        passes = member.passes[1] / 100 or member.passes[0] / 300
        extra = [a - passes * b for a, b in zip(results[name].seconds, reported, strict=True)]
        beyond[name.removesuffix("_1")] = 1000 * statistics.median(extra) / NUM_QUERIES
        memory = _compiled(given.place, member)[0].memory_analysis().temp_size_in_bytes / 2**20
        time = 1000 * results[name].median / NUM_QUERIES
        print(f"{name:18} {time:10.1f} {beyond[name.removesuffix('_1')]:18.1f} {memory:7.0f}")
    for preset in ("cheap", "full"):
        suite = evaluation.standard_suite(epsilon=EPSILON, preset=preset)
        total = sum(beyond[name.rstrip("_1234")] for name in suite.members)
        print(f"{preset}: {total:.0f} ms a query beyond its passes")


if __name__ == "__main__":
    main()
