"""Label matrices `[rows, num_classes]`, multi-hot: what they may hold, and who shares a label."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray


def share_label(labels: ArrayLike, other_labels: ArrayLike) -> Any:
    """Whether each pair of rows has a label in common: what "relevant" means.

    Args:
        labels: `[rows, num_classes]` multi-hot.
        other_labels: `[other_rows, num_classes]` multi-hot.

    Returns:
        `[rows, other_rows]` bool, of NumPy if both are.

    Example:
        >>> share_label(np.eye(2), np.array([[1, 1], [0, 1]])).tolist()
        [[True, False], [True, True]]
    """
    if isinstance(labels, np.ndarray) and isinstance(other_labels, np.ndarray):
        return np.asarray(labels, np.float32) @ np.asarray(other_labels, np.float32).T > 0
    # Floats: a product of small integers would overflow.
    return jnp.asarray(labels, jnp.float32) @ jnp.asarray(other_labels, jnp.float32).T > 0


def check_labels(name: str, labels: ArrayLike, *, num_classes: int | None = None) -> None:
    """Refuses what is no matrix of labels; the values of traced arrays are not known.

    Args:
        name: of the argument, for the message.
        labels: what should be `[rows, num_classes]` of 0 and 1, or of any weights from 0.
        num_classes: how many classes it must have.

    Raises:
        ValueError: naming the argument, what it is, and what it should be.

    Example:
        >>> check_labels("labels", np.array([[1, -1]]))
        Traceback (most recent call last):
        ValueError: labels must be multi-hot, 0 for an absent label, got -1; use 0 in its place
    """
    if not hasattr(labels, "shape") or not hasattr(labels, "dtype"):
        raise ValueError(
            f"{name} must be an array [rows, num_classes], got {type(labels).__name__}"
        )
    if labels.ndim != 2:
        raise ValueError(
            f"{name} must be of shape [rows, num_classes], got {labels.shape}; class indices "
            "become rows by jax.nn.one_hot"
        )
    if num_classes is not None and labels.shape[1] != num_classes:
        raise ValueError(
            f"{name} must have {num_classes} classes as the other labels, got {labels.shape}"
        )
    if labels.dtype == bool:
        return
    if not jax.numpy.issubdtype(labels.dtype, np.number):
        raise ValueError(f"{name} must be numbers, 0 and 1, got dtype {labels.dtype}")
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    least, most = float(labels.min()), float(labels.max())
    # Written so that NaN is refused too.
    if not (least >= 0 and most < np.inf):
        wrong = most if least >= 0 else least
        raise ValueError(
            f"{name} must be multi-hot, 0 for an absent label, got {wrong:g}; use 0 in its place"
        )
