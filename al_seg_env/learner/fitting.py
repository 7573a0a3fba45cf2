"""Training to convergence: of the network once the budget is spent, and of theta_0."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.contract import HasLearningRate, Learner
from al_seg_env.learner.inputs import Inputs, inputs_of, labelled_batches
from al_seg_env.learner.rehearsal import Replay
from al_seg_env.metrics import class_iou, mean_iou
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import load_tree, save_tree, tree_digest
from al_seg_env.storage.validation import LARGEST_BATCH, check_int, check_number, check_size
from al_seg_env.types import IntArray, Size, UInt8Array

KIND, UPDATES_KIND = "training to convergence", "training by updates"
WITH_UPDATES, WITH_EPOCHS = ("replay", "learning_rate", "fits"), ("patience", "max_epochs", "min_updates")
"""Settings that count only with, and only without, ``FitSettings.updates``."""
CHECKPOINT_SECONDS = 60.0
"""Minimum number of seconds between two checkpoints of a training to convergence."""


@dataclass
class Evaluation:
    """A network's results on a split.

    Attributes:
        confusion: Confusion matrix, ``(C, C)`` int64. Rows are the true classes.
    """

    confusion: torch.Tensor

    @property
    def miou(self) -> float:
        """Mean IoU in percent."""
        return 100 * mean_iou(self.confusion)

    @property
    def class_iou(self) -> list[float | None]:
        """IoU per class in percent; ``None`` for a class that the split lacks."""
        return [None if np.isnan(iou) else 100 * iou for iou in class_iou(self.confusion).tolist()]


@dataclass
class Fit:
    """The course of a training to convergence.

    Attributes:
        history: Mean IoU on the validation images in percent, before the first epoch and after each epoch.
        best_epoch: The epoch whose weights were kept; 0 for the weights before the first.
    """

    history: list[float] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_miou(self) -> float:
        """The mean IoU of the weights that were kept, in percent."""
        return self.history[self.best_epoch]


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training to convergence.

    In the paper (section 4.1, appendix B), training continues from the weights at the end of acquisition, uses only the
    acquired labels, and stops when the mean IoU on D_R no longer grows. ``updates`` selects another method: that many
    updates from theta_0 with a one-cycle learning rate schedule, partly on images that were labelled before the
    episode, and without D_R (docs/guide/frozen.md).

    Attributes:
        crop_size: ``(height, width)`` of a training crop in pixels; ``None`` for whole images.
        batch_size: Crops per update.
        patience: Number of epochs without a better validation mean IoU after which training stops.
        max_epochs: Maximum number of epochs.
        min_updates: Minimum number of updates in an epoch. An epoch repeats the labelled regions until it has as many,
            so that a few labels don't give epochs of a single update.
        updates: Number of updates from theta_0, instead of epochs; ``None`` for the paper's method.
        replay: With ``updates``, the share of each batch from images that were labelled before the episode began.
        learning_rate: With ``updates``, the highest learning rate.
        fits: With ``updates``, the number of fits, whose weights are averaged.

    Raises:
        ValueError: If a setting is out of range.
    """

    crop_size: Size | None = (224, 224)
    batch_size: int = 32
    patience: int = 10
    max_epochs: int = 100
    min_updates: int = 1
    updates: int | None = None
    replay: float = 0.5
    learning_rate: float = 0.03
    fits: int = 1

    def __post_init__(self) -> None:
        if self.crop_size is not None:
            object.__setattr__(self, "crop_size", check_size("crop_size", self.crop_size))
        check_int("batch_size", self.batch_size, 1, LARGEST_BATCH)
        for name in ("patience", "max_epochs", "min_updates", "fits"):
            check_int(name, getattr(self, name), 1)
        if self.updates is not None:
            check_int("updates", self.updates, 1)
        check_number("replay", self.replay, least=0, below=1)
        check_number("learning_rate", self.learning_rate, above=0)
        names = WITH_UPDATES if self.updates is None else WITH_EPOCHS
        if idle := [name for name in names if getattr(self, name) != getattr(type(self), name)]:
            warnings.warn(f"{', '.join(idle)} has no effect, since updates is {self.updates}; omit it", stacklevel=3)


def evaluate(learner: Learner, frames: Frames, images: Sequence[int]) -> Evaluation:
    """Return a network's results over the pixels of all these images together."""
    batches = labelled_batches(inputs_of(learner, frames), frames, images, learner.batch_size)
    return Evaluation(learner.evaluate(batches))


