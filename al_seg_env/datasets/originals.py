"""Where the network's image lies in the original that it was made from: the one place that converts between both."""

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
    """What an image of the data was made from: scaled to ``inside``, in the upper left corner; the rest is padding.

    Pixel y of the network's image shows the original's pixel below its centre, ``floor((y + 1/2) * height / inside
    height)``; columns likewise. This one rule brings labels to the network's size and back.

    Attributes:
        size: ``(height, width)`` of the original in pixels, after its EXIF orientation.
        inside: ``(height, width)`` that it takes of the network's image.
        read: Returns its pixels, ``(height, width, 3)`` uint8.
        path: Its file; ``None`` if it has none.

    >>> original = Original(size=(40, 60), inside=(20, 30), read=lambda: np.zeros((40, 60, 3), np.uint8))
    >>> original.region(Box(image=0, top=0, bottom=5, left=20, right=40))  # ten columns of it are padding
    Box(image=0, top=0, bottom=10, left=40, right=60)
    """

    size: Size
    inside: Size
    read: Callable[[], UInt8Array]
    path: Path | None = None

    def holds(self, box: Box) -> bool:
        """Return whether any pixel of a box of the network's image is not padding."""
        return box.top < self.inside[0] and box.left < self.inside[1]

    def region(self, box: Box) -> Box:
        """Return the original's pixels that a box of the network's image shows; of neighbours none overlap.

        Raises:
            ValueError: If all of the box is padding.
        """
        if not self.holds(box):
            raise ValueError(f"{box} lies outside of its image, which takes {self.inside} pixels of the network's")
        top, bottom = _edges(box.top, box.bottom, self.size[0], self.inside[0])
        left, right = _edges(box.left, box.right, self.size[1], self.inside[1])
        return Box(box.image, top, bottom, left, right)

    def to_network(self, labels: UInt8Array, box: Box) -> UInt8Array:
        """Return the labels of a box of the network's image, 255 where it is padding.

        Args:
            labels: Those of :meth:`region` of the box, ``(h, w)`` uint8.
            box: The box.
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
    """Return the largest ``(height, width)`` of the proportions of ``size`` in a canvas; nothing is enlarged.

    >>> fitted((3000, 4000), (384, 384))
    (288, 384)
    >>> fitted((20, 30), (384, 384))
    (20, 30)
    """
    height, width = size
    if height <= canvas[0] and width <= canvas[1]:
        return size
    if height * canvas[1] >= width * canvas[0]:  # it is the height that is short
        return canvas[0], max(1, round(width * canvas[0] / height))
    return max(1, round(height * canvas[1] / width)), canvas[1]


def original_of(data: SegmentationData, image: int) -> Original:
    """Return what an image was made from: what the data's ``original(index)`` says, or the image itself."""
    make = getattr(data, "original", None)
    if make is not None:
        found: Original = make(image)
        return found
    size = (int(data.image_size[0]), int(data.image_size[1]))
    return Original(size, size, partial(data.image, image))


def regions_outside(data: SegmentationData, grid: RegionGrid, images: Sequence[int]) -> list[int]:
    """Return the ids of the regions of these images that are padding throughout."""
    found = []
    for image in images:
        original = original_of(data, image)
        if original.inside != grid.image_size:
            found += [int(region) for region in grid.regions_of([image]) if not original.holds(grid.box(region))]
    return found


def _edges(first: int, last: int, size: int, inside: int) -> tuple[int, int]:
    """Return where pixels ``first`` up to ``last`` begin and end in the original: at least one pixel."""
    start, end = ((2 * edge * size + inside) // (2 * inside) for edge in (first, min(last, inside)))
    start = min(start, size - 1)
    return start, max(end, start + 1)


def _sources(first: int, last: int, size: int, inside: int) -> IntArray:
    """Return the positions among ``size`` below the centres of positions ``first`` up to ``last`` among ``inside``."""
    sources: IntArray = (2 * np.arange(first, last, dtype=np.int64) + 1) * size // (2 * inside)
    return sources
