"""A config's settings checked before any work is done."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from saat_jax import evaluation

Config = dict[str, Any]
# Attacks for which networks are trained, by sections of config.learned: that of the attack's name
# or of its option `learned`, and these.
LEARNERS: dict[str, tuple[str, ...]] = {"tha": (), "prosgan": ("prosgan_prototypes",)}


def find_learners(config: Config, suite: Mapping[str, evaluation.AttackSettings]) -> dict[str, str]:
    """The sections of config.learned that the task trains, with what each is: an attack, or a
    PrototypeNet for one.
    """
    found: dict[str, str] = {}
    for attack in suite.values():
        if attack.attack in LEARNERS:
            helpers = LEARNERS[attack.attack]
            found |= dict.fromkeys(helpers, "prototypes") | {attack.learned: attack.attack}
            if absent := [s for s in (*helpers, attack.learned) if s not in config["learned"]]:
                raise ValueError(
                    f"attack {attack.attack!r} needs the sections {absent} in config.learned; "
                    "configs/attacks.py has them"
                )
    # Tasks that attack nothing.
    return {} if config["task"].startswith(("train", "harden")) else found


def check_options(place: str, function: Callable[..., Any], options: Config) -> None:
    """Refuses options that a function does not take."""
    parameters = inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{place}.options has no {unknown[0]!r}; it takes {sorted(known)}")


def check_numbers(sections: dict[str, Config]) -> None:
    """Refuses counts that would fail only after hours of work."""
    for section, values in sections.items():
        for name, value in values.items():
            counts = name.startswith("num_") or name.endswith(("_every", "_epoch"))
            if (counts or name in ("batch_size", "accumulate")) and value < 1:
                raise ValueError(f"{section}.{name} must be at least 1, got {value}")
    devices = jax.device_count()
    for section, values in sections.items():
        if (rows := values["batch_size"]) % devices:
            raise ValueError(
                f"{section}.batch_size must be a multiple of the {devices} devices, got {rows}"
            )
    if (checkpoint := sections["evaluation"]["checkpoint"]) not in ("latest", "best"):
        raise ValueError(f'evaluation.checkpoint must be "latest" or "best", got {checkpoint!r}')
