"""Masks of regions in a folder, at the resolution of the original images."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from al_seg_env.datasets.image_files import problem_of
from al_seg_env.datasets.originals import Original, original_of
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, check_labels, palette_of
from al_seg_env.labelling.request import Answer
from al_seg_env.regions import Box
from al_seg_env.storage import open_image, read_json, short_lock, write_bytes, write_json, write_png
from al_seg_env.types import UInt8Array

MANIFEST = "manifest.json"
MANIFEST_FORMAT, MANIFEST_VERSION = "al-seg-env labels", 2
EARLIER = "earlier"
TOLD = "al-seg-env"
"""Key of the text in a mask's PNG with the mask's region, and with what it cost to paint."""
MAX_NAME_BYTES = 180
"""Most bytes of an image's name within a file name. With box and temporary suffix, that is below the usual 255."""
_PLACE = re.compile(r"(?P<stem>.*)_(?P<top>\d+)_(?P<left>\d+)_(?P<height>\d+)x(?P<width>\d+)\.png", re.DOTALL)


class LabelFolder:
    """Masks of regions in a folder, with a manifest of the images, sizes and classes that they belong to.

    Regions are given in pixels of the original images. The manifest is needed because the same file name stands for
    another part of the scene if images have another size, and the same number for another class if the list of classes
    differs. Images are identified by their pixels. Images may be added to the data later.

    Several processes may use a folder at once. Files are written atomically, and an answer that is replaced is copied
    to the folder ``earlier``.

    Args:
        folder: Folder of the masks.
        data: The images that the masks belong to.
        manifest: File of the manifest; in the folder itself if omitted.

    Raises:
        ValueError: If the manifest has other sizes or classes, or can't be read.
    """

    def __init__(self, folder: str | Path, data: SegmentationData, manifest: Path | None = None) -> None:
        self.folder, self.data = Path(folder), data
        self.manifest = self.folder / MANIFEST if manifest is None else manifest
        self._images: dict[str, str] = {}  # digests of the pixels by name, from the manifest
        self._seen: dict[str, tuple[Any, str]] = {}  # digests of these data, and their files' times of change
        if self.manifest.exists():
            self._images = self._read_manifest()
        elif self.folder.is_dir() and any(self.folder.glob("*.png")):
            warnings.warn(
                f"{self.folder} holds masks but no {MANIFEST}, which would say what they are of; they are taken to be "
                "of these data",
                RuntimeWarning,
                stacklevel=3,
            )

    def path(self, region: Box) -> Path:
        """Return the file of a region's mask."""
        return self.folder / file_name(self.data, region)

    def has(self, region: Box) -> bool:
        """Return whether there is a file for a region's mask."""
        return self.path(region).exists()

    def regions(self) -> list[Box]:
        """Return all regions whose masks are in the folder, ordered by the time of writing."""
        if not self.folder.is_dir():
            return []
        images = {_file_stem(name): image for image, name in enumerate(self.data.names)}
        found = []
        for path in self.folder.glob("*.png"):
            place = _PLACE.fullmatch(path.name)
            if place is None or place["stem"] not in images:
                continue
            top, left, height, width = (int(place[part]) for part in ("top", "left", "height", "width"))
            region = Box(images[place["stem"]], top, top + height, left, left + width)
            size = original_of(self.data, region.image).size
            if region.bottom > size[0] or region.right > size[1] or not height or not width:
                raise ValueError(
                    f"mask {path} lies outside of its image, which is {size[0]} x {size[1]} pixels; remove the file"
                )
            found.append((path.stat().st_mtime_ns, path.name, region))
        return [region for *_, region in sorted(found)]

    def strangers(self) -> list[Path]:
        """Return the files in the folder that are no masks of these images, in order of their names."""
        known = {*map(self.path, self.regions()), self.manifest}
        files = sorted(path for path in self.folder.glob("*") if path.is_file() and not path.name.startswith("."))
        return [path for path in files if path not in known]

    def bind(self, regions: Sequence[Box]) -> None:
        """Create the folder, and add digests of these regions' images to its manifest.

        Raises:
            ValueError: If the folder has masks of an image with the same name but other pixels.
        """
        found = {self.data.names[image]: self._pixels(image) for image in {region.image for region in regions}}
        self._compare(found)
        if self.manifest.exists() and found.keys() <= self._images.keys():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with short_lock(self.manifest.parent):
            if self.manifest.exists():  # another process may have added images
                self._images |= self._read_manifest()
                self._compare(found)
            self._images |= found
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

    def write(self, region: Box, answer: Answer, keep_earlier: bool = True) -> None:
        """Store an answer for a region atomically.

        Args:
            region: The region.
            answer: The answer.
            keep_earlier: Whether to copy an existing mask to the folder ``earlier`` before it is replaced.

        Raises:
            ValueError: If the mask has the wrong size, dtype or labels, or the image has changed since the request.
        """
        mask = checked_mask(answer.mask, region, len(self.data.classes), f"the answer for {region}")
        self.bind([region])
        path = self.path(region)
        effort = {"seconds": answer.seconds, "clicks": answer.clicks, "by": answer.by}
        told = {name: value for name, value in effort.items() if value is not None}
        told["region"] = path.name
        with short_lock(self.manifest.parent):
            if keep_earlier and path.exists():
                self._keep_earlier(path)
            write_png(path, mask, {TOLD: json.dumps(told)})

    def read(self, region: Box) -> Answer:
        """Return the answer for a region.

        Raises:
            ValueError: If the file is not a PNG with one channel, has the wrong size or labels that are not a class,
                shows (by its palette) the colour of another class than a label's, or is of another image or (by the
                text in the file) another region.
        """
        self.bind([region])
        path = self.path(region)
        problem, mask, text = None, np.zeros(0, np.uint8), None
        try:
            with open_image(path) as image:
                if image.mode not in ("L", "P") or image.format != "PNG":
                    problem = f" is a {image.format} of mode {image.mode}; expected a PNG with one channel of class "
                    problem += "numbers (mode L or P)"
                elif changed := problem_of(image, "mask"):
                    problem = f" {changed}; expected 8 bits per pixel"
                elif (image.height, image.width) != region.size:
                    problem = f": expected uint8 {region.size}, found uint8 {(image.height, image.width)}"
                else:
                    mask = np.array(image)
                    text = image.info.get(TOLD)
                    problem = _reordered(mask, image.getpalette() or [], self.data)
        except Exception as error:  # decoders raise all sorts
            raise ValueError(f"mask {path} can't be read ({type(error).__name__}: {error}); write it again") from error
        if problem:
            raise ValueError(f"mask {path}{problem}")
        told = _told(text)
        if isinstance(told.get("region"), str) and told["region"] != path.name:
            raise ValueError(f"mask {path} was painted as {told['region']!r}; files were swapped: rename them")
        return Answer(checked_mask(mask, region, len(self.data.classes), f"mask {path}"), **_effort(told))

    def _keep_earlier(self, path: Path) -> None:
        """Copy a mask that is about to be replaced."""
        number = 0
        while (kept := self.folder / EARLIER / f"{path.stem}.{number}.png").exists():
            number += 1
        write_bytes(kept, path.read_bytes())

    def _compare(self, found: dict[str, str]) -> None:
        for name, digest in found.items():
            if self._images.get(name, digest) != digest:
                raise ValueError(
                    f"{self.manifest.parent} holds labels of another image of the name {name!r}: its pixels were "
                    f"different when they were requested, by {self.manifest}. Restore that image, or choose another "
                    "folder"
                )

    def _pixels(self, image: int) -> str:
        """Return a digest of an original image's pixels."""
        name, original = self.data.names[image], original_of(self.data, image)
        changed = _last_change(original)
        if name not in self._seen or self._seen[name][0] != changed:
            pixels = np.ascontiguousarray(original.read())
            self._seen[name] = changed, hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
        return self._seen[name][1]

    def _read_manifest(self) -> dict[str, str]:
        """Return the manifest's images, or raise a ValueError if it is of other data."""
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
        # Labels of version 1 are at the network's size, which may be the original's.
        version_1 = known == (MANIFEST_FORMAT, 1) and all(
            original_of(self.data, image).size == tuple(self.data.image_size)
            for image, name in enumerate(self.data.names)
            if name in images
        )
        if known != (MANIFEST_FORMAT, MANIFEST_VERSION) and not version_1:
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


