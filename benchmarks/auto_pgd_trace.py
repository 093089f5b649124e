"""A trace of torchattacks' Auto-PGD on a tiny classifier, which a test compares ours with.

    python -m benchmarks.auto_pgd_trace                # writes tests/data/auto_pgd_trace.npz
    python -m benchmarks.auto_pgd_trace --output FILE

Needs torch, torchattacks and SciPy. What torchattacks wants beside, it does not import for this:

    pip install torch scipy && pip install --no-deps torchattacks

Seconds on one core.
"""

import argparse
import inspect
import pathlib

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional

PATH = pathlib.Path(__file__).parents[1] / "tests" / "data" / "auto_pgd_trace.npz"
NUM_STEPS = (20, 100)
# Of the weights and images; of torchattacks' random start. In float64 ours agrees to 4e-16 for all
# seeds tried. In float32 losses that are equal but for rounding may be ordered either way: with
# this seed any two that are compared are 32 units in the last place apart, or more.
SEED, START_SEED = 21, 1
NUM_IMAGES, SHAPE, NUM_HIDDEN, NUM_CLASSES = 8, (3, 6, 6), 64, 4
# Wide enough, and the weights large enough, that the loss has its peaks within the ball: an image
# that only runs into a corner says little about when a step is halved.
EPSILON, WEIGHT_SCALE = 0.25, 8.0


class Traced(torchattacks.APGD):
    """APGD that keeps all images it asks for, their losses, and the step sizes that led there."""

    def __init__(self, model: nn.Module, **settings: float | int | str) -> None:
        super().__init__(model, **settings)
        self.images: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.step_sizes: list[Tensor] = []

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Of the model, as before."""
        logits = super().get_logits(inputs)
        frame = inspect.currentframe()
        assert frame is not None and frame.f_back is not None
        # The caller's own variables: it gives the step sizes to nobody.
        caller = frame.f_back.f_locals
        if frame.f_back.f_code.co_name == "attack_single_run":
            self.images.append(inputs.detach().clone())
            self.losses.append(
                functional.cross_entropy(logits, caller["y"], reduction="none").detach()
            )
            if "step_size" in caller:
                self.step_sizes.append(caller["step_size"].flatten().clone())
        return logits


def classifier(weights: dict[str, np.ndarray]) -> nn.Module:
    """Two linear layers and a tanh between, of images `[batch, channels, height, width]`."""
    hidden = nn.Linear(int(np.prod(SHAPE)), NUM_HIDDEN)
    last = nn.Linear(NUM_HIDDEN, NUM_CLASSES)
    names = ("hidden.weight", "hidden.bias", "last.weight", "last.bias")
    parameters = [*hidden.parameters(), *last.parameters()]
    for parameter, name in zip(parameters, names, strict=True):
        parameter.data = torch.from_numpy(weights[name])
        parameter.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), last)


def make_trace() -> dict[str, np.ndarray]:
    """Everything the test needs; images are `[step, batch, channels, height, width]`."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    size = int(np.prod(SHAPE))
    drawn = {
        "hidden.weight": rng.normal(size=(NUM_HIDDEN, size)) * WEIGHT_SCALE / size**0.5,
        "hidden.bias": rng.normal(size=NUM_HIDDEN),
        "last.weight": rng.normal(size=(NUM_CLASSES, NUM_HIDDEN)),
        "last.bias": rng.normal(size=NUM_CLASSES),
        "images": rng.uniform(size=(NUM_IMAGES, *SHAPE)),
    }
    arrays = {name: values.astype(np.float32) for name, values in drawn.items()}
    model = classifier(arrays)
    images = torch.from_numpy(arrays["images"])
    # What the model says: torchattacks leaves images alone that are misclassified already.
    labels = model(images).argmax(1)
    trace = {
        **arrays,
        "labels": labels.numpy(),
        "epsilon": np.float64(EPSILON),
        "num_steps": np.array(NUM_STEPS),
        "torch": np.array(torch.__version__),
        "torchattacks": np.array(torchattacks.__version__),
    }
    for num_steps in NUM_STEPS:
        attack = Traced(
            model,
            norm="Linf",
            eps=EPSILON,
            steps=num_steps,
            n_restarts=1,
            seed=START_SEED,
            loss="ce",
            rho=0.75,
        )
        attack(images, labels)
        # The start, and where each step led.
        assert len(attack.images) == num_steps + 1 and len(attack.step_sizes) == num_steps
        trace[f"images_{num_steps}"] = torch.stack(attack.images).numpy()
        trace[f"losses_{num_steps}"] = torch.stack(attack.losses).numpy()
        trace[f"step_sizes_{num_steps}"] = torch.stack(attack.step_sizes).numpy()
    return trace


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default=PATH)
    output = parser.parse_args(argv).output
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output, **make_trace())
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
