"""Files with weights of a segmentation network: theta_0, and weights of a pretrained encoder."""

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
"""Files that ``save_pretrained`` of segmentation-models-pytorch writes into a folder."""
CLASS_NAMES = "classes.json"
"""File that is added to the folder, since smp's configuration only has the number of classes."""
UNNAMED = "unnamed"


def save_weights(learner: Learner | HasNetwork, path: str | Path, classes: Sequence[str]) -> None:
    """Write a learner's weights and buffers as safetensors. With ``weights=path``, they become theta_0.

    Equal weights with equal classes give identical files.

    Args:
        learner: A learner with a ``network``, such as :class:`~al_seg_env.learner.torch_learner.TorchLearner`.
        path: The file.
        classes: Names of the classes that the network was trained for.

    Raises:
        OSError: If the file cannot be written; an earlier file at ``path`` is unchanged.
        ValueError: If the learner has no network.
    """
    if not isinstance(learner, HasNetwork):
        raise ValueError(
            f"{type(learner).__name__} has no network whose weights could be written; add an attribute network, or "
            "write its state_dict()"
        )
    whole: Callable[[], Mapping[str, Tensor]] = getattr(learner, "whole_state_dict", learner.network.state_dict)
    tensors = {key: value.detach().cpu().contiguous() for key, value in whole().items()}
    about = {"format": FORMAT, "version": FORMAT_VERSION, "classes": list(classes)}
    with replacing(path) as unfinished:
        try:
            # A single entry, because safetensors writes several in an order that differs between runs.
            save_file(tensors, unfinished, {METADATA: json.dumps(about)})
        except SafetensorError as error:  # safetensors wraps errors of the operating system
            raise OSError(0, str(error)) from error


def save_smp(network: nn.Module, folder: str | Path, classes: Sequence[str]) -> None:
    """Write a network of segmentation-models-pytorch as a folder that ``smp.from_pretrained(folder)`` loads.

    With ``weights=folder``, its weights become theta_0, as with a file of :func:`save_weights`. In addition to smp's
    files (``config.json`` and ``model.safetensors``), the folder gets ``classes.json`` with the names of the classes.

    Args:
        network: The network; for a learner whose encoder is trained, ``learner.network``.
        folder: The folder, created if necessary; other files in it are left alone.
        classes: Names of the classes that the network was trained for.

    Raises:
        OSError: If the files cannot be written.
        ValueError: If the network is not one of smp.
    """
    if getattr(smp, type(network).__name__, None) is not type(network):
        raise ValueError(
            f"{type(network).__name__} is not a network of segmentation-models-pytorch, so it can't be stored in that "
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
    """Load weights that :func:`save_weights`, :func:`save_smp` or smp's ``save_pretrained`` wrote.

    ``save_pretrained`` does not store the names of the classes: their number is checked, but the caller is responsible
    for their order.

    Raises:
        ValueError: If the file cannot be read, has another format or other classes, or doesn't match the network.
    """
    about, tensors = _read(path)
    if about.get("classes") not in (list(classes), UNNAMED):
        raise ValueError(
            f"weights {str(path)!r} are for the classes {about.get('classes')}, but the data have {list(classes)}; use "
            "weights that were trained for the data's classes"
        )
    load_fitting(network, tensors, path)


def weights_digest(path: str | Path) -> str:
    """Return a digest of weights that :func:`load_weights` loads, the same however they were written.

    Raises:
        ValueError: If the weights cannot be read, or have another format.
    """
    about, tensors = _read(path)
    return tree_digest([about.get("classes"), tensors])


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and the weights in a file of :func:`save_weights`, or in a folder of smp."""
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
    """Return the classes' names, if they are stored, and the weights from a folder of ``save_pretrained``."""
    if missing := [name for name in (SMP_CONFIG, SMP_WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(
            f"weights {str(folder)!r} are a folder without {' and '.join(missing)}; expected what save_pretrained() of "
            "segmentation-models-pytorch wrote, or name a file of save_weights()"
        )
    named = (folder / CLASS_NAMES).is_file()
    classes = read_json(folder / CLASS_NAMES, "expected a list of class names") if named else UNNAMED
    return {"classes": classes}, _read_safetensors(folder / SMP_WEIGHTS)[1]


def _read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a file."""
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"weights {str(path)!r} cannot be read as safetensors: {error}") from error


def is_weights_file(text: str) -> bool:
    """Return whether ``encoder_weights`` is the path of a file, and not a name that smp knows."""
    return Path(text).suffix in {".safetensors", ".pth", ".pt", ".bin"} or os.sep in text


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ValueError(f"weights {str(path)!r}: there is no such file")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors without unpickling anything else."""
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
    """Load a state dict, or raise one ValueError that lists everything that does not match."""
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
            f"weights {str(path)!r} do not match {type(module).__name__}; " + "; ".join(problems) + ". Use the "
            "architecture, encoder and number of classes that they were trained with"
        )
    module.load_state_dict({key: tensors[key] for key in expected})
