"""Pieces of HTML: escaped text, tables, and images that carry their own bytes."""

import base64
import html
import io
import pathlib
import urllib.parse
from collections.abc import Iterable, Sequence

import numpy as np

# An image with at most this many pixels a side is shown enlarged, every pixel a square.
_MAX_PIXELATED = 112


def text(words: str) -> str:
    """Escapes text for use between tags and inside attributes."""
    return html.escape(words)


def document(title: str, body: str, *, style: str, images: str = "data:") -> str:
    """Makes a page that loads nothing but images from the sources `images`."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a name or a setting may contain.
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src {images}; style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def link(path: str, words: str, *, up: int = 0) -> str:
    """Links to a file by its path relative to a folder `up` levels above the page."""
    return f'<a href="{text("../" * up + urllib.parse.quote(path))}">{words}</a>'


def themed(dark: str, light: str, alt: str) -> str:
    """Shows one of two images, given by address, by the theme of the page."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{text(dark)}">'
        f'<img alt="{text(alt)}" src="{text(light)}"></picture>'
    )


def table(caption: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Makes a table whose first column heads its rows; all cells are plain text."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    return frame(caption, head, f"<tbody>{body}</tbody>")


def frame(caption: str, head: str, body: str, *, style: str = "") -> str:
    """Wraps ready rows into a table that scrolls by itself where the page is too narrow."""
    return (
        f'<div class="scroll" tabindex="0"><table class="{style}">\n'
        f"<caption><span>{text(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        f"{body}</table></div>\n"
    )


def picture(image: np.ndarray, alt: str, *, max_side: int | None = None) -> str:
    """Embeds an image `[height, width, 3]`: float32, shown clipped to [0, 1], or uint8.

    Pixels are kept exactly (PNG), unless a side passes `max_side`: then the image is shrunk to
    fit, and stored as JPEG.
    """
    # Imported here, as Matplotlib is: reading records and printing the table do without.
    import PIL.Image

    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    canvas = PIL.Image.fromarray(image)
    kind = "png"
    if max_side is not None and max(canvas.size) > max_side:
        canvas.thumbnail((max_side, max_side))
        kind = "jpeg"
    buffer = io.BytesIO()
    canvas.save(buffer, kind, quality=85)
    style = ' class="pixels"' if max(canvas.size) <= _MAX_PIXELATED and kind == "png" else ""
    uri = data_uri(f"image/{kind}", buffer.getvalue())
    return f'<img{style} alt="{text(alt)}" src="{uri}">'


def picture_file(path: pathlib.Path, alt: str) -> str:
    """Embeds a PNG file as it is."""
    return f'<img alt="{text(alt)}" src="{data_uri("image/png", path.read_bytes())}">'


def data_uri(mime_type: str, content: bytes) -> str:
    """Writes bytes as an address that holds them itself."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
