"""Pascal VOC (Everingham et al., 2010), and any data in its layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import check_partitions, listed, require_folders
from al_seg_env.storage.validation import check_path

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LAYOUT = (
    "the folder VOC2012 of VOCtrainval_11-May-2012.tar: JPEGImages/<name>.jpg, SegmentationClass/<name>.png, and the "
    "names in ImageSets/Segmentation/train.txt and val.txt"
)


class PascalVOC(PairedFiles):
    """Pascal VOC with 21 classes, or data of other classes in its layout.

    Masks are palette PNGs that hold the labels; 255, the border of objects, stays 255. The lists in
    ``ImageSets/Segmentation`` give names, one a line, and ``partitions``. Images differ in size, so an ``image_size``
    is needed.

    Args:
        root: The folder that holds ``JPEGImages``, ``SegmentationClass`` and ``ImageSets``.
        image_size: ``(H, W)`` of every image.
        fit: ``"pad"`` keeps the aspect ratio, ``"stretch"`` fills the image; see :class:`PairedFiles`.
        classes: Names of the classes, if they differ from Pascal VOC's.
        partitions: Lists to read, each a file ``<partition>.txt``.

    Raises:
        ValueError: If folders, lists or files are missing or cannot be read, or the lists name an image twice or none.
            The message names all of them.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: Sequence[int],
        *,
        fit: str = "pad",
        classes: Sequence[str] = VOC_CLASSES,
        partitions: Sequence[str] = ("train", "val"),
    ) -> None:
        root = check_path("root", root)
        require_folders(root, ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"), LAYOUT)
        names: list[str] = []
        ranges = {}
        for partition in check_partitions(partitions, ("train", "val")):
            path = root / "ImageSets/Segmentation" / f"{partition}.txt"
            if not path.is_file():
                raise ValueError(f"{path} does not exist; expected {LAYOUT}")
            found = _names(path)
            if twice := [name for name, n in Counter(names + found).items() if n > 1]:
                raise ValueError(f"{path} names images again: {listed(twice)}; keep each in one line of one list")
            ranges[partition] = range(len(names), len(names) + len(found))
            names += found
        images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
        masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
        if missing := [str(path) for path in (*images, *masks) if not path.is_file()]:
            raise ValueError(f"{len(missing)} files of the lists are missing: {listed(missing)}; expected {LAYOUT}")
        super().__init__(images, masks, classes, names=names, image_size=image_size, fit=fit, partitions=ranges)


def _names(path: Path) -> list[str]:
    """Return the lines of a list of names, without those that are empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error}); expected one name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty; expected one name a line, or leave this partition out")
    return names
