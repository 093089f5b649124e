"""Attacks that leave the images to an optimizer: HAG and SDHA.

Both begin at the images, and project to the ball and to [0, 1] after every step. Neither draws
at random. Their optimizers feel the scale of the loss, a mean over a batch in the released
code; here each image has a loss of its own, divided by that batch's size, `batch_scale`. Their
authors report the codes of the last forward pass, which came before the last step: with
`num_steps - 1` steps, and the same tanh scales, the images returned have these codes.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from saat_jax import hamming, options
from saat_jax.attacks.descent import checked_images, minimize
from saat_jax.hamming import EncodeFn
from saat_jax.labels import check_labels, share_label

Array = jax.Array


def hag_mask(soft_codes: Array, own_codes: Array, *, threshold: float = 0.5) -> Array:
    """Marks the bits that have not yet left the own codes by a margin.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        own_codes: `[batch, num_bits]` soft codes of the unperturbed images.
        threshold: a soft bit that is wrong by more than this is settled.

    Returns:
        `[batch, num_bits]`: 1 for a bit still to flip, 0 for one settled, 1/2 on the margin.
        A constant for differentiation.
    """
    hamming.check_aligned(soft_codes=soft_codes, own_codes=own_codes)
    options.check_numbers(threshold=threshold)
    excess = 1 + threshold - jnp.abs(soft_codes - jnp.sign(own_codes))
    return jax.lax.stop_gradient((1 + jnp.sign(excess)) / 2)


def hag_loss(
    soft_codes: Array,
    own_codes: Array,
    *,
    threshold: float = 0.5,
    balance_weight: float = 1.0,
) -> Array:
    """Squared distance of the unsettled bits' agreement from -1, with a penalty on their mean.

    Args:
        soft_codes: `[batch, num_bits]` in (-1, 1).
        own_codes: `[batch, num_bits]` soft codes of the unperturbed images.
        threshold: see `hag_mask`.
        balance_weight: weight of the squared mean of the unsettled soft bits.

    Returns:
        `[batch]` losses, to be minimised.
    """
    options.check_numbers(balance_weight=balance_weight)
    mask = hag_mask(soft_codes, own_codes, threshold=threshold)
    masked = mask * soft_codes
    agreement = jnp.sum(masked * mask * own_codes, -1) / (jnp.sum(mask, -1) + 1e-8)
    return (agreement + 1) ** 2 + balance_weight * jnp.mean(masked, -1) ** 2


def sdha_surrogate(
    soft_codes: Array,
    code_bank: Array,
    relevant: Array,
    *,
    targeted: bool,
    own_codes: Array | None = None,
    sharpness: float | None = None,
    exponent: float | None = None,
) -> Array:
    """Mean smoothed Hamming distance to the relevant codes of a bank, negated unless targeted.

    A relevant code at Hamming distance D is weighted by (D + 1e-8) ** -exponent: the nearest
    matter most to an attack that flees, the farthest to one that approaches. A bit's term has
    but two values over the bank, so two products with the bank hold the whole sum.

    Args:
        soft_codes: `[batch, num_bits]` in [-1, 1].
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes, which are rounded.
        relevant: `[batch, bank_size]` booleans.
        targeted: whether to approach the relevant codes rather than to leave them.
        own_codes: `[batch, num_bits]` codes, or soft codes, that stand in for an example to
            which nothing is relevant; without them its surrogate is zero.
        sharpness: slope of the sigmoid that smooths a bit; by default 5, if targeted 10.
        exponent: by default 0.5, if targeted -0.3.

    Returns:
        `[batch]` surrogates, to be minimised.

    Reference:
        Differs from the released code: a targeted surrogate without relevant codes is zero,
        not NaN.
    """
    options.check_shapes(
        soft_codes=(soft_codes, "batch num_bits"),
        code_bank=(code_bank, "bank_size num_bits"),
        relevant=(relevant, "batch bank_size"),
    )
    if own_codes is not None:
        hamming.check_aligned(soft_codes=soft_codes, own_codes=own_codes)
    options.check_numbers(sharpness=sharpness, exponent=exponent)
    if sharpness is None:
        sharpness = 10.0 if targeted else 5.0
    if exponent is None:
        exponent = -0.3 if targeted else 0.5
    bank = hamming.binarize(code_bank)
    signs = jax.lax.stop_gradient(jnp.sign(soft_codes))

    def by_sign(codes: Array) -> Array:
        """Sets the bits of each code in its first half if +1, in its second if -1."""
        return jnp.concatenate([codes > 0, codes < 0], -1).astype(soft_codes.dtype)

    def weigh(distances: Array) -> Array:
        return (distances + 1e-8) ** -exponent

    counts = jnp.sum(relevant, -1, keepdims=True)
    weights = (
        relevant * weigh(hamming.hamming_distance(signs, bank, zeros=True)) / jnp.maximum(counts, 1)
    )
    # A bfloat16 or TF32 product, an accelerator's default, would lose the lesser weights.
    totals = jnp.matmul(weights, by_sign(bank), precision=jax.lax.Precision.HIGHEST)
    if own_codes is not None:
        own = hamming.binarize(own_codes)
        distances = jnp.sum(1 - signs * own, -1, keepdims=True) / 2
        totals = jnp.where(counts > 0, totals, weigh(distances) * by_sign(own))
    agreement = jnp.concatenate([soft_codes, -soft_codes], -1)
    if targeted:
        return jnp.sum(totals * (1 - agreement) / 2 * jax.nn.sigmoid(-sharpness * agreement), -1)
    agreeing = jax.nn.sigmoid(sharpness * agreement)
    return -jnp.sum(totals * ((1 - agreement) / 2 * agreeing + 1 - agreeing), -1)


def sdha_loss(
    soft_codes: Array,
    adversarial: Array,
    images: Array,
    code_bank: Array,
    relevant: Array,
    *,
    targeted: bool,
    own_codes: Array | None = None,
    surrogate_weight: float = 25.0,
) -> Array:
    """Mean squared change of the image plus the weighted `sdha_surrogate` per bit. `[batch]`

    Args:
        soft_codes: `[batch, num_bits]` in [-1, 1], of the adversarial images.
        adversarial: `[batch, height, width, channels]` in [0, 1].
        images: `[batch, height, width, channels]` in [0, 1].
        code_bank: see `sdha_surrogate`, as for the remaining arguments.
        relevant: `[batch, bank_size]` booleans.
        targeted: whether to approach the relevant codes rather than to leave them.
        own_codes: `[batch, num_bits]` codes for examples without relevant ones.
        surrogate_weight: weight of the surrogate, which is divided by the number of bits.
    """
    shape = "batch height width channels"
    options.check_shapes(
        soft_codes=(soft_codes, "batch num_bits"),
        adversarial=(adversarial, shape),
        images=(images, shape),
    )
    options.check_numbers(surrogate_weight=surrogate_weight)
    surrogate = sdha_surrogate(
        soft_codes, code_bank, relevant, targeted=targeted, own_codes=own_codes
    )
    change = jnp.mean((adversarial - images) ** 2, axis=(1, 2, 3))
    return change + surrogate_weight / soft_codes.shape[-1] * surrogate


def hag(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    own_codes: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    num_steps: int,
    alphas: Array | np.ndarray | None = None,
    learning_rate: float = 100.0,
    momentum: float = 0.9,
    threshold: float = 0.5,
    balance_weight: float = 1.0,
    batch_scale: int = 128,
) -> Array:
    """Perturbs images so that their codes turn into the opposite of their own.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs, usually a network's parameters.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        own_codes: `[batch, num_bits]` soft codes of `images`, at a tanh scale of 1.
        rng: not used.
        targeted: must be False.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`.
        num_steps: number of steps; the authors take 2000.
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        learning_rate: of gradient descent, on the loss divided by `batch_scale`.
        momentum: of gradient descent; the projection leaves it as it is.
        threshold: see `hag_mask`.
        balance_weight: see `hag_loss`.
        batch_scale: size of the batch over which the released code takes a mean.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Raises:
        ValueError: if the attack is to be targeted; else as of `pgd`.

    Reference:
        Yang et al., Adversarial examples for Hamming space search, IEEE Transactions on
        Cybernetics 2020, as in the code released with SAAT.
    """
    if targeted:
        raise ValueError(
            "hag takes targeted=False only, got True: it has no targeted form; "
            "use sdha, or pgd with target codes"
        )
    options.check_numbers(learning_rate=learning_rate, momentum=momentum, batch_scale=batch_scale)
    hamming.check_codes("own_codes", own_codes)

    def loss_fn(soft_codes: Array, _: Array) -> Array:
        losses = hag_loss(soft_codes, own_codes, threshold=threshold, balance_weight=balance_weight)
        return losses / batch_scale

    return minimize(
        loss_fn,
        encode_fn,
        variables,
        checked_images(images),
        rule=optax.sgd(learning_rate, momentum),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
    )


def sdha(
    encode_fn: EncodeFn,
    variables: chex.ArrayTree,
    images: Array,
    labels: Array,
    rng: Array,
    *,
    targeted: bool,
    epsilon: float,
    num_steps: int,
    code_bank: Array,
    bank_labels: Array,
    alphas: Array | np.ndarray | None = None,
    learning_rate: float = 0.01,
    surrogate_weight: float = 25.0,
    batch_scale: int = 128,
) -> Array:
    """Perturbs images so that their codes leave, or reach, all codes that share a label.

    An image whose labels no bank row shares flees its own code; in a targeted attack it has
    nothing to reach, and stays as it is.

    Args:
        encode_fn: maps (variables, images, alpha) to `[batch, num_bits]` soft codes.
        variables: what `encode_fn` needs, usually a network's parameters.
        images: `[batch, height, width, channels]` float32 in [0, 1].
        labels: `[batch, num_classes]` multi-hot; the images' own, or the targets'.
        rng: not used.
        targeted: whether to approach the relevant codes rather than to leave them.
        epsilon: radius of the L-infinity ball in units of [0, 1], such as `8 / 255`.
        num_steps: number of steps; the authors take 1500.
        code_bank: `[bank_size, num_bits]` codes in {-1, +1}, or soft codes, which are rounded.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        alphas: `[num_steps]` tanh scale of each step, such as `alpha_schedule(num_steps)`;
            by default 1 throughout.
        learning_rate: of Adam.
        surrogate_weight: see `sdha_loss`.
        batch_scale: size of the batch over which the released code takes a mean; Adam feels
            it where a gradient is near its epsilon of 1e-8.

    Returns:
        `[batch, height, width, channels]` images within `epsilon` of `images`, in [0, 1].

    Raises:
        ValueError: as of `pgd`, of the labels too.

    Reference:
        Lu et al., A smart adversarial attack on deep hashing based image retrieval, ICMR 2021,
        as in the code released with SAAT; see `sdha_surrogate` for what differs.
    """
    options.check_numbers(learning_rate=learning_rate, batch_scale=batch_scale)
    images = checked_images(images)
    check_labels("labels", labels)
    check_labels("bank_labels", bank_labels)
    hamming.check_codes("code_bank", code_bank)
    options.check_shapes(
        images=(images, "batch height width channels"),
        labels=(labels, "batch num_classes"),
        code_bank=(code_bank, "bank_size num_bits"),
        bank_labels=(bank_labels, "bank_size num_classes"),
    )
    relevant = share_label(labels, bank_labels)
    own_codes = None if targeted else encode_fn(variables, images, 1.0)

    def loss_fn(soft_codes: Array, adversarial: Array) -> Array:
        losses = sdha_loss(
            soft_codes,
            adversarial,
            images,
            code_bank,
            relevant,
            targeted=targeted,
            own_codes=own_codes,
            surrogate_weight=surrogate_weight,
        )
        return losses / batch_scale

    return minimize(
        loss_fn,
        encode_fn,
        variables,
        images,
        rule=optax.adam(learning_rate),
        epsilon=epsilon,
        num_steps=num_steps,
        alphas=alphas,
    )
