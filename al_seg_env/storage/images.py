"""Images in files: opened safely, written atomically."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from al_seg_env.storage.atomic import replacing
from al_seg_env.storage.regular_files import require_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read, by Pillow's names. For others Pillow may start programs: for EPS, Ghostscript."""


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image of one of :data:`FORMATS`, whatever its file is called; only its header is read.

    Raises:
        OSError: If the file does not exist, is not a regular file, or has none of these formats.
        ValueError: If it has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels; small files can hold images that are
            larger than memory. Pillow's decoders raise other exceptions on damaged files.
    """
    path = Path(path)
    require_file(path)
    # Not by name: Pillow would map an uncompressed TIFF into memory, and garble it if orientation swaps its sides.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
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
        pixels: What to write.
        text: Texts to store in it, by key.
        palette: Colours of labels, ``(C, 3)`` uint8, for viewers; the labels do not change.

    Raises:
        OSError: If it cannot be written; what was at ``path`` before is unchanged.
    """
    image, told = Image.fromarray(pixels), PngInfo()
    if palette is not None:
        # All 256 of them: with fewer, Pillow would store fewer bits, and lose larger labels.
        image.putpalette(palette.tobytes() + b"\xff" * (768 - palette.size))
    for key, value in (text or {}).items():
        told.add_text(key, value)
    with replacing(path) as unfinished:
        image.save(unfinished, format="png", pnginfo=told)
