r"""How an update of SAAT grows with the batch, and what it costs to spread it over devices.

    python -m benchmarks.scaling --output runs/speed           # about 5 minutes
    python -m benchmarks.scaling --output runs/speed --quick   # two batches, two counts of devices

`convnet` at 64 pixels, 7 attack steps, a bank of 5,000 codes of 32 bits. Programs take turns
(`interleaved`). The devices are one CPU's, forced by XLA, and share its cores: the same batch over
more of them can at best take the same CPU time, and what it takes beyond is the price of spreading.

Prints Markdown, and writes `scaling.json` and `scaling.png` into the output folder.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

import numpy as np

from benchmarks import interleaved, pgd_step, saat_step

BATCHES, DEVICES, DEVICE_BATCH = (8, 16, 32, 64, 128), (1, 2, 4, 8), 64


def _program(batch: int, devices: int) -> interleaved.Program:
    from benchmarks import ours

    rng = np.random.default_rng(0)
    labels = (rng.random((saat_step.BANK_SIZE, saat_step.NUM_CLASSES)) < 0.1).astype(np.float32)
    options = {
        "program": "make_saat",
        "name": "convnet",
        "images": rng.random((batch, 64, 64, 3), np.float32),
        "labels": labels[:batch],
        "bank": rng.choice(np.array([-1, 1], np.float32), (len(labels), pgd_step.NUM_BITS)),
        "bank_labels": labels,
        "num_steps": saat_step.NUM_STEPS,
    }
    flags = f"--xla_force_host_platform_device_count={devices}"
    return ours.launched, options, {"XLA_FLAGS": flags}


def measure(cases: list[tuple[int, int]], *, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of an update, wall clock and CPU, for (batch, devices)."""
    programs = {f"{batch} on {devices}": _program(batch, devices) for batch, devices in cases}
    results = interleaved.take_turns(programs, rounds=rounds)
    return [
        {
            "batch": batch,
            "devices": devices,
            "ms": 1e3 * result.median,
            "cpu_ms": 1e3 * statistics.median(result.cpu_seconds),
            "peak_mib": result.peak_mib,
        }
        for (batch, devices), result in zip(cases, results.values(), strict=True)
    ]


def _plot(tables: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    by_batch, by_devices = tables["batch"], tables["devices"]
    axes[0].loglog([r["batch"] for r in by_batch], [r["cpu_ms"] for r in by_batch], "o-")
    axes[0].set(xlabel="images in a batch", ylabel="CPU ms an update", title="one device")
    least = by_devices[0]["cpu_ms"]
    axes[1].plot(
        [r["devices"] for r in by_devices], [r["cpu_ms"] / least for r in by_devices], "o-"
    )
    axes[1].axhline(1, color="black", linewidth=0.8)
    axes[1].set(
        xlabel="devices", ylabel="CPU time by that of one", ylim=0, title=f"{DEVICE_BATCH} images"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    some, rounds = (slice(2), 2) if arguments.quick else (slice(None), 7)
    tables = {
        "batch": measure([(batch, 1) for batch in BATCHES[some]], rounds=rounds),
        "devices": measure([(DEVICE_BATCH, count) for count in DEVICES[some]], rounds=rounds),
    }
    report = {"machine": pgd_step.machine(), **tables}
    (arguments.output / "scaling.json").write_text(json.dumps(report, indent=1))
    _plot(tables, arguments.output / "scaling.png")
    print("| images | devices | ms | CPU ms | CPU ms an image | peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in tables["batch"] + tables["devices"]:
        print(
            f"| {row['batch']} | {row['devices']} | {row['ms']:.0f} | {row['cpu_ms']:.0f} "
            f"| {row['cpu_ms'] / row['batch']:.2f} | {row['peak_mib']:,.0f} |"
        )
    print(f"\nMachine: {report['machine']}")


if __name__ == "__main__":
    main()
