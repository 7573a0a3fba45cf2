"""Distribution of requests among people, and storage of their work."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, palette_of
from al_seg_env.labelling.label_folder import MANIFEST, LabelFolder, file_name
from al_seg_env.labelling.oracles import LabelsPending, PeopleOracle
from al_seg_env.labelling.request import Answer, Context, Request
from al_seg_env.regions import Box
from al_seg_env.types import IntArray, UInt8Array

LEASE_SECONDS = 300.0
"""Seconds for which a region stays reserved for someone who is inactive."""
SUPERPIXEL_AREA = 400
"""Approximate number of the original's pixels in a superpixel."""
_PERSON = re.compile(r"[0-9a-f]{16}")


class TaskUnknownError(LookupError):
    """The region is not waiting for labels."""


class TaskTakenError(RuntimeError):
    """Someone else has reserved the region, or has answered it."""


@dataclass(frozen=True)
class Task:
    """A region that is to be labelled.

    Attributes:
        id: Identifier, 16 hexadecimal digits, the same after a restart.
        request: The request.
        pixels: Pixels of the region, ``(h, w, 3)`` uint8.
        context: The region in its surroundings, as bytes of a JPEG.
        box: Position of the region in the context.
        context_size: ``(height, width)`` of the context.
        prelabel: The network's prediction, ``(h, w)`` uint8, if there is a network.
    """

    id: str
    request: Request
    pixels: UInt8Array
    context: bytes
    box: Box
    context_size: tuple[int, int]
    prelabel: UInt8Array | None


