"""What SAAT's update costs, and what each way of saving memory or time buys.

    python -m benchmarks.cost            # four networks
    python -m benchmarks.cost --quick    # the smallest alone, at batch 8

Memory is what XLA's compiler says of the compiled update and what its gradient keeps by its shapes;
time is that of programs that take turns. All figures are the backend's and the version's.
"""

import concurrent.futures
import functools
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import interleaved
from saat_jax import defenses, networks, objectives, optimizers, parallel

NUM_BITS, NUM_CLASSES, BANK_SIZE = 32, 20, 5000
NETWORKS = {"convnet": 64, "alexnet": 224, "resnet18": 224, "vgg11": 224}
BATCHES = (8, 32, 128)
# Options of a network, by the words of the tables.
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, remat": {"remat": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, remat": {"dtype": "bfloat16", "remat": True},
}


def saat_step(
    name: str,
    *,
    image_size: int,
    batch_size: int,
    donate: bool = True,
    accumulate: int = 1,
    **options: Any,
) -> tuple[Callable[..., Any], Callable[[], Any], dict[str, np.ndarray]]:
    """SAAT's update of DPH by SGD with momentum, on one device.

    Args:
        name: one of `networks.NETWORKS`.
        image_size: height and width of the images, in pixels.
        batch_size: images of the one device.
        donate: of `parallel.map_update`.
        accumulate: of `optimizers.make_optimizer`.
        **options: of `networks.create_network`.

    Returns:
        The mapped update, what makes its first state, and a batch of noise.
    """
    model = networks.create_network(name, num_bits=NUM_BITS, **options)
    optimizer = optimizers.make_optimizer(
        "sgd", lambda _: 0.01, num_steps=1000, momentum=0.9, accumulate=accumulate
    )
    update = defenses.make_saat_update(
        model,
        objectives.create_objective("dph"),
        optimizer,
        seed=0,
        epsilon=8 / 255,
        step_size=2 / 255,
        num_steps=7,
    )

    def first_state() -> defenses.TrainState:
        variables = networks.init_variables(model, jax.random.key(0), image_size=image_size)
        codes = jnp.ones((BANK_SIZE, NUM_BITS))
        bank = objectives.CodeBank(codes, jnp.ones((BANK_SIZE, NUM_CLASSES)))
        return defenses.init_state(variables, optimizer, objectives.State(bank=bank), bank)

    rng = np.random.default_rng(0)
    batch = {
        "image": rng.random((batch_size, image_size, image_size, 3), np.float32),
        "label": rng.integers(2, size=(batch_size, NUM_CLASSES)).astype(np.float32),
        "index": np.arange(batch_size, dtype=np.int32),
        "mask": np.ones(batch_size, np.float32),
    }
    return parallel.map_update(update, donate=donate), first_state, batch


def _lower(name: str, **settings: Any) -> Any:
    """The update for one device, ready to be compiled; nothing is computed."""
    mapped, first_state, batch = saat_step(name, **settings)
    state = jax.eval_shape(first_state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), (state, batch))
    return mapped.lower(*shapes)


@functools.cache
def update_memory(name: str, **settings: Any) -> dict[str, int]:
    """Counts the bytes of one update, from XLA's analysis; arguments as of `saat_step`.

    Returns:
        "arguments" (state and batch), "temporary" (activations, gradients and what else is alive
        at the worst moment), "donated" (of the new state, what lies in the memory of the old).
    """
    memory: Any = _lower(name, **settings).compile().memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
    }


