"""Weights of a segmentation network as files: theta_0, and those that an encoder was pretrained with."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from al_seg_env.learner.contract import HasNetwork, Learner
from al_seg_env.storage import read_json, replacing, tree_digest, write_bytes, write_json

FORMAT = "al-seg-env weights"
FORMAT_VERSION = "1"
METADATA = "weights"
SMP_CONFIG, SMP_WEIGHTS = "config.json", "model.safetensors"
"""What ``save_pretrained`` of segmentation-models-pytorch writes into a folder."""
CLASS_NAMES = "classes.json"
"""What is added to it, since its configuration only has the number of classes."""
UNNAMED = "unnamed"


def save_weights(learner: Learner | HasNetwork, path: str | Path, classes: Sequence[str]) -> None:
    """Write a learner's weights and buffers as safetensors, so that ``weights=path`` makes them theta_0.

    Equal weights of equal classes give equal files.

    Args:
        learner: A learner with a ``network``, such as :class:`~al_seg_env.learner.torch_learner.TorchLearner`.
        path: The file.
        classes: Names of the classes that the network was trained for.

    Raises:
        OSError: If they cannot be written; what was at ``path`` before is unchanged.
        ValueError: If the learner has no network.
    """
    if not isinstance(learner, HasNetwork):
        raise ValueError(
            f"{type(learner).__name__} has no network whose weights could be written; give it an attribute network, "
            "or write its state_dict()"
        )
    whole: Callable[[], Mapping[str, Tensor]] = getattr(learner, "whole_state_dict", learner.network.state_dict)
    tensors = {key: value.detach().cpu().contiguous() for key, value in whole().items()}
    about = {"format": FORMAT, "version": FORMAT_VERSION, "classes": list(classes)}
    with replacing(path) as unfinished:
        try:
            # One entry: safetensors writes several in an order that differs between runs.
            save_file(tensors, unfinished, {METADATA: json.dumps(about)})
        except SafetensorError as error:  # how it reports what the system says
            raise OSError(0, str(error)) from error


def save_smp(network: nn.Module, folder: str | Path, classes: Sequence[str]) -> None:
    """Write a network of segmentation-models-pytorch as a folder that ``smp.from_pretrained(folder)`` loads.

    ``weights=folder`` makes it theta_0, as a file of :func:`save_weights` is. Beside what smp writes (``config.json``
    and ``model.safetensors``) the folder gets ``classes.json``, the names of the classes.

    Args:
        network: The network; of a learner whose encoder is trained it is ``learner.network``.
        folder: The folder, which is made if necessary; nothing else in it is touched.
        classes: Names of the classes that the network was trained for.

    Raises:
        OSError: If the files cannot be written.
        ValueError: If it is no network of smp.
    """
    if getattr(smp, type(network).__name__, None) is not type(network):
        raise ValueError(
            f"{type(network).__name__} is no network of segmentation-models-pytorch, so it can't be stored in their "
            "format; use save_weights()"
        )
    folder = Path(folder)
    assert isinstance(network, smp.base.SegmentationModel)
    with tempfile.TemporaryDirectory() as written:
        network.save_pretrained(written)
        for name in (SMP_CONFIG, SMP_WEIGHTS):
            write_bytes(folder / name, Path(written, name).read_bytes())
    write_json(folder / CLASS_NAMES, list(classes))


def load_weights(network: nn.Module, path: str | Path, classes: Sequence[str]) -> None:
    """Load what :func:`save_weights` or :func:`save_smp` wrote, or ``save_pretrained`` of smp.

    The latter does not store the names of the classes: their number must be right, and their order is up to the caller.

    Raises:
        ValueError: If the file cannot be read, is of another format or of other classes, or does not fit.
    """
    about, tensors = _read(path)
    if about.get("classes") not in (list(classes), UNNAMED):
        raise ValueError(
            f"weights {str(path)!r} are for the classes {about.get('classes')}, but the data have {list(classes)}; use "
            "weights that were trained for the data's classes"
        )
    load_fitting(network, tensors, path)


def weights_digest(path: str | Path) -> str:
    """Return what identifies weights that :func:`load_weights` loads, however they were written.

    Raises:
        ValueError: If they cannot be read, or are of another format.
    """
    about, tensors = _read(path)
    return tree_digest([about.get("classes"), tensors])


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file of :func:`save_weights`, or a folder of smp's, says of its weights, and the weights."""
    if Path(path).is_dir():
        return _read_smp(Path(path))
    metadata, tensors = _read_safetensors(path)
    try:
        if METADATA in metadata:
            about = json.loads(metadata[METADATA])
        else:  # three entries, as earlier versions wrote them
            about = {**metadata, "classes": json.loads(metadata.get("classes", "null"))}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"weights {str(path)!r} cannot be read as safetensors: {error}") from error
    about = about if isinstance(about, dict) else {}
    if (about.get("format"), about.get("version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"weights {str(path)!r} are not {FORMAT!r}, version {FORMAT_VERSION} (found {about.get('format')!r}, "
            f"version {about.get('version')!r}); make them with save_weights() or examples/pretrain.py"
        )
    return about, tensors


def _read_smp(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the classes' names, if they are stored, and the weights in a folder of ``save_pretrained``."""
    if missing := [name for name in (SMP_CONFIG, SMP_WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(
            f"weights {str(folder)!r} are a folder without {' and '.join(missing)}; expected what save_pretrained() of "
            "segmentation-models-pytorch wrote, or name a file of save_weights()"
        )
    named = (folder / CLASS_NAMES).is_file()
    classes = read_json(folder / CLASS_NAMES, "expected a list of class names") if named else UNNAMED
    return {"classes": classes}, _read_safetensors(folder / SMP_WEIGHTS)[1]


def _read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a file."""
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"weights {str(path)!r} cannot be read as safetensors: {error}") from error


def is_weights_file(text: str) -> bool:
    """Return whether ``encoder_weights`` names a file, and not weights that smp knows by name."""
    return Path(text).suffix in {".safetensors", ".pth", ".pt", ".bin"} or os.sep in text


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ValueError(f"weights {str(path)!r}: there is no such file")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read tensors without unpickling anything else."""
    _check_file(path)
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a damaged or unsafe file
        raise ValueError(f"weights {str(path)!r} cannot be read: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"weights {str(path)!r} hold {type(tensors).__name__}; expected a state dict of tensors")
    return tensors


def load_fitting(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict, or say in one error all that does not fit."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    wrong = [
        f"{key}: {tuple(tensors[key].shape)} in the file, {tuple(expected[key].shape)} in the network"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    if missing or unknown or wrong:
        problems = [
            f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
            if keys
        ]
        raise ValueError(
            f"weights {str(path)!r} do not fit {type(module).__name__}; " + "; ".join(problems) + ". Use the "
            "architecture, encoder and number of classes that they were trained with"
        )
    module.load_state_dict({key: tensors[key] for key in expected})
