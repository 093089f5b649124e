"""Retrieval metrics: ours against the published metric in NumPy and against faiss.

    python -m benchmarks.retrieval --output runs/retrieval            # all, about 15 minutes
    python -m benchmarks.retrieval --output runs/retrieval --quick    # a few small rounds

Everything runs on one core and with one thread: this process and its children are bound to one
CPU, and OpenMP, BLAS and XLA are told so. Programs take turns (`interleaved`); ratios are medians
over the rounds. Ours and faiss pack their inputs inside the measured time. The peers:

* published: for each query a float32 product with all codes and one with all labels, `np.argsort`,
  and the average precision of the first k, as the papers' `cal_map` does;
* faiss: `IndexBinaryFlat.search` for k items, counting instead of a heap (the faster way), then
  relevance from packed labels and the average precision. Skipped where faiss is absent.

The scan, distance and relevance of every pair one by one, is what ranking cannot do without;
counting, 32 items at a time, can. Prints Markdown, and writes `retrieval.json` and
`retrieval.png` into the output folder.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from benchmarks import interleaved

NUM_CLASSES = 80
K = 5000
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}
Problem = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def problem(num_queries: int, num_database: int, num_bits: int) -> Problem:
    """Codes and labels, float32: about three classes an item, a random direction for each class."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(NUM_CLASSES, num_bits)).astype(np.float32)
    arrays = []
    for rows in (num_queries, num_database):
        codes = np.empty((rows, num_bits), np.float32)
        labels = np.empty((rows, NUM_CLASSES), np.float32)
        for start in range(0, rows, 2**14):
            part = slice(start, start + 2**14)
            labels[part] = rng.random(labels[part].shape, np.float32) < 2 / NUM_CLASSES
            labels[np.arange(rows)[part], rng.integers(NUM_CLASSES, size=len(labels[part]))] = 1
            votes = labels[part] @ directions
            votes += rng.standard_normal(votes.shape, np.float32)
            codes[part] = np.where(votes >= 0, 1, -1)
        arrays.append((codes, labels))
    (queries, query_labels), (database, database_labels) = arrays
    return queries, database, query_labels, database_labels


def make_ours(ties: str, **size: int) -> Callable[[], Any]:
    """The library's average precision of every query."""
    from saat_jax import retrieval

    arrays = problem(**size)
    return lambda: retrieval.average_precision(*arrays, k=K, ties=ties)


def make_scan(**size: int) -> Callable[[], Any]:
    """Distance and relevance of every pair, from packed arrays: what ranking cannot avoid."""
    from saat_jax.retrieval import counting

    packed = counting.pack(*problem(**size))
    items = packed.database, packed.database_labels

    def run() -> None:
        for start in range(0, len(packed.queries), 50):
            part = slice(start, start + 50)
            queries = packed.queries[part], packed.query_labels[part]
            counting._keys(*queries, *items, num_levels=packed.num_levels).block_until_ready()

    return run


def _average_precision(is_relevant: np.ndarray) -> float:
    """Average precision of a list, normalised by its hits."""
    ranks = np.flatnonzero(is_relevant) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


def published(
    queries: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    kind: Literal["stable"] | None = None,
) -> np.ndarray:
    """The papers' metric; `kind="stable"` for ties in the order of the database."""
    values = []
    for code, label in zip(queries, query_labels, strict=True):
        is_relevant = (label @ database_labels.T > 0).astype(np.float32)
        distances = 0.5 * (database.shape[1] - code @ database.T)
        order = np.argsort(distances, kind=kind)
        values.append(_average_precision(is_relevant[order][:K]))
    return np.array(values)


def make_published(**size: int) -> Callable[[], Any]:
    """`published` of a problem."""
    return functools.partial(published, *problem(**size))


