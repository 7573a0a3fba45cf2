"""Exporting a labelling session: masks at full size, and the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from al_seg_env.datasets.image_files import orientation_of
from al_seg_env.datasets.originals import original_of, whole
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.labelling.answered_data import AnsweredData
from al_seg_env.labelling.brush import label_config, write_tasks
from al_seg_env.labelling.coco import write_coco
from al_seg_env.labelling.cvat import write_cvat
from al_seg_env.learner.building import LearnerConfig, network_with
from al_seg_env.learner.light import Light
from al_seg_env.learner.weights import save_smp
from al_seg_env.registration import LEARNER_OPTIONS
from al_seg_env.storage import open_image, write_bytes, write_json, write_png, write_text
from al_seg_env.storage.validation import check_choice
from al_seg_env.types import UInt8Array
from al_seg_experiment.folders import claimed
from al_seg_experiment.label_session import NETWORK, LabelSession


class FullMask(NamedTuple):
    """An image's labels at the size of its original.

    Attributes:
        name: Path below the output folder, without a suffix.
        file: The image's file, as a path below the images' folder.
        url: Address of the image in a Label Studio that serves the parent of the images' folder.
        labels: What people labelled, ``(h, w)`` uint8.
        predicted: The same, with the network's prediction for the rest, if requested.
    """

    name: str
    file: str
    url: str
    labels: UInt8Array
    predicted: UInt8Array | None

    @property
    def shown(self) -> UInt8Array:
        """All known labels, ``(h, w)`` uint8."""
        return self.labels if self.predicted is None else self.predicted


FullMasks = Iterator[FullMask]
logger = logging.getLogger("al_seg_env")


def _png(out: Path, masks: FullMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    colours = [{"name": name, "color": colour} for name, colour in zip(classes, palette.tolist(), strict=True)]
    write_json(out / "classes.json", {"classes": colours})
    for mask in masks:
        write_png(out / "masks" / f"{mask.name}.png", mask.shown, palette=palette)
    return out / "masks"


def _cvat(out: Path, masks: FullMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    write_cvat(out / "masks.zip", ((mask.name, mask.shown) for mask in masks), classes, palette)
    return out / "masks.zip"


def _coco(out: Path, masks: FullMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    write_coco(out / "instances.json", ((mask.file, mask.shown) for mask in masks), classes)
    return out / "instances.json"


def _label_studio(out: Path, masks: FullMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    write_text(out / "interface.xml", label_config(classes, palette) + "\n")
    tasks = ((mask.name, mask.url, mask.labels, mask.predicted) for mask in masks)
    write_tasks(out / "tasks.json", tasks, classes)
    return out / "tasks.json"


FORMATS: dict[str, Callable[[Path, FullMasks, Sequence[str], UInt8Array], Path]] = {
    "png": _png,
    "coco": _coco,
    "cvat": _cvat,
    "label-studio": _label_studio,
}
"""Writes masks in a format, given a folder, the masks, classes and palette."""
WRITTEN = {
    "png": ("masks", "classes.json"),
    "coco": ("instances.json",),
    "cvat": ("masks.zip",),
    "label-studio": ("interface.xml", "tasks.json"),
}
"""What each format writes, beside the network."""


def export(session: LabelSession, out: str | Path, *, format: str = "png", predictions: bool = False) -> Path:
    """Write the labels of a session at full size, and its network if there is one yet.

    Masks match the images as displayed, rotated by their EXIF orientation; a warning counts the rotated ones.
    ``network.safetensors`` holds the network for ``weights=`` of this package, and the folder ``smp`` the network for
    ``segmentation_models_pytorch.from_pretrained``, except for the architecture ``Light``, which is not part of that
    library.

    Args:
        session: The session.
        out: Folder for the results.
        format: One of :data:`FORMATS`.
        predictions: Whether to fill unlabelled pixels with the network's prediction, also in images without any label.
            Label Studio keeps the two apart.

    Returns:
        The path of the masks.

    Raises:
        ValueError: If the format is unknown, there is nothing to export yet, or the folder holds files of the names
            that would be written, such as masks painted by hand, which no export has left; or if answers are missing
            that the session has used, or its network is not the one of its last step.
    """
    check_choice("format", format, tuple(FORMATS))
    out = Path(out)
    session.check_names()
    session.check_answers()
    data = AnsweredData(session.data, session.label_folder)
    network = session.network()
    if predictions and network is None:
        raise ValueError(
            f"{session.out} holds no network yet; label the regions of a step, or export without predictions"
        )
    images = range(len(data.names)) if predictions else data.labelled
    if not len(images):
        raise ValueError(f"nothing is labelled in {session.out} yet; label some regions first")
    # Nothing is requested any more, so that no budget is too large.
    env = session.make_env(data, weights=str(network), budget=1) if predictions else None

    def masks() -> FullMasks:
        turned = 0
        for image in tqdm(images, desc="export", leave=False):
            labels = data.full_mask(image)
            filled = None if env is None else np.where(labels == IGNORE_LABEL, _predicted(env, image), labels)
            path = _path(session, image)
            with open_image(path) as opened:
                turned += orientation_of(opened) != 1
            file = f"{data.names[image]}{path.suffix}"
            yield FullMask(file_stem(data.names[image]), file, _url(session, path), labels, filled)
        if turned:
            logger.warning(
                "%d of %d images have an EXIF orientation, and their masks match the images as displayed. Programs "
                "that read them must rotate the images, too: with Pillow, ImageOps.exif_transpose",
                turned,
                len(images),
            )

    with claimed(out, "export", {}, (*WRITTEN[format], *((NETWORK, "smp") if network else ()))):
        if network:
            _write_network(session, network, out)
        return FORMATS[format](out, masks(), data.classes, data.palette)


def _path(session: LabelSession, image: int) -> Path:
    path = session.data.original(image).path
    assert path is not None  # they are files
    return path


def _url(session: LabelSession, path: Path) -> str:
    """Return the address of an image's file in a Label Studio that serves the parent of the images' folder."""
    folder = Path(session.settings.images)
    return f"/data/local-files/?d={quote((folder.resolve().name / path.relative_to(folder)).as_posix())}"


def _predicted(env: RegionSelectionEnv, image: int) -> UInt8Array:
    """Return the most probable class of each pixel of an original image."""
    original = original_of(env.data, image)
    with torch.inference_mode():
        logits = env.learner.predict(env.inputs.whole([image]))
    labels = logits[0].argmax(dim=0).to("cpu", torch.uint8).numpy()
    return original.to_original(labels, whole(original.inside, image))


def _write_network(session: LabelSession, path: Path, out: Path) -> None:
    """Write a network for this package, and for segmentation-models-pytorch alone."""
    classes = session.data.classes
    settings = {name: value for name, value in session.options.items() if name in LEARNER_OPTIONS}
    network = network_with(LearnerConfig(**settings), path, classes)
    write_bytes(out / NETWORK, path.read_bytes())
    if not isinstance(network, Light):
        save_smp(network, out / "smp", classes)


def file_stem(name: str) -> str:
    """Return an image's name as the path of a file below a folder: sub-folders are kept, nothing leads outside.

    Masks pair with their images by name, so a name stays as it is wherever it can.
    """
    parts = (part.replace(".", "%2E") if part in (".", "..") else part for part in name.split("/"))
    return "/".join("".join(c if c.isprintable() and c != "\\" else quote(c, safe="") for c in part) for part in parts)
