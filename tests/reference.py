"""Slow truths in NumPy and plain loops; shares no code with the library."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

# --- codes and retrieval ---


def hamming_distances(query_code: np.ndarray, database_codes: np.ndarray) -> list[float]:
    """(num_bits - agreement) / 2 for every item: a zero entry is half a differing bit."""
    return [
        sum((1 - int(a) * int(b)) / 2 for a, b in zip(query_code, code, strict=True))
        for code in database_codes
    ]


def relevance(query_label: np.ndarray, database_labels: np.ndarray) -> list[int]:
    """One for every item that shares a label with the query, else zero."""
    return [
        int(any(a > 0 and b > 0 for a, b in zip(query_label, label, strict=True)))
        for label in database_labels
    ]


def ranking(distances: Sequence[float]) -> list[int]:
    """Items by (distance, index)."""
    return sorted(range(len(distances)), key=lambda item: (distances[item], item))


def tie_orders(distances: Sequence[float]) -> Iterator[list[int]]:
    """Every ranking that sorts by distance: all permutations of all groups of tied items."""
    groups = [
        [item for item, distance in enumerate(distances) if distance == level]
        for level in sorted(set(distances))
    ]
    for parts in itertools.product(*map(itertools.permutations, groups)):
        yield list(itertools.chain(*parts))


def average_precision(hits_by_rank: Sequence[int], k: int, normalizer: str) -> float:
    """AP at k of one ranking, given the relevance of its items in rank order."""
    hits, total = 0, 0.0
    for rank, hit in enumerate(hits_by_rank[:k], start=1):
        if hit:
            hits += 1
            total += hits / rank
    best = hits if normalizer == "hits" else min(k, sum(hits_by_rank))
    return total / best if best else 0.0


def weighted_precision(shared_by_rank: Sequence[int], k: int, normalizer: str) -> float:
    """WAP at k of one ranking, given how many labels each item shares, in rank order."""
    hits, gain, total = 0, 0, 0.0
    for rank, shared in enumerate(shared_by_rank[:k], start=1):
        gain += shared
        if shared > 0:
            hits += 1
            total += gain / rank
    best = hits if normalizer == "hits" else min(k, sum(s > 0 for s in shared_by_rank))
    return total / best if best else 0.0


def ndcg(shared_by_rank: Sequence[int], k: int) -> float:
    """NDCG at k of one ranking, given how many labels each item shares, in rank order."""

    def gain(order: Sequence[int]) -> float:
        return sum((2**r - 1) / math.log2(1 + i) for i, r in enumerate(order[:k], start=1))

    best = gain(sorted(shared_by_rank, reverse=True))
    return gain(shared_by_rank) / best if best else 0.0


def rank_of_hit(hits_by_rank: Sequence[int], hit: int) -> int:
    """The rank, from one, at which the number of hits reaches `hit`."""
    seen = 0
    for rank, is_hit in enumerate(hits_by_rank, start=1):
        seen += is_hit
        if seen == hit:
            return rank
    raise ValueError(f"{hits_by_rank} has fewer than {hit} hits")


def precision_at_recall(rankings: Sequence[Sequence[int]], recall_level: float) -> float:
    """Hits over the mean rank, over rankings of the same items, of the hit that gives the recall.

    One ranking: the precision of the papers' curve.
    """
    hits = int(sum(rankings[0]) * recall_level)
    if hits == 0:
        return 0.0
    return hits / (sum(rank_of_hit(one, hits) for one in rankings) / len(rankings))


def precision_at_n(hits_by_rank: Sequence[int], n: int) -> float:
    """Share of relevant items among the first n."""
    return sum(hits_by_rank[:n]) / n


# --- perceptibility ---


def perceptibility(image: np.ndarray, adversarial: np.ndarray) -> dict[str, float]:
    """The distances between two `[height, width, channels]` images."""
    height, width, channels = image.shape
    entries, row_norms, spectral_norms = [], [], []
    for c in range(channels):
        matrix = [
            [float(adversarial[i, j, c]) - float(image[i, j, c]) for j in range(width)]
            for i in range(height)
        ]
        entries += [x for row in matrix for x in row]
        row_norms.append(max(sum(abs(x) for x in row) for row in matrix))
        spectral_norms.append(np.linalg.svd(np.array(matrix), compute_uv=False)[0])
    square = sum(x * x for x in entries)
    mse = square / len(entries)
    return {
        "linf": max(abs(x) for x in entries),
        "l2": square**0.5,
        "mse": mse,
        "psnr": 10 * np.log10(1 / mse) if mse else float("inf"),
        "matrix_norm_linf": sum(row_norms) / channels,
        "matrix_norm_l2": sum(spectral_norms) / channels,
    }


# --- mainstay codes ---


def mainstay_weights(
    label: np.ndarray, bank_labels: np.ndarray, weighting: str
) -> tuple[list[float], list[float]]:
    """One query's weights of the bank rows that vote for, and against, their own bits."""
    similarities = []
    for bank_label in bank_labels:
        shared = sum(float(a) * float(b) for a, b in zip(label, bank_label, strict=True))
        size = sum(float(a) ** 2 for a in label) * sum(float(b) ** 2 for b in bank_label)
        similarities.append(shared / size**0.5 if shared else 0.0)
    positives = sum(s > 0 for s in similarities)
    scale = sum(similarities) if weighting == "similarity" else positives
    negatives = len(similarities) - positives
    return (
        [s / scale if s > 0 else 0.0 for s in similarities],
        [0.0 if s > 0 else 1 / negatives for s in similarities],
    )


