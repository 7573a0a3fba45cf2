"""The inputs of a learner, which the environment passes on without looking inside."""

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
    """B images, or parts of images, in the form that a learner takes: pixels ``(B, 3, H, W)`` uint8, or features."""

    def __len__(self) -> int:
        """Return B."""
        ...


class Inputs(Protocol):
    """Makes a learner's batches from the images of a data set."""

    def prepare(self, images: Sequence[int]) -> None:
        """Do time-consuming work on these images, such as encoding, before they are used."""

    def blank(self) -> Any:
        """Return a :class:`Batch` of one blank image, to try a learner with."""

    def whole(self, images: Sequence[int]) -> Any:
        """Return a :class:`Batch` of these images in their order, as a whole."""

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
            regions: Ids of the regions.
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
        """Do nothing, since images are decoded when they are first needed."""

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
    """Return a learner's inputs for these images: the result of its ``inputs(frames)``, or pixels if it has none."""
    make = getattr(learner, "inputs", None)
    return PixelInputs(frames) if make is None else make(frames)


def labelled_batches(inputs: Inputs, frames: Frames, images: Sequence[int], size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield batches of at most ``size`` whole images with their masks ``(B, H, W)`` uint8."""
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        yield inputs.whole(chunk), frames.masks(chunk)
