"""Who answers a request for labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, check_labels
from al_seg_env.regions import Box, RegionGrid
from al_seg_env.storage import open_image, read_json, write_json, write_png
from al_seg_env.types import UInt8Array

MANIFEST = "manifest.json"
MANIFEST_FORMAT, MANIFEST_VERSION = "al-seg-env labels", 1
MAX_NAME_BYTES = 180
"""Of an image's name within a file name: with the box and a temporary suffix it stays below the usual limit of 255."""


class Oracle(Protocol):
    """Answers requests for labels: a person, a file, or the truth."""

    def label(self, boxes: Sequence[Box]) -> Sequence[UInt8Array]:
        """Return one mask per region, uint8 of its size, 255 where a pixel is left unlabelled."""
        ...


class GroundTruthOracle:
    """Reveals the data set's own masks, as the paper's experiments do (section 4.1).

    It warns once of images whose masks hold no label where one is requested: such a region costs its share of the
    budget and teaches nothing.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self._warned = False

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Return the true masks of the regions."""
        masks = [box.crop(self.frames.mask(box.image)) for box in boxes]
        empty = [box.image for box, mask in zip(boxes, masks, strict=True) if (mask == IGNORE_LABEL).all()]
        blank = sorted({self.frames.data.names[i] for i in empty if (self.frames.mask(i) == IGNORE_LABEL).all()})
        if blank and not self._warned:
            self._warned = True
            warnings.warn(
                f"the masks of {', '.join(map(repr, blank[:5]))}{', ...' if len(blank) > 5 else ''} hold no label at "
                "all, so their regions spend budget and teach nothing; give these images masks, or leave them out of "
                "the split that is acquired from",
                RuntimeWarning,
                stacklevel=2,
            )
        return masks


class CallbackOracle:
    """Asks a function, so that a labelling tool or a person can answer. No region is requested twice.

    Args:
        data: The images.
        answer: Called with the name of an image, the region's :class:`Box` and its pixels ``(h, w, 3)`` uint8;
            returns the mask ``(h, w)`` uint8, 255 where a pixel is left unlabelled.
        folder: Where each answer is stored as soon as it is given, and read again by another process. If omitted,
            answers last as long as this object.

    Attributes:
        answers: Every valid answer so far. They outlive episodes and a question that fails.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(
        self,
        data: SegmentationData,
        answer: Callable[[str, Box, UInt8Array], UInt8Array],
        folder: str | Path | None = None,
    ) -> None:
        self.data = data
        self.answer = answer
        self.labels = None if folder is None else LabelFolder(folder, data)
        self.answers: dict[Box, UInt8Array] = {}

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Ask for the regions one after another, except for those whose answer is known.

        Raises:
            ValueError: If an answer, or a stored one, is malformed; the ones before it are kept.
        """
        for box in boxes:
            if box not in self.answers:
                self.answers[box] = self._stored(box)
        return [self.answers[box] for box in boxes]

    def _stored(self, box: Box) -> UInt8Array:
        if self.labels is not None and self.labels.has(box):
            return self.labels.read(box)
        name, image = self.data.names[box.image], self.data.image(box.image)
        mask = self.answer(name, box, image[box.top : box.bottom, box.left : box.right])
        # A copy: the function may use its array again.
        mask = _checked(mask, box, len(self.data.classes), f"the answer for {box} of {name!r}").copy()
        if self.labels is not None:
            self.labels.write(box, mask)
        return mask


