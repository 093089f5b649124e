"""How fast images are read: decoded, resized and cropped, against Pillow and a PyTorch loader.

    python -m benchmarks.input_pipeline                     # JPEGs of 500 x 375 made on the fly
    python -m benchmarks.input_pipeline --root FOLDER       # the training images of lists
    python -m benchmarks.input_pipeline --quick
    python -m benchmarks.input_pipeline --output runs/speed # input_pipeline.json there too

The short side goes to 256 pixels, the centre crop has 224. The programs take turns; the limit is
what decoding alone allows, by the same decoder and threads. Beside it stands how many images a
second SAAT's update of AlexNet takes in here: a pipeline above that is no bottleneck.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import cost
from saat_jax import datasets

RESIZE, IMAGE_SIZE, BATCH = 256, 224, 32
TORCH = importlib.util.find_spec("torch") is not None
# Threads of our pipeline on a machine of up to four cores, and processes of the PyTorch loader.
NUM_WORKERS = 2


def make_images(folder: str, count: int) -> list[str]:
    """Writes JPEGs of 500 x 375 pixels, smooth with some noise: about 65 kB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        pixels = np.asarray(smooth.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255)
        paths.append(os.path.join(folder, f"{number}.jpg"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def read_with_pillow(path: str) -> np.ndarray:
    """One image, as the papers' code reads it. `[height, width, channels]` float32 in [0, 1]"""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height, left, top = datasets.resize_crop_geometry(
        *image.size, resize=RESIZE, crop=IMAGE_SIZE
    )
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    image = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    return np.asarray(image, np.float32) / 255


class _Images:
    """The images as a PyTorch dataset."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        return read_with_pillow(self.paths[row])


def make_torch(paths: list[str]) -> Callable[[], Iterator[Any]]:
    """PyTorch's loader of the same images, in worker processes that live on."""
    from torch.utils import data

    loader = data.DataLoader(
        _Images(paths),
        batch_size=BATCH,
        num_workers=NUM_WORKERS,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    return lambda: iter(loader)


def make_decoder(paths: list[str]) -> Callable[[], Iterator[Any]]:
    """Decoding alone: no resizing, no batches, nothing handed to Python."""
    import tensorflow as tf

    def decode(path: Any) -> Any:
        content = tf.io.read_file(path)
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")[0, 0, 0]

    data = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=NUM_WORKERS)
    options = tf.data.Options()
    options.threading.private_threadpool_size = NUM_WORKERS
    return lambda: data.batch(len(paths)).with_options(options).as_numpy_iterator()


def measure(paths: list[str], *, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds for all images, by clock and by program, in each round after an uncounted one."""
    labels = np.ones((len(paths), 1), np.float32)
    split = datasets.Split("train", labels, paths=tuple(paths))

    def ours() -> Iterator[Any]:
        return datasets.eval_batches(split, batch_size=BATCH, image_size=IMAGE_SIZE, resize=RESIZE)

    programs: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": ours,
        "limit": make_decoder(paths),
        "pillow": lambda: map(read_with_pillow, paths),
    }
    if TORCH:
        programs["torch"] = make_torch(paths)
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    found: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in programs} for clock in clocks
    }
    for number in range(rounds + 1):
        for name, run in programs.items():
            start = {clock: now() for clock, now in clocks.items()}
            for _ in run():
                pass
            for clock, now in clocks.items():
                found[clock][name] += [now() - start[clock]] if number else []
    # The loader works in processes of its own, of which this one's clock knows nothing.
    found["cpu"].pop("torch", None)
    return found


def step_rate(*, rounds: int) -> float:
    """Images a second that SAAT's update of AlexNet takes in."""
    step = cost.make_step(name="alexnet", image_size=IMAGE_SIZE, batch_size=BATCH)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds[1:])


def main(argv: list[str] | None = None) -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of lists, instead of images made on the fly")
    parser.add_argument("--quick", action="store_true", help="few images and rounds")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the JSON")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    count, rounds = (96, 2) if options.quick else (512, 7)
    with tempfile.TemporaryDirectory() as folder:
        if options.root:
            data = datasets.load_dataset(
                source="lists", root=options.root, image_size=IMAGE_SIZE, resize=RESIZE
            )
            paths = list(data.train.paths or ())[:count]
        else:
            paths = make_images(folder, count)
        kilobytes = statistics.mean(map(os.path.getsize, paths)) / 1000
        found = measure(paths, rounds=rounds)
        split = datasets.Split("train", np.ones((len(paths), 1), np.float32), paths=tuple(paths))
        some = range(min(16, len(paths)))
        images = datasets.load_images(split, some, image_size=IMAGE_SIZE, resize=RESIZE)
        levels = 255 * max(np.abs(images[row] - read_with_pillow(paths[row])).max() for row in some)
    names = {
        "ours": "saat_jax (tf.data)",
        "pillow": "Pillow, one thread",
        "torch": f"PyTorch loader on Pillow, {NUM_WORKERS} processes",
        "limit": "decoding alone (tf.data)",
    }
    print(f"{len(paths)} images of {kilobytes:.0f} kB on average, {os.cpu_count()} cores\n")
    print("| images a second | wall | per CPU-second | its time by ours, wall | CPU |")
    print("|---|---:|---:|---:|---:|")
    if not TORCH:
        print("PyTorch is not installed: its row is left out")
    result: dict[str, Any] = {"images": len(paths), "kilobytes": kilobytes}
    for name, text in names.items():
        cells = {}
        for clock, seconds in found.items():
            if name in seconds:
                pairs = zip(seconds[name], seconds["ours"], strict=True)
                cells[clock] = {
                    "rate": len(paths) / statistics.median(seconds[name]),
                    "ratio": statistics.median(a / b for a, b in pairs),
                }
        if not cells:
            continue
        result[name] = cells
        rates = [f"{cells[c]['rate']:.0f}" if c in cells else "-" for c in found]
        ratios = [f"{cells[c]['ratio']:.2f}" if c in cells else "-" for c in found]
        print(f"| {' | '.join([text, *rates, *ratios])} |")
    print(f"\nLargest difference from Pillow: {levels:.0f} grey levels")
    result["saat_step"] = rate = step_rate(rounds=1 if options.quick else 5)
    print(
        f"SAAT's update of AlexNet at batch {BATCH} takes in {rate:.1f} images a second on "
        f"{jax.default_backend()}: the pipeline gives {result['ours']['wall']['rate'] / rate:.0f} "
        "times as many"
    )
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "input_pipeline.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
