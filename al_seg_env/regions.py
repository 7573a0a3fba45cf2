"""The grid of regions: the one place that converts between region ids and pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from al_seg_env.functional import grid_shape
from al_seg_env.types import IntArray, Size


class Box(NamedTuple):
    """The pixels of a region: ``array[..., top:bottom, left:right]`` of image ``image``."""

    image: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> Size:
        """``(height, width)`` in pixels."""
        return self.bottom - self.top, self.right - self.left

    def crop(self, array: Any) -> Any:
        """Return the view of an array or tensor ``(..., H, W)`` that this region covers."""
        return array[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class RegionGrid:
    """Non-overlapping rectangular regions of equally sized images (section 3, footnote 1).

    A region id is ``image * regions_per_image + row * columns + column``. Regions in the last row and column
    are smaller where ``region_size`` does not divide ``image_size``: every pixel is in exactly one region.

    Attributes:
        image_size: ``(height, width)`` of every image.
        region_size: ``(height, width)`` of a region, at most the image; the image for whole images (E.2).

    Raises:
        ValueError: If the region is empty or larger than the image.
    """

    image_size: Size
    region_size: Size

    def __post_init__(self) -> None:
        for side, region, image in zip(("height", "width"), self.region_size, self.image_size, strict=True):
            if not 1 <= region <= image:
                raise ValueError(
                    f"region_size {self.region_size}: the {side} must be between 1 and the image's {image}; "
                    "use region_size=None for whole images"
                )

    @property
    def shape(self) -> Size:
        """``(rows, columns)`` of one image's grid."""
        return grid_shape(self.image_size, self.region_size)

    @property
    def regions_per_image(self) -> int:
        """R, the number of regions of one image."""
        rows, columns = self.shape
        return rows * columns

    def image_of(self, regions: npt.ArrayLike) -> IntArray:
        """Return the image index of each region id."""
        return np.asarray(regions, dtype=np.int64) // self.regions_per_image

    def regions_of(self, images: npt.ArrayLike) -> IntArray:
        """Return the ids of all regions of these images, image by image, ``(len(images) * R,)`` int64."""
        first = np.asarray(images, dtype=np.int64)[:, None] * self.regions_per_image
        return (first + np.arange(self.regions_per_image)).reshape(-1)

    def box(self, region: int) -> Box:
        """Return the image and the pixels of a region."""
        image, cell = divmod(int(region), self.regions_per_image)
        row, column = divmod(cell, self.shape[1])
        top, left = row * self.region_size[0], column * self.region_size[1]
        bottom = min(top + self.region_size[0], self.image_size[0])
        right = min(left + self.region_size[1], self.image_size[1])
        return Box(image, top, bottom, left, right)
