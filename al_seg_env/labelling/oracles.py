"""Oracles, which answer requests for labels."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.pairing import listed
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData
from al_seg_env.labelling.label_folder import MANIFEST, LabelFolder, checked_mask, file_name
from al_seg_env.labelling.request import Answer, Request, requests_of
from al_seg_env.regions import Box
from al_seg_env.storage import replacing, write_json, write_png
from al_seg_env.types import UInt8Array

Item = TypeVar("Item")
Result = TypeVar("Result")


class LabelsBoxes(Protocol):
    """The simple kind of oracle, which labels the pixels of boxes in the network's images."""

    def label(self, boxes: Sequence[Box]) -> Sequence[UInt8Array]:
        """Return one mask per region, uint8 of its size, 255 where a pixel is left unlabelled."""
        ...


@runtime_checkable
class AnswersRequests(Protocol):
    """The kind of oracle that people work with: it takes requests, and answers in pixels of the original images."""

    def answer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Return one answer per request, or raise :class:`LabelsPending` to be asked again later."""
        ...


@runtime_checkable
class ShowsProgress(Protocol):
    """An oracle that shows people their progress."""

    def show_progress(self, spent: float, budget: float, unit: str, miou: float | None) -> None:
        """Show the labels' cost so far, the budget, the unit of both, and the mean IoU in percent, if measured."""
        ...


Oracle = LabelsBoxes | AnswersRequests
"""Anything that answers requests for labels: people, files, or the ground truth."""


class GroundTruthOracle:
    """Answers with the data set's own masks, as in the paper's experiments (section 4.1).

    It warns once about images whose masks have no label in a requested region: such a region spends budget without
    teaching anything.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self._warned = False

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Return the true masks of the regions."""
        masks = [box.crop(self.frames.mask(box.image)) for box in boxes]
        empty = [box.image for box, mask in zip(boxes, masks, strict=True) if (mask == IGNORE_LABEL).all()]
        blank = sorted({self.frames.data.names[i] for i in empty if (self.frames.mask(i) == IGNORE_LABEL).all()})
        if blank and not self._warned:
            self._warned = True
            warnings.warn(
                f"the masks of {', '.join(map(repr, blank[:5]))}{', ...' if len(blank) > 5 else ''} hold no label at "
                "all, so their regions spend budget and teach nothing; give these images masks, or leave them out of "
                "the split that is acquired from",
                RuntimeWarning,
                stacklevel=2,
            )
        return masks


