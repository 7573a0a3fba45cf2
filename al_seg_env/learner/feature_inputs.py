"""Stored features instead of images: batches of whole images, and of windows around labelled regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.learner.feature_store import FeatureStore
from al_seg_env.learner.frozen_encoder import FeatureMaps
from al_seg_env.regions import Box, Boxes, RegionGrid
from al_seg_env.types import IntArray, Size, UInt8Array

BLANK = -1


@dataclass(frozen=True)
class FeatureBatch:
    """B images, or windows of images, as stored features, which are read when they are needed.

    Attributes:
        inputs: The source of the features.
        images: Index of each image.
        window: ``(height, width)`` of the windows in cells of the coarsest map; ``None`` for whole images.
        origins: First row and column of each window in such cells, ``(B, 2)`` int64; zeros for whole images.
    """

    inputs: FeatureInputs
    images: tuple[int, ...]
    window: Size | None
    origins: IntArray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> FeatureBatch:
        return replace(self, images=self.images[rows], origins=self.origins[rows])

    def split(self, size: int) -> tuple[FeatureBatch, ...]:
        """Return the batch in parts of at most ``size``, like :meth:`torch.Tensor.split`."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    @property
    def image_size(self) -> Size:
        """``(height, width)`` in pixels of the images or windows, without the encoder's padding."""
        if self.window is None:
            return self.inputs.image_size
        return self.window[0] * self.inputs.cell, self.window[1] * self.inputs.cell

    @property
    def encoded_size(self) -> Size:
        """``(height, width)`` in pixels of the images or windows, with the encoder's padding."""
        return self.inputs.encoded_size if self.window is None else self.image_size

    @property
    def corners(self) -> IntArray:
        """First row and column of each image or window in pixels, ``(B, 2)`` int64."""
        return self.origins * self.inputs.cell

    def repeated(self, times: int) -> FeatureBatch:
        """Return the batch repeated ``times`` times."""
        return replace(self, images=self.images * times, origins=np.tile(self.origins, (times, 1)))

    def gathered(self, length: int, dtype: torch.dtype, device: torch.device) -> FeatureMaps:
        """Read the features.

        Args:
            length: Length of the result, at least that of the batch. The rest is filled with zeros.
            dtype: Dtype of the result.
            device: Device of the result.

        Returns:
            Maps ``(length, ...)``, with channels last in memory.
        """
        given = [self.inputs.maps(image) for image in self.images]
        maps = []
        for whole in zip(*given, strict=True):
            parts = whole if self.window is None else self._cut(whole, self.window)
            together = torch.empty((length, *parts[0].shape), dtype=dtype, pin_memory=device.type == "cuda")
            torch.stack(parts, out=together[: len(parts)])
            together[len(parts) :] = 0
            together = together.to(device, non_blocking=True)
            maps.append(together.permute(0, 3, 1, 2) if together.dim() == 4 else together)
        return FeatureMaps(tuple(maps), self.encoded_size)

    def _cut(self, maps: Sequence[Tensor], window: Size) -> list[Tensor]:
        """Return the windows of one map ``(h, w, c)`` of each image."""
        per_cell = maps[0].shape[0] * self.inputs.cell // self.inputs.encoded_size[0]
        height, width = per_cell * window[0], per_cell * window[1]
        return [
            values[top : top + height, left : left + width]
            for values, (top, left) in zip(maps, (per_cell * self.origins).tolist(), strict=True)
        ]


