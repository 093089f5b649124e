"""Weight files that are none, or hold what is no weight."""

import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.bad_inputs.judging import Case
from saat_jax import networks

NAN = float("nan")


def cases() -> Iterator[Case]:
    """Weight files that are none, or hold what is no weight."""
    model = networks.create_network("convnet", num_bits=8, widths=(4, 4, 4, 4))

    @functools.cache
    def variables() -> Any:
        return networks.init_variables(model, jax.random.key(0), image_size=16)

    def load(path: pathlib.Path) -> Any:
        return networks.load_torch_weights(variables(), path)

    def file(kind: str, name: str, make: Callable[[bytes], bytes]) -> Case:
        def act(folder: pathlib.Path) -> Any:
            sound = folder / f"sound.{name.rpartition('.')[2]}"
            if sound.suffix in (".npz", ".safetensors"):
                networks.save_torch_weights(sound, variables())
            else:
                sound = folder / "sound.npz"
                networks.save_torch_weights(sound, variables())
            (folder / name).write_bytes(make(sound.read_bytes()))
            return load(folder / name)

        return Case(kind, name, act, (re.escape(name),))

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    contents: dict[str, Callable[[bytes], bytes]] = {
        "an empty file of weights": lambda _: b"",
        "a text for weights": lambda _: b"weights\n",
        "a pointer for weights": lambda _: pointer,
        "a page for weights": lambda _: b"<!DOCTYPE html><html></html>",
        "half a file of weights": lambda whole: whole[: len(whole) // 2],
        "random bytes for weights": lambda _: np.random.default_rng(0).bytes(1000),
        "weights with a flipped byte": lambda whole: (
            whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]
        ),
    }
    for kind, make in contents.items():
        for name in ("w.npz", "w.safetensors", "w.pth", "w.pt", "w.bin", "w.ckpt"):
            if kind == "weights with a flipped byte" and name != "w.npz":
                continue
            yield file(kind, name, make)
    changes: dict[str, Callable[[np.ndarray], Any]] = {
        "integers": lambda x: x.astype(np.int8),
        "booleans": lambda x: x > 0,
        "complex numbers": lambda x: x.astype(np.complex64),
        "texts": lambda x: x.astype(str),
        "NaN": lambda x: np.full_like(x, NAN),
        "infinite numbers": lambda x: np.full_like(x, np.inf),
        "objects": lambda x: np.array([{}], object),
        "another shape": lambda x: x[..., None],
    }
    for what, change in changes.items():

        def act(folder: pathlib.Path, change: Any = change) -> Any:
            tensors = networks.to_torch_weights(variables())
            name = next(iter(tensors))
            np.savez(folder / "w.npz", **tensors | {name: change(np.asarray(tensors[name]))})
            return load(folder / "w.npz")

        yield Case("a tensor of another kind", what, act, (r"w\.npz|conv|norm|hash",))
