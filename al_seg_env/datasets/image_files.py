"""Checking and reading files of images and label masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from al_seg_env.datasets.originals import Original, fitted, whole
from al_seg_env.datasets.pairing import listed
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, check_classes, check_palette
from al_seg_env.storage.images import open_image, too_many_pixels
from al_seg_env.storage.validation import check_choice, check_int, check_size
from al_seg_env.types import Size, UInt8Array

MASK_REMEDY = (
    "Store each mask as a PNG with one channel that holds class numbers (mode L, P or I;16), for example "
    "labels[(rgb == colour).all(-1)] = number for each class, then Image.fromarray(labels).save('name.png')"
)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_MASK_MODES = ("L", "P", *_SIXTEEN_BIT)
_IMAGE_MODES = ("1", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", *_MASK_MODES)
_LOSSY = ("JPEG", "MPO")
_WITH_PREVIEWS = ("MPO",)
"""Formats whose frames after the first are no images of their own: cameras add previews to their photographs."""
_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 256, 257


class PairedFiles:
    """Images and masks read from files on request, as a :class:`SegmentationData`.

    Images of all kinds become ``(H, W, 3)`` uint8 RGB: grey, palette, transparent (alpha is dropped) and 16-bit images
    (scaled to 8 bits). They are rotated according to their EXIF orientation. Masks are files with one lossless channel
    of labels. Formats are PNG, JPEG, WebP, BMP, TIFF and GIF, with at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels and
    one frame or page.
    Nothing is cached. Construction reads only the files' headers.

    A subclass whose masks encode labels in colours in another way sets ``masks_are_colours``, decodes the masks in
    :meth:`decode_mask`, and adds everything that this depends on to :attr:`fingerprint`.

    Args:
        images: n image files.
        masks: n mask files, in the order of ``images``; ``None`` for an image without labels.
        classes: The C class names, at most 255.
        names: One unique name per image; the stems of the image files if omitted.
        image_size: ``(H, W)`` to resize to, with bilinear interpolation and antialiasing for images, and the nearest
            pixel for masks. None keeps the files' own size, which must then be the same for all, unless
            ``fit="pad"``.
        fit: ``"stretch"`` resizes images to this size. ``"pad"`` keeps their aspect ratio: images are shrunk if they
            are too large, never enlarged, and placed in the upper left corner. The padding is black and labelled 255.
            Without an ``image_size``, images are padded to the largest height and the largest width of all.
        label_map: uint8 table from the label in the file to the class (or 255), of any length. Labels beyond its end
            are errors. If omitted, labels are kept as they are.
        palette: ``(C, 3)`` uint8 colours;
            :func:`~al_seg_env.datasets.segmentation_data.default_palette` if omitted.
        mask_colours: For masks in colours: ``(n, 3)`` uint8 colours. A pixel's label is the position of its colour.
        partitions: Indices of the images in each official subset, by the name of the subset.

    Raises:
        ValueError: If arguments contradict each other, or files cannot be read or differ in size. The message names
            the first 20 such files and counts the others.
    """

    masks_are_colours: ClassVar[bool] = False

    def __init__(
        self,
        images: Sequence[str | Path],
        masks: Sequence[str | Path | None],
        classes: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        image_size: Sequence[int] | None = None,
        fit: str = "stretch",
        label_map: UInt8Array | None = None,
        palette: UInt8Array | None = None,
        mask_colours: UInt8Array | None = None,
        partitions: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        check_choice("fit", fit, ("stretch", "pad"))
        self._images = [Path(p) for p in images]
        self._masks = [None if p is None else Path(p) for p in masks]
        if not self._images or len(self._images) != len(self._masks):
            raise ValueError(
                f"{len(self._images)} images and {len(self._masks)} masks are given; expected at least one image, and "
                "exactly one mask for each"
            )
        self.classes = check_classes(classes)
        self.palette = check_palette(palette, len(self.classes))
        self.names = tuple(names) if names is not None else tuple(p.stem for p in self._images)
        twice = [name for name, n in Counter(self.names).items() if n > 1]
        if twice or len(self.names) != len(images):
            raise ValueError(
                f"names has {len(self.names)} entries; expected {len(images)} different names, one per image"
                + (f". More than once: {listed(twice)}" if twice else "")
            )
        last = len(self.names) - 1
        self.partitions = {
            key: tuple(check_int(f"an index in partition {key!r}", i, 0, last) for i in ids)
            for key, ids in (partitions or {}).items()
        }
        self._label_map: UInt8Array = np.arange(256, dtype=np.uint8) if label_map is None else np.asarray(label_map)
        if self._label_map.dtype != np.uint8 or self._label_map.ndim != 1:
            raise ValueError(
                f"label_map is {self._label_map.dtype} {self._label_map.shape}; expected uint8 with one entry per "
                "label in the files"
            )
        self._mask_colours = mask_colours
        self._mask_kind = "colour mask" if self.masks_are_colours or mask_colours is not None else "mask"
        self._fit = fit
        resized = None if image_size is None else check_image_size(image_size)
        self._sizes = _check_files(self._images, self._masks, resized is None and fit == "stretch", self._mask_kind)
        heights, widths = zip(*self._sizes, strict=True)
        self.image_size = check_image_size((max(heights), max(widths))) if resized is None else resized

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str | None:
        """A text made of the files' paths, sizes and modification times, and of the arguments.

        ``None`` for a subclass that reads the files in another way.

        Raises:
            OSError: If a file no longer exists.
        """
        if (type(self).image, type(self).mask) != (PairedFiles.image, PairedFiles.mask):
            return None
        files = [None if path is None else (path.resolve(), path.stat()) for path in (*self._images, *self._masks)]
        of_files = [None if file is None else (str(file[0]), file[1].st_size, file[1].st_mtime_ns) for file in files]
        made = (self.image_size, self._fit, self.classes, self._label_map.tolist())
        coloured = () if self._mask_colours is None else (self._mask_colours.tolist(),)
        return repr((of_files, *made, *coloured))

    @property
    def labelled(self) -> tuple[int, ...]:
        """Indices of the images that have a mask."""
        return tuple(index for index, mask in enumerate(self._masks) if mask is not None)

    def original(self, index: int) -> Original:
        """Return the original of image ``index``: its file, at full size."""
        if type(self).image != PairedFiles.image:  # a subclass may return anything
            return Original(self.image_size, self.image_size, partial(self.image, index), self._images[index])
        return Original(self._sizes[index], self._inside(index), partial(self._read, index), self._images[index])

    def image(self, index: int) -> UInt8Array:
        """Return image ``index``, ``(H, W, 3)`` uint8 RGB.

        Raises:
            OSError: If the file is gone or damaged, or its size has changed since it was checked.
            ValueError: If it has values of more than 16 bits.
        """
        inside = self._inside(index)
        rgb = self._read(index)
        if inside != self._sizes[index]:
            rgb = np.array(Image.fromarray(rgb).resize(inside[::-1], Image.Resampling.BILINEAR))
        return padded(rgb, self.image_size, 0)

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of image ``index``, ``(H, W)`` uint8 in ``[0, C)`` or 255.

        Raises:
            OSError: If the file is gone or damaged, or its size has changed since it was checked.
            ValueError: If it has labels that are neither a class nor ignored.
        """
        inside = self._inside(index)
        original = Original(self._sizes[index], inside, partial(self._read, index))
        return padded(original.to_network(self.full_mask(index), whole(inside)), self.image_size, IGNORE_LABEL)

    def full_mask(self, index: int) -> UInt8Array:
        """Return the true labels of image ``index`` at the size of its file, ``(h, w)`` uint8 in ``[0, C)`` or 255.

        Raises:
            OSError, ValueError: For the same reasons as :meth:`mask`.
        """
        path = self._masks[index]
        if path is None:
            return np.full(self._sizes[index], IGNORE_LABEL, np.uint8)
        raw = self.decode_mask(load_image(path, f"{self._mask_kind} {path}", self._mask_kind), path)
        return self._checked(map_labels(raw, self._label_map, len(self.classes), f"mask {path}"), path, index)

    def decode_mask(self, mask: Image.Image, path: Path) -> npt.NDArray[Any]:
        """Return the labels in a mask's file, ``(h, w)`` of any integer type, before ``label_map`` is applied.

        Raises:
            ValueError: If the mask has colours that stand for no label.
        """
        return np.asarray(mask) if self._mask_colours is None else _labels_of(mask, self._mask_colours, path)

    def _read(self, index: int) -> UInt8Array:
        """Return the pixels of an image's file, ``(h, w, 3)`` uint8 RGB."""
        path = self._images[index]
        return self._checked(np.array(to_rgb(load_image(path, f"image {path}", "image"), path)), path, index)

    def _inside(self, index: int) -> Size:
        """Return the ``(height, width)`` that an image fills of the common size."""
        return self.image_size if self._fit == "stretch" else fitted(self._sizes[index], self.image_size)

    def _checked(self, array: UInt8Array, path: Path, index: int) -> UInt8Array:
        if array.shape[:2] != self._sizes[index]:
            raise OSError(
                f"{path} is now {_size(array.shape)} pixels, but {_size(self._sizes[index])} when the data were "
                "opened; restore it, or open the data again"
            )
        return array


