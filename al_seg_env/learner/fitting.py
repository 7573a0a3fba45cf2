"""Training to convergence: what happens to the network once the budget is spent, and how theta_0 is made."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.inputs import inputs_of, labelled_batches
from al_seg_env.metrics import class_iou, mean_iou
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import load_tree, save_tree
from al_seg_env.types import Size, UInt8Array
from al_seg_env.validation import height_and_width, whole_number

KIND = "training to convergence"
CHECKPOINT_SECONDS = 60.0
"""Seconds between two checkpoints of a training to convergence, at least."""


@dataclass
class Evaluation:
    """A network's figures on a split.

    Attributes:
        confusion: ``(C, C)`` int64, rows are the truth.
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
    """How a training to convergence went.

    Attributes:
        history: Mean IoU on the validation images in percent: before the first epoch, then after each.
        best_epoch: The epoch whose weights were kept; 0 for those before the first.
    """

    history: list[float] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_miou(self) -> float:
        """The mean IoU of the weights that were kept, in percent."""
        return self.history[self.best_epoch]


@dataclass(frozen=True)
class FitSettings:
    """When and on what to train to convergence (section 4.1, appendix B).

    Attributes:
        crop_size: ``(height, width)`` of a training crop; ``None`` for whole images.
        batch_size: Crops per update.
        patience: Epochs without a better validation mean IoU before it stops.
        max_epochs: Epochs after which it stops in any case.
        min_updates: An epoch goes over the labelled regions as often as this number of updates needs, so that
            a few labels do not make epochs of one update.

    Raises:
        ValueError: If a setting is out of its range.
    """

    crop_size: Size | None = (224, 224)
    batch_size: int = 32
    patience: int = 10
    max_epochs: int = 100
    min_updates: int = 1

    def __post_init__(self) -> None:
        if self.crop_size is not None:
            object.__setattr__(self, "crop_size", height_and_width("crop_size", self.crop_size))
        for name in ("batch_size", "patience", "max_epochs", "min_updates"):
            whole_number(name, getattr(self, name), 1)


def evaluate(learner: Learner, frames: Frames, images: Sequence[int]) -> Evaluation:
    """Return a network's figures over all pixels of these images at once."""
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
) -> Fit:
    """Train on labelled regions with early stopping, and keep the best weights (section 4.1, "Evaluation").

    Args:
        learner: The network; training goes on from its present state.
        frames: The images.
        grid: The grid of regions.
        regions: Ids of the labelled regions; an epoch takes a crop around each, in random order.
        labels: Returns the known labels of an image, ``(H, W)`` uint8, 255 elsewhere.
        validation: D_R, for early stopping.
        settings: Crops, batches and patience.
        rng: Source of randomness.
        progress: Title of a progress bar, if one is wanted.
        checkpoint: File to keep the training in while it goes on, so that a call with the same arguments after a kill
            continues it exactly; removed at the end.

    Returns:
        What was reached. The learner has the best weights on return.
    """
    if not len(regions):
        raise ValueError("there is no labelled region to train on; acquire some first")
    inputs = inputs_of(learner, frames)
    resumed = _resumed(learner, checkpoint, rng)
    if resumed is None:
        fit = Fit([evaluate(learner, frames, validation).miou])
        best: dict[str, Any] = learner.state_dict()
    else:
        fit, best = resumed
    written = time.monotonic()
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
            if checkpoint is not None and time.monotonic() - written >= CHECKPOINT_SECONDS:
                state = {"history": fit.history, "best_epoch": fit.best_epoch, "best": best, "rng": rng}
                save_tree(checkpoint, KIND, {**state, "learner": learner.state_dict()})
                written = time.monotonic()
    learner.load_state_dict(best)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return fit


def _resumed(learner: Learner, checkpoint: Path | None, rng: np.random.Generator) -> tuple[Fit, dict[str, Any]] | None:
    """Put a training back to where its checkpoint was written; ``None`` if there is none that is whole."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        state = load_tree(checkpoint, KIND)
    except ValueError as error:
        warnings.warn(f"the training starts again from its beginning: {error}", stacklevel=3)
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
