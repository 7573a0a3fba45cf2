"""Tables of images and masks from the library `datasets`, whether from the Hugging Face Hub or your own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from al_seg_env.datasets.image_files import check_image_size, map_labels, padded, to_rgb
from al_seg_env.datasets.originals import Original, fitted, whole
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, check_classes, check_palette
from al_seg_env.storage.validation import check, check_choice, check_int, check_text
from al_seg_env.types import Size, UInt8Array

_MODES = ("L", "P", "I", "I;16")


class HuggingFaceData:
    """A ``datasets.Dataset`` or ``DatasetDict`` as a :class:`SegmentationData`.

    Rows are decoded when they are needed. Nothing is downloaded, and only the columns of images and masks are read.
    The parts of a ``DatasetDict`` become partitions; the part ``validation`` becomes the partition ``val``. Names are
    the numbers of the rows, after the part of a ``DatasetDict``: ``"train/12"``.

    Args:
        dataset: The result of ``datasets.load_dataset`` (without streaming) or ``datasets.load_from_disk``.
        image_size: ``(H, W)`` of every image.
        classes: The C class names, at most 255.
        image: Column of the images.
        mask: Column of the masks: images with one lossless channel of labels.
        labels: The label of each class in the masks; 0 to C - 1 if omitted.
        ignore_labels: Labels in the masks that stand for no class, and are read as 255.
        fit: ``"pad"`` keeps the aspect ratio, ``"stretch"`` fills the image; see :class:`PairedFiles`.
        palette: ``(C, 3)`` uint8 colours; default ones if omitted.

    Raises:
        ValueError: If columns are missing, or arguments contradict each other.
    """

    def __init__(
        self,
        dataset: Any,
        image_size: Sequence[int],
        classes: Sequence[str],
        *,
        image: str = "image",
        mask: str = "label",
        labels: Iterable[int] | None = None,
        ignore_labels: Iterable[int] = (),
        fit: str = "pad",
        palette: object = None,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.classes = check_classes(classes)
        self.palette = check_palette(palette, len(self.classes))
        self._fit = check_choice("fit", fit, ("stretch", "pad"))
        self._label_map = _label_map(labels, ignore_labels, len(self.classes))
        self._columns = (check_text("image", image), check_text("mask", mask))
        parts = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
        self._parts = {name: _columns_of(part, self._columns, name) for name, part in parts.items()}
        self._rows = [(name, row) for name, part in parts.items() for row in range(len(part))]
        self.names = tuple(f"{name}/{row}" if name else str(row) for name, row in self._rows)
        self.partitions: dict[str, tuple[int, ...]] = {}
        for name in filter(None, parts):
            indices = tuple(index for index, (of, _) in enumerate(self._rows) if of == name)
            self.partitions["val" if name == "validation" else name] = indices

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str | None:
        """The data sets' own fingerprints combined with the arguments; ``None`` if a data set has none."""
        found = [(name, getattr(images, "_fingerprint", None)) for name, (images, _) in self._parts.items()]
        made = (self.image_size, self._fit, self.classes, self._columns, self._label_map.tolist())
        return None if any(each is None for _, each in found) else repr((found, *made))

    def original(self, index: int) -> Original:
        """Return the original of image ``index``, at full size."""
        size = _size(self._image(index))
        return Original(size, self._inside(size), partial(self._pixels, index))

    def image(self, index: int) -> UInt8Array:
        """Return image ``index``, ``(H, W, 3)`` uint8 RGB."""
        rgb = self._image(index)
        inside = self._inside(_size(rgb))
        if inside != _size(rgb):
            rgb = rgb.resize(inside[::-1], Image.Resampling.BILINEAR)
        return padded(np.array(rgb), self.image_size, 0)

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of image ``index``, ``(H, W)`` uint8 in ``[0, C)`` or 255.

        Raises:
            ValueError: If the mask is not an image with one channel, differs from the image in size, or has labels
                that are neither a class nor ignored.
        """
        name, column = f"the mask of row {self.names[index]!r}", self._columns[1]
        part, row = self._rows[index]
        mask = self._parts[part][1][row][column]
        if not isinstance(mask, Image.Image) or mask.mode not in _MODES:
            found = f"of mode {mask.mode}" if isinstance(mask, Image.Image) else f"a {type(mask).__name__}"
            raise ValueError(f"{name} is {found}; expected an image with one channel of labels: convert the column")
        original = self.original(index)
        if _size(mask) != original.size:
            raise ValueError(f"{name} has {_size(mask)} pixels; expected the size of its image, {original.size}")
        labels = map_labels(np.asarray(mask), self._label_map, len(self.classes), name)
        return padded(original.to_network(labels, whole(original.inside)), self.image_size, IGNORE_LABEL)

    def _image(self, index: int) -> Image.Image:
        """Return the image of a row, as RGB."""
        part, row = self._rows[index]
        image = self._parts[part][0][row][self._columns[0]]
        name = f"the image of row {self.names[index]!r}"
        check(name, image, isinstance(image, Image.Image), "an image (a column of datasets.Image)")
        return to_rgb(image, name)

    def _pixels(self, index: int) -> UInt8Array:
        return np.array(self._image(index))

    def _inside(self, size: Size) -> Size:
        return self.image_size if self._fit == "stretch" else fitted(size, self.image_size)


def _columns_of(part: Any, columns: tuple[str, str], name: str) -> tuple[Any, Any]:
    """Return a table of only the images and one of only the masks, so that other columns are not decoded."""
    found = getattr(part, "column_names", None)
    where = f"part {name!r} of dataset" if name else "dataset"
    check(where, part, isinstance(found, list) and hasattr(part, "__len__"), "a datasets.Dataset, not a stream")
    if missing := [column for column in columns if column not in part.column_names]:
        raise ValueError(f"{where} lacks the columns {missing}; it has {found}. Name the right ones: image=, mask=")
    return part.select_columns([columns[0]]), part.select_columns([columns[1]])


def _label_map(labels: Iterable[int] | None, ignored: Iterable[int], num_classes: int) -> UInt8Array:
    """Return the table from label to class. Unknown labels are mapped to a class that is out of range."""
    of_classes = list(range(num_classes)) if labels is None else [check_int("labels", label) for label in labels]
    others = {check_int("ignore_labels", label) for label in ignored} | {IGNORE_LABEL} - {*of_classes}
    if len({*of_classes}) != num_classes or others & {*of_classes}:
        raise ValueError(
            f"labels are {of_classes} and ignore_labels {sorted(others)}; expected {num_classes} different labels, one "
            "per class, and none of them ignored"
        )
    table = np.full(max(*of_classes, *others) + 1, IGNORE_LABEL - 1, np.uint8)  # an unknown class
    table[of_classes] = np.arange(num_classes)
    table[[*others]] = IGNORE_LABEL
    return table


def _size(image: Image.Image) -> Size:
    return image.height, image.width
