"""The attacks that a run may name: what steers each, and how it changes an image.

An attack needs to know where to drive a code: away from, or towards, its target codes. They are
made once for all queries of a model (mainstay codes, anchors, ...), from what the attacker knows;
the perturbation then sees a batch of images with their rows of the target codes.
"""

import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from saat_jax import attacks, generative, hamming, mainstay, options
from saat_jax.datasets.images import open_image

Array = jax.Array

# Distinct codes of a database that a search looks at; of more, so many stand for all.
_MAX_CODES = 4096


class TargetCodes(NamedTuple):
    """What steers an attack.

    Attributes:
        codes: `[num_queries, ...]`, or a tree of such, handed to the perturbation by batches as
            its `target_codes`; what stands in their place may be the labels (SDHA), their
            semantics (ProS-GAN) or the aim of a search.
        theory: `[num_queries, num_bits]` the codes that the attack would reach at best; None
            if it has none.
        arrays: keyword arguments of the perturbation that all queries share.
        static: the same, for what is no array.
    """

    codes: Any
    theory: np.ndarray | None
    arrays: Mapping[str, Any] = {}
    static: Mapping[str, Any] = {}


class Learned(NamedTuple):
    """Target codes by a network that was trained for an attack on one model, or before it.

    Attributes:
        target_codes: maps `[num_queries, num_classes]` labels, and whether they are to be
            reached, to target codes.
        identity: what made the network, in JSON's types; part of the records' identity.
    """

    target_codes: Callable[[np.ndarray, bool], TargetCodes]
    identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AttackerKnowledge:
    """What an attacker of a model knows: the model, labels, and the codes of its images.

    Attributes:
        labels: `[num_queries, num_classes]` the queries' own labels.
        target_labels: `[num_queries, num_classes]` what targeted attacks are to reach; None if
            none is made.
        soft_codes: `[num_queries, num_bits]` in (-1, 1), of the untouched queries.
        train_codes: `[num_train, num_bits]` in {-1, +1}.
        train_labels: `[num_train, num_classes]`.
        database_codes: `[num_database, num_bits]` in {-1, +1}.
        database_labels: `[num_database, num_classes]`.
        seed: of what is drawn from them.
        learned: the networks trained for attacks by name, which is the attack's ("tha",
            "prosgan") or its option `learned`.
        k: length of the list by which the codes are judged; None for the whole database.
        normalizer: of the average precision, see `retrieval.average_precision`.
        measure_logits: gives the scale of the model's logits.
    """

    labels: np.ndarray
    target_labels: np.ndarray | None
    soft_codes: np.ndarray
    train_codes: np.ndarray
    train_labels: np.ndarray
    database_codes: np.ndarray
    database_labels: np.ndarray
    seed: int
    learned: Mapping[str, Learned] = dataclasses.field(default_factory=dict)
    k: int | None = None
    normalizer: str = "hits"
    measure_logits: Callable[[], attacks.LogitScale] | None = None

    @functools.cached_property
    def logit_scale(self) -> attacks.LogitScale:
        """The scale of the model's logits."""
        if self.measure_logits is None:
            raise ValueError("a search needs measure_logits, got None; attacker_knowledge has it")
        return self.measure_logits()

    @functools.cached_property
    def own_ranking(self) -> tuple[attacks.Ranking, np.ndarray]:
        """The database's codes, and what of them is relevant to each query."""
        return self._rank(self.labels)

    @functools.cached_property
    def target_ranking(self) -> tuple[attacks.Ranking, np.ndarray]:
        """The same, and what of them has a target label."""
        return self._rank(self.labels_for(True))

    def _rank(self, labels: np.ndarray) -> tuple[attacks.Ranking, np.ndarray]:
        return attacks.rank(
            labels,
            self.database_codes,
            self.database_labels,
            k=self.k,
            normalizer=self.normalizer,
            max_codes=_MAX_CODES,
        )

    def labels_for(self, targeted: bool) -> np.ndarray:
        """The labels to reach if targeted, or to leave. `[num_queries, num_classes]`"""
        if not targeted:
            return self.labels
        if self.target_labels is None:
            raise ValueError("a targeted attack needs target_labels; draw them for all queries")
        return self.target_labels


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
        known.labels_for(True),
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
    return known.learned[learned].target_codes(known.labels_for(targeted), targeted)


