"""What mainstay codes cost: a bank grouped by label vectors against the dense formula.

    python -m benchmarks.mainstay                      # all banks; some minutes, 4 GB of memory
    python -m benchmarks.mainstay --quick              # the smaller banks, few rounds
    python -m benchmarks.mainstay --output runs/speed  # mainstay.json and mainstay.png there too

One thread, batch 128, 64 bits, synthetic labels of one to a few classes. The programs take turns in
one process; times are CPU seconds, which others on the machine disturb least, and a ratio is the
median over the rounds of the ratio within a round. The peer is the
dense formula in PyTorch, step by step as the released code has it; without PyTorch it is left out.
The limit is the time that the operations of the grouped form alone would take at the speed of a
large matrix product, measured in the same run.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import mainstay

BATCH, NUM_BITS = 128, 64
# Examples whose codes are compared with those of the formula in float64.
CHECKED = 32
# Rows of the bank, classes, distinct label vectors; the last are the databases of the papers.
BANKS = ((5000, 38, 1200), (10500, 21, 900), (10000, 80, 5500), (117218, 80, 15000))
BANKS += ((193734, 21, 3000),)
SIZES = (3000, 10000, 30000, 100000, 300000, 1000000)
TORCH = importlib.util.find_spec("torch") is not None
# Above it the peer's matrices of the batch by the bank would take gigabytes.
MAX_DENSE = 200000
Programs = Mapping[str, Callable[[], Any]]


def make_bank(
    bank_size: int, num_classes: int, num_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch's labels, and codes and labels of a bank in which few label vectors are frequent."""
    rng = np.random.default_rng(0)
    drawn = rng.random((4 * num_groups, num_classes)) < min(0.5, 2.5 / num_classes)
    vectors = np.unique(drawn[drawn.any(1)], axis=0).astype(np.float32)
    vectors = rng.permutation(vectors)[: min(num_groups, bank_size)]
    share = np.arange(1, len(vectors) + 1) ** -0.8
    groups = np.arange(len(vectors))
    more = rng.choice(groups, bank_size - len(vectors), p=share / share.sum())
    bank_labels = vectors[rng.permutation(np.concatenate([groups, more]))]
    centers = rng.standard_normal((num_classes, NUM_BITS), np.float32)
    noise = rng.standard_normal((bank_size, NUM_BITS), np.float32)
    code_bank = np.where(bank_labels @ centers + noise < 0, -1, 1).astype(np.float32)
    return bank_labels[rng.integers(0, bank_size, BATCH)], code_bank, bank_labels


def make_torch(*problem: np.ndarray) -> Callable[[], np.ndarray]:
    """The released code's steps in PyTorch: five matrices of the batch by the bank."""
    import torch

    torch.set_num_threads(1)
    labels, code_bank, bank_labels = map(torch.from_numpy, problem)

    def weigh(weights: Any) -> Any:
        scale = 1 / weights.sum(1, keepdim=True)
        return torch.where(torch.isinf(scale), 0, scale) * weights

    def run() -> np.ndarray:
        norms = labels.norm(dim=1, keepdim=True).repeat(1, len(bank_labels))
        bank_norms = bank_labels.norm(dim=1, keepdim=True).repeat(1, len(labels))
        near = labels @ bank_labels.T / (norms * bank_norms.T + 1e-8)
        far = 1 - torch.sign(near)
        return torch.sign(weigh(near) @ code_bank - weigh(far) @ code_bank).numpy()

    return run