def kept_bytes(name: str, *, image_size: int, **options: Any) -> int:
    """Counts the bytes that one training pass keeps for its gradient, for each image.

    Args:
        name: one of `networks.NETWORKS`.
        image_size: height and width of the images, in pixels.
        **options: of `networks.create_network`.
    """
    model = networks.create_network(name, num_bits=NUM_BITS, **options)
    shape = (image_size, image_size, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def kept(rows: int) -> int:
        def gradient(params: Any, images: Any) -> Any:
            stats = jax.tree.map(jnp.zeros_like, variables.get("batch_stats", {}))
            keys = jax.random.split(jax.random.key(0), rows)
            passing = networks.Training(keys, jnp.ones(rows))

            def loss(params: Any, images: Any) -> jax.Array:
                return networks.forward(model, params, stats, images, passing)[0]

            # The function that takes gradients back: a pytree of all that it needs.
            return jax.vjp(loss, params, images)[1]

        images = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
        leaves = jax.tree.leaves(jax.eval_shape(gradient, variables["params"], images))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    # Parameters are the same for any number of rows.
    return kept(3) - kept(2)


def make_step(**settings: Any) -> Callable[[], Any]:
    """The program that does one update after another; arguments as of `saat_step`."""
    mapped, first_state, batch = saat_step(**settings)
    state = parallel.replicate(first_state())
    sharded = parallel.shard_batch(batch)

    def step() -> None:
        nonlocal state
        state, metrics = mapped(state, sharded)
        jax.block_until_ready((state, metrics))

    return step


def compile_seconds(name: str, folder: str, **settings: Any) -> float:
    """Seconds to compile the update, with a folder for compiled programs."""
    jax.config.update("jax_compilation_cache_dir", folder)
    lowered = _lower(name, **settings)
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


def starts(name: str, **settings: Any) -> list[float]:
    """`compile_seconds` of two processes, of which the second finds the first one's folder."""
    spawn = multiprocessing.get_context("spawn")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                seconds.append(pool.submit(compile_seconds, name, folder, **settings).result())
    return seconds


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}" if size > 10 * 2**20 else f"{size / 2**20:.1f}"


def _print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _print_head(*cells: str) -> None:
    print()
    _print_row(*cells)
    print(f"|---|{'---:|' * (len(cells) - 1)}")


def main(arguments: list[str]) -> None:
    """Prints the tables."""
    quick = "--quick" in arguments
    names = dict(itertools.islice(NETWORKS.items(), 1 if quick else None))
    start = time.monotonic()

    _print_head("kept for the gradient, MiB/image", *VARIANTS)
    for name, size in NETWORKS.items():
        kept = [kept_bytes(name, image_size=size, **o) for o in VARIANTS.values()]
        _print_row(f"`{name}`", *(f"{bytes_ / 2**20:.2f}" for bytes_ in kept))

    _print_head("SAAT's update, MiB", "batch", "arguments", "of them donated", "temporary")
    for (name, size), rows in itertools.product(names.items(), BATCHES[:1] if quick else BATCHES):
        memory = update_memory(name, image_size=size, batch_size=rows)
        sizes = (memory["arguments"], memory["donated"], memory["temporary"])
        _print_row(f"`{name}`", rows, *map(_mib, sizes))

    rows = 8 if quick else 32
    _print_head(f"temporary at batch {rows}, MiB", *VARIANTS)
    for name, size in names.items():
        settings = {"image_size": size, "batch_size": rows}
        found = [update_memory(name, **settings, **o)["temporary"] for o in VARIANTS.values()]
        _print_row(f"`{name}`", *map(_mib, found))

    _print_head("seconds to compile, batch 8", "first start", "second", "ratio")
    for name, size in names.items():
        first, second = starts(name, image_size=size, batch_size=8)
        _print_row(f"`{name}`", f"{first:.1f}", f"{second:.2f}", f"{first / second:.0f}")

    variants = VARIANTS | {"not donated": {"donate": False}, "accumulate 4": {"accumulate": 4}}
    _print_head("time of a step at batch 8, by that of float32", *variants)
    for name, size in itertools.islice(names.items(), 2):
        settings = {"name": name, "image_size": size, "batch_size": 8}
        programs = {word: (make_step, settings | o, {}) for word, o in variants.items()}
        results = interleaved.take_turns(programs, rounds=5 if quick else 11)
        plain = results["float32"]
        for kind, ratio in {"wall": interleaved.ratio, "CPU": interleaved.cpu_ratio}.items():
            ratios = [ratio(result, plain) for result in results.values()]
            _print_row(f"`{name}`, {kind} seconds", *(f"{value:.2f}" for value in ratios))

    print(
        f"\n{NUM_BITS} bits; jax {jax.__version__} on {jax.default_backend()}, in "
        f"{time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
