"""The labelled set L_t and the unlabelled set U_t, which nothing else owns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, labels_out_of_range
from al_seg_env.labelling.request import COSTS, UNKNOWN
from al_seg_env.regions import RegionGrid
from al_seg_env.types import IntArray, UInt8Array


class LabelState:
    """The labelled set L_t, the unlabelled set U_t, and the pools drawn from U_t.

    The object is immutable: :meth:`with_labels` returns a new one, so a failed step has nothing to undo. Its size grows
    with L_t, not with U_t.

    Args:
        grid: The grid that defines the regions.
        images: Indices of the images whose regions may be requested (D_T or D_V).
        num_classes: C.
        outside: Ids of regions that consist of padding alone; they are never offered.

    Attributes:
        labelled: Region ids in the order in which they were labelled.
        labelled_at: The step at which each region was labelled, in the order of ``labelled``.
        class_counts: Labelled pixels per class of each labelled region, ``(|L|, C)`` int64.
        costs: The cost of each labelled region, in the order of :data:`~al_seg_env.labelling.request.COSTS`,
            ``(|L|, 3)`` float64; -1 where it is unknown.
    """

    def __init__(
        self,
        grid: RegionGrid,
        images: Sequence[int] | IntArray,
        num_classes: int,
        outside: Sequence[int] | IntArray = (),
    ) -> None:
        self.grid = grid
        self.num_classes = num_classes
        self._images = np.asarray(images, dtype=np.int64)
        self._by_number = np.argsort(self._images)
        self._sorted = self._images[self._by_number]
        self.labelled: list[int] = []
        self.labelled_at: list[int] = []
        self.class_counts: IntArray = np.zeros((0, num_classes), np.int64)
        self.costs: npt.NDArray[np.float64] = np.zeros((0, len(COSTS)))
        self._masks: dict[int, UInt8Array] = {}
        # Positions count all regions in the order of `images`. The positions of L and of `outside` are kept sorted.
        positions = self._positions(np.asarray(outside, np.int64))
        assert positions is not None
        self._taken: IntArray = np.unique(positions)

    def __len__(self) -> int:
        """Return the number of labelled regions, |L|."""
        return len(self.labelled)

    @property
    def unlabelled(self) -> IntArray:
        """Ids of the regions not labelled yet, in the order of the images, ``(|U|,)`` int64."""
        return np.delete(self.grid.regions_of(self._images), self._taken)

    @property
    def unlabelled_count(self) -> int:
        """|U|."""
        return len(self._images) * self.grid.regions_per_image - len(self._taken)

    def spent(self, unit: str) -> float:
        """Return the cost of all labels: their number for ``"regions"``, else the sum of a column of ``costs``."""
        return len(self) if unit == "regions" else float(self.costs[:, COSTS.index(unit)].sum())

    def has(self, regions: Sequence[int] | IntArray) -> bool:
        """Return whether all ids are those of regions of the images, labelled or not."""
        return self._positions(np.asarray(regions, np.int64)) is not None

    def with_labels(
        self, regions: Sequence[int], masks: Sequence[UInt8Array], step: int, costs: npt.ArrayLike | None = None
    ) -> LabelState:
        """Return the state after regions have moved from U to L with the oracle's masks.

        Args:
            regions: n different unlabelled region ids.
            masks: n arrays of the regions' sizes, uint8; 255 where no label was given.
            step: The step at which the regions were requested.
            costs: Costs of the regions, ``(n, 3)``; all unknown if omitted.

        Raises:
            ValueError: If a region is labelled, unknown, or named twice.
        """
        positions = self._positions(np.asarray(regions, np.int64))
        if positions is None or len(np.unique(positions)) != len(positions) or np.isin(positions, self._taken).any():
            raise ValueError(
                f"regions is {list(regions)}; expected different ids of unlabelled regions of these images"
            )
        after = copy.copy(self)
        after.labelled = [*self.labelled, *(int(region) for region in regions)]
        after.labelled_at = [*self.labelled_at, *[step] * len(regions)]
        costs = np.full((len(regions), len(COSTS)), UNKNOWN) if costs is None else np.asarray(costs, np.float64)
        after.costs = np.concatenate([self.costs, costs.reshape(-1, len(COSTS))])
        after._taken = np.sort(np.concatenate([self._taken, positions]))
        counts = [np.bincount(mask.reshape(-1), minlength=256)[: self.num_classes] for mask in masks]
        after.class_counts = np.concatenate([self.class_counts, *(row[None] for row in counts)]).astype(np.int64)
        after._masks = dict(self._masks)
        for image in {self.grid.box(region).image for region in regions}:
            after._masks[image] = self.mask(image).copy()
        for box, mask in zip(map(self.grid.box, regions), masks, strict=True):
            box.crop(after._masks[box.image])[...] = mask
        return after

    def state_dict(self) -> dict[str, Any]:
        """Return the ids, steps, costs and concatenated masks of the labelled regions, in their order."""
        boxes = [self.grid.box(region) for region in self.labelled]
        return {
            "regions": np.array(self.labelled, np.int64),
            "steps": np.array(self.labelled_at, np.int64),
            "masks": flat_masks([box.crop(self.mask(box.image)) for box in boxes]),
            "costs": self.costs,
        }

    def restored(self, state: Mapping[str, Any]) -> LabelState:
        """Return the state of the same images that :meth:`state_dict` described.

        Raises:
            ValueError: If ``state`` is malformed, or of other images.
        """
        regions, steps = state["regions"].tolist(), state["steps"].tolist()
        if not self.has(state["regions"]) or len(set(regions)) != len(regions) or len(regions) != len(steps):
            raise ValueError("the state's labels are of regions that these images do not have, or of one region twice")
        masks = split_masks(self.grid, regions, state["masks"])
        if wrong := labels_out_of_range(state["masks"], self.num_classes):
            raise ValueError(f"the state's labels {wrong} are not classes; use 0 to {self.num_classes - 1}, or 255")
        costs = state.get("costs")  # states of earlier versions have none
        if costs is not None and (costs.shape != (len(regions), len(COSTS)) or not np.isfinite(costs).all()):
            raise ValueError(f"the state's costs are {costs.shape}; expected {len(regions)} rows of {COSTS}")
        if len(self):
            raise ValueError("labels can only be restored into a state without any")
        restored = self.with_labels(regions, masks, 0, costs)
        restored.labelled_at = steps
        return restored

    def mask(self, image: int) -> UInt8Array:
        """Return the known labels of an image, ``(H, W)`` uint8, 255 elsewhere. Do not write to the array."""
        known = self._masks.get(image)
        return np.full(self.grid.image_size, IGNORE_LABEL, dtype=np.uint8) if known is None else known

    def mask_of(self, regions: Sequence[int]) -> Callable[[int], UInt8Array]:
        """Return a function like :meth:`mask` for the images of these regions, which has only these regions' labels."""
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

        If fewer than ``count * size`` regions are left, all of them are distributed evenly over smaller pools. The last
        pools are empty if there are fewer regions than pools.

        Args:
            rng: Source of randomness.
            count: K, the number of pools.
            size: N, regions per pool.
            max_images: Draw from only this many random images, or more if these have too few regions.

        Returns:
            K arrays of at most N region ids.
        """
        wanted = min(count * size, self.unlabelled_count)
        if max_images is None:
            drawn = self._free(rng.choice(self.unlabelled_count, size=wanted, replace=False))
        else:
            drawn = rng.choice(self._of_few_images(rng, max_images, wanted), size=wanted, replace=False)
        images, cells = np.divmod(drawn, self.grid.regions_per_image)
        return np.array_split(self._images[images] * self.grid.regions_per_image + cells, count)

    def _positions(self, regions: IntArray) -> IntArray | None:
        """Return the positions of regions; ``None`` if a region belongs to another image."""
        images, cells = np.divmod(regions.reshape(-1), self.grid.regions_per_image)
        if not len(images):
            return np.zeros(0, np.int64)
        if not len(self._images):
            return None
        where = np.searchsorted(self._sorted, images).clip(max=len(self._sorted) - 1)
        if not np.array_equal(self._sorted[where], images):
            return None
        return self._by_number[where] * self.grid.regions_per_image + cells

    def _free(self, ranks: IntArray) -> IntArray:
        """Return the positions of the unlabelled regions with these ranks, without listing all of U."""
        # There are t_j - j free positions before the j-th taken position t_j.
        return ranks + np.searchsorted(self._taken - np.arange(len(self._taken)), ranks, side="right")

    def _of_few_images(self, rng: np.random.Generator, max_images: int, wanted: int) -> IntArray:
        """Return the positions of the unlabelled regions of a few random images."""
        per_image = self.grid.regions_per_image
        left = np.full(len(self._images), per_image) - np.bincount(
            self._taken // per_image, minlength=len(self._images)
        )
        open_images = self._by_number[left[self._by_number] > 0]
        order = rng.permutation(len(open_images))
        enough = int(np.searchsorted(np.cumsum(left[open_images[order]]), wanted)) + 1
        kept = np.sort(open_images[order[: max(max_images, enough)]])
        positions = (kept[:, None] * per_image + np.arange(per_image)).reshape(-1)
        return positions[~np.isin(positions, self._taken)]


def flat_masks(masks: Sequence[UInt8Array]) -> UInt8Array:
    """Return the concatenated pixels of masks, uint8."""
    return np.concatenate([np.zeros(0, np.uint8), *(mask.reshape(-1) for mask in masks)])


def split_masks(grid: RegionGrid, regions: Sequence[int], pixels: UInt8Array) -> list[UInt8Array]:
    """Return the masks that :func:`flat_masks` concatenated, one for each region.

    Raises:
        ValueError: If there are more or fewer pixels than the regions have.
    """
    sizes = [grid.box(region).size for region in regions]
    ends = np.cumsum([height * width for height, width in sizes], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (ends[-1] if len(ends) else 0,):
        raise ValueError(
            f"the state's masks are {pixels.dtype} {pixels.shape}; expected uint8, one per pixel of {list(regions)}"
        )
    return [part.reshape(size).copy() for part, size in zip(np.split(pixels, ends[:-1]), sizes, strict=False)]
