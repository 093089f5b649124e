"""How much an attack changes images: the usual distances, and the papers' own.

Everything is float64 NumPy on the host, one image at a time. Knows nothing of codes, labels,
networks or attacks.
"""

import jax
import numpy as np

from saat_jax import options

Array = jax.Array | np.ndarray


def check_images(name: str, images: Array) -> None:
    """Refuses what is no batch of images; the values of traced arrays are not known.

    Args:
        name: of the argument, for the message.
        images: what should be `[batch, height, width, channels]` floats in [0, 1].

    Raises:
        ValueError: naming the argument, what it is, and what it should be.

    Example:
        >>> check_images("images", np.full((1, 8, 8, 3), 255, np.uint8))
        Traceback (most recent call last):
        ValueError: images must be floats in [0, 1], got uint8; divide by 255
    """
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise ValueError(
            f"{name} must be an array [batch, height, width, channels], got {type(images).__name__}"
        )
    if images.ndim != 4:
        raise ValueError(
            f"{name} must be of shape [batch, height, width, channels], got {images.shape}; a "
            "single image is a batch of one: images[None]"
        )
    if not jax.numpy.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{name} must be floats in [0, 1], got {images.dtype}; divide by 255")
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise ValueError(
            f"{name} must be of shape [batch, height, width, channels], got {images.shape}; "
            "PyTorch's order becomes this one by jnp.moveaxis(images, 1, 3)"
        )
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    least, most = float(images.min()), float(images.max())
    if not (least >= 0 and most <= 1):
        raise ValueError(
            f"{name} must be floats in [0, 1], got values from {least:g} to {most:g}; divide by "
            "255, and leave mean and deviation to the encoder"
        )


def perturbation_metrics(images: Array, adversarial: Array) -> dict[str, np.ndarray]:
    """Measures the perturbation of every image.

    Args:
        images: `[batch, height, width, channels]` in [0, 1].
        adversarial: `[batch, height, width, channels]` in [0, 1].

    Returns:
        `[batch]` float64 arrays, in the units of the images. With d the difference:
        "linf": largest |d|. "l2": root of the sum of d^2. "mse": mean of d^2.
        "psnr": -10 log10(mse), in dB; infinite where nothing changed.
        "matrix_norm_linf", "matrix_norm_l2": the papers' "L_inf" and "L_2". Of the height by
        width matrix of each channel the largest sum of |d| over a row, and the largest
        singular value; averaged over channels.

    Raises:
        ValueError: if the shapes differ, there is no image, or a value is outside [0, 1].

    Example:
        >>> images = np.full((1, 2, 2, 1), 0.5)
        >>> perturbation_metrics(images, images + 0.25)["linf"].tolist()
        [0.25]

    Reference:
        SAAT, Table VII, released `cal_perceptibility`.
    """
    images, adversarial = np.asarray(images), np.asarray(adversarial)
    shape = "batch height width channels"
    options.check_shapes(images=(images, shape), adversarial=(adversarial, shape))
    if not images.size:
        raise ValueError(f"images must not be empty, got shape {images.shape}")
    check_images("images", images)
    check_images("adversarial", adversarial)
    measured = [
        _measure(np.subtract(after, before, dtype=np.float64))
        for before, after in zip(images, adversarial, strict=True)
    ]
    return {name: np.array([one[name] for one in measured]) for name in measured[0]}


def summarize_perturbation(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Reduces per-image metrics to one number each, over all images of a run.

    Args:
        metrics: what `perturbation_metrics` returns; batches are concatenated by name.

    Returns:
        The same names: "linf" is the maximum, "psnr" that of the mean "mse", the others are
        means. "root_mean_square", the root of the mean "mse", is ProS-GAN's "Per.".

    Reference:
        ProS-GAN, Tables 1 to 4: the root of the global mean square, not a mean of roots.
    """
    summary = {name: float(np.mean(values)) for name, values in metrics.items()}
    return summary | {
        "linf": float(np.max(metrics["linf"])),
        "psnr": float(_psnr(summary["mse"])),
        "root_mean_square": float(np.sqrt(summary["mse"])),
    }


def _measure(difference: np.ndarray) -> dict[str, float]:
    """The metrics of one `[height, width, channels]` difference."""
    size = np.abs(difference)
    square = np.sum(difference**2)
    mse = square / difference.size
    # The root of the Gram matrix' largest eigenvalue is the largest singular value to the same
    # precision, and many times faster: OpenBLAS' threaded SVD crawls on a busy machine.
    channels = np.moveaxis(difference, -1, 0)
    eigenvalues = np.linalg.eigvalsh(channels @ channels.swapaxes(1, 2))
    return {
        "linf": size.max(),
        "l2": np.sqrt(square),
        "mse": mse,
        "psnr": _psnr(mse),
        "matrix_norm_linf": size.sum(axis=1).max(axis=0).mean(),
        "matrix_norm_l2": np.sqrt(eigenvalues[:, -1]).mean(),
    }


def _psnr(mse: float) -> float:
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)
