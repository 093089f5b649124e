"""PrototypeNet: from a target label to the code that stands for it.

THA and ProS-GAN train a small network so that the code it gives a label vector is near the
codes of the training images that share a label with it, and far from all others. THA attacks
towards this prototype code; ProS-GAN's generator also reads the network's last hidden layer,
the semantics of the label. Knows labels and codes, nothing of images or hash networks.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from saat_jax import hamming, networks, objectives, options

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Batch = dict[str, Array]
Metrics = dict[str, Array]


class Prototypes(NamedTuple):
    """What ProS-GAN's PrototypeNet makes of labels.

    Attributes:
        semantics: `[batch, semantics_width]` float, for the generator.
        soft_codes: `[batch, num_bits]` in (-1, 1).
        class_probabilities: `[batch, num_classes]` in (0, 1), the labels read back.
    """

    semantics: Array
    soft_codes: Array
    class_probabilities: Array


class ThaPrototypeNet(nn.Module):
    """THA's PrototypeNet: hidden layers, the last of them without activation, and a code.

    Attributes:
        num_bits: code length.
        num_classes: length of a label vector.
        hidden_width: units of the first hidden layer.
        semantics_width: units of the last.
        num_hidden: number of layers of `hidden_width`.
    """

    num_bits: int
    num_classes: int
    hidden_width: int = 4096
    semantics_width: int = 512
    num_hidden: int = 1

    @nn.compact
    def __call__(self, labels: Array) -> Array | Prototypes:
        """Maps `[batch, num_classes]` multi-hot labels to `[batch, num_bits]` soft codes."""
        return self.prototypes(labels)[1]

    def prototypes(self, labels: Array) -> tuple[Array, Array]:
        """The semantics and the soft codes of labels."""
        hidden = nn.relu(networks.Dense(self.hidden_width, name="hidden")(labels))
        for number in range(2, self.num_hidden + 1):
            layer = networks.Dense(self.hidden_width, name=f"hidden_{number}")
            hidden = nn.relu(layer(hidden))
        semantics = networks.Dense(self.semantics_width, name="semantics")(hidden)
        return semantics, jnp.tanh(networks.Dense(self.num_bits, name="code")(semantics))


class ProsganPrototypeNet(ThaPrototypeNet):
    """ProS-GAN's PrototypeNet: as THA's, and it reads the label back from the semantics."""

    @nn.compact
    def __call__(self, labels: Array) -> Prototypes:
        """Maps `[batch, num_classes]` multi-hot labels to `Prototypes`."""
        semantics, soft_codes = self.prototypes(labels)
        logits = networks.Dense(self.num_classes, name="classes")(semantics)
        return Prototypes(semantics, soft_codes, nn.sigmoid(logits))


# The networks a config may name.
PROTOTYPE_NETS: options.Choices[type[ThaPrototypeNet]] = options.Choices(
    "prototype net", {"prosgan": ProsganPrototypeNet, "tha": ThaPrototypeNet}
)


def create_prototype_net(
    name: str,
    *,
    num_bits: int,
    num_classes: int,
    hidden_width: int = 4096,
    semantics_width: int = 512,
    num_hidden: int = 1,
) -> ThaPrototypeNet:
    """Makes a PrototypeNet by name.

    Args:
        name: one of `PROTOTYPE_NETS`.
        num_bits: code length.
        num_classes: length of a label vector.
        hidden_width: units of the first hidden layer.
        semantics_width: units of the last.
        num_hidden: number of layers of `hidden_width`: 1 as released. ProS-GAN's paper has four
            layers, which are these with the labels counted as one, or else one more: 2.

    Raises:
        ValueError: if there is no such network, or a number is out of its range.
    """
    sizes: dict[str, Any] = dict(
        num_bits=num_bits,
        num_classes=num_classes,
        hidden_width=hidden_width,
        semantics_width=semantics_width,
        num_hidden=num_hidden,
    )
    options.check_numbers(**sizes)
    return PROTOTYPE_NETS[name](**sizes)


def encode_labels(
    net: ThaPrototypeNet, params: chex.ArrayTree, labels: ArrayLike, *, batch_size: int = 1024
) -> Array | Prototypes:
    """What the network makes of any number of labels, `batch_size` of them at a time.

    Args:
        net: a PrototypeNet.
        params: its parameters.
        labels: `[num_labels, num_classes]` multi-hot.
        batch_size: labels in one pass, which bounds the memory.

    Returns:
        `[num_labels, num_bits]` soft codes of THA's network; `Prototypes` of ProS-GAN's.
    """
    output: Any = lax.map(
        functools.partial(net.apply, {"params": params}), jnp.asarray(labels), batch_size=batch_size
    )
    return output


def prototype_codes(
    net: ThaPrototypeNet, params: chex.ArrayTree, labels: ArrayLike, *, batch_size: int = 1024
) -> Array:
    """Rounds the soft codes of `encode_labels`. `[num_labels, num_bits]` in {-1, +1}"""
    output = encode_labels(net, params, labels, batch_size=batch_size)
    return hamming.binarize(_soft_codes(output))


def _soft_codes(output: Array | Prototypes) -> Array:
    return output.soft_codes if isinstance(output, Prototypes) else output


def circle_pairs(labels: Array, bank_labels: Array, mask: Array) -> tuple[Array, Array]:
    """Which pairs of target label and bank entry the circle loss pulls, and which it pushes.

    Pairs that share a label, and pairs that do not. As released, only entries right of the
    diagonal count, though the matrix is not square: real row i leaves out its first i + 1.

    Args:
        labels: `[batch, num_classes]` multi-hot target labels.
        bank_labels: `[bank_size, num_classes]` multi-hot.
        mask: `[batch]` 1 for real rows, 0 for padding, which is in no pair.

    Returns:
        Two bool arrays `[batch, bank_size]`.
    """
    right = jnp.arange(len(bank_labels)) >= jnp.cumsum(mask)[:, None]
    kept = right & (mask[:, None] > 0)
    similar = objectives.similarity(labels, bank_labels) > 0
    return kept & similar, kept & ~similar


def circle_loss(
    similarities: Array,
    positive: Array,
    negative: Array,
    *,
    softplus: bool,
    gamma: float = 1.0,
) -> Array:
    """Pulls similarities of positive pairs up and of negative ones down. Scalar

    With constant weights a = 2 - s for positive pairs and a = 2 + s for negative ones, so that
    pairs far from their goal weigh more: l = LSE over negatives (gamma a s) + LSE over positives
    (-gamma a s), where LSE is the logarithm of the sum of exponentials.

    Args:
        similarities: any shape, in [-1, 1].
        positive: bool, same shape.
        negative: bool, same shape.
        softplus: whether to return softplus(l) (SAAT's repository) or l (THA's and CgAT's).
        gamma: scale of the terms; 1 as published.

    Reference:
        Sun et al., Circle loss, CVPR 2020, with margin 0. Without pairs of one
        kind the released l is minus infinity. Here softplus(l) is then 0 with no gradient, as
        released; l is its finite half, whose gradient is the released one.
    """
    pull, push = (lax.stop_gradient(jnp.maximum(2 + sign * similarities, 0)) for sign in (-1, 1))
    # An empty sum's logarithm would be infinite, and the gradient NaN.
    total = _log_sum_exp(gamma * push * similarities, negative) + _log_sum_exp(
        -gamma * pull * similarities, positive
    )
    if not softplus:
        return total
    return jnp.where(jnp.any(positive) & jnp.any(negative), jax.nn.softplus(total), 0.0)


def _log_sum_exp(values: Array, mask: Array) -> Array:
    """Over the entries of the mask; 0 if there are none."""
    some = jnp.any(mask)
    return jnp.where(some, jax.nn.logsumexp(jnp.where(mask | ~some, values, -jnp.inf)), 0.0)


def prototype_loss(
    output: Array | Prototypes,
    labels: Array,
    bank: objectives.CodeBank,
    mask: Array,
    *,
    pairs: Literal["circle", "likelihood"],
    softplus: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Metrics:
    """The loss of a batch of prototypes and its terms, each as it enters the loss.

    Args:
        output: `[batch, num_bits]` soft codes, or `Prototypes`, which add a term for classes.
        labels: `[batch, num_classes]` multi-hot target labels.
        bank: codes in {-1, +1} and labels of the training images.
        mask: `[batch]` 1 for real rows, 0 for padding, which has no influence at all.
        pairs: "circle" (THA, and ProS-GAN's journal version): `circle_loss`; "likelihood"
            (ProS-GAN): negative log-likelihood of shared labels, as DPSH's.
        softplus: see `circle_loss`.
        reduction: "mean" as released: the circle loss and the quantisation are divided by the
            number of rows, all else is the mean over its entries. "sum" as printed: plain sums.

    Returns:
        "loss", a scalar, and its terms "pair_loss", "quantization_loss" (weight 1e-4) and, of
        `Prototypes`, "class_loss" (squared error).

    Raises:
        ValueError: if a name is unknown.

    Reference:
        THA; ProS-GAN, Eq. 3.
    """
    options.check_word("pairs", pairs, ("circle", "likelihood"))
    options.check_word("reduction", reduction, ("mean", "sum"))
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    soft_codes = _soft_codes(output)
    num_bits = soft_codes.shape[-1]
    products = jnp.matmul(soft_codes, bank.codes.T, precision=lax.Precision.HIGHEST)
    if pairs == "circle":
        positive, negative = circle_pairs(labels, bank.labels, mask)
        pair_loss = circle_loss(products / num_bits, positive, negative, softplus=softplus)
    else:
        theta = products / 2
        errors = jax.nn.softplus(theta) - objectives.similarity(labels, bank.labels) * theta
        pair_loss = jnp.sum(mask * reduce(errors, axis=-1))
    quantization = num_bits * objectives.quantization(soft_codes)
    terms = {
        "pair_loss": pair_loss,
        "quantization_loss": 1e-4 * jnp.sum(mask * quantization),
    }
    if isinstance(output, Prototypes):
        errors = jnp.square(output.class_probabilities - labels)
        terms["class_loss"] = jnp.sum(mask * reduce(errors, axis=-1))
    if reduction == "mean":
        count = jnp.maximum(jnp.sum(mask), 1)
        terms = {name: term / count for name, term in terms.items()}
    return {"loss": sum(terms.values(), jnp.zeros(())), **terms}


@flax.struct.dataclass
class PrototypeState:
    """All that PrototypeNet's training changes, and the bank it learns from.

    Attributes:
        step: int32 number of updates done.
        params: the network's parameters.
        opt_state: the optimizer's state.
        bank: codes and labels of the training images; never changes, and is small beside the
            parameters.
    """

    step: Array
    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    bank: objectives.CodeBank


def init_prototype_state(
    net: ThaPrototypeNet,
    optimizer: optax.GradientTransformation,
    bank: objectives.CodeBank,
    rng: Array,
) -> PrototypeState:
    """The state before the first update.

    Args:
        net: a PrototypeNet.
        optimizer: an optax transformation.
        bank: codes in {-1, +1} and labels of the training images.
        rng: key of the initial parameters, which are PyTorch's default.

    Raises:
        ValueError: if the bank does not suit the network.
    """
    size = len(bank.codes)
    expected = (size, net.num_bits), (size, net.num_classes)
    if (bank.codes.shape, bank.labels.shape) != expected:
        raise ValueError(
            f"the code bank must hold as many codes of {net.num_bits} bits as labels of "
            f"{net.num_classes} classes, got shapes {bank.codes.shape} and {bank.labels.shape}; "
            "make the network for the bank's bits and classes"
        )
    params = net.init(rng, jnp.zeros((1, net.num_classes)))["params"]
    return PrototypeState(jnp.zeros((), jnp.int32), params, optimizer.init(params), bank)


def make_prototype_update(
    net: ThaPrototypeNet, optimizer: optax.GradientTransformation, **loss_options: Any
) -> Callable[..., tuple[PrototypeState, Metrics]]:
    """Builds the update of PrototypeNet's training.

    The circle loss ties all rows together and a batch of labels is tiny, so every device makes
    the same update from the rows of all.

    Args:
        net: a PrototypeNet.
        optimizer: an optax transformation; released with Adam, betas 0.5 and 0.999.
        **loss_options: keyword arguments of `prototype_loss`.

    Returns:
        `update(state, batch, *, axis_name)`, of which the batch has the device's rows of
        "label" `[rows, num_classes]` and "mask" `[rows]`; its metrics are those of
        `prototype_loss`.
    """

    def update(
        state: PrototypeState, batch: Batch, *, axis_name: str
    ) -> tuple[PrototypeState, Metrics]:
        labels, mask = lax.all_gather((batch["label"], batch["mask"]), axis_name, tiled=True)

        def loss_fn(params: chex.ArrayTree) -> tuple[Array, Metrics]:
            output: Any = net.apply({"params": params}, labels)
            metrics = prototype_loss(output, labels, state.bank, mask, **loss_options)
            return metrics["loss"], metrics

        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return PrototypeState(state.step + 1, params, opt_state, state.bank), metrics

    return update


def target_label_batches(
    database_labels: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over batches of target labels, each fixed by `seed` and its step.

    Labels are drawn uniformly, with replacement, from the distinct label vectors of the
    database; the zero vector is one of them if an image has no label.

    Args:
        database_labels: `[num_database, num_classes]` multi-hot.
        batch_size: real rows of a global batch, over all processes.
        seed: of the draws; not negative.
        start_step: number of batches to leave out, those a resumed run has already seen.
        num_steps: number of batches from step 0.
        num_devices: of all processes; a batch that does not divide by it is filled up with rows of
            mask 0.
        process_index: which share of each global batch to yield.
        process_count: number of equal, contiguous shares.

    Returns:
        Iterator of dicts: "label" [batch, num_classes] float32, "mask" [batch] float32, 1 for
        a real row.

    Raises:
        ValueError: if the batch cannot be shared.
    """
    padding = -batch_size % num_devices
    share, rest = divmod(batch_size + padding, process_count)
    if share < 1 or rest:
        raise ValueError(
            f"batch_size must be a multiple of the {process_count} processes, got {batch_size}"
        )
    labels = np.unique(np.asarray(database_labels, np.float32), axis=0)
    mask = np.pad(np.ones(batch_size, np.float32), (0, padding))

    def draw(step: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng((seed, step)).integers(len(labels), size=batch_size)
        rows = np.pad(rows, (0, padding))
        own = slice(process_index * share, (process_index + 1) * share)
        return {"label": labels[rows[own]] * mask[own, None], "mask": mask[own]}

    return map(draw, range(start_step, num_steps))
