"""A PyTorch encoder attacked through the bridge, against PyTorch alone.

    python -m benchmarks.bridge                  # needs the extra `torch`

Signed steps down the code's own outputs, batches of 224 pixels, float32, all cores: the loop of
JAX calls the module and its gradient back, the peer does the same in PyTorch. Each is a process of
its own, and they take turns (`interleaved`); the ratio is the median over the rounds of the time
through the bridge by the peer's.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import interleaved

SIDE, NUM_BITS, NUM_STEPS, STEP_SIZE = 224, 64, 5, 1 / 255
BATCHES = {"cnn": 16, "vit": 16}


def make_module(name: str) -> Any:
    """Plain convolutions, or blocks of a vision transformer with the mean of its tokens."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "vit":
        block = nn.TransformerEncoderLayer(192, 3, 768, activation="gelu", batch_first=True)

        class Tokens(nn.Module):
            def forward(self, x: Any) -> Any:
                return x.flatten(2).transpose(1, 2)

        class Mean(nn.Module):
            def forward(self, x: Any) -> Any:
                return x.mean(1)

        body = nn.TransformerEncoder(block, 6, enable_nested_tensor=False)
        return nn.Sequential(
            nn.Conv2d(3, 192, 16, stride=16), Tokens(), body, Mean(), nn.Linear(192, NUM_BITS)
        ).eval()
    widths = (3, 32, 64, 128, 256)
    layers: list[Any] = []
    for before, width in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], NUM_BITS)]
    return nn.Sequential(*layers).eval()


def _images(batch_size: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch_size, SIDE, SIDE, 3), np.float32)


def make_bridged(name: str, batch_size: int) -> Callable[[], Any]:
    """The steps in one compiled loop of JAX."""
    import jax
    import jax.numpy as jnp

    from saat_jax import encoders

    encoder = encoders.from_torch(make_module(name), image_size=(SIDE, SIDE))
    images = jnp.asarray(_images(batch_size))

    def total(images: Any) -> Any:
        return jnp.sum(encoder.encode_fn(encoder.variables, images, 1.0))

    @jax.jit
    def attack(images: Any) -> Any:
        def step(_: Any, images: Any) -> Any:
            return jnp.clip(images - STEP_SIZE * jnp.sign(jax.grad(total)(images)), 0, 1)

        return jax.lax.fori_loop(0, NUM_STEPS, step, images)

    return lambda: jax.block_until_ready(attack(images))


def make_alone(name: str, batch_size: int) -> Callable[[], Any]:
    """The steps in PyTorch."""
    import torch

    module = make_module(name).requires_grad_(False)
    images = torch.from_numpy(_images(batch_size)).permute(0, 3, 1, 2).contiguous()

    def attack() -> Any:
        attacked = images
        for _ in range(NUM_STEPS):
            attacked = attacked.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(torch.tanh(module(attacked)).sum(), attacked)
            attacked = (attacked.detach() - STEP_SIZE * gradient.sign()).clamp(0, 1)
        return attacked

    return attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print("| module | ms a step of the bridge | of PyTorch alone | ratio | CPU seconds' ratio |")
    print("|---|---:|---:|---:|---:|")
    for name, batch_size in BATCHES.items():
        options = {"name": name, "batch_size": batch_size}
        programs = {"ours": (make_bridged, options, {}), "alone": (make_alone, options, {})}
        results = interleaved.take_turns(programs, rounds=given.rounds)
        ours, alone = results["ours"], results["alone"]
        each = [1000 * result.median / NUM_STEPS for result in (ours, alone)]
        ratios = interleaved.ratio(ours, alone), interleaved.cpu_ratio(ours, alone)
        cells = [f"{value:.0f}" for value in each] + [f"{value:.2f}" for value in ratios]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