def take_turns(programs: Programs, *, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each program in each round, after one that is not counted."""
    repeats = {}
    for name, run in programs.items():
        run()
        start = time.process_time()
        run()
        # A fast program runs for 20 ms a round, that its clock is not what is measured.
        repeats[name] = max(1, int(0.02 / (time.process_time() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.process_time() - start) / repeats[name])
    return seconds


def ratio(seconds: dict[str, list[float]], peer: str, ours: str) -> float:
    """Median over the rounds of the peer's time by ours."""
    pairs = zip(seconds[peer], seconds[ours], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def make_refresh(bank: mainstay.GroupedBank) -> Callable[[], Any]:
    """Replaces the rows of a batch, in a copy of the bank that each call passes on."""
    rng = np.random.default_rng(1)
    size = len(bank.codes)
    index = jnp.asarray(rng.choice(size, min(BATCH, size), replace=False))
    codes = jnp.asarray(rng.choice([-1.0, 1.0], (2, len(index), NUM_BITS)).astype(np.float32))
    refresh = jax.jit(mainstay.refresh_rows, donate_argnums=0)
    banks = [jax.tree.map(jnp.copy, bank)]
    calls = 0

    def run() -> mainstay.GroupedBank:
        nonlocal calls
        calls += 1
        banks[0] = jax.block_until_ready(refresh(banks[0], codes[calls % 2], index))
        return banks[0]

    return run


def exact_votes(labels: np.ndarray, code_bank: np.ndarray, bank_labels: np.ndarray) -> np.ndarray:
    """The dense formula in float64."""
    overlap = (labels @ bank_labels.T).astype(np.float64)
    near = overlap / np.sqrt(labels.sum(1)[:, None] * np.maximum(bank_labels.sum(1), 1))
    far = overlap == 0
    codes = code_bank.astype(np.float64)
    votes = near @ codes / np.maximum(near.sum(1, keepdims=True), 1e-300)
    return votes - far @ codes / np.maximum(far.sum(1, keepdims=True), 1)


def matmul_rate() -> float:
    """Operations a second of a product of two matrices of 1024 by 1024 in float32."""
    size = 1024
    matrix = jnp.ones((size, size))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    seconds = take_turns({"": lambda: product(matrix).block_until_ready()}, rounds=5)[""]
    return 2 * size**3 / min(seconds)


def measure(bank_size: int, num_classes: int, num_groups: int, *, rounds: int) -> dict[str, Any]:
    """Times of all programs on one bank, in seconds, and what they agree on."""
    problem = labels, code_bank, bank_labels = make_bank(bank_size, num_classes, num_groups)
    bank = mainstay.group_bank(code_bank, bank_labels)
    codes = jax.jit(mainstay.mainstay_codes)
    label, *arrays = jax.device_put(problem)
    refresh = make_refresh(bank)
    programs: dict[str, Callable[[], Any]] = {
        "grouped": lambda: codes(label, bank).block_until_ready(),
        "refresh": refresh,
    }
    if bank_size <= MAX_DENSE:
        programs["dense"] = lambda: codes(label, *arrays).block_until_ready()
        if TORCH:
            programs["torch"] = make_torch(*problem)
    seconds = take_turns(programs, rounds=rounds)
    num_groups = len(bank.labels)
    sizes = len({end for end in bank.ends if end})
    operations = 2 * num_groups * (BATCH * num_classes + (BATCH + num_classes) * (NUM_BITS + 1))
    operations += 2 * sizes * BATCH * num_classes * (NUM_BITS + 1)
    refreshed = refresh()
    regrouped = mainstay.group_bank(refreshed.codes, bank_labels)
    votes = exact_votes(labels[:CHECKED], code_bank, bank_labels)
    wrong = np.asarray(programs["grouped"]())[:CHECKED] != np.where(votes < 0, -1, 1)
    return {
        "bank_size": bank_size,
        "num_classes": num_classes,
        "num_groups": num_groups,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": {
            peer: ratio(seconds, peer, "grouped") for peer in ("torch", "dense") if peer in seconds
        },
        "limit_seconds": operations / matmul_rate(),
        "wrong_codes": int(wrong.sum()),
        "votes_near_zero": int(np.sum(np.abs(votes) < 1e-9)),
        "refreshed_sums_exact": bool(np.array_equal(refreshed.sums, regrouped.sums)),
    }


def _plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    names = {
        "torch": "dense, PyTorch as released",
        "dense": "dense, saat_jax",
        "grouped": "grouped",
        "refresh": "refreshing a batch",
    }
    for name, text in names.items():
        points = [(r["bank_size"], 1e3 * r["seconds"][name]) for r in rows if name in r["seconds"]]
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=text)
    axes.set(xlabel="codes in the bank", ylabel="milliseconds, one thread")
    axes.set_title(f"batch {BATCH}, {NUM_BITS} bits, {rows[-1]['num_classes']} classes")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        "| bank | classes | label vectors | PyTorch | dense | grouped | limit | ratio | refresh |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        milliseconds = {name: f"{1e3 * time:,.2f}" for name, time in row["seconds"].items()}
        cells = [f"{row[key]:,}" for key in ("bank_size", "num_classes", "num_groups")]
        cells += [milliseconds.get(name, "-") for name in ("torch", "dense", "grouped")]
        cells += [f"{1e3 * row['limit_seconds']:.2f}"]
        cells += [f"{row['ratio']['torch']:.1f}" if "torch" in row["ratio"] else "-"]
        print(f"| {' | '.join([*cells, milliseconds['refresh']])} |")


def main(argv: list[str] | None = None) -> None:
    """Measures and prints two tables: banks of data sets, and one bank as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller banks, few rounds")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the JSON and the plot")
    options = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if not TORCH:
        print("PyTorch is not installed: its column is left out")
    rounds = 3 if options.quick else 11
    banks = [bank for bank in BANKS if not options.quick or bank[0] < 20000]
    print(f"Milliseconds on one thread; batch {BATCH}, {NUM_BITS} bits; ratio: PyTorch by grouped")
    tables = {"banks": [measure(*bank, rounds=rounds) for bank in banks]}
    _print(tables["banks"])
    print("The same classes and label vectors, more and more codes:")
    sizes = SIZES[:3] if options.quick else SIZES
    tables["scaling"] = [measure(size, 21, 1000, rounds=rounds) for size in sizes]
    _print(tables["scaling"])
    rows = tables["banks"] + tables["scaling"]
    wrong, near_zero = (sum(r[key] for r in rows) for key in ("wrong_codes", "votes_near_zero"))
    total = len(rows) * CHECKED * NUM_BITS
    print(f"Grouped codes that differ from the float64 formula: {wrong} of {total:,}")
    print(f"(votes within 1e-9 of zero: {near_zero})")
    exact = all(row["refreshed_sums_exact"] for row in rows)
    print(f"Refreshed sums are those of the refreshed bank, bit for bit: {exact}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        about |= {"jax": jax.__version__, "backend": jax.default_backend(), "rounds": str(rounds)}
        text = json.dumps({"about": about, **tables}, indent=1)
        (options.output / "mainstay.json").write_text(text + "\n")
        _plot(tables["scaling"], options.output / "mainstay.png")


if __name__ == "__main__":
    main()
