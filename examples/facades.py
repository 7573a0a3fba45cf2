"""Make the folder of an `ImageFolder-v0` from LabelMeFacade: 676 labelled photographs of streets.

The data set (Fröhlich, Rodner and Denzler, ICPR 2010) is a repository, github.com/cvjena/labelmefacade, for
non-commercial research. Of its 945 photographs, those are taken that are wider than high, so that they have about one
shape. Its eight classes are kept; "various" becomes unlabelled.

    python examples/facades.py --data labelmefacade --out facades
    al-seg-env experiment run folder_frozen --set arguments.root=facades ...

docs/paper/results.md has the whole second command, and what it gave.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from al_seg_env.command_line import run

COLOURS = {
    "building": (128, 0, 0),
    "car": (128, 0, 128),
    "door": (128, 128, 0),
    "pavement": (128, 128, 128),
    "road": (128, 64, 0),
    "sky": (0, 128, 128),
    "vegetation": (0, 128, 0),
    "window": (0, 0, 128),
}
VARIOUS = (0, 0, 0)
UNLABELLED = 255


@dataclass(frozen=True)
class Options:
    """Make the folder of an ImageFolder-v0 from LabelMeFacade."""

    data: Path = Path("labelmefacade")
    """A clone of the repository, with images/ and labels/."""
    out: Path = Path("facades")
    """Folder to write."""


def main(options: Options) -> None:
    for folder in ("images", "masks"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for file in tqdm(sorted((options.data / "labels").glob("*.png")), desc="photographs"):
        colours = np.asarray(Image.open(file).convert("RGB"))  # (H, W, 3)
        height, width = colours.shape[:2]
        if width <= height:
            continue
        mask = np.full((height, width), UNLABELLED, dtype=np.uint8)
        known = (colours == VARIOUS).all(axis=2)
        for label, colour in enumerate(COLOURS.values()):
            here = (colours == colour).all(axis=2)
            mask[here] = label
            known |= here
        if not known.all():
            raise ValueError(f"{file} has the unknown colour {tuple(colours[~known][0])}; add it to COLOURS")
        Image.fromarray(mask).save(options.out / "masks" / file.name)
        photograph = f"{file.stem}.jpg"
        shutil.copyfile(options.data / "images" / photograph, options.out / "images" / photograph)
    (options.out / "classes.json").write_text(json.dumps(list(COLOURS)))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