def make_faiss(**size: int) -> Callable[[], Any]:
    """Exhaustive binary search in faiss, then relevance and average precision."""
    import faiss

    faiss.omp_set_num_threads(1)
    queries, database, query_labels, database_labels = problem(**size)

    def pack_labels(labels: np.ndarray) -> np.ndarray:
        packed = np.packbits(labels > 0, axis=1)
        return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)

    def run() -> np.ndarray:
        index = faiss.IndexBinaryFlat(database.shape[1])
        index.use_heap = False  # type: ignore[attr-defined]
        index.add(np.packbits(database > 0, axis=1))
        wanted, words = pack_labels(query_labels), pack_labels(database_labels).T.copy()
        values = []
        for start in range(0, len(queries), 100):
            part = slice(start, start + 100)
            _, found = index.search(np.packbits(queries[part] > 0, axis=1), K)
            for items, label in zip(found, wanted[part], strict=True):
                shared = [word[items] & mask for word, mask in zip(words, label, strict=True)]
                values.append(_average_precision(functools.reduce(np.bitwise_or, shared)))
        return np.array(values)

    return run


def _memory(name: str) -> float:
    """VmRSS, now, or VmHWM, the most, of this process, in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(rf"{name}:\s*(\d+) kB", status)
    return int(match[1]) / 1024 if match else float("nan")


def make_memory(ties: str, **size: int) -> Callable[[], float]:
    """Returns what average precision adds to this process' memory at most, in MiB."""
    run = make_ours(ties, **size)

    def measure() -> float:
        # 5 sets the peak back to what is in use now.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        run()
        return _memory("VmHWM") - before

    return measure


def _child(
    make: Callable[..., Callable[[], Any]], options: dict[str, Any], connection: Any
) -> None:
    connection.send(make(**options)())


