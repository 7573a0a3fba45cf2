"""What a region may hold and what is still rare: what an agent needs to tell which labels are worth having."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.inputs import Inputs
from al_seg_env.observation.features import Feature, Prediction
from al_seg_env.regions import RegionGrid
from al_seg_env.types import FloatArray, IntArray, Size

NEEDED_POWER = 0.75
"""p of the worth ``n_c^-p`` of a class's next pixel, n_c of which are labelled: between the marginal gains of
``sqrt(n)``, 1/2, and of ``log n``, 1. Chosen on D_T and D_R (docs/paper/results.md)."""


@dataclass(frozen=True)
class MeanProbability:
    """Mean probability of each class over the region's pixels, or its square root, which spreads small ones."""

    root: bool = False

    @property
    def name(self) -> str:
        """The part's name in the layout."""
        return "root_probability" if self.root else "mean_probability"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        return np.zeros(num_classes, np.float32), np.ones(num_classes, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.mean_probability.sqrt() if self.root else prediction.mean_probability


@dataclass(frozen=True)
class MaxProbability:
    """Highest probability of each class over the region's pixels."""

    name: str = "max_probability"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        return np.zeros(num_classes, np.float32), np.ones(num_classes, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.regions.over_pixels(prediction.probabilities, "max")


@dataclass(frozen=True)
class ClassEntropy:
    """Each class's share ``-p_c log p_c`` of the mean pixel-wise entropy, in nats."""

    name: str = "class_entropy"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``; ``-p log p`` is at most 1 / e."""
        return np.zeros(num_classes, np.float32), np.full(num_classes, 0.37, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.regions.over_pixels(torch.special.entr(prediction.probabilities), "mean")


@dataclass(frozen=True)
class Location:
    """Row and column of the region in its image's grid, each one-hot.

    Attributes:
        grid: ``(rows, columns)``.
    """

    grid: Size
    name: str = "location"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(rows + columns,)``."""
        return np.zeros(sum(self.grid), np.float32), np.ones(sum(self.grid), np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, rows + columns)``."""
        row, column = (torch.from_numpy(place) for place in np.divmod(prediction.regions.cells, self.grid[1]))
        one_hot = torch.nn.functional.one_hot
        placed = torch.cat([one_hot(row, self.grid[0]), one_hot(column, self.grid[1])], dim=1)
        return placed.to(prediction.logits.device, torch.float32)


@dataclass(frozen=True)
class Need:
    """How much each class's labels are needed, ``n_c^-p`` of the pixels labelled so far, with mean 1.

    Pixels of images that are labelled before the episode count, too. The same for all regions of a step.
    """

    name: str = "need"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        return np.zeros(num_classes, np.float32), np.full(num_classes, num_classes, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.need.expand(prediction.regions.count, -1)


@dataclass(frozen=True)
class NeededProbability:
    """What is needed and may be there: the root of each class's mean probability, times :class:`Need`."""

    name: str = "needed_probability"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        return np.zeros(num_classes, np.float32), np.full(num_classes, num_classes, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.mean_probability.sqrt() * prediction.need


class Embedding:
    """The frozen encoder's features, averaged over the region: its first principal components over D_T, whitened.

    It does not depend on the weights that are trained, and no label is looked at.

    Args:
        frames: The images.
        inputs: Their stored features.
        grid: The grid of regions.
        images: D_T, whose principal components are used.
        size: Components.

    Raises:
        ValueError: If the learner stores no features.
    """

    LARGEST = 10.0
    """Standard deviations at which values are cut off, so that the space has bounds."""

    def __init__(
        self, frames: Frames, inputs: Inputs, grid: RegionGrid, images: tuple[int, ...], size: int = 64
    ) -> None:
        if not hasattr(inputs, "maps"):
            raise ValueError("the feature 'embedding' needs stored features; use trainable='decoder', or omit it")
        self.frames, self.inputs, self.grid, self.images, self.size = frames, inputs, grid, images, size
        self.name = f"embedding_{size}"
        self._of_image: dict[int, Tensor] = {}
        self._basis: tuple[Tensor, Tensor] | None = None

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(size,)``."""
        return np.full(self.size, -self.LARGEST, np.float32), np.full(self.size, self.LARGEST, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, size)``."""
        assert prediction.image_of is not None
        images, places = np.unique(prediction.image_of, return_inverse=True)
        described = torch.stack([self._components(int(image)) for image in images])  # (images, R, size)
        values = described[torch.from_numpy(places), torch.from_numpy(prediction.regions.cells)]
        return values.to(prediction.logits.device)

    def _components(self, image: int) -> Tensor:
        """Return the whitened components of an image's regions, ``(R, size)``."""
        if image not in self._of_image:
            mean, projection = self._found_basis()
            values = (self._pooled(image) - mean) @ projection
            self._of_image[image] = values.clamp(-self.LARGEST, self.LARGEST)
        return self._of_image[image]

    def _found_basis(self) -> tuple[Tensor, Tensor]:
        if self._basis is None:
            self.inputs.prepare(self.images)
            values = torch.cat([self._pooled(image) for image in self.images]).double()  # (n R, channels)
            mean = values.mean(dim=0)
            _, deviations, components = torch.linalg.svd(values - mean, full_matrices=False)
            kept = components[: self.size].T / (deviations[: self.size] / max(len(values) - 1, 1) ** 0.5).clamp(
                min=1e-6
            )
            # The sign of a component is arbitrary: its largest entry is made positive, on every machine.
            largest = kept.abs().argmax(dim=0)
            kept = kept * kept[largest, torch.arange(kept.shape[1])].sign()
            kept = torch.nn.functional.pad(kept, (0, self.size - kept.shape[1]))
            self._basis = mean.float(), kept.float()
        return self._basis

    def _pooled(self, image: int) -> Tensor:
        """Return the mean of the stored features over each region of an image, ``(R, channels)`` float32."""
        parts = []
        for maps in self.inputs.maps(image):
            values = maps.float().permute(2, 0, 1)[None]  # (1, C, h, w)
            parts.append(_over_regions(values, self.grid))
        return torch.cat(parts, dim=1)


def _over_regions(values: Tensor, grid: RegionGrid) -> Tensor:
    """Return the mean of maps ``(1, C, h, w)`` over the cells that each region touches, ``(R, C)``."""
    height, width = values.shape[2:]
    rows, columns = grid.shape
    sides = []
    for cells, pixels, step, count in (
        (height, grid.image_size[0], grid.region_size[0], rows),
        (width, grid.image_size[1], grid.region_size[1], columns),
    ):
        first = np.arange(count) * step
        last = np.minimum(first + step, pixels)
        # The encoder may have padded the image: a map covers a little more than it, which moves cells by less than one.
        sides.append((np.floor(first * cells / pixels).astype(int), np.ceil(last * cells / pixels).astype(int)))
    pooled = [
        values[0, :, top:bottom, left:right].mean(dim=(1, 2))
        for top, bottom in zip(*sides[0], strict=True)
        for left, right in zip(*sides[1], strict=True)
    ]
    return torch.stack(pooled)


def named_features(
    names: tuple[str, ...], frames: Frames, inputs: Inputs, grid: RegionGrid, images: tuple[int, ...]
) -> tuple[Feature, ...]:
    """Return the features of these names, out of those that ``EnvConfig.region_features`` knows."""
    known: dict[str, Feature] = {
        "mean_probability": MeanProbability(),
        "root_probability": MeanProbability(root=True),
        "max_probability": MaxProbability(),
        "class_entropy": ClassEntropy(),
        "location": Location(grid.shape),
        "need": Need(),
        "needed_probability": NeededProbability(),
    }
    if "embedding" in names:
        known["embedding"] = Embedding(frames, inputs, grid, images)
    return tuple(known[name] for name in names)


def need(labelled: IntArray) -> FloatArray:
    """Return how much each class's labels are needed, given the pixels labelled of each: ``n_c^-p``, with mean 1.

    Args:
        labelled: n, pixels labelled per class, ``(C,)``. To each a hundredth of their mean, and one, is added, so that
            a class without any is needed much, and not without limit.

    Returns:
        ``(C,)`` float32, at most C.

    >>> import numpy as np
    >>> need(np.array([400, 100, 100])).round(3)
    array([0.457, 1.271, 1.271], dtype=float32)
    """
    counts = labelled + 0.01 * labelled.mean() + 1
    worth = counts**-NEEDED_POWER
    return (worth / worth.mean()).astype(np.float32)


def class_rewards(counts: IntArray, region_size: Size) -> FloatArray:
    """Return what the labels of regions hold of each class: the roots of the classes' shares.

    Their product with :func:`need`, ``sum_c need_c sqrt(share_c)``, is a region's credit for a step's reward. Its
    labels alone decide it, so that it is known as soon as they are.

    Args:
        counts: Labelled pixels per class of n regions, ``(n, C)``.
        region_size: ``(height, width)`` in pixels.

    Returns:
        ``(n, C)`` float32.

    >>> import numpy as np
    >>> class_rewards(np.array([[4, 0], [1, 1]]), region_size=(2, 2))
    array([[1. , 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    return np.sqrt(counts / (region_size[0] * region_size[1])).astype(np.float32)
