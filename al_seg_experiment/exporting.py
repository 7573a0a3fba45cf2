"""What comes out of a labelling session: masks at full size, and the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from al_seg_env.datasets.originals import original_of, whole
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.labelling.answered_data import AnsweredData
from al_seg_env.labelling.coco import write_coco
from al_seg_env.labelling.cvat import write_cvat
from al_seg_env.learner.building import LearnerConfig, network_with
from al_seg_env.learner.light import Light
from al_seg_env.learner.weights import save_smp
from al_seg_env.registration import LEARNER_OPTIONS
from al_seg_env.storage import write_bytes, write_json, write_png
from al_seg_env.storage.validation import check_choice
from al_seg_env.types import UInt8Array
from al_seg_experiment.label_session import NETWORK, LabelSession

NamedMasks = Iterator[tuple[str, UInt8Array]]


def _png(out: Path, masks: NamedMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    colours = [{"name": name, "color": colour} for name, colour in zip(classes, palette.tolist(), strict=True)]
    write_json(out / "classes.json", {"classes": colours})
    for name, mask in masks:
        write_png(out / "masks" / f"{name}.png", mask, palette=palette)
    return out / "masks"


def _cvat(out: Path, masks: NamedMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    write_cvat(out / "masks.zip", masks, classes, palette)
    return out / "masks.zip"


def _coco(out: Path, masks: NamedMasks, classes: Sequence[str], palette: UInt8Array) -> Path:
    write_coco(out / "instances.json", ((f"{name}.png", mask) for name, mask in masks), classes)
    return out / "instances.json"


FORMATS: dict[str, Callable[[Path, NamedMasks, Sequence[str], UInt8Array], Path]] = {
    "png": _png,
    "coco": _coco,
    "cvat": _cvat,
}
"""Writes masks in a format, given a folder, names of images and their masks, classes and palette."""


def export(session: LabelSession, out: str | Path, *, format: str = "png", predictions: bool = False) -> Path:
    """Write the labels of a session at full size, and its network if there is one yet.

    Beside the masks, ``network.safetensors`` holds the network for ``weights=`` of this package, and the folder ``smp``
    what ``segmentation_models_pytorch.from_pretrained`` loads; not for the architecture ``Light``, which is none of
    theirs.

    Args:
        session: The session.
        out: Folder of the results.
        format: One of :data:`FORMATS`.
        predictions: Fill what nobody labelled with what the network predicts; images without any label, too.

    Returns:
        Where the masks are.

    Raises:
        ValueError: If the format is unknown, or there is nothing to export yet.
    """
    check_choice("format", format, tuple(FORMATS))
    out = Path(out)
    data = AnsweredData(session.data, session.label_folder)
    trained = (session.out / NETWORK).exists()
    if predictions and not trained:
        raise ValueError(
            f"{session.out} holds no network yet; label the regions of a step, or export without predictions"
        )
    images = range(len(data.names)) if predictions else data.labelled
    if not len(images):
        raise ValueError(f"nothing is labelled in {session.out} yet; label some regions first")
    if trained:
        _write_network(session, out)
    env = session.make_env(data, weights=str(session.out / NETWORK)) if predictions else None

    def masks() -> NamedMasks:
        for image in tqdm(images, desc="export", leave=False):
            mask = data.full_mask(image)
            if predictions and env is not None:
                unlabelled = mask == IGNORE_LABEL
                mask = np.where(unlabelled, _predicted(env, image), mask)
            yield _file_stem(data.names[image]), mask

    return FORMATS[format](out, masks(), data.classes, data.palette)


def _predicted(env: RegionSelectionEnv, image: int) -> UInt8Array:
    """Return the most probable class of each pixel of an original image."""
    original = original_of(env.data, image)
    with torch.inference_mode():
        logits = env.learner.predict(env.inputs.whole([image]))
    labels = logits[0].argmax(dim=0).to("cpu", torch.uint8).numpy()
    return original.to_original(labels, whole(original.inside, image))


def _write_network(session: LabelSession, out: Path) -> None:
    """Write a network for this package, and for those who have segmentation-models-pytorch alone."""
    classes = session.data.classes
    settings = {name: value for name, value in session.options.items() if name in LEARNER_OPTIONS}
    network = network_with(LearnerConfig(**settings), session.out / NETWORK, classes)
    write_bytes(out / NETWORK, (session.out / NETWORK).read_bytes())
    if not isinstance(network, Light):
        save_smp(network, out / "smp", classes)


def _file_stem(name: str) -> str:
    """Return an image's name as the path of a file below a folder: sub-folders are kept, nothing leads outside."""
    return "/".join(
        quote(part, safe=" ") if part not in (".", "..") else part.replace(".", "%2E") for part in name.split("/")
    )
