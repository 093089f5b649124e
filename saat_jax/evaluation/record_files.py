"""The files of a record: finished, under way, or of earlier settings."""

import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax

from saat_jax import files, parallel

# Subfolder for records that others have taken the place of; nothing else may have its name.
EARLIER = "earlier"


def digest_of(tree: dict[str, Any]) -> str:
    """The identity of what is made from a tree of JSON's types."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """Where a record is, and what else of its name is in the folder.

    Attributes:
        folder: of the record.
        name: of the record.
        identity: digest of what the record is made from.
    """

    folder: pathlib.Path
    name: str
    identity: str

    @property
    def record(self) -> pathlib.Path:
        """The record itself."""
        return self.folder / f"{self.name}.json"

    @property
    def arrays(self) -> pathlib.Path:
        """Arrays beside the record."""
        return self.folder / f"{self.name}.npz"

    @property
    def images(self) -> pathlib.Path:
        """Folder of the images that the record is about, if they are saved."""
        return self.folder / self.name

    def read(self, fields: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The record if it is there with this identity, else None.

        Args:
            fields: those that it must have, with their types.

        Raises:
            ValueError: if a file of its name is no record.
        """
        record = self._read_any(fields)
        return record if record and record["identity"] == self.identity else None

    def _read_any(self, fields: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        if not self.record.is_file():
            return None
        wanted = {"identity": str, **(fields or {})}
        return files.read_json(self.record, cure="delete it and evaluate again", fields=wanted)

    def unfinished(self, kind: str, batch_size: int, digest: str = "") -> pathlib.Path:
        """The hidden folder of what an attack has finished of its batches.

        What another attack has, or the same one in other batches, is not this one's.

        Args:
            kind: what is made of the batches.
            batch_size: queries in a batch.
            digest: of the attack, where the record is of several; by default the record's.
        """
        whose = f"{(digest or self.identity)[:16]}-{kind}-{batch_size}-of-{jax.process_count()}"
        return self.folder / f".{self.name}-{whose}"

    def remove_unfinished(self, keep: pathlib.Path | None = None) -> None:
        """Removes what attacks of this name have finished of their batches, but for one."""
        if jax.process_index() > 0 or not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if re.match(re.escape(f".{self.name}-") + "[0-9a-f]{16}-", path.name) and path != keep:
                shutil.rmtree(path)

    def make_room(
        self, unfinished: pathlib.Path | None = None, *, save_images: bool = False
    ) -> None:
        """Puts aside what is of other settings, and removes what was left unfinished.

        Images are this record's own only if their making goes on from finished batches.

        Args:
            unfinished: the attack's finished batches, if it has any, to go on from.
            save_images: whether images will be saved.
        """
        if jax.process_index() == 0:
            self.remove_unfinished(unfinished)
            afresh = save_images and not (unfinished and unfinished.is_dir())
            if found := self._read_any():
                if found["identity"] != self.identity:
                    self._put_aside(found)
                elif afresh and found.get("images_saved"):
                    self.record.unlink()
            if afresh and self.images.is_dir():
                shutil.rmtree(self.images)
        # No process writes before there is room.
        parallel.wait_for_all(f"make room for {self.name}")

    def _put_aside(self, found: dict[str, Any]) -> None:
        """Moves another record of this name, and what belongs to it, to the earlier ones."""
        earlier = self.folder / EARLIER
        earlier.mkdir(exist_ok=True)
        kept = f"{self.name}.{found['identity'][:8]}"
        images = [self.images] if found.get("images_saved") else []
        # The record last: as long as it is here, it is put aside again.
        for path in (*images, self.arrays, self.record):
            if path.exists():
                place = earlier / f"{kept}{path.suffix if path.is_file() else ''}"
                if place.is_dir():
                    shutil.rmtree(place)
                path.replace(place)
        print(f"{self.record} is of other settings; kept as {earlier / kept}.json")
