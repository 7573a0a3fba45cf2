"""Replay of images that were labelled before an episode began, to train on together with new labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from al_seg_env.datasets.frames import Frames
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, UInt8Array


class Replay:
    """Adds regions of images that were labelled before the episode to other regions.

    Args:
        frames: The images and their true masks.
        grid: The grid of regions.
        images: Indices of the images that were labelled before.
    """

    def __init__(self, frames: Frames, grid: RegionGrid, images: Sequence[int]) -> None:
        self._frames, self._images = frames, frozenset(int(image) for image in images)
        self._regions = grid.regions_of(sorted(self._images))

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self._regions)

    def mixed(
        self, regions: IntArray, labels: Callable[[int], UInt8Array], share: float, rng: np.random.Generator
    ) -> tuple[IntArray, Callable[[int], UInt8Array]]:
        """Return regions joined with random ones of these images, and a function that returns the labels of an image.

        Args:
            regions: Ids of other images' regions, ``(n,)``.
            labels: Returns the labels of the other images.
            share: Share of these images' regions in the result, below 1. At least one is added, unless it is 0.
            rng: Source of randomness.
        """
        if not share:
            return regions, labels
        count = min(len(self._regions), max(1, round(len(regions) * share / (1 - share))))
        added = rng.choice(self._regions, count, replace=False)
        return np.concatenate(
            [regions, added]
        ), lambda image: self._frames.mask(image) if image in self._images else labels(image)
