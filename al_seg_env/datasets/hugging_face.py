"""Tables of images and masks from the library `datasets`, whether from the Hugging Face Hub or your own."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from al_seg_env.datasets.image_files import check_image_size, load_image, map_labels, padded, to_rgb
from al_seg_env.datasets.originals import Original, fitted, whole
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, check_classes, check_palette
from al_seg_env.storage.validation import check, check_choice, check_int, check_text
from al_seg_env.types import Size, UInt8Array


class HuggingFaceData:
    """A ``datasets.Dataset`` or ``DatasetDict`` as a :class:`SegmentationData`.

    Rows are decoded when they are needed, like the files of :class:`PairedFiles`. Nothing is downloaded, and only the
    columns of images and masks are read. The parts of a ``DatasetDict`` become partitions; the part ``validation``
    becomes the partition ``val``. Names are the numbers of the rows, after the part of a ``DatasetDict``:
    ``"train/12"``.

    Args:
        dataset: The result of ``datasets.load_dataset`` (without streaming) or ``datasets.load_from_disk``.
        image_size: ``(H, W)`` of every image.
        classes: The C class names, at most 255.
        image: Column of the images, a ``datasets.Image``.
        mask: Column of the masks, a ``datasets.Image`` with one lossless channel of labels.
        labels: The label of each class in the masks; 0 to C - 1 if omitted.
        ignore_labels: Labels in the masks that stand for no class, and are read as 255.
        fit: ``"pad"`` keeps the aspect ratio, ``"stretch"`` fills the image; see :class:`PairedFiles`.
        palette: ``(C, 3)`` uint8 colours; default ones if omitted.

    Raises:
        ValueError: If columns are missing or hold no images, there are no rows, or arguments contradict each other.
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
        if isinstance(dataset, Mapping):
            named = all(isinstance(name, str) and name for name in parts) and not {"val", "validation"} <= {*parts}
            check("dataset", list(parts), named, "named parts, and not both 'val' and 'validation'")
        self._parts = {name: _columns_of(part, self._columns, name) for name, part in parts.items()}
        self._rows = [(name, row) for name, part in parts.items() for row in range(len(part))]
        check("dataset", dataset, bool(self._rows), "at least one row")
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
            OSError: If the mask is missing or damaged.
            ValueError: If the mask does not have one lossless channel, differs from the image in size, or has labels
                that are neither a class nor ignored.
        """
        name, mask = self._decoded(index, "mask")
        original = self.original(index)
        if _size(mask) != original.size:
            raise ValueError(f"{name} has {_size(mask)} pixels; expected the size of its image, {original.size}")
        labels = map_labels(np.asarray(mask), self._label_map, len(self.classes), name)
        return padded(original.to_network(labels, whole(original.inside)), self.image_size, IGNORE_LABEL)

    def _image(self, index: int) -> Image.Image:
        """Return the image of a row, as RGB."""
        name, image = self._decoded(index, "image")
        return to_rgb(image, name)

    def _decoded(self, index: int, kind: str) -> tuple[str, Image.Image]:
        """Return what a row's image or mask is called in messages, and the image or mask."""
        (part, row), of = self._rows[index], ("image", "mask").index(kind)
        name = f"the {kind} of row {self.names[index]!r}"
        content = self._parts[part][of][row][self._columns[of]] or {"bytes": None, "path": None}
        if content["bytes"] is None and content["path"] is None:
            raise OSError(f"{name} is missing; leave the row out: dataset.filter")
        source = Path(content["path"]) if content["bytes"] is None else content["bytes"]
        return name, load_image(source, name, kind)

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
    kind = part.format["type"]
    check(
        f"the format of {where}", kind, kind is None, "none: dataset.with_format(None), and transforms by dataset.map"
    )
    return _encoded(part, columns[0], where), _encoded(part, columns[1], where)


def _encoded(part: Any, column: str, where: str) -> Any:
    """Return a table of only one column, of images that are not decoded.

    The library would decode them by Pillow with all its formats, of which some start other programs.
    """
    feature = part.features[column]
    if type(feature).__name__ != "Image":
        raise ValueError(f"the column {column!r} of {where} is {reprlib.repr(feature)}; expected a datasets.Image")
    return part.select_columns([column]).cast_column(column, replace(feature, decode=False))


def _label_map(labels: Iterable[int] | None, ignored: Iterable[int], num_classes: int) -> UInt8Array:
    """Return the table from label to class. Unknown labels are mapped to a class that is out of range."""
    of_classes = list(range(num_classes)) if labels is None else _labels("labels", labels)
    others = {*_labels("ignore_labels", ignored)} | {IGNORE_LABEL} - {*of_classes}
    if len({*of_classes}) != num_classes or len(of_classes) != num_classes or others & {*of_classes}:
        raise ValueError(
            f"labels are {of_classes} and ignore_labels {sorted(others)}; expected {num_classes} different labels, one "
            "per class, and none of them ignored"
        )
    table = np.full(max(*of_classes, *others) + 1, IGNORE_LABEL - 1, np.uint8)  # an unknown class
    table[of_classes] = np.arange(num_classes)
    table[[*others]] = IGNORE_LABEL
    return table


def _labels(name: str, value: Iterable[int]) -> list[int]:
    check(name, value, isinstance(value, Iterable), "a list of labels")
    return [check_int(f"{name}[{i}]", label, 0, 2**16 - 1) for i, label in enumerate(value)]


def _size(image: Image.Image) -> Size:
    return image.height, image.width