def check_image_size(image_size: Sequence[int]) -> Size:
    """Return ``(H, W)``, or raise a ValueError if it isn't two positive whole numbers, or is too large for Pillow."""
    size = check_size("image_size", image_size)
    if problem := too_many_pixels(size):
        raise ValueError(f"image_size is {image_size!r}; {problem}")
    return size


def to_rgb(image: Image.Image, name: object) -> Image.Image:
    """Return an image of any mode as 8-bit RGB, or raise a ValueError with its name if values exceed 16 bits."""
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name} holds values from {values.min()} to {values.max()}; store it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def padded(array: UInt8Array, size: Size, value: int) -> UInt8Array:
    """Return an image or a mask padded with a value at the bottom and on the right to a size."""
    if array.shape[:2] == size:
        return array
    filled = np.full((*size, *array.shape[2:]), value, np.uint8)
    filled[: array.shape[0], : array.shape[1]] = array
    return filled


def map_labels(raw: npt.NDArray[Any], label_map: UInt8Array, num_classes: int, name: str) -> UInt8Array:
    """Return the classes for labels ``(h, w)`` of any integer type, as uint8.

    Args:
        raw: The labels.
        label_map: The class of each label, or 255. Labels beyond its end are errors, and so are labels that it maps to
            anything else.
        num_classes: C.
        name: Name of the mask, for the error message.

    Raises:
        ValueError: If there are labels that are neither a class nor ignored.
    """
    flat = raw.reshape(-1)
    present = np.flatnonzero(np.bincount(flat)) if raw.dtype == np.uint8 else np.unique(flat)
    known = (label_map < num_classes) | (label_map == IGNORE_LABEL)
    if bad := [int(v) for v in present if not 0 <= v < len(known) or not known[v]]:
        raise ValueError(
            f"{name} holds the labels {_ranges(bad)}, but only {_ranges(np.flatnonzero(known))} are known: "
            f"{num_classes} classes from 0 on, the rest ignored. Correct the file, name the missing classes, or set "
            f"these labels to {IGNORE_LABEL} (ImageFolder: ignore_labels)"
        )
    return label_map[raw]


