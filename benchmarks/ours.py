"""The library's programs, in the form in which the benchmarks run them beside their peers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from saat_jax import attacks, defenses, networks, objectives, parallel


def launched(program: str, *, cache: str = "", **options: Any) -> Callable[[], Any]:
    """Makes a program of this module by name, after the settings that the launcher makes.

    Args:
        program: name of the function that makes it.
        cache: folder for compiled programs; empty for none.
        **options: of that function.
    """
    from launch.main import start_jax

    start_jax("default", cache)
    make: Callable[..., Callable[[], Any]] = globals()[program]
    return make(**options)


def _variables(model: Any, images: np.ndarray) -> Any:
    return networks.init_variables(model, jax.random.key(0), image_size=images.shape[1])


def make_forward(name: str, images: np.ndarray, num_bits: int, **options: Any) -> Callable[[], Any]:
    """Encodes a batch in evaluation mode.

    Args:
        name: one of `networks.NETWORKS`.
        images: `[batch, height, width, 3]` in [0, 1].
        num_bits: length of the codes.
        **options: of `networks.create_network`.
    """
    model = networks.create_network(name, num_bits=num_bits, **options)
    encode = jax.jit(networks.make_encode_fn(model))
    arguments = jax.device_put((_variables(model, images), images))
    return lambda: jax.block_until_ready(encode(*arguments))


def make_pgd(
    name: str,
    images: np.ndarray,
    target_codes: np.ndarray,
    *,
    num_steps: int,
    loop: bool = True,
    **options: Any,
) -> Callable[[], Any]:
    """PGD in one compiled loop or, to compare, in a compiled step that Python calls.

    Args:
        name: one of `networks.NETWORKS`.
        images: `[batch, height, width, 3]` in [0, 1].
        target_codes: `[batch, num_bits]` to flee.
        num_steps: steps of one run.
        loop: whether the steps are in one program.
        **options: of `networks.create_network`.
    """
    model = networks.create_network(name, num_bits=target_codes.shape[1], **options)
    attack = jax.jit(
        functools.partial(
            attacks.pgd,
            networks.make_encode_fn(model),
            epsilon=8 / 255,
            step_size=1 / 255,
            num_steps=num_steps if loop else 1,
            targeted=False,
        )
    )
    arguments = jax.device_put((_variables(model, images), images, target_codes))

    def run() -> Any:
        adversarial = arguments[1]
        for _ in range(1 if loop else num_steps):
            adversarial = attack(*arguments, jax.random.key(0), start=adversarial)
        return jax.block_until_ready(adversarial)

    return run


def make_saat(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    num_steps: int,
    **options: Any,
) -> Callable[[], Any]:
    """One update of SAAT with DPH by plain SGD, on one device.

    Args:
        name: one of `networks.NETWORKS`.
        images: `[batch, height, width, 3]` in [0, 1].
        labels: `[batch, num_classes]`.
        bank: `[bank_size, num_bits]` codes; the batch's rows are the first.
        bank_labels: `[bank_size, num_classes]`.
        num_steps: steps of the attack.
        **options: of `networks.create_network`.
    """
    model = networks.create_network(name, num_bits=bank.shape[1], **options)
    optimizer = optax.chain(optax.add_decayed_weights(1e-5), optax.sgd(0.05))
    update = defenses.make_saat_update(
        model,
        objectives.create_objective("dph"),
        optimizer,
        seed=0,
        epsilon=8 / 255,
        step_size=2 / 255,
        num_steps=num_steps,
    )
    code_bank = objectives.CodeBank(*jax.device_put((bank, bank_labels)))
    variables = _variables(model, images)
    state = parallel.replicate(
        defenses.init_state(variables, optimizer, objectives.State(bank=code_bank), code_bank)
    )
    # Its copy is in the state.
    del variables
    mapped = parallel.map_update(update)
    count = len(images)
    batch = parallel.shard_batch(
        {
            "image": images,
            "label": labels,
            "index": np.arange(count, dtype=np.int32),
            "mask": np.ones(count, np.float32),
        }
    )

    def run() -> None:
        nonlocal state
        state, metrics = mapped(state, batch)
        jax.block_until_ready((state, metrics))

    return run
