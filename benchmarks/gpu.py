"""Everything on one accelerator: products, encoding, PGD, SAAT, retrieval, mainstay codes.

    python -m benchmarks.gpu --output runs/gpu            # under 10 minutes on one CUDA device
    python -m benchmarks.gpu --output runs/gpu --small    # a trial of the script, on CPU too

Needs JAX, Flax, Optax and NumPy, and no network; the columns of PyTorch say "absent" where it is,
or where it sees no CUDA device. Networks at 224 pixels and random weights. Three settings of the
precision: "float32" (highest), "tf32" and "bf16" (of the network's `dtype`). Utilisation is the
operations of the layers, two for a multiplication and its addition, in a second, by the rate of a
large matrix product of the same setting. Programs compile before they are timed; a case that
would begin after the time is up is left out, and said so.

Vision transformers have no PyTorch beside them here.

Prints Markdown, and writes `gpu.json` into the output folder.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

# Half of the memory stays for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _stand_in(name: str, **members: Any) -> None:
    """Puts a module of these members in the place of one that is not installed."""
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)


# What the library imports beside the four; nothing here needs what they do.
_nothing: Callable[..., None] = lambda *_: None  # noqa: E731, as members of a module
_stand_in(
    "chex",
    ArrayTree=Any,
    Numeric=Any,
    assert_rank=_nothing,
    assert_equal_shape_prefix=_nothing,
)
_stand_in("tqdm", tqdm=iter)

import jax  # noqa: E402, after the stand-ins
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import saat_jax  # noqa: E402
from benchmarks import ours  # noqa: E402
from saat_jax import mainstay, networks  # noqa: E402

NUM_BITS, NUM_CLASSES = 32, 21
# Of a setting: the precision of float32 products, and the dtype of the network.
SETTINGS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bf16": ("default", "bfloat16"),
}
SECONDS = 540.0


def _torch() -> Any:
    """PyTorch, if it is there and sees a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch if torch.cuda.is_available() else None


