"""What each method asked for, in pictures (figure D.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from al_seg_env.storage import replacing, write_text
from al_seg_experiment.experiment import Experiment
from al_seg_experiment.runner import Piece, pieces

TITLE_HEIGHT = 20
MAX_WIDTH = 1200


def requests_figure(experiment: Experiment, folder: Path, report: Path) -> Path | None:
    """Put the pictures of the first seed's trials below each other, and add the figure to the report.

    Returns:
        The figure's path, or ``None`` if no trial has a picture yet.
    """
    first = experiment.seeds[0]
    trials = [piece for piece in pieces(experiment) if piece.kind == "trial" and piece.seed == first]
    shown = [(piece, folder / piece.name / "requests.png") for piece in trials]
    shown = [(piece, path) for piece, path in shown if path.exists()]
    if not shown:
        return None
    figure = report.parent / "figure_D1.png"
    with replacing(figure) as unfinished:
        _stacked([(_title(piece), path) for piece, path in shown]).save(unfinished, format="png")
    text = report.read_text(encoding="utf-8").rstrip()
    text += (
        "\n\n## Figure D.1: what was asked for\n\nThe images of which each method asked for the most regions, with the "
        f"labels that it got; seed {first}, all budgets.\n\n![what was asked for]({figure.name})\n"
    )
    write_text(report, text)
    return figure


def _title(piece: Piece) -> str:
    return f"{piece.variant}: {piece.method}" if piece.variant else piece.method


def _stacked(pictures: list[tuple[str, Path]]) -> Image.Image:
    images = []
    for title, path in pictures:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        picture.thumbnail((MAX_WIDTH, 10**6))
        titled = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT), "white")
        ImageDraw.Draw(titled).text((3, 4), title, fill="black")
        titled.paste(picture, (0, TITLE_HEIGHT))
        images.append(titled)
    width = max(image.width for image in images)
    padded = [np.pad(np.asarray(i), ((0, 0), (0, width - i.width), (0, 0)), constant_values=255) for i in images]
    return Image.fromarray(np.concatenate(padded))
