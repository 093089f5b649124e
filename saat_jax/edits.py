"""Edits: what happens to images on their way, without any attacker or around one.

An edit has a name and a strength, a whole number, such as "jpeg_75" or "rotate_5". `apply` does it
to an 8-bit image, by Pillow; `soften` to images that a gradient goes through, close to the same.
"""

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saat_jax import lazy, options

Array = jax.Array

# JPEG's tables of quality 50, for luma and chroma (ITU-T T.81, Annex K).
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8),) * 4,
)
# From RGB to luma and the two chromas (JFIF).
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_WORDS = "found on the net"
_LEVELS = 255


class Edit(NamedTuple):
    """A kind of edit.

    Attributes:
        apply: maps a Pillow image and a strength to a Pillow image.
        soften: the same of `[batch, height, width, channels]` images in [0, 1]; None if each pixel
            becomes a multiple of itself and a constant, which `apply` itself then tells.
        strengths: usual ones, from mild to strong.
        allowed: what a strength may be.
    """

    apply: Callable[[Any, int], Any]
    soften: Callable[[Array, int], Array] | None
    strengths: tuple[int, ...]
    allowed: options.Range


def _jpeg(image: Any, quality: int) -> Any:
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=quality)
    return lazy.require("PIL.Image").open(buffer).convert("RGB")


def _jpeg_softly(images: Array, quality: int) -> Array:
    """JPEG with half the chroma, whose rounding the gradient does not see."""
    height, width = images.shape[1:3]
    edges = ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0))
    padded = jnp.pad(_LEVELS * images, edges, mode="edge")
    to_ycc = jnp.array(_TO_YCC)
    luma, *chromas = _rounded(jnp.einsum("bhwc,yc->ybhw", padded, to_ycc))
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.clip((np.array([_LUMA, _CHROMA]) * scale + 50) // 100, 1, 255).astype(np.float32)
    planes = [_quantized(luma - 128, tables[0]) + 128]
    for chroma in chromas:
        batch, rows, columns = chroma.shape
        quarter = chroma.reshape(batch, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4))
        kept = _quantized(_rounded(quarter), tables[1])
        planes.append(jax.image.resize(kept, chroma.shape, "linear"))
    rgb = jnp.einsum("ybhw,cy->bhwc", _rounded(jnp.stack(planes)), jnp.linalg.inv(to_ycc))
    # As 8 bits hold it.
    return _rounded(jnp.clip(rgb[:, :height, :width], 0, _LEVELS)) / _LEVELS


