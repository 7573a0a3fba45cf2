"""Data whose masks are completed by people's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from al_seg_env.datasets.originals import Original, original_of, whole
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, labelled_images, palette_of
from al_seg_env.labelling.label_folder import LabelFolder
from al_seg_env.types import UInt8Array


class AnsweredData:
    """Images whose masks show people's answers so far on top of earlier labels, as a ``SegmentationData``.

    With it, the first answers can become D_R, or all answers can become a data set to train on.

    Args:
        data: The images.
        labels: The answers. Answers that are added later are not seen.
        images: Indices of the images whose answers are used; all if omitted.
    """

    def __init__(self, data: SegmentationData, labels: LabelFolder, images: Sequence[int] | None = None) -> None:
        self.data, self.labels = data, labels
        self.classes, self.names, self.palette = tuple(data.classes), tuple(data.names), palette_of(data)
        self.image_size = (int(data.image_size[0]), int(data.image_size[1]))
        self.partitions = getattr(data, "partitions", {})
        counted = None if images is None else set(images)
        self._answered: dict[int, list[tuple[Any, UInt8Array]]] = {}
        for region in labels.regions():
            if counted is None or region.image in counted:
                self._answered.setdefault(region.image, []).append((region, labels.read(region).mask))
        answered = [
            image for image, found in self._answered.items() if any((mask != IGNORE_LABEL).any() for _, mask in found)
        ]
        self.labelled = tuple(sorted({*labelled_images(data), *answered}))

    @property
    def answered(self) -> tuple[int, ...]:
        """Indices of the images with at least one answered region."""
        return tuple(sorted(self._answered))

    def image(self, index: int) -> UInt8Array:
        """Return image ``index``, ``(H, W, 3)`` uint8 RGB."""
        return self.data.image(index)

    def mask(self, index: int) -> UInt8Array:
        """Return the labels of image ``index``, ``(H, W)`` uint8."""
        if index not in self._answered:
            return self.data.mask(index)
        original = original_of(self.data, index)
        shown = original.to_network(self.full_mask(index), whole(original.inside))
        mask = np.full(self.image_size, IGNORE_LABEL, np.uint8)
        mask[: shown.shape[0], : shown.shape[1]] = shown
        return mask

    def full_mask(self, index: int) -> UInt8Array:
        """Return the labels of image ``index`` at the size of its original, ``(h, w)`` uint8."""
        original, known = original_of(self.data, index), getattr(self.data, "full_mask", None)
        if known is not None:
            mask = np.array(known(index))
        else:
            mask = original.to_original(self.data.mask(index), whole(original.inside, index))
        for region, labels in self._answered.get(index, ()):
            shown = region.crop(mask)
            shown[...] = np.where(labels == IGNORE_LABEL, shown, labels)
        return mask

    def original(self, index: int) -> Original:
        """Return the original of image ``index``."""
        return original_of(self.data, index)
