"""Any folder of images and masks."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import apart, pair_files, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, check_classes, check_palette, default_palette
from al_seg_env.storage import read_json
from al_seg_env.storage.validation import check, check_choice, check_int, check_path
from al_seg_env.types import UInt8Array

LAYOUT = (
    "<root>/images/x.jpg with <root>/masks/x.png for each image, if you like in sub-folders such as train, "
    "val and test of both (other folder names: arguments images and masks)"
)
CLASSES_FORMAT = '{"classes": [{"name": "road", "color": [128, 64, 128]}, ...], "ignore": [255]} or ["road", ...]'


class ImageFolder(PairedFiles):
    """Images and masks in two folders, paired by file name.

    ::

        root/classes.json        {"classes": [{"name": "road", "color": [128, 64, 128]}, ...], "ignore": [9]}
        root/images/train/a.jpg  names: "train/a"; partitions: {"train": (0, ...), ...}
        root/masks/train/a.png   one channel; the n-th class of the list has the label n, from 0 on

    The first sub-folder, whatever its name, is the partition. Images may also lie directly in ``images``; their names
    are then like ``"a"``, and they belong to no partition. ``classes.json`` may also be a plain list of names, or omit
    ``color`` and ``ignore``. Files have one of the suffixes png, jpg, jpeg, webp, bmp, tif and tiff.

    Args:
        root: The folder that holds everything.
        images: Folder of the images, relative to ``root``.
        masks: Folder of the masks, relative to ``root``.
        classes: The C class names. If given, ``classes.json`` is not read.
        palette: C colours (red, green, blue), which override those in the file.
        image_size: ``(H, W)`` to resize to; None keeps the files' size, which must be the same for all.
        mask_suffix: Suffix of the stem by which a mask differs from its image, such as ``"_mask"`` for ``a_mask.png``.
            Files without it in the folder of masks are ignored.
        ignore_labels: Labels to be read as 255, in addition to 255 itself and to those that the file ignores. They may
            include the label of a class, which then never occurs. Not for coloured masks.
        coloured_masks: Whether the masks hold the classes' colours (RGB, or a palette) and not their numbers. The
            colours of all classes must then differ.
        ignore_colours: Colours to be read as 255. Only for coloured masks.
        missing_masks: Treatment of images without a mask: ``"error"``, or ``"unlabelled"``. For ``"unlabelled"``, all
            their labels are 255, ``labelled`` has the indices of the other images, and the folder of masks may be
            missing.
        fit: How images of other sizes become ``image_size``: ``"stretch"`` or ``"pad"``, see :class:`PairedFiles`. If
            omitted, they are padded if ``missing_masks`` is ``"unlabelled"``, and stretched otherwise.

    Raises:
        ValueError: If folders, classes, images or masks are missing, or files cannot be read or differ in size
            (see :class:`PairedFiles`). The message names all of them.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str = "images",
        masks: str = "masks",
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | UInt8Array | None = None,
        image_size: Sequence[int] | None = None,
        mask_suffix: str = "",
        ignore_labels: Sequence[int] = (),
        coloured_masks: bool = False,
        ignore_colours: Sequence[Sequence[int]] = (),
        missing_masks: str = "error",
        fit: str | None = None,
    ) -> None:
        root = check_path("root", root)
        for name, folder in (("images", images), ("masks", masks)):
            check(name, folder, isinstance(folder, str | os.PathLike), "the path of a folder in root")
        check("mask_suffix", mask_suffix, isinstance(mask_suffix, str), "a text")
        check("ignore_labels", ignore_labels, isinstance(ignore_labels, Iterable), "a list of labels")
        check("ignore_colours", ignore_colours, isinstance(ignore_colours, Sequence | np.ndarray), "a list of colours")
        if check_choice("coloured_masks", coloured_masks, (True, False)):
            check(
                "ignore_labels", ignore_labels, not len(tuple(ignore_labels)), "none: name the colours, ignore_colours"
            )
        else:
            check("ignore_colours", ignore_colours, not len(ignore_colours), "none, unless coloured_masks is True")
        check_choice("missing_masks", missing_masks, ("error", "unlabelled"))
        unlabelled = missing_masks == "unlabelled"
        require_folders(root, (images,) if unlabelled else (images, masks), LAYOUT)
        apart(root / images, root / masks)
        if classes is None:
            classes, colours, ignored = read_classes(root / "classes.json")
        else:
            classes = check_classes(classes)
            colours, ignored = default_palette(len(classes)), ()
        shown = colours if palette is None else check_palette(palette, len(classes))
        pairs = pair_files(root / images, root / masks, mask_suffix=mask_suffix, unlabelled=unlabelled)
        partitions: dict[str, list[int]] = {}
        for index, name in enumerate(pairs):
            if "/" in name:
                partitions.setdefault(name.split("/")[0], []).append(index)
        super().__init__(
            [image for image, _ in pairs.values()],
            [mask for _, mask in pairs.values()],
            classes,
            names=tuple(pairs),
            image_size=image_size,
            fit=("pad" if unlabelled else "stretch") if fit is None else fit,
            label_map=_first_labels(len(classes)) if coloured_masks else _label_map((*ignored, *ignore_labels)),
            palette=shown,
            mask_colours=_mask_colours(shown, ignore_colours) if coloured_masks else None,
            partitions=partitions,
        )


