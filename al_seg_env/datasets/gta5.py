"""GTA5 (Richter et al., 2016, "Playing for Data"), on which the paper pretrains (section 4.1, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from al_seg_env.datasets.camvid import CAMVID_CLASSES, CAMVID_PALETTE
from al_seg_env.datasets.cityscapes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, train_ids
from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import pair_files, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage.validation import check_choice, check_path
from al_seg_env.types import UInt8Array

GTA5_UNUSABLE = frozenset(f"{number:05d}" for number in (15188, 17705, *range(20801, 20861)))
"""Published pairs that cannot be used: two blank images, and 60 whose labels differ from the image in size."""

_CAMVID_OF_LABEL = {
    **{23: "Sky", 11: "Building", 17: "Pole", 7: "Road", 8: "Pavement", 21: "Tree", 13: "Fence", 24: "Pedestrian"},
    **dict.fromkeys((19, 20), "SignSymbol"),
    **dict.fromkeys((26, 27, 28, 32), "Car"),  # trucks, buses and motorcycles, too
    33: "Bicyclist",
}
"""CamVid's classes of those labels that have one, as in the released code's pretraining for CamVid."""

LAYOUT = (
    "the folders of 01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip "
    "(download.visinf.tu-darmstadt.de/data/from_games), all unpacked into one place: images/00001.png ... "
    "and labels/00001.png ..."
)


class GTA5(PairedFiles):
    """GTA5 with the 19 classes of Cityscapes: 24966 images, nearly all of 1052 x 1914 pixels.

    Labels are palette PNGs whose pixels are Cityscapes label ids (34 is the licence plate). They are mapped to the 19
    train ids, and all others become 255. Names are the files' stems, such as ``"00001"``. There are no partitions: the
    paper pretrains on the whole data set, and :meth:`Splits.draw` splits it. The pairs of :data:`GTA5_UNUSABLE` are
    omitted, so 24904 pairs remain of the whole data set.

    Args:
        root: The folder that holds ``images`` and ``labels``.
        image_size: ``(H, W)`` to resize to. The whole data set needs one, because a few images differ in size (1046 x
            1914, for example).
        classes: ``"cityscapes"``, or ``"camvid"`` for CamVid's 11 classes.

    Raises:
        ValueError: If ``classes`` has another value, folders, images or labels are missing, or files cannot be read or
            differ in size. The message names all of them.
    """

    def __init__(self, root: str | Path, image_size: Sequence[int] | None = None, classes: str = "cityscapes") -> None:
        check_choice("classes", classes, ("cityscapes", "camvid"))
        for_camvid = classes == "camvid"
        root = check_path("root", root)
        require_folders(root, ["images", "labels"], LAYOUT)
        pairs = pair_files(root / "images", root / "labels")
        names = [name for name in pairs if name.rsplit("/", 1)[-1] not in GTA5_UNUSABLE]
        super().__init__(
            [pairs[name][0] for name in names],
            [pairs[name][1] for name in names],
            CAMVID_CLASSES if for_camvid else CITYSCAPES_CLASSES,
            names=names,
            image_size=image_size,
            label_map=_camvid_ids() if for_camvid else train_ids(),
            palette=np.asarray(CAMVID_PALETTE if for_camvid else CITYSCAPES_PALETTE, np.uint8),
        )


def _camvid_ids() -> UInt8Array:
    """Return the table from label id to CamVid's class, ``(256,)`` uint8; 255 for labels without a class."""
    table: UInt8Array = np.full(256, IGNORE_LABEL, np.uint8)
    for label, name in _CAMVID_OF_LABEL.items():
        table[label] = CAMVID_CLASSES.index(name)
    return table
