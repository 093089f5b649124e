"""A scan of a million codes for planted hubs: seconds, what was found, and faiss beside it.

    python -m benchmarks.scan
    python -m benchmarks.scan --codes 100000

Codes of 64 bits lie around 200 centres that are a fifth of their bits from a common middle. Twenty
hubs lie near the middle, and a hundred copies of one picture apart from everything. faiss counts
the neighbours of as many codes of the database by range search, on the same threads.
"""

import argparse
import time

import numpy as np

from saat_jax import retrieval

RADIUS, NUM_BITS, NUM_HUBS, NUM_COPIES = 16, 64, 20, 100


def make_codes(num_codes: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed codes, and the rows of hubs and of copies among them."""
    rng = np.random.default_rng(seed)

    def near(codes: np.ndarray, share: float) -> np.ndarray:
        return codes ^ (rng.random(codes.shape) < share)

    middle = rng.random(NUM_BITS) < 0.5
    centres = near(np.tile(middle, (200, 1)), 0.2)
    codes = near(centres[rng.integers(200, size=num_codes)], 0.15)
    rows = rng.permutation(num_codes)[: NUM_HUBS + NUM_COPIES]
    codes[rows[:NUM_HUBS]] = near(np.tile(middle, (NUM_HUBS, 1)), 0.03)
    codes[rows[NUM_HUBS:]] = near(~middle[None], 0.1)
    return np.packbits(codes, axis=1, bitorder="little"), rows[:NUM_HUBS], rows[NUM_HUBS:]


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan")
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--compared", type=int, default=20_000, help="codes that faiss counts")
    options = parser.parse_args(arguments)
    packed, hubs, copies = make_codes(options.codes, seed=0)
    given = {"num_bits": NUM_BITS, "radius": RADIUS, "alert_rate": 1e-4}
    retrieval.scan(packed[:10_000], **given)
    start = time.perf_counter()
    found = retrieval.scan(packed, **given)
    seconds = time.perf_counter() - start
    caught = np.isin(hubs, found.suspects).sum()
    print(f"{options.codes:,} codes, {found.num_sampled:,} sampled: {seconds:.1f} s")
    copied = np.isin(copies, found.suspects).sum()
    print(
        f"{len(found.suspects)} suspects; among them {caught} of {len(hubs)} planted hubs, "
        f"{copied} of {len(copies)} copies of one picture"
    )
    try:
        import faiss
    except ModuleNotFoundError:
        return
    rows = np.random.default_rng(1).permutation(len(packed))[: found.num_sampled]
    index = faiss.IndexBinaryFlat(NUM_BITS)
    index.add(packed[rows])
    start = time.perf_counter()
    index.range_search(packed[: options.compared], RADIUS + 1)
    each = (time.perf_counter() - start) / options.compared
    print(
        f"a code: {1e6 * seconds / options.codes:.1f} us, faiss' range search {1e6 * each:.1f} us"
    )


if __name__ == "__main__":
    main()
