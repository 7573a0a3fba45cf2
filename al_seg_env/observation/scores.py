"""Acquisition scores of regions: the heuristics that an agent is compared with, available as observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from al_seg_env import functional
from al_seg_env.datasets.frames import Frames
from al_seg_env.observation.features import Prediction
from al_seg_env.regions import RegionGrid
from al_seg_env.storage.validation import check_int
from al_seg_env.types import IntArray, Size


class Score(Protocol):
    """A number per region. The higher it is, the more the region's labels are wanted.

    Any object with these members will do. A score that samples the network with dropout also has the attribute
    ``needs_dropout = True``.

    >>> class LeastConfidence:
    ...     name = "least_confidence"
    ...
    ...     def high(self, num_classes, region_size):
    ...         return float(region_size[0] * region_size[1])
    ...
    ...     def __call__(self, prediction):  # logits (C, P) -> (M,)
    ...         unsure = 1 - prediction.logits.softmax(0).amax(0)  # (P,)
    ...         return prediction.regions.sum(unsure)[:, 0]
    >>> score: Score = LeastConfidence()
    """

    @property
    def name(self) -> str:
        """The observation's key is ``score_<name>``."""
        ...

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return an upper bound; the lower bound is 0."""
        ...

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)`` float32."""
        ...


def _sum(values: Tensor, prediction: Prediction) -> Tensor:
    return prediction.regions.sum(values)[:, 0]


def _pixels(region_size: Size) -> int:
    return region_size[0] * region_size[1]


@dataclass(frozen=True)
class Entropy:
    """Baseline H: cumulative pixel-wise Shannon entropy in nats (section 4.2).

    Two regions of two pixels. The network is undecided about the first, and rather certain about the second:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 4), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.5, 0.5, 0.9, 0.1])
    >>> Entropy()(Prediction(torch.stack([p, 1 - p]).log(), regions))  # 2 log 2, 2 * 0.3251
    tensor([1.3863, 0.6502])
    """

    name: str = "entropy"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``pixels * log C``."""
        return _pixels(region_size) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(prediction.entropy, prediction)


@dataclass(frozen=True)
class BALD:
    """Baseline B: cumulative pixel-wise mutual information from MC dropout, in nats (section 4.2).

    Attributes:
        samples: Number of forward passes with dropout; the paper's is 20.

    Raises:
        ValueError: If ``samples`` is below 1.

    Two samples that contradict each other in the first of two regions, and agree in the second:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 4), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> z = torch.tensor([[[100.0, 100.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    ...                   [[0.0, 0.0, 0.0, 0.0], [100.0, 100.0, 0.0, 0.0]]])  # (samples, C, P)
    >>> prediction = Prediction(z.mean(0), regions, sampler=lambda count: iter(z[:count]))
    >>> BALD(samples=2)(prediction).round(decimals=4)  # 2 log 2, 0
    tensor([1.3863, 0.0000])
    """

    samples: int = 20
    name: str = "bald"
    needs_dropout: bool = True

    def __post_init__(self) -> None:
        check_int("samples", self.samples, 1)

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``pixels * log C``."""
        return _pixels(region_size) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.bald_map(logits[None] for logits in prediction.samples(self.samples))[0], prediction)


@dataclass(frozen=True)
class Margin:
    """Cumulative closeness of the two most probable classes: ``sum (1 - (p_1 - p_2))``.

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 4), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.5, 0.5, 0.9, 0.1])
    >>> Margin()(Prediction(torch.stack([p, 1 - p]).log(), regions))  # 2 * (1 - 0), 2 * (1 - 0.8)
    tensor([2.0000, 0.4000])
    """

    name: str = "margin"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the number of pixels."""
        return float(_pixels(region_size))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.margin_map(prediction.logits[None])[0], prediction)


@dataclass(frozen=True)
class RIPU:
    """Region impurity times prediction uncertainty: the entropy of the predicted classes times the mean entropy.

    After Xie et al., "Towards Fewer Annotations: Active Learning via Region Impurity and Prediction Uncertainty for
    Domain Adaptive Semantic Segmentation" (CVPR 2022), with this environment's regions instead of their windows.

    The first region has one predicted class, the second has two. All pixels are equally uncertain:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 4), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.8, 0.8, 0.8, 0.2])
    >>> RIPU()(Prediction(torch.stack([p, 1 - p]).log(), regions)).round(decimals=4)  # 0, log 2 * 0.5004
    tensor([0.0000, 0.3469])
    """

    name: str = "ripu"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``(log C)^2``."""
        return math.log(max(num_classes, 2)) ** 2

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        impurity = torch.special.entr(prediction.class_shares).sum(dim=1)
        return impurity * prediction.regions.over_pixels(prediction.entropy[None], "mean")[:, 0]


