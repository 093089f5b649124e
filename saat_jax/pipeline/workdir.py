"""The folder of a run: where it may lie, who may write to it, and the settings that it holds."""

import contextlib
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from saat_jax import files, options, training
from saat_jax.pipeline.parts import Config

try:
    import fcntl
except ImportError:  # On Windows, where nobody is kept out.
    fcntl = None  # type: ignore[assignment]

CURE = "delete it and start again"
# What each entry of a section leaves behind; and fields that decide no result.
_LEFT_BY = {"attacks": "records/*/{}.json", "defenses": "models/{}", "learned": "learned/*/{}"}
_PASSING = re.compile(
    r"(task|donate|mapping|profile|encode|search|transfer)\b"
    r"|.*_every$|evaluation\.(models|batch_size)$|data\.root$|model\.(weights|remat)$"
)
_held: set[pathlib.Path] = set()


def check_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a run's folder.

    Raises:
        ValueError: if it is empty, a file, or no path of the file system.
    """
    text = os.fspath(workdir)
    if not text.strip():
        raise ValueError("the workdir is empty; name a folder such as runs/demo")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(
            f"the workdir must be a folder of the file system, got {text}; mount the bucket "
            "(Cloud Storage FUSE, s3fs) and name the folder where it is mounted"
        )
    path = pathlib.Path(text).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"the workdir must be a folder, got {path}, which is a file")
    return path


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other programs out of a run's folder while the block runs.

    The first process of a job does so for all of them. What holds the folder already goes on.

    Raises:
        ValueError: if another program holds the folder, saying which.
    """
    if workdir in _held:
        yield
        return
    file, holder, made = None, "", not workdir.exists()
    if jax.process_index() == 0:
        file, holder = _lock(workdir / ".lock")
    if jax.process_count() > 1:
        # All or none: those that went on alone would wait for the first one without end.
        taken = bool(multihost_utils.process_allgather(np.array(bool(holder))).any())
        holder = holder or "another program" * taken
    if holder:
        raise ValueError(
            f"{workdir} is in use by {holder}, and two would spoil each other's files; wait for "
            "its end, or use another --workdir"
        )
    _held.add(workdir)
    try:
        yield
    finally:
        _held.discard(workdir)
        if file:
            # Before it is closed, or it may be the next one's.
            pathlib.Path(file.name).unlink(missing_ok=True)
            file.close()
            if made:
                # Nothing was done there, it seems.
                with contextlib.suppress(OSError):
                    workdir.rmdir()


def _lock(path: pathlib.Path) -> tuple[TextIO | None, str]:
    """The locked file, or who holds it; the system lets go of it when the process ends."""
    if fcntl is None:
        return None, ""
    while True:
        with files.telling(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            with file:
                return None, file.read(200) or "another program"
        except OSError:
            # Some network file systems have no locks.
            file.close()
            return None, ""
        # Unless its last holder has just removed it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file, ""


def stored_config(workdir: str | os.PathLike[str]) -> Config:
    """Reads what `store_config` has written; ValueError if there is no run in the folder."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"no run in {os.fspath(workdir)!r}: {path} is missing; name a run's --workdir"
        )
    return files.read_json(path, cure="delete it, and run any task there: it is written again")


def store_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json, which says what the folder holds.

    Attacks, defences and learned networks of earlier runs stay in it as long as their files are
    there. Where a setting differs from that of earlier records, the earlier file is kept under
    another name, and a line says so.
    """
    path = workdir / "config.json"
    new: dict[str, Any] = json.loads(json.dumps(config))
    if path.is_file():
        old = files.read_json(path, cure="delete it: the next start writes it again")
        before, now = training.flatten(old), training.flatten(new)
        changed = [
            f"{name}: {options.shortened(repr(before[name]), 40)} before, "
            f"{options.shortened(repr(now[name]), 40)} now"
            for name in before.keys() & now.keys()
            if before[name] != now[name] and not _PASSING.match(name)
        ]
        if changed and any(workdir.glob("records/*/*.json")):
            number = 1 + len([*workdir.glob("config-*.json")])
            kept = workdir / f"config-{number}.json"
            files.write_json(kept, old)
            print(f"settings have changed ({'; '.join(sorted(changed)[:3])}); {kept} has the old")
        else:
            for section, left in _LEFT_BY.items():
                entries = old.get(section)
                for name, value in entries.items() if isinstance(entries, dict) else ():
                    if any(workdir.glob(left.format(name))):
                        new[section].setdefault(name, value)
    files.write_json(path, new)