def file_name(data: SegmentationData, region: Box) -> str:
    """Return the file name of a region, which is valid whatever the image's name contains and however long it is."""
    stem = _file_stem(data.names[region.image])
    return f"{stem}_{region.top}_{region.left}_{region.size[0]}x{region.size[1]}.png"


def _file_stem(image_name: str) -> str:
    """Return the beginning of the file names of an image's regions, unique for each image name."""
    name = quote(image_name.encode("utf-8", "surrogatepass"), safe=" ").replace(".", "%2E")
    if len(name) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(image_name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: MAX_NAME_BYTES - 17]}-{digest}"
    return name


def checked_mask(mask: Any, region: Box, num_classes: int, where: str) -> UInt8Array:
    """Return a mask of a region as an array, or raise a ValueError that says what is wrong with it."""
    mask = np.asarray(mask)
    if mask.shape != region.size or mask.dtype != np.uint8:
        raise ValueError(f"{where}: expected uint8 {region.size}, found {mask.dtype} {mask.shape}")
    check_labels(mask, num_classes, where)
    return mask


def _reordered(mask: UInt8Array, colours: Sequence[int], data: SegmentationData) -> str | None:
    """Return what shows that the palette of a mask was re-ordered, so that its numbers stand for other classes now.

    Args:
        mask: Numbers of the mask's pixels, ``(h, w)`` uint8.
        colours: Red, green and blue of one number after the other; empty if the mask has no palette.
        data: The classes and their colours.
    """
    palette = list(map(tuple, palette_of(data).tolist()))
    for label in map(int, np.unique(mask)):
        colour = tuple(colours[3 * label : 3 * label + 3])
        if label == IGNORE_LABEL or colour not in palette or palette[label : label + 1] == [colour]:
            continue
        stands_for = repr(data.classes[label]) if label < len(palette) else "no class"
        shown = data.classes[palette.index(colour)]
        return (
            f": the number {label} stands for {stands_for}, but has the colour of {shown!r} in the file's palette, "
            "which was probably re-ordered by the program that saved it; save the mask without re-indexing its "
            "palette, or without one (mode L), with the numbers of the classes as grey values"
        )
    return None


def _told(text: Any) -> dict[str, Any]:
    """Return the information in the text of a mask's file; empty if another tool wrote the text."""
    try:
        told = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _effort(told: dict[str, Any]) -> dict[str, Any]:
    """Return what it cost to paint a mask, as far as its file says."""
    seconds: Any = told.get("seconds")
    clicks, by = told.get("clicks"), told.get("by")
    timed = type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0
    return {
        "seconds": float(seconds) if timed else None,
        "clicks": clicks if type(clicks) is int and clicks >= 0 else None,
        "by": by if isinstance(by, str) else None,
    }


def _last_change(original: Original) -> Any:
    if original.path is None:
        return None
    stat = original.path.stat()
    return stat.st_size, stat.st_mtime_ns