class LabelsPending(RuntimeError):
    """Labels are requested and not there yet. Nothing is lost: make the same step again when they are.

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
    """Exports the requested regions as pictures, and reads their masks when people have put them into a folder.

    The pictures are in ``folder/requests``. A mask is a PNG of one channel with the number of a class per
    pixel, 255 where it is left unlabelled, under the picture's name in ``folder/answers``.

    Args:
        data: The images.
        folder: Where requests and answers are.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(self, data: SegmentationData, folder: str | Path) -> None:
        self.data = data
        self.requests = Path(folder) / "requests"
        self.labels = LabelFolder(Path(folder) / "answers", data, manifest=Path(folder) / MANIFEST)

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Return the masks of the regions, if all are there.

        Raises:
            LabelsPending: If some are not; their pictures are exported then.
            ValueError: If a mask is malformed.
        """
        missing = [box for box in boxes if not self.labels.has(box)]
        for box in missing:
            request = self.requests / file_name(self.data, box)
            if not request.exists():
                write_png(request, self.data.image(box.image)[box.top : box.bottom, box.left : box.right])
        if missing:
            self.labels.bind(missing)
            raise LabelsPending([self.labels.path(box) for box in missing], self.requests)
        return [self.labels.read(box) for box in boxes]


class LabelFolder:
    """Masks of regions in a folder, bound by a manifest to the images, their size and the classes that they are of.

    The same file name means another part of the scene where images have another size, and the same number another
    class where the list of classes differs. Images are told apart by their pixels. Images may join the data.

    Args:
        folder: Where the masks are.
        data: What they are of.
        manifest: Its file; in the folder itself, if omitted.

    Raises:
        ValueError: If the manifest is of other sizes or classes, or can't be read.
    """

    def __init__(self, folder: str | Path, data: SegmentationData, manifest: Path | None = None) -> None:
        self.folder, self.data = Path(folder), data
        self.manifest = self.folder / MANIFEST if manifest is None else manifest
        self._images: dict[str, str] = {}  # digests of the pixels, by name, as the manifest has them
        self._seen: dict[str, str] = {}  # the same of these data
        if self.manifest.exists():
            self._images = self._read_manifest()
        elif self.folder.is_dir() and any(self.folder.glob("*.png")):
            warnings.warn(
                f"{self.folder} holds masks but no {MANIFEST}, which would say what they are of; they are taken to be "
                "of these data",
                RuntimeWarning,
                stacklevel=3,
            )

    def path(self, box: Box) -> Path:
        """Return the file of a region's mask."""
        return self.folder / file_name(self.data, box)

    def has(self, box: Box) -> bool:
        """Return whether there is a file for a region's mask."""
        return self.path(box).exists()

    def bind(self, boxes: Sequence[Box]) -> None:
        """Make the folder, and note in its manifest what these regions' images look like.

        Raises:
            ValueError: If the masks in the folder are of other pixels under the same name.
        """
        found = {self.data.names[image]: self._pixels(image) for image in {box.image for box in boxes}}
        for name, digest in found.items():
            if self._images.get(name, digest) != digest:
                raise ValueError(
                    f"{self.manifest.parent} holds labels of another image of the name {name!r}: its pixels were "
                    "different when they were requested. Restore that image, or choose another folder"
                )
        if not self.manifest.exists() or not found.keys() <= self._images.keys():
            self._images |= found
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(
                self.manifest,
                {
                    "format": MANIFEST_FORMAT,
                    "version": MANIFEST_VERSION,
                    "classes": list(self.data.classes),
                    "image_size": list(self.data.image_size),
                    "images": self._images,
                },
            )

    def write(self, box: Box, mask: UInt8Array) -> None:
        """Store a region's mask, whole or not at all."""
        self.bind([box])
        write_png(self.path(box), mask)

    def read(self, box: Box) -> UInt8Array:
        """Return a region's mask, ``(h, w)`` uint8.

        Raises:
            ValueError: If the file is no PNG of one channel, of another size or another image, or holds labels that
                are no class.
        """
        self.bind([box])
        path = self.path(box)
        try:
            with open_image(path) as image:
                lossless = image.mode in ("L", "P") and image.format == "PNG"
                mode, mask = f"{image.format} of mode {image.mode}", np.array(image)
        except Exception as error:  # decoders raise all sorts
            raise ValueError(f"mask {path} can't be read ({type(error).__name__}: {error}); write it again") from error
        if not lossless:
            raise ValueError(f"mask {path} is a {mode}; expected a PNG with one channel of class numbers (mode L or P)")
        return _checked(mask, box, len(self.data.classes), f"mask {path}")

    def _pixels(self, image: int) -> str:
        """Return a digest of an image's pixels."""
        name = self.data.names[image]
        if name not in self._seen:
            pixels = np.ascontiguousarray(self.data.image(image))
            self._seen[name] = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
        return self._seen[name]

    def _read_manifest(self) -> dict[str, str]:
        """Return the images that the manifest knows; refuse one of something else."""
        try:
            stored = read_json(self.manifest, "expected what the labels beside it are of")
            known = stored["format"], stored["version"]
            classes, image_size = list(stored["classes"]), list(stored["image_size"])
            images = {str(name): str(digest) for name, digest in stored["images"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.manifest} can't be read ({type(error).__name__}: {error}); restore it from a copy: it says "
                "which images, sizes and classes the masks beside it are of"
            ) from error
        problems = []
        if known != (MANIFEST_FORMAT, MANIFEST_VERSION):
            problems.append(f"it is {known[0]!r}, version {known[1]!r}")
        if classes != list(self.data.classes):
            problems.append(f"the classes are {classes} there, {list(self.data.classes)} here")
        if image_size != list(self.data.image_size):
            problems.append(f"image_size is {image_size} there, {list(self.data.image_size)} here")
        if gone := sorted(set(images) - set(self.data.names)):
            problems.append(f"the images {gone[:5]}{', ...' if len(gone) > 5 else ''} are not in these data")
        if problems:
            raise ValueError(
                f"{self.manifest.parent} holds labels of other data: {'; '.join(problems)}. Open it with the data that "
                "it was filled with, or choose another folder"
            )
        return images


def file_name(data: SegmentationData, box: Box) -> str:
    """Return the file name of a region, whatever its image's name holds and however long it is."""
    name = quote(data.names[box.image], safe=" ").replace(".", "%2E")
    if len(name) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(data.names[box.image].encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: MAX_NAME_BYTES - 17]}-{digest}"
    return f"{name}_{box.top}_{box.left}_{box.size[0]}x{box.size[1]}.png"


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