def _time(programs: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Median seconds of programs that take turns, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(setting: str, size: int, rounds: int) -> float:
    """Operations in a second of a large matrix product."""
    precision, dtype = SETTINGS[setting]
    repeats = 8

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        product = lambda _, x: jnp.matmul(x, right, precision=precision)  # noqa: E731
        return jax.lax.fori_loop(0, repeats, product, left)

    left, right = (jnp.full((size, size), value, dtype) for value in (1, 1 / size))
    run = lambda: multiply(left, right).block_until_ready()  # noqa: E731
    return repeats * 2 * size**3 / _time({"product": run}, rounds=rounds)["product"]


def _programs(
    what: str, name: str, batch_size: int, setting: str, num_steps: int
) -> dict[str, Callable[[], Any]]:
    """Ours and, where PyTorch has a device, its two patterns."""
    rng = np.random.default_rng(0)
    images = rng.random((batch_size, 224, 224, 3), np.float32)
    bank = rng.choice(np.array([-1, 1], np.float32), (5000, NUM_BITS))
    labels = (rng.random((5000, NUM_CLASSES)) < 0.1).astype(np.float32)
    arguments: dict[str, dict[str, Any]] = {
        "forward": {"num_bits": NUM_BITS},
        "pgd": {"target_codes": bank[:batch_size], "num_steps": num_steps},
        "saat": {
            "labels": labels[:batch_size],
            "bank": bank,
            "bank_labels": labels,
            "num_steps": num_steps,
        },
    }
    options = {"name": name, "images": images, **arguments[what]}
    precision, dtype = SETTINGS[setting]
    jax.config.update("jax_default_matmul_precision", precision)
    programs = {"ours": getattr(ours, f"make_{what}")(**options, dtype=dtype)}
    torch = _torch()
    if torch is None or setting == "bf16" or name.startswith("vit"):
        return programs
    from benchmarks import peers

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting == "tf32"
    for pattern in peers.PATTERNS:
        run = getattr(peers, f"make_{what}")(**options, pattern=pattern, device="cuda")

        def synchronised(run: Callable[[], Any] = run) -> None:
            run()
            torch.cuda.synchronize()

        programs[pattern] = synchronised
    return programs


def step(
    what: str, name: str, batch_size: int, setting: str, *, small: bool, peak_rate: float
) -> dict[str, Any]:
    """One line of the table: times of a run, images in a second, utilisation."""
    num_steps = {"forward": 0, "pgd": 2 if small else 20, "saat": 2 if small else 7}[what]
    passes = {"forward": 1, "pgd": 2 * num_steps, "saat": 2 * num_steps + 2 * 3}[what]
    start = time.perf_counter()
    programs = _programs(what, name, batch_size, setting, num_steps)
    seconds = _time(programs, rounds=2 if small else 3)
    flops = networks.model_card(name, num_bits=NUM_BITS)["flops"] * batch_size * passes
    return {
        "what": what,
        "network": name,
        "batch": batch_size,
        "setting": setting,
        "steps": num_steps,
        "seconds": seconds,
        "images_per_second": batch_size / seconds["ours"],
        "utilisation": flops / seconds["ours"] / peak_rate,
        "took_seconds": time.perf_counter() - start,
    }


def retrieval_and_votes(small: bool) -> dict[str, float]:
    """Queries in a second of MAP@5000, and batches of 128 in a second of mainstay codes."""
    num_queries, num_database, num_classes = (50, 5000, 80) if small else (2000, 120_000, 80)
    rng = np.random.default_rng(0)

    def items(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (rng.random((count, num_classes)) < 2.5 / num_classes).astype(np.float32)
        labels[np.arange(count), rng.integers(num_classes, size=count)] = 1
        return rng.choice(np.array([-1, 1], np.float32), (count, NUM_BITS)), labels

    (queries, query_labels), (database, database_labels) = items(num_queries), items(num_database)
    arrays = jax.device_put((query_labels[:128], database, database_labels))
    grouped = jax.device_put(mainstay.group_bank(database, database_labels))
    votes = jax.jit(mainstay.mainstay_codes)
    programs = {
        "retrieval": lambda: saat_jax.map_at_k(
            queries, database, query_labels, database_labels, k=5000
        ),
        "mainstay, dense": lambda: votes(*arrays).block_until_ready(),
        "mainstay, grouped": lambda: votes(arrays[0], grouped).block_until_ready(),
    }
    seconds = _time(programs, rounds=3)
    return {"queries": num_queries, "database": num_database, **seconds}


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report."""
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in report["peaks"].items())
    lines = [
        f"{report['device']}, jax {report['jax']}, PyTorch {report['torch']}",
        f"\nMatrix products, TFLOP/s: {rates}",
        "\n| program | network, batch | setting | images/s | utilisation | PyTorch best by ours "
        "| released by ours |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in report["steps"]:
        seconds = row["seconds"]
        ratios = [
            f"{seconds[peer] / seconds['ours']:.2f}" if peer in seconds else "absent"
            for peer in ("best", "released")
        ]
        what = f"{row['what']}, {row['steps']} steps" if row["steps"] else row["what"]
        cells = [what, f"{row['network']}, {row['batch']}", row["setting"]]
        cells += [f"{row['images_per_second']:,.1f}", f"{row['utilisation']:.0%}", *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    votes = report["retrieval_and_votes"]
    lines.append(
        f"\nMAP@5000 of {votes['database']:,} codes: {votes['queries'] / votes['retrieval']:,.0f} "
        f"queries/s. Mainstay codes of 128 images from as many codes: "
        f"{1e3 * votes['mainstay, dense']:.2f} ms, grouped {1e3 * votes['mainstay, grouped']:.2f}"
    )
    if report["left_out"]:
        lines.append(f"\nLeft out, time was up: {'; '.join(report['left_out'])}")
    lines.append(f"\nTook {report['took_seconds']:.0f} s")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when time is up")
    parser.add_argument("--small", action="store_true", help="a trial, on CPU too")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    small, torch = arguments.small, _torch()

    settings = ["float32"] if small else list(SETTINGS)
    size = 1024 if small else 8192
    peaks = {setting: peak(setting, size, rounds=2 if small else 5) for setting in settings}
    # What matters most comes first, as the time may be up before the end.
    whats = ("pgd", "saat", "forward")
    cases: list[tuple[str, str, int, str]] = []
    if small:
        cases = [(what, name, 2, "float32") for what in whats for name in ("alexnet", "vit_tiny16")]
    else:
        names = ("alexnet", "resnet18", "vgg11", "vit_s16")
        for setting in ("tf32", "bf16", "float32"):
            cases += [(what, name, 128, setting) for what in whats for name in names]
        cases += [("pgd", name, batch, "tf32") for batch in (32, 512) for name in names]
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "torch": torch.__version__ if torch else "absent",
        "peaks": peaks,
        "retrieval_and_votes": retrieval_and_votes(small),
        "steps": [],
        "left_out": [],
    }
    longest = 0.0
    for what, name, batch_size, setting in cases:
        if not small and time.perf_counter() - start + longest > arguments.seconds:
            report["left_out"].append(f"{what}, {name}, {batch_size}, {setting}")
            continue
        row = step(what, name, batch_size, setting, small=small, peak_rate=peaks[setting])
        longest = max(longest, row["took_seconds"])
        report["steps"].append(row)
    report["took_seconds"] = time.perf_counter() - start
    (arguments.output / "gpu.json").write_text(json.dumps(report, indent=1))
    print(markdown(report))


if __name__ == "__main__":
    main()
