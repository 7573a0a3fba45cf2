"""Cityscapes (Cordts et al., 2016), section 4.1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import pair_files, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage.validation import check_path
from al_seg_env.types import UInt8Array

# The label in *_labelIds.png, the name and the colour, in the order of the official train ids.
_TRAINED = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CITYSCAPES_CLASSES = tuple(name for _, name, _ in _TRAINED)
CITYSCAPES_PALETTE = tuple(colour for _, _, colour in _TRAINED)

PARTITIONS = ("train", "val")
LAYOUT = (
    "the folders of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com), "
    "unpacked side by side: leftImg8bit/train/<city>/*_leftImg8bit.png, "
    "gtFine/train/<city>/*_gtFine_labelIds.png, and the same for val"
)


class Cityscapes(PairedFiles):
    """Cityscapes with its fine annotations and 19 classes: 2975 / 500 images of 1024 x 2048 pixels.

    The ``labelIds`` masks are mapped to the 19 train ids, and all other labels become 255. Names are like
    ``"aachen_000000_000019"``, and ``partitions`` are ``train`` and ``val`` (the labels of test are not public).

    Args:
        root: The folder that holds ``leftImg8bit`` and ``gtFine``.
        image_size: ``(H, W)`` to resize to, or None.

    Raises:
        ValueError: If folders, images or masks are missing, or files cannot be read. The message names all of them.
    """

    def __init__(self, root: str | Path, image_size: Sequence[int] | None = None) -> None:
        root = check_path("root", root)
        require_folders(root, [f"{kind}/{p}" for kind in ("leftImg8bit", "gtFine") for p in PARTITIONS], LAYOUT)
        names: list[str] = []
        files: list[tuple[Path, Path | None]] = []
        partitions = {}
        for partition in PARTITIONS:
            pairs = pair_files(
                root / "leftImg8bit" / partition,
                root / "gtFine" / partition,
                image_suffix="_leftImg8bit",
                mask_suffix="_gtFine_labelIds",
            )
            partitions[partition] = range(len(names), len(names) + len(pairs))
            names += [key.rsplit("/", 1)[-1] for key in pairs]
            files += pairs.values()
        super().__init__(
            [image for image, _ in files],
            [mask for _, mask in files],
            CITYSCAPES_CLASSES,
            names=names,
            image_size=image_size,
            label_map=train_ids(),
            palette=np.asarray(CITYSCAPES_PALETTE, np.uint8),
            partitions=partitions,
        )


def train_ids() -> UInt8Array:
    """Return the table from Cityscapes label id to train id, ``(256,)`` uint8; 255 for labels without a train id."""
    table: UInt8Array = np.full(256, IGNORE_LABEL, np.uint8)
    for train_id, (label, _, _) in enumerate(_TRAINED):
        table[label] = train_id
    return table
