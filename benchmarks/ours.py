"""The library's programs, in the form in which the benchmarks run them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import attacks, defenses, networks, objectives, parallel

NUM_BITS = 32


def _variables(model: Any, image_size: int) -> Any:
    return networks.init_variables(model, jax.random.key(0), image_size=image_size)


def make_forward(name: str, images: np.ndarray) -> Callable[[], Any]:
    """Encodes a batch in evaluation mode."""
    model = networks.create_network(name, num_bits=NUM_BITS)
    variables, encode = _variables(model, images.shape[1]), jax.jit(networks.make_encode_fn(model))
    images = jax.device_put(images)
    return lambda: jax.block_until_ready(encode(variables, images))


def make_pgd(
    name: str, images: np.ndarray, target_codes: np.ndarray, *, num_steps: int, loop: bool = True
) -> Callable[[], Any]:
    """PGD in one compiled loop or, to compare, in a compiled step that Python calls."""
    model = networks.create_network(name, num_bits=NUM_BITS)
    variables = _variables(model, images.shape[1])
    attack = jax.jit(
        functools.partial(
            attacks.pgd,
            networks.make_encode_fn(model),
            epsilon=8 / 255,
            step_size=1 / 255,
            num_steps=num_steps if loop else 1,
            targeted=False,
            random_start=loop,
        )
    )
    images, target_codes = jax.device_put((images, target_codes))

    def run() -> Any:
        adversarial = None if loop else images
        for _ in range(1 if loop else num_steps):
            adversarial = attack(
                variables, images, target_codes, jax.random.key(0), start=adversarial
            )
        return jax.block_until_ready(adversarial)

    return run
