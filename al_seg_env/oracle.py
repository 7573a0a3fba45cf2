"""Who answers a request for labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from al_seg_env.datasets.base import SegmentationData, UInt8Array
from al_seg_env.frames import Frames, check_labels
from al_seg_env.regions import Box, RegionGrid


class Oracle(Protocol):
    """Answers requests for labels: a person, a file, or the truth."""

    def label(self, boxes: Sequence[Box]) -> Sequence[UInt8Array]:
        """Return one mask per region, uint8 of its size, 255 where a pixel is left unlabelled."""
        ...


class GroundTruthOracle:
    """Reveals the data set's own masks, as the paper's experiments do (section 4.1)."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Return the true masks of the regions."""
        return [box.crop(self.frames.mask(box.image)) for box in boxes]


class CallbackOracle:
    """Asks a function, so that a labelling tool or a person can answer. No region is asked for twice.

    Args:
        data: The images.
        answer: Called with the name of an image, the region's :class:`Box` and its pixels ``(h, w, 3)`` uint8;
            returns the mask ``(h, w)`` uint8, 255 where a pixel is left unlabelled.

    Attributes:
        answers: Every valid answer so far. They outlive episodes and a question that fails; to go on in another
            process, store them and put them back.
    """

    def __init__(self, data: SegmentationData, answer: Callable[[str, Box, UInt8Array], UInt8Array]) -> None:
        self.data = data
        self.answer = answer
        self.answers: dict[Box, UInt8Array] = {}

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Ask for the regions one after another, but for those whose answer is known.

        Raises:
            ValueError: If an answer is malformed; the ones before it are kept.
        """
        for box in boxes:
            if box not in self.answers:
                image = self.data.image(box.image)
                name = self.data.names[box.image]
                mask = self.answer(name, box, image[box.top : box.bottom, box.left : box.right])
                self.answers[box] = _checked(mask, box, len(self.data.classes), f"the answer for {box} of {name!r}")
        return [self.answers[box] for box in boxes]


def ask(oracle: Oracle, grid: RegionGrid, regions: Sequence[int], num_classes: int) -> list[UInt8Array]:
    """Ask an oracle and check its answer before anything is changed.

    Raises:
        ValueError: If the number, a shape, a dtype or a label of the answer is wrong.
    """
    boxes = [grid.box(region) for region in regions]
    labelled = oracle.label(boxes)
    if not isinstance(labelled, Iterable):
        raise ValueError(f"the oracle returned {type(labelled).__name__}; expected a list of {len(boxes)} masks")
    answer = list(labelled)
    if len(answer) != len(boxes):
        raise ValueError(f"the oracle was asked for {len(boxes)} regions and returned {len(answer)} masks")
    return [
        _checked(mask, box, num_classes, f"the oracle's mask of region {region} (image {box.image})")
        for region, box, mask in zip(regions, boxes, answer, strict=True)
    ]


def _checked(mask: Any, box: Box, num_classes: int, where: str) -> UInt8Array:
    """Return a mask as an array, or say what is wrong with it."""
    mask = np.asarray(mask)
    if mask.shape != box.size or mask.dtype != np.uint8:
        raise ValueError(f"{where}: expected uint8 {box.size}, found {mask.dtype} {mask.shape}")
    check_labels(mask, num_classes, where)
    return mask