class CallbackOracle:
    """Asks a function, through which a labelling tool or a person can answer. No region is asked for twice.

    Args:
        data: The images.
        answer: Called with the name of an image, the region's :class:`Box` and its pixels ``(h, w, 3)`` uint8, both of
            the original image. Returns the mask ``(h, w)`` uint8, 255 where a pixel is left unlabelled.
        folder: Folder in which each answer is stored at once, and from which later processes read it. If omitted,
            answers are kept only in this object.

    Attributes:
        answers: Every valid answer so far, by region of the original image. Answers are kept across episodes and
            failed requests.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(
        self,
        data: SegmentationData,
        answer: Callable[[str, Box, UInt8Array], UInt8Array],
        folder: str | Path | None = None,
    ) -> None:
        self.data = data
        self.ask = answer
        self.labels = None if folder is None else LabelFolder(folder, data)
        self.answers: dict[Box, UInt8Array] = {}

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Ask for boxes of the network's images; see :meth:`answer`. Return masks of their sizes."""
        return [answer.mask for answer in ask(self, requests_of(self.data, boxes))]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask for the regions one after another, except for those whose answer is known.

        Raises:
            ValueError: If a new or a stored answer is malformed. The answers before it are kept.
        """
        for request in requests:
            if request.region not in self.answers:
                self.answers[request.region] = self._stored(request)
        return [Answer(self.answers[request.region]) for request in requests]

    def _stored(self, request: Request) -> UInt8Array:
        region = request.region
        if self.labels is not None and self.labels.has(region):
            return self.labels.read(region).mask
        where = f"the answer for {region} of {request.name!r}"
        # A copy, since the function may reuse its array.
        mask = checked_mask(
            self.ask(request.name, region, request.pixels()), region, len(request.classes), where
        ).copy()
        if self.labels is not None:
            self.labels.write(region, Answer(mask))
        return mask


class LabelsPending(RuntimeError):
    """Requested labels are not there yet. Nothing is lost: repeat the same step once they are.

    Args:
        missing: The missing answers, one entry for each region: files, or a tool's names of its tasks.
        remedy: What people have to do now, without a full stop.
        problems: What is wrong with answers that are there.

    Attributes:
        missing, remedy, problems: The arguments.
        told: A message for people: how many regions wait, the remedy, and the problems.
    """

    def __init__(self, missing: Sequence[Any], remedy: str, problems: Sequence[str] = ()) -> None:
        self.missing, self.remedy, self.problems = list(missing), remedy, list(problems)
        regions = (
            "1 region waits for its labels" if len(missing) == 1 else f"{len(missing)} regions wait for their labels"
        )
        self.told = f"{regions}: {remedy}" + (f"; and correct what is there: {listed(problems)}" if problems else "")
        super().__init__(
            f"{self.told}; then make the same step again, in this process or, from a saved state, in another"
        )


class PeopleOracle(ABC):
    """An oracle of people, who answer in their own time. Answers are kept in ``folder/answers``.

    Subclasses implement :meth:`exchange`, which sends requests to people and collects their answers.

    Args:
        data: The images.
        folder: Folder of the answers.

    Attributes:
        labels: The answers so far, at the originals' resolution.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def __init__(self, data: SegmentationData, folder: str | Path) -> None:
        self.data, self.folder = data, Path(folder)
        self.labels = LabelFolder(self.folder / "answers", data, manifest=self.folder / MANIFEST)

    def label(self, boxes: Sequence[Box]) -> list[UInt8Array]:
        """Ask for boxes of the network's images; see :meth:`answer`. Return masks of their sizes."""
        return [answer.mask for answer in ask(self, requests_of(self.data, boxes))]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Return people's answers once all of them are there.

        Raises:
            LabelsPending: If an answer is missing.
            ValueError: If answers are malformed. The message names all of them, and the other answers are kept.
        """
        if missing := self.missing(requests):
            self.exchange(missing)
        return each_or_all_problems(lambda request: self.labels.read(request.region), requests)

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests that nobody has answered."""
        return [request for request in requests if not self.labels.has(request.region)]

    @abstractmethod
    def exchange(self, requests: Sequence[Request]) -> None:
        """Collect the answers to these requests, and send the unanswered ones to people.

        Raises:
            LabelsPending: If a request is unanswered.
        """