def mainstay_votes(
    label: np.ndarray, code_bank: np.ndarray, bank_labels: np.ndarray, weighting: str
) -> list[float]:
    """One query's votes on every bit."""
    votes = [0.0] * code_bank.shape[1]
    weights = mainstay_weights(label, bank_labels, weighting)
    for code, attract, repel in zip(code_bank, *weights, strict=True):
        for bit, entry in enumerate(code):
            votes[bit] += (attract - repel) * float(entry)
    return votes


def mainstay_objective(
    code: Sequence[float],
    label: np.ndarray,
    code_bank: np.ndarray,
    bank_labels: np.ndarray,
    weighting: str,
) -> float:
    """Psi of Theorem 1: weighted distance to the positives less that to the negatives."""
    attract, repel = mainstay_weights(label, bank_labels, weighting)
    distances = hamming_distances(np.asarray(code), code_bank)
    return sum((a - r) * d for a, r, d in zip(attract, repel, distances, strict=True))


# --- attacks ---


def code_loss(name: str, soft_code: np.ndarray, target_code: np.ndarray, targeted: bool) -> float:
    """One example's attack loss."""
    agreements = [float(a) * float(b) for a, b in zip(soft_code, target_code, strict=True)]
    if name == "mean":
        value = sum(agreements) / len(agreements)
    else:
        kept = [s for s in agreements if (s < 0.5 if targeted else s > -0.5)]
        value = sum((s + 2) * s for s in kept) / len(kept) if kept else 0.0
    return -value if targeted else value


def linear_attack(
    weights: np.ndarray,
    bias: np.ndarray,
    image: np.ndarray,
    start: np.ndarray,
    target_code: np.ndarray,
    *,
    epsilon: float,
    step_size: float,
    alphas: Sequence[float],
    loss: str,
    targeted: bool,
) -> np.ndarray:
    """PGD in float64 on one flat image of the model tanh(alpha (W x + b)), gradient by hand."""
    delta = np.clip(image + np.clip(start - image, -epsilon, epsilon), 0, 1) - image
    for alpha in alphas:
        code = np.tanh(alpha * (weights @ (image + delta) + bias))
        agreement = code * target_code
        slope = np.ones_like(code)
        if loss == "focused":
            kept = agreement < 0.5 if targeted else agreement > -0.5
            slope = kept * (2 * agreement + 2)
        gradient = ((slope * target_code) * (1 - code**2) * alpha) @ weights
        delta = delta + step_size * np.sign(gradient) * (1 if targeted else -1)
        delta = np.clip(image + np.clip(delta, -epsilon, epsilon), 0, 1) - image
    return image + delta


def target_candidates(label: np.ndarray, database_labels: np.ndarray) -> list[tuple[int, ...]]:
    """One query's possible target labels: sorted, distinct, not empty, without a shared label."""
    distinct = sorted({tuple(int(x) for x in row) for row in database_labels})
    return [
        row
        for row in distinct
        if any(row) and not any(a and b for a, b in zip(label, row, strict=True))
    ]


# --- objectives ---


