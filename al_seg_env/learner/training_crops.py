"""The crops that the segmentation network trains on (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, Size, UInt8Array


def training_crops(
    frames: Frames,
    grid: RegionGrid,
    regions: Sequence[int] | IntArray,
    labels: Callable[[int], UInt8Array],
    crop_size: Size | None,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Cut one randomly placed, randomly flipped crop around each region (section 4.1).

    A crop contains its region, or lies within it if the region is larger.

    Args:
        frames: The images.
        grid: The grid that defines the regions.
        regions: n region ids.
        labels: Returns the known labels of an image, ``(H, W)`` uint8, 255 elsewhere.
        crop_size: ``(height, width)`` in pixels, limited to the image's size; ``None`` for whole images.
        rng: Source of randomness.

    Returns:
        Images ``(n, 3, h, w)`` and targets ``(n, h, w)``, both uint8.
    """
    height, width = grid.image_size
    crop_height, crop_width = (
        (height, width) if crop_size is None else (min(crop_size[0], height), min(crop_size[1], width))
    )
    images, targets = [], []
    for region in regions:
        box = grid.box(region)
        top = _crop_start(box.top, box.bottom, crop_height, height, rng)
        left = _crop_start(box.left, box.right, crop_width, width, rng)
        window = slice(top, top + crop_height), slice(left, left + crop_width)
        image = frames.image(box.image)[window]
        target = torch.from_numpy(labels(box.image)[window])
        if rng.random() < 0.5:
            image, target = image.flip(1), target.flip(1)
        images.append(image)
        targets.append(target)
    return torch.stack(images).permute(0, 3, 1, 2), torch.stack(targets)


def _crop_start(start: int, end: int, crop: int, side: int, rng: np.random.Generator) -> int:
    """Draw the start of a crop along one axis, so that it contains ``[start, end)`` or lies within it."""
    if end - start <= crop:
        low, high = max(0, end - crop), min(start, side - crop)
    else:
        low, high = start, end - crop
    return int(rng.integers(low, high + 1))
