"""What the members of the standard suite take beside their passes through the network.

    python -m benchmarks.suite_cost WORKDIR:MODEL

Searches for one batch of the model's queries by each kind of member, and takes PGD's steps of the
reported attack, which are little more than their passes; they take turns. Prints for each member
the time of a query beyond that of its passes, and the memory that XLA gives the program beside its
arguments.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import suite_members
from saat_jax import datasets, evaluation

NUM_QUERIES, EPSILON = 100, 8 / 255


def members() -> dict[str, evaluation.AttackSettings]:
    """One of each kind in the presets, and the reported attack in as many steps."""
    reported = evaluation.AttackSettings.create(
        attack="mainstay", targeted=False, epsilon=EPSILON, step_size=1 / 255, num_steps=100
    )
    suite = evaluation.standard_suite(epsilon=EPSILON)
    kinds = ("flips_1", "sharp_gain_1", "soft_gain", "votes")
    return {"reported": reported, **{kind: suite.members[kind] for kind in kinds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", help="WORKDIR:MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = suite_members.judged(given.place, num_queries=NUM_QUERIES)
    data, (encode_fn, variables) = model.dataset, model.encoder
    rows = np.arange(NUM_QUERIES)
    images = datasets.load_images(data.query, rows, image_size=data.image_size, resize=data.resize)
    programs: dict[str, Any] = {}
    for kind, member in members().items():
        target_codes = member.target_codes(model.known)
        keys = jax.random.split(jax.random.key(0), NUM_QUERIES)
        arguments = (variables, images, target_codes.codes, keys)
        search = jax.jit(member.build(encode_fn, target_codes))
        compiled = search.lower(*arguments, **target_codes.arrays).compile()
        programs[kind] = compiled, arguments, target_codes.arrays
    seconds: dict[str, list[float]] = {kind: [] for kind in programs}
    for _ in range(given.rounds):
        for kind, (compiled, arguments, arrays) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments, **arrays))
            seconds[kind].append(time.perf_counter() - start)
    print(f"{'':18} ms a query  beyond its passes     MiB")
    for kind, member in members().items():
        passes = member.passes[1] / 100
        pairs = zip(seconds[kind], seconds["reported"], strict=True)
        beyond = statistics.median(mine - passes * base for mine, base in pairs)
        memory = programs[kind][0].memory_analysis().temp_size_in_bytes / 2**20
        time_of_query = 1000 * statistics.median(seconds[kind]) / NUM_QUERIES
        print(f"{kind:18} {time_of_query:10.1f} {1000 * beyond / NUM_QUERIES:18.1f} {memory:7.0f}")


if __name__ == "__main__":
    main()