def fit_to_convergence(
    learner: Learner,
    frames: Frames,
    grid: RegionGrid,
    regions: Sequence[int],
    labels: Callable[[int], UInt8Array],
    validation: Sequence[int],
    settings: FitSettings,
    rng: np.random.Generator,
    progress: str | None = None,
    checkpoint: Path | None = None,
    known: Sequence[int] = (),
) -> Fit:
    """Train on labelled regions with early stopping, and keep the best weights (section 4.1, "Evaluation").

    With ``settings.updates``, train for that many updates from theta_0 instead, and keep the last weights.

    Args:
        learner: The network. Training starts from its current state, or from theta_0 with ``settings.updates``.
        frames: The images.
        grid: The grid of regions.
        regions: Ids of the labelled regions. An epoch has a crop around each, in random order.
        labels: Returns the known labels of an image, ``(H, W)`` uint8, 255 elsewhere.
        validation: D_R, for early stopping.
        settings: The settings of the training.
        rng: Source of randomness.
        progress: Title of the progress bar; no bar is shown if omitted.
        checkpoint: File of the training's state while it runs, removed at the end. If the process was killed, a call
            with the same arguments continues exactly. The file of another training is not continued; training then
            starts from its beginning.
        known: Images that were labelled before the episode, with their true masks, for ``settings.replay``.

    Returns:
        The course of the training. The learner has the weights that were kept.

    Raises:
        ValueError: If there is no region to train on, or the learner does not support the settings.
    """
    if not len(regions):
        raise ValueError("there is no labelled region to train on; acquire some first")
    kept = None if checkpoint is None else _Kept(checkpoint, _training_digest(learner, regions, settings, rng))
    if settings.updates is not None:
        task = _Updates(inputs_of(learner, frames), grid, np.asarray(regions), labels, Replay(frames, grid, known))
        return _fit_updates(learner, frames, task, validation, settings, rng, progress, kept)
    inputs = inputs_of(learner, frames)
    resumed = _resumed(learner, kept, rng)
    if resumed is None:
        fit = Fit([evaluate(learner, frames, validation).miou])
        best: dict[str, Any] = learner.state_dict()
    else:
        fit, best = resumed
    epochs = range(len(fit.history), settings.max_epochs + 1)
    with tqdm(total=settings.max_epochs, desc=progress, disable=progress is None, leave=False) as bar:
        bar.update(len(fit.history) - 1)
        for epoch in epochs if len(fit.history) - 1 - fit.best_epoch < settings.patience else ():
            for batch in _epoch(regions, settings, rng):
                learner.fit_step(*inputs.training_views(grid, batch, labels, settings.crop_size, rng), rng)
            fit.history.append(evaluate(learner, frames, validation).miou)
            if fit.history[-1] > fit.best_miou:
                fit.best_epoch, best = epoch, learner.state_dict()
            bar.update()
            bar.set_postfix(miou=f"{fit.history[-1]:.2f}", best=f"{fit.best_miou:.2f}")
            if epoch - fit.best_epoch >= settings.patience:
                break
            if kept is not None and kept.is_due():
                state = {"history": fit.history, "best_epoch": fit.best_epoch, "best": best, "rng": rng}
                kept.save(KIND, {**state, "learner": learner.state_dict()})
    learner.load_state_dict(best)
    if kept is not None:
        kept.remove()
    return fit


class _Kept:
    """The checkpoint file of a training, which exists while the training runs.

    Args:
        path: The file.
        training: Text that identifies the training.
    """

    def __init__(self, path: Path, training: str) -> None:
        self.path, self.training = path, training
        self._written = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._written >= CHECKPOINT_SECONDS

    def save(self, kind: str, state: Mapping[str, Any]) -> None:
        save_tree(self.path, kind, {**state, "training": self.training})
        self._written = time.monotonic()

    def load(self, kind: str) -> dict[str, Any] | None:
        """Return the stored state, or ``None`` if there is no intact one of this training."""
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = load_tree(self.path, kind)
            if state.get("training") != self.training:
                raise ValueError(f"{self.path} belongs to another training; was the file or its folder moved?")
        except ValueError as error:
            warnings.warn(f"the training starts again from the beginning: {error}", stacklevel=5)
            return None
        return state

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _training_digest(learner: Learner, regions: Sequence[int], settings: FitSettings, rng: np.random.Generator) -> str:
    """Return a digest that identifies a training before it begins: of weights, regions, settings and random state."""
    return tree_digest([learner.state_dict(), np.asarray(regions), repr(settings), rng])


