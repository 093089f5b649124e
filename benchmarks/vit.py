"""A vision transformer's forward pass, and its gradient by the images, beside PyTorch's.

    python -m benchmarks.vit                  # ViT-S/16 at 224 pixels, batch 8, five rounds
    python -m benchmarks.vit --batch 32

The peer is torchvision's `VisionTransformer` in eager mode, its parameters without gradients. Every
program is a process of its own, and they take turns (`interleaved`): ratios are medians over the
rounds, above 1 where ours is faster. Prints Markdown. "half" is `dtype="bfloat16"`, "remat" the
option of that name; memory is the peak of the process, Python and the compiler included.
"""

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import interleaved

NUM_BITS, SIZE = 32, 224
OURS = {"ours": {}, "half": {"dtype": "bfloat16"}, "remat": {"remat": True}}


def _images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, SIZE, SIZE, 3), np.float32)


def make_ours(*, batch: int, gradient: bool, **options: Any) -> Callable[[], Any]:
    """ViT-S/16 of `networks`."""
    import jax
    import jax.numpy as jnp

    from saat_jax import networks

    model = networks.create_network("vit_s16", num_bits=NUM_BITS, **options)
    variables = networks.init_variables(model, jax.random.key(0), image_size=SIZE)
    encode_fn, images = networks.make_encode_fn(model), jnp.asarray(_images(batch))
    if gradient:
        run = jax.jit(jax.grad(lambda x, v: encode_fn(v, x).sum()))
    else:
        run = jax.jit(lambda x, v: encode_fn(v, x))
    return lambda: run(images, variables).block_until_ready()


def make_peer(*, batch: int, gradient: bool) -> Callable[[], Any]:
    """The network of the same sizes in torchvision."""
    import torch
    from torchvision.models.vision_transformer import VisionTransformer

    torch.set_num_threads(os.cpu_count() or 1)
    model = VisionTransformer(SIZE, 16, 12, 6, 384, 1536, num_classes=NUM_BITS).eval()
    model.requires_grad_(False)
    images = torch.from_numpy(_images(batch).transpose(0, 3, 1, 2).copy())

    def forward() -> Any:
        with torch.inference_mode():
            return torch.tanh(model(images))

    def backward() -> Any:
        pixels = images.clone().requires_grad_()
        torch.tanh(model(pixels)).sum().backward()
        return pixels.grad

    return backward if gradient else forward


def measure(batch: int, rounds: int) -> list[str]:
    """The lines of the table."""
    lines = [
        "| ViT-S/16 | program | ms/image | PyTorch's time by its | peak MiB |",
        "|---|---|---:|---:|---:|",
    ]
    for gradient, work in ((False, "forward"), (True, "gradient by the images")):
        given = {"batch": batch, "gradient": gradient}
        programs: dict[str, interleaved.Program] = {
            name: (make_ours, given | options, {}) for name, options in OURS.items()
        }
        results = interleaved.take_turns(
            programs | {"PyTorch": (make_peer, given, {})}, rounds=rounds
        )
        by_peer = functools.partial(interleaved.ratio, results["PyTorch"])
        for name, result in results.items():
            lines.append(
                f"| {work} | {name} | {1e3 * result.median / batch:.0f} | {by_peer(result):.2f} "
                f"| {result.peak_mib:,.0f} |"
            )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("\n".join(measure(arguments.batch, arguments.rounds)))
