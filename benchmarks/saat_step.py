"""One update of SAAT, its inner attack of 7 steps included: ours against PyTorch's eager mode.

    python -m benchmarks.saat_step --output runs/speed            # about 15 minutes, 8 GB of memory
    python -m benchmarks.saat_step --output runs/speed --quick    # AlexNet alone, batch 4

224 pixels, float32, all cores, DPH with a bank of 5,000 codes of 32 bits, dropout in the attack as
released, plain SGD. Programs take turns as in `pgd_step`, in the same patterns. Peak memory is that
of each program's process from its start; ours takes its program from the cache, as every start but
the first does, whose peak, with the compiler's memory, is told too.

Prints Markdown, and writes `saat_step.json` and `saat_step.png` into the output folder.
"""

import numpy as np

from benchmarks import interleaved, pgd_step

NUM_STEPS, NUM_CLASSES, BANK_SIZE = 7, 21, 5000
BATCHES = {"alexnet": 32, "vgg11": 8}
TARGETS = {
    "alexnet": {"best": 1.0, "released": 1.4},
    "vgg11": {"best": 1.2, "released": 1.9},
}


def main() -> None:
    """Measures, prints, writes."""
    from benchmarks import ours, peers

    arguments = pgd_step.parse(__doc__, BATCHES)
    rows = []
    for name in arguments.networks or (["alexnet"] if arguments.quick else list(BATCHES)):
        batch_size = 4 if arguments.quick else BATCHES[name]
        rng = np.random.default_rng(0)
        labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.1).astype(np.float32)
        options = {
            "name": name,
            "images": rng.random((batch_size, 224, 224, 3), np.float32),
            "labels": labels[:batch_size],
            "bank": rng.choice(np.array([-1, 1], np.float32), (BANK_SIZE, pgd_step.NUM_BITS)),
            "bank_labels": labels,
            "num_steps": NUM_STEPS,
        }
        programs: dict[str, interleaved.Program] = {
            "ours": (
                ours.launched,
                {**options, "program": "make_saat", "cache": str(arguments.output / "cache")},
                {},
            ),
            **{
                pattern: (peers.make_saat, {**options, "pattern": pattern}, {})
                for pattern in peers.PATTERNS
            },
        }
        # Steps of the attack of two passes each; then two passes that also take the gradients
        # by the weights, three each.
        passes = 2 * NUM_STEPS + 2 * 3
        rounds = 2 if arguments.quick else 5
        rows.append(
            pgd_step.measure(name, batch_size, programs, rounds=rounds, num_steps=1, passes=passes)
        )
    pgd_step.report("saat_step", rows, TARGETS, arguments.output)


if __name__ == "__main__":
    main()
