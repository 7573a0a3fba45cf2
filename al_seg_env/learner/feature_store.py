"""The frozen encoder's features of a data set's images, computed once and kept in memory or in a folder."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.frozen_encoder import FrozenEncoder, Shape
from al_seg_env.learner.hardware import available_memory
from al_seg_env.storage import require_file, tree_digest, write_json
from al_seg_env.types import Size

logger = logging.getLogger("al_seg_env")
FEATURE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STORE_VERSION = 2
BAR_FROM = 16  # images to encode, at least, to show a progress bar


class FeatureStore:
    """Keeps a frozen encoder's features of each image of a data set.

    An image is encoded when its features are first requested, or earlier by :meth:`prepare`. In memory, features belong
    to this process. In a folder, they are a memory-mapped file that all processes with the same folder share, and
    intact features are never computed again. Each image has a checksum there, by which damaged, missing or half-written
    features are found and computed again. Other data, sizes, encoders, weights, outputs or precisions have subfolders
    of their own.

    Args:
        frames: The images.
        encoder: The encoder.
        precision: Precision in which features are kept: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        cache: Folder for the features; ``None`` for memory.

    Attributes:
        shapes: Shape of each map of an image, with channels last if it has three dimensions.
        bytes_per_image: Size of the features of an image in bytes.

    Raises:
        ValueError: If there is a ``cache``, but the data have no ``fingerprint``, which distinguishes their features
            from those of other data.
    """

    def __init__(
        self, frames: Frames, encoder: FrozenEncoder, precision: str = "bfloat16", cache: str | Path | None = None
    ) -> None:
        self.frames, self.encoder = frames, encoder
        self.dtype = FEATURE_DTYPES[precision]
        height, width = frames.data.image_size
        first = encoder(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        self.encoded_size: Size = first.image_size
        self.shapes: tuple[Shape, ...] = tuple(_stored(values[0]).shape for values in first.maps)
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        self._ends = np.cumsum(sizes).tolist()
        self.bytes_per_image = self._ends[-1] * self.dtype.itemsize
        self._maps: dict[int, tuple[Tensor, ...]] = {}
        self._file: FeatureFile | None = None
        if cache is not None:
            fingerprint = getattr(frames.data, "fingerprint", None)
            if fingerprint is None:
                raise ValueError(
                    f"cache is {str(cache)!r}, but {type(frames.data).__name__} has no fingerprint; expected a text "
                    "that changes whenever its images do: add it, or omit the cache"
                )
            about = {
                "version": STORE_VERSION,
                "data": tree_digest(fingerprint),
                "images": len(frames.data.names),
                "image_size": [height, width],
                "encoder": encoder.digest,
                "outputs": [
                    {"output": number, "shape": list(shape)}
                    for number, shape in zip(encoder.read, self.shapes, strict=True)
                ],
                "precision": precision,
            }
            self._file = FeatureFile(Path(cache), about, self.bytes_per_image)

    @classmethod
    def shared(
        cls, frames: Frames, encoder: FrozenEncoder, precision: str = "bfloat16", cache: str | Path | None = None
    ) -> FeatureStore:
        """Return the store of these frames and this encoder, shared by all environments of this process."""
        key = (id(frames), encoder.digest, encoder.read, precision, None if cache is None else str(cache))
        store = _shared.get(key)
        if store is None or store.frames is not frames:
            store = _shared[key] = cls(frames, encoder, precision, cache)
        return store

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Omit the features. A copy in another process reads the folder, or encodes again."""
        return {**self.__dict__, "_maps": {}}

    def maps(self, image: int) -> tuple[Tensor, ...]:
        """Return the features of an image, maps ``(h, w, c)`` as in ``shapes``. They must not be written to.

        Raises:
            MemoryError, OSError: See :meth:`prepare`.
        """
        if image not in self._maps:
            self.prepare([image])
        return self._maps[image]

    def prepare(self, images: Sequence[int]) -> None:
        """Encode the images whose features are missing, with a progress bar if there are many.

        Raises:
            MemoryError: If the features do not fit into memory. Nothing has been encoded then.
            OSError: If the features do not fit on the cache's disk, or the cache cannot be written. Features that were
                already written are kept.
        """
        missing = [image for image in dict.fromkeys(images) if image not in self._maps]
        if self._file is None:
            self._require(len(missing), available_memory(), "memory")
            for image in self._bar(missing, "memory"):
                self._maps[image] = self._divided(self._encoded(image))
            return
        missing = self._found(self._file, missing)
        if not missing:
            return
        with self._file.writable():
            missing = self._found(self._file, missing)  # another process may have added some meanwhile
            self._require(len(missing), self._file.free(), f"the disk of {str(self._file.folder)!r}")
        for image in self._bar(missing, str(self._file.folder)):
            with self._file.writable():  # image by image, so that processes share the work
                if self._found(self._file, [image]):
                    self._file.write(image, self._encoded(image).view(torch.uint8).numpy())
                    if self._found(self._file, [image]):
                        raise OSError(
                            errno.EIO, f"{self._file.path}: what was written is not what is read; use another cache"
                        )

    def _found(self, file: FeatureFile, images: Sequence[int]) -> list[int]:
        """Map the features that the file has of these images, and return the images that it lacks."""
        missing = []
        for image in images:
            content = file.read(image)
            if content is None:
                missing.append(image)
            else:
                self._maps[image] = self._divided(torch.from_numpy(content).view(self.dtype))
        return missing

    def _divided(self, record: Tensor) -> tuple[Tensor, ...]:
        """Return the maps in a record."""
        starts = (0, *self._ends)
        return tuple(
            record[start:end].view(shape) for start, end, shape in zip(starts, self._ends, self.shapes, strict=False)
        )

    def _encoded(self, image: int) -> Tensor:
        """Return the features of an image as a record."""
        pixels = torch.from_numpy(self.frames.read_image(image)).permute(2, 0, 1)[None]
        maps = self.encoder(pixels).maps
        record = torch.cat([_stored(values[0]).reshape(-1) for values in maps]).to("cpu", self.dtype)
        if not all(map(math.isfinite, torch.aminmax(record))):  # which pass NaN on
            raise FloatingPointError(
                f"image {self.frames.data.names[image]!r}: its features are not finite in {self.dtype}; use "
                "feature_precision='float32', or check the encoder's weights"
            )
        return record

    def _require(self, count: int, available: int, where: str) -> None:
        """Log how much memory or disk is needed. If there is too little, raise an error that says what would fit."""
        needed = count * self.bytes_per_image
        each = _size(self.bytes_per_image)
        if count >= BAR_FROM:
            logger.info(
                "features of %d images, %s each: %s of %s (%s free)",
                count,
                each,
                _size(needed),
                where,
                _size(available),
            )
        if needed <= available:
            return
        message = (
            f"the features of {count} images need {_size(needed)} ({each} each), but {where} has {_size(available)} "
            f"free, which is enough for {available // self.bytes_per_image} images; use fewer images, a smaller "
            "image_size, or a network that reads fewer of the encoder's outputs (such as architecture='Light')"
        )
        if self._file is None:
            raise MemoryError(f"{message}; or set cache to a folder, which needs no memory of its own")
        raise OSError(errno.ENOSPC, f"{message}; or use a cache on another disk")

    def _bar(self, images: Sequence[int], where: str) -> Iterator[int]:
        size = _size(len(images) * self.bytes_per_image)
        with tqdm(images, desc=f"features ({size}, {where})", disable=None if len(images) >= BAR_FROM else True) as bar:
            yield from bar


