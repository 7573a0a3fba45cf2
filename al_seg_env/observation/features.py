"""The agent's description of a region: features of the prediction, and its similarity to other regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from al_seg_env import functional
from al_seg_env.config import EnvConfig
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.types import FloatArray, IntArray, Size

Sampler = Callable[[int], Iterator[Tensor]]


class Prediction:
    """The network's prediction for M regions. Derived quantities are computed when first requested, and kept.

    The pixels of all regions are concatenated, P in total, so functions of single pixels need not know about regions.
    ``regions`` reduces their results to one row per region.

    Args:
        logits: Logits of the pixels, ``(C, P)`` float32.
        regions: Pools, sums and counts values ``(P,)`` by region.
        sampler: Yields the requested number of samples of these logits; only needed for :meth:`samples`.
        truth: Returns the true labels of the pixels, ``(P,)`` uint8; only needed for :meth:`true_counts`.
        image_of: Index of each region's image in the data, ``(M,)``, for features that do not depend on the logits.
        label_levels: Label level of each class, ``(C,)``; see :func:`~al_seg_env.observation.composition.label_levels`.

    An image of 2 x 4 pixels, two classes, and its two regions of 2 x 2 pixels:

    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(2, 4), region_size=(2, 2))
    >>> regions = RegionPixels(grid, images=np.array([0, 0]), cells=np.array([0, 1]), device=torch.device("cpu"))
    >>> road = torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.9, 0.9, 0.1, 0.1]])
    >>> logits = torch.stack([road, 1 - road]).log()[None]  # (1, 2, 2, 4)
    >>> prediction = Prediction(regions.gather(logits), regions)
    >>> prediction.classes  # one region after the other, row by row
    tensor([0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.uint8)
    >>> prediction.class_shares
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    >>> prediction.regions.sum(prediction.entropy)  # 2 log 2 + 2 * 0.3251, and 4 * 0.3251
    tensor([[2.0365],
            [1.3003]])
    """

    def __init__(
        self,
        logits: Tensor,
        regions: RegionPixels,
        sampler: Sampler | None = None,
        truth: Callable[[], Tensor] | None = None,
        image_of: IntArray | None = None,
        label_levels: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.regions = regions
        self._sampler = sampler
        self._truth = truth
        self.image_of = image_of
        self._label_levels = label_levels

    @cached_property
    def classes(self) -> Tensor:
        """Most probable class per pixel, ``(P,)`` uint8."""
        return functional.class_map(self.logits[None])[0]

    @cached_property
    def entropy(self) -> Tensor:
        """Shannon entropy per pixel in nats, ``(P,)``."""
        return functional.entropy_map(self.logits[None])[0]

    @cached_property
    def class_counts(self) -> Tensor:
        """Pixels predicted per class and region, ``(M, C)`` int64."""
        return self.regions.class_counts(self.classes, len(self.logits))

    @cached_property
    def class_shares(self) -> Tensor:
        """Share of the pixels predicted per class and region, ``(M, C)`` float32."""
        return functional.shares(self.class_counts)

    @cached_property
    def probabilities(self) -> Tensor:
        """Probability of each class per pixel, ``(C, P)`` float32."""
        return self.logits.softmax(dim=0)

    @cached_property
    def mean_probability(self) -> Tensor:
        """Mean probability of each class per region, ``(M, C)`` float32."""
        return self.regions.over_pixels(self.probabilities, "mean")

    @property
    def label_levels(self) -> Tensor:
        """Label level of each class, ``(C,)``; see :func:`~al_seg_env.observation.composition.label_levels`."""
        if self._label_levels is None:
            raise ValueError("this prediction was made without label_levels")
        return self._label_levels

    def samples(self, count: int) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(C, P)``, each with its own dropout masks.

        Raises:
            ValueError: If the prediction was made without a sampler.
        """
        if self._sampler is None:
            raise ValueError("this prediction was made without a sampler, so it has no samples")
        return self._sampler(count)

    def true_counts(self) -> Tensor:
        """Return the true number of pixels per class and region, ``(M, C)`` int64. Only for privileged scores.

        Raises:
            ValueError: If the prediction was made without ``truth``.
        """
        if self._truth is None:
            raise ValueError("this prediction was made without truth")
        unlabelled = len(self.logits)
        labels = self._truth()
        labels = torch.where(labels == IGNORE_LABEL, unlabelled, labels).to(torch.uint8)
        return self.regions.class_counts(labels, unlabelled + 1)[:, :-1]


class Feature(Protocol):
    """A part of a region's description, used for both the regions of D_S and candidates.

    Any object with these members will do:

    >>> class MeanEntropy:
    ...     name = "mean_entropy"
    ...
    ...     def bounds(self, num_classes, region_size):
    ...         return np.zeros(1, np.float32), np.full(1, math.log(num_classes), np.float32)
    ...
    ...     def __call__(self, prediction):
    ...         return prediction.regions.pool(prediction.entropy, bins=1, mode="avg")
    >>> feature: Feature = MeanEntropy()
    >>> low, high = feature_bounds([ClassDistribution(), feature], num_classes=2, region_size=(2, 2))
    >>> low, high.round(4)
    (array([0., 0., 0.], dtype=float32), array([1.    , 1.    , 0.6931], dtype=float32))
    """

    @property
    def name(self) -> str:
        """Name in the environment's ``layout``, with which saved agents are compared."""
        ...

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return the lowest and highest values of the f features, ``(f,)`` float32 each."""
        ...

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, f)`` float32."""
        ...


@dataclass(frozen=True)
class ClassDistribution:
    """Feature (i): predicted pixels per class, as shares (section 3.1) or as counts (released code).

    One region of two pixels. The network predicts class 0 for the first pixel, and class 2 for the second:

    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0]), cells=np.array([0]), device=torch.device("cpu"))
    >>> prediction = Prediction(torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 5.0]]), regions)
    >>> ClassDistribution()(prediction)
    tensor([[0.5000, 0.0000, 0.5000]])
    >>> ClassDistribution(normalised=False)(prediction)
    tensor([[1., 0., 1.]])
    """

    normalised: bool = True

    @property
    def name(self) -> str:
        """The part's name in the layout."""
        return "class_shares" if self.normalised else "class_counts"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(C,)``."""
        high = 1.0 if self.normalised else float(region_size[0] * region_size[1])
        return np.zeros(num_classes, np.float32), np.full(num_classes, high, np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, C)``."""
        return prediction.class_shares if self.normalised else prediction.class_counts.float()


@dataclass(frozen=True)
class PooledEntropy:
    """Feature (ii): one pooling of the region's entropy map to ``bins x bins`` values, in nats (section 3.1).

    Attributes:
        mode: ``"min"``, ``"avg"`` or ``"max"``.
        bins: Values per side.

    One region of two pixels, whose class probabilities are 0.5 and 0.5 for the first, and 0.9 and 0.1 for the second:

    >>> from al_seg_env.regions import RegionGrid
    >>> grid = RegionGrid(image_size=(1, 2), region_size=(1, 2))
    >>> regions = RegionPixels(grid, images=np.array([0]), cells=np.array([0]), device=torch.device("cpu"))
    >>> prediction = Prediction(torch.tensor([[0.5, 0.9], [0.5, 0.1]]).log(), regions)
    >>> prediction.entropy
    tensor([0.6931, 0.3251])
    >>> PooledEntropy("max", bins=1)(prediction), PooledEntropy("avg", bins=1)(prediction)
    (tensor([[0.6931]]), tensor([[0.5091]]))
    """

    mode: str
    bins: int = 8

    @property
    def name(self) -> str:
        """The part's name in the layout."""
        return f"entropy_{self.mode}_{self.bins}x{self.bins}"

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(bins * bins,)``."""
        size = self.bins**2
        return np.zeros(size, np.float32), np.full(size, math.log(max(num_classes, 2)), np.float32)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, bins * bins)``."""
        return prediction.regions.pool(prediction.entropy, self.bins, self.mode)


@dataclass(frozen=True)
class KLSimilarity:
    """Similarity of a candidate's class distribution to those of other regions (section 3.1, figure A.1b).

    There is one normalised histogram of KL divergences per reference set: the labelled regions, whose distributions are
    those of their labels, and the unlabelled regions, which are approximated by the pools and whose distributions are
    predicted.

    Attributes:
        references: Reference sets, out of ``"labelled"`` and ``"unlabelled"``.
        bins: Number of bins per histogram.
        edges: ``"fixed"``, or ``"row"`` as in the released code; see :func:`~al_seg_env.functional.kl_histogram`.
        own: Whether to also compare a candidate with itself, as the released code does.

    Two candidates, each of a single class, and one labelled region of the first candidate's class. The first candidate
    is similar to the labelled region, but not to the other candidate; the second is similar to neither:

    >>> candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> similarity = KLSimilarity(references=("labelled", "unlabelled"), bins=2)
    >>> similarity(candidates, labelled=torch.tensor([[1.0, 0.0]]))  # near, far; near, far
    tensor([[1., 0., 0., 1.],
            [0., 1., 0., 1.]])
    """

    references: tuple[str, ...]
    bins: int = 32
    edges: str = "fixed"
    own: bool = False

    @property
    def name(self) -> str:
        """The part's name in the layout."""
        return f"kl_{'_'.join(self.references)}_{self.bins}_{self.edges}{'_own' if self.own else ''}"

    @property
    def size(self) -> int:
        """Features per candidate."""
        return self.bins * len(self.references)

    def __call__(self, candidates: Tensor, labelled: Tensor) -> Tensor:
        """Return the histograms.

        Args:
            candidates: Predicted class shares of the M candidates, ``(M, C)``.
            labelled: Class shares in the labels of the L labelled regions, ``(L, C)``.

        Returns:
            ``(M, size)`` float32.
        """
        parts = []
        for reference in self.references:
            to_pools = reference == "unlabelled"
            against = candidates if to_pools else labelled
            own = to_pools and not self.own  # leave the candidate itself out
            parts.append(functional.kl_histogram(candidates, against, self.bins, edges=self.edges, own=own))
        return torch.cat(parts, dim=1)


def paper_features(config: EnvConfig) -> tuple[Feature, ...]:
    """Return the features that a configuration selects, in the order of section 3.1.

    >>> [feature.name for feature in paper_features(EnvConfig(entropy_pools=("max",)))]
    ['class_shares', 'entropy_max_8x8']
    """
    features: list[Feature] = []
    if config.class_distribution is not None:
        features.append(ClassDistribution(normalised=config.class_distribution == "shares"))
    features.extend(PooledEntropy(mode, config.entropy_bins) for mode in config.entropy_pools)
    return tuple(features)


def paper_similarity(config: EnvConfig) -> KLSimilarity | None:
    """Return the KL histograms that a configuration selects, or ``None``.

    >>> paper_similarity(EnvConfig()).size  # 32 bins each for the labelled and the unlabelled regions
    64
    >>> paper_similarity(EnvConfig(similarity=())) is None
    True
    """
    if not config.similarity:
        return None
    return KLSimilarity(config.similarity, config.kl_bins, config.kl_edges, config.kl_own)


def feature_bounds(features: Sequence[Feature], num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
    """Return the lowest and highest values of all features, concatenated to ``(F,)`` float32 each.

    >>> low, high = feature_bounds([ClassDistribution(), PooledEntropy("max", bins=1)], 2, region_size=(2, 2))
    >>> high.round(4)  # two shares, and log 2
    array([1.    , 1.    , 0.6931], dtype=float32)
    """
    bounds = [feature.bounds(num_classes, region_size) for feature in features]
    return np.concatenate([low for low, _ in bounds]), np.concatenate([high for _, high in bounds])
