"""Features of the classes in a region and of the labels so far, which tell an agent what is worth labelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.inputs import Inputs
from al_seg_env.observation.features import Feature, Prediction
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import tree_digest
from al_seg_env.types import FloatArray, IntArray, Size

HIGHEST_LEVEL = 30.0
"""Upper bound of :func:`label_levels`. No data set has as many as e^30 regions."""


@dataclass(frozen=True)
class MeanProbability:
    """Mean probability of each class over the region's pixels, or its square root, which spreads small values."""

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
        surprise = prediction.logits.log_softmax(dim=0).neg_()
        return prediction.regions.over_pixels(surprise.mul_(prediction.probabilities), "mean")


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
class Labelled:
    """Amount of labels of each class so far on a logarithmic scale; see :func:`label_levels`.

    It includes images that were labelled before the episode. All regions of a step have the same values.
    """

    name: str = "labelled"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        return np.zeros(num_classes, np.float32), np.full(num_classes, HIGHEST_LEVEL, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.label_levels.expand(prediction.regions.count, -1)


class Embedding:
    """The frozen encoder's features, averaged over the region and projected to whitened principal components.

    The principal components are those of the regions of D_T. They depend neither on the weights that are trained nor on
    labels.

    Args:
        frames: The images.
        inputs: The images' stored features.
        grid: The grid of regions.
        images: D_T, whose principal components are used.
        size: Number of components.

    Raises:
        ValueError: If the learner stores no features.
    """

    LARGEST = 10.0
    """Number of standard deviations to which values are clipped, so that the space has bounds."""

    def __init__(
        self, frames: Frames, inputs: Inputs, grid: RegionGrid, images: tuple[int, ...], size: int = 64
    ) -> None:
        if not hasattr(inputs, "maps"):
            raise ValueError(
                "the features 'embedding' and 'surroundings' need stored features; use trainable='decoder', or "
                "omit them"
            )
        self.frames, self.inputs, self.grid, self.images, self.size = frames, inputs, grid, images, size
        self.name = f"embedding_{size}"
        self.basis_of = tree_digest(sorted(frames.data.names[image] for image in images))[:8]
        self._of_image: dict[int, Tensor] = {}
        self._basis: tuple[Tensor, Tensor] | None = None

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(size,)``."""
        return np.full(self.size, -self.LARGEST, np.float32), np.full(self.size, self.LARGEST, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, size)``."""
        return looked_up(self.of_image, prediction)

    def of_image(self, image: int) -> Tensor:
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
            # The sign of a component is arbitrary, so its largest entry is made positive, the same on every machine.
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


class Surroundings:
    """:class:`Embedding` around a region: the mean over its (up to eight) neighbours, and the mean over its image.

    The surroundings give hints about a region: cyclists are on streets, and fences extend beyond a region.

    Args:
        embedding: Embedding of the regions themselves.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embedding, self.name = embedding, f"surroundings_{embedding.size}"
        self.basis_of = embedding.basis_of
        self._of_image: dict[int, Tensor] = {}

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(2 size,)``."""
        low, high = self.embedding.bounds(num_classes, region_size)
        return np.tile(low, 2), np.tile(high, 2)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, 2 size)``."""
        return looked_up(self._around, prediction)

    def _around(self, image: int) -> Tensor:
        """Return the surroundings of the regions of an image, ``(R, 2 size)``."""
        if image not in self._of_image:
            regions = self.embedding.of_image(image)  # (R, size)
            maps = regions.T.reshape(1, -1, *self.embedding.grid.shape)  # (1, size, rows, columns)
            summed = partial(torch.nn.functional.avg_pool2d, kernel_size=3, stride=1, padding=1, divisor_override=1)
            neighbours = (summed(maps) - maps) / (summed(torch.ones_like(maps)) - 1).clamp(min=1)
            around = neighbours.reshape(len(regions[0]), -1).T
            self._of_image[image] = torch.cat([around, regions.mean(dim=0).expand_as(around)], dim=1)
        return self._of_image[image]


def looked_up(of_image: Callable[[int], Tensor], prediction: Prediction) -> Tensor:
    """Return the rows ``(M, D)`` of a prediction's regions from a table ``(R, D)`` for the regions of each image."""
    assert prediction.image_of is not None
    images, places = np.unique(prediction.image_of, return_inverse=True)
    described = torch.stack([of_image(int(image)) for image in images])  # (images, R, D)
    values = described[torch.from_numpy(places), torch.from_numpy(prediction.regions.cells)]
    return values.to(prediction.logits.device)


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
        # The encoder may have padded the image. A map then covers a little more, which shifts cells by less than one.
        sides.append((np.floor(first * cells / pixels).astype(int), np.ceil(last * cells / pixels).astype(int)))
    pooled = [
        values[0, :, top:bottom, left:right].mean(dim=(1, 2))
        for top, bottom in zip(*sides[0], strict=True)
        for left, right in zip(*sides[1], strict=True)
    ]
    return torch.stack(pooled)


