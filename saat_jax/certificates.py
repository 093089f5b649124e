"""What can be proved about codes: with Gaussian noise of any encoder, exactly of linear hashes.

Randomised smoothing proves statements about the *smoothed* matcher, which decides by a vote over
noisy copies and must then be the one in use. Radii are Euclidean norms of the whole change of an
image in [0, 1], and hold for changes that are smaller. A statement about one image fails with a
probability of at most `alpha`.

Reference:
    Cohen et al., Certified adversarial robustness via randomized smoothing, ICML 2019; Chiang et
    al., Detection as regression: certified object detection by median smoothing, NeurIPS 2020, for
    quantiles.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

ArrayLike = Any


def lower_bound(count: ArrayLike, trials: ArrayLike, alpha: float) -> np.ndarray:
    """What a probability is at least, of so many successes (Clopper and Pearson, one-sided).

    Example:
        >>> round(float(lower_bound(100, 100, 0.001)), 4)
        0.9333
    """
    count, trials = np.asarray(count, float), np.asarray(trials, float)
    bound = stats.beta.ppf(alpha, np.maximum(count, 1e-9), trials - count + 1)
    return np.where(count > 0, bound, 0.0)


def upper_bound(count: ArrayLike, trials: ArrayLike, alpha: float) -> np.ndarray:
    """What a probability is at most; see `lower_bound`."""
    return 1 - lower_bound(np.asarray(trials) - count, trials, alpha)


def evasion_radius(
    matches: ArrayLike, trials: ArrayLike, *, sigma: float, alpha: float
) -> np.ndarray:
    """No smaller change makes the smoothed matcher lose the match; 0 if nothing is proved.

    Args:
        matches: how many of the noisy copies matched.
        trials: of how many.
        sigma: deviation of the noise.
        alpha: probability of error.
    """
    return sigma * np.maximum(stats.norm.ppf(lower_bound(matches, trials, alpha)), 0)


def collision_radius(
    matches: ArrayLike, trials: ArrayLike, *, sigma: float, alpha: float
) -> np.ndarray:
    """No smaller change makes the smoothed matcher match; 0 if nothing is proved.

    Args:
        matches: how many of the noisy copies matched anything that they should not.
        trials: of how many.
        sigma: deviation of the noise.
        alpha: probability of error.
    """
    return sigma * np.maximum(stats.norm.ppf(1 - upper_bound(matches, trials, alpha)), 0)


def distance_bound(
    distances: np.ndarray, epsilon: float, *, sigma: float, alpha: float, share: float = 0.5
) -> np.ndarray:
    """What a quantile of an image's distance is at most after any change within a radius.

    The quantile of the noisy distances at the changed image is at most a higher one at the image
    itself, which an order statistic bounds.

    Args:
        distances: `[..., num_draws]` distances of noisy copies.
        epsilon: Euclidean norm of the change.
        sigma: deviation of the noise.
        alpha: probability of error.
        share: the quantile; a half is the median.

    Returns:
        `[...]` the bound; infinite where the draws are too few.
    """
    num = distances.shape[-1]
    higher = stats.norm.cdf(stats.norm.ppf(share) + epsilon / sigma)
    # More of the draws than that lie below the higher quantile with probability alpha at most.
    place = int(stats.binom.ppf(1 - alpha, num, higher))
    if place >= num:
        return np.full(distances.shape[:-1], np.inf)
    return np.sort(distances, axis=-1)[..., place].astype(float)


def bit_radii(positive: np.ndarray, num_draws: int, *, sigma: float, alpha: float) -> np.ndarray:
    """No smaller change flips a bit of the smoothed code, for all bits at once. `[..., num_bits]`

    Args:
        positive: `[..., num_bits]` how many of the noisy copies had the bit.
        num_draws: of how many.
        sigma: deviation of the noise.
        alpha: probability of error, of all bits of a code together.
    """
    most = np.maximum(positive, num_draws - positive)
    return evasion_radius(most, num_draws, sigma=sigma, alpha=alpha / positive.shape[-1])


def max_flips(radii: np.ndarray, epsilon: float) -> np.ndarray:
    """How many bits a change within a radius may flip at most. `[...]`

    Example:
        >>> int(max_flips(np.array([0.0, 0.2, 0.5]), 0.2))
        2
    """
    return np.sum(radii <= epsilon, axis=-1)


@dataclasses.dataclass(frozen=True)
class LinearHash:
    """A hash whose bits compare linear functions of the grey image with a common limit.

    Attributes:
        rows: `[num_rows, height]` weights down the image; the functions are all products of a row
            and of a column.
        columns: `[num_columns, width]` weights along it.
        limit: maps `[num_rows * num_columns]` values to what bits are compared with; it grows
            with each of them. A bit is set above it.
        slack: `[num_rows * num_columns]` how far what the hash computes may be from the linear
            values, by its rounding, in grey levels.
    """

    rows: np.ndarray
    columns: np.ndarray
    limit: Callable[[np.ndarray], float]
    slack: np.ndarray


# Weights of red, green and blue.
LUMA = np.array([0.299, 0.587, 0.114])


def linear_values(hashed: LinearHash, image: np.ndarray) -> np.ndarray:
    """The linear functions of a `[height, width, 3]` image in grey levels."""
    return (hashed.rows @ (image.astype(float) @ LUMA) @ hashed.columns.T).ravel()


def linear_flips(
    hashed: LinearHash, image: np.ndarray, epsilon: float, *, norm: str = "linf"
) -> tuple[np.ndarray, int]:
    """Which bits of a linear hash may flip within a ball, and how many at most together.

    Value i moves by at most epsilon times a norm of its weights; the limit by no more than from
    what it is of all lower ends to what it is of all upper ends. Bits whose interval does not meet
    the limit's stay.

    Args:
        hashed: the hash, for images of this size.
        image: `[height, width, 3]` in grey levels.
        epsilon: radius in grey levels: of the largest change, or the Euclidean norm of all.
        norm: "linf" or "l2".

    Returns:
        `[num_bits]` bool, and the number; of a hash by the median, of which half of the bits are
        set, as many flip up as down.
    """
    order, luma = (1, 1.0) if norm == "linf" else (2, float(np.linalg.norm(LUMA)))
    reach = np.outer(
        np.linalg.norm(hashed.rows, order, axis=1), np.linalg.norm(hashed.columns, order, axis=1)
    ).ravel()
    values, move = linear_values(hashed, image), epsilon * luma * reach + hashed.slack
    low, high = values - move, values + move
    lowest, highest = hashed.limit(low), hashed.limit(high)
    may_flip = (low <= highest) & (high >= lowest)
    above = values > hashed.limit(values)
    count = int(may_flip.sum())
    if hashed.limit in (lower_median, middle_median):
        count = min(count, 2 * min(int(may_flip[above].sum()), int(may_flip[~above].sum())))
    return may_flip, count


def lower_median(values: np.ndarray) -> float:
    """The lower of the two in the middle."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def middle_median(values: np.ndarray) -> float:
    """The mean of the two in the middle."""
    return float(np.median(values))


def mean(values: np.ndarray) -> float:
    """The mean."""
    return float(np.mean(values))


def nothing(values: np.ndarray) -> float:
    """Zero."""
    del values
    return 0.0
