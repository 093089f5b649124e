"""The attacks that a run may name: what steers each, and how it changes an image.

An attack needs to know where to drive a code: away from, or towards, what its guides say. They
are made once for all queries of a model (mainstay codes, anchors, ...); the perturbation then
sees a batch of images with their rows of the guides.
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


class Guides(NamedTuple):
    """What steers an attack.

    Attributes:
        rows: `[num_queries, ...]`, handed to the perturbation by batches in the place of
            `target_codes`.
        theory: `[num_queries, num_bits]` the codes that the attack would reach at best; None
            if it aims at none.
        arrays: keyword arguments of the perturbation that all queries share.
        static: the same, for what is no array.
    """

    rows: np.ndarray
    theory: np.ndarray | None
    arrays: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}


class Learned(NamedTuple):
    """Guides by a network that was trained for an attack on one model.

    Attributes:
        guides: maps `[num_queries, num_classes]` target labels to guides.
        identity: what made the network, in JSON's types; part of the records' identity.
    """

    guides: Callable[[np.ndarray], Guides]
    identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What an attacker of a model knows: the model, labels, and the codes of its images.

    Attributes:
        labels: `[num_queries, num_classes]` the queries' own labels.
        target_labels: `[num_queries, num_classes]` what targeted attacks aim at.
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

    def aim(self, targeted: bool) -> np.ndarray:
        """The labels to reach, or to leave."""
        return self.target_labels if targeted else self.labels


def _voted(vote: Callable[..., Array], known: Knowledge, targeted: bool) -> Guides:
    """Guides by a vote of the training set's codes on each label vector."""
    labels = known.aim(targeted)
    bank = mainstay.group_bank(known.train_codes, known.train_labels)
    # Some at a time: a vote needs a matrix of queries by distinct label vectors.
    codes = np.concatenate(
        [np.asarray(vote(labels[row : row + 256], bank)) for row in range(0, len(labels), 256)]
    )
    return Guides(codes, codes if targeted else -codes)


def mainstay_guides(
    known: Knowledge,
    *,
    targeted: bool,
    weighting: mainstay.Weighting = "similarity",
    ties: mainstay.Ties = "positive",
) -> Guides:
    """Mainstay codes (SAAT, Theorem 1)."""
    vote = functools.partial(mainstay.mainstay_codes, weighting=weighting, ties=ties)
    return _voted(vote, known, targeted)


def center_guides(known: Knowledge, *, targeted: bool, ties: mainstay.Ties = "positive") -> Guides:
    """Centre codes of CgAT."""
    return _voted(functools.partial(mainstay.center_codes, ties=ties), known, targeted)


def own_guides(known: Knowledge, *, targeted: bool) -> Guides:
    """The queries' own soft codes, for HAG."""
    return Guides(known.soft_codes, -np.asarray(hamming.binarize(known.soft_codes)))


def relevant_guides(known: Knowledge, *, targeted: bool) -> Guides:
    """The labels, and the training codes that share one: the set that SDHA leaves or joins."""
    codes = _voted(mainstay.consensus_codes, known, targeted).rows
    if not targeted:
        # A query to which nothing is relevant flees its own code.
        own = np.asarray(hamming.binarize(known.soft_codes))
        codes = np.where(np.any(codes, axis=1, keepdims=True), codes, own)
    arrays = {"code_bank": known.train_codes, "bank_labels": known.train_labels}
    return Guides(known.aim(targeted), codes if targeted else -codes, arrays)


def anchor_guides(
    known: Knowledge, *, targeted: bool, num_codes: int, replace: bool = True
) -> Guides:
    """Anchors of P2P (one code) and DHTA (nine): a vote of database images of the target."""
    codes = mainstay.anchor_codes(
        known.target_labels,
        known.database_codes,
        known.database_labels,
        known.seed,
        num_codes=num_codes,
        replace=replace,
    )
    return Guides(codes, codes)


def _learned_guides(known: Knowledge, *, targeted: bool, learned: str) -> Guides:
    if learned not in known.learned:
        raise ValueError(f"no network {learned!r} was trained for it; got {[*known.learned]}")
    return known.learned[learned].guides(known.target_labels)


def no_guides(known: Knowledge, *, targeted: bool) -> Guides:
    """Nothing to aim at."""
    return Guides(np.zeros((len(known.labels), 1), np.float32), None)


@dataclasses.dataclass(frozen=True)
class Attack:
    """A named attack.

    Attributes:
        perturb: called like `attacks.pgd`, with a batch of the guides' rows as target codes.
        guides: maps (knowledge, targeted) to the guides of all queries.
        aims: the values of `targeted` that it has.
    """

    perturb: Callable[..., Array]
    guides: Callable[..., Guides] = mainstay_guides
    aims: tuple[bool, ...] = (False, True)


ATTACKS: dict[str, Attack] = {
    "noise": Attack(attacks.noise, no_guides),
    "mainstay": Attack(attacks.pgd),
    "fgsm": Attack(attacks.fgsm),
    "bim": Attack(attacks.bim),
    "ni_fgsm": Attack(attacks.ni_fgsm),
    "si_ni_fgsm": Attack(attacks.si_ni_fgsm),
    "vmi_fgsm": Attack(attacks.vmi_fgsm),
    "di_fgsm": Attack(attacks.di_fgsm),
    "cgat": Attack(attacks.pgd, center_guides),
    "hag": Attack(attacks.hag, own_guides, (False,)),
    "sdha": Attack(attacks.sdha, relevant_guides),
    "p2p": Attack(attacks.pgd, functools.partial(anchor_guides, num_codes=1), (True,)),
    "dhta": Attack(attacks.pgd, functools.partial(anchor_guides, num_codes=9), (True,)),
    "tha": Attack(attacks.pgd, functools.partial(_learned_guides, learned="tha"), (True,)),
    "prosgan": Attack(
        generative.generate, functools.partial(_learned_guides, learned="prosgan"), (True,)
    ),
}


# What is no option: settings of every attack, and what the guides hand to the perturbation.
_RESERVED = {"targeted", "epsilon", "start"}
_RESERVED |= {"code_bank", "bank_labels", "generator", "generator_params"}


def _options(function: Callable[..., Any]) -> dict[str, bool]:
    """The hyperparameters of a perturbation or of guides, and whether each must be given."""
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
            **options: keyword arguments of the perturbation and of the guides; and "anneal":
                whether the tanh scale follows `attacks.alpha_schedule` over the attack's
                steps, or over how many steps; else it is 1.

        Raises:
            ValueError: if there is no such attack, aim or option, or a number is wrong.
        """
        if attack not in ATTACKS:
            raise ValueError(f"unknown attack {attack!r}; expected one of {sorted(ATTACKS)}")
        method = ATTACKS[attack]
        if targeted not in method.aims:
            raise ValueError(
                f"attack {attack!r} is {'targeted' if True in method.aims else 'non-targeted'} "
                f"only; set targeted to {method.aims[0]}"
            )
        known = _options(method.perturb) | _options(method.guides)
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

    def guides(self, known: Knowledge) -> Guides:
        """The guides of all queries."""
        make = ATTACKS[self.attack].guides
        return make(known, targeted=self.targeted, **self._of(make))

    def build(self, encode_fn: networks.EncodeFn, guides: Guides) -> Callable[..., Array]:
        """The perturbation as a function of (variables, images, guide rows, keys, **arrays)."""
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
            **guides.static,
            **options,
        )

    def _of(self, function: Callable[..., Any]) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if k in _options(function)}
