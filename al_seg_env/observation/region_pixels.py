"""The pixels of chosen regions, gathered from maps of whole images and reduced by region."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from al_seg_env import functional
from al_seg_env.regions import Boxes, RegionGrid
from al_seg_env.types import IntArray, Size


@dataclass(frozen=True)
class _Block:
    """Neighbouring regions of equal size, some of which are wanted. A grid has up to four blocks.

    Attributes:
        origin: ``(top, left)`` pixel of the block.
        shape: ``(rows, columns)`` of regions in the block.
        size: ``(height, width)`` of each of its regions in pixels.
        stride: Every n-th pixel per row and column of a region is taken, starting with the first.
        wanted: Indices of the n wanted regions in the block among the M regions, ``(n,)`` int64.
        where: Image, row and column of each wanted region within the block, ``(n,)`` int64 each.
    """

    origin: Size
    shape: Size
    size: Size
    stride: int
    wanted: Tensor
    where: tuple[Tensor, Tensor, Tensor]

    def take(self, maps: Tensor) -> Tensor:
        """Return the pixels of the wanted regions of maps ``(B, C, H, W)``: ``(C, n, h, w)``."""
        (top, left), (rows, columns), (height, width) = self.origin, self.shape, self.size
        block = maps[:, :, top : top + rows * height, left : left + columns * width]
        tiles = block.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # (B, C, rows, h, columns, w)
        tiles = tiles[:, :, :, :: self.stride, :, :: self.stride]
        images, row, column = self.where
        return tiles.permute(1, 0, 2, 4, 3, 5)[:, images, row, column]

    @property
    def taken(self) -> Size:
        """Numbers of rows and columns that are taken from each region."""
        height, width = self.size
        return -(-height // self.stride), -(-width // self.stride)

    def to(self, device: torch.device) -> _Block:
        """Return the same block for maps on a device."""
        images, row, column = (where.to(device) for where in self.where)
        return replace(self, wanted=self.wanted.to(device), where=(images, row, column))

    def boxes(self) -> Boxes:
        """Return the wanted regions' boxes."""
        images, row, column = (where.cpu().numpy() for where in self.where)
        (top, left), (height, width) = self.origin, self.size
        return Boxes(images, top + row * height, left + column * width, self.size, self.stride)


class RegionPixels:
    """The concatenated pixels of M regions of a batch of images, P in total. The regions' sizes may differ.

    Args:
        grid: The grid that defines the regions.
        images: Position in the batch of each region's image, ``(M,)``.
        cells: Number of each region within its image, ``(M,)``.
        device: Device of the maps.
        stride: Every n-th pixel per row and column of a region is taken, starting with the first.
    """

    def __init__(
        self, grid: RegionGrid, images: IntArray, cells: IntArray, device: torch.device, stride: int = 1
    ) -> None:
        self.count, self.device, self.cells = len(cells), device, cells
        row, column = np.divmod(cells, grid.shape[1])
        self._blocks: list[_Block] = []
        for first_row, rows, height, top in _equal_runs(grid.image_size[0], grid.region_size[0]):
            for first_column, columns, width, left in _equal_runs(grid.image_size[1], grid.region_size[1]):
                in_rows = (first_row <= row) & (row < first_row + rows)
                in_columns = (first_column <= column) & (column < first_column + columns)
                wanted = np.flatnonzero(in_rows & in_columns)
                if len(wanted):
                    where = images[wanted], row[wanted] - first_row, column[wanted] - first_column
                    self._blocks.append(
                        _Block(
                            (top, left),
                            (rows, columns),
                            (height, width),
                            stride,
                            torch.from_numpy(wanted).to(device),
                            tuple(torch.from_numpy(w).to(device) for w in where),  # type: ignore[arg-type]
                        )
                    )

    def to(self, device: torch.device) -> RegionPixels:
        """Return the same pixels for maps on a device."""
        if device == self.device:
            return self
        moved = copy.copy(self)
        moved.device, moved._blocks = device, [block.to(device) for block in self._blocks]
        return moved

    def gather(self, maps: Tensor) -> Tensor:
        """Return the pixels of maps ``(B, C, H, W)``: ``(C, P)``."""
        return torch.cat([block.take(maps).flatten(1) for block in self._blocks], dim=1)

    def boxes(self) -> list[Boxes]:
        """Return the boxes of the pixels. Box by box, and row by row in a box, they have the order of ``gather``."""
        return [block.boxes() for block in self._blocks]

    def pool(self, values: Tensor, bins: int, mode: str) -> Tensor:
        """Pool the values ``(P,)`` of each region to ``bins x bins``; see :func:`~functional.pool_tiles`.

        Returns:
            ``(M, bins * bins)``.
        """
        return self._reduce(values, lambda tiles: functional.pool_tiles(tiles, bins, mode))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the values ``(P,)`` over each region, ``(M, 1)``."""
        return self._reduce(values, lambda tiles: tiles.sum(dim=(1, 2))[:, None])

    def over_pixels(self, values: Tensor, mode: str) -> Tensor:
        """Return the ``"mean"`` or ``"max"`` of C values per pixel ``(C, P)`` over each region, ``(M, C)``."""
        if mode == "mean":
            return self._reduce(values, lambda tiles: tiles.mean(dim=(2, 3)).T)
        return self._reduce(values, lambda tiles: tiles.amax(dim=(2, 3)).T)

    def class_counts(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the number of pixels of each class in each region from labels ``(P,)``: ``(M, C)`` int64."""
        return self._reduce(labels, lambda tiles: functional.class_counts(tiles, num_classes))

    def _reduce(self, values: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Reduce the tiles ``(..., n, h, w)`` of each block to ``(n, f)``, and return them in the regions' order."""
        parts = [reduce(tiles) for tiles in self._tiles(values)]
        if len(parts) == 1:
            return parts[0]
        result = parts[0].new_empty(self.count, parts[0].shape[1])
        for block, part in zip(self._blocks, parts, strict=True):
            result[block.wanted] = part
        return result

    def _tiles(self, values: Tensor) -> Iterator[Tensor]:
        start = 0
        for block in self._blocks:
            shape = (len(block.wanted), *block.taken)
            end = start + shape[0] * shape[1] * shape[2]
            yield values[..., start:end].unflatten(-1, shape)
            start = end


def _equal_runs(side: int, step: int) -> list[tuple[int, int, int, int]]:
    """Split a side into runs of equal cells: first cell, number of cells, length of a cell, first pixel."""
    full, rest = divmod(side, step)
    return [run for run in ((0, full, step, 0), (full, 1, rest, full * step)) if run[1] and run[2]]