@dataclass(frozen=True)
class BalancedMargin:
    """Class-balanced :class:`Margin`: each pixel's closeness of the two most probable classes, times a class weight.

    After Cai et al., "Revisiting Superpixels for Active Learning in Semantic Segmentation with Realistic Annotation
    Costs" (CVPR 2021). Their weight of a class is ``exp(-share)``, so pixels of rarer predicted classes count more.
    Here, the shares are those of labels that are known before the episode.

    Attributes:
        weights: One weight per class; see :func:`balanced_weights`.

    Both pixels are equally uncertain. The second is predicted as class 1, which counts twice as much:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 1))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.9, 0.1])
    >>> BalancedMargin(weights=(0.5, 1.0))(Prediction(torch.stack([p, 1 - p]).log(), regions))  # 0.2 / 2, 0.2
    tensor([0.1000, 0.2000])
    """

    weights: tuple[float, ...]
    name: str = "balanced_margin"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the number of pixels times the largest weight."""
        return _pixels(region_size) * max(self.weights)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        weights = prediction.logits.new_tensor(self.weights)[prediction.classes.long()]  # (P,)
        return _sum(functional.margin_map(prediction.logits[None])[0] * weights, prediction)


@dataclass(frozen=True)
class Rarity:
    """Predicted rarity: ``sum_c w_c mean p_c``.

    Attributes:
        weights: w, one per class, from labels that are known before the episode; see :func:`class_rarity`.

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 1))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.8, 0.2])
    >>> Rarity(weights=(1.0, 4.0))(Prediction(torch.stack([p, 1 - p]).log(), regions))  # 0.8 + 0.8, 0.2 + 3.2
    tensor([1.6000, 3.4000])
    """

    weights: tuple[float, ...]
    name: str = "rarity"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the largest weight."""
        return max(self.weights)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return prediction.mean_probability @ prediction.logits.new_tensor(self.weights)


@dataclass(frozen=True)
class RarityEntropy:
    """:class:`Rarity` times the mean entropy: ``(sum_c w_c mean p_c) * mean entropy``.

    Attributes:
        weights: w, one per class, from labels that are known before the episode; see :func:`class_rarity`.

    Both regions are equally uncertain. The second is predicted as class 1, which is four times rarer:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 1))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.8, 0.2])
    >>> RarityEntropy(weights=(1.0, 4.0))(Prediction(torch.stack([p, 1 - p]).log(), regions)).round(decimals=4)
    tensor([0.8006, 1.7014])
    """

    weights: tuple[float, ...]
    name: str = "rarity_entropy"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``max w * log C``."""
        return max(self.weights) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return Rarity(self.weights)(prediction) * prediction.regions.over_pixels(prediction.entropy[None], "mean")[:, 0]


@dataclass(frozen=True)
class LocationEntropy:
    """Mean entropy times the rarity of classes at the region's location in images labelled before the episode.

    Street scenes are similar: poles and signs stand at the sides, and the sky is above. An agent must beat what the
    location alone tells.

    Attributes:
        weights: One weight per cell of the grid; see :func:`location_rarity`.

    Both regions are equally uncertain. At the location of the second, labels were three times rarer:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 1))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.5, 0.5])
    >>> LocationEntropy(weights=(1.0, 3.0))(Prediction(torch.stack([p, 1 - p]).log(), regions))  # log 2, 3 log 2
    tensor([0.6931, 2.0794])
    """

    weights: tuple[float, ...]
    name: str = "location_entropy"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``max weight * log C``."""
        return max(self.weights) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        place = prediction.logits.new_tensor(self.weights)[torch.from_numpy(prediction.regions.cells)]
        return place * prediction.regions.over_pixels(prediction.entropy[None], "mean")[:, 0]