def _check_files(images: Sequence[Path], masks: Sequence[Path | None], common_size: bool, mask_kind: str) -> list[Size]:
    """Return the ``(H, W)`` of each image, or raise a ValueError that names all files with problems."""
    problems: list[str] = []
    image_sizes = [_header(path, problems, "image") for path in images]
    mask_sizes = [None if path is None else _header(path, problems, mask_kind) for path in masks]
    usual = Counter(size for size in image_sizes if size).most_common(1)
    for path, mask, of_image, of_mask in zip(images, masks, image_sizes, mask_sizes, strict=True):
        if of_image and of_mask and of_image != of_mask:
            problems.append(f"{path} is {_size(of_image)} but its mask {mask} {_size(of_mask)}")
        elif of_image and common_size and of_image != usual[0][0]:
            problems.append(f"{path} is {_size(of_image)}, most images are {_size(usual[0][0])}")
    if problems:
        raise ValueError(
            f"{len(problems)} problems with {len(images)} images and their masks: {listed(problems)}. Repair "
            "or remove the files; for images of several sizes give image_size=(height, width), or fit='pad'. Sizes are "
            "height x width after EXIF orientation; an image and its mask must have the same"
            + (f". {MASK_REMEDY}" if any(p.startswith("mask ") for p in problems) else "")
        )
    return [size for size in image_sizes if size]


