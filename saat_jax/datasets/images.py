"""Reading an image file and bringing it to size, as Pillow and torchvision do.

Reference:
    The papers' transform: short side to `resize`, long side truncated, bilinear with
    antialiasing, centre crop whose offsets round half to even. Pixels stay uint8 until they are
    divided by 255.
"""

import collections
import concurrent.futures
import errno
import io
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from saat_jax import files, lazy, options
from saat_jax.datasets.splits import Split

T = TypeVar("T")
# An image of Pillow, which is imported where it is used.
Image = Any

# What is decoded, so that no file can fill the memory: 64 megapixels take half a gigabyte, and
# a longer image would grow without bound when its short side is brought to size.
MAX_PIXELS, MAX_ASPECT, MAX_BYTES, MAX_RESIZED = 2**26, 100, 2**28, 2**28
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF")


def check_sizes(image_size: int, resize: int | None) -> None:
    """Raises ValueError unless a crop of `image_size` fits into a short side of `resize`."""
    options.check_numbers(image_size=image_size, resize=resize)
    if resize is not None and resize < image_size:
        raise ValueError(
            f"resize, the short side before the crop, must be at least image_size = {image_size}, "
            f"got {resize}; raise it, or use None to squeeze whole images into the square"
        )


def resize_crop_geometry(
    width: int, height: int, *, resize: int | None, crop: int
) -> tuple[int, int, int, int]:
    """Computes the size an image is resized to, and the corner of the centre crop.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        resize: short side after resizing; None means exactly `crop` by `crop`.
        crop: height and width of the crop.

    Returns:
        Width and height after resizing, left and top of the crop.

    Raises:
        ValueError: if the crop does not fit.
    """
    check_sizes(crop, resize)
    if resize is None:
        return crop, crop, 0, 0
    short = min(width, height)
    width, height = resize * width // short, resize * height // short
    return width, height, _round_half_to_even(width - crop), _round_half_to_even(height - crop)


def _round_half_to_even(doubled: int) -> int:
    half = doubled // 2
    return half + doubled % 2 * (half % 2)


