"""Pictures of the regions that each method requested (figure D.1)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from al_seg_experiment.experiment import Experiment
from al_seg_experiment.pieces import pieces

PICTURE = "requests.png"
TITLE_HEIGHT = 20
MAX_WIDTH = 1200


def request_pictures(experiment: Experiment, folder: Path) -> dict[str, Path]:
    """Return the files with the pictures of the first seed's trials by title, as far as they exist."""
    found = {}
    for piece in pieces(experiment):
        path = folder / piece.name / PICTURE
        if piece.kind == "trial" and piece.seed == experiment.seeds[0] and path.exists():
            found[f"{piece.variant}: {piece.method}" if piece.variant else piece.method] = path
    return found


def stacked(pictures: Mapping[str, Path]) -> bytes:
    """Stack PNG pictures vertically, each below its title, and return the bytes of one PNG.

    Raises:
        ValueError: If a picture can't be read. The message names the file.
    """
    images = []
    for title, path in pictures.items():
        try:
            with Image.open(path, formats=["PNG"]) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} can't be read as png ({error}); run the experiment again to draw it") from error
        picture.thumbnail((MAX_WIDTH, 10**6))
        titled = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT), "white")
        ImageDraw.Draw(titled).text((3, 4), title, fill="black")
        titled.paste(picture, (0, TITLE_HEIGHT))
        images.append(titled)
    width = max(image.width for image in images)
    padded = [np.pad(np.asarray(i), ((0, 0), (0, width - i.width), (0, 0)), constant_values=255) for i in images]
    content = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(content, format="png")
    return content.getvalue()
