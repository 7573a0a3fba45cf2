"""Who paints what: requests are handed out to people, and their work is kept."""

from __future__ import annotations

import hashlib
import importlib.util
import io
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
"""For how long a region is kept for someone of whom nothing is heard."""
SUPERPIXEL_AREA = 400
"""Pixels of the original that a superpixel has, about."""
_PERSON = re.compile(r"[0-9a-f]{16}")


class TaskUnknownError(LookupError):
    """No such region is waited for."""


class TaskTakenError(RuntimeError):
    """Someone else has the region, or has answered it."""


@dataclass(frozen=True)
class Task:
    """A region that is to be painted.

    Attributes:
        id: What it is called by, 16 hexadecimal digits; the same after a restart.
        request: What is asked.
        pixels: The region, ``(h, w, 3)`` uint8.
        context: The region in its surroundings, a JPEG.
        box: Where the region lies in the context.
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
    """An oracle that distributes its requests among people; each region goes to one person at a time.

    What people paint is stored as they paint it, in ``folder/drafts/PERSON``, and what they answer in
    ``folder/answers``, as :class:`~al_seg_env.FolderOracle` does. All methods may be called from several threads.

    Args:
        data: The images.
        folder: Where the answers are.
        clock: Seconds, for leases.

    Attributes:
        where: Where people find what is requested, for messages.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(self, data: SegmentationData, folder: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(data, folder)
        self.where = "the labelling page"
        self._clock = clock
        self._lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._leases: dict[str, tuple[str, float]] = {}  # who has a task, and until when
        self._skipped: dict[tuple[str, str], int] = {}  # how often, by person and task
        self._drafts: dict[str, LabelFolder] = {}
        self._shown: dict[str, Any] = {"spent": None, "budget": None, "unit": "regions", "miou": None}
        self._counts: dict[Box, IntArray] = {
            region: self._count(self.labels.read(region).mask) for region in self.labels.regions()
        }

    # -- for the environment

    def exchange(self, requests: Sequence[Request]) -> None:
        """Hand the requests out.

        Raises:
            LabelsPending: Always, since answers are stored as they come.
        """
        with self._lock:
            # What was answered before is gone from now on; until now, a late answer found it.
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
        """Tell people how far the environment is.

        Args:
            spent: What the labels cost so far.
            budget: What they may cost.
            unit: Of both.
            miou: Mean IoU in percent, if it is measured.
        """
        with self._lock:
            self._shown = {"spent": spent, "budget": budget, "unit": unit, "miou": miou}

    # -- for people

    def next(self, person: str) -> Task | None:
        """Return the region that someone has, or else one that nobody has; ``None`` if there is none.

        Args:
            person: 16 hexadecimal digits, which a person keeps.

        Raises:
            ValueError: If ``person`` is something else.
        """
        _check_person(person)
        with self._lock:
            free = [name for name in self._tasks if self._holder(name) in (None, person)]
            # What one has comes first, and what one has skipped last.
            free.sort(key=lambda name: (self._holder(name) is None, self._skipped.get((person, name), 0)))
            if not free:
                return None
            self._lease(free[0], person)
            return self._tasks[free[0]]

    def task(self, name: str) -> Task:
        """Return a region that waits for its labels.

        Raises:
            TaskUnknownError: If there is none of this name.
        """
        with self._lock:
            if name not in self._tasks:
                raise TaskUnknownError(
                    "this region is not waited for at present; what was painted is kept in the browser until it is"
                )
            return self._tasks[name]

    def hold(self, person: str, name: str) -> None:
        """Keep a region for someone for a while longer.

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
        """Give a region back; its turn comes again when others are done.

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
        """Return what was painted last of a region that nobody has answered, by whomever."""
        region = self.task(name).request.region
        with self._lock:
            found = []
            for folder in (self.folder / "drafts").glob("*"):
                if _PERSON.fullmatch(folder.name) and self._drafts_of(folder.name).has(region):
                    drafts = self._drafts_of(folder.name)
                    found.append((drafts.path(region).stat().st_mtime_ns, folder.name, drafts))
            return max(found)[2].read(region) if found else None

    def keep(self, person: str, name: str, work: Answer) -> None:
        """Store what someone has painted so far, whoever has the region by now.

        Raises:
            TaskUnknownError: If there is no such region.
            TaskTakenError: If someone else has it; it is stored all the same.
            ValueError: If the mask does not fit.
        """
        _check_person(person)
        with self._lock:
            self._drafts_of(person).write(self.task(name).request.region, work, keep_earlier=False)
            self.hold(person, name)

    def submit(self, person: str, name: str, answer: Answer) -> None:
        """Store what someone answers.

        Raises:
            TaskUnknownError: If there is no such region.
            TaskTakenError: If someone else has answered; what was painted is kept as a draft.
            ValueError: If the mask does not fit.
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
        # Smoothed by a pixel: noise breaks superpixels into pieces, which are then all joined.
        segments: IntArray = slic(pixels, n_segments=count, compactness=10, sigma=1, start_label=0).astype(np.int64)
        return segments

    def progress(self) -> dict[str, Any]:
        """Return how far the session is, as plain values."""
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
        """Return who has a task; nobody gets one that is answered."""
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
    """Return whether the packages of the extra ``page`` are here."""
    return all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn"))


def _check_person(person: Any) -> None:
    if not (isinstance(person, str) and _PERSON.fullmatch(person)):
        raise ValueError("person is something else than 16 hexadecimal digits")
