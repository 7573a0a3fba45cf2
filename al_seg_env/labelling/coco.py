"""Reading and writing COCO's JSON, with masks as run lengths."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage import read_json, write_json
from al_seg_env.types import Size, UInt8Array

MAX_BYTES = 2**30


def write_coco(path: str | Path, masks: Iterable[tuple[str, UInt8Array]], classes: Sequence[str]) -> None:
    """Write masks as COCO's JSON: one annotation for each class in each image, as uncompressed run lengths.

    Args:
        path: The file; it is replaced atomically.
        masks: File names of images, and their masks ``(h, w)`` uint8. Pixels of 255 are in no annotation.
        classes: The C class names; class c has the id c + 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, mask in masks:
        height, width = mask.shape
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for label in np.unique(mask[mask != IGNORE_LABEL]).tolist():
            inside = mask == label
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": label + 1,
                    "segmentation": {"counts": run_lengths(inside), "size": [height, width]},
                    "area": int(inside.sum()),
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "iscrowd": 1,  # COCO's flag for a region given as run lengths
                }
            )
    categories = [{"id": label + 1, "name": name, "supercategory": ""} for label, name in enumerate(classes)]
    write_json(path, {"images": images, "categories": categories, "annotations": annotations})


def read_coco(path: str | Path, classes: Sequence[str], sizes: Mapping[str, Size]) -> dict[str, UInt8Array]:
    """Read the masks of some images from COCO's JSON. Where annotations overlap, the later one takes precedence.

    Args:
        path: The file.
        classes: The C class names; categories are matched by name.
        sizes: ``(height, width)`` of each image to read, by its file name without folder and suffix.

    Returns:
        The masks by that name, ``(h, w)`` uint8, 255 where there is no annotation. Images without annotations are
        omitted.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is malformed or has other classes, or a mask has another size or is a polygon.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes; export fewer images at once")
    content = read_json(path, "expected COCO's annotations")
    try:
        names = {image["id"]: PurePosixPath(str(image["file_name"])).stem for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        used = {annotation["category_id"] for annotation in content["annotations"]}
        if unknown := sorted(categories[each] for each in used if categories[each] not in classes):
            raise ValueError(f"the categories {unknown[:10]} are not among the classes {list(classes)}")
        masks: dict[str, UInt8Array] = {}
        for annotation in content["annotations"]:
            name = names[annotation["image_id"]]
            if name not in sizes:
                continue
            inside = _decoded(annotation["segmentation"], sizes[name])
            mask = masks.setdefault(name, np.full(sizes[name], IGNORE_LABEL, np.uint8))
            mask[inside] = classes.index(categories[annotation["category_id"]])
    except (LookupError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise ValueError(
            f"{path} can't be used ({type(error).__name__}: {error}); expected COCO's annotations, with masks as run "
            "lengths"
        ) from error
    return masks


def run_lengths(inside: npt.NDArray[np.bool_]) -> list[int]:
    """Return the lengths of alternating runs of pixels outside and inside, column by column, starting with outside.

    >>> run_lengths(np.array([[False, True], [True, True]]))
    [1, 3]
    >>> run_lengths(np.array([[True, False]]))
    [0, 1, 1]
    """
    flat = inside.reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    lengths: list[int] = np.diff(changes, prepend=0).tolist()
    return lengths


def _decoded(segmentation: Any, size: Size) -> npt.NDArray[np.bool_]:
    """Return whether each pixel is inside, ``(h, w)``, from run lengths given as a list or as a compressed text."""
    if isinstance(segmentation, list):
        raise ValueError("an annotation is a polygon; expected run lengths: export masks")
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"a mask has the size {reprlib.repr(segmentation['size'])}; expected {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    lengths = np.asarray(counts, np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or int(lengths.sum()) != size[0] * size[1]:
        raise ValueError(f"the run lengths {reprlib.repr(counts)} do not fill {size[0]} x {size[1]} pixels")
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return inside.reshape(size, order="F")


def _uncompressed(text: str) -> list[int]:
    """Return run lengths from COCO's compressed form: groups of five bits with the difference to the run two before."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"the run lengths {reprlib.repr(text)} are not in COCO's compressed form")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts
