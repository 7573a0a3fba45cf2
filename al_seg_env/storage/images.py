"""Image files, opened safely and written atomically."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from al_seg_env.storage.atomic import replacing
from al_seg_env.storage.regular_files import require_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read, by Pillow's names. For other formats, Pillow may start programs (Ghostscript for EPS)."""


@contextmanager
def open_image(source: str | Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """Open an image of one of :data:`FORMATS`, whatever the file's suffix. Only the header is read.

    Args:
        source: The file, or its content.

    Pillow's decoders may raise other exceptions than these on damaged files.

    Raises:
        OSError: If the file does not exist, is not a regular file, or has none of these formats.
        ValueError: If it has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, since a small file can hold an image that
            is larger than memory.
    """
    if not isinstance(source, bytes):
        require_file(Path(source))
    # Opened as a file object: by name, Pillow maps uncompressed TIFFs into memory, and garbles those that are rotated.
    with (
        io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        if problem := too_many_pixels((image.height, image.width)):
            raise ValueError(problem)
        yield image


def too_many_pixels(size: Sequence[int]) -> str | None:
    """Return a message if ``(height, width)`` has more pixels than Pillow's limit, else ``None``."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or int(size[0]) * int(size[1]) <= limit:
        return None
    return f"{size[0]} x {size[1]} are more than {limit} pixels; if that is right, raise PIL.Image.MAX_IMAGE_PIXELS"


def write_png(
    path: str | Path,
    pixels: npt.NDArray[np.uint8],
    text: Mapping[str, str] | None = None,
    palette: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write ``(H, W)`` grey values or labels, or ``(H, W, 3)`` RGB, uint8, as PNG atomically.

    Args:
        path: The file.
        pixels: The pixels.
        text: Texts to store in the file, by key.
        palette: Colours in which viewers show labels, ``(C, 3)`` uint8. They don't change the labels.

    Raises:
        OSError: If the file cannot be written; an earlier file at ``path`` is unchanged.
    """
    image, told = Image.fromarray(pixels), PngInfo()
    if palette is not None:
        # All 256 colours: with fewer, Pillow would store fewer bits per pixel, and lose larger labels.
        image.putpalette(palette.tobytes() + b"\xff" * (768 - palette.size))
    for key, value in (text or {}).items():
        told.add_text(key, value)
    with replacing(path) as unfinished:
        image.save(unfinished, format="png", pnginfo=told)
