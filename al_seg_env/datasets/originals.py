"""Conversion between the network's image and the original image that it was made from. Nothing else converts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData
from al_seg_env.regions import Box, RegionGrid
from al_seg_env.types import IntArray, Size, UInt8Array


@dataclass(frozen=True)
class Original:
    """The original of an image of the data, which is scaled to ``inside`` and placed in the upper left corner.

    The rest of the network's image is padding. Row y of the network's image shows the row of the original that lies
    below its centre, ``floor((y + 1/2) * height / inside height)``, and columns likewise. Labels are converted to the
    network's size and back by this rule alone.

    Attributes:
        size: ``(height, width)`` of the original in pixels, after its EXIF orientation.
        inside: ``(height, width)`` in pixels that the original fills of the network's image.
        read: Returns the original's pixels, ``(height, width, 3)`` uint8.
        path: The original's file; ``None`` if it has none.

    >>> original = Original(size=(40, 60), inside=(20, 30), read=lambda: np.zeros((40, 60, 3), np.uint8))
    >>> original.region(Box(image=0, top=0, bottom=5, left=20, right=40))  # ten columns of the box are padding
    Box(image=0, top=0, bottom=10, left=40, right=60)
    """

    size: Size
    inside: Size
    read: Callable[[], UInt8Array]
    path: Path | None = None

    def holds(self, box: Box) -> bool:
        """Return whether a box of the network's image has any pixel that is not padding."""
        return box.top < self.inside[0] and box.left < self.inside[1]

    def region(self, box: Box) -> Box:
        """Return the box of the original's pixels that a box of the network's image shows.

        The results for boxes that don't overlap don't overlap, either.

        Raises:
            ValueError: If the whole box is padding.
        """
        if not self.holds(box):
            raise ValueError(f"{box} is padding; expected a box that meets the image, which fills {self.inside} pixels")
        top, bottom = _edges(box.top, box.bottom, self.size[0], self.inside[0])
        left, right = _edges(box.left, box.right, self.size[1], self.inside[1])
        return Box(box.image, top, bottom, left, right)

    def to_network(self, labels: UInt8Array, box: Box) -> UInt8Array:
        """Return the labels of a box of the network's image, uint8 of the box's size, 255 where it is padding.

        Args:
            labels: The original's labels in :meth:`region` of the box, ``(h, w)`` uint8.
            box: The box of the network's image.
        """
        region = self.region(box)
        rows = _sources(box.top, min(box.bottom, self.inside[0]), self.size[0], self.inside[0])
        columns = _sources(box.left, min(box.right, self.inside[1]), self.size[1], self.inside[1])
        rows = rows.clip(region.top, region.bottom - 1) - region.top
        columns = columns.clip(region.left, region.right - 1) - region.left
        shown = np.full(box.size, IGNORE_LABEL, np.uint8)
        shown[: len(rows), : len(columns)] = labels[rows[:, None], columns]
        return shown

    def to_original(self, labels: UInt8Array, box: Box) -> UInt8Array:
        """Return the labels of a box of the network's image, ``(h, w)`` uint8, at the size of its :meth:`region`."""
        region = self.region(box)
        rows = _sources(region.top, region.bottom, self.inside[0], self.size[0])
        columns = _sources(region.left, region.right, self.inside[1], self.size[1])
        rows = rows.clip(box.top, box.bottom - 1) - box.top
        columns = columns.clip(box.left, box.right - 1) - box.left
        return labels[rows[:, None], columns]


def whole(size: Size, image: int = 0) -> Box:
    """Return the box of all pixels of an image of this ``(height, width)``."""
    return Box(image, 0, size[0], 0, size[1])


def fitted(size: Size, canvas: Size) -> Size:
    """Return the largest ``(height, width)`` in a canvas that keeps the aspect ratio of ``size``, never enlarged.

    >>> fitted((3000, 4000), (384, 384))
    (288, 384)
    >>> fitted((20, 30), (384, 384))
    (20, 30)
    """
    height, width = size
    if height <= canvas[0] and width <= canvas[1]:
        return size
    if height * canvas[1] >= width * canvas[0]:  # the height is the limit
        return canvas[0], max(1, round(width * canvas[0] / height))
    return max(1, round(height * canvas[1] / width)), canvas[1]


def original_of(data: SegmentationData, image: int) -> Original:
    """Return the original of an image: the data's ``original(index)`` if there is one, else the image itself."""
    make = getattr(data, "original", None)
    if make is not None:
        found: Original = make(image)
        return found
    size = (int(data.image_size[0]), int(data.image_size[1]))
    return Original(size, size, partial(data.image, image))


def regions_outside(data: SegmentationData, grid: RegionGrid, images: Sequence[int]) -> list[int]:
    """Return the ids of those regions of these images that consist of padding alone."""
    found = []
    for image in images:
        original = original_of(data, image)
        if original.inside != grid.image_size:
            found += [int(region) for region in grid.regions_of([image]) if not original.holds(grid.box(region))]
    return found


def _edges(first: int, last: int, size: int, inside: int) -> tuple[int, int]:
    """Return where pixels ``first`` up to ``last`` begin and end in the original, at least one pixel apart."""
    start, end = ((2 * edge * size + inside) // (2 * inside) for edge in (first, min(last, inside)))
    start = min(start, size - 1)
    return start, max(end, start + 1)


def _sources(first: int, last: int, size: int, inside: int) -> IntArray:
    """Return the positions among ``size`` below the centres of positions ``first`` up to ``last`` among ``inside``."""
    sources: IntArray = (2 * np.arange(first, last, dtype=np.int64) + 1) * size // (2 * inside)
    return sources
