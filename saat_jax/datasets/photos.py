"""Photos without labels, at their own sizes: a folder's, or those that scikit-image ships."""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from saat_jax import lazy, options
from saat_jax.datasets.images import open_image, reason

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
# Those that come within scikit-image itself, in colour or grey, of at most a megapixel.
_BUNDLED = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
    """Images of any sizes, by name.

    Attributes:
        names: unique, usable as file names but for folders in them.
        images: each `[height, width, 3]` uint8.
    """

    names: tuple[str, ...]
    images: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Digest of names, sizes and pixels."""
        digest = hashlib.sha256()
        for name, image in zip(self.names, self.images, strict=True):
            digest.update(f"{name} {image.shape}".encode() + image.tobytes())
        return digest.hexdigest()

    def fitted(self, image_size: tuple[int, int] | None) -> "Photos":
        """Squeezed to `(height, width)`, unless that is None or they have it."""
        if image_size is None:
            return self
        pillow = lazy.require("PIL.Image")
        bilinear = pillow.Resampling.BILINEAR
        images = [
            image
            if image.shape[:2] == image_size
            else np.asarray(pillow.fromarray(image).resize(image_size[::-1], bilinear))
            for image in self.images
        ]
        return Photos(self.names, tuple(images))


def load_photos(
    source: str | os.PathLike[str] | Sequence[np.ndarray] | Photos, *, longest: int | None = None
) -> Photos:
    """Loads images at their own sizes.

    Args:
        source: a folder, searched to its depth for JPEG, PNG, WebP and GIF files; or "" for the
            13 photos of scikit-image; or arrays `[height, width, 3]` of uint8.
        longest: larger images are brought down to such a long side, in pixels.

    Raises:
        ModuleNotFoundError: if scikit-image's are wanted, and it is not installed.
        ValueError: if there is no image, or files cannot be read: all of them are named.

    Example:
        >>> photos = load_photos([np.zeros((4, 6, 3), np.uint8)])
        >>> photos.names, photos.images[0].shape
        (('0',), (4, 6, 3))
    """
    options.check_numbers(longest=longest)
    if isinstance(source, Photos):
        names, images = source.names, source.images
    elif isinstance(source, str | os.PathLike):
        names, images = _read(source)
    else:
        check_photos(source)
        names, images = tuple(map(str, range(len(source)))), tuple(source)
    return Photos(names, tuple(_shrunk(image, longest) for image in images))


def groups_of(names: Sequence[str], pattern: str | None) -> np.ndarray:
    r"""Numbers that near-duplicates share. `[num_names]` int

    Args:
        names: of images.
        pattern: a regular expression: images are near-duplicates if it finds the same text in
            their names (by its first group, if it has one); None or "" if none are.

    Raises:
        ValueError: if it is no regular expression, or finds no two alike.

    Example:
        >>> groups_of(["cat.jpg", "cat-small.jpg", "dog.jpg"], r"^\w+").tolist()
        [0, 0, 2]
    """
    if not pattern:
        return np.arange(len(names))
    try:
        finder = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"groups must be a regular expression, got {pattern!r}: {error}") from None
    first: dict[str, int] = {}
    groups = np.arange(len(names))
    for row, name in enumerate(names):
        if found := finder.search(name):
            groups[row] = first.setdefault(found[min(1, finder.groups)] or "", row)
    if len({*groups.tolist()}) == len(names):
        shown = ", ".join(map(options.shortened, names[:3]))
        raise ValueError(
            f"groups {pattern!r} finds no two names alike, such as {shown}; leave it out if no "
            "images are near-duplicates"
        )
    return groups


def check_photos(
    images: Sequence[np.ndarray], *, image_size: tuple[int, int] | None = None
) -> None:
    """Refuses what is no list of `[height, width, 3]` uint8 images, of one size if it is given.

    Raises:
        ValueError: saying what an image is, and what it should be.
    """
    if not len(images):
        raise ValueError("expected at least one image, got none")
    for image in images:
        shape = np.shape(image)
        wanted = (*(image_size or shape[:2]), 3)
        if getattr(image, "dtype", None) != np.uint8 or shape != wanted or 0 in shape:
            expected = ", ".join(map(str, wanted if image_size else ("height", "width", 3)))
            raise ValueError(
                f"an image must be uint8 [{expected}], got "
                f"{getattr(image, 'dtype', type(image).__name__)} {list(shape)}"
            )


def _read(
    source: str | os.PathLike[str],
) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Names within the folder, and pixels; ValueError names all files that cannot be read."""
    if source == "":
        folder = pathlib.Path(str(lazy.require("skimage").__file__)).parent / "data"
        paths = [folder / name for name in _BUNDLED]
    else:
        folder = pathlib.Path(source)
        if not folder.is_dir():
            raise ValueError(f"expected a folder of images, got {str(folder)!r}, which is none")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
        paths = sorted(path for path in found if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no image that ends in one of {', '.join(_ENDINGS)}")
    images, faults = [], []
    for path in paths:
        try:
            images.append(np.asarray(open_image(str(path), exif=True)))
        except (OSError, ValueError) as error:
            faults.append(f"{path.relative_to(folder)}: {reason(error)}")
    if faults:
        told = "\n".join(faults[:20]) + f"\nand {len(faults) - 20} more" * (len(faults) > 20)
        raise ValueError(
            f"{len(faults)} of {len(paths)} images in {folder} cannot be read; mend or remove "
            f"them:\n{told}"
        )
    return tuple(str(path.relative_to(folder)) for path in paths), tuple(images)


def _shrunk(image: np.ndarray, longest: int | None) -> np.ndarray:
    if longest is None or max(image.shape) <= longest:
        return image
    canvas = lazy.require("PIL.Image").fromarray(image)
    canvas.thumbnail((longest, longest))
    return np.asarray(canvas)