def _header(path: Path, problems: list[str], kind: str) -> tuple[int, int] | None:
    """Return the ``(H, W)`` of the loaded image, or add a problem and return None. Only the header is read."""
    try:
        with open_image(path) as image:
            if problem := problem_of(image, kind):
                problems.append(f"{kind} {path} {problem}")
            tags = getattr(image, "tag_v2", {})  # Pillow versions differ in whether TIFF's .size is already rotated
            width, height = tags.get(_TIFF_WIDTH, image.width), tags.get(_TIFF_HEIGHT, image.height)
            return (width, height) if orientation_of(image) >= 5 else (height, width)
    except Exception as error:  # decoders raise all sorts
        problems.append(f"{path} can't be read ({type(error).__name__}: {error})")
        return None


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. From 5 on, height and width are swapped."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the whole image
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def load_image(source: Path | bytes, name: str, kind: str) -> Image.Image:
    """Return a decoded image, rotated according to its EXIF orientation.

    Args:
        source: The file, or its content.
        name: Name of the image, for the error message.
        kind: What it is: ``"image"``, ``"mask"`` or ``"colour mask"``, as in :func:`problem_of`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If its pixels are not what ``kind`` says.
    """
    try:
        with open_image(source) as image:
            problem = problem_of(image, kind)
            orientation = orientation_of(image)
            image.load()
            if image.format == "PNG" and orientation_of(image) != orientation:
                raise ValueError("its EXIF orientation comes after the pixels; store EXIF before them, or remove it")
            turned = ImageOps.exif_transpose(image) if orientation != 1 else image
    except Exception as error:  # decoders raise all sorts
        raise OSError(
            f"{name} can't be read ({type(error).__name__}: {error}); restore it, or remove it, and open the data again"
        ) from error
    if problem:
        raise ValueError(f"{name} {problem}." + f" {MASK_REMEDY}" * (kind == "mask"))
    return turned


def _labels_of(image: Image.Image, colours: UInt8Array, path: Path) -> UInt8Array:
    """Return the positions ``(h, w)`` of a mask's colours among the given ones ``(n, 3)``."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int64) @ (65536, 256, 1)  # (h, w)
    known = colours.astype(np.int64) @ (65536, 256, 1)  # (n,)
    order = np.argsort(known)
    places = order[np.searchsorted(known, pixels, sorter=order).clip(max=len(known) - 1)]
    if (wrong := known[places] != pixels).any():
        found = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in np.unique(pixels[wrong])]
        raise ValueError(
            f"mask {path} has the colours {found[:10]}{', ...' if len(found) > 10 else ''}, which belong to no class "
            "and aren't ignored; add them to classes.json, or store the mask without smoothing"
        )
    labels: UInt8Array = places.astype(np.uint8)
    return labels


def problem_of(image: ImageFile.ImageFile, kind: str) -> str | None:
    """Return what is wrong with an image that is opened but not decoded yet, or None.

    A mask has one lossless channel of labels, which decoding does not change; a colour mask has lossless colours.

    Args:
        image: The image.
        kind: What it should be: ``"image"``, ``"mask"`` or ``"colour mask"``.
    """
    if image.format not in _WITH_PREVIEWS and (frames := getattr(image, "n_frames", 1)) > 1:
        return f"has {frames} frames or pages, of which one would be used; store each as a file of its own"
    if kind == "image":
        known = image.mode in _IMAGE_MODES
        return None if known else f"has the pixel mode {image.mode}; store it with 8 or 16 bits per channel"
    if kind == "mask" and image.mode not in _MASK_MODES:
        return f"has the pixel mode {image.mode}, not one channel of labels"
    if kind == "colour mask" and image.mode not in ("RGB", "P"):
        return f"has the pixel mode {image.mode}, not colours (RGB or a palette)"
    if image.format in _LOSSY or image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        kind = "" if image.format in _LOSSY else " compressed as JPEG"
        return f"is a {image.format}{kind}, which changes labels"
    if image.format == "WEBP" and not _is_lossless_webp(image):
        return "is a lossy WebP, which changes labels; store it with lossless=True, or as PNG"
    (*_, raw), *_ = getattr(image, "tile", None) or [("",)]
    raw = str(raw if isinstance(raw, str) else raw[0])
    if raw.startswith("L;"):  # Pillow would stretch or invert the labels
        return "stores grey values with fewer than 8 bits or inverted, which changes labels"
    if image.mode == "RGB" and ";1" in raw:  # such as RGB;16B, of which Pillow keeps half
        return "does not store its colours with 8 bits per channel, and they would change"
    return None


def _is_lossless_webp(image: ImageFile.ImageFile) -> bool:
    """Return whether the first picture in a WebP file is stored without loss."""
    file = image.fp
    assert file is not None  # it is open
    file.seek(12)
    while len(header := file.read(8)) == 8 and header[:4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(header[4:], "little")
        # An animation's frame has 16 bytes before its picture; other chunks are skipped, with their padding.
        file.seek(16 if header[:4] == b"ANMF" else size + size % 2, 1)
    return header[:4] == b"VP8L"


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _ranges(labels: Iterable[int]) -> str:
    """Return sorted numbers as ranges: ``[0, 1, 2, 255]`` as ``0 to 2, 255``, shortened if there are many."""
    runs: list[list[int]] = []
    for label in map(int, labels):
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    words = [str(a) if a == b else f"{a} to {b}" for a, b in runs[:20]]
    return ", ".join(words + ["..."] * (len(runs) > 20))
