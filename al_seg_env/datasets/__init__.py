"""Sources of images and masks, and the splits that the paper divides them into."""

from al_seg_env.datasets.camvid import CamVid
from al_seg_env.datasets.cityscapes import Cityscapes
from al_seg_env.datasets.coco_panoptic import COCOPanoptic
from al_seg_env.datasets.coco_stuff import COCOStuff
from al_seg_env.datasets.folder import ImageFolder
from al_seg_env.datasets.gta5 import GTA5
from al_seg_env.datasets.hugging_face import HuggingFaceData
from al_seg_env.datasets.image_files import PairedFiles
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, ArrayData, SegmentationData
from al_seg_env.datasets.splits import Splits
from al_seg_env.datasets.synthetic.streets import SyntheticStreets
from al_seg_env.datasets.voc import PascalVOC

__all__ = [
    "GTA5",
    "IGNORE_LABEL",
    "ArrayData",
    "COCOPanoptic",
    "COCOStuff",
    "CamVid",
    "Cityscapes",
    "HuggingFaceData",
    "ImageFolder",
    "PairedFiles",
    "PascalVOC",
    "SegmentationData",
    "Splits",
    "SyntheticStreets",
]
