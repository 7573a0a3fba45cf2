"""Exchange with CVAT in its format "Segmentation mask 1.1": zip files of coloured masks."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from al_seg_env.datasets.image_files import problem_of
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.labelling.label_folder import file_name
from al_seg_env.labelling.oracles import LabelsPending, PeopleOracle, each_or_all_problems
from al_seg_env.labelling.request import Answer, Request
from al_seg_env.storage import replacing, write_json
from al_seg_env.types import IntArray, Size, UInt8Array

BACKGROUND = "background"
MAX_FILES, MAX_TEXT, MAX_IMAGE = 100_000, 2**20, 2**28
"""Limits for zip files from outside: number of files, bytes of a text, bytes of an image's file."""
_CLASS_MASKS, _OBJECT_MASKS = "SegmentationClass", "SegmentationObject"


def _object_colours() -> UInt8Array:
    """Return the colours of objects by their number in Pascal VOC and CVAT, ``(256, 3)`` uint8."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)


_OBJECT_COLOURS = _object_colours()


def write_cvat(
    path: str | Path, masks: Iterable[tuple[str, UInt8Array]], classes: Sequence[str], palette: UInt8Array
) -> None:
    """Write masks as a zip in CVAT's format "Segmentation mask 1.1".

    Args:
        path: The zip file; it is replaced atomically.
        masks: Names of images, without a suffix, and their masks ``(h, w)`` uint8; 255 becomes the background.
        classes: The C class names.
        palette: Their colours, ``(C, 3)`` uint8.

    Raises:
        ValueError: If two classes have the same colour, or a class has the background's name or colour (black).
    """
    colours = [tuple(colour) for colour in palette.tolist()]
    if BACKGROUND in classes or (0, 0, 0) in colours or len(set(colours)) < len(colours):
        raise ValueError(
            f"the classes {list(classes)} have the colours {colours}; CVAT distinguishes classes by colour, and "
            f"reserves black and the name {BACKGROUND!r} for unlabelled pixels: give each class a different one"
        )
    table = np.zeros(256 * 3, np.uint8)  # 0 is the background, class c is c + 1
    table[3 : 3 + palette.size] = palette.reshape(-1)
    lines = ["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(classes, colours, strict=True)]
    names = []
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "\n".join(lines) + "\n")
        for name, mask in masks:
            shifted = np.where(mask == IGNORE_LABEL, 0, mask.astype(np.int64) + 1).astype(np.uint8)
            archive.writestr(f"{_CLASS_MASKS}/{name}.png", _png(shifted, table))
            # One object per class, with the class's number.
            archive.writestr(f"{_OBJECT_MASKS}/{name}.png", _png(shifted, _OBJECT_COLOURS))
            names.append(name)
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in names))


def read_cvat(path: str | Path, classes: Sequence[str], sizes: Mapping[str, Size]) -> dict[str, UInt8Array]:
    """Read the masks of some images from a zip in CVAT's format "Segmentation mask 1.1".

    Args:
        path: The zip file.
        classes: The C class names; classes in the file are matched by name.
        sizes: ``(height, width)`` of each image to read, by name without a suffix. Other images are ignored.

    Returns:
        The masks by name, ``(h, w)`` uint8, 255 for the background. Images without a mask are omitted.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not such a zip, has an unknown class, or has a mask of another size. The message
            names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_masks(archive, path, classes, sizes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeError, EOFError) as error:
        raise ValueError(f"{path} can't be read ({error}); expected a zip that CVAT exported") from error


def _read_masks(
    archive: zipfile.ZipFile, path: str | Path, classes: Sequence[str], sizes: Mapping[str, Size]
) -> dict[str, UInt8Array]:
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise ValueError(
            f"{path} holds {len(entries)} files; expected at most {MAX_FILES}: export fewer images at once"
        )
    by_name = {entry.filename: entry for entry in entries}
    if "labelmap.txt" not in by_name:
        raise ValueError(f"{path} has no labelmap.txt; export it from CVAT as 'Segmentation mask 1.1'")
    labels, known = _colour_table(_member(archive, by_name["labelmap.txt"], MAX_TEXT, path), path, classes)
    wanted = {}
    for entry in entries:
        place = PurePosixPath(entry.filename)
        if place.parts and place.parts[0] == _CLASS_MASKS and place.suffix == ".png":
            name = place.relative_to(_CLASS_MASKS).with_suffix("").as_posix()
            if name in sizes:
                wanted[name] = entry

    def read(name: str) -> UInt8Array:
        where = f"{path}: {wanted[name].filename}"
        codes = _colours(_member(archive, wanted[name], MAX_IMAGE, path), sizes[name], where)
        places = np.searchsorted(known, codes).clip(max=len(known) - 1)
        if (wrong := known[places] != codes).any():
            code = int(codes[wrong][0])
            colour = [code >> 16, code >> 8 & 255, code & 255]
            raise ValueError(f"{where} holds the colour {colour}, which labelmap.txt does not name; export it again")
        return labels[places]

    return dict(zip(wanted, each_or_all_problems(read, list(wanted)), strict=True))


