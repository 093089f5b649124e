"""PyTorch programs of the same work, which the benchmarks run beside the library's.

Each comes in two patterns. "released" is that of the papers' code: images and weights in PyTorch's
default layout, and parameters that keep `requires_grad`, so that every step of an attack also
computes the gradients of all weights and throws them away. "best" is what a careful engineer
makes of it without leaving eager mode: channels last, and no parameter gradients in the attack.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

PATTERNS = ("best", "released")
_VGG_STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
_MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


class Network(nn.Module):
    """A hash network: normalised images through features, a flat vector, and a classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, images: Tensor) -> Tensor:
        features = self.features((images - _MEAN) / _STD)
        return torch.tanh(self.classifier(torch.flatten(features, 1)))


def _alexnet(num_bits: int) -> Network:
    def conv(*args: int) -> list[nn.Module]:
        return [nn.Conv2d(*args), nn.ReLU(inplace=True)]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2)

    features = [*conv(3, 64, 11, 4, 2), pool(), *conv(64, 192, 5, 1, 2), pool()]
    features += [*conv(192, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1)]
    classifier = [nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU(inplace=True)]
    classifier += [nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True)]
    return Network(
        nn.Sequential(*features, pool()), nn.Sequential(*classifier, nn.Linear(4096, num_bits))
    )


def _vgg(stages: tuple[int, ...], num_bits: int) -> Network:
    features: list[nn.Module] = []
    channels = 3
    for num_convs, width in zip(stages, (64, 128, 256, 512, 512), strict=True):
        for _ in range(num_convs):
            features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        features.append(nn.MaxPool2d(2))
    classifier = [nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    classifier += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return Network(nn.Sequential(*features), nn.Sequential(*classifier, nn.Linear(4096, num_bits)))


class _Block(nn.Module):
    """ResNet's block of two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.path(images) + self.shortcut(images), inplace=True)


def _resnet18(num_bits: int) -> Network:
    features: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    features += [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            stride = 2 if width > channels else 1
            features.append(_Block(channels, width, stride))
            channels = width
    return Network(
        nn.Sequential(*features, nn.AdaptiveAvgPool2d(1)),
        nn.Sequential(nn.Linear(512, num_bits)),
    )


def make_network(name: str, num_bits: int, pattern: str) -> Network:
    """A hash network in evaluation mode: "alexnet", "vgg11", "vgg16" or "resnet18"."""
    torch.manual_seed(0)
    if name in _VGG_STAGES:
        network = _vgg(_VGG_STAGES[name], num_bits)
    else:
        network = {"alexnet": _alexnet, "resnet18": _resnet18}[name](num_bits)
    if pattern == "best":
        network = network.to(memory_format=torch.channels_last)
    return network.eval()


def _images(images: np.ndarray, pattern: str, device: str) -> Tensor:
    """NHWC pixels as PyTorch's NCHW, in the pattern's layout."""
    layout = torch.channels_last if pattern == "best" else torch.contiguous_format
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)


def _to(network: Network, device: str) -> Network:
    global _MEAN, _STD
    _MEAN, _STD = _MEAN.to(device), _STD.to(device)
    return network.to(device)


def _attack(
    loss_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    pattern: str,
) -> Tensor:
    """Projected steps along the gradient's sign that lower a loss, from a random start."""
    noise = torch.empty_like(images).uniform_(-epsilon, epsilon)
    adversarial = torch.clamp(images + noise, 0, 1)
    for _ in range(num_steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = loss_fn(adversarial)
        if pattern == "released":
            loss.backward()
            gradient = cast(Tensor, adversarial.grad)
        else:
            (gradient,) = torch.autograd.grad(loss, adversarial)
        with torch.no_grad():
            moved = adversarial - step_size * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, images - epsilon), images + epsilon)
            adversarial = moved.clamp_(0, 1)
    return adversarial.detach()