def _quantized(plane: Array, steps: np.ndarray) -> Array:
    """What is left of `[batch, height, width]` in blocks of 8 by 8, by steps of their cosines."""
    batch, height, width = plane.shape
    angle = np.pi / 16 * np.outer(np.arange(8), 2 * np.arange(8) + 1)
    basis = np.cos(angle) * np.where(np.arange(8)[:, None], 0.5, np.sqrt(1 / 8))
    basis = basis.astype(np.float32)
    blocks = plane.reshape(batch, height // 8, 8, width // 8, 8)
    cosines = jnp.einsum("brxcy,ux,vy->brucv", blocks, basis, basis)
    kept = _rounded(cosines / steps[:, None]) * steps[:, None]
    return jnp.einsum("brucv,ux,vy->brxcy", kept, basis, basis).reshape(plane.shape)


def _rounded(values: Array) -> Array:
    return values + jax.lax.stop_gradient(jnp.round(values) - values)


def _scaled(size: Sequence[int], percent: int) -> tuple[int, int]:
    return max(1, round(size[0] * percent / 100)), max(1, round(size[1] * percent / 100))


def _resize(image: Any, percent: int) -> Any:
    return image.resize(_scaled(image.size, percent), lazy.require("PIL.Image").BILINEAR)


def _resize_softly(images: Array, percent: int) -> Array:
    size = _scaled(images.shape[1:3], percent)
    return jax.image.resize(images, (len(images), *size, images.shape[3]), "linear")


def _margins(size: Sequence[int], percent: int) -> tuple[int, int]:
    """What goes at each side of an image of that size. Both together are the percent."""
    return round(size[0] * percent / 200), round(size[1] * percent / 200)


def _crop(image: Any, percent: int) -> Any:
    x, y = _margins(image.size, percent)
    return image.crop((x, y, image.width - x, image.height - y))


def _crop_softly(images: Array, percent: int) -> Array:
    y, x = _margins(images.shape[1:3], percent)
    return images[:, y : images.shape[1] - y, x : images.shape[2] - x]


def _pad(image: Any, percent: int) -> Any:
    x, y = _margins(image.size, percent)
    return lazy.require("PIL.ImageOps").expand(image, (x, y, x, y))


def _pad_softly(images: Array, percent: int) -> Array:
    y, x = _margins(images.shape[1:3], percent)
    return jnp.pad(images, ((0, 0), (y, y), (x, x), (0, 0)))


def _rotate(image: Any, degrees: int) -> Any:
    return image.rotate(degrees, lazy.require("PIL.Image").BILINEAR)


def _rotate_softly(images: Array, degrees: int) -> Array:
    height, width = images.shape[1:3]
    middle = (height - 1) / 2, (width - 1) / 2
    y, x = np.meshgrid(np.arange(height) - middle[0], np.arange(width) - middle[1], indexing="ij")
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    rows, columns = sine * x + cosine * y + middle[0], cosine * x - sine * y + middle[1]

    def turn(plane: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(plane, [rows, columns], order=1)

    return jnp.moveaxis(jax.vmap(jax.vmap(turn))(jnp.moveaxis(images, 3, 1)), 1, 3)


def _flip(image: Any, _: int) -> Any:
    return lazy.require("PIL.ImageOps").mirror(image)


def _blur(image: Any, pixels: int) -> Any:
    return image.filter(lazy.require("PIL.ImageFilter").GaussianBlur(pixels))


def _blur_softly(images: Array, pixels: int) -> Array:
    reach = 3 * pixels
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / pixels) ** 2)
    weights = jnp.asarray(bell / bell.sum(), images.dtype)
    for axis in (1, 2):
        padding = [(reach, reach) if axis == other else (0, 0) for other in range(4)]
        padded = jnp.pad(images, padding, mode="edge")
        size = images.shape[axis]
        slices = [
            weight * jax.lax.slice_in_dim(padded, first, first + size, axis=axis)
            for first, weight in enumerate(weights)
        ]
        images = sum(slices[1:], slices[0])
    return images


def _brightness(image: Any, percent: int) -> Any:
    return lazy.require("PIL.ImageEnhance").Brightness(image).enhance(percent / 100)


def _brightness_softly(images: Array, percent: int) -> Array:
    return jnp.minimum(images * percent / 100, 1)


def _written(image: Any, text: str, size: int, at: tuple[int, int]) -> None:
    font = lazy.require("PIL.ImageFont").load_default(max(size, 4))
    lazy.require("PIL.ImageDraw").Draw(image).text(at, text, "white", font)


