"""What an evaluation keeps on the disk: records by identity, and parts of what is under way."""

import hashlib
import json
import pathlib
import re
import shutil
from typing import Any

import jax

from saat_jax import parallel


def digest_of(tree: dict[str, Any]) -> str:
    """The identity of what is made from a tree of JSON's types."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def finished(path: pathlib.Path, identity: str) -> dict[str, Any] | None:
    """A record already made for the same model, data and settings, or None."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record.get("identity") == identity else None


def parts_of(
    folder: pathlib.Path, name: str, digest: str, kind: str, batch_size: int
) -> pathlib.Path:
    """The hidden folder of an attack's parts, each process' in a folder of its own.

    Parts of another attack, or in other batches, are not this one's.
    """
    return folder / f".{name}-{digest[:16]}-{kind}-{batch_size}-of-{jax.process_count()}"


def remove_parts(folder: pathlib.Path, name: str, keep: pathlib.Path | None = None) -> None:
    """Removes the parts of all attacks of a name, but for one."""
    if jax.process_index() > 0 or not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.match(re.escape(f".{name}-") + "[0-9a-f]{16}-", path.name) and path != keep:
            shutil.rmtree(path)


def begin(
    folder: pathlib.Path, name: str, parts: pathlib.Path, *, save_images: bool = False
) -> None:
    """Removes what another attack of the name has left: parts, images, the record of the images.

    Images are this attack's own only if it goes on from parts.
    """
    if jax.process_index() == 0:
        remove_parts(folder, name, parts)
        if save_images and not parts.is_dir():
            record = folder / f"{name}.json"
            if record.is_file() and json.loads(record.read_text()).get("images_saved"):
                record.unlink()
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    # No process writes before the folder is clean.
    parallel.wait_for_all(f"begin {name}")
