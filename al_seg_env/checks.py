"""Whether data, splits, network and settings fit each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from al_seg_env.config import EnvConfig
from al_seg_env.datasets.segmentation_data import SegmentationData
from al_seg_env.datasets.splits import Splits
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.hardware import is_out_of_memory
from al_seg_env.regions import RegionGrid


def check_fit(
    data: SegmentationData,
    splits: Splits,
    learner: Learner,
    config: EnvConfig,
    grid: RegionGrid,
    acquired_from: Sequence[int],
) -> None:
    """Raise a ValueError that says what does not fit, or a MemoryError if one image is too large."""
    n_images = len(data.names)
    used = (*splits.state, *acquired_from, *splits.reward)
    if beyond := sorted(image for image in used if image >= n_images):
        raise ValueError(
            f"the splits hold the indices {beyond}, but the data have only {n_images} images; use the splits "
            "that were made for these data"
        )
    _check_network(learner, len(data.classes), grid)
    if not acquired_from:
        raise ValueError(f"split {config.split!r} has no image to acquire regions from; give it some in splits")
    regions = len(acquired_from) * grid.regions_per_image
    if config.budget > regions:
        raise ValueError(
            f"budget is {config.budget}, but split {config.split!r} has only {regions} regions "
            f"({len(acquired_from)} images x {grid.regions_per_image}); lower the budget"
        )
    if config.regions_per_step * config.pool_size > regions:
        raise ValueError(
            f"{config.regions_per_step} pools of {config.pool_size} regions (K x N) need "
            f"{config.regions_per_step * config.pool_size} regions, but split {config.split!r} has {regions}; "
            "lower regions_per_step or pool_size"
        )


def _check_network(learner: Learner, n_classes: int, grid: RegionGrid) -> None:
    image_size = grid.image_size
    try:
        logits = learner.predict(torch.zeros(1, 3, *image_size, dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"one image of size {image_size} does not fit into memory; lower image_size") from error
        raise ValueError(
            f"the network cannot predict an image of size {image_size} ({error}); use larger images or another "
            "architecture"
        ) from error
    shape, expected = tuple(logits.shape), (1, n_classes, *image_size)
    if shape != expected or learner.num_classes != n_classes:
        raise ValueError(
            f"the network returned logits of shape {shape} for one image; expected {expected}: one channel "
            f"for each of the {n_classes} classes, at the image's size"
        )