@dataclass(frozen=True)
class Foreground:
    """Share of the region's pixels that are predicted as a foreground class.

    :class:`agents.ForegroundPolicy` ("foreground-aware random") uses it.

    Attributes:
        classes: Whether each class is foreground; see :func:`foreground_classes`.

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0]), cells=np.array([0]), device=torch.device("cpu"))
    >>> p = torch.tensor([0.8, 0.2])
    >>> Foreground(classes=(False, True))(Prediction(torch.stack([p, 1 - p]).log(), regions))
    tensor([0.5000])
    """

    classes: tuple[bool, ...]
    name: str = "foreground"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return 1."""
        return 1.0

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return prediction.class_shares @ prediction.class_shares.new_tensor(self.classes)


@dataclass(frozen=True)
class PrivilegedRarity:
    """Amount of rare classes in a region by ground truth: ``sum_c w_c sqrt(pixels of class c)``.

    It uses labels that no agent may know, and serves as an upper reference for heuristics. Environments include it only
    on request.

    Attributes:
        weights: w, one weight per class; see :func:`class_rarity`.

    The first region has two pixels of class 0. The second has one pixel of each class, and class 1 is four times rarer:

    >>> import torch
    >>> from al_seg_env.observation.region_pixels import RegionPixels
    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 4), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> prediction = Prediction(torch.zeros(2, 4), regions, truth=lambda: torch.tensor([0, 0, 0, 1]))
    >>> PrivilegedRarity(weights=(1.0, 4.0))(prediction)  # sqrt(2), 1 + 4
    tensor([1.4142, 5.0000])
    """

    weights: tuple[float, ...]
    name: str = "privileged_rarity"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the bound that follows from the Cauchy-Schwarz inequality."""
        return math.sqrt(sum(w * w for w in self.weights) * _pixels(region_size))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        counts = prediction.true_counts()
        return (counts.float().sqrt() * counts.new_tensor(self.weights, dtype=prediction.logits.dtype)).sum(dim=1)


def cell_counts(frames: Frames, grid: RegionGrid, images: Sequence[int], num_classes: int) -> IntArray:
    """Return the number of labelled pixels of each class in each cell of the grid in these images, ``(R, C)`` int64.

    Args:
        frames: The images' masks.
        grid: The grid, with R regions per image.
        images: Indices of the images to count in.
        num_classes: C.

    >>> from al_seg_env.datasets import ArrayData
    >>> masks = np.array([[[0, 0, 0, 1]]], dtype=np.uint8)  # (1, 1, 4)
    >>> data = ArrayData(np.zeros((1, 1, 4, 3), np.uint8), masks, classes=("road", "car", "sky"))
    >>> cell_counts(Frames(data), RegionGrid((1, 4), (1, 2)), images=[0], num_classes=3)
    array([[2, 0, 0],
           [1, 1, 0]])
    """
    counts = np.zeros((grid.regions_per_image, num_classes), np.int64)
    boxes = [grid.box(cell) for cell in range(grid.regions_per_image)]
    for image in images:
        mask = frames.mask(image)
        for cell, box in enumerate(boxes):
            counts[cell] += np.bincount(box.crop(mask).reshape(-1), minlength=256)[:num_classes]
    return counts


def class_rarity(counts: IntArray) -> tuple[float, ...]:
    """Return a weight per class: the inverse of its share of labelled pixels, at most 10^4; 0 if it is absent.

    Args:
        counts: Labelled pixels per class, ``(C,)``.

    >>> class_rarity(np.array([3, 1, 0]))  # shares of 3/4 and 1/4
    (1.3333333333333333, 4.0, 0.0)
    """
    shares = counts / max(counts.sum(), 1)
    return tuple(np.where(counts > 0, 1 / np.maximum(shares, 1e-4), 0.0).tolist())


def balanced_weights(counts: IntArray) -> tuple[float, ...]:
    """Return a weight per class, ``exp(-share)``, where ``share`` is its share of labelled pixels ``counts``, ``(C,)``.

    >>> balanced_weights(np.array([1, 0]))
    (0.36787944117144233, 1.0)
    """
    return tuple(np.exp(-counts / max(counts.sum(), 1)).tolist())


def foreground_classes(counts: IntArray) -> tuple[bool, ...]:
    """Return whether each class is foreground, that is, rarer than the average class.

    Args:
        counts: Labelled pixels per class, ``(C,)``.

    >>> foreground_classes(np.array([80, 15, 5]))
    (False, True, True)
    """
    return tuple((counts < counts.mean()).tolist())


def location_rarity(counts: IntArray) -> tuple[float, ...]:
    """Return the mean :func:`class_rarity` of the labelled pixels in each cell; 0 for cells without labels.

    Args:
        counts: Labelled pixels per cell and class, ``(R, C)``; see :func:`cell_counts`.

    >>> location_rarity(np.array([[2, 0], [1, 1]]))  # rarities of 4/3 and 4
    (1.3333333333333333, 2.6666666666666665)
    """
    rarity = np.array(class_rarity(counts.sum(axis=0)))
    return tuple((counts @ rarity / np.maximum(counts.sum(axis=1), 1)).tolist())
