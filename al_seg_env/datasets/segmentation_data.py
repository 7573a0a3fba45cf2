"""The interface of data sets, and the ignore label that is used everywhere."""

from __future__ import annotations

import colorsys
import reprlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from al_seg_env.types import UInt8Array

IGNORE_LABEL = 255
"""The label of pixels without a class: unlabelled, void, or outside the image."""


@runtime_checkable
class SegmentationData(Protocol):
    """A source of ``(image, mask)`` pairs of one common size.

    Any object with these five members will do; nothing has to be inherited. Five optional members are used if present:

    - ``palette``: ``(C, 3)`` uint8 colours for rendering.
    - ``partitions``: a mapping from the name of an official subset (``"train"``, ``"val"``, ``"test"``) to the indices
      of its images.
    - ``fingerprint``: a text that changes whenever images or masks do. Environments with equal fingerprints share
      decoded images and masks.
    - ``labelled``: the indices of the images that have a mask, if some have none.
    - ``original(index)``: the :class:`~al_seg_env.datasets.originals.Original` that an image was made from, which is
      shown to people.

    Attributes:
        classes: The C class names; the position of a name is its label in the masks.
        names: One unique name per image. Splits are stored by name, so they stay valid if images are reordered.
        image_size: ``(height, width)`` of every image and mask.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the C classes."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """A unique name per image."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)``."""
        ...

    def image(self, index: int) -> UInt8Array:
        """Return image ``index``, ``(H, W, 3)`` uint8 RGB."""
        ...

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of image ``index``, ``(H, W)`` uint8 in ``[0, C)`` or ``IGNORE_LABEL``."""
        ...


class ArrayData:
    """Images and masks that are already in memory, as a :class:`SegmentationData`.

    Args:
        images: n images, each ``(H, W, 3)`` uint8, all of one size.
        masks: n masks, each ``(H, W)`` uint8 with labels below ``len(classes)`` or 255.
        classes: Names of the classes.
        names: Names of the images; their numbers if omitted.
        palette: ``(C, 3)`` uint8 colours; :func:`default_palette` if omitted.

    Raises:
        ValueError: If numbers, shapes, dtypes or labels are wrong. The message names every such image.
    """

    def __init__(
        self,
        images: Sequence[UInt8Array],
        masks: Sequence[UInt8Array],
        classes: Sequence[str],
        names: Sequence[str] | None = None,
        palette: UInt8Array | None = None,
    ) -> None:
        if not len(images) or len(images) != len(masks):
            raise ValueError(
                f"{len(images)} images and {len(masks)} masks are given; expected at least one image, and exactly one "
                "mask for each"
            )
        self.classes = check_classes(classes)
        self.names = tuple(names) if names is not None else tuple(str(i) for i in range(len(images)))
        if len(self.names) != len(images) or len(set(self.names)) != len(images):
            raise ValueError(
                f"names has {len(self.names)} entries; expected {len(images)} different names, one per image"
            )
        self.palette = check_palette(palette, len(self.classes))
        self._images, self._masks = [np.asarray(image) for image in images], [np.asarray(mask) for mask in masks]
        if self._images[0].ndim != 3 or not self._images[0].size:
            raise ValueError(f"image {self.names[0]!r} is {self._images[0].shape}; expected (height, width, 3)")
        self.image_size = (self._images[0].shape[0], self._images[0].shape[1])
        problems = []
        for name, image, mask in zip(self.names, self._images, self._masks, strict=True):
            if image.shape != (*self.image_size, 3) or image.dtype != np.uint8:
                problems.append(f"image {name!r} is {image.dtype} {image.shape}")
            if mask.shape != self.image_size or mask.dtype != np.uint8:
                problems.append(f"mask {name!r} is {mask.dtype} {mask.shape}")
            elif bad := labels_out_of_range(mask, len(self.classes)):
                problems.append(f"mask {name!r} holds labels {bad}")
        if problems:
            raise ValueError(
                f"expected uint8 images {(*self.image_size, 3)} and uint8 masks {self.image_size} with labels "
                f"0 to {len(self.classes) - 1} or {IGNORE_LABEL}, found: " + "; ".join(problems)
            )

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8Array:
        """Return image ``index``, ``(H, W, 3)`` uint8 RGB."""
        return self._images[index]

    def mask(self, index: int) -> UInt8Array:
        """Return the mask of image ``index``, ``(H, W)`` uint8."""
        return self._masks[index]


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of 1 to 255 classes as a tuple, or raise a ValueError."""
    # Sets are refused, because the position of a name is its label.
    names = tuple(classes) if isinstance(classes, (Sequence, np.ndarray)) and not isinstance(classes, str) else ()
    strings = all(isinstance(n, str) and n for n in names)
    if not strings or not 1 <= len(names) <= IGNORE_LABEL or len(set(names)) != len(names):
        found = f", {len(names)} in all" if names else ""
        raise ValueError(
            f"classes is {reprlib.repr(classes)}{found}; expected a list of 1 to {IGNORE_LABEL} different names: "
            f"labels are uint8, and {IGNORE_LABEL} means that nothing is labelled"
        )
    return names


