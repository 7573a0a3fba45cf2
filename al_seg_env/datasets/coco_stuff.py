"""COCO-Stuff (Caesar et al., 2018): things and stuff in the images of COCO, as maps of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.pairing import check_partitions, pair_files, require_folders
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage.validation import check_path
from al_seg_env.types import UInt8Array

_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat,
    backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
    baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork,
    knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
    couch, potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote,
    keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush, hair brush, banner, blanket, branch, bridge, building-other, bush,
    cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard,
    curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood,
    flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
    metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic,
    platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other,
    skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel,
    tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
    water-other, waterdrops, window-blind, window-other, wood
"""
COCO_STUFF_LABELS = tuple(" ".join(name.split()) for name in _NAMES.split(","))
"""Names of the labels 0 to 181 in the maps: 91 things, then 91 kinds of stuff."""
COCO_STUFF_ABSENT = frozenset(
    ["blender", "desk", "door", "eye glasses", "hair brush", "hat", "mirror", "plate", "shoe", "street sign", "window"]
)
"""Things of which COCO has no pixels."""
COCO_STUFF_CLASSES = tuple(name for name in COCO_STUFF_LABELS if name not in COCO_STUFF_ABSENT)
"""The 171 classes: 80 things, then 91 kinds of stuff."""
LAYOUT = (
    "what github.com/nightrome/cocostuff unpacks: images/train2017/*.jpg and images/val2017/*.jpg, and from "
    "stuffthingmaps_trainval2017.zip annotations/train2017/*.png and annotations/val2017/*.png"
)


class COCOStuff(PairedFiles):
    """COCO-Stuff with 171 classes: 118,287 images in ``train2017`` and 5,000 in ``val2017``.

    Names consist of the partition and the file's stem, such as ``"val2017/000000000139"``; ``partitions`` are called
    ``train`` and ``val``. Images differ in size, so an ``image_size`` is needed. Construction opens every file, so
    name only the partitions that you need.

    Args:
        root: The folder that holds ``images`` and ``annotations``.
        image_size: ``(H, W)`` of every image.
        fit: ``"pad"`` keeps the aspect ratio, ``"stretch"`` fills the image; see :class:`PairedFiles`.
        partitions: Folders to read.

    Raises:
        ValueError: If folders, images or masks are missing, or files cannot be read. The message names all of them.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: Sequence[int],
        *,
        fit: str = "pad",
        partitions: Sequence[str] = ("train2017", "val2017"),
    ) -> None:
        root = check_path("root", root)
        folders = check_partitions(partitions, ("train2017", "val2017"), "2017")
        require_folders(root, [f"{kind}/{name}" for kind in ("images", "annotations") for name in partitions], LAYOUT)
        pairs = {
            f"{partition}/{name}": pair
            for partition in partitions
            for name, pair in pair_files(root / "images" / partition, root / "annotations" / partition).items()
        }
        super().__init__(
            [image for image, _ in pairs.values()],
            [mask for _, mask in pairs.values()],
            COCO_STUFF_CLASSES,
            names=tuple(pairs),
            image_size=image_size,
            fit=fit,
            label_map=_classes_of_labels(),
            partitions={
                key: [index for index, name in enumerate(pairs) if name.startswith(f"{folder}/")]
                for key, folder in folders.items()
            },
        )


def _classes_of_labels() -> UInt8Array:
    """Return the table from label to class, ``(256,)`` uint8; 255 for labels without a class."""
    table: UInt8Array = np.full(256, IGNORE_LABEL, np.uint8)
    for label, name in enumerate(COCO_STUFF_LABELS):
        if name in COCO_STUFF_CLASSES:
            table[label] = COCO_STUFF_CLASSES.index(name)
    return table