def _colours(content: bytes, size: Size, where: str) -> IntArray:
    """Return the colour of each pixel of a PNG as a number, ``(h, w)``."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (image.height, image.width) != size:
                raise ValueError(f"it is {image.height} x {image.width}, expected {size[0]} x {size[1]}")
            if image.mode == "RGB" and (problem := problem_of(image, "colour mask")):
                raise ValueError(f"it {problem}")
            pixels = np.asarray(image.convert("RGB"), np.int64)
    except Exception as error:  # decoders raise all sorts
        raise ValueError(f"{where} can't be used ({error}); export it again") from error
    codes: IntArray = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    return codes


def _colour_table(content: bytes, path: str | Path, classes: Sequence[str]) -> tuple[UInt8Array, IntArray]:
    """Return the labels of the colours in a label map, and the colours as sorted numbers."""
    numbers = {name: label for label, name in enumerate(classes)} | {BACKGROUND: IGNORE_LABEL}
    table: dict[int, int] = {}
    unknown = []
    for line in content.decode("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        # The name of a class may contain colons, but the other fields may not.
        parts = line.rsplit(":", 3)
        colour = parts[1].split(",") if len(parts) == 4 else []
        if len(colour) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in colour):
            raise ValueError(f"{path}: labelmap.txt has the line {line[:200]!r}; expected name:red,green,blue::")
        red, green, blue = map(int, colour)
        if parts[0] not in numbers:
            unknown.append(parts[0])
        table[(red << 16) + (green << 8) + blue] = numbers.get(parts[0], IGNORE_LABEL)
    if unknown or not table:
        raise ValueError(
            f"{path} has the classes {unknown[:10]}; expected classes out of {list(classes)}: rename the labels in CVAT"
        )
    known = np.array(sorted(table), np.int64)
    return np.array([table[int(code)] for code in known], np.uint8), known


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int, path: str | Path) -> bytes:
    """Return the content of a file in a zip, or raise a ValueError if it is larger than ``most`` bytes."""
    if entry.file_size > most:
        raise ValueError(f"{path}: {entry.filename} has {entry.file_size} bytes; expected at most {most}")
    with archive.open(entry) as file:
        return file.read(most)


def _png(labels: UInt8Array, table: UInt8Array) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(table.tobytes())
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()


class CvatOracle(PeopleOracle):
    """Exports requests as zip files for CVAT, and reads the masks that people export from CVAT.

    ::

        folder/requests/<batch>/images.zip       the data of a CVAT task: each region in its surroundings, outlined
        folder/requests/<batch>/prelabels.zip    its annotations, to be uploaded: the network's predictions
        folder/requests/<batch>/labels.json      its labels, to be pasted ("Raw")
        folder/exported/<any name>.zip           added by people: the task's annotations, exported as "Segmentation mask
                                                 1.1"; labels outside the outlines are ignored

    Args:
        data: The images.
        folder: Folder of the requests and answers.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def exchange(self, requests: Sequence[Request]) -> None:
        """Read the files that people exported, and export the requests that are still missing as a new batch.

        Raises:
            LabelsPending: If any request is still missing.
            ValueError: If an exported file can't be used.
        """
        self._take_in(requests)
        if missing := self.missing(requests):
            batch = self._export(missing)
            raise LabelsPending(
                [file_name(self.data, request.region) for request in missing],
                f"make a task of the images, labels and pre-labels in {batch} in CVAT, and put its annotations, "
                f"exported as 'Segmentation mask 1.1', into {self.folder / 'exported'}",
            )

    def _take_in(self, requests: Sequence[Request]) -> None:
        """Store the masks of these requests from exported files. Newer files take precedence."""
        files = [*(self.folder / "exported").glob("*.zip")] if (self.folder / "exported").is_dir() else []
        if not files:
            return
        by_name = {self._name(request): request for request in requests}
        contexts = {name: request.context() for name, request in by_name.items()}
        sizes = {name: (context.pixels.shape[0], context.pixels.shape[1]) for name, context in contexts.items()}
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
            for name, mask in read_cvat(path, self.data.classes, sizes).items():
                labels = contexts[name].box.crop(mask)
                if (labels != IGNORE_LABEL).any():  # a blank mask is a task that nobody has started
                    self.labels.write(by_name[name].region, Answer(labels))

    def _export(self, requests: Sequence[Request]) -> Path:
        """Write a batch of requests. The images are written last, and mark the batch as complete."""
        names = [self._name(request) for request in requests]
        digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
        batch = self.folder / "requests" / digest
        if (batch / "images.zip").exists():
            return batch
        self.labels.bind([request.region for request in requests])
        write_json(batch / "labels.json", cvat_labels(requests[0].classes, requests[0].palette))
        (self.folder / "exported").mkdir(exist_ok=True)
        prelabels, pictures = [], []
        for name, request in zip(names, requests, strict=True):
            context, predicted = request.context(), request.prelabel()
            pictures.append((name, context.pixels))
            if predicted is not None:
                mask = np.full(context.pixels.shape[:2], IGNORE_LABEL, np.uint8)
                context.box.crop(mask)[...] = predicted
                prelabels.append((name, mask))
        if prelabels:
            write_cvat(batch / "prelabels.zip", prelabels, requests[0].classes, requests[0].palette)
        with replacing(batch / "images.zip") as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            for name, pixels in pictures:
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, format="png")
                archive.writestr(f"{name}.png", content.getvalue())
        return batch

    def _name(self, request: Request) -> str:
        return file_name(self.data, request.region).removesuffix(".png")


def cvat_labels(classes: Sequence[str], palette: UInt8Array) -> list[dict[str, object]]:
    """Return labels in the format of CVAT's "Raw" constructor."""
    return [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour), "attributes": []}
        for name, colour in zip(classes, palette.tolist(), strict=True)
    ]
