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
    return _geometry(width, height, min(width, height), resize, crop)


def _geometry(width: Any, height: Any, short: Any, resize: int | None, crop: int) -> Any:
    # Integer arithmetic alone, so that it serves Python's integers and TensorFlow's alike.
    if resize is None:
        return crop, crop, 0, 0
    width, height = resize * width // short, resize * height // short
    return width, height, _round_half_to_even(width - crop), _round_half_to_even(height - crop)


def _round_half_to_even(doubled: Any) -> Any:
    half = doubled // 2
    return half + doubled % 2 * (half % 2)


def read_image(path: Any, *, image_size: int, resize: int | None, draw: Any = None) -> Any:
    """Decodes a JPEG or PNG file (a TensorFlow string) and brings it to size; see `fit_image`."""
    image = decode_image(lazy.tensorflow().io.read_file(path))
    return fit_image(image, image_size=image_size, resize=resize, draw=draw)


def decode_image(content: Any) -> Any:
    """Decodes JPEG or PNG bytes of any colour model to uint8 RGB, as Pillow does.

    EXIF orientation is ignored, alpha dropped.
    """
    # Despite its name this reads PNG too. The default transform is up to 6 grey levels off.
    return lazy.tensorflow().io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")


def fit_image(image: Any, *, image_size: int, resize: int | None, draw: Any = None) -> Any:
    """Resizes and crops a TensorFlow image: uint8 RGB in, uint8 `image_size` square out.

    Three numbers in [0, 1), if drawn, place the crop anywhere from left to right and from top to
    bottom, and mirror it where the last is below one half.
    """
    tf = lazy.tensorflow()
    height, width = tf.unstack(tf.shape(image)[:2])
    new_width, new_height, left, top = _geometry(
        width, height, tf.minimum(width, height), resize, image_size
    )
    if draw is not None:
        places = tf.cast(tf.stack([new_width, new_height]) - image_size + 1, tf.float32)
        left, top = tf.unstack(tf.cast(draw[:2] * places, tf.int32))
    # Width first, then height, each rounded to grey levels: the order and rounding of Pillow.
    image = _resample(tf.transpose(image, [1, 0, 2]), new_width, left, image_size)
    image = _resample(tf.transpose(image, [1, 0, 2]), new_height, top, image_size)
    if draw is not None:
        image = tf.cond(draw[2] < 0.5, lambda: image[:, ::-1], lambda: image)
    return tf.ensure_shape(image, [image_size, image_size, 3])


def _resample(image: Any, new: Any, start: Any, count: int) -> Any:
    """Resizes the first axis to `new` pixels, of which `count` from `start` on are made."""
    tf = lazy.tensorflow()
    old = tf.shape(image)[0]

    def resample() -> Any:
        # A product by a matrix, mostly of zeros: nearer to Pillow than TensorFlow's resize, and
        # no slower.
        scale = tf.cast(old, tf.float32) / tf.cast(new, tf.float32)
        centers = (tf.cast(start + tf.range(count), tf.float32) + 0.5) * scale
        distances = tf.abs(tf.range(old, dtype=tf.float32) + 0.5 - centers[:, None])
        weights = tf.nn.relu(1 - distances / tf.maximum(scale, 1))
        weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
        rows = tf.cast(tf.reshape(image, [old, -1]), tf.float32)
        return tf.cast(tf.matmul(weights, rows) + 0.5, tf.uint8)

    rows = tf.cond(
        tf.equal(old, new),
        lambda: tf.reshape(image[start : start + count], [count, -1]),
        resample,
    )
    return tf.reshape(rows, [count, -1, 3])


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
        images = [fit_image(split.images[i], image_size=image_size, resize=resize) for i in rows]
    shape = (len(rows), image_size, image_size, 3)
    return to_unit_range(np.array([np.asarray(image) for image in images]).reshape(shape))
