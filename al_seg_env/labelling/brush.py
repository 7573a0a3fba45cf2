"""Label Studio's format of masks: brush labels, encoded as run lengths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.storage import replacing
from al_seg_env.types import Size, UInt8Array

LABELS, IMAGE = "labels", "image"
"""Names of the two tags of the labelling interface."""
MODEL_VERSION = "al-seg-env"
"""Name of the model that makes the predictions, in Label Studio."""
_RUN_SIZES = (3, 4, 8, 16)  # bits of a run's length


def write_tasks(
    path: str | Path, tasks: Iterable[tuple[str, str, UInt8Array, UInt8Array | None]], classes: Sequence[str]
) -> None:
    """Write tasks as JSON that Label Studio imports: images, each with an annotation and a prediction.

    Args:
        path: The file; it is replaced atomically.
        tasks: For each image its name, its URL, its labels ``(h, w)`` uint8, and its predicted labels, if any. If all
            labels are 255, the task has no annotation.
        classes: The C class names.
    """
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        separator = "["
        for name, url, labels, predicted in tasks:
            task: dict[str, Any] = {"data": {IMAGE: url, "name": name}}
            if results := brush_results(labels, classes):
                task["annotations"] = [{"result": results}]
            if predicted is not None:
                task["predictions"] = [{"model_version": MODEL_VERSION, "result": brush_results(predicted, classes)}]
            file.write(f"{separator}\n{json.dumps(task)}")  # one by one, since all at once may not fit into memory
            separator = ","
        file.write("\n]\n" if separator == "," else "[]\n")


def label_config(classes: Sequence[str], palette: UInt8Array) -> str:
    """Return a project's labelling interface: an image, and a brush for each class in its colour."""
    labels = "".join(
        f'<Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>'
        for name, colour in zip(classes, palette.tolist(), strict=True)
    )
    return (
        f'<View><Header value="Label what lies inside of the yellow outline"/>'
        f'<BrushLabels name="{LABELS}" toName="{IMAGE}">{labels}</BrushLabels>'
        f'<Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true"/></View>'
    )


def brush_results(mask: UInt8Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a mask ``(h, w)`` as brush labels, one for each class in it. Pixels of 255 are in none."""
    height, width = mask.shape
    return [
        {
            "id": f"class-{label}",
            "type": "brushlabels",
            "from_name": LABELS,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(mask == label), "brushlabels": [classes[label]]},
        }
        for label in np.unique(mask[mask != IGNORE_LABEL]).tolist()
    ]


def encode_brush(inside: npt.NDArray[np.bool_]) -> list[int]:
    """Encode pixels ``(h, w)`` as the brush's run lengths of an RGBA image, a stream of bits packed into bytes.

    The stream begins with the number of bytes of the image (32 bits), the number of bits in a byte minus one (5 bits),
    and the four possible sizes of a run's length minus one (4 bits each). Each run then consists of one bit that says
    whether it repeats a single byte, two bits that choose the size of its length, the length minus one, and the byte.

    >>> encode_brush(np.array([[True]]))
    [0, 0, 0, 4, 57, 27, 255, 0, 3, 255]
    """
    flat = inside.reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * 4
    most = 2 ** _RUN_SIZES[-1]
    parts = -(-lengths // most)
    values = np.repeat(flat[starts] * 255, parts)
    left = np.full(int(parts.sum()), most, np.int64)
    left[np.cumsum(parts) - 1] = lengths - (parts - 1) * most
    head = flat.size * 4
    for size, value in ((5, 7), *((4, size - 1) for size in _RUN_SIZES)):
        head = head << size | value
    runs = (0b111 << 24) | (left - 1) << 8 | values
    bits = np.concatenate([_bits(np.array([head]), 32 + 5 + 4 * 4), _bits(runs, 3 + _RUN_SIZES[-1] + 8)])
    encoded: list[int] = np.packbits(bits).tolist()
    return encoded


def decode_brush(encoded: Any, size: Size) -> npt.NDArray[np.bool_]:
    """Decode the brush's run lengths to pixels ``(h, w)``, which are true where the brush is more than half opaque.

    Raises:
        ValueError: If the run lengths are malformed, or of an image of another size.
    """
    content = np.asarray(encoded)
    if content.ndim != 1 or content.dtype.kind not in "iu" or ((content < 0) | (content > 255)).any():
        raise ValueError("has run lengths that are not a list of bytes")
    bits = np.unpackbits(content.astype(np.uint8))
    text = (bits + ord("0")).tobytes().decode("ascii")
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(text):
            raise ValueError("has run lengths that end too early")
        return int(text[position - count : position], 2)

    count, byte = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in _RUN_SIZES]
    if count != size[0] * size[1] * 4 or byte != 8:
        raise ValueError(f"has run lengths of {count} bytes of {byte} bits, expected {size[0]} x {size[1]} x 4 of 8")
    pixels = np.empty(count, np.uint8)
    done = 0
    while done < count:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        if done + length > count:
            raise ValueError("has run lengths that go beyond the image")
        if repeated:
            pixels[done : done + length] = read(8)
        else:
            given = bits[position : position + 8 * length]
            if given.size < 8 * length:
                raise ValueError("has run lengths that end too early")
            pixels[done : done + length] = np.packbits(given)
            position += 8 * length
        done += length
    return pixels.reshape(*size, 4)[..., 3] > 127


def _bits(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    return (values[:, None] >> np.arange(size - 1, -1, -1) & 1).astype(np.uint8).reshape(-1)