def check_file(path: str) -> None:
    """Refuses what cannot be an image file before it is opened.

    Raises:
        OSError: if there is none, or a folder or device in its place.
        ValueError: if it is empty or too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR, "a folder or a device, not a file")
    if not 0 < status.st_size <= MAX_BYTES:
        raise ValueError(f"a file of {status.st_size:,} bytes; expected 1 to {MAX_BYTES:,}")


def open_image(path: str, *, exif: bool = False) -> Image:
    """`decode_image` of a file; raises OSError if it cannot be read."""
    check_file(path)
    with open(path, "rb") as file:
        return decode_image(file.read(), exif=exif)


def decode_image(content: bytes, *, exif: bool = False) -> Image:
    """Decodes JPEG, PNG, WebP or still GIF bytes of any colour model to RGB of Pillow.

    Alpha is dropped; so are the lower 8 of 16 bits. Sizes are bounded before anything is decoded.

    Args:
        content: of a file, whatever its name ends in.
        exif: whether to turn the image upright as its EXIF orientation says.

    Raises:
        ValueError: saying what is wrong with it.
    """
    pillow = lazy.require("PIL.Image")
    try:
        image = pillow.open(io.BytesIO(content))
    except pillow.DecompressionBombError as error:
        raise ValueError(f"a decompression bomb: more than {MAX_PIXELS:,} pixels") from error
    # A damaged header raises what each of forty formats thinks fit.
    except Exception as error:
        raise ValueError("no image of a known format") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(
            f"{width:,} x {height:,} pixels; expected at most {MAX_PIXELS:,} in all, and no side "
            f"more than {MAX_ASPECT} times as long as the other"
        )
    frames = getattr(image, "n_frames", 1)
    # MPO is a JPEG with further pictures, as some cameras make it.
    if image.format not in _FORMATS or (frames > 1 and image.format != "MPO"):
        what = f"an animation of {frames} frames as " if frames > 1 else ""
        raise ValueError(f"{what}{image.format}; expected a JPEG, PNG, WebP or still GIF image")
    try:
        # A warning of Pillow's about transparency does not matter to one who drops it.
        image.info.pop("transparency", None)
        if exif:
            image = lazy.require("PIL.ImageOps").exif_transpose(image)
        if image.mode.startswith("I"):
            image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:
        raise ValueError(options.shortened(error)) from error


def fit_image(
    image: Image, draw: np.ndarray | None = None, *, image_size: int, resize: int | None
) -> np.ndarray:
    """Resizes and crops an RGB image of Pillow to a square of uint8.

    Three numbers in [0, 1), if drawn, place the crop anywhere from left to right and from top to
    bottom, and mirror it where the last is below one half.
    """
    bilinear = lazy.require("PIL.Image").Resampling.BILINEAR
    *size, left, top = resize_crop_geometry(*image.size, resize=resize, crop=image_size)
    if size[0] * size[1] > MAX_RESIZED:
        raise ValueError(
            f"resized to {size[0]:,} x {size[1]:,} pixels by resize={resize}: lower it"
        )
    if draw is not None:
        places = np.array(size, np.float32) - (image_size - 1)
        left, top = (draw[:2] * places).astype(int)
    square = (left, top, left + image_size, top + image_size)
    fitted = np.asarray(image.resize(size, bilinear).crop(square))
    return fitted if draw is None or draw[2] >= 0.5 else fitted[:, ::-1]


def write_png(path: pathlib.Path, levels: np.ndarray) -> None:
    """Writes `[height, width, 3]` uint8 as a PNG, whole or not at all."""
    image = lazy.require("PIL.Image").fromarray(levels)
    with files.replacing(path) as temporary:
        image.save(temporary, format="png")


def read_row(
    split: Split,
    row: int,
    draw: np.ndarray | None = None,
    *,
    image_size: int,
    resize: int | None,
) -> np.ndarray:
    """One image of a split, brought to size by `fit_image`.

    Raises:
        ValueError: naming the file if it cannot be read.
    """
    sizes: Any = {"image_size": image_size, "resize": resize}
    if split.paths is None:
        image = lazy.require("PIL.Image").fromarray(np.asarray(split.images)[row])
        return fit_image(image, draw, **sizes)
    path = split.paths[row]
    try:
        return fit_image(open_image(path, exif=split.exif), draw, **sizes)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"an image of split {split.name!r} cannot be read: {options.shortened(path)}: "
            f"{reason(error)}; find all such with: saat-jax check FOLDER"
        ) from error


def reason(error: Exception) -> str:
    """Why a file cannot be read, without what the message says already."""
    return options.shortened(isinstance(error, OSError) and error.strerror or error).lower()


def ahead(
    function: Callable[[Any], T], items: Iterable[Any], *, threads: int, by: int
) -> Iterator[T]:
    """Yields the function of each item in their order, worked out in threads `by` items ahead."""
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    pending: collections.deque[concurrent.futures.Future[T]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > by:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Whoever stops early, by Ctrl-C too, does not wait for the rest.
        pool.shutdown(cancel_futures=True)


def is_fitted(split: Split, image_size: int, resize: int | None) -> bool:
    """Whether the split holds pixels that already have the wanted size."""
    size = None if split.images is None else split.images.shape[1:3]
    return resize is None and size == (image_size, image_size)


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Converts uint8 images to float32 in [0, 1]."""
    # In NumPy for pixels and files alike: TensorFlow may multiply by 1 / 255 instead.
    return images.astype(np.float32) / np.float32(255)


def load_images(
    split: Split, indices: Sequence[int] | np.ndarray, *, image_size: int, resize: int | None
) -> np.ndarray:
    """Loads a few rows of a split, as for an image grid.

    Args:
        split: where the images are.
        indices: the rows wanted, in any order.
        image_size: height and width of the result, in pixels.
        resize: short side before the centre crop; None squeezes the whole image.

    Returns:
        [len(indices), image_size, image_size, 3] float32 in [0, 1].

    Raises:
        ValueError: if the crop does not fit, or an image cannot be read.
    """
    check_sizes(image_size, resize)
    rows = np.asarray(indices, np.int64)
    if is_fitted(split, image_size, resize):
        assert split.images is not None
        return to_unit_range(split.images[rows])
    pixels = np.empty((len(rows), image_size, image_size, 3), np.uint8)
    for place, row in enumerate(rows):
        pixels[place] = read_row(split, row, image_size=image_size, resize=resize)
    return to_unit_range(pixels)
