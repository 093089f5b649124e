"""The attacks that a run may name: what steers each, and how it changes an image.

An attack needs to know where to drive a code: away from, or towards, its target codes. They are
made once for all queries of a model (mainstay codes, anchors, ...), from what the attacker knows;
the perturbation then sees a batch of images with their rows of the target codes.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from saat_jax import attacks, generative, hamming, mainstay, networks

Array = jax.Array


class TargetCodes(NamedTuple):
    """What steers an attack.

    Attributes:
        codes: `[num_queries, ...]`, handed to the perturbation by batches as its `target_codes`;
            what stands in their place may be the labels (SDHA) or their semantics (ProS-GAN).
        theory: `[num_queries, num_bits]` the codes that the attack would reach at best; None
            if it has none.
        arrays: keyword arguments of the perturbation that all queries share.
        static: the same, for what is no array.
    """

    codes: np.ndarray
    theory: np.ndarray | None
    arrays: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}


class Learned(NamedTuple):
    """Target codes by a network that was trained for an attack on one model.

    Attributes:
        target_codes: maps `[num_queries, num_classes]` target labels to target codes.
        identity: what made the network, in JSON's types; part of the records' identity.
    """

    target_codes: Callable[[np.ndarray], TargetCodes]
    identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AttackerKnowledge:
    """What an attacker of a model knows: the model, labels, and the codes of its images.

    Attributes:
        labels: `[num_queries, num_classes]` the queries' own labels.
        target_labels: `[num_queries, num_classes]` what targeted attacks are to reach.
        soft_codes: `[num_queries, num_bits]` in (-1, 1), of the untouched queries.
        train_codes: `[num_train, num_bits]` in {-1, +1}.
        train_labels: `[num_train, num_classes]`.
        database_codes: `[num_database, num_bits]` in {-1, +1}.
        database_labels: `[num_database, num_classes]`.
        seed: of what is drawn from them.
        learned: the networks trained for attacks by name, which is the attack's ("tha",
            "prosgan") or its option `learned`.
    """

    labels: np.ndarray
    target_labels: np.ndarray
    soft_codes: np.ndarray
    train_codes: np.ndarray
    train_labels: np.ndarray
    database_codes: np.ndarray
    database_labels: np.ndarray
    seed: int
    learned: Mapping[str, Learned] = dataclasses.field(default_factory=dict)

    def labels_for(self, targeted: bool) -> np.ndarray:
        """The labels to reach if targeted, or to leave. `[num_queries, num_classes]`"""
        return self.target_labels if targeted else self.labels


def _voted(vote: Callable[..., Array], known: AttackerKnowledge, targeted: bool) -> TargetCodes:
    """Target codes by a vote of the training set's codes on each label vector."""
    labels = known.labels_for(targeted)
    bank = mainstay.group_bank(known.train_codes, known.train_labels)
    # Some at a time: a vote needs a matrix of queries by distinct label vectors.
    codes = np.concatenate(
        [np.asarray(vote(labels[row : row + 256], bank)) for row in range(0, len(labels), 256)]
    )
    return TargetCodes(codes, codes if targeted else -codes)


def mainstay_target_codes(
    known: AttackerKnowledge,
    *,
    targeted: bool,
    weighting: mainstay.Weighting = "similarity",
    ties: mainstay.Ties = "positive",
) -> TargetCodes:
    """Mainstay codes (SAAT, Theorem 1)."""
    vote = functools.partial(mainstay.mainstay_codes, weighting=weighting, ties=ties)
    return _voted(vote, known, targeted)


def center_target_codes(
    known: AttackerKnowledge, *, targeted: bool, ties: mainstay.Ties = "positive"
) -> TargetCodes:
    """Centre codes of CgAT."""
    return _voted(functools.partial(mainstay.center_codes, ties=ties), known, targeted)


def own_target_codes(known: AttackerKnowledge, *, targeted: bool) -> TargetCodes:
    """The queries' own soft codes, for HAG."""
    return TargetCodes(known.soft_codes, -np.asarray(hamming.binarize(known.soft_codes)))


