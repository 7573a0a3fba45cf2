"""What a learner is given of images. The environment passes it on and never looks inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.training_crops import training_crops
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, Size, UInt8Array


class Batch(Protocol):
    """B images, or views of them, in the form that a learner takes: pixels ``(B, 3, H, W)`` uint8, or features."""

    def __len__(self) -> int:
        """Return B."""
        ...


class Inputs(Protocol):
    """Makes a learner's batches of the images of a data set."""

    def prepare(self, images: Sequence[int]) -> None:
        """Make ready what will be needed of these images, where that takes long."""

    def blank(self) -> Any:
        """Return a :class:`Batch` of one image with nothing on it, to try a learner with."""

    def whole(self, images: Sequence[int]) -> Any:
        """Return a :class:`Batch` of whole images, in their order."""

    def training_views(
        self,
        grid: RegionGrid,
        regions: Sequence[int] | IntArray,
        labels: Callable[[int], UInt8Array],
        crop_size: Size | None,
        rng: np.random.Generator,
    ) -> tuple[Any, Tensor]:
        """Return a :class:`Batch` to train on that shows these regions, and its targets ``(B, h, w)`` uint8.

        Args:
            grid: The grid that defines the regions.
            regions: Their ids.
            labels: Returns the known labels of an image, ``(H, W)`` uint8, 255 elsewhere.
            crop_size: ``(height, width)`` of a crop; ``None`` for whole images.
            rng: Source of randomness.
        """


class PixelInputs:
    """Pixels, for a learner that runs its whole network on them.

    Args:
        frames: The images.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def prepare(self, images: Sequence[int]) -> None:
        """Do nothing: an image is decoded when it is first needed."""

    def blank(self) -> Tensor:
        """Return a black image, ``(1, 3, H, W)`` uint8."""
        return torch.zeros(1, 3, *self.frames.data.image_size, dtype=torch.uint8)

    def whole(self, images: Sequence[int]) -> Tensor:
        """Return images, ``(B, 3, H, W)`` uint8."""
        return self.frames.images(images)

    def training_views(
        self,
        grid: RegionGrid,
        regions: Sequence[int] | IntArray,
        labels: Callable[[int], UInt8Array],
        crop_size: Size | None,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return a randomly placed, randomly flipped crop around each region; see :func:`training_crops`."""
        return training_crops(self.frames, grid, regions, labels, crop_size, rng)


def inputs_of(learner: Any, frames: Frames) -> Inputs:
    """Return what a learner wants of these images: what its ``inputs(frames)`` returns, or pixels if it has none."""
    make = getattr(learner, "inputs", None)
    return PixelInputs(frames) if make is None else make(frames)


def labelled_batches(inputs: Inputs, frames: Frames, images: Sequence[int], size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield batches of at most ``size`` whole images, and their masks ``(B, H, W)`` uint8."""
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        yield inputs.whole(chunk), frames.masks(chunk)
