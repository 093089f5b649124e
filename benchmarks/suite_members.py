"""Which attacks the standard suite should have: a large union on several models, and its parts.

    python -m benchmarks.suite_members docs/records/suite RUN:MODEL [RUN:MODEL ...]
    python -m benchmarks.suite_members docs/records/suite

Attacks some of each model's queries by every member of a union much larger than the suite, in both
directions, and keeps the average precision of each 8-bit image, one file for each model and
direction; a file that is there is not made again. Then, or without models, tells from those files
what the union, each preset and the best member reach, and of all sets of members of some numbers of
passes the one whose largest loss against the union is least.
"""

import argparse
import dataclasses
import itertools
import pathlib
import tempfile

import numpy as np

from saat_jax import attacks, evaluation, files, pipeline
from saat_jax.evaluation import judging, worst_case
from saat_jax.pipeline.runs import Run

EPSILON = 8 / 255
NUM_STEPS = 100
# Passes of the chosen sets, in those of one search.
BUDGETS = (1, 2, 4, 6, 8, 12)
# A loss that is in no preset: the soft gain, steadied by the weights of the flips.
MIXED = "mixed_gain"


def union(*, targeted: bool) -> dict[str, evaluation.AttackSettings]:
    """The members of the full preset, more starts of them, and whatever else was thought of."""
    search = {"attack": "auto_pgd", "num_steps": NUM_STEPS}
    aims = ["votes", "mainstay", "consensus"] + ["own"] * (not targeted)
    given: dict[str, dict] = {
        **{f"flips_{n + 1}": {"aim": "votes", "flips": True, "restart": n} for n in range(5)},
        **{f"{aim}_flips": {"aim": aim, "flips": True} for aim in aims if aim != "votes"},
        "mainstay_flips_2": {"aim": "mainstay", "flips": True, "restart": 1},
        **{
            f"{loss}_{n + 1}": {"loss": loss, "restart": n}
            for loss in ("soft_gain", "sharp_gain")
            for n in range(3)
        },
        **{f"{MIXED}_{n + 1}": {"loss": MIXED, "flips": True, "restart": n} for n in range(2)},
        **{aim: {"aim": aim} for aim in aims},
        "hinge": {"aim": "votes", "loss": "hinge"},
        "flips_long": {"aim": "votes", "flips": True, "restart": 9, "num_steps": 3 * NUM_STEPS},
    }
    return {
        name: evaluation.AttackSettings.create(
            targeted=targeted, epsilon=EPSILON, **{**search, **options}
        )
        for name, options in given.items()
    }


def judged(place: str, *, num_queries: int) -> judging.JudgedModel:
    """A model of a run, "WORKDIR:MODEL", with some of its queries, evenly spaced."""
    workdir, _, name = place.rpartition(":")
    run = Run(pipeline.stored_config(workdir), workdir, guest=True)
    rows = np.linspace(0, len(run.data.query) - 1, num_queries).astype(int)
    query = run.data.query
    few = dataclasses.replace(
        query,
        labels=query.labels[rows],
        paths=query.paths and tuple(query.paths[row] for row in rows),
        images=None if query.images is None else query.images[rows],
    )
    found = run.load_model(name)
    return judging.prepare(
        evaluation.Encoder(found.encode_fn, found.variables),
        dataclasses.replace(run.data, query=few),
        run.target_labels[rows],
        protocol=run.protocol,
        batch_size=run.config["evaluation"]["batch_size"],
        learned=None,
        progress=True,
    )


def measure(place: str, keep: pathlib.Path, *, num_queries: int) -> None:
    """Attacks some queries of a run's model by all of the union."""
    workdir, _, name = place.rpartition(":")
    model = judged(place, num_queries=num_queries)
    for targeted in (False, True):
        direction = "targeted" if targeted else "own"
        path = keep / f"{pathlib.Path(workdir).name}_{name}_{direction}.npz"
        if path.is_file():
            continue
        suite = evaluation.Suite(union(targeted=targeted), targeted, EPSILON, {})
        with tempfile.TemporaryDirectory() as parts:
            outcome = worst_case.run_members(model, suite, parts=pathlib.Path(parts), title=place)
        clean = model.average_precision(model.benign_codes, targeted=targeted)
        rows_that_count = model.protocol.judged_rows(model.known.labels)
        gains = {name: values[rows_that_count] for name, values in outcome.gains.items()}
        keep.mkdir(parents=True, exist_ok=True)
        files.write_arrays(
            path,
            {
                "members": np.array(list(gains)),
                "gains": np.array(list(gains.values()), np.float32),
                "clean": clean[rows_that_count],
                "seconds": np.array([r.seconds_per_image for r in outcome.results.values()]),
            },
        )