def relevant_target_codes(known: AttackerKnowledge, *, targeted: bool) -> TargetCodes:
    """The labels, and the training codes that share one: the set that SDHA leaves or joins."""
    codes = _voted(mainstay.consensus_codes, known, targeted).codes
    if not targeted:
        # A query to which nothing is relevant flees its own code.
        own = np.asarray(hamming.binarize(known.soft_codes))
        codes = np.where(np.any(codes, axis=1, keepdims=True), codes, own)
    arrays = {"code_bank": known.train_codes, "bank_labels": known.train_labels}
    return TargetCodes(known.labels_for(targeted), codes if targeted else -codes, arrays)


def anchor_target_codes(
    known: AttackerKnowledge, *, targeted: bool, num_codes: int, replace: bool = True
) -> TargetCodes:
    """Anchors of P2P (one code) and DHTA (nine): a vote of database images of the target."""
    codes = mainstay.anchor_codes(
        known.target_labels,
        known.database_codes,
        known.database_labels,
        known.seed,
        num_codes=num_codes,
        replace=replace,
    )
    return TargetCodes(codes, codes)


def _learned_target_codes(known: AttackerKnowledge, *, targeted: bool, learned: str) -> TargetCodes:
    if learned not in known.learned:
        raise ValueError(f"no network {learned!r} was trained for it; got {[*known.learned]}")
    return known.learned[learned].target_codes(known.target_labels)


def no_target_codes(known: AttackerKnowledge, *, targeted: bool) -> TargetCodes:
    """None: the attack does not look at codes."""
    return TargetCodes(np.zeros((len(known.labels), 1), np.float32), None)


@dataclasses.dataclass(frozen=True)
class Attack:
    """A named attack.

    Attributes:
        perturb: called like `attacks.pgd`, with a batch of the rows of `TargetCodes.codes`.
        target_codes: maps (attacker knowledge, targeted) to those of all queries.
        targeted: the values of `targeted` that it takes.
    """

    perturb: Callable[..., Array]
    target_codes: Callable[..., TargetCodes] = mainstay_target_codes
    targeted: tuple[bool, ...] = (False, True)


ATTACKS: dict[str, Attack] = {
    "noise": Attack(attacks.noise, no_target_codes),
    "mainstay": Attack(attacks.pgd),
    "fgsm": Attack(attacks.fgsm),
    "bim": Attack(attacks.bim),
    "ni_fgsm": Attack(attacks.ni_fgsm),
    "si_ni_fgsm": Attack(attacks.si_ni_fgsm),
    "vmi_fgsm": Attack(attacks.vmi_fgsm),
    "di_fgsm": Attack(attacks.di_fgsm),
    "cgat": Attack(attacks.pgd, center_target_codes),
    "hag": Attack(attacks.hag, own_target_codes, (False,)),
    "sdha": Attack(attacks.sdha, relevant_target_codes),
    "p2p": Attack(attacks.pgd, functools.partial(anchor_target_codes, num_codes=1), (True,)),
    "dhta": Attack(attacks.pgd, functools.partial(anchor_target_codes, num_codes=9), (True,)),
    "tha": Attack(attacks.pgd, functools.partial(_learned_target_codes, learned="tha"), (True,)),
    "prosgan": Attack(
        generative.generate, functools.partial(_learned_target_codes, learned="prosgan"), (True,)
    ),
}


# What is no option: settings of every attack, and what `TargetCodes` hands to the perturbation.
_RESERVED = {"targeted", "epsilon", "start"}
_RESERVED |= {"code_bank", "bank_labels", "generator", "generator_params"}