def _in_new_process(make: Callable[..., Callable[[], Any]], **options: Any) -> Any:
    """What a program returns when it runs once, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(make, options, theirs))
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def verify(num_queries: int, num_database: int, num_bits: int) -> dict[str, float]:
    """Compares the library with the published metric, whose ties are sorted or shuffled.

    Returns:
        The largest difference of a query's average precision with ties by index, and of the mean
        over shuffled databases from the tie average, in standard errors of that mean.
    """
    from saat_jax import retrieval

    arrays = problem(num_queries, num_database, num_bits)
    queries, database, query_labels, database_labels = arrays
    by_index = retrieval.average_precision(*arrays, k=K, ties="index")
    difference = float(np.max(np.abs(by_index - published(*arrays, kind="stable"))))
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(20):
        order = rng.permutation(num_database)
        shuffled = queries, database[order], query_labels, database_labels[order]
        samples.append(published(*shuffled, kind="stable"))
    error = np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
    average = retrieval.average_precision(*arrays, k=K)
    off = float(np.max(np.abs(np.mean(samples, axis=0) - average) / error))
    if difference > 1e-12 or off > 6:
        raise AssertionError(f"wrong results: {difference} by index, {off} errors averaged")
    return {"largest difference, ties by index": difference, "standard errors, averaged": off}


def compare(num_database: int, num_bits: int, *, queries: dict[str, int], rounds: int) -> Any:
    """Times every program on one database.

    Args:
        num_database: number of codes.
        num_bits: their length.
        queries: number of queries of each program; costs are per query.
        rounds: number of rounds.
    """
    programs: dict[str, interleaved.Program] = {}
    for name, count in queries.items():
        size: dict[str, Any] = {
            "num_queries": count,
            "num_database": num_database,
            "num_bits": num_bits,
        }
        if name.startswith("ours"):
            size["ties"] = name.split()[-1]
        make = {"scan": make_scan, "published": make_published, "faiss": make_faiss}
        programs[name] = make.get(name, make_ours), size, ONE_THREAD
    results = interleaved.take_turns(programs, rounds=rounds)

    def per_query(name: str, what: str) -> list[float]:
        return [1e3 * seconds / queries[name] for seconds in getattr(results[name], what)]

    def ratio(peer: str, ours: str, what: str) -> float:
        pairs = zip(per_query(peer, what), per_query(ours, what), strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)

    peers = [name for name in ("published", "faiss", "scan") if name in queries]
    return {
        "num_database": num_database,
        "num_bits": num_bits,
        "rounds": rounds,
        "queries": queries,
        "ms_per_query": {name: statistics.median(per_query(name, "seconds")) for name in queries},
        "cpu_ms_per_query": {
            name: statistics.median(per_query(name, "cpu_seconds")) for name in queries
        },
        "ratios": {
            ours: {
                peer: {
                    "wall": ratio(peer, ours, "seconds"),
                    "cpu": ratio(peer, ours, "cpu_seconds"),
                }
                for peer in peers
            }
            for ours in queries
            if ours.startswith("ours")
        },
    }


def make_curve(
    sizes: list[tuple[int, int]], num_queries: int, rounds: int
) -> Callable[[], dict[str, list[list[float]]]]:
    """Returns the CPU nanoseconds per query and code, by ties, of each round and size."""
    from saat_jax import retrieval

    problems = {}
    for num_bits in {bits for _, bits in sizes}:
        largest = max(count for count, bits in sizes if bits == num_bits)
        problems[num_bits] = problem(num_queries, largest, num_bits)

    def cost(ties: str, count: int, num_bits: int) -> float:
        queries, database, query_labels, database_labels = problems[num_bits]
        start = time.process_time()
        retrieval.average_precision(
            queries, database[:count], query_labels, database_labels[:count], k=K, ties=ties
        )
        return 1e9 * (time.process_time() - start) / count / num_queries

    def run() -> dict[str, list[list[float]]]:
        everything = {
            ties: [[cost(ties, *size) for size in sizes] for _ in range(rounds + 1)]
            for ties in retrieval.TIES
        }
        # The first round compiles.
        return {ties: costs[1:] for ties, costs in everything.items()}

    return run


def curve(sizes: list[tuple[int, int]], **options: int) -> dict[str, Any]:
    """Cost per query and code over (number of codes, number of bits), in one process."""
    costs = _in_new_process(make_curve, sizes=sizes, **options)
    return {
        "sizes": sizes,
        "ns_per_code": {ties: np.median(rows, axis=0).tolist() for ties, rows in costs.items()},
        "rounds": costs,
    }


def bandwidth() -> float:
    """Bytes per second that one core reads from memory: the sum of 1 GiB, best of five."""
    values = np.ones(2**27)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.nbytes / min(seconds)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax

    info = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "processor": model[1] if model else platform.processor(),
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
        "jax": jax.__version__,
        "faiss": importlib.metadata.version("faiss-cpu") if _has_faiss() else None,
        "load": os.getloadavg()[0],
    }


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report."""
    lines = []
    for result in report["compare"]:
        num_database, num_bits = result["num_database"], result["num_bits"]
        lines += [
            f"\nMAP@{K} of {num_database:,} codes of {num_bits} bits, {NUM_CLASSES} classes, one "
            f"thread; ratios by wall clock (by CPU seconds), medians of {result['rounds']} rounds:",
            "\n| program | queries | ms/query | ours, tie-averaged | ours, by index |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, count in result["queries"].items():
            ratios = [
                f"{one[name]['wall']:.2f} ({one[name]['cpu']:.2f})" if name in one else ""
                for one in result["ratios"].values()
            ]
            cells = [name, f"{count:,}", f"{result['ms_per_query'][name]:.3f}", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
        once = num_database * (num_bits + 32 * -(-NUM_CLASSES // 32)) / 8
        lines.append(
            f"\nRead once, packed codes and labels ({once / 2**20:.1f} MiB) take "
            f"{1e3 * once / report['bandwidth']:.2f} ms at {report['bandwidth'] / 1e9:.1f} GB/s; "
            "queries share a read."
        )
    for title, what in (("database size", "database"), ("code length", "bits")):
        costs = report["curves"][what]
        lines += [
            f"\nCost by {title}, CPU ns per query and code:",
            "\n| codes | bits | tie-averaged | by index |",
            "|---:|---:|---:|---:|",
        ]
        for (count, bits), *values in zip(
            costs["sizes"], *costs["ns_per_code"].values(), strict=True
        ):
            lines.append(f"| {count:,} | {bits} | {values[0]:.2f} | {values[1]:.2f} |")
    lines.append(f"\nGrowth of the cost per code to {report['largest']:,} codes from a tenth:")
    lines += [f"{ties}: {value:+.1%}" for ties, value in report["growth"].items()]
    memory = ", ".join(f"{ties} {mib:.0f} MiB" for ties, mib in report["memory"].items())
    lines.append(f"\nPeak memory beyond codes and labels at {report['largest']:,} codes: {memory}")
    lines.append(f"Checked: {report['verified']}")
    lines.append(f"Machine: {report['machine']}")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: pathlib.Path) -> None:
    """Draws time per query of each program, and the cost per code over size and length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for offset, result in enumerate(report["compare"]):
        times = result["ms_per_query"]
        places = np.arange(len(times)) + 0.4 * offset
        label = f"{result['num_database']:,} x {result['num_bits']} bits"
        axes[0].barh(places, list(times.values()), height=0.4, label=label)
        axes[0].set_yticks(np.arange(len(times)), list(times))
    axes[0].set(xscale="log", xlabel="ms per query", title=f"MAP@{K}, one thread")
    axes[0].legend()
    for axis, what, column in ((axes[1], "database", 0), (axes[2], "bits", 1)):
        costs = report["curves"][what]
        for ties, values in costs["ns_per_code"].items():
            axis.plot([size[column] for size in costs["sizes"]], values, "o-", label=ties)
        axis.set_xscale("log", base=10 if what == "database" else 2)
        axis.set(ylim=0, ylabel="CPU ns per query and code")
        axis.set_xlabel("database codes" if what == "database" else "bits")
        axis.legend(title="ties")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    quick = arguments.quick
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.update(ONE_THREAD)

    rounds = 2 if quick else 7
    ours = {"ours average": 2000, "ours index": 2000}
    peers = {"published": 50, "faiss": 2000, "scan": 2000}
    cases = [(120_000, 32, ours | peers)]
    if quick:
        cases = [(20_000, 32, dict.fromkeys(ours | peers, 100))]
    else:
        some = {"published": 10, "faiss": 500, "scan": 500}
        cases.append((1_000_000, 64, dict.fromkeys(ours, 500) | some))
    if not _has_faiss():
        print("faiss is absent: its search is skipped; pip install faiss-cpu")
        for *_, queries in cases:
            del queries["faiss"]

    largest = 50_000 if quick else 1_000_000
    few, many = (50, 50) if quick else (500, 2000)
    report: dict[str, Any] = {
        "machine": machine(),
        "bandwidth": bandwidth(),
        "verified": verify(5, cases[0][0], cases[0][1]),
        "compare": [
            compare(count, bits, queries=queries, rounds=rounds) for count, bits, queries in cases
        ],
        "curves": {
            "database": curve(
                [(int(largest * 10 ** (i / 4)), 64) for i in range(-8, 1)],
                num_queries=few,
                rounds=min(rounds, 3),
            ),
            "bits": curve(
                [(largest // 10, bits) for bits in (16, 32, 64, 128, 256, 512)],
                num_queries=few,
                rounds=min(rounds, 3),
            ),
        },
        "largest": largest,
        "memory": {
            ties: _in_new_process(
                make_memory, ties=ties, num_queries=many, num_database=largest, num_bits=64
            )
            for ties in ("average", "index")
        },
    }
    report["growth"] = {
        ties: statistics.median(costs[-1] / costs[4] - 1 for costs in rows)
        for ties, rows in report["curves"]["database"]["rounds"].items()
    }
    (arguments.output / "retrieval.json").write_text(json.dumps(report, indent=1))
    plot(report, arguments.output / "retrieval.png")
    print(markdown(report))


if __name__ == "__main__":
    main()
