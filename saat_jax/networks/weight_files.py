"""Files of weights: tensors by name, and one kind of error for what is none.

Only shapes and dtypes are read at first; what fits a network is read when it is asked for, so that
nothing else in a file can fill the memory. No object is ever unpickled.
"""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from saat_jax import files, options

_NUMPY, _SAFETENSORS, _PYTORCH = "a NumPy archive", "a safetensors file", "a PyTorch file"
# By the end of a file's name.
_KINDS = {
    ".npz": _NUMPY,
    ".safetensors": _SAFETENSORS,
    **dict.fromkeys((".pth", ".pt", ".pth.tar", ".bin", ".ckpt"), _PYTORCH),
}
_AGAIN = "copy or download it again"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        dtype: the name of its dtype, as NumPy has it.
        read: gives it as an array; ValueError if the file is damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def read(path: pathlib.Path) -> Any:
    """Opens a file of weights.

    Returns:
        What it holds: of `.npz` and `.safetensors` a `Stored` by name; of PyTorch's files what was
        saved, with PyTorch's tensors in it.

    Raises:
        ValueError: naming the file, what it is instead of a file of weights, and what to do.
        OSError: if it cannot be opened.
    """
    kind = _kind(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"expected a file of weights, got {path}, which {fault}")
    with path.open("rb") as file:
        found, cure = _content(path, file.read(512))
    if found != kind:
        raise ValueError(f"{path} is {found}, not {kind}; {cure}")
    return {_NUMPY: _read_npz, _SAFETENSORS: _read_safetensors, _PYTORCH: _read_torch}[kind](path)


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name, as the end of the file's name says.

    Raises:
        OSError: if the file cannot be written, as on a full disk; one that was there is kept.
        ValueError: if the file is to be of another kind, or the package for it is absent.
    """
    kind = _kind(path)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        if kind == _NUMPY:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        elif kind == _SAFETENSORS:
            file.write(_optional("safetensors.numpy", path).save(arrays))
        else:
            torch = _optional("torch", path)
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)


def _kind(path: pathlib.Path) -> str:
    """The kind of file that a name promises."""
    for suffix, kind in _KINDS.items():
        if path.name.lower().endswith(suffix):
            return kind
    raise ValueError(f"expected a file of weights of kind {list(_KINDS)}, got {path}")


def _content(path: pathlib.Path, head: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and what to do if that is not what was expected."""
    if not head:
        return "empty", _AGAIN
    # The length of a header, which is JSON.
    if b"\0" in head[:8] and head[8:9] == b"{":
        return _SAFETENSORS, "let its name end in .safetensors"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "`git lfs pull` fetches the file itself"
    if head.lstrip()[:1] == b"<":
        return "a web page", "open its address in a browser and download the file itself"
    if head.startswith(b"PK"):
        with _telling(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return _PYTORCH, "let its name end in .pth"
        if any(name.endswith(".npy") for name in names):
            return _NUMPY, "let its name end in .npz"
        return "another zip archive", "unpack it"
    # PyTorch's files before version 1.6 begin with a pickle.
    if head.startswith(b"\x80"):
        return _PYTORCH, "let its name end in .pth"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", head):
        return "text", _AGAIN
    return "of an unknown kind", _AGAIN


@contextlib.contextmanager
def _telling(path: pathlib.Path) -> Iterator[None]:
    """Turns the dozen kinds of error that a damaged file raises into one."""
    try:
        yield
    except Exception as error:
        fault = options.shortened(f"{type(error).__name__}: {error}")
        raise ValueError(f"{path} is damaged or cut short ({fault}); {_AGAIN}") from error


def _optional(module: str, path: pathlib.Path) -> Any:
    """Imports what reads and writes a kind of file."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ValueError(
            f"{path} needs the package {package!r}: pip install {package}, or use a .npz file"
        ) from error


def _read_npz(path: pathlib.Path) -> dict[str, Stored]:
    tensors = {}
    with _telling(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0(file)
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0(file)
                )
            tensors[member.removesuffix(".npy")] = Stored(
                header[0], header[2].name, functools.partial(_read_member, path, member)
            )
    if objects := [name for name, tensor in tensors.items() if tensor.dtype == "object"]:
        raise ValueError(
            f"{path} holds Python objects, which are never unpickled, as "
            f"{options.shortened(objects[0])!r}; save arrays of numbers alone"
        )
    return tensors


def _read_member(path: pathlib.Path, member: str) -> np.ndarray:
    with _telling(path), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        # The checksum is compared at the end.
        if file.read(1):
            raise ValueError(f"more bytes than shape {array.shape} has")
        return array


def _read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    safetensors = _optional("safetensors", path)
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

    def read_tensor(name: str) -> np.ndarray:
        with _telling(path):
            return np.asarray(file.get_tensor(name))

    with _telling(path):
        file = safetensors.safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {
        name: Stored(
            tuple(part.get_shape()),
            names.get(part.get_dtype(), part.get_dtype()),
            functools.partial(read_tensor, name),
        )
        for name, part in slices.items()
    }


def _read_torch(path: pathlib.Path) -> Any:
    torch = _optional("torch", path)
    if zipfile.is_zipfile(path):
        with _telling(path), zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > path.stat().st_size:
                raise ValueError(f"it inflates to {size:,} bytes, and PyTorch compresses nothing")
            # PyTorch does not compare the checksums.
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} differs")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} holds more than tensors, which is never unpickled, or is damaged "
            f"({type(error).__name__}); in PyTorch, save model.state_dict() instead of the model"
        ) from error