def check_palette(palette: object, num_classes: int, name: str = "palette") -> UInt8Array:
    """Return ``(num_classes, 3)`` uint8 colours (default ones for None), or raise a ValueError with the name."""
    if palette is None:
        return default_palette(num_classes)
    try:
        colours = np.asarray(palette)
    except ValueError:  # not rectangular
        colours = np.asarray(None)
    whole = colours.shape == (num_classes, 3) and np.issubdtype(colours.dtype, np.integer)
    if not whole or colours.min() < 0 or colours.max() > 255:
        raise ValueError(
            f"{name} is {reprlib.repr(palette)}; expected {num_classes} colours (red, green, blue)"
            f"{', one per class,' if name == 'palette' else ''} of whole numbers from 0 to 255"
        )
    return colours.astype(np.uint8)


def labels_out_of_range(mask: UInt8Array, num_classes: int) -> list[int]:
    """Return the labels in ``mask`` that are neither a class (``< num_classes``) nor ``IGNORE_LABEL``."""
    present = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))
    return [int(label) for label in present if label >= num_classes and label != IGNORE_LABEL]


def check_labels(mask: UInt8Array, num_classes: int, name: str) -> None:
    """Raise a ValueError that names the labels of a mask that are neither a class nor 255."""
    if wrong := labels_out_of_range(mask, num_classes):
        raise ValueError(
            f"{name}: labels {wrong} are not classes; expected 0 to {num_classes - 1}, or {IGNORE_LABEL} for "
            "unlabelled: list every class, or map other labels to 255"
        )


def labelled_images(data: SegmentationData) -> tuple[int, ...]:
    """Return the indices of the images that have a mask: the data's ``labelled``, or all."""
    labelled = getattr(data, "labelled", None)
    return tuple(range(len(data.names))) if labelled is None else tuple(int(index) for index in labelled)


def default_palette(num_classes: int) -> UInt8Array:
    """Return ``(num_classes, 3)`` uint8 colours, spread over the hues in two shades."""
    hues = [(i * 0.61803398875) % 1.0 for i in range(num_classes)]
    shades = [colorsys.hsv_to_rgb(h, 0.65, 0.95 if i % 2 else 0.7) for i, h in enumerate(hues)]
    return (np.asarray(shades).reshape(num_classes, 3) * 255).astype(np.uint8)


def palette_of(data: SegmentationData) -> UInt8Array:
    """Return the colours of ``data``, ``(C, 3)`` uint8: its own ``palette`` or the default one."""
    palette = getattr(data, "palette", None)
    return default_palette(len(data.classes)) if palette is None else np.asarray(palette, np.uint8)