class FeatureFile:
    """Records of equal size in a memory-mapped file, with their checksums in a file beside it."""

    def __init__(self, cache: Path, about: dict[str, Any], record_size: int) -> None:
        self.folder = cache / f"features-{tree_digest(about)[:16]}"
        self.path = self.folder / "features.bin"
        self._about, self._count, self._record_size = about, int(about["images"]), record_size
        self._map: npt.NDArray[np.uint8] | None = None
        self._checks: npt.NDArray[np.uint64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_checks": None}

    def free(self) -> int:
        """Return the number of free bytes on the file's disk."""
        return shutil.disk_usage(self.folder).free

    def read(self, image: int) -> npt.NDArray[np.uint8] | None:
        """Return a record without copying it, or ``None`` if it is missing or damaged."""
        if not self._opened():
            return None
        assert self._map is not None
        assert self._checks is not None
        record = self._map[image]
        return record if self._checks[image] and self._checks[image] == self._checksum(image, record) else None

    def write(self, image: int, record: npt.NDArray[np.uint8]) -> None:
        """Write a record and then its checksum. If the process ends in between, the record counts as missing."""
        try:
            # Not through the memory map: on a full disk, that would kill the process with a signal.
            write_maps(self.path, image * self._record_size, record.tobytes())
            write_maps(self._checks_path, image * 8, self._checksum(image, record).tobytes())
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{self.path}: features could not be written ({error.strerror or error}). Those that are there stay "
                "valid; free space, or use a cache on another disk, and run the same again",
            ) from error

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Keep other processes from writing, and create the files if they are missing.

        Raises:
            OSError: If the folder cannot be written to.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if not self._opened():
                self._make()
        except (OSError, NotImplementedError) as error:
            lock.release()
            raise OSError(
                getattr(error, "errno", None) or errno.EIO,
                f"the cache {str(self.folder)!r} cannot be written ({error}); make it writable, or use another folder",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _checksum(self, image: int, record: npt.NDArray[np.uint8]) -> np.uint64:
        """Return a checksum of a record and its place, so that files moved here from another folder don't match.

        It is never 0, which stands for a missing record.
        """
        place = zlib.crc32(f"{self.folder.name} {image}".encode())
        return np.uint64(1 << 32 | zlib.crc32(record.data, place))

    @property
    def _checks_path(self) -> Path:
        return self.folder / "checksums.bin"

    def _opened(self) -> bool:
        """Map the files if they have their full length. Reading beyond the end of a shorter file kills the process."""
        if self._map is not None:
            return True
        length = self._count * self._record_size
        try:
            if self.path.stat().st_size != length or self._checks_path.stat().st_size != 8 * self._count:
                return False
            # Copy on write, so that an accidental write to the arrays never reaches the files.
            records = np.memmap(self.path, np.uint8, "c", shape=(self._count, self._record_size))
            self._checks = np.memmap(self._checks_path, np.uint64, "r", shape=(self._count,))
            self._map = records.view(np.ndarray)
        except (OSError, ValueError):
            return False
        return True

    def _make(self) -> None:
        """Create empty files, or give damaged ones their length. Their content is checked when it is read."""
        write_json(self.folder / "about.json", self._about)
        for path, length in ((self.path, self._count * self._record_size), (self._checks_path, 8 * self._count)):
            if path.exists():
                require_file(path)  # opening a pipe might never end
            with path.open("ab"):
                pass
            os.truncate(path, length)
        if not self._opened():
            raise OSError(errno.EIO, f"{self.path} cannot be mapped into memory; use a cache on a local disk")


def write_maps(path: Path, offset: int, content: bytes) -> None:
    """Write bytes into a file from an offset on; raise an OSError if not all of them can be written."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def _stored(values: Tensor) -> Tensor:
    """Return an image's map with channels last."""
    return values.permute(1, 2, 0) if values.dim() == 3 else values


def _size(count: int) -> str:
    """Return a number of bytes in readable form."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


_shared: weakref.WeakValueDictionary[tuple[Any, ...], FeatureStore] = weakref.WeakValueDictionary()
