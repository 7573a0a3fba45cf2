"""Make the folder of an `ImageFolder-v0` from Clothing Co-Parsing: 1,004 photographs of people, with labelled clothes.

The data set (Yang, Luo and Lin, CVPR 2014) is a repository, github.com/bearpaw/clothing-co-parsing. Its labels are
Matlab files. Its 59 tags become 17 classes, close to those of the ATR data set (Liang et al., TPAMI 2015): many tags
are on a few photographs only, and tell things apart that a coarse label cannot, such as pumps from wedges.

    python examples/clothing.py --data clothing-co-parsing --out clothing
    al-seg-env experiment run folder_frozen --set arguments.root=clothing ...

docs/paper/results.md has the whole second command, and what it gave.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from tqdm import tqdm

from al_seg_env.command_line import run

TAGS = {
    "background": "null",
    "skin": "skin",
    "hair": "hair",
    "hat": "hat",
    "glasses": "glasses sunglasses",
    "top": "blouse bodysuit hoodie shirt sweater sweatshirt t-shirt top vest",
    "coat": "blazer cape cardigan coat jacket suit",
    "dress": "dress",
    "jumpsuit": "jumper romper",
    "skirt": "skirt",
    "trousers": "jeans leggings pants shorts",
    "stockings": "socks stockings tights",
    "shoes": "boots clogs flats heels loafers pumps sandals shoes sneakers wedges",
    "bag": "bag purse wallet",
    "belt": "belt",
    "scarf": "scarf tie",
    "accessory": "accessories bracelet earrings gloves necklace ring watch",
}
UNLABELLED = {"bra", "intimate", "panties", "swimwear"}  # on two photographs


@dataclass(frozen=True)
class Options:
    """Make the folder of an ImageFolder-v0 from Clothing Co-Parsing."""

    data: Path = Path("clothing-co-parsing")
    """A clone of the repository, with photos/ and annotations/pixel-level/."""
    out: Path = Path("clothing")
    """Folder to write."""


def main(options: Options) -> None:
    tags = [str(name[0]) for name in scipy.io.loadmat(options.data / "label_list.mat")["label_list"][0]]
    label_of = {tag: label for label, names in enumerate(TAGS.values()) for tag in names.split()}
    if unknown := [tag for tag in tags if tag not in label_of and tag not in UNLABELLED]:
        raise ValueError(f"{options.data / 'label_list.mat'} has the unknown tags {unknown}; add them to TAGS")
    labels = np.array([255 if tag in UNLABELLED else label_of[tag] for tag in tags], dtype=np.uint8)
    for folder in ("images", "masks"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for file in tqdm(sorted((options.data / "annotations/pixel-level").glob("*.mat")), desc="photographs"):
        mask = labels[scipy.io.loadmat(file)["groundtruth"]]
        Image.fromarray(mask).save(options.out / "masks" / f"{file.stem}.png")
        photograph = f"{file.stem}.jpg"
        shutil.copyfile(options.data / "photos" / photograph, options.out / "images" / photograph)
    (options.out / "classes.json").write_text(json.dumps(list(TAGS)))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
