"""COCO panoptic (Kirillov et al., 2019), read as semantic segmentation."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import check_partitions, listed, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, check_classes
from al_seg_env.storage import read_json, well_formed
from al_seg_env.storage.validation import check_int, check_path
from al_seg_env.types import IntArray, UInt8Array

LAYOUT = (
    "train2017/*.jpg, val2017/*.jpg, annotations/panoptic_train2017.json, annotations/panoptic_val2017.json (of "
    "panoptic_annotations_trainval2017.zip), and the two zips in that one unpacked as panoptic_train2017/*.png and "
    "panoptic_val2017/*.png, beside the images or in annotations"
)
Key = TypeVar("Key")
Value = TypeVar("Value")
Segments = tuple[IntArray, UInt8Array]
"""Ids of segments in ascending order, and their classes."""


class COCOPanoptic(PairedFiles):
    """COCO panoptic, or data in its format: each pixel has the class of its segment.

    The pixels of a mask file hold the ids of segments as ``R + 256 G + 65536 B``; id 0 stands for no segment and
    becomes 255. Images without an annotation are omitted. Classes are the categories in the order of the JSON file (for
    COCO, 80 things and 53 kinds of stuff). Crowd segments have the class of their category, too.

    Names consist of the partition and the file's stem, such as ``"val2017/000000000139"``; ``partitions`` are called
    ``train`` and ``val``. Images differ in size, so an ``image_size`` is needed. Construction opens every file, so
    name only the partitions that you need.

    Args:
        root: The folder that holds the images' folders and ``annotations``.
        image_size: ``(H, W)`` of every image.
        fit: ``"pad"`` keeps the aspect ratio, ``"stretch"`` fills the image; see :class:`PairedFiles`.
        partitions: Folders to read, each with a file ``annotations/panoptic_<partition>.json``.

    Raises:
        OSError: If a JSON file cannot be read.
        ValueError: If a JSON file is malformed or names anything twice, the partitions' categories differ, or files are
            missing or cannot be read. The message names all of them.
    """

    masks_are_colours = True

    def __init__(
        self,
        root: str | Path,
        image_size: Sequence[int],
        *,
        fit: str = "pad",
        partitions: Sequence[str] = ("train2017", "val2017"),
    ) -> None:
        root = check_path("root", root)
        folders = check_partitions(partitions, ("train2017", "val2017"), "2017")
        require_folders(root, ["annotations", *partitions], LAYOUT)
        classes: tuple[str, ...] = ()
        self._segments: dict[Path, Segments] = {}
        images: dict[str, Path] = {}
        ranges: dict[str, range] = {}
        self._annotations = [root / "annotations" / f"panoptic_{partition}.json" for partition in partitions]
        for (key, partition), path in zip(folders.items(), self._annotations, strict=True):
            content = read_json(path, f"expected {LAYOUT}")
            folder = next((f for f in (root, path.parent) if (f / f"panoptic_{partition}").is_dir()), root)
            before = len(images)
            with well_formed(path):
                found = check_classes([category["name"] for category in content["categories"]])
                if classes and found != classes:
                    raise ValueError(f"other categories than in {self._annotations[0]}; read one partition only")
                classes = found
                labels = _unique("category", ((c["id"], label) for label, c in enumerate(content["categories"])))
                matched = _matched(content)
                images |= _unique(
                    "image",
                    ((f"{partition}/{PurePosixPath(image).stem}", root / partition / image) for image in matched),
                )
                self._segments |= _unique(
                    "mask",
                    (
                        (folder / f"panoptic_{partition}" / annotation["file_name"], _segments(annotation, labels))
                        for annotation in matched.values()
                    ),
                )
            ranges[key] = range(before, len(images))
        masks = list(self._segments)
        if missing := [str(path) for path in (*images.values(), *masks) if not path.is_file()]:
            raise ValueError(f"{len(missing)} files are missing: {listed(missing)}; expected {LAYOUT}")
        super().__init__(
            list(images.values()),
            masks,
            classes,
            names=tuple(images),
            image_size=image_size,
            fit=fit,
            partitions=ranges,
        )

    def decode_mask(self, mask: Image.Image, path: Path) -> UInt8Array:
        """Return the class of each pixel, ``(h, w)`` uint8, 255 where there is no segment.

        Raises:
            ValueError: If the mask has segments that the JSON file lacks.
        """
        pixels = np.asarray(mask.convert("RGB")).astype(np.int64) @ (1, 256, 65536)
        ids, classes = self._segments[path]
        present, places = np.unique(pixels, return_inverse=True)
        if unknown := np.setdiff1d(present, [0, *ids]).tolist():
            raise ValueError(
                f"mask {path} holds the segments {reprlib.repr(unknown)}, which are not in its annotation; download "
                "both again"
            )
        of_present = np.full(len(present), IGNORE_LABEL, np.uint8)
        known = np.isin(present, ids)
        of_present[known] = classes[np.searchsorted(ids, present[known])]
        labels: UInt8Array = of_present[places].reshape(pixels.shape)
        return labels

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of :class:`PairedFiles`, combined with that of the annotations."""
        files = [(str(path.resolve()), path.stat()) for path in self._annotations]
        return repr((super().fingerprint, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]))


def _matched(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the annotation of each annotated image, by the image's file name."""
    names = _unique("image", ((image["id"], image["file_name"]) for image in content["images"]))
    annotations = _unique("image", ((each["image_id"], each) for each in content["annotations"]))
    if not annotations:
        raise ValueError("no image has an annotation; use another copy, or leave this partition out")
    return _unique("image", ((names[image], annotation) for image, annotation in annotations.items()))


def _segments(annotation: Mapping[str, Any], labels: Mapping[int, int]) -> Segments:
    found = _unique(
        f"in {annotation['file_name']}, segment",
        (
            (check_int("id of a segment", each["id"], 1, 2**24 - 1), labels[each["category_id"]])
            for each in annotation["segments_info"]
        ),
    )
    ids = sorted(found)
    return np.array(ids, np.int64), np.array([found[each] for each in ids], np.uint8)


def _unique(what: str, pairs: Iterable[tuple[Key, Value]]) -> dict[Key, Value]:
    """Return pairs as a dictionary, or raise a ValueError if a key comes twice: one value would hide the other."""
    found: dict[Key, Value] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{what} {str(key)!r} comes twice; correct the file, or use another copy")
        found[key] = value
    return found
