"""Decoded images and masks as tensors, each decoded once."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.segmentation_data import SegmentationData, check_labels
from al_seg_env.storage import remove_unfinished, unfinished_name
from al_seg_env.storage.validation import check_path
from al_seg_env.types import UInt8Array


class Frames:
    """The images and masks of a data set, each decoded once and kept as uint8.

    Args:
        data: The data set.
        cache: Folder in which frames are kept as memory-mapped files, for data larger than memory. All processes with
            the same folder share the files, and the operating system keeps those in use in memory. Each file has a
            checksum, which is verified when a process first maps the file; a damaged file is written again. If
            omitted, frames are kept in this process's memory.

    Raises:
        ValueError: If there is a ``cache``, but the data have no ``fingerprint``, which distinguishes their files from
            those of other data.
    """

    def __init__(self, data: SegmentationData, cache: str | Path | None = None) -> None:
        self.data = data
        self._images: dict[int, Tensor] = {}
        self._masks: dict[int, UInt8Array] = {}
        self._folder: Path | None = None
        if cache is not None:
            fingerprint = getattr(data, "fingerprint", None)
            if fingerprint is None:
                raise ValueError(
                    f"cache is {str(cache)!r}, but {type(data).__name__} has no fingerprint; expected a text that "
                    "changes whenever its images or masks do: add it, or omit the cache"
                )
            self._folder = Path(cache) / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
            remove_unfinished(self._folder)

    @classmethod
    def shared(cls, data: SegmentationData, cache: str | Path | None = None) -> Frames:
        """Return the frames of these data, shared by all environments of this process.

        Two data sets share frames if they are the same object, or have the same ``fingerprint``.
        """
        fingerprint = getattr(data, "fingerprint", None)
        if cache is not None:
            cache = check_path("cache", cache)
        key = (id(data) if fingerprint is None else fingerprint, None if cache is None else str(cache))
        frames = _shared.get(key)
        if frames is None or (fingerprint is None and frames.data is not data):
            frames = _shared[key] = cls(data, cache)
        return frames

    def source(self, index: int) -> tuple[Frames, int]:
        """Return the frames that hold an image, and its index there. Frames joined from others override this."""
        return self, index

    def image(self, index: int) -> Tensor:
        """Return an image, ``(H, W, 3)`` uint8.

        Raises:
            ValueError: If the data set returns another shape or dtype.
        """
        if index not in self._images:
            self._images[index] = torch.from_numpy(self._kept(index, "image", self.read_image))
        return self._images[index]

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of an image, ``(H, W)`` uint8.

        Raises:
            ValueError: If the data set returns another shape or dtype, or labels that are neither a class nor 255.
        """
        if index not in self._masks:
            self._masks[index] = self._kept(index, "mask", self._decode_mask)
        return self._masks[index]

    def read_image(self, index: int) -> UInt8Array:
        """Decode an image, ``(H, W, 3)`` uint8, without keeping it.

        Raises:
            ValueError: If the data set returns another shape or dtype.
        """
        image = np.array(self.data.image(index), order="C")
        self._check(index, "image", image, (*self.data.image_size, 3))
        return image

    def _decode_mask(self, index: int) -> UInt8Array:
        mask = np.array(self.data.mask(index), order="C")
        self._check(index, "mask", mask, tuple(self.data.image_size))
        check_labels(mask, len(self.data.classes), f"mask {self.data.names[index]!r}")
        return mask

    def _kept(self, index: int, kind: str, decode: Callable[[int], UInt8Array]) -> UInt8Array:
        """Return a decoded array, read from the cache if its file there is intact."""
        if self._folder is None:
            return decode(index)
        path = self._folder / f"{index}.{kind}.npy"
        shape = (*self.data.image_size, 3) if kind == "image" else tuple(self.data.image_size)
        key = f"{self._folder.name} {path.name}"
        if (found := _mapped(path, shape, key)) is not None:
            return found
        array = decode(index)
        unfinished = path.with_name(unfinished_name(path.name))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # No fsync: a file that a power failure damaged is detected by its checksum, and written again.
            with unfinished.open("wb+") as file:
                np.save(file, array)
                file.seek(0)
                file.write(checksum(file.read(), key))
            os.replace(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            warnings.warn(
                f"the cache {str(self._folder)!r} cannot be written ({error}); frames that it lacks stay in memory",
                RuntimeWarning,
                stacklevel=2,
            )
            return array
        found = _mapped(path, shape, key)
        return array if found is None else found

    def _check(self, index: int, kind: str, array: UInt8Array, shape: tuple[int, ...]) -> None:
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(
                f"{kind} {self.data.names[index]!r}: expected uint8 {shape}, found {array.dtype} {array.shape}; "
                "all images of a data set must have its image_size"
            )

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return a batch of images, ``(B, 3, H, W)`` uint8, channels last in memory."""
        return torch.stack([self.image(int(i)) for i in indices]).permute(0, 3, 1, 2)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """Return a batch of masks, ``(B, H, W)`` uint8."""
        return torch.from_numpy(np.stack([self.mask(int(i)) for i in indices]))

    def batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images, masks)`` batches of at most ``size`` in the given order."""
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            yield self.images(chunk), self.masks(chunk)


_shared: weakref.WeakValueDictionary[tuple[int | str, str | None], Frames] = weakref.WeakValueDictionary()


def _mapped(path: Path, shape: tuple[int, ...], key: str) -> UInt8Array | None:
    """Return a file's array without copying it into memory, or ``None`` if the file is missing or damaged."""
    if not path.is_file():  # opening a pipe might never end
        return None
    try:
        # Mode "c" is copy-on-write: an accidental write to the array never reaches the file.
        content: UInt8Array = np.memmap(path, np.uint8, "c")
    except (OSError, ValueError):  # the file is empty, or unreadable
        return None
    end = len(content) - _CHECKSUM_BYTES
    start = end - math.prod(shape)
    if start < 0 or checksum(content[:end].data, key) != content[end:].tobytes():
        return None
    return content[start:end].reshape(shape)


_CHECKSUM_BYTES = 4


def checksum(content: bytes | memoryview, key: str) -> bytes:
    """Return a checksum that detects damaged files, and files that were stored under another ``key``."""
    return zlib.crc32(content, zlib.crc32(key.encode(errors="surrogateescape"))).to_bytes(_CHECKSUM_BYTES, "little")
