"""How long a start takes: importing the library, and compiling what a training run needs.

    python -m benchmarks.startup
    python -m benchmarks.startup --quick
    python -m benchmarks.startup --output runs/speed    # startup.json there too

Every start is a new process. `import saat_jax` takes turns with the imports that it cannot do
without. The training run is the demo's smallest, by the launcher with a new cache of compiled
programs, then once more in another folder; what counts is the time JAX reports for compiling or for
fetching from the cache, tracing not included.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
IMPORTS = {"peer": "import jax, flax.linen, optax", "ours": "import saat_jax"}
# Prints wall and CPU seconds of a statement, without those of the interpreter's start.
_TIMED = """
import time
wall, cpu = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
_COMPILED = """
import json, runpy, jax
seconds, hits = [], []
def on_duration(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        seconds.append(duration)
def on_event(event, **_):
    if event == "/jax/compilation_cache/cache_hits":
        hits.append(event)
jax.monitoring.register_event_duration_secs_listener(on_duration)
jax.monitoring.register_event_listener(on_event)
try:
    runpy.run_module("launch.main", run_name="__main__", alter_sys=True)
finally:
    print()
    print(json.dumps({"seconds": sum(seconds), "programs": len(seconds), "cached": len(hits)}))
"""


def _last_line(code: str, *arguments: str) -> str:
    """What a new process prints last."""
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(command[3:])} failed:\n{run.stderr}")
    return run.stdout.splitlines()[-1]


def import_seconds(*, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the two imports, by clock and by program, in each round after an uncounted one."""
    found: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in IMPORTS} for clock in ("wall", "cpu")
    }
    for number in range(rounds + 1):
        for name, statement in IMPORTS.items():
            seconds = _last_line(_TIMED.format(statement)).split()
            for clock, value in zip(found, seconds, strict=True):
                found[clock][name] += [float(value)] if number else []
    return found


def compile_starts() -> list[dict[str, float]]:
    """What two training runs compile, of which the second finds the programs of the first.

    Returns:
        For each "seconds", "programs", and how many of them came from the cache, "cached".
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", "configs/demo.py:smoke", "--config.task=train_hash"]
        arguments += ["--compilation_cache", os.path.join(folder, "cache")]
        return [
            json.loads(_last_line(_COMPILED, *arguments, "--workdir", os.path.join(folder, name)))
            for name in ("first", "second")
        ]


def main(argv: list[str] | None = None) -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the JSON")
    options = parser.parse_args(argv)
    result: dict[str, object] = {}
    print("| seconds | jax, flax.linen, optax | saat_jax | ratio |\n|---|---:|---:|---:|")
    for clock, seconds in import_seconds(rounds=3 if options.quick else 11).items():
        peer, ours = (statistics.median(seconds[name]) for name in IMPORTS)
        pairs = zip(seconds["ours"], seconds["peer"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| import, {clock} | {peer:.2f} | {ours:.2f} | {ratio:.2f} |")
        result[f"import_{clock}"] = {"peer": peer, "ours": ours, "ratio": ratio}
    first, second = result["compile"] = compile_starts()
    print("\n| training run | compiling, s | programs | of them cached |\n|---|---:|---:|---:|")
    for name, start in (("first start", first), ("second start", second)):
        print(f"| {name} | {start['seconds']:.2f} | {start['programs']} | {start['cached']} |")
    print(f"The second start compiles {first['seconds'] / second['seconds']:.0f} times faster.")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "startup.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
