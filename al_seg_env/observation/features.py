"""What a region looks like to the agent: features of the prediction, and its similarity to other regions."""

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
from al_seg_env.types import FloatArray, Size

Sampler = Callable[[int], Iterator[Tensor]]


class Prediction:
    """What the network says of M regions. Each derived quantity is computed when first asked for, and kept.

    The regions' pixels lie in a row, P of them in all, so that functions of a pixel need not know of regions;
    ``regions`` sums up by region.

    Attributes:
        logits: ``(C, P)`` float32.
        regions: Pools, sums and counts values ``(P,)`` by region.
    """

    def __init__(
        self,
        logits: Tensor,
        regions: RegionPixels,
        sampler: Sampler | None = None,
        truth: Callable[[], Tensor] | None = None,
    ) -> None:
        self.logits = logits
        self.regions = regions
        self._sampler = sampler
        self._truth = truth

    @cached_property
    def _maps(self) -> tuple[Tensor, Tensor]:
        classes, entropy = functional.class_and_entropy_maps(self.logits[None])
        return classes[0], entropy[0]

    @property
    def classes(self) -> Tensor:
        """Most probable class per pixel, ``(P,)`` uint8."""
        return self._maps[0]

    @property
    def entropy(self) -> Tensor:
        """Shannon entropy per pixel in nats, ``(P,)``."""
        return self._maps[1]

    @cached_property
    def class_counts(self) -> Tensor:
        """Pixels predicted per class and region, ``(M, C)`` int64."""
        return self.regions.class_counts(self.classes, len(self.logits))

    @cached_property
    def class_shares(self) -> Tensor:
        """Share of the pixels predicted per class and region, ``(M, C)`` float32."""
        return functional.shares(self.class_counts)

    def samples(self, count: int) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(C, P)``, each under other dropout masks."""
        if self._sampler is None:
            raise ValueError("this prediction came without a sampler, so nothing can be drawn from it")
        return map(self.regions.gather, self._sampler(count))

    def true_counts(self) -> Tensor:
        """Return the pixels per class and region by the truth, ``(M, C)`` int64: for privileged scores only."""
        if self._truth is None:
            raise ValueError("this prediction came without the truth")
        unlabelled = len(self.logits)
        labels = self._truth()
        labels = torch.where(labels == IGNORE_LABEL, unlabelled, labels).to(torch.uint8)
        return self.regions.class_counts(labels, unlabelled + 1)[:, :-1]


class Feature(Protocol):
    """A part of a region's description. State and candidates share it."""

    @property
    def name(self) -> str:
        """Named in the environment's ``layout``, which saved agents are checked against."""
        ...

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return the lowest and highest values, ``(f,)`` float32 each; their length is the part's size."""
        ...

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, f)`` float32."""
        ...


@dataclass(frozen=True)
class ClassDistribution:
    """Feature (i): predicted pixels per class, as shares (section 3.1) or as counts (released code)."""

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
    """Feature (ii): one pooling of the region's entropy map to ``bins x bins`` values, in nats (section 3.1)."""

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
    """How a candidate's class distribution compares with those of other regions (section 3.1, figure A.1b).

    One normalised histogram of KL divergences per reference set: the labelled regions by their labels, and
    the unlabelled ones by their predictions, approximated by the pools.
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
            labelled: Class shares of the labelled regions by their labels, ``(L, C)``.

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
    """Return the features that a configuration names, in the order of section 3.1."""
    features: list[Feature] = []
    if config.class_distribution is not None:
        features.append(ClassDistribution(normalised=config.class_distribution == "shares"))
    features.extend(PooledEntropy(mode, config.entropy_bins) for mode in config.entropy_pools)
    return tuple(features)


def paper_similarity(config: EnvConfig) -> KLSimilarity | None:
    """Return the KL histograms that a configuration names, or ``None``."""
    if not config.similarity:
        return None
    return KLSimilarity(config.similarity, config.kl_bins, config.kl_edges, config.kl_own)


def feature_bounds(features: Sequence[Feature], num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
    """Return the bounds of all features side by side, ``(F,)`` each."""
    bounds = [feature.bounds(num_classes, region_size) for feature in features]
    return np.concatenate([low for low, _ in bounds]), np.concatenate([high for _, high in bounds])