def read_classes(path: str | Path) -> tuple[tuple[str, ...], UInt8Array, tuple[int, ...]]:
    """Return the C names, the ``(C, 3)`` uint8 colours and the ignored labels in a ``classes.json``.

    Classes without a colour get the one that :func:`default_palette` has for them.

    Raises:
        OSError: If the path is not a regular file, or the file cannot be read.
        ValueError: If the file does not exist, or does not have the format that :class:`ImageFolder` shows.
    """
    path, expected = Path(path), f"expected {CLASSES_FORMAT}"
    if not path.exists():
        raise ValueError(f"{path} does not exist; give classes=[...], or write it ({expected})")
    content = read_json(path, expected)
    content = {"classes": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise ValueError(f"{path} has no list of classes; {expected}")
    if unknown := sorted(set(content) - {"classes", "ignore"}):
        raise ValueError(f"{path} holds the unknown keys {reprlib.repr(unknown)}; {expected}")
    ignored = content.get("ignore", [])
    if not isinstance(ignored, list):
        raise ValueError(f"{path}: ignore is {reprlib.repr(ignored)}, not a list of labels; {expected}")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in content["classes"]]
    if wrong := [e for e in entries if not isinstance(e, dict) or not {"name"} <= set(e) <= {"name", "color"}]:
        raise ValueError(f"{path}: the entries {reprlib.repr(wrong)} are not classes; {expected}")
    try:
        names = check_classes([entry["name"] for entry in entries])
        default = default_palette(len(names)).tolist()
        colours = check_palette([e.get("color", d) for e, d in zip(entries, default, strict=True)], len(names))
        _label_map(ignored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {expected}") from error
    return names, colours, tuple(ignored)


def _mask_colours(palette: UInt8Array, ignored: Sequence[Sequence[int]]) -> UInt8Array:
    """Return the colours of the classes followed by the ignored ones, ``(n, 3)`` uint8, or raise a ValueError."""
    others = check_palette(ignored, len(ignored), "ignore_colours") if len(ignored) else np.zeros((0, 3), np.uint8)
    colours = np.concatenate([palette, others])
    values, counts = np.unique(colours, axis=0, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"the colours {values[counts > 1].tolist()} stand for several classes or ignored regions; expected a "
            "different colour for each in classes.json, palette and ignore_colours"
        )
    return colours


def _first_labels(num_classes: int) -> UInt8Array:
    """Return the table that keeps the labels of the classes and maps all others to 255."""
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    return table


def _label_map(ignored: Sequence[Any]) -> UInt8Array:
    """Return the table that keeps labels below 256 and maps those in ``ignored`` to 255."""
    ignored = [check_int(f"ignore_labels[{i}]", label, 0, 2**16 - 1) for i, label in enumerate(ignored)]
    table = np.arange(max(256, *(label + 1 for label in ignored), 0), dtype=np.int64)
    kept = np.where(table < 256, table, IGNORE_LABEL - 1)
    kept[ignored] = IGNORE_LABEL
    return kept.astype(np.uint8)
