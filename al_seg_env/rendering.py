"""Pictures of an image, what was requested in it, what is known of it, and what the network makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, palette_of
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.labelling.request import REQUEST_COLOUR
from al_seg_env.regions import Box, RegionGrid
from al_seg_env.types import UInt8Array

UNLABELLED_COLOUR = (255, 255, 255)
TITLE_HEIGHT = 18
GAP = 4
PANEL_WIDTH = 320
FONT = ImageFont.load_default(12)


def colourise(mask: UInt8Array, palette: UInt8Array) -> UInt8Array:
    """Paint labels ``(H, W)`` with the colours ``(C, 3)``; 255 is white. Returns ``(H, W, 3)`` uint8."""
    table = np.full((256, 3), UNLABELLED_COLOUR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def labels_over(image: UInt8Array, mask: UInt8Array, palette: UInt8Array) -> UInt8Array:
    """Lay the colours of labels ``(H, W)`` over an image ``(H, W, 3)``, which shows where the label is 255."""
    mixed = (image * 0.4 + colourise(mask, palette) * 0.6).astype(np.uint8)
    return np.where((mask != IGNORE_LABEL)[..., None], mixed, image)


def render_step(
    data: SegmentationData,
    frames: Frames,
    labels: LabelState,
    *,
    image: int,
    predicted: UInt8Array,
    requests: Sequence[Box],
    slots: int,
    caption: str,
) -> UInt8Array:
    """Draw a step: one image in four panels, all regions that were requested, and the colours of the classes.

    The panels are the image with labels and requests on it, its ground truth, its labels, and its prediction.

    Args:
        data: For names and colours.
        frames: The images and the ground truth.
        labels: L_t.
        image: Position of the image that the panels show.
        predicted: Its predicted classes, ``(H, W)`` uint8.
        requests: All regions requested in this step. Those of the image are outlined in yellow.
        slots: Requests that there is room for: K, so that all frames of an episode have one size.
        caption: One line of text.

    Returns:
        ``(h, w, 3)`` uint8 of even sides, the same for all steps and images of an environment.
    """
    palette = palette_of(data)
    pixels, truth, known = frames.image(image).numpy(), frames.mask(image), labels.mask(image)
    panels = {
        "labelled and requested": labels_over(pixels, known, palette),
        "ground truth": colourise(truth, palette),
        "labels known": colourise(known, palette),
        "prediction": colourise(predicted, palette),
    }
    scale = max(1, round(PANEL_WIDTH / pixels.shape[1]))
    height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
    full_width = 2 * width + GAP
    key = class_key(data, full_width, dark=True, unlabelled=True)
    columns = max(8, math.ceil(math.sqrt(4 * slots)))
    side = max(1, full_width // columns - GAP)
    region_height, region_width = labels.grid.region_size
    line_height = max(1, round(side * min(1, region_height / region_width))) + GAP
    thumbnails_top = 2 * (height + TITLE_HEIGHT) + TITLE_HEIGHT
    key_top = thumbnails_top + -(-slots // columns) * line_height
    size = full_width + full_width % 2, key_top + key.height + TITLE_HEIGHT
    canvas = Image.new("RGB", (size[0], size[1] + size[1] % 2))
    draw = ImageDraw.Draw(canvas)
    for index, (title, panel) in enumerate(panels.items()):
        left, top = (index % 2) * (width + GAP), (index // 2) * (height + TITLE_HEIGHT)
        draw.text((left + 3, top + 2), title, "white", FONT)
        canvas.paste(_scaled(panel, width, height), (left, top + TITLE_HEIGHT))
        for box in requests:
            if box.image == image:
                _outline(draw, box, scale, left, top + TITLE_HEIGHT, width=2)
    if (truth == IGNORE_LABEL).all():
        middle = width + GAP + width // 2, TITLE_HEIGHT + height // 2
        draw.text(middle, "none", "grey", FONT, anchor="mm")
    draw.text((3, thumbnails_top - TITLE_HEIGHT + 2), "requested in this step, with the labels given", "white", FONT)
    for slot, box in enumerate(requests):
        region = labels_over(
            box.crop(frames.image(box.image).permute(2, 0, 1)).permute(1, 2, 0).numpy(),
            box.crop(labels.mask(box.image)),
            palette,
        )
        shrink = side / max(region_height, region_width)
        fitted = _scaled(region, max(1, round(box.size[1] * shrink)), max(1, round(box.size[0] * shrink)))
        canvas.paste(fitted, ((slot % columns) * (side + GAP), thumbnails_top + (slot // columns) * line_height))
    canvas.paste(key, (0, key_top))
    draw.text((3, key_top + key.height + 2), caption, "white", FONT)
    return np.asarray(canvas)


def class_key(data: SegmentationData, width: int, *, dark: bool = False, unlabelled: bool = False) -> Image.Image:
    """Draw the colour and the name of each class in as many lines as it takes, on a black or a white ground.

    Args:
        data: For colours and names.
        width: Width of the key, in pixels.
        dark: Whether the ground is black.
        unlabelled: Whether to name the colour of pixels without a label, too.
    """
    entries = [*zip(data.classes, map(tuple, palette_of(data).tolist()), strict=True)]
    entries += [("unlabelled", UNLABELLED_COLOUR)] if unlabelled else []
    places = list(_places([round(FONT.getlength(name)) + 24 for name, _ in entries], width))
    key = Image.new("RGB", (width, (places[-1][1] + 1) * TITLE_HEIGHT), "black" if dark else "white")
    draw = ImageDraw.Draw(key)
    for (name, colour), (left, line) in zip(entries, places, strict=True):
        top = line * TITLE_HEIGHT + 4
        draw.rectangle((left + 3, top, left + 13, top + 10), colour, "grey")
        draw.text((left + 17, top - 2), name, "white" if dark else "black", FONT)
    return key


def _places(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Yield where things of these widths go in lines of a text: the distance from the left, and the line."""
    left, line = 0, 0
    for width in widths:
        if left and left + width > room:
            left, line = 0, line + 1
        yield left, line
        left += width


def _scaled(pixels: UInt8Array, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.NEAREST)


def _outline(draw: ImageDraw.ImageDraw, box: Box, scale: int, left: int, top: int, width: int = 1) -> None:
    corners = (box.left * scale, box.top * scale, box.right * scale - 1, box.bottom * scale - 1)
    draw.rectangle([corner + (left, top)[i % 2] for i, corner in enumerate(corners)], None, REQUEST_COLOUR, width)


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
    key = class_key(data, columns * (width + GAP))
    canvas = Image.new("RGB", (key.width, rows * (height + TITLE_HEIGHT) + key.height), "white")
    draw = ImageDraw.Draw(canvas)
    palette = palette_of(data)
    for position, image in enumerate(most.tolist()):
        row, column = divmod(position, columns)
        left, top = column * (width + GAP), row * (height + TITLE_HEIGHT)
        boxes = [box for box in map(grid.box, labels.labelled) if box.image == image]
        panel = labels_over(frames.image(image).numpy(), labels.mask(image), palette)
        canvas.paste(_scaled(panel, width, height), (left, top + TITLE_HEIGHT))
        title = f"{data.names[image]}: {len(boxes)} of {grid.regions_per_image} regions"
        draw.text((left + 3, top + 2), title, "black", FONT)
        for box in boxes:
            _outline(draw, box, scale, left, top + TITLE_HEIGHT)
    canvas.paste(key, (0, rows * (height + TITLE_HEIGHT)))
    return np.asarray(canvas)