def _text(image: Any, percent: int) -> Any:
    """White words on a black bar at the foot."""
    image, bar = image.copy(), max(1, round(image.height * percent / 100))
    image.paste("black", (0, image.height - bar, image.width, image.height))
    _written(image, _WORDS, round(0.7 * bar), (bar // 4, image.height - bar))
    return image


def _watermark(image: Any, percent: int) -> Any:
    """The same words all over, mixed in."""
    over, size = image.copy(), max(8, image.height // 10)
    for row, y in enumerate(range(0, image.height, 2 * size)):
        for x in range(-(row % 2) * 5 * size, image.width, 10 * size):
            _written(over, _WORDS, size, (x, y))
    return lazy.require("PIL.Image").blend(image, over, percent / 100)


_BAR, _SCREEN_QUALITY = 6, 85


def _screenshot(image: Any, percent: int) -> Any:
    """As a screen shows it: of another size, below a grey bar, and saved as JPEG again."""
    shown = _resize(image, percent)
    bar = round(shown.height * _BAR / 100)
    screen = lazy.require("PIL.Image").new("RGB", (shown.width, shown.height + bar), (128,) * 3)
    screen.paste(shown, (0, bar))
    return _jpeg(screen, _SCREEN_QUALITY)


def _screenshot_softly(images: Array, percent: int) -> Array:
    shown = _resize_softly(images, percent)
    bar = round(shown.shape[1] * _BAR / 100)
    screen = jnp.pad(shown, ((0, 0), (bar, 0), (0, 0), (0, 0)), constant_values=128 / _LEVELS)
    return _jpeg_softly(screen, _SCREEN_QUALITY)


def _whole(low: int, high: int) -> options.Range:
    return options.Range(low, high, whole=True)


# By name. Strengths are qualities of JPEG, percent, degrees or pixels.
EDITS: options.Choices[Edit] = options.Choices(
    "edit",
    {
        "jpeg": Edit(_jpeg, _jpeg_softly, (95, 75, 50, 25), _whole(1, 100)),
        "resize": Edit(_resize, _resize_softly, (75, 50, 25), _whole(1, 400)),
        "crop": Edit(_crop, _crop_softly, (5, 10, 20), _whole(0, 90)),
        "pad": Edit(_pad, _pad_softly, (5, 10, 20), _whole(0, 400)),
        "rotate": Edit(_rotate, _rotate_softly, (2, 5, 15), _whole(0, 359)),
        "flip": Edit(_flip, lambda images, _: images[:, :, ::-1], (1,), _whole(1, 1)),
        "blur": Edit(_blur, _blur_softly, (1, 2, 4), _whole(1, 100)),
        "brightness": Edit(_brightness, _brightness_softly, (70, 110, 130), _whole(1, 400)),
        "text": Edit(_text, None, (10, 20), _whole(1, 100)),
        "watermark": Edit(_watermark, None, (20, 50), _whole(1, 100)),
        "screenshot": Edit(_screenshot, _screenshot_softly, (90, 60), _whole(1, 400)),
    },
)


def all_edits() -> tuple[str, ...]:
    """The names of all kinds of edits at their usual strengths."""
    return tuple(f"{kind}_{x}" for kind, edit in EDITS.items() for x in edit.strengths)


def named(name: str) -> tuple[Edit, int]:
    """The kind of an edit and its strength.

    Raises:
        ValueError: if there is no such kind, or it has no such strength.

    Example:
        >>> named("jpeg_75")[1]
        75
    """
    kind, _, strength = name.rpartition("_")
    if not re.fullmatch(r"\d+", strength):
        raise ValueError(f"an edit must be a kind and a strength such as 'jpeg_75', got {name!r}")
    edit = EDITS[kind]
    if problem := edit.allowed.problem(int(strength)):
        raise ValueError(f"the strength of the edit {kind!r} {problem}")
    return edit, int(strength)


def apply(name: str, image: np.ndarray) -> np.ndarray:
    """What an edit makes of an image, by Pillow. `[new_height, new_width, 3]` uint8

    Args:
        name: such as "jpeg_75".
        image: `[height, width, 3]` uint8.

    Example:
        >>> apply("crop_50", np.zeros((8, 12, 3), np.uint8)).shape
        (4, 6, 3)
    """
    edit, strength = named(name)
    canvas = lazy.require("PIL.Image").fromarray(image)
    return np.asarray(edit.apply(canvas, strength).convert("RGB"))


def soften(name: str, images: Array) -> Array:
    """About the same of images with a gradient. `[batch, new_height, new_width, channels]`

    Args:
        name: such as "jpeg_75".
        images: `[batch, height, width, 3]` in [0, 1].
    """
    edit, strength = named(name)
    if edit.soften is not None:
        return edit.soften(images, strength)
    constant, slope = _affine(name, images.shape[1:])
    return constant + slope * images


@functools.cache
def _affine(name: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What an edit adds to each pixel, and what it multiplies it by. `[height, width, 3]` each"""
    dark, bright = (
        apply(name, np.full(shape, level, np.uint8)).astype(np.float32) / _LEVELS
        for level in (0, _LEVELS)
    )
    return dark, bright - dark