def named_features(
    names: tuple[str, ...],
    frames: Frames,
    inputs: Inputs,
    grid: RegionGrid,
    images: tuple[int, ...],
    forecast: Callable[[], Feature],
) -> tuple[Feature, ...]:
    """Return the features with these names, out of those that ``EnvConfig.region_features`` accepts.

    Args:
        names: The names.
        frames, inputs, grid, images: See :class:`Embedding`.
        forecast: Returns the feature ``"forecast"``.
    """
    known: dict[str, Feature] = {
        "mean_probability": MeanProbability(),
        "root_probability": MeanProbability(root=True),
        "max_probability": MaxProbability(),
        "class_entropy": ClassEntropy(),
        "location": Location(grid.shape),
        "labelled": Labelled(),
    }
    if {"embedding", "surroundings"} & set(names):
        known["embedding"] = embedding = Embedding(frames, inputs, grid, images)
        known["surroundings"] = Surroundings(embedding)
    if "forecast" in names:
        known["forecast"] = forecast()
    return tuple(known[name] for name in names)


def label_levels(counts: IntArray, region_size: Size) -> FloatArray:
    """Return the label level of each class, ``log(1 + n_c / A)``, where A is the area of a region in pixels.

    Another pixel of a class adds ``1 / (n_c + A)``, so the gain decreases with the number of labelled pixels.

    Args:
        counts: Labelled pixels per class, n_c, ``(..., C)``.
        region_size: ``(height, width)`` in pixels.

    Returns:
        ``(..., C)`` float32.

    >>> label_levels(np.array([0, 4, 12]), region_size=(2, 2)).round(3)
    array([0.   , 0.693, 1.386], dtype=float32)
    """
    return np.log1p(counts / (region_size[0] * region_size[1])).astype(np.float32)


def class_rewards(counts: IntArray, region_size: Size) -> FloatArray:
    """Return the amount of each class in the labels of regions, in shares of a region.

    It depends on a region's labels alone, so it is known as soon as they are.

    Args:
        counts: Labelled pixels per class of n regions, ``(n, C)``.
        region_size: ``(height, width)`` in pixels.

    Returns:
        ``(n, C)`` float32.

    >>> class_rewards(np.array([[4, 0], [1, 1]]), region_size=(2, 2))
    array([[1.  , 0.  ],
           [0.25, 0.25]], dtype=float32)
    """
    return (counts / (region_size[0] * region_size[1])).astype(np.float32)


def sub_rewards(held: FloatArray, levels: FloatArray) -> FloatArray:
    """Return how much the labels of each single region increase the sum of :func:`label_levels`.

    Args:
        held: Amount of each class in each of n regions, from :func:`class_rewards`, ``(n, C)``.
        levels: :func:`label_levels` before these labels, ``(C,)``.

    Returns:
        ``(n,)`` float32.

    >>> sub_rewards(np.array([[1.0, 0.0], [0.0, 1.0]]), levels=np.log([1.0, 4.0])).round(3)
    array([0.693, 0.223], dtype=float32)
    """
    return np.log1p(held * np.exp(-levels)).sum(axis=-1).astype(np.float32)
