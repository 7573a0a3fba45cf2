"""Pictures of an image, what was asked for in it, what is known of it, and what the network makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, palette_of
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.regions import Box, RegionGrid
from al_seg_env.types import UInt8Array

UNLABELLED_COLOUR = (255, 255, 255)
REQUEST_COLOUR = (255, 230, 0)
TITLE_HEIGHT = 18
GAP = 4
PANEL_WIDTH = 320


def colourise(mask: UInt8Array, palette: UInt8Array) -> UInt8Array:
    """Paint labels ``(H, W)`` with the colours ``(C, 3)``; 255 is white. Returns ``(H, W, 3)`` uint8."""
    table = np.full((256, 3), UNLABELLED_COLOUR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def render_request(
    data: SegmentationData,
    *,
    image: UInt8Array,
    truth: UInt8Array,
    known: UInt8Array,
    predicted: UInt8Array,
    requests: Sequence[Box],
    caption: str,
) -> UInt8Array:
    """Draw four panels: the image with labels and requests on it, ground truth, labels known, prediction.

    Args:
        data: For the colours.
        image: ``(H, W, 3)`` uint8.
        truth: ``(H, W)`` uint8.
        known: ``(H, W)`` uint8, 255 where nothing is labelled.
        predicted: ``(H, W)`` uint8.
        requests: Regions of this image asked for in this step; outlined in yellow.
        caption: One line of text.

    Returns:
        ``(h, w, 3)`` uint8 of even sides, the same for all images of a data set.
    """
    palette = palette_of(data)
    colours = colourise(known, palette)
    labelled = (known != IGNORE_LABEL)[..., None]
    overlay = np.where(labelled, (image * 0.4 + colours * 0.6).astype(np.uint8), image)
    panels = {
        "labelled and requested": overlay,
        "ground truth": colourise(truth, palette),
        "labels known": colours,
        "prediction": colourise(predicted, palette),
    }
    scale = max(1, round(PANEL_WIDTH / image.shape[1]))
    height, width = image.shape[0] * scale, image.shape[1] * scale
    size = 2 * (width + GAP), 2 * (height + TITLE_HEIGHT) + TITLE_HEIGHT
    canvas = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2))
    draw = ImageDraw.Draw(canvas)
    for index, (title, pixels) in enumerate(panels.items()):
        left, top = (index % 2) * (width + GAP), (index // 2) * (height + TITLE_HEIGHT)
        draw.text((left + 3, top + 3), title, fill="white")
        panel = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(panel, (left, top + TITLE_HEIGHT))
        for box in requests:
            corners = (box.left * scale, box.top * scale, box.right * scale - 1, box.bottom * scale - 1)
            draw.rectangle(
                [corner + (left, top + TITLE_HEIGHT)[i % 2] for i, corner in enumerate(corners)],
                outline=REQUEST_COLOUR,
                width=2,
            )
    draw.text((3, size[1] - TITLE_HEIGHT + 3), caption, fill="white")
    return np.asarray(canvas)


def overlay_requests(
    data: SegmentationData, frames: Frames, grid: RegionGrid, labels: LabelState, count: int = 6, columns: int = 3
) -> UInt8Array:
    """Draw the images of which the most regions are labelled, with their labels on them, side by side (figure D.1).

    Args:
        data: For colours and names.
        frames: The images.
        grid: The grid of regions.
        labels: L_t.
        count: Images, at most.
        columns: Images in a row.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    images, regions = np.unique(grid.image_of(labels.labelled), return_counts=True)
    most = images[np.argsort(-regions, kind="stable")][:count]
    scale = max(1, round(PANEL_WIDTH / grid.image_size[1]))
    height, width = grid.image_size[0] * scale, grid.image_size[1] * scale
    rows = -(-len(most) // columns)
    canvas = Image.new("RGB", (columns * (width + GAP), rows * (height + TITLE_HEIGHT)), "white")
    draw = ImageDraw.Draw(canvas)
    palette = palette_of(data)
    for position, image in enumerate(most.tolist()):
        row, column = divmod(position, columns)
        left, top = column * (width + GAP), row * (height + TITLE_HEIGHT)
        boxes = [box for box in map(grid.box, labels.labelled) if box.image == image]
        asked = np.zeros((*grid.image_size, 1), bool)
        for box in boxes:
            asked[box.top : box.bottom, box.left : box.right] = True
        pixels = frames.image(image).numpy()
        mixed = (pixels * 0.4 + colourise(labels.mask(image), palette) * 0.6).astype(np.uint8)
        panel = Image.fromarray(np.where(asked, mixed, pixels)).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(panel, (left, top + TITLE_HEIGHT))
        draw.text((left + 3, top + 3), f"{data.names[image]}: {len(boxes)} of {grid.regions_per_image}", fill="black")
        for box in boxes:
            start = left + box.left * scale, top + TITLE_HEIGHT + box.top * scale
            end = left + box.right * scale - 1, top + TITLE_HEIGHT + box.bottom * scale - 1
            draw.rectangle((start, end), outline=REQUEST_COLOUR)
    return np.asarray(canvas)
