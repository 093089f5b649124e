"""The worst case: many attacks on each query, of which the worst counts, and the standard suite."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from saat_jax import options
from saat_jax.evaluation.methods import AttackSettings

# The name that `create_attack` knows beside those of ATTACKS.
STANDARD = "standard"
_VERSIONS = (1,)
NUM_STEPS, _MANY_STEPS = 100, 300
_NUM_QUERIES = 1000

# Members by name: how often each is started, the attack and its options. docs/suite.md tells how
# they were chosen.
_SEARCH = {"attack": "auto_pgd", "num_steps": NUM_STEPS}
_PRESETS: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {
    "cheap": {
        "flips": (1, {**_SEARCH, "aim": "votes", "flips": True}),
        "consensus_flips": (1, {**_SEARCH, "aim": "consensus", "flips": True}),
        "sharp_gain": (2, {**_SEARCH, "loss": "sharp_gain"}),
    },
    "full": {
        "flips": (4, {**_SEARCH, "aim": "votes", "flips": True}),
        # From a start that none of the others has.
        "flips_long": (
            1,
            {**_SEARCH, "aim": "votes", "flips": True, "num_steps": _MANY_STEPS, "restart": 9},
        ),
        "soft_gain": (1, {**_SEARCH, "loss": "soft_gain"}),
        "sharp_gain": (2, {**_SEARCH, "loss": "sharp_gain"}),
        "votes": (1, {**_SEARCH, "aim": "votes"}),
        "mainstay": (1, {**_SEARCH, "aim": "mainstay"}),
        "square": (1, {"attack": "square", "num_queries": _NUM_QUERIES, "aim": "votes"}),
    },
}
PRESETS: options.Choices[Any] = options.Choices("preset", _PRESETS)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Attacks of which, for each query, the worst counts.

    Attributes:
        members: by name; all of one `targeted`, and within `epsilon`.
        targeted: as of `AttackSettings`.
        epsilon: radius of the ball in units of [0, 1]; None if a member has none.
        settings: what it was made from, in JSON's types.
    """

    members: Mapping[str, AttackSettings]
    targeted: bool
    epsilon: float | None
    settings: Mapping[str, Any]

    def asdict(self) -> dict[str, Any]:
        """All settings, in JSON's types."""
        members = {name: member.asdict() for name, member in self.members.items()}
        return {**self.settings, "members": members}

    def joined_by(self, name: str, **given: Any) -> "Suite":
        """With one more member, if it has none of the name; options as of `AttackSettings`."""
        member = AttackSettings.create(targeted=self.targeted, epsilon=self.epsilon, **given)
        return dataclasses.replace(self, members={name: member, **self.members})

    @property
    def passes(self) -> tuple[int, int]:
        """How often the network is run forward and backward for an image."""
        each = [member.passes for member in self.members.values()]
        return sum(forward for forward, _ in each), sum(backward for _, backward in each)


# What a run may judge by.
AnyAttack = AttackSettings | Suite


def all_members(attacks: Mapping[str, AnyAttack]) -> list[AttackSettings]:
    """The single attacks of all."""
    return [member for attack in attacks.values() for member in attack.members.values()]


def standard_suite(
    *,
    epsilon: float,
    targeted: bool = False,
    version: int = 1,
    preset: str = "full",
    extra: Mapping[str, AttackSettings] | None = None,
) -> Suite:
    """The attacks by which robustness is to be judged: no other knob than the ball.

    Args:
        epsilon: radius of the ball in units of [0, 1], such as `8 / 255`.
        targeted: whether the average precision to the target labels is to rise, rather than that
            to the own labels to fall.
        version: of the suite; numbers of one version can be compared.
        preset: "full", or "cheap" for a first look or a sweep.
        extra: attacks of one's own by name, which join the others.

    Raises:
        ValueError: if there is no such version or preset, or an extra attack is of the other
            direction, goes beyond the ball, or has a member's name.

    Example:
        >>> suite = standard_suite(epsilon=8 / 255, preset="cheap")
        >>> list(suite.members)
        ['flips', 'consensus_flips', 'sharp_gain_1', 'sharp_gain_2']
    """
    options.check_numbers(epsilon=epsilon)
    if version not in _VERSIONS:
        raise ValueError(f"unknown version {version!r} of the suite; expected one of {_VERSIONS}")
    members = {}
    for name, (starts, given) in PRESETS[preset].items():
        for restart in range(starts):
            members[f"{name}_{restart + 1}" if starts > 1 else name] = AttackSettings.create(
                targeted=targeted, epsilon=epsilon, **{"restart": restart, **given}
            )
    for name, attack in (extra or {}).items():
        options.check_name("attack", name)
        beyond = attack.epsilon is None or attack.epsilon > epsilon
        if name in members or attack.targeted != targeted or beyond:
            raise ValueError(
                f"extra attack {name!r} must have a name of its own, targeted={targeted} and an "
                f"epsilon of at most {epsilon:g}, got targeted={attack.targeted} and "
                f"{attack.epsilon}"
            )
        members[name] = attack
    settings = {
        "attack": STANDARD,
        "targeted": targeted,
        "epsilon": epsilon,
        "version": version,
        "preset": preset,
    }
    return Suite(members, targeted, epsilon, settings)


def create_attack(*, attack: str, targeted: bool, epsilon: float | None, **given: Any) -> AnyAttack:
    """An attack by name and options, or, by the name "standard", the suite.

    Args:
        attack: one of `ATTACKS`, or "standard".
        targeted: as of `AttackSettings.create`.
        epsilon: as there.
        **given: the attack's options; of the suite "version", "preset" and "extra", attacks by
            name as here but for `targeted` and `epsilon`, which are the suite's.

    Raises:
        ValueError: as `AttackSettings.create` and `standard_suite`.
    """
    if attack != STANDARD:
        return AttackSettings.create(attack=attack, targeted=targeted, epsilon=epsilon, **given)
    options.check_given("attack 'standard'", {"version": 1, "preset": "full", "extra": {}}, given)
    if epsilon is None:
        raise ValueError("epsilon of attack 'standard' must be a number from 0 to 1, got None")
    extra = {}
    for name, member in given.pop("extra", {}).items():
        with options.naming(f"extra.{name}"):
            extra[name] = AttackSettings.create(targeted=targeted, epsilon=epsilon, **member)
    return standard_suite(epsilon=epsilon, targeted=targeted, extra=extra, **given)
