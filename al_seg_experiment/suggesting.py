"""Which regions of unlabelled images to label first, ranked once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from al_seg_env.config import EnvConfig
from al_seg_env.datasets import SegmentationData
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.originals import original_of, regions_outside
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.labelling.request import requests_of
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.learner.inputs import inputs_of
from al_seg_env.observation.features import paper_features
from al_seg_env.observation.observer import Observer
from al_seg_env.regions import RegionGrid
from al_seg_env.registration import named_scores
from al_seg_env.storage import write_csv, write_png
from al_seg_env.storage.validation import check_int
from al_seg_env.types import Size, UInt8Array

SHOWN, COLUMNS, WIDTH, HEIGHT, TITLE = 12, 4, 320, 240, 18


def suggest(
    data: SegmentationData,
    out: str | Path,
    *,
    score: str = "entropy",
    count: int = 200,
    per_image: int | None = None,
    region_size: Size | None = None,
    learner: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
) -> Path:
    """Rank all regions by an acquisition score under a network, and write the first ones as a list and a picture.

    ``suggestions.csv`` has the columns rank, score, image, path, top, left, height and width, in the originals' pixels.
    ``suggestions.png`` shows the first twelve in their surroundings.

    Args:
        data: The images.
        out: Folder of the results.
        score: Name of an acquisition score; see :func:`~al_seg_env.registration.named_scores`.
        count: Regions to list, at most.
        per_image: Regions to list of one image, at most.
        region_size: ``(height, width)`` in the network's image; a sixteenth of the image if omitted.
        learner: Fields of :class:`~al_seg_env.LearnerConfig`.
        cache: Folder for decoded images and features.
        seed: Seeds dropout samples.

    Returns:
        The list.

    Raises:
        ValueError: If a name is unknown, a number is below 1, or the options do not fit each other.
    """
    check_int("count", count, 1)
    if per_image is not None:
        check_int("per_image", per_image, 1)
    scores = named_scores([score])
    height, width = data.image_size
    grid = RegionGrid((height, width), region_size or (-(-height // 4), -(-width // 4)))
    network = LearnerConfig(**dict(learner or {})).build(data.classes, grid.image_size, cache)
    frames = Frames.shared(data, cache)
    inputs = inputs_of(network, frames)
    images = list(range(len(data.names)))
    nothing = LabelState(grid, images, len(data.classes), regions_outside(data, grid, images))
    regions = nothing.unlabelled
    observer = Observer(
        frames,
        inputs,
        grid,
        network,
        state_images=images[:1],
        candidate_images=images,
        keep_candidates=False,
        n_pools=1,
        pool_size=len(regions),
        features=paper_features(EnvConfig(entropy_pools=(), similarity=())),
        similarity=None,
        scores=scores,
        known_counts=np.zeros(len(data.classes), np.int64),
        progress="images in batches",
    )
    inputs.prepare(images)
    observation = observer.observe([regions], nothing, np.random.default_rng(seed), initial=False)
    values = observation[f"score_{score}"][0]
    chosen: list[int] = []
    of_image = dict.fromkeys(images, 0)
    for place in np.argsort(-values, kind="stable").tolist():
        image = int(grid.image_of(regions[place]))
        if len(chosen) < count and (per_image is None or of_image[image] < per_image):
            of_image[image] += 1
            chosen.append(place)
    rows = []
    for rank, place in enumerate(chosen, 1):
        box = grid.box(int(regions[place]))
        original = original_of(data, box.image)
        region = original.region(box)
        row = {
            "rank": rank,
            "score": f"{values[place]:.6g}",
            "image": data.names[box.image],
            "path": original.path or "",
        }
        rows.append({**row, "top": region.top, "left": region.left, "height": region.size[0], "width": region.size[1]})
    write_csv(Path(out) / "suggestions.csv", rows)
    shown = requests_of(data, [grid.box(int(regions[place])) for place in chosen[:SHOWN]])
    titles = [f"{row['rank']}. {row['image']}  {row['score']}" for row in rows]
    write_png(Path(out) / "suggestions.png", _sheet([(request.context().pixels) for request in shown], titles))
    return Path(out) / "suggestions.csv"


def _sheet(pictures: list[UInt8Array], titles: list[str]) -> UInt8Array:
    """Return pictures side by side, each under its title, ``(h, w, 3)`` uint8."""
    rows = -(-len(pictures) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * WIDTH, rows * (HEIGHT + TITLE)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (pixels, title) in enumerate(zip(pictures, titles, strict=False)):
        left, top = place % COLUMNS * WIDTH, place // COLUMNS * (HEIGHT + TITLE)
        draw.text((left + 3, top + 3), title[:50], fill="black")
        picture = Image.fromarray(pixels)
        picture.thumbnail((WIDTH - 4, HEIGHT - 4))
        canvas.paste(picture, (left + 2, top + TITLE + 2))
    return np.asarray(canvas)