def dph(
    soft_code: np.ndarray, label: np.ndarray, bank_codes: np.ndarray, bank_labels: np.ndarray
) -> float:
    """One example's DPH loss."""
    total = 0.0
    for code, shared in zip(bank_codes, relevance(label, bank_labels), strict=True):
        agreement = sum(float(a) * float(b) for a, b in zip(soft_code, code, strict=True))
        total += (agreement / len(soft_code) - (1 if shared else -1)) ** 2
    return total / len(bank_codes)


def _softplus(x: float) -> float:
    return max(x, 0.0) + float(np.log1p(np.exp(-abs(x))))


def dpsh(
    soft_code: np.ndarray,
    label: np.ndarray,
    bank_codes: np.ndarray,
    bank_labels: np.ndarray,
    *,
    eta: float,
) -> float:
    """One example's DPSH loss, its quantisation divided by the size of the bank."""
    total = 0.0
    for code, shared in zip(bank_codes, relevance(label, bank_labels), strict=True):
        theta = sum(float(a) * float(b) for a, b in zip(soft_code, code, strict=True)) / 2
        total += _softplus(theta) - shared * theta
    total += eta * sum((1 - abs(float(x))) ** 2 for x in soft_code)
    return total / len(bank_codes)


def hashnet(
    soft_codes: np.ndarray,
    labels: np.ndarray,
    bank_codes: np.ndarray,
    bank_labels: np.ndarray,
    *,
    slope: float,
) -> np.ndarray:
    """Losses of a batch, whose mean is that of its like pairs plus that of its unlike ones."""
    shared = np.array([relevance(label, bank_labels) for label in labels])
    numbers = {kind: max(int(np.sum(shared == kind)), 1) for kind in (0, 1)}
    losses = np.zeros(len(labels))
    for row, bank_row in np.ndindex(shared.shape):
        logit = slope * float(np.dot(np.float64(soft_codes[row]), np.float64(bank_codes[bank_row])))
        kind = shared[row, bank_row]
        losses[row] += len(labels) / numbers[kind] * (_softplus(logit) - kind * logit)
    return losses


def wasserstein(soft_codes: np.ndarray, random_codes: np.ndarray) -> np.ndarray:
    """Squared distances, by row, to the random codes of the same rank in each column."""
    losses = np.zeros(len(soft_codes))
    for column, drawn in zip(soft_codes.T, random_codes.T, strict=True):
        order = sorted(range(len(column)), key=lambda row: column[row])
        for row, partner in zip(order, sorted(drawn), strict=True):
            losses[row] += (float(partner) - float(column[row])) ** 2 / soft_codes.shape[1]
    return losses


def class_center(label: np.ndarray, codes: np.ndarray, tie_code: np.ndarray) -> list[int]:
    """The majority of the codes of an example's classes; the tie code where there is none."""
    votes = [sum(int(code[bit]) for code, on in zip(codes, label, strict=True) if on)
             for bit in range(len(tie_code))]  # fmt: skip
    return [int(np.sign(vote or tie)) for vote, tie in zip(votes, tie_code, strict=True)]


def csq(soft_code: np.ndarray, center: Sequence[int], *, weight: float) -> float:
    """One example's CSQ loss."""
    total = 0.0
    for x, wanted in zip(np.float64(soft_code), center, strict=True):
        total -= np.log((1 + x) / 2 if wanted > 0 else (1 - x) / 2)
        total += weight * (1 - abs(x)) ** 2
    return total / len(soft_code)


def dpn(soft_code: np.ndarray, center: Sequence[int]) -> float:
    """One example's DPN loss with margin 1."""
    lacks = [max(0.0, 1 - float(x) * c) for x, c in zip(soft_code, center, strict=True)]
    return sum(lacks) / len(lacks)


def orthohash(
    soft_codes: np.ndarray, labels: np.ndarray, codebook: np.ndarray, *, margin: float, scale: float
) -> np.ndarray:
    """Losses of a batch, its normalisation with scale one and bias zero."""
    values = np.float64(soft_codes)
    codes = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
    losses = np.zeros(len(labels))
    for row, (code, label) in enumerate(zip(codes, labels, strict=True)):
        size = np.linalg.norm(code) * len(code) ** 0.5
        logits = [
            scale * (float(np.dot(code, c)) / size - margin * float(on))
            for c, on in zip(codebook, label, strict=True)
        ]
        total = np.log(sum(np.exp(x) for x in logits))
        wanted = [x for x, on in zip(logits, label, strict=True) if on]
        losses[row] = sum(total - x for x in wanted) / max(len(wanted), 1)
    return losses