class FeatureInputs:
    """Makes batches of stored features.

    Args:
        frames: The images.
        store_of: Returns the store of frames.
        reach: Number of pixels around a pixel on which its logits depend; ``None`` if unknown. If it is known, training
            views are windows around the labelled regions that contain all features on which the regions' logits depend.
            Training on windows gives the same result as on whole images with all other pixels ignored, and costs less.

    Attributes:
        image_size: ``(height, width)`` of an image.
        encoded_size: ``(height, width)`` of an image with the encoder's padding.
        cell: Pixels per side of a cell of the coarsest map.
    """

    def __init__(self, frames: Frames, store_of: Callable[[Frames], FeatureStore], reach: int | None) -> None:
        self.frames, self._store_of = frames, store_of
        height, width = frames.data.image_size
        self.image_size = int(height), int(width)
        self._stores: dict[int, FeatureStore] = {}
        store = self._store(frames.source(0)[0]) if len(frames.data.names) else store_of(frames)
        self.encoded_size, self._shapes = store.encoded_size, store.shapes
        sides = [
            side // cells
            for shape in store.shapes
            for side, cells in zip(self.encoded_size, shape, strict=False)
            if len(shape) == 3
        ]
        self.cell = max(sides, default=1)
        divides = all(len(shape) == 3 and shape[0] * self.cell % self.encoded_size[0] == 0 for shape in store.shapes)
        self.reach = reach if divides else None

    def _store(self, frames: Frames) -> FeatureStore:
        if id(frames) not in self._stores:
            self._stores[id(frames)] = self._store_of(frames)
        return self._stores[id(frames)]

    def maps(self, image: int) -> tuple[Tensor, ...]:
        """Return the stored features of an image."""
        if image == BLANK:
            return tuple(torch.zeros(shape) for shape in self._shapes)
        frames, index = self.frames.source(image)
        return self._store(frames).maps(index)

    def prepare(self, images: Sequence[int]) -> None:
        """Encode the images that are not stored yet, with a progress bar if there are many."""
        by_source: dict[int, tuple[Frames, list[int]]] = {}
        for image in images:
            frames, index = self.frames.source(int(image))
            by_source.setdefault(id(frames), (frames, []))[1].append(index)
        for frames, indices in by_source.values():
            self._store(frames).prepare(indices)

    def blank(self) -> FeatureBatch:
        """Return an image whose features are zeros."""
        return FeatureBatch(self, (BLANK,), None, np.zeros((1, 2), np.int64))

    def whole(self, images: Sequence[int]) -> FeatureBatch:
        """Return whole images."""
        indices = tuple(int(image) for image in images)
        self.prepare(indices)
        return FeatureBatch(self, indices, None, np.zeros((len(indices), 2), np.int64))

    def windows(self, batch: FeatureBatch, boxes: Sequence[Boxes]) -> FeatureBatch | None:
        """Return a window around each of some boxes in whole images, or ``None`` if windows are not cheaper.

        The logits of a box's pixels are the same in its window as in the whole image. All windows have the same size.
        """
        if self.reach is None or batch.window is not None:
            return None
        rows, height = self._extent(0, [(group.tops, group.size[0]) for group in boxes], self.reach)
        columns, width = self._extent(1, [(group.lefts, group.size[1]) for group in boxes], self.reach)
        whole = self.encoded_size[0] * self.encoded_size[1] // self.cell**2
        if len(rows) * height * width >= len(batch) * whole:
            return None
        images = tuple(batch.images[position] for group in boxes for position in group.images.tolist())
        return FeatureBatch(self, images, (height, width), np.stack([rows, columns], axis=1))

    def _extent(self, side: int, boxes: Sequence[tuple[IntArray, int]], reach: int) -> tuple[IntArray, int]:
        """Return where windows begin along one side, and how long they are, in cells."""
        cells = self.encoded_size[side] // self.cell
        firsts = [np.maximum(0, (starts - reach) // self.cell) for starts, _ in boxes]
        ends = [np.minimum(cells, -(-(starts + length + reach) // self.cell)) for starts, length in boxes]
        first, end = np.concatenate(firsts), np.concatenate(ends)
        size = int((end - first).max())
        # Windows end at the image's border, where the network pads them in the same way as the image.
        return np.minimum(first, cells - size), size

    def training_views(
        self,
        grid: RegionGrid,
        regions: Sequence[int] | IntArray,
        labels: Callable[[int], UInt8Array],
        crop_size: Size | None,
        rng: np.random.Generator,
    ) -> tuple[FeatureBatch, Tensor]:
        """Return a window around each region, or else whole images; see
        :meth:`~al_seg_env.learner.inputs.Inputs.training_views`.

        All labels except those of these regions are ignored. There are neither random crops nor flips: smaller crops
        save nothing here, and features of mirrored images would double the memory (docs/design/light_head.md).

        Args:
            grid, regions, labels: See :meth:`~al_seg_env.learner.inputs.Inputs.training_views`.
            crop_size: Not used.
            rng: Not used.

        Returns:
            The batch, and its targets ``(B, h, w)`` uint8 of the size of its images or windows, 255 where ignored.
        """
        boxes = [grid.box(region) for region in regions]
        images = list(dict.fromkeys(box.image for box in boxes))
        place = {image: position for position, image in enumerate(images)}
        batch = self.whole(images)
        windows = self.windows(batch, [_as_boxes(box, place[box.image]) for box in boxes])
        views = batch if windows is None else windows
        targets = np.full((len(views), *views.image_size), IGNORE_LABEL, np.uint8)
        known = {image: labels(image) for image in images}
        corners = views.corners.tolist()
        for number, box in enumerate(boxes):
            row = place[box.image] if windows is None else number
            top, left = corners[row]
            inside = box._replace(
                top=box.top - top, bottom=box.bottom - top, left=box.left - left, right=box.right - left
            )
            inside.crop(targets[row])[...] = box.crop(known[box.image])
        return views, torch.from_numpy(targets)

    def __getstate__(self) -> dict[str, Any]:
        """Omit what can be computed again."""
        return {**self.__dict__, "_stores": {}}


def _as_boxes(box: Box, position: int) -> Boxes:
    """Return a single box."""
    return Boxes(np.array([position]), np.array([box.top]), np.array([box.left]), box.size)
