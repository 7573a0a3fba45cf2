"""The grid of regions: the one place that converts between region ids and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from al_seg_env.functional import grid_shape
from al_seg_env.types import IntArray, Size


class Box(NamedTuple):
    """The pixels of a region: ``array[..., top:bottom, left:right]`` of image ``image``.

    >>> box = Box(image=0, top=0, bottom=2, left=1, right=4)
    >>> box.size
    (2, 3)
    >>> box.crop(np.arange(12).reshape(3, 4))
    array([[1, 2, 3],
           [5, 6, 7]])
    """

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


def sixteenth(image_size: Size) -> Size:
    """Return a sixteenth of an image, ``(height, width)``: the size of a region where none is given.

    >>> sixteenth((90, 120))
    (23, 30)
    """
    height, width = image_size
    return -(-height // 4), -(-width // 4)


class Boxes(NamedTuple):
    """n boxes of one size, in the images of a batch.

    Attributes:
        images: Position in the batch of each box's image, ``(n,)`` int64.
        tops, lefts: First row and column of each in pixels, ``(n,)`` int64.
        size: ``(height, width)`` of all of them in pixels.
        stride: Of each box, every n-th pixel per row and column is meant, from its first on.

    >>> Boxes(images=np.array([0, 0, 1]), tops=np.array([0, 2, 0]), lefts=np.array([0, 4, 4]), size=(2, 4)).size
    (2, 4)
    """

    images: IntArray
    tops: IntArray
    lefts: IntArray
    size: Size
    stride: int = 1

    @property
    def shape(self) -> Size:
        """Rows and columns of the pixels that are meant of each box."""
        height, width = self.size
        return -(-height // self.stride), -(-width // self.stride)


def cut_boxes(maps: Tensor, boxes: Sequence[Boxes]) -> Tensor:
    """Return the pixels of some boxes of maps ``(B, C, H, W)``, box after box: ``(C, P)``.

    >>> maps = torch.arange(6).view(1, 1, 2, 3)
    >>> cut_boxes(maps, [Boxes(images=np.array([0]), tops=np.array([0]), lefts=np.array([1]), size=(2, 2))])
    tensor([[1, 2, 4, 5]])
    """
    parts = [
        maps[image, :, top : top + group.size[0] : group.stride, left : left + group.size[1] : group.stride].flatten(1)
        for group in boxes
        for image, top, left in zip(group.images.tolist(), group.tops.tolist(), group.lefts.tolist(), strict=True)
    ]
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class RegionGrid:
    """Non-overlapping rectangular regions of equally sized images (section 3, footnote 1).

    A region id is ``image * regions_per_image + row * columns + column``. Where ``region_size`` does not divide
    ``image_size``, the regions in the last row and column are smaller: every pixel is in exactly one region.

    Attributes:
        image_size: ``(height, width)`` of every image.
        region_size: ``(height, width)`` of a region, at most that of the image; equal to it for whole images
            (appendix E.2).

    Raises:
        ValueError: If the region is empty or larger than the image.

    >>> grid = RegionGrid(image_size=(5, 4), region_size=(2, 2))
    >>> grid.shape, grid.regions_per_image
    ((3, 2), 6)
    >>> grid.box(11)  # the last region of the second image, one pixel high
    Box(image=1, top=4, bottom=5, left=2, right=4)
    >>> grid.image_of([0, 5, 6])
    array([0, 0, 1])
    >>> grid.regions_of([1])
    array([ 6,  7,  8,  9, 10, 11])
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