class Desk(PeopleOracle):
    """An oracle that distributes its requests among people. Each region is given to one person at a time.

    Work in progress is stored in ``folder/drafts/PERSON``, and answers in ``folder/answers``, in the format of
    :class:`~al_seg_env.FolderOracle`. All methods may be called from several threads.

    Args:
        data: The images.
        folder: Folder of drafts and answers.
        clock: Returns the time in seconds, for reservations that expire.

    Attributes:
        where: Address at which people find the requests, for messages.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(self, data: SegmentationData, folder: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(data, folder)
        self.where = "the labelling page"
        self._clock = clock
        self._lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._leases: dict[str, tuple[str, float]] = {}  # the person who has a task, and until when
        self._skipped: dict[tuple[str, str], int] = {}  # number of times, by person and task
        self._drafts: dict[str, LabelFolder] = {}
        self._shown: dict[str, Any] = {"spent": None, "budget": None, "unit": "regions", "miou": None}
        self._counts: dict[Box, IntArray] = {
            region: self._count(self.labels.read(region).mask) for region in self.labels.regions()
        }

    # -- for the environment

    def exchange(self, requests: Sequence[Request]) -> None:
        """Distribute the requests.

        Raises:
            LabelsPending: Always, since answers are stored when they arrive.
        """
        with self._lock:
            # Answered tasks are removed only now, so that late answers still found them.
            self._tasks = {name: task for name, task in self._tasks.items() if not self.labels.has(task.request.region)}
            known = {task.request.region for task in self._tasks.values()}
            new = [request for request in requests if request.region not in known]
            self.labels.bind([request.region for request in new])
        for request in new:
            task = self._task(request)  # the network is asked here, in its own thread
            with self._lock:
                self._tasks[task.id] = task
        raise LabelsPending([file_name(self.data, each.region) for each in requests], f"paint them at {self.where}")

    def show_progress(self, spent: float, budget: float, unit: str, miou: float | None) -> None:
        """Show people the environment's progress.

        Args:
            spent: Cost of the labels so far.
            budget: The budget.
            unit: Unit of both.
            miou: Mean IoU in percent, if it is measured.
        """
        with self._lock:
            self._shown = {"spent": spent, "budget": budget, "unit": unit, "miou": miou}

    # -- for people

    def next(self, person: str) -> Task | None:
        """Return the region that a person has, or else a free one; ``None`` if there is none.

        Args:
            person: The person's identifier, 16 hexadecimal digits.

        Raises:
            ValueError: If ``person`` is anything else.
        """
        _check_person(person)
        with self._lock:
            free = [name for name in self._tasks if self._holder(name) in (None, person)]
            # The person's own region comes first, and regions that the person has skipped come last.
            free.sort(key=lambda name: (self._holder(name) is None, self._skipped.get((person, name), 0)))
            if not free:
                return None
            self._lease(free[0], person)
            return self._tasks[free[0]]

    def task(self, name: str) -> Task:
        """Return a region that waits for its labels.

        Raises:
            TaskUnknownError: If there is no region with this identifier.
        """
        with self._lock:
            if name not in self._tasks:
                raise TaskUnknownError(
                    "this region is not waited for at present; what was painted is kept in the browser until it is"
                )
            return self._tasks[name]

    def hold(self, person: str, name: str) -> None:
        """Extend a person's reservation of a region.

        Raises:
            TaskUnknownError: If there is no such region.
            TaskTakenError: If someone else has it.
        """
        _check_person(person)
        with self._lock:
            self.task(name)
            if self._holder(name) not in (None, person):
                raise TaskTakenError("someone else has this region by now")
            self._lease(name, person)

    def skip(self, person: str, name: str) -> None:
        """Give a region back. Its turn comes again after the others.

        Raises:
            TaskUnknownError: If there is no such region.
        """
        _check_person(person)
        with self._lock:
            self.task(name)
            self._skipped[person, name] = self._skipped.get((person, name), 0) + 1
            if self._holder(name) == person:
                del self._leases[name]

    def draft(self, name: str) -> Answer | None:
        """Return the latest draft of a region that nobody has answered, by whoever had the region at the time."""
        region = self.task(name).request.region
        with self._lock:
            drafts = self._latest_drafts(region)
            return None if drafts is None else drafts.read(region)

    def keep(self, person: str, name: str, work: Answer) -> None:
        """Store a person's work so far, even if someone else has the region by now.

        Raises:
            TaskUnknownError: If there is no such region.
            TaskTakenError: If someone else has the region. The work is stored all the same, and :meth:`draft` still
                returns what the other has painted.
            ValueError: If the mask has the wrong size, dtype or labels.
        """
        _check_person(person)
        with self._lock:
            region = self.task(name).request.region
            drafts, latest = self._drafts_of(person), self._latest_drafts(region)
            drafts.write(region, work, keep_earlier=False)
            try:
                self.hold(person, name)
            except TaskTakenError:
                if latest is not None and latest is not drafts:
                    # Dated before it, so that it does not replace the other's work when the page is loaded again.
                    before = latest.path(region).stat().st_mtime_ns - 1
                    os.utime(drafts.path(region), ns=(before, before))
                raise

    def submit(self, person: str, name: str, answer: Answer) -> None:
        """Store a person's answer.

        Raises:
            TaskUnknownError: If there is no such region.
            TaskTakenError: If someone else has answered. The person's work is kept as a draft.
            ValueError: If the mask has the wrong size, dtype or labels.
        """
        _check_person(person)
        with self._lock:
            region = self.task(name).request.region
            drafts = self._drafts_of(person)
            if self.labels.has(region):
                drafts.write(region, answer, keep_earlier=False)
                raise TaskTakenError(
                    f"someone else has answered this region; what you painted is {drafts.path(region)}"
                )
            self.labels.write(region, answer)
            drafts.path(region).unlink(missing_ok=True)
            self._counts[region] = self._count(answer.mask)
            self._leases.pop(name, None)

    def superpixels(self, name: str) -> IntArray:
        """Return the superpixel that each pixel of a region belongs to, ``(h, w)`` int64, from 0 on (SLIC).

        Raises:
            ImportError: If scikit-image is missing.
            TaskUnknownError: If there is no such region.
        """
        pixels = self.task(name).pixels
        try:
            from skimage.segmentation import slic
        except ImportError as error:
            raise ImportError('superpixels need scikit-image: pip install "al-seg-env[page]"') from error
        count = max(1, pixels.shape[0] * pixels.shape[1] // SUPERPIXEL_AREA)
        # Smoothed by a pixel, because noise splits superpixels into pieces that are then all merged.
        segments: IntArray = slic(pixels, n_segments=count, compactness=10, sigma=1, start_label=0).astype(np.int64)
        return segments

    def progress(self) -> dict[str, Any]:
        """Return the progress of the session as plain values."""
        with self._lock:
            counts = sum(self._counts.values(), np.zeros(len(self.data.classes), np.int64))
            waiting = [name for name, task in self._tasks.items() if not self.labels.has(task.request.region)]
            return {
                **self._shown,
                "labelled": len(self._counts),
                "waiting": len(waiting),
                "class_pixels": counts.tolist(),
            }

    def classes(self) -> list[dict[str, Any]]:
        """Return names and colours of the classes."""
        colours = palette_of(self.data).tolist()
        return [{"name": name, "color": colour} for name, colour in zip(self.data.classes, colours, strict=True)]

    def _holder(self, name: str) -> str | None:
        """Return the person who has a task. Answered tasks are not given to anyone."""
        if self.labels.has(self._tasks[name].request.region):
            return "answered"
        person, until = self._leases.get(name, ("", 0.0))
        return person if person and self._clock() < until else None

    def _lease(self, name: str, person: str) -> None:
        self._leases[name] = person, self._clock() + LEASE_SECONDS

    def _drafts_of(self, person: str) -> LabelFolder:
        if person not in self._drafts:
            self._drafts[person] = LabelFolder(
                self.folder / "drafts" / person, self.data, manifest=self.folder / MANIFEST
            )
        return self._drafts[person]

    def _latest_drafts(self, region: Box) -> LabelFolder | None:
        """Return the drafts of the person with the latest one of a region; ``None`` if nobody has any."""
        found = []
        for folder in (self.folder / "drafts").glob("*"):
            if _PERSON.fullmatch(folder.name) and self._drafts_of(folder.name).has(region):
                drafts = self._drafts_of(folder.name)
                found.append((drafts.path(region).stat().st_mtime_ns, folder.name, drafts))
        return max(found)[2] if found else None

    def _count(self, mask: UInt8Array) -> IntArray:
        return np.bincount(mask[mask != IGNORE_LABEL], minlength=len(self.data.classes)).astype(np.int64)

    def _task(self, request: Request) -> Task:
        context: Context = request.context()
        encoded = io.BytesIO()
        Image.fromarray(context.pixels).save(encoded, format="jpeg", quality=92, subsampling=0)
        digest = hashlib.blake2b(digest_size=8)
        for part in (file_name(self.data, request.region), *request.classes):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(np.ascontiguousarray(context.pixels).tobytes())
        size = context.pixels.shape
        return Task(
            digest.hexdigest(),
            request,
            request.pixels().copy(),
            encoded.getvalue(),
            context.box,
            (size[0], size[1]),
            request.prelabel(),
        )


def page_is_installed() -> bool:
    """Return whether the packages of the extra ``page`` are installed."""
    return all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn"))


def _check_person(person: Any) -> None:
    if not (isinstance(person, str) and _PERSON.fullmatch(person)):
        raise ValueError("person is not an identifier of 16 hexadecimal digits")