def _options(function: Callable[..., Any]) -> dict[str, bool]:
    """The hyperparameters of a perturbation or of target codes, and whether each must be given."""
    parameters = inspect.signature(function).parameters.values()
    return {
        {"alphas": "anneal"}.get(p.name, p.name): p.default is p.empty
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in _RESERVED
    }


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An attack of a suite, by name and hyperparameters; see `create`."""

    attack: str
    targeted: bool
    epsilon: float | None
    options: Mapping[str, Any]

    @classmethod
    def create(
        cls, *, attack: str, targeted: bool, epsilon: float | None, **options: Any
    ) -> "AttackSettings":
        """Checks an attack's name and hyperparameters.

        Args:
            attack: one of `ATTACKS`.
            targeted: towards the target labels, or away from the own labels.
            epsilon: radius of the ball in units of [0, 1]; None for an attack without one.
            **options: keyword arguments of the perturbation and of the target codes; and "anneal":
                whether the tanh scale follows `attacks.alpha_schedule` over the attack's
                steps, or over how many steps; else it is 1.

        Raises:
            ValueError: if there is no such attack or option, the attack takes another `targeted`
                only, or a number is wrong.
        """
        if attack not in ATTACKS:
            raise ValueError(f"unknown attack {attack!r}; expected one of {sorted(ATTACKS)}")
        method = ATTACKS[attack]
        if targeted not in method.targeted:
            raise ValueError(
                f"attack {attack!r} is {'targeted' if True in method.targeted else 'non-targeted'} "
                f"only; set targeted to {method.targeted[0]}"
            )
        known = _options(method.perturb) | _options(method.target_codes)
        needed = {name for name, must in known.items() if must}
        if set(options) - set(known) or needed - set(options):
            raise ValueError(
                f"attack {attack!r} takes the options {sorted(known)} and needs {sorted(needed)}, "
                f"got {sorted(options)}"
            )
        # ProS-GAN alone may do without a ball.
        if (epsilon is None and attack != "prosgan") or (epsilon or 0) < 0:
            raise ValueError(f"epsilon of attack {attack!r} must be 0 or more, got {epsilon}")
        if options.get("num_steps", 1) < 0:
            raise ValueError(f"num_steps must not be negative, got {options['num_steps']}")
        if "loss" in options:
            attacks.code_loss(options["loss"], targeted=targeted)
            if options["loss"] == "pooled":
                raise ValueError(
                    "loss 'pooled' makes an image depend on its batch mates, the records of a "
                    "suite must not; take 'focused', or call the attack's function with it"
                )
        if "direction" in options:
            attacks.check_direction(options["direction"])
        anneal = options.get("anneal", False)
        if not isinstance(anneal, bool) and anneal < options["num_steps"]:
            raise ValueError(
                f"anneal must be True, False or at least num_steps = {options['num_steps']}, "
                f"got {anneal}"
            )
        return cls(attack, targeted, epsilon, options)

    @property
    def learned(self) -> str:
        """The name of the network trained for the attack, if it needs one."""
        return self.options.get("learned", self.attack)

    def asdict(self) -> dict[str, Any]:
        """All settings by name, in JSON's types."""
        return {
            "attack": self.attack,
            "targeted": self.targeted,
            "epsilon": self.epsilon,
            **self.options,
        }

    def target_codes(self, known: AttackerKnowledge) -> TargetCodes:
        """The target codes of all queries."""
        make = ATTACKS[self.attack].target_codes
        return make(known, targeted=self.targeted, **self._of(make))

    def build(
        self, encode_fn: networks.EncodeFn, target_codes: TargetCodes
    ) -> Callable[..., Array]:
        """The perturbation as a function of (variables, images, target codes, keys, **arrays)."""
        perturb = ATTACKS[self.attack].perturb
        options = self._of(perturb)
        if anneal := options.pop("anneal", False):
            over = options["num_steps"] if anneal is True else anneal
            options["alphas"] = attacks.alpha_schedule(over)[: options["num_steps"]]
        return functools.partial(
            perturb,
            encode_fn,
            targeted=self.targeted,
            epsilon=self.epsilon,
            **target_codes.static,
            **options,
        )

    def _of(self, function: Callable[..., Any]) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if k in _options(function)}