# --- network layers ---


def convolve(images: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Convolution of `[batch, height, width, in]` with `[rows, columns, in, out]`, windowwise."""
    size = kernel.shape[0]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in padded.shape[1:3])
    output = np.zeros((len(images), height, width, kernel.shape[3]))
    for b, i, j in itertools.product(range(len(images)), range(height), range(width)):
        window = padded[b, i * stride : i * stride + size, j * stride : j * stride + size]
        output[b, i, j] = [(window * kernel[..., out]).sum() for out in range(kernel.shape[3])]
    return output


def adaptive_average_pool(images: np.ndarray, size: int) -> np.ndarray:
    """Cell by cell: the mean from floor(i n / size) up to ceil((i + 1) n / size)."""
    batch, height, width, channels = images.shape
    output = np.zeros((batch, size, size, channels))
    for i, j in itertools.product(range(size), range(size)):
        top, bottom = int(np.floor(i * height / size)), int(np.ceil((i + 1) * height / size))
        left, right = int(np.floor(j * width / size)), int(np.ceil((j + 1) * width / size))
        output[:, i, j] = images[:, top:bottom, left:right].mean((1, 2))
    return output


def batch_norm(images: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training mode, scale one and bias zero: (output, mean, unbiased variance) by channel."""
    output = np.zeros(images.shape)
    means, variances = [], []
    for channel in range(images.shape[-1]):
        values = np.asarray(images[..., channel], np.float64)
        mean = values.sum() / values.size
        square = ((values - mean) ** 2).sum()
        output[..., channel] = (values - mean) / (square / values.size + epsilon) ** 0.5
        means.append(mean)
        variances.append(square / (values.size - 1))
    return output, np.array(means), np.array(variances)


# --- balls ---


def norm_of(change: np.ndarray, norm: str) -> float:
    """The largest size, the root mean square or the mean size of an image's changes."""
    sizes = [abs(float(number)) for number in change.ravel()]
    if norm == "linf":
        return max(sizes)
    if norm == "l2":
        return math.sqrt(sum(size**2 for size in sizes) / len(sizes))
    return sum(sizes) / len(sizes)


def nearest_in_ball(point: np.ndarray, image: np.ndarray, radius: float, norm: str) -> np.ndarray:
    """The nearest point of the ball and of [0, 1], by Dykstra's alternating projections.

    Each projection is the textbook one: of "l1" by sorting (Duchi et al., 2008).
    """
    size = image.size

    def onto_ball(x: np.ndarray) -> np.ndarray:
        change = x - image
        if norm == "l2":
            length = math.sqrt(float(np.sum(change**2)))
            return image + change * min(1, radius * math.sqrt(size) / max(length, 1e-300))
        if np.sum(np.abs(change)) <= radius * size:
            return x
        total, threshold = 0.0, 0.0
        for count, value in enumerate(sorted(np.abs(change).ravel(), reverse=True), start=1):
            total += value
            if value > (total - radius * size) / count:
                threshold = (total - radius * size) / count
        return image + np.sign(change) * np.maximum(np.abs(change) - threshold, 0)

    x = np.asarray(point, np.float64)
    image = np.asarray(image, np.float64)
    ball_rest, box_rest = np.zeros_like(x), np.zeros_like(x)
    for _ in range(300):
        inner = onto_ball(x + ball_rest)
        ball_rest = x + ball_rest - inner
        x = np.clip(inner + box_rest, 0, 1)
        box_rest = inner + box_rest - x
    return x


def steepest_step(gradient: np.ndarray, image: np.ndarray, length: float) -> np.ndarray:
    """The step of a given sum of sizes, within [0, 1], that descends most: pixel by pixel."""
    step, left = np.zeros(image.size), length
    for pixel in sorted(range(image.size), key=lambda i: -abs(gradient.ravel()[i])):
        slope, value = gradient.ravel()[pixel], image.ravel()[pixel]
        if slope:
            move = min(left, value if slope > 0 else 1 - value)
            step[pixel] = -math.copysign(move, slope)
            left -= move
    return step.reshape(image.shape)
