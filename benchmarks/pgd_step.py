"""One step of PGD: ours, in one compiled loop, against PyTorch's eager mode.

    python -m benchmarks.pgd_step --output runs/speed            # about 20 minutes, 8 GB of memory
    python -m benchmarks.pgd_step --output runs/speed --quick    # AlexNet alone, a few steps

224 pixels, float32, all cores. Every program is a process of its own, and they take turns
(`interleaved`); ratios are medians over the rounds. The peers are `peers.make_pgd` in its two
patterns; "stepped" is ours with the loop in Python instead of in the compiled program. The limit is
the time that the multiplications and additions of the layers would take at the rate of a large
float32 matrix product (PyTorch's) of the same rounds; Winograd's convolutions need fewer.

Prints Markdown, and writes `pgd_step.json` and `pgd_step.png` into the output folder.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks import interleaved

NUM_BITS = 32
BATCHES = {"alexnet": 32, "vgg11": 8, "vgg16": 4, "resnet18": 16}
# Those of the peers; a step is one forward pass and one of the gradient by the images.
TARGETS = {
    "alexnet": {"best": 1.1, "released": 1.9},
    "vgg11": {"best": 1.3, "released": 2.2},
    "vgg16": {"best": 1.4, "released": 2.2},
    "resnet18": {"best": 1.2, "released": 2.0},
}


def measure(
    name: str,
    batch_size: int,
    programs: Mapping[str, interleaved.Program],
    *,
    rounds: int,
    num_steps: int,
    passes: int,
) -> dict[str, Any]:
    """Times programs beside a large matrix product.

    Args:
        name: one of `networks.NETWORKS`.
        batch_size: images of each run.
        programs: by name; "ours" is what the others are compared with, and keeps what it
            compiles.
        rounds: number of rounds.
        num_steps: steps of one run, by which its time is divided.
        passes: how many times a forward pass' operations are in a step.

    Returns:
        What `table` and `plot` show.
    """
    from benchmarks import peers
    from saat_jax import networks

    # At a first start the compiler's memory is part of the peak, at the next it is not.
    first = interleaved.take_turns({"ours": programs["ours"]}, rounds=0)["ours"]
    size = 2048
    product: interleaved.Program = (peers.make_product, {"size": size}, {})
    results = interleaved.take_turns({**programs, "product": product}, rounds=rounds)
    rate = 2 * size**3 / results.pop("product").median
    flops = networks.model_card(name, num_bits=NUM_BITS)["flops"] * batch_size * passes
    ours = results["ours"]
    return {
        "network": name,
        "batch": batch_size,
        "rounds": rounds,
        "limit_seconds": flops / rate,
        "product_gflops": rate / 1e9,
        "first_start": {"seconds": first.start_seconds, "peak_mib": first.peak_mib},
        "programs": {
            program: {
                "seconds": result.median / num_steps,
                "cpu_seconds": statistics.median(result.cpu_seconds) / num_steps,
                "ratio": interleaved.ratio(result, ours),
                "cpu_ratio": interleaved.cpu_ratio(result, ours),
                "peak_mib": result.peak_mib,
                "start_seconds": result.start_seconds,
            }
            for program, result in results.items()
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: seconds of a step, ratios by wall clock and by CPU seconds, memory."""
    lines = [
        "| network, batch | program | ms | its time by ours | by CPU | peak MiB | limit ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for name, one in row["programs"].items():
            lines.append(
                f"| {row['network']}, {row['batch']} | {name} | {1e3 * one['seconds']:,.0f} "
                f"| {one['ratio']:.2f} | {one['cpu_ratio']:.2f} | {one['peak_mib']:,.0f} "
                f"| {1e3 * row['limit_seconds']:,.0f} |"
            )
    for row in rows:
        first, later = row["first_start"], row["programs"]["ours"]
        lines.append(
            f"\n{row['network']}: ours compiles and runs once in {first['seconds']:.0f} s, peak "
            f"{first['peak_mib']:,.0f} MiB; from the cache in {later['start_seconds']:.0f} s"
        )
    return "\n".join(lines)


def plot(
    rows: list[dict[str, Any]], targets: Mapping[str, Mapping[str, float]], path: pathlib.Path
) -> None:
    """Bars of the ratios to each peer, with a line where each should at least reach."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for offset, peer in ((-0.2, "best"), (0.2, "released")):
        places = np.arange(len(rows)) + offset
        axes.bar(places, [row["programs"][peer]["ratio"] for row in rows], 0.36, label=peer)
        wanted = [targets[row["network"]][peer] for row in rows]
        axes.hlines(wanted, places - 0.18, places + 0.18, color="black")
    axes.set_xticks(range(len(rows)), [f"{row['network']}, {row['batch']}" for row in rows])
    axes.set_ylabel("PyTorch's time by ours")
    figure.legend(title="pattern; lines: wanted", loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "processor": model[1] if model else platform.processor(),
        "cpus": os.cpu_count(),
        **{package: importlib.metadata.version(package) for package in ("jax", "torch")},
        "load": os.getloadavg()[0],
    }


def report(
    title: str,
    rows: list[dict[str, Any]],
    targets: Mapping[str, Mapping[str, float]],
    output: pathlib.Path,
) -> None:
    """Prints the table, and writes `<title>.json` and `<title>.png`."""
    result = {"machine": machine(), "targets": targets, "rows": rows}
    (output / f"{title}.json").write_text(json.dumps(result, indent=1))
    plot(rows, targets, output / f"{title}.png")
    print(table(rows))
    print(f"\nMachine: {result['machine']}")


def parse(description: str, names: Iterable[str]) -> argparse.Namespace:
    """The arguments of a script; makes the output folder."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="one network, few rounds")
    parser.add_argument("--networks", nargs="+", choices=sorted(names), help="these alone")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    """Measures, prints, writes."""
    from benchmarks import ours, peers

    arguments = parse(__doc__, BATCHES)
    cache = str(arguments.output / "cache")
    num_steps, rounds = (2, 2) if arguments.quick else (4, 7)
    rows = []
    for name in arguments.networks or (["alexnet"] if arguments.quick else list(BATCHES)):
        batch_size = 4 if arguments.quick else BATCHES[name]
        rng = np.random.default_rng(0)
        options = {
            "name": name,
            "images": rng.random((batch_size, 224, 224, 3), np.float32),
            "target_codes": rng.choice(np.array([-1, 1], np.float32), (batch_size, NUM_BITS)),
            "num_steps": num_steps,
        }
        programs: dict[str, interleaved.Program] = {
            "ours": (ours.launched, {**options, "program": "make_pgd", "cache": cache}, {}),
            "stepped": (ours.launched, {**options, "program": "make_pgd", "loop": False}, {}),
            **{
                pattern: (peers.make_pgd, {**options, "pattern": pattern}, {})
                for pattern in peers.PATTERNS
            },
        }
        size = {"rounds": rounds, "num_steps": num_steps}
        rows.append(measure(name, batch_size, programs, passes=2, **size))
    report("pgd_step", rows, TARGETS, arguments.output)


if __name__ == "__main__":
    main()
