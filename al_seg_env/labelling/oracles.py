"""Who answers a request for labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import SegmentationData, check_labels
from al_seg_env.regions import Box, RegionGrid
from al_seg_env.storage import replacing
from al_seg_env.types import UInt8Array


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
        folder: Where each answer is stored as soon as it is given, and read again by another process. Left out,
            answers last as long as this object.

    Attributes:
        answers: Every valid answer so far. They outlive episodes and a question that fails.
    """

    def __init__(
        self,
        data: SegmentationData,
        answer: Callable[[str, Box, UInt8Array], UInt8Array],
        folder: str | Path | None = None,
    ) -> None:
        self.data = data
        self.answer = answer
        self.folder = None if folder is None else Path(folder)
        self.answers: dict[Box, UInt8Array] = {}

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Ask for the regions one after another, but for those whose answer is known.

        Raises:
            ValueError: If an answer, or a stored one, is malformed; the ones before it are kept.
        """
        for box in boxes:
            if box not in self.answers:
                self.answers[box] = self._stored(box)
        return [self.answers[box] for box in boxes]

    def _stored(self, box: Box) -> UInt8Array:
        path = None if self.folder is None else self.folder / file_name(self.data, box)
        if path is not None and path.exists():
            return _read_mask(path, box, len(self.data.classes))
        name, image = self.data.names[box.image], self.data.image(box.image)
        mask = self.answer(name, box, image[box.top : box.bottom, box.left : box.right])
        # A copy: the function may use its array again.
        mask = _checked(mask, box, len(self.data.classes), f"the answer for {box} of {name!r}").copy()
        if path is not None:
            _write_png(path, mask)
        return mask


class LabelsPending(RuntimeError):
    """Labels are asked for and not there yet. Nothing is lost: make the same step again when they are.

    Attributes:
        missing: The files that are waited for.
    """

    def __init__(self, missing: Sequence[Path], requests: Path) -> None:
        super().__init__(
            f"{len(missing)} regions wait for their labels: put a mask for each picture in {requests} under the same "
            f"name into {missing[0].parent}, beginning with {missing[0].name}; then make the same step again, in this "
            "process or, from a saved state, in another"
        )
        self.missing = list(missing)


class FolderOracle:
    """Exports the regions asked for as pictures, and reads their masks when people have put them into a folder.

    The pictures are in ``folder/requests``. A mask is a PNG of one channel with the number of a class per
    pixel, 255 where it is left unlabelled, under the picture's name in ``folder/answers``.

    Args:
        data: The images.
        folder: Where requests and answers are.
    """

    def __init__(self, data: SegmentationData, folder: str | Path) -> None:
        self.data = data
        self.requests, self.answers = Path(folder) / "requests", Path(folder) / "answers"

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Return the masks of the regions, if all are there.

        Raises:
            LabelsPending: If some are not; their pictures are exported then.
            ValueError: If a mask is malformed.
        """
        missing = [box for box in boxes if not (self.answers / file_name(self.data, box)).exists()]
        for box in missing:
            request = self.requests / file_name(self.data, box)
            if not request.exists():
                _write_png(request, self.data.image(box.image)[box.top : box.bottom, box.left : box.right])
        if missing:
            self.answers.mkdir(parents=True, exist_ok=True)
            raise LabelsPending([self.answers / file_name(self.data, box) for box in missing], self.requests)
        classes = len(self.data.classes)
        return [_read_mask(self.answers / file_name(self.data, box), box, classes) for box in boxes]


def file_name(data: SegmentationData, box: Box) -> str:
    """Return the file name of a region, whatever its image's name holds."""
    name = quote(data.names[box.image], safe=" ").replace(".", "%2E")
    return f"{name}_{box.top}_{box.left}_{box.size[0]}x{box.size[1]}.png"


def _write_png(path: Path, array: UInt8Array) -> None:
    with replacing(path) as unfinished:
        Image.fromarray(array).save(unfinished, format="png")


def _read_mask(path: Path, box: Box, num_classes: int) -> UInt8Array:
    try:
        with Image.open(path) as image:
            lossless = image.mode in ("L", "P") and image.format == "PNG"
            mode, mask = f"{image.format} of mode {image.mode}", np.array(image)
    except Exception as error:  # decoders raise all sorts
        raise ValueError(f"mask {path} can't be read ({type(error).__name__}: {error}); write it again") from error
    if not lossless:
        raise ValueError(f"mask {path} is a {mode}; expected a PNG with one channel of class numbers (mode L or P)")
    return _checked(mask, box, num_classes, f"mask {path}")


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