@dataclass(frozen=True)
class _Updates:
    """The training data of a fit with a fixed number of updates."""

    inputs: Inputs
    grid: RegionGrid
    regions: IntArray
    labels: Callable[[int], UInt8Array]
    replay: Replay

    def views(self, place: int, order: IntArray, settings: FitSettings, rng: np.random.Generator) -> tuple[Any, Tensor]:
        """Return a batch and its targets: the next regions of an order that is repeated, and some known regions."""
        share = settings.replay if len(self.replay) else 0.0
        count = max(1, round(settings.batch_size * (1 - share)))
        chosen = self.regions[order[np.arange(place * count, (place + 1) * count) % len(order)]]
        regions, labels = self.replay.mixed(chosen, self.labels, share, rng)
        return self.inputs.training_views(self.grid, regions, labels, settings.crop_size, rng)


def _fit_updates(
    learner: Learner,
    frames: Frames,
    task: _Updates,
    validation: Sequence[int],
    settings: FitSettings,
    rng: np.random.Generator,
    progress: str | None,
    kept: _Kept | None,
) -> Fit:
    """Train for a fixed number of updates from theta_0, ``settings.fits`` times, and average the weights."""
    if not isinstance(learner, HasLearningRate):
        raise ValueError(
            f"updates={settings.updates} changes the learning rate during training, but {type(learner).__name__} has "
            "no learning_rate; add this attribute, or train with epochs"
        )
    assert settings.updates is not None
    total = settings.updates * settings.fits
    learner.reset()
    saved = None if kept is None else kept.load(UPDATES_KIND)
    if saved is None:
        done, order, finished = 0, rng.permutation(len(task.regions)), []
        history = [evaluate(learner, frames, validation).miou]
    else:
        learner.load_state_dict(saved["learner"])
        rng.bit_generator.state = saved["rng"].bit_generator.state
        done, order, finished, history = (saved[name] for name in ("done", "order", "finished", "history"))
    with tqdm(total=total, initial=done, desc=progress, disable=progress is None, leave=False) as bar:
        for update in range(done, total):
            place = update % settings.updates
            if place == 0 and update:
                finished.append(learner.state_dict())
                learner.reset()
                order = rng.permutation(len(order))
            learner.learning_rate = settings.learning_rate * one_cycle(place / settings.updates)
            learner.fit_step(*task.views(place, order, settings, rng), rng)
            bar.update()
            if kept is not None and kept.is_due():
                state = {"done": update + 1, "order": order, "finished": finished, "history": history, "rng": rng}
                kept.save(UPDATES_KIND, {**state, "learner": learner.state_dict()})
    learner.load_state_dict(_averaged([*finished, learner.state_dict()]))
    if kept is not None:
        kept.remove()
    return Fit([*history, evaluate(learner, frames, validation).miou], 1)


def one_cycle(progress: float) -> float:
    """Return the learning rate at some progress in [0, 1] as a share of the highest (Smith and Topin, 2019).

    It rises from 4 % along a cosine over the first 30 % of training, and then falls along another cosine to 0.

    >>> [round(one_cycle(progress), 2) for progress in (0, 0.15, 0.3, 0.65, 1)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    rising, low = 0.3, 0.04
    if progress < rising:
        return low + (1 - low) * (1 - math.cos(math.pi * progress / rising)) / 2
    return (1 + math.cos(math.pi * (progress - rising) / (1 - rising))) / 2


def _averaged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a learner's state: floating-point tensors are the means of several states', the rest is the last one's."""

    def mean(values: Sequence[Any]) -> Any:
        last = values[-1]
        if isinstance(last, Mapping):
            return {key: mean([value[key] for value in values]) for key in last}
        if isinstance(last, Tensor) and last.is_floating_point():
            return torch.stack(list(values)).mean(dim=0)
        return last

    return states[0] if len(states) == 1 else mean(states)


def _resumed(learner: Learner, kept: _Kept | None, rng: np.random.Generator) -> tuple[Fit, dict[str, Any]] | None:
    """Restore a training from its file; ``None`` if there is no intact file."""
    state = None if kept is None else kept.load(KIND)
    if state is None:
        return None
    learner.load_state_dict(state["learner"])
    rng.bit_generator.state = state["rng"].bit_generator.state
    return Fit(state["history"], state["best_epoch"]), state["best"]


def _epoch(regions: Sequence[int], settings: FitSettings, rng: np.random.Generator) -> list[list[int]]:
    """Return the batches of one epoch."""
    size = settings.batch_size
    order: list[int] = []
    while -(-len(order) // size) < max(1, settings.min_updates):
        order.extend(int(region) for region in rng.permutation(np.asarray(regions)))
    return [order[start : start + size] for start in range(0, len(order), size)]