def no_target_codes(known: AttackerKnowledge, *, targeted: bool) -> TargetCodes:
    """None: the attack does not look at codes."""
    return TargetCodes(np.zeros((len(known.labels), 1), np.float32), None)


def _mainstay_votes(known: AttackerKnowledge, targeted: bool) -> np.ndarray:
    """Unrounded, of a mean size of one."""
    votes = np.asarray(_voted(mainstay.mainstay_votes, known, targeted).codes)
    size = np.abs(votes).mean(axis=1, keepdims=True)
    return votes / np.where(size > 0, size, 1)


def _consensus(known: AttackerKnowledge, targeted: bool) -> np.ndarray:
    theory = relevant_target_codes(known, targeted=targeted).theory
    assert theory is not None
    return theory if targeted else -theory


# By name, the bits' weights of a search, of (attacker knowledge, targeted): `[num_queries,
# num_bits]`, to be approached if targeted, else to be left.
AIMS: options.Choices[Callable[[AttackerKnowledge, bool], np.ndarray]] = options.Choices(
    "aim",
    {
        "votes": _mainstay_votes,
        "mainstay": lambda known, targeted: mainstay_target_codes(known, targeted=targeted).codes,
        "consensus": _consensus,
        "own": lambda known, targeted: np.asarray(hamming.binarize(known.soft_codes)),
    },
)


def aim_of_search(
    known: AttackerKnowledge, *, targeted: bool, aim: str, restart: int
) -> TargetCodes:
    """What steers a search: weights of the bits, and the ranking that is to change."""
    if aim == "own" and targeted:
        raise ValueError("aim 'own' is that of attacks with targeted=False only; take 'votes'")
    ranking, relevant = known.target_ranking if targeted else known.own_ranking
    sign = np.float32(1 if targeted else -1)
    weights: Any = -sign * np.asarray(AIMS[aim](known, targeted), np.float32)
    scale: Any = jax.tree.map(np.float32, known.logit_scale)
    arrays = {"shared": (ranking, sign), "scale": scale, "restart": np.uint32(restart)}
    rows = attacks.Aim(weights, relevant)
    return TargetCodes(rows, None, arrays, {"criterion": _average_precision})


def _average_precision(shared: Any, relevant: Array) -> attacks.AveragePrecision:
    ranking, sign = shared
    return attacks.AveragePrecision(ranking, relevant, sign)


def _search_on_surrogate(
    encode_fn: hamming.EncodeFn,
    variables: Any,
    images: Array,
    aim: attacks.Aim,
    rng: Array,
    *,
    surrogate_fn: hamming.EncodeFn,
    surrogate: Any,
    **arguments: Any,
) -> Array:
    """Searches on another model, which `judging.surrogate` gives, for images to be judged here."""
    return attacks.auto_pgd_search(
        surrogate_fn, surrogate, images, aim, rng, flips=True, **arguments
    ).images