def of_preset(preset: str, *, targeted: bool) -> list[str]:
    """The names here of a preset's members that search by the gradient."""
    suite = evaluation.standard_suite(epsilon=EPSILON, targeted=targeted, preset=preset)
    names = {_key(member): name for name, member in union(targeted=targeted).items()}
    return [names[_key(m)] for m in suite.members.values() if _key(m) in names]


def _key(member: evaluation.AttackSettings) -> str:
    return repr(sorted({"restart": 0, **member.options}.items()))


def choices(budget: int) -> list[tuple[str, ...]]:
    """Sets of members that take as many passes as so many of the usual ones, in both directions."""
    kinds = [
        [f"flips_{n + 1}" for n in range(4)],
        ["consensus_flips"],
        ["mainstay_flips", "mainstay_flips_2"],
        [f"soft_gain_{n + 1}" for n in range(3)],
        [f"sharp_gain_{n + 1}" for n in range(3)],
        [f"{MIXED}_{n + 1}" for n in range(2)],
        ["votes"],
        ["mainstay"],
        ["consensus"],
        ["hinge"],
        ["flips_long"],
    ]
    # Of starts that differ in nothing else, the first ones.
    starts = itertools.product(*(range(len(kind) + 1) for kind in kinds))
    found = [
        tuple(name for kind, number in zip(kinds, numbers, strict=True) for name in kind[:number])
        for numbers in starts
    ]
    return [one for one in found if sum(3 if m == "flips_long" else 1 for m in one) == budget]


def tell(keep: pathlib.Path) -> None:
    """Prints the tables of what was kept."""
    tables = {path.stem: files.read_arrays(path) for path in sorted(keep.glob("*.npz"))}
    gains = {
        place: dict(zip(table["members"].tolist(), 100 * table["gains"], strict=True))
        for place, table in tables.items()
    }

    def reached(place: str, members: list[str]) -> float:
        return float(np.mean(np.max([gains[place][name] for name in members], axis=0)))

    def lost(members: list[str]) -> dict[str, float]:
        return {
            place: reached(place, list(found)) - reached(place, [m for m in members if m in found])
            for place, found in gains.items()
        }

    print(f"{'':32} {'clean':>6} {'union':>6} {'full':>6} {'cheap':>6}  best single member")
    for place, found in gains.items():
        targeted = place.endswith("_targeted")
        presets = [of_preset(preset, targeted=targeted) for preset in ("full", "cheap")]
        scores = [abs(reached(place, members)) for members in (list(found), *presets)]
        single = max(found, key=lambda name: found[name].mean())
        clean = 100 * tables[place]["clean"].mean()
        row = " ".join(f"{score:6.2f}" for score in (clean, *scores))
        print(f"{place:32} {row}  {single} {abs(found[single].mean()):.2f}")

    print(
        "\nof all choices of so many passes, the one that loses least against the union, in points"
    )
    for budget in BUDGETS:
        tried = {choice: [*lost(list(choice)).values()] for choice in choices(budget)}
        best = min(tried, key=lambda choice: (max(tried[choice]), np.mean(tried[choice])))
        losses = f"mean {np.mean(tried[best]):.2f}, largest {max(tried[best]):.2f}"
        print(f"{budget * NUM_STEPS:5} {losses}: {', '.join(best)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keep", type=pathlib.Path, help="folder of the files")
    parser.add_argument("places", nargs="*", help="WORKDIR:MODEL")
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    attacks.SEARCH_LOSSES.register(
        MIXED,
        lambda logits, weights, criterion, share: (
            attacks.SEARCH_LOSSES["soft_gain"](logits, weights, criterion, share)
            + 0.1 * attacks.SEARCH_LOSSES["weighted"](logits, weights, criterion, share)
        ),
    )
    for place in given.places:
        measure(place, given.keep, num_queries=given.queries)
    tell(given.keep)


if __name__ == "__main__":
    main()
