"""What is labelled, and what is not: the sole owner of L_t and U_t."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, labels_out_of_range
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, UInt8Array


class LabelState:
    """The labelled set L_t, the unlabelled set U_t, and the pools drawn from the latter.

    Args:
        grid: The grid that defines the regions.
        images: Indices of the images whose regions may be asked for (D_T or D_V).
        num_classes: C.

    Attributes:
        labelled: Region ids in the order in which they were labelled.
        labelled_at: The step at which each was labelled, beside ``labelled``.
    """

    def __init__(self, grid: RegionGrid, images: Sequence[int], num_classes: int) -> None:
        self.grid = grid
        self.num_classes = num_classes
        self._all = grid.regions_of(images)
        self.clear()

    def clear(self) -> None:
        """Forget all labels: L = {}, U = all regions."""
        self.labelled: list[int] = []
        self.labelled_at: list[int] = []
        self._counts: list[IntArray] = []
        self._masks: dict[int, UInt8Array] = {}
        self._unlabelled = np.ones(len(self._all), dtype=bool)

    @property
    def all_regions(self) -> IntArray:
        """Ids of all regions, labelled or not, int64."""
        return self._all

    def __len__(self) -> int:
        """Return the number of labelled regions, |L|."""
        return len(self.labelled)

    @property
    def unlabelled(self) -> IntArray:
        """Ids of the regions not labelled yet, ascending, ``(|U|,)`` int64."""
        return self._all[self._unlabelled]

    @property
    def class_counts(self) -> IntArray:
        """Pixels per class of each labelled region by its labels, ``(|L|, C)`` int64."""
        return np.asarray(self._counts, dtype=np.int64).reshape(-1, self.num_classes)

    def add(self, regions: Sequence[int], masks: Sequence[UInt8Array], step: int) -> IntArray:
        """Move regions from U to L with the masks that the oracle gave.

        Args:
            regions: n different unlabelled region ids.
            masks: n arrays of the regions' sizes, uint8; 255 where no label was given.
            step: The step at which they were asked for.

        Returns:
            Pixels per class of what was added, ``(C,)`` int64.
        """
        positions = np.flatnonzero(np.isin(self._all, regions) & self._unlabelled)
        if len(positions) != len(regions):
            raise ValueError(f"regions {list(regions)}: each must be unlabelled and asked for once")
        self._unlabelled[positions] = False
        for region, mask in zip(regions, masks, strict=True):
            box = self.grid.box(region)
            box.crop(self.mask(box.image))[...] = mask
            self._counts.append(np.bincount(mask.reshape(-1), minlength=256)[: self.num_classes])
        self.labelled.extend(int(r) for r in regions)
        self.labelled_at.extend([step] * len(regions))
        return np.sum(self._counts[len(self._counts) - len(regions) :], axis=0, dtype=np.int64)

    def take_back(self, count: int) -> None:
        """Move the ``count`` regions that were labelled last back from L to U."""
        if not count:
            return
        regions = self.labelled[-count:]
        self._unlabelled[np.isin(self._all, regions)] = True
        for box in map(self.grid.box, regions):
            box.crop(self.mask(box.image))[...] = IGNORE_LABEL
        del self.labelled[-count:], self.labelled_at[-count:], self._counts[-count:]

    def state_dict(self) -> dict[str, Any]:
        """Return the labelled regions in their order: ids, steps, and their masks one after another."""
        boxes = [self.grid.box(region) for region in self.labelled]
        return {
            "regions": np.array(self.labelled, np.int64),
            "steps": np.array(self.labelled_at, np.int64),
            "masks": flat_masks([box.crop(self.mask(box.image)) for box in boxes]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is malformed, or of other images; nothing has changed then.
        """
        regions, steps = state["regions"].tolist(), state["steps"].tolist()
        if not np.isin(regions, self._all).all() or len(set(regions)) != len(regions) or len(regions) != len(steps):
            raise ValueError("the state's labels are of regions that these images do not have, or of one region twice")
        masks = split_masks(self.grid, regions, state["masks"])
        wrong = labels_out_of_range(state["masks"], self.num_classes)
        if wrong:
            raise ValueError(f"the state's labels {wrong} are no classes; expected 0 to {self.num_classes - 1}, or 255")
        self.clear()
        for region, mask, step in zip(regions, masks, steps, strict=True):
            self.add([region], [mask], step)

    def mask(self, image: int) -> UInt8Array:
        """Return the labels known of an image, ``(H, W)`` uint8, 255 elsewhere. A view; do not write to it."""
        if image not in self._masks:
            self._masks[image] = np.full(self.grid.image_size, IGNORE_LABEL, dtype=np.uint8)
        return self._masks[image]

    def mask_of(self, regions: Sequence[int]) -> Callable[[int], UInt8Array]:
        """Return a function like :meth:`mask` for the images of these regions that knows their labels only."""
        shown: dict[int, UInt8Array] = {}
        for box in map(self.grid.box, regions):
            if box.image not in shown:
                shown[box.image] = np.full(self.grid.image_size, IGNORE_LABEL, dtype=np.uint8)
            box.crop(shown[box.image])[...] = box.crop(self.mask(box.image))
        return shown.__getitem__

    def draw_pools(
        self, rng: np.random.Generator, count: int, size: int, max_images: int | None = None
    ) -> list[IntArray]:
        """Draw disjoint pools, uniformly without replacement from U_t (section 3.1, step 2).

        Where fewer than ``count * size`` regions are left, all of them are dealt evenly: the pools shrink, and
        the last ones are empty when there are fewer regions than pools.

        Args:
            rng: Source of randomness.
            count: K, the number of pools.
            size: N, regions per pool.
            max_images: Draw from this many random images only, more where they do not hold enough regions.

        Returns:
            K arrays of at most N region ids.
        """
        available = self.unlabelled
        wanted = min(count * size, len(available))
        if max_images is not None:
            available = self._of_few_images(rng, available, max_images, wanted)
        drawn = rng.choice(available, size=wanted, replace=False)
        return np.array_split(drawn, count)

    def _of_few_images(self, rng: np.random.Generator, available: IntArray, max_images: int, wanted: int) -> IntArray:
        images, regions_left = np.unique(self.grid.image_of(available), return_counts=True)
        order = rng.permutation(len(images))
        enough = int(np.searchsorted(np.cumsum(regions_left[order]), wanted)) + 1
        kept = images[order[: max(max_images, enough)]]
        return available[np.isin(self.grid.image_of(available), kept)]


def flat_masks(masks: Sequence[UInt8Array]) -> UInt8Array:
    """Return the pixels of masks one after another, uint8."""
    return np.concatenate([np.zeros(0, np.uint8), *(mask.reshape(-1) for mask in masks)])


def split_masks(grid: RegionGrid, regions: Sequence[int], pixels: UInt8Array) -> list[UInt8Array]:
    """Return the masks that :func:`flat_masks` joined, one for each region.

    Raises:
        ValueError: If there are more or fewer pixels than the regions have.
    """
    sizes = [grid.box(region).size for region in regions]
    ends = np.cumsum([height * width for height, width in sizes], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (ends[-1] if len(ends) else 0,):
        raise ValueError(
            f"the state's masks are {pixels.dtype} {pixels.shape}, but regions {list(regions)} need others"
        )
    return [part.reshape(size).copy() for part, size in zip(np.split(pixels, ends[:-1]), sizes, strict=False)]