def make_product(size: int, dtype: str = "float32", device: str = "cpu") -> Callable[[], Any]:
    """One product of two square matrices, whose rate is the limit of all that is made of them."""
    left, right = (torch.randn(size, size).to(device, getattr(torch, dtype)) for _ in range(2))
    return lambda: left @ right


def make_pgd(
    name: str,
    images: np.ndarray,
    target_codes: np.ndarray,
    *,
    num_steps: int,
    pattern: str,
    device: str = "cpu",
) -> Callable[[], Any]:
    """PGD on a network in evaluation mode, against codes to flee, by the focused loss."""
    network = _to(make_network(name, target_codes.shape[1], pattern), device)
    network.requires_grad_(pattern == "released")
    pixels, codes = _images(images, pattern, device), torch.from_numpy(target_codes).to(device)

    def loss_fn(adversarial: Tensor) -> Tensor:
        agreement = network(adversarial) * codes
        unsettled = (agreement > -0.5).float()
        total = torch.sum(unsettled * (agreement + 2) * agreement, 1)
        return torch.sum(total / unsettled.sum(1).clamp(min=1))

    def run() -> Tensor:
        network.zero_grad()
        return _attack(
            loss_fn,
            pixels,
            epsilon=8 / 255,
            step_size=1 / 255,
            num_steps=num_steps,
            pattern=pattern,
        )

    return run


def make_forward(
    name: str, images: np.ndarray, num_bits: int, *, pattern: str, device: str = "cpu"
) -> Callable[[], Any]:
    """Encodes a batch in evaluation mode."""
    network = _to(make_network(name, num_bits, pattern), device)
    pixels = _images(images, pattern, device)

    def run() -> Tensor:
        with torch.inference_mode():
            return network(pixels)

    return run


def _mainstay(labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
    """The dense formula of DMFL: codes that the bank votes for."""
    overlap = labels @ bank_labels.T
    similarity = overlap / (labels.norm(dim=1)[:, None] * bank_labels.norm(dim=1) + 1e-8)
    negative = (overlap == 0).float()
    votes = similarity / similarity.sum(1, keepdim=True).clamp(min=1e-8)
    votes = votes - negative / negative.sum(1, keepdim=True).clamp(min=1)
    return torch.sign(votes @ bank)


def make_saat(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    num_steps: int,
    pattern: str,
    device: str = "cpu",
) -> Callable[[], Any]:
    """One update of SAAT with DPH: mainstay codes, attack and both passes in training mode."""
    num_bits, count = bank.shape[1], len(images)
    network = _to(make_network(name, num_bits, pattern), device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, weight_decay=1e-5)
    pixels = _images(images, pattern, device)
    label, codes, all_labels = (
        torch.from_numpy(x).to(device) for x in (labels, bank.copy(), bank_labels)
    )

    def run() -> float:
        anchors = _mainstay(label, codes, all_labels)

        def attack_loss(adversarial: Tensor) -> Tensor:
            return torch.sum(torch.mean(network(adversarial) * anchors, 1))

        network.requires_grad_(pattern == "released")
        adversarial = _attack(
            attack_loss,
            pixels,
            epsilon=8 / 255,
            step_size=2 / 255,
            num_steps=num_steps,
            pattern=pattern,
        )
        network.requires_grad_(True)
        optimizer.zero_grad()
        adversarial_codes, soft_codes = network(adversarial), network(pixels)
        codes[:count] = torch.sign(soft_codes.detach())
        after = _mainstay(label, codes, all_labels)
        similar = (label @ all_labels.T > 0).float()
        errors = soft_codes @ codes.T / num_bits - (2 * similar - 1)
        quantization = adversarial_codes - torch.sign(adversarial_codes.detach())
        loss = errors.square().mean() - (adversarial_codes * after).mean()
        loss = loss + 1e-4 * quantization.square().mean()
        loss.backward()
        optimizer.step()
        codes[:count] = soft_codes.detach()
        return loss.item()

    return run
