"""Flags: when not to believe a robustness number.

A flag is raised by a test of a model, or of what attacks made of its queries. It stands in the
record, with what was measured, what that means and what to do, beside the number that it spoils.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks, datasets, options
from saat_jax.evaluation.crafting import AttackResult
from saat_jax.evaluation.judging import JudgedModel
from saat_jax.evaluation.methods import ATTACKS, TargetCodes
from saat_jax.evaluation.worst_case import Outcome

Array = jax.Array


class Flag(NamedTuple):
    """What a flag says.

    Attributes:
        limit: the flag is raised by what is above.
        meaning: of the value, in words.
        advice: what to do about it.
    """

    limit: float
    meaning: str
    advice: str


# By name, as in the records.
FLAGS: options.Choices[Flag] = options.Choices(
    "flag",
    {
        "no_gradient": Flag(
            0.0,
            "share of the queries on which the search began without a gradient",
            "something in the encoder rounds or detaches; attack it through a smooth stand-in",
        ),
        "unstable_gradient": Flag(
            0.5,
            "mean relative change of the loss by noise within the ball",
            "the loss is too rough for its gradient; average it over noise, or take more starts",
        ),
        "silent_success": Flag(
            0.02,
            "share of the queries whose image was better for the attacker while it was crafted",
            "the encoder is not the same function twice; average it over its chance",
        ),
        "not_converged": Flag(
            0.05,
            "share of what the search gained that came in its last tenth",
            "more steps will find more",
        ),
        "transfer_wins": Flag(
            0.02,
            "share of the queries on which images crafted elsewhere are better for the attacker",
            "the gradient of this model misleads; believe the images, and search from them",
        ),
        "gradient_free_wins": Flag(
            0.002,
            "share of the queries on which an attack without gradients is clearly better",
            "the gradient is masked; believe the attack without gradients, with more queries",
        ),
        "unbounded_fails": Flag(
            0.1,
            "how much of the way an attack without bounds has left",
            "an attack that may paint the image anew must win; look for what hides the gradient",
        ),
        "not_monotone": Flag(
            0.02,
            "how much less an attack did with a larger ball",
            "a larger ball holds the smaller one; look for what hides the gradient",
        ),
        "runtime_differs": Flag(
            0.001,
            "share of the bits in which what is attacked differs from the encoder's own runtime",
            "the attack aims beside the mark; look at sizes, colours and versions",
        ),
        "random_output": Flag(
            0.0,
            "share of the images with other outputs when encoded again",
            "judge the mean over the encoder's chance, and attack through it",
        ),
        "saturated": Flag(
            0.5,
            "share of the bits where tanh is flat, |logit| above 5 at alpha 1",
            "attacks on tanh itself have no gradient there; believe only the suite, on logits",
        ),
        "lost_in_8_bits": Flag(
            0.02,
            "share of the queries on which rounding to 8 bits lost the attack more than 0.05",
            "believe the number of the images as floats too, or search on rounded images",
        ),
        "near_chance": Flag(
            -0.05,
            "what the clean score is below one of 5 points above chance",
            "the model hardly retrieves; train it before its robustness is judged",
        ),
        "moved_nothing": Flag(
            0.999,
            "share of the queries whose code the attack left as it was",
            "the attack did nothing; look at its settings and at the gradient",
        ),
    },
)
# Queries by which a model is tested beside the suite, and directions of noise.
_NUM_TESTED, _NUM_DIRECTIONS = 32, 100
# Of a difference in average precision that counts as one.
_CLEAR = 0.02
_FLAT = 5.0


def raised(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """Of measured values by flag, those that raise it, in the order of `FLAGS`."""
    return [
        {"flag": name, "value": round(float(values[name]), 6), **FLAGS[name]._asdict()}
        for name in FLAGS
        if name in values and not values[name] <= FLAGS[name].limit
    ]


class ModelTests:
    """The tests of a model that need no suite, on some of its queries; each is made once.

    Args:
        model: the model.
    """

    def __init__(self, model: JudgedModel):
        self._model = model
        self._rows = np.arange(min(_NUM_TESTED, len(model.dataset.query)))

    @functools.cached_property
    def images(self) -> Array:
        """The queries. `[num_tested, height, width, channels]`"""
        dataset = self._model.dataset
        return jnp.asarray(
            datasets.load_images(
                dataset.query, self._rows, image_size=dataset.image_size, resize=dataset.resize
            )
        )

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """Values of the flags of the model itself."""
        encode_fn, variables = self._model.encoder
        encoder = jax.jit(encode_fn)
        again = [np.asarray(encoder(variables, self.images, 1.0)) for _ in range(5)]
        differ = np.any(np.stack(again) != again[0], axis=(0, 2))
        size = np.abs(self._model.known.soft_codes)
        return {
            "random_output": float(np.mean(differ)),
            "saturated": float(np.mean(size > np.tanh(_FLAT))),
        }

    @property
    def whole_ranking(self) -> bool:
        """Whether searches rank all of the database, not some of its distinct codes."""
        known = self._model.known
        return float(np.sum(known.own_ranking[0].counts)) == len(known.database_codes)

    def near_chance(self) -> dict[str, float]:
        """How the clean score stands to that of random codes."""
        model = self._model
        rows = model.protocol.judged_rows(model.known.labels)
        chance = datasets.relevant_share(model.known.labels[rows], model.known.database_labels)
        clean = model.map_at_k(model.benign_codes, targeted=False)
        # Of a data set in which nearly all is relevant, chance is all there is.
        return {"near_chance": min(0.05, 0.5 * (1 - chance)) - 0.05 - (clean - chance)}

    def of_ball(self, epsilon: float, inside: np.ndarray, *, targeted: bool) -> dict[str, float]:
        """Values of the flags about the loss within a ball, and about an attack without one.

        Args:
            epsilon: radius of the ball.
            inside: `[num_queries]` how good the suite's images are for the attacker.
            targeted: as of the suite.
        """
        source = ATTACKS["auto_pgd"].targets
        target_codes = source.make(self._model.known, targeted=targeted, aim="votes", restart=0)
        aim = jax.tree.map(lambda array: jnp.asarray(array[self._rows]), target_codes.codes)
        return {
            "unstable_gradient": self._unstable_gradient(epsilon, aim.weights),
            **self._unbounded(inside, aim, target_codes, targeted=targeted),
        }

    def _unstable_gradient(self, epsilon: float, weights: Array) -> float:
        known, (encode_fn, variables) = self._model.known, self._model.encoder

        def loss_of(images: Array) -> Array:
            logits = attacks.logits_of(encode_fn, variables, images, known.logit_scale)
            return attacks.weighted_loss(logits, weights, sharpness=1.0)

        @jax.jit
        def changes(images: Array) -> Array:
            here = loss_of(images)

            def change(key: Array) -> Array:
                noise = attacks.uniform_noise(key, images, epsilon=epsilon)
                there = loss_of(attacks.project(images + noise, images, epsilon=epsilon))
                return jnp.minimum(jnp.abs(there - here) / jnp.maximum(jnp.abs(here), 1e-6), 1)

            keys = jax.random.split(jax.random.key(self._model.protocol.seed), _NUM_DIRECTIONS)
            return jnp.mean(jax.lax.map(change, keys))

        return float(changes(self.images))

    def _unbounded(
        self, inside: np.ndarray, aim: attacks.Aim, target_codes: TargetCodes, *, targeted: bool
    ) -> dict[str, float]:
        model = self._model
        criterion = target_codes.static["criterion"](target_codes.arrays["shared"], aim.rows)
        search = functools.partial(
            attacks.auto_pgd_search,
            model.encoder.encode_fn,
            targeted=targeted,
            epsilon=1.0,
            num_steps=100,
            flips=True,
            **target_codes.static,
        )
        found = jax.jit(search)(
            model.encoder.variables,
            self.images,
            aim,
            jax.random.key(model.protocol.seed),
            **target_codes.arrays,
        )
        clean = np.mean(np.asarray(criterion.gain(model.benign_codes[self._rows])))
        best = attacks.best_codes(criterion, -np.sign(aim.weights + 1e-12))
        most = np.mean(np.asarray(criterion.gain(best)))
        reached = np.mean(np.asarray(found.gain))
        values = {"unbounded_fails": float((most - reached) / max(most - clean, 1e-6))}
        # Else the search saw another average precision than the one that counts.
        if self.whole_ranking:
            values["not_monotone"] = float(np.mean(inside[self._rows]) - reached)
        return values


def of_attack(
    model: JudgedModel, result: AttackResult, scores: np.ndarray, rounded: np.ndarray, sign: int
) -> dict[str, float]:
    """Values of the flags of one attack.

    Args:
        model: the attacked model.
        result: what the attack made.
        scores: `[num_queries]` average precision of the images as floats.
        rounded: the same of 8-bit images.
        sign: +1 if the attacker wants it high, else -1.
    """
    return {
        "lost_in_8_bits": float(np.mean(sign * (scores - rounded) > 0.05)),
        "moved_nothing": float(np.mean(np.all(result.codes == model.benign_codes, axis=1))),
    }


def of_suite(outcome: Outcome, tests: ModelTests) -> dict[str, float]:
    """Values of the flags of a suite, and of those tests of the model that need its ball."""
    suite, results, gains = outcome.suite, outcome.results, outcome.gains

    def share_won(names: list[str], others: list[str]) -> float:
        if not names or not others:
            return 0.0
        ahead, behind = (np.max([gains[n] for n in each], axis=0) for each in (names, others))
        return float(np.mean(ahead - behind > _CLEAR))

    by_gradient = [n for n in results if results[n].notes and suite.members[n].passes[1]]
    without = [n for n in results if results[n].notes and n not in by_gradient]
    elsewhere = ("images", "surrogate")
    given = [n for n in results if suite.members[n].attack in elsewhere]
    values = {
        "gradient_free_wins": share_won(without, by_gradient),
        "transfer_wins": share_won(given, [n for n in results if n not in given]),
    }
    if by_gradient:
        first, settled, last, blind = (
            np.stack([results[n].notes[field] for n in by_gradient])
            for field in ("first_gain", "settled_gain", "gain", "blind")
        )
        # Of all together: what one member has not settled another may have found before.
        late = np.mean(last.max(axis=0) - settled.max(axis=0))
        values["not_converged"] = late / max(np.mean(last.max(axis=0) - first.mean(axis=0)), 1e-6)
        # To an image without a label nothing is relevant: only some losses have a gradient there.
        values["no_gradient"] = float(np.mean(np.all(blind, axis=0)))
        worst = np.max([*gains.values()], axis=0)
        values |= tests.of_ball(suite.epsilon or 0.0, worst, targeted=suite.targeted)
        if tests.whole_ranking:
            lost = last - np.stack([outcome.float_gains[n] for n in by_gradient])
            values["silent_success"] = float(np.mean(lost > _CLEAR))
    return values