def images_of_folder(known: AttackerKnowledge, *, targeted: bool, folder: str) -> TargetCodes:
    """Images crafted elsewhere: for each query a PNG by its row, as `save_images` writes them."""
    place = pathlib.Path(folder)
    paths = [place / f"{row:06d}.png" for row in range(len(known.labels))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(
            f"{place} lacks the images of {len(missing)} of {len(paths)} queries, the first being "
            f"{missing[0]}; each is named by the query's row and is an 8-bit PNG"
        )
    try:
        images = [np.asarray(open_image(str(path)).convert("RGB")) for path in paths]
    except OSError as error:
        raise ValueError(f"{place}: an image cannot be read: {error}") from error
    if len(shapes := {image.shape for image in images}) > 1:
        raise ValueError(f"{place} must hold images of one size, got {sorted(shapes)}")
    return TargetCodes(np.stack(images), None)


def _given_images(
    encode_fn: hamming.EncodeFn,
    variables: Any,
    images: Array,
    crafted: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
) -> Array:
    """What was crafted elsewhere; whether it is inside the ball is checked as of all attacks."""
    if crafted.shape != images.shape:
        raise ValueError(
            f"the crafted images must be of the queries' size {images.shape[1:]}, got "
            f"{crafted.shape[1:]}"
        )
    return crafted.astype(np.float32) / 255


class TargetSource(NamedTuple):
    """Where an attack's target codes are from.

    Attributes:
        make: maps (attacker knowledge, targeted, **options) to those of all queries.
        options: its options, with their defaults; `...` for one that must be given.
    """

    make: Callable[..., TargetCodes]
    options: Mapping[str, Any] = {}


MAINSTAY = TargetSource(mainstay_target_codes, {"weighting": "similarity", "ties": "positive"})
_AIM = TargetSource(aim_of_search, {"aim": "votes", "restart": 0})


def _passes_of_steps(given: Mapping[str, Any]) -> tuple[int, int]:
    """A forward and a backward pass a step, of each copy or neighbour too."""
    copies = given.get("num_scales", 1) + given.get("num_neighbors", 0)
    passes = given.get("num_steps", 1) * copies
    return passes, passes


@dataclasses.dataclass(frozen=True)
class Attack:
    """A named attack, whose options are listed here once, for the checks and for docs/attacks.md.

    Attributes:
        perturb: called like `attacks.pgd`, with a batch of the rows of `TargetCodes.codes`; a
            search returns what it has found.
        targets: where they are from.
        targeted: the values of `targeted` that it takes.
        options: of `perturb`, with their defaults; `...` for one that must be given. With
            "anneal" it is called with `alphas`, see `AttackSettings.create`.
        needs_epsilon: whether it must have a ball.
        words: what some options may be, where it is not what it is elsewhere.
        passes: how often the network is run forward and backward for an image, by the options.
    """

    perturb: Callable[..., Array | attacks.Found]
    targets: TargetSource = MAINSTAY
    targeted: tuple[bool, ...] = (False, True)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs_epsilon: bool = True
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    passes: Callable[[Mapping[str, Any]], tuple[int, int]] = _passes_of_steps

    @property
    def all_options(self) -> dict[str, Any]:
        """Those of the perturbation and of the target codes."""
        return {**self.options, **self.targets.options}


def _universal(
    encode_fn: hamming.EncodeFn,
    variables: Any,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float | None,
    num_steps: int,
    patch: float,
    perturbations: Array,
) -> Array:
    """Images with the perturbation that was learned for all of their target label."""
    del encode_fn, variables, rng, targeted, num_steps
    mask = attacks.patch_mask(*images.shape[1:3], share=patch) if patch else None
    put_on = functools.partial(attacks.put_on, epsilon=epsilon or 0.0, mask=mask)
    return jax.vmap(lambda image, row: put_on(image[None], perturbations[row])[0])(
        images, target_codes
    )


_STEPS = {"step_size": ..., "num_steps": ..., "loss": "focused", "anneal": False}
_PGD = {**_STEPS, "direction": "sign", "random_start": True, "norm": "linf"}
_MOMENTUM = {**_STEPS, "decay": 1.0}
_ONLY_TARGETED = (True,)


def _anchors(num_codes: int) -> TargetSource:
    return TargetSource(anchor_target_codes, {"num_codes": num_codes, "replace": True})


def _learned(name: str) -> TargetSource:
    return TargetSource(_learned_target_codes, {"learned": name})


# Add one of your own by `ATTACKS.register("mine", Attack(function))`.
ATTACKS: options.Choices[Attack] = options.Choices(
    "attack",
    {
        "noise": Attack(attacks.noise, TargetSource(no_target_codes), passes=lambda given: (0, 0)),
        "mainstay": Attack(attacks.pgd, options=_PGD),
        "fgsm": Attack(attacks.fgsm, options={"loss": "focused", "alpha": 0.1}),
        "bim": Attack(attacks.bim, options={**_PGD, "random_start": False}),
        "ni_fgsm": Attack(attacks.ni_fgsm, options={**_MOMENTUM, "num_scales": 1}),
        "si_ni_fgsm": Attack(attacks.si_ni_fgsm, options={**_MOMENTUM, "num_scales": 5}),
        "vmi_fgsm": Attack(
            attacks.vmi_fgsm, options={**_MOMENTUM, "num_neighbors": 5, "beta": 1.5}
        ),
        "di_fgsm": Attack(
            attacks.di_fgsm,
            options={**_STEPS, "decay": 0.0, "probability": 0.5, "resize_rate": 0.9},
        ),
        "cgat": Attack(
            attacks.pgd, TargetSource(center_target_codes, {"ties": "positive"}), options=_PGD
        ),
        "hag": Attack(
            attacks.hag,
            TargetSource(own_target_codes),
            (False,),
            {
                "num_steps": ...,
                "anneal": False,
                "learning_rate": 100.0,
                "momentum": 0.9,
                "threshold": 0.5,
                "balance_weight": 1.0,
                "batch_scale": 128,
            },
        ),
        "sdha": Attack(
            attacks.sdha,
            TargetSource(relevant_target_codes),
            options={
                "num_steps": ...,
                "anneal": False,
                "learning_rate": 0.01,
                "surrogate_weight": 25.0,
                "batch_scale": 128,
            },
        ),
        "p2p": Attack(attacks.pgd, _anchors(1), _ONLY_TARGETED, _PGD),
        "dhta": Attack(attacks.pgd, _anchors(9), _ONLY_TARGETED, _PGD),
        "tha": Attack(attacks.pgd, _learned("tha"), _ONLY_TARGETED, _PGD),
        "prosgan": Attack(
            generative.generate,
            _learned("prosgan"),
            _ONLY_TARGETED,
            needs_epsilon=False,
            passes=lambda given: (0, 0),
        ),
        "surrogate": Attack(
            _search_on_surrogate, _learned("surrogate"), options={"num_steps": ...}
        ),
        "universal": Attack(
            _universal,
            _learned("universal"),
            options={"num_steps": ..., "patch": 0.0},
            needs_epsilon=False,
            passes=lambda given: (0, 0),
        ),
        "images": Attack(
            _given_images,
            TargetSource(images_of_folder, {"folder": ...}),
            passes=lambda given: (0, 0),
        ),
        "auto_pgd": Attack(
            attacks.auto_pgd_search,
            _AIM,
            options={"num_steps": ..., "loss": "weighted", "flips": False},
            words={"loss": attacks.SEARCH_LOSSES},
            passes=lambda given: (given["num_steps"] + 1,) * 2,
        ),
        "square": Attack(
            attacks.square_search,
            _AIM,
            options={"num_queries": ...},
            passes=lambda given: (given["num_queries"] + 1, 0),
        ),
    },
)

# The words that an option may be.
_WORDS: dict[str, options.Choices[Any]] = {
    "loss": attacks.CODE_LOSSES,
    "direction": attacks.STEP_RULES,
    "norm": attacks.NORMS,
    "weighting": options.Choices("weighting", dict.fromkeys(typing.get_args(mainstay.Weighting))),
    "ties": options.Choices("ties", dict.fromkeys(typing.get_args(mainstay.Ties))),
    "aim": AIMS,
}


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An attack of a suite, by name and the options that are given; see `create`."""

    attack: str
    targeted: bool
    epsilon: float | None
    options: Mapping[str, Any]

    @classmethod
    def create(
        cls, *, attack: str, targeted: bool, epsilon: float | None, **given: Any
    ) -> "AttackSettings":
        """Checks an attack's name and options.

        Args:
            attack: one of `ATTACKS`.
            targeted: towards the target labels, or away from the own labels.
            epsilon: radius of the ball in units of [0, 1]; None for an attack without one.
            **given: options that the attack declares; "anneal" says whether the tanh scale
                follows `attacks.alpha_schedule` over the attack's steps, or over how many
                steps; else it is 1.

        Raises:
            ValueError: if there is no such attack or option, one is missing, the attack takes
                another `targeted` only, or a value is none that the option can have.
        """
        method = ATTACKS[attack]
        if not isinstance(targeted, bool) or targeted not in method.targeted:
            kind = "targeted" if True in method.targeted else "non-targeted"
            one = f"is {kind} only; set" if len(method.targeted) == 1 else "needs"
            raise ValueError(
                f"attack {attack!r} {one} targeted to {' or '.join(map(str, method.targeted))}, "
                f"got {options.shortened(targeted)}"
            )
        known = method.all_options
        options.check_given(f"attack {attack!r}", known, given)
        if epsilon is None and method.needs_epsilon:
            raise ValueError(f"epsilon of attack {attack!r} must be a number from 0 to 1, got None")
        options.check_numbers(epsilon=epsilon, **given)
        words = {**_WORDS, **method.words}
        for name, value in given.items():
            if name in words:
                words[name][value]
        if given.get("loss") == "pooled":
            raise ValueError(
                "loss 'pooled' makes an image depend on its batch mates, the records of a "
                "suite must not; take 'focused', or call the attack's function with it"
            )
        anneal = given.get("anneal", False)
        if not isinstance(anneal, bool) and anneal < given["num_steps"]:
            raise ValueError(
                f"anneal must be True, False or at least num_steps = {given['num_steps']}, "
                f"got {anneal}"
            )
        return cls(attack, targeted, epsilon, given)

    @property
    def learned(self) -> str:
        """The name of the network trained for the attack, if it needs one."""
        return self.options.get("learned", self.attack)

    @property
    def norm(self) -> str:
        """That of the ball, one of `attacks.NORMS`."""
        return self.options.get("norm", "linf")

    @property
    def members(self) -> dict[str, "AttackSettings"]:
        """Itself: a suite of one; see `Suite`."""
        return {"": self}

    @property
    def passes(self) -> tuple[int, int]:
        """How often the network is run forward and backward for an image."""
        method = ATTACKS[self.attack]
        return method.passes(self._of(method.options))

    def asdict(self) -> dict[str, Any]:
        """All settings that are given, by name, in JSON's types."""
        return {
            "attack": self.attack,
            "targeted": self.targeted,
            "epsilon": self.epsilon,
            **self.options,
        }

    def target_codes(self, known: AttackerKnowledge) -> TargetCodes:
        """The target codes of all queries."""
        source = ATTACKS[self.attack].targets
        return source.make(known, targeted=self.targeted, **self._of(source.options))

    def build(
        self, encode_fn: hamming.EncodeFn, target_codes: TargetCodes
    ) -> Callable[..., Array | attacks.Found]:
        """The perturbation as a function of (variables, images, target codes, keys, **arrays)."""
        method = ATTACKS[self.attack]
        values = self._of(method.options)
        if anneal := values.pop("anneal", False):
            over = values["num_steps"] if anneal is True else anneal
            values["alphas"] = attacks.alpha_schedule(over)[: values["num_steps"]]
        return functools.partial(
            method.perturb,
            encode_fn,
            targeted=self.targeted,
            epsilon=self.epsilon,
            **target_codes.static,
            **values,
        )

    def program(self, target_codes: TargetCodes) -> Any:
        """What tells the perturbation's program from others of one model, but for shapes."""
        given = self._of(ATTACKS[self.attack].options)
        return self.attack, self.targeted, self.epsilon, given, target_codes.static

    def _of(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        """The values of some options: those given, else the defaults."""
        return {name: self.options.get(name, declared[name]) for name in declared}
