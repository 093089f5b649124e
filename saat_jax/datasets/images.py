"""Reading an image file and bringing it to size, as Pillow and torchvision do.

Reference:
    The papers' transform: short side to `resize`, long side truncated, bilinear with
    antialiasing, centre crop whose offsets round half to even. Pixels stay uint8 until they are
    divided by 255.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saat_jax.datasets import lazy
from saat_jax.datasets.records import Split


def check_sizes(image_size: int, resize: int | None) -> None:
    """Raises ValueError unless a crop of `image_size` fits into a short side of `resize`."""
    if image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
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


def read_image(path: Any, *, image_size: int, resize: int | None, draw: Any = None) -> Any:
    """Decodes a JPEG or PNG file (a TensorFlow string) and brings it to size; see `fit_pixels`."""
    image = decode_image(lazy.tensorflow().io.read_file(path))
    return fit_image(image, image_size=image_size, resize=resize, draw=draw)


def decode_image(content: Any) -> Any:
    """Decodes JPEG or PNG bytes of any colour model to uint8 RGB, as Pillow does.

    EXIF orientation is ignored, alpha dropped.
    """
    # Despite its name this reads PNG too. The default transform is up to 6 grey levels off.
    return lazy.tensorflow().io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")


def fit_image(image: Any, *, image_size: int, resize: int | None, draw: Any = None) -> Any:
    """`fit_pixels` of a TensorFlow image."""
    tf = lazy.tensorflow()

    def fit(pixels: np.ndarray, *draw: np.ndarray) -> np.ndarray:
        return fit_pixels(pixels, *draw, image_size=image_size, resize=resize)

    inputs = [image] if draw is None else [image, draw]
    fitted = tf.numpy_function(fit, inputs, tf.uint8, stateful=False)
    return tf.ensure_shape(fitted, [image_size, image_size, 3])


def fit_pixels(
    pixels: np.ndarray, draw: np.ndarray | None = None, *, image_size: int, resize: int | None
) -> np.ndarray:
    """Resizes and crops an image by Pillow: uint8 RGB in, uint8 `image_size` square out.

    Three numbers in [0, 1), if drawn, place the crop anywhere from left to right and from top to
    bottom, and mirror it where the last is below one half.
    """
    pillow = lazy.require("PIL.Image")
    height, width = pixels.shape[:2]
    *size, left, top = resize_crop_geometry(width, height, resize=resize, crop=image_size)
    if draw is not None:
        places = np.array(size, np.float32) - (image_size - 1)
        left, top = (draw[:2] * places).astype(int)
    image = pillow.fromarray(pixels).resize(size, pillow.Resampling.BILINEAR)
    fitted = np.asarray(image.crop((left, top, left + image_size, top + image_size)))
    return fitted if draw is None or draw[2] >= 0.5 else fitted[:, ::-1]


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
        ValueError: if the crop does not fit.
    """
    check_sizes(image_size, resize)
    rows = np.asarray(indices, np.int64)
    if split.images is None:
        assert split.paths is not None
        images = [read_image(split.paths[i], image_size=image_size, resize=resize) for i in rows]
    elif is_fitted(split, image_size, resize):
        return to_unit_range(split.images[rows])
    else:
        images = [fit_pixels(split.images[i], image_size=image_size, resize=resize) for i in rows]
    shape = (len(rows), image_size, image_size, 3)
    return to_unit_range(np.array([np.asarray(image) for image in images]).reshape(shape))
