"""Requests for labels and people's answers: regions in pixels of the original images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from al_seg_env.datasets.originals import Original, original_of
from al_seg_env.datasets.segmentation_data import SegmentationData, palette_of
from al_seg_env.regions import Box
from al_seg_env.types import Size, UInt8Array

REQUEST_COLOUR = (255, 230, 0)
COSTS = ("pixels", "clicks", "seconds")
"""Units of a region's cost, in the order of :meth:`Answer.costs`."""
UNKNOWN = -1.0


class Context(NamedTuple):
    """A region in its surroundings.

    Attributes:
        pixels: ``(h, w, 3)`` uint8, with the region outlined in yellow; pixels inside it are unchanged.
        box: Position of the region within these pixels.
    """

    pixels: UInt8Array
    box: Box


@dataclass(frozen=True)
class Request:
    """One region that someone is asked to label.

    Attributes:
        box: The region in the network's image.
        region: The region in the original image, which is to be labelled.
        name: The image's name.
        classes: The C class names; the position of a name is its label.
        palette: The classes' colours, ``(C, 3)`` uint8.
        original: The original of the network's image.
    """

    box: Box
    region: Box
    name: str
    classes: tuple[str, ...]
    palette: UInt8Array
    original: Original
    _predicted: Callable[[int], UInt8Array] | None = field(default=None, repr=False)

    @property
    def path(self) -> Path | None:
        """The original image's file, if it has one."""
        return self.original.path

    @property
    def size(self) -> Size:
        """``(height, width)`` of the original image."""
        return self.original.size

    def pixels(self) -> UInt8Array:
        """Return the region's pixels in the original, ``(h, w, 3)`` uint8."""
        return _cut(self.original.read(), self.region)

    def context(self, margin: float = 1.0) -> Context:
        """Return the region outlined in its surroundings, at the original's resolution.

        Args:
            margin: Extent of the surroundings in each direction, in heights and widths of the region.
        """
        height, width = (round(side * margin) for side in self.region.size)
        _, top, bottom, left, right = self.region
        shown = Box(
            self.region.image,
            max(0, top - height),
            min(self.size[0], bottom + height),
            max(0, left - width),
            min(self.size[1], right + width),
        )
        pixels = _cut(self.original.read(), shown).copy()
        inner = Box(self.region.image, top - shown.top, bottom - shown.top, left - shown.left, right - shown.left)
        line = max(1, max(pixels.shape[:2]) // 250)
        outlined = np.zeros(pixels.shape[:2], bool)
        outlined[max(0, inner.top - line) : inner.bottom + line, max(0, inner.left - line) : inner.right + line] = True
        inner.crop(outlined)[...] = False
        pixels[outlined] = REQUEST_COLOUR
        return Context(pixels, inner)

    def prelabel(self) -> UInt8Array | None:
        """Return the network's prediction for the region, ``(h, w)`` uint8; ``None`` if there is no network."""
        if self._predicted is None:
            return None
        return self.original.to_original(self.box.crop(self._predicted(self.box.image)), self.box)


@dataclass(frozen=True)
class Answer:
    """Someone's answer to a :class:`Request`.

    Attributes:
        mask: The labels of the region's pixels in the original, ``(h, w)`` uint8, 255 where one is left unlabelled.
        seconds: Time spent, if known.
        clicks: Number of clicks or strokes, if known.
        by: Name of the person, if known.
    """

    mask: UInt8Array
    seconds: float | None = None
    clicks: int | None = None
    by: str | None = None

    def costs(self, region: Box) -> tuple[float, float, float]:
        """Return the region's cost in pixels, clicks and seconds; -1 where it is unknown."""
        return (
            float(region.size[0] * region.size[1]),
            UNKNOWN if self.clicks is None else float(self.clicks),
            UNKNOWN if self.seconds is None else float(self.seconds),
        )


def requests_of(
    data: SegmentationData, boxes: Sequence[Box], predict: Callable[[int], UInt8Array] | None = None
) -> list[Request]:
    """Return the requests for boxes of the network's images.

    Args:
        data: The images.
        boxes: The boxes.
        predict: Returns the labels that the network predicts for an image, ``(H, W)`` uint8. Called once per image,
            when a pre-label is first used.

    Raises:
        ValueError: If a box consists of padding alone.
    """
    classes, palette = tuple(data.classes), palette_of(data)
    predicted = None if predict is None else cache(predict)
    originals = {image: _read_once(original_of(data, image)) for image in {box.image for box in boxes}}
    return [
        Request(
            box,
            originals[box.image].region(box),
            data.names[box.image],
            classes,
            palette,
            originals[box.image],
            predicted,
        )
        for box in boxes
    ]


def _cut(pixels: UInt8Array, box: Box) -> UInt8Array:
    return pixels[box.top : box.bottom, box.left : box.right]


def _read_once(original: Original) -> Original:
    """Return an original that keeps its pixels once they are read."""
    return Original(original.size, original.inside, cache(original.read), original.path)
