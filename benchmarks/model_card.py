"""The model card: a Markdown table of parameters, operations and memory of every network.

    python -m benchmarks.model_card             # all networks, at 224 pixels; convnet at 64 too
    python -m benchmarks.model_card vgg11 vgg16

Nothing is run: parameters and operations follow from shapes, memory is what XLA's compiler says
one step of PGD will take at batch 32, so its figures are the backend's and the version's.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from saat_jax import attacks, networks

NUM_BITS = 32
BATCH = 32
_HEAD = """\
| network | pixels | parameters | without hash layer | GFLOPs/image | PGD step: arguments | temporary | in all |
|---|---:|---:|---:|---:|---:|---:|---:|"""  # noqa: E501, as wide as its columns


def pgd_memory(name: str, *, image_size: int) -> dict[str, int]:
    """Counts the bytes of one PGD step on a batch, from XLA's analysis of the compiled step.

    Args:
        name: one of `networks.NETWORKS`.
        image_size: height and width of the images, in pixels.

    Returns:
        "arguments" (variables, images, target codes), "temporary" (activations, gradients and
        what else is alive at the worst moment) and "output" (the adversarial images).
    """
    model = networks.create_network(name, num_bits=NUM_BITS)
    encode_fn = networks.make_encode_fn(model)

    def step(variables: Any, images: jax.Array, target_codes: jax.Array) -> jax.Array:
        return attacks.pgd(
            encode_fn,
            variables,
            images,
            target_codes,
            jax.random.key(0),
            epsilon=8 / 255,
            step_size=1 / 255,
            num_steps=1,
            targeted=False,
            random_start=False,
        )

    images = jax.ShapeDtypeStruct((BATCH, image_size, image_size, 3), jnp.float32)
    codes = jax.ShapeDtypeStruct((BATCH, NUM_BITS), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    memory: Any = jax.jit(step).lower(variables, images, codes).compile().memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes,
    }


def row(name: str, *, image_size: int) -> str:
    """One network's line of the table; memory in MiB."""
    card = networks.model_card(name, num_bits=NUM_BITS, image_size=image_size)
    memory = pgd_memory(name, image_size=image_size)
    sizes = (memory["arguments"], memory["temporary"], sum(memory.values()))
    cells = [
        f"`{name}`",
        str(image_size),
        f"{card['parameters']:,}",
        f"{card['backbone_parameters']:,}",
        f"{card['flops'] / 1e9:.3g}",
        *(f"{size / 2**20:,.0f}" for size in sizes),
    ]
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    """Prints the table of these networks, or of all."""
    start = time.monotonic()
    print(_HEAD)
    for name in names or networks.NETWORKS:
        for image_size in (64, 224) if name == "convnet" else (224,):
            print(row(name, image_size=image_size), flush=True)
    print(
        f"\n{NUM_BITS} bits, batch {BATCH}, memory in MiB; jax {jax.__version__} on "
        f"{jax.default_backend()}, compiled in {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
