"""Queries under every member of a suite: of each, the worst 8-bit image counts."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from saat_jax import attacks, options
from saat_jax.evaluation.crafting import AttackResult
from saat_jax.evaluation.judging import JudgedModel
from saat_jax.evaluation.suites import Suite

# Queries whose best codes are sought at a time.
_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the members of a suite have made of the queries.

    Attributes:
        suite: the suite.
        results: by member.
        gains: `[num_queries]` by member, how good the 8-bit images are for the attacker.
        float_gains: the same of the images as floats.
        example_rows: which queries' images the results have.
    """

    suite: Suite
    results: dict[str, AttackResult]
    gains: dict[str, np.ndarray]
    float_gains: dict[str, np.ndarray]
    example_rows: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The number of the member that was best for the attacker. `[num_queries]`"""
        return np.argmax(list(self.gains.values()), axis=0)

    def worst(self) -> AttackResult:
        """Of each query, what that member made; the codes are those of 8-bit images."""
        best, every = self.best, list(self.results.values())

        def pick(arrays: list[np.ndarray], member: np.ndarray = best) -> np.ndarray:
            return np.stack(arrays)[member, np.arange(len(member))]

        codes = pick([result.rounded_codes for result in every])
        return AttackResult(
            codes=codes,
            rounded_codes=codes,
            transferred={
                name: pick([result.transferred[name] for result in every])
                for name in every[0].transferred
            },
            examples=pick([result.examples for result in every], best[self.example_rows]),
            sizes={name: pick([r.sizes[name] for r in every]) for name in every[0].sizes},
            notes={},
            seconds_per_image=sum(result.seconds_per_image for result in every),
        )

    def by_member(self, mean: Callable[[np.ndarray], float]) -> dict[str, dict[str, Any]]:
        """What each member did, in JSON's types.

        Args:
            mean: over the queries that count.
        """
        told: dict[str, dict[str, Any]] = {}
        best = self.best
        for number, (name, member) in enumerate(self.suite.members.items()):
            others = [gain for other, gain in self.gains.items() if other != name]
            forward, backward = member.passes
            told[name] = {
                "score": abs(mean(self.gains[name])),
                "worst_on": float(np.mean(best == number)),
                # What the suite would lose without it.
                "adds": mean(np.maximum(self.gains[name] - np.max(others, axis=0), 0))
                if others
                else None,
                "forward_passes": forward,
                "backward_passes": backward,
                "seconds_per_image": self.results[name].seconds_per_image,
            }
        return told


def run_members(
    model: JudgedModel,
    suite: Suite,
    *,
    parts: pathlib.Path,
    example_rows: Sequence[int] | np.ndarray = (),
    save_into: Callable[[str], Callable[[int, np.ndarray], None] | None] = lambda name: None,
    title: str = "attack",
    **arguments: Any,
) -> Outcome:
    """Attacks every query by every member; what a member has finished is not done again.

    Args:
        model: the attacked model.
        suite: its members draw their starts independently.
        parts: folder for what each member gave for each batch.
        example_rows: which queries' images to return.
        save_into: gives what saves the images of a member, by its name; or None.
        title: of the progress bars.
        **arguments: further ones of `attack_queries`.
    """
    sign = 1 if suite.targeted else -1
    rows = np.asarray(example_rows, int)
    outcome = Outcome(suite, {}, {}, {}, rows)
    for name, member in suite.members.items():
        with options.naming(f"member {name!r}"):
            target_codes = member.target_codes(model.known)
        result = model.attack(
            member,
            target_codes,
            example_rows=rows,
            save=save_into(name),
            parts=parts / name / str(jax.process_index()),
            title=f"{title}, {name}",
            **arguments,
        )
        outcome.results[name] = result
        for gains, codes in (
            (outcome.gains, result.rounded_codes),
            (outcome.float_gains, result.codes),
        ):
            gains[name] = sign * model.average_precision(codes, targeted=suite.targeted)
    return outcome


def best_codes(model: JudgedModel, *, targeted: bool) -> np.ndarray:
    """The best codes that flips of single bits lead to from the mainstay codes."""
    ranking, relevant = model.known.target_ranking if targeted else model.known.own_ranking
    criterion = attacks.Reach if targeted else attacks.Displace
    start = model.mainstay_codes(targeted=targeted) * (1 if targeted else -1)
    climb = jax.jit(lambda relevant, codes: attacks.best_codes(criterion(ranking, relevant), codes))
    parts = [slice(row, row + _AT_A_TIME) for row in range(0, len(start), _AT_A_TIME)]
    return np.concatenate([np.asarray(climb(relevant[part], start[part])) for part in parts])
