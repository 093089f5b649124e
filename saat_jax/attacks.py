"""Attacks on a hash encoder: images an eye cannot tell apart, codes far apart.

An attack is handed `encode_fn(variables, images, alpha)`, which returns soft codes
`tanh(alpha * f(x))`, and never sees a network. Images are `[batch, height, width, channels]`
float32 in [0, 1]; `epsilon` and `step_size` are in the same units. A non-targeted attack
drives the code away from `target_codes`, a targeted one towards them.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
EncodeFn = Callable[[chex.ArrayTree, Array, Array | float], Array]
CodeLossFn = Callable[..., Array]

_ALPHAS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def alpha_schedule(num_steps: int) -> np.ndarray:
    """Anneals the tanh scale from 0.1 to 1 over an attack. `[num_steps]` float32

    A small scale keeps tanh out of saturation while the code is still far from its goal. The
    schedule holds 0.1 for the first half, then rises every tenth; with fewer than ten steps
    it ends below 1.

    Reference:
        SAAT, Section IV-A.
    """
    return np.array([_ALPHAS[10 * step // num_steps] for step in range(num_steps)], np.float32)


def mean_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """Mean agreement of codes and target codes, negated if targeted. `[batch]` in [-1, 1]

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        target_codes: `[batch, num_bits]` in {-1, 0, +1}.
        targeted: whether to approach the target codes rather than to leave them.

    Reference:
        SAAT, Eq. 13, 14 and 18.
    """
    agreement = jnp.mean(soft_codes * target_codes, axis=-1)
    return -agreement if targeted else agreement


def focused_loss(soft_codes: Array, target_codes: Array, *, targeted: bool) -> Array:
    """Agreement over the bits that are not yet settled, negated if targeted. `[batch]`

    With s the agreement of one bit, (s + 2) s is averaged over the bits with s > -0.5 (in a
    targeted attack s < 0.5): bits already won beyond a margin no longer draw on the budget.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        target_codes: `[batch, num_bits]` in {-1, 0, +1}.
        targeted: whether to approach the target codes rather than to leave them.

    Reference:
        The loss of the released SAAT attack; the paper has `mean_loss`. Differs from the
        released code: the average is over the example's own bits, not over the batch's, so
        that examples do not influence each other; and it is zero, not 0/0, when every bit is
        settled. The sign of its gradient is the same.
    """
    agreement = soft_codes * target_codes
    unsettled = agreement < 0.5 if targeted else agreement > -0.5
    weights = jax.lax.stop_gradient(unsettled.astype(agreement.dtype))
    total = jnp.sum(weights * (agreement + 2) * agreement, axis=-1)
    loss = total / jnp.maximum(jnp.sum(weights, axis=-1), 1)
    return -loss if targeted else loss


CODE_LOSSES: dict[str, CodeLossFn] = {"mean": mean_loss, "focused": focused_loss}


def code_loss(name: str, *, targeted: bool) -> Callable[[Array, Array], Array]:
    """Looks up a code loss, to be minimised over the image.

    Raises:
        ValueError: if no loss has that name.
    """
    if name not in CODE_LOSSES:
        raise ValueError(f"unknown attack loss {name!r}; expected one of {sorted(CODE_LOSSES)}")
    return functools.partial(CODE_LOSSES[name], targeted=targeted)


def project(adversarial: Array, images: Array, *, epsilon: float) -> Array:
    """Moves images to the nearest point in the L-infinity ball and in [0, 1]."""
    return jnp.clip(jnp.clip(adversarial, images - epsilon, images + epsilon), 0, 1)


def row_keys(rng: Array, num_rows: int) -> Array:
    """One key for each row: `rng` itself if it is `[num_rows]` keys, else folded by row.

    Keys that belong to rows, not to batches, make a random start independent of how the
    images are batched and over how many devices they are spread.
    """
    if rng.ndim == 1 and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(num_rows))


def uniform_noise(rng: Array, images: Array, *, epsilon: float) -> Array:
    """Noise uniform in [-epsilon, epsilon], drawn with one key for each image.

    Args:
        rng: one key, or `[batch]` keys.
        images: `[batch, height, width, channels]`; gives shape and dtype.
        epsilon: largest magnitude.
    """

    def draw(key: Array) -> Array:
        return jax.random.uniform(key, images.shape[1:], images.dtype, -epsilon, epsilon)

    return jax.vmap(draw)(row_keys(rng, images.shape[0]))


def sign_descent(
    loss_fn: Callable[[Array, Array, Any], tuple[Array, Any]],
    images: Array,
    start: Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int | Array,
    carry: Any = None,
) -> tuple[Array, Any]:
    """Minimises a loss over the L-infinity ball by projected steps along the gradient's sign.

    One `lax.fori_loop`; only the gradient with respect to the images is taken.

    Args:
        loss_fn: maps (images, step index, carry) to (scalar loss, new carry).
        images: `[batch, height, width, channels]` centres of the ball.
        start: same shape, where to begin; projected first.
        epsilon: radius of the ball.
        step_size: change of a pixel in one step.
        num_steps: number of steps; a traced number compiles once for all values.
        carry: what the loss keeps from step to step, such as running statistics.

    Returns:
        The final images and the final carry, both constants for differentiation.
    """

    def body(step: Array, state: tuple[Array, Any]) -> tuple[Array, Any]:
        adversarial, carry = state
        gradient, carry = jax.grad(loss_fn, has_aux=True)(adversarial, step, carry)
        adversarial = adversarial - step_size * jnp.sign(gradient)
        return project(adversarial, images, epsilon=epsilon), carry

    state = (project(start, images, epsilon=epsilon), carry)
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, body, state))


def pgd(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    target_codes: Array,
    rng: Array,
    *,
    epsilon: float,
    step_size: float,
    num_steps: int,
    targeted: bool,
    loss: str = "focused",
    alphas: Array | np.ndarray | None = None,
    random_start: bool = True,
    start: Array | None = None,
) -> Array:
    """Perturbs images within a ball so that their codes leave, or reach, the target codes.

    With mainstay codes as target codes this is the attack of SAAT: the own labels' codes for
    a non-targeted attack, the wanted labels' codes for a targeted one.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs, usually a network's parameters.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        target_codes: `[batch, num_bits]` in {-1, 0, +1}; a zero bit takes no part.
        rng: one key, or `[batch]` keys, which make the start of an image its own.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`.
        step_size: change of a pixel in one step, such as `1 / 255`.
        num_steps: number of steps.
        targeted: whether to approach the target codes rather than to leave them.
        loss: "focused" as in the released code, or "mean" as in the paper.
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        random_start: whether to begin at a uniformly random point of the ball (released
            code) or at the images (Eq. 15).
        start: `[batch, height, width, channels]` to begin there instead.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Raises:
        ValueError: if the loss is unknown, the images are not floats or `alphas` has another
            length than `num_steps`.

    Reference:
        SAAT, Eq. 15 and Section IV-A.
    """
    chex.assert_rank([images, target_codes], [4, 2])
    chex.assert_equal_shape_prefix([images, target_codes], 1)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}; divide by 255")
    schedule = jnp.ones(num_steps) if alphas is None else jnp.asarray(alphas)
    if schedule.shape != (num_steps,):
        raise ValueError(
            f"alphas must hold one scale for each of the {num_steps} steps, "
            f"got shape {schedule.shape}; try alpha_schedule({num_steps})"
        )
    # No steps leave the start as it is: the loop's body is traced all the same.
    schedule = jnp.append(schedule, 1)
    loss_fn = code_loss(loss, targeted=targeted)

    def total_loss(adversarial: Array, step: Array, _: None) -> tuple[Array, None]:
        soft_codes = encode_fn(variables, adversarial, schedule[step])
        return jnp.sum(loss_fn(soft_codes, target_codes)), None

    if start is None:
        start = images + uniform_noise(rng, images, epsilon=epsilon) if random_start else images
    adversarial, _ = sign_descent(
        total_loss, images, start, epsilon=epsilon, step_size=step_size, num_steps=num_steps
    )
    return adversarial


# The attacks a config may name; each is called like `pgd`.
ATTACKS: dict[str, Callable[..., Array]] = {"mainstay": pgd}


def target_candidates(labels: np.ndarray, database_labels: np.ndarray) -> list[np.ndarray]:
    """Lists, for each query, the rows of label vectors that share no label with it.

    Args:
        labels: `[num_queries, num_classes]` multi-hot.
        database_labels: `[num_database, num_classes]` multi-hot.

    Returns:
        For each query an ascending array of row numbers of the distinct database label
        vectors in lexicographic order, the all-zero vector left out.
    """
    distinct = _distinct_labels(database_labels)
    return [np.flatnonzero(row == 0) for row in np.asarray(labels) @ distinct.T]


def _distinct_labels(database_labels: np.ndarray) -> np.ndarray:
    distinct = np.unique(np.asarray(database_labels), axis=0)
    return distinct[distinct.any(axis=1)]


def select_target_labels(
    labels: np.ndarray, database_labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws for each query a label vector of the database that shares no label with it.

    Draw once for a run, and let every targeted attack of the run use the same.

    Args:
        labels: `[num_queries, num_classes]` multi-hot labels of the queries.
        database_labels: `[num_database, num_classes]` multi-hot.
        rng: NumPy generator; one draw for each query.

    Returns:
        `[num_queries, num_classes]` multi-hot, in the dtype of `database_labels`.

    Raises:
        ValueError: if a query shares a label with every label vector of the database.

    Reference:
        The "disjoint" protocol of the released SAAT code.
    """
    candidates = target_candidates(labels, database_labels)
    hopeless = [query for query, rows in enumerate(candidates) if rows.size == 0]
    if hopeless:
        raise ValueError(
            f"{len(hopeless)} queries share a label with every label vector of the database, "
            f"so they have no target (first: query {hopeless[0]}); leave these queries out"
        )
    chosen = [int(rng.choice(rows)) for rows in candidates]
    return _distinct_labels(database_labels)[chosen]