class FolderOracle(PeopleOracle):
    """Exports the requested regions as pictures, and reads the masks that people put into a folder.

    ::

        folder/requests/<name>.png    the region's pixels in the original image
        folder/context/<name>.jpg     the region outlined in its surroundings
        folder/prelabels/<name>.png   the network's prediction in the classes' colours, to be corrected
        folder/classes.json           the classes, their numbers and colours
        folder/answers/<name>.png     added by people: one channel with the number of the class of each pixel, 255 where
                                      it is left unlabelled

    Args:
        data: The images.
        folder: Folder of the requests and answers.

    Raises:
        ValueError: If the folder holds labels of other images, sizes or classes.
    """

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Return people's answers once all of them are there; see :meth:`PeopleOracle.answer`.

        Raises:
            LabelsPending: If an answer is missing. Its ``problems`` are those of the files that are there already.
            ValueError: If answers are malformed, and none is missing.
        """
        try:
            return super().answer(requests)
        except LabelsPending as pending:
            raise LabelsPending(pending.missing, pending.remedy, self._problems(requests)) from None

    def _problems(self, requests: Sequence[Request]) -> list[str]:
        """Return what is wrong with the files that people have put into the folder so far."""
        there = [request.region for request in requests if self.labels.has(request.region)]
        checks: list[Callable[[], object]] = [*(partial(self.labels.read, region) for region in there)]
        problems = []
        for check in (*checks, self._refuse_strangers):
            try:
                check()
            except ValueError as error:
                problems.append(str(error))
        return problems

    def _refuse_strangers(self) -> None:
        pictures = self.folder / "requests"
        if others := [path.name for path in self.labels.strangers() if not (pictures / path.name).exists()]:
            raise ValueError(
                f"{self.labels.folder} holds files of no request ({listed(others, 5)}); expected PNGs of the same "
                f"names as in {pictures}"
            )

    def exchange(self, requests: Sequence[Request]) -> None:
        """Export the requests' pictures.

        Raises:
            LabelsPending: Always, since people put answers where they are read.
        """
        for request in requests:
            self._export(request)
        self.labels.bind([request.region for request in requests])
        files = [self.labels.path(request.region) for request in requests]
        raise LabelsPending(
            files,
            f"put a mask for each picture in {self.folder / 'requests'} under the same name into "
            f"{self.labels.folder}, beginning with {files[0].name}",
        )

    def _export(self, request: Request) -> None:
        """Write a request's pictures. The picture of its pixels is written last, and marks the request as complete."""
        name = file_name(self.data, request.region)
        picture = self.folder / "requests" / name
        if picture.exists():
            return
        if not (self.folder / "classes.json").exists():
            colours = zip(request.classes, request.palette.tolist(), strict=True)
            classes = [{"name": name, "color": colour} for name, colour in colours]
            write_json(self.folder / "classes.json", {"classes": classes})
        with replacing((self.folder / "context" / name).with_suffix(".jpg")) as unfinished:
            Image.fromarray(request.context().pixels).save(unfinished, format="jpeg", quality=90)
        if (predicted := request.prelabel()) is not None:
            write_png(self.folder / "prelabels" / name, predicted, palette=request.palette)
        write_png(picture, request.pixels())


def ask(oracle: Oracle, requests: Sequence[Request]) -> list[Answer]:
    """Ask an oracle and check its answers before anything is changed.

    Returns:
        One answer for each request, with its mask at the network's size.

    Raises:
        ValueError: If the number, a shape, a dtype or a label of the answers is wrong.
    """
    given: Any  # unchecked, since anyone can write an oracle
    if in_originals := isinstance(oracle, AnswersRequests):
        given = oracle.answer(requests)
    else:
        given = oracle.label([request.box for request in requests])
    if not isinstance(given, Iterable):
        raise ValueError(f"the oracle returned {type(given).__name__}; expected a list of {len(requests)} masks")
    answers = list(given)
    if len(answers) != len(requests):
        raise ValueError(f"the oracle returned {len(answers)} masks; expected {len(requests)}, one for each region")

    def checked(pair: tuple[Request, Any]) -> Answer:
        request, answer = pair
        where = f"the oracle's mask of {request.box} of {request.name!r}"
        n_classes = len(request.classes)
        if not in_originals:
            return Answer(checked_mask(answer, request.box, n_classes, where))
        if not isinstance(answer, Answer):
            raise ValueError(f"{where} is {type(answer).__name__}; expected an Answer")
        mask = checked_mask(answer.mask, request.region, n_classes, where)
        return replace(answer, mask=request.original.to_network(mask, request.box))

    return each_or_all_problems(checked, list(zip(requests, answers, strict=True)))


def each_or_all_problems(use: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the result of each item, or raise one ``ValueError`` with those of all items."""
    results, problems = [], []
    for item in items:
        try:
            results.append(use(item))
        except ValueError as error:
            problems.append(str(error))
    if len(problems) > 1:
        raise ValueError(f"{len(problems)} of {len(items)} answers can't be used: {listed(problems)}")
    if problems:
        raise ValueError(problems[0])
    return results
