"""What JAX cannot trace, called back from inside its programs: PyTorch modules, plain functions."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import lazy
from saat_jax.datasets.photos import check_photos
from saat_jax.encoders.encoder import Encoder, by_shape

Array = jax.Array
Normalisation = float | Sequence[float]


def from_torch(
    module: Any,
    *,
    image_size: tuple[int, int],
    mean: Normalisation = 0.0,
    deviation: Normalisation = 1.0,
    name: str = "torch",
) -> Encoder:
    """A PyTorch module as an encoder, with PyTorch's own gradient, on the module's device.

    The module is put into evaluation mode, and stays there: an encoder gives the same code twice.

    Args:
        module: maps `[batch, 3, height, width]` float32 to `[batch, num_bits]` outputs, whose
            signs are the code.
        image_size: `(height, width)` that it takes.
        mean: what is taken from images in [0, 1], of each channel.
        deviation: what they are divided by then.
        name: for tables and records.

    Raises:
        ModuleNotFoundError: if PyTorch is not installed.
        ValueError: if the module gives no such outputs.
    """
    torch = lazy.require("torch")
    module.eval()
    calls = _TorchCalls(torch, module, mean, deviation)
    num_bits = _num_bits(calls.outputs, image_size, name)
    digest = hashlib.sha256(repr((name, str(module), mean, deviation)).encode())
    for key, value in module.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return Encoder(
        name=name,
        num_bits=num_bits,
        encode_fn=_encode_fn(calls.outputs, calls.remembered, calls.gradient, num_bits),
        variables={},
        run=lambda images: by_shape(images, calls.outputs, image_size=image_size),
        runtime=f"torch {torch.__version__}",
        fingerprint=digest.hexdigest(),
        image_size=image_size,
    )


def from_function(
    function: Callable[[Sequence[np.ndarray]], np.ndarray],
    *,
    image_size: tuple[int, int] | None = None,
    name: str = "function",
) -> Encoder:
    """A function that has no gradient as an encoder; attacks on it go without.

    Args:
        function: maps images, each `[height, width, 3]` uint8, to `[num_images, num_bits]`
            numbers, whose signs are the code.
        image_size: `(height, width)` that it takes; None for any.
        name: for tables and records.

    Raises:
        ValueError: if it gives no such numbers.

    Example:
        >>> encoder = from_function(lambda images: np.stack([i[0, :, 0] - 99.0 for i in images]),
        ...     image_size=(4, 8))
        >>> encoder.num_bits, encoder.differentiable
        (8, False)
    """

    def outputs(images: np.ndarray) -> np.ndarray:
        whole = np.round(255 * images).astype(np.uint8)
        return np.asarray(function([*whole]), np.float32)

    def run(images: Sequence[np.ndarray]) -> np.ndarray:
        check_photos(images, image_size=image_size)
        return np.asarray(function(images), np.float32)

    num_bits = _num_bits(outputs, image_size or (64, 64), name)
    probe = np.random.default_rng(0).random((1, *(image_size or (64, 64)), 3), np.float32)
    return Encoder(
        name=name,
        num_bits=num_bits,
        encode_fn=_encode_fn(outputs, outputs, lambda images, _: np.zeros_like(images), num_bits),
        variables={},
        run=run,
        runtime="its own function",
        fingerprint=hashlib.sha256(outputs(probe).tobytes()).hexdigest(),
        image_size=image_size,
        differentiable=False,
    )


class _TorchCalls:
    """A module's outputs, and the gradient of them, of NumPy's images and in NumPy."""

    def __init__(self, torch: Any, module: Any, mean: Normalisation, deviation: Normalisation):
        self._torch, self._module = torch, module
        parameters = [*module.parameters(), *module.buffers()]
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._mean, self._deviation = (
            torch.tensor(np.broadcast_to(np.asarray(values, np.float32), 3).copy())
            .to(self._device)
            .reshape(3, 1, 1)
            for values in (mean, deviation)
        )
        # The graph of the last images whose gradient may be asked for.
        self._last: tuple[np.ndarray, Any, Any] | None = None

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """`[batch, num_bits]` of `[batch, height, width, 3]`."""
        with self._torch.no_grad():
            return self._forward(self._on_device(images)).float().cpu().numpy()

    def remembered(self, images: np.ndarray) -> np.ndarray:
        """The same, and what its gradient needs is kept until it is asked for."""
        with self._torch.enable_grad():
            given = self._on_device(images).requires_grad_(True)
            found = self._forward(given)
        self._last = images, given, found
        return found.detach().float().cpu().numpy()

    def gradient(self, images: np.ndarray, of_outputs: np.ndarray) -> np.ndarray:
        """What the gradient of the outputs makes of the images'."""
        if self._last is None or not np.array_equal(self._last[0], images):
            self.remembered(images)
        assert self._last is not None
        (_, given, found), self._last = self._last, None
        weights = self._torch.from_numpy(of_outputs).to(found)
        (gradient,) = self._torch.autograd.grad(found, given, weights)
        return gradient.float().cpu().numpy()

    def _on_device(self, images: np.ndarray) -> Any:
        return self._torch.from_numpy(images).to(self._device)

    def _forward(self, images: Any) -> Any:
        return self._module((images.permute(0, 3, 1, 2) - self._mean) / self._deviation)


def _encode_fn(
    outputs: Callable[[np.ndarray], np.ndarray],
    remembered: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray],
    num_bits: int,
) -> Callable[[Any, Array, Array | float], Array]:
    """Soft codes by callbacks; the gradient is asked for at images of the last call."""
    # JAX copies what it hands over in a thread that, of one, the callback itself occupies.
    cores = getattr(os, "sched_getaffinity", lambda _: (0, 1))(0)
    alone = len(cores) == 1 and "PJRT_NPROC" not in os.environ
    if alone and jax.default_backend() == "cpu":
        raise ValueError(
            "an encoder that JAX calls back would wait forever on a single CPU core; set "
            "PJRT_NPROC=2 in the environment before Python starts"
        )

    def call(function: Callable[..., np.ndarray], shape: tuple[int, ...], *arrays: Array) -> Array:
        def on_host(*values: Any) -> np.ndarray:
            # Copies, since what JAX hands over is only read.
            found = function(*(np.array(value, np.float32) for value in values))
            return np.ascontiguousarray(found, np.float32).reshape(shape)

        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(shape, jnp.float32), *arrays)

    @jax.custom_vjp
    def features(images: Array) -> Array:
        return call(outputs, (len(images), num_bits), images)

    def forward(images: Array) -> tuple[Array, Array]:
        return call(remembered, (len(images), num_bits), images), images

    def backward(images: Array, of_outputs: Array) -> tuple[Array]:
        return (call(gradient, images.shape, images, of_outputs),)

    features.defvjp(forward, backward)
    return lambda variables, images, alpha: jnp.tanh(alpha * features(images))


def _num_bits(
    outputs: Callable[[np.ndarray], np.ndarray], image_size: tuple[int, int], name: str
) -> int:
    """By a first call; ValueError unless it gives `[2, num_bits]` numbers."""
    found = np.asarray(outputs(np.full((2, *image_size, 3), 0.5, np.float32)))
    if found.ndim != 2 or len(found) != 2 or not np.isfinite(found).all():
        raise ValueError(
            f"encoder {name!r} must map 2 images to finite numbers [2, num_bits], got "
            f"{found.dtype} {list(found.shape)}"
        )
    return found.shape[1]
