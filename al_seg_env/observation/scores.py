"""Acquisition scores of regions: the heuristics that an agent is compared with, offered as observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from al_seg_env import functional
from al_seg_env.datasets.frames import Frames
from al_seg_env.observation.features import Prediction
from al_seg_env.types import Size


class Score(Protocol):
    """A number per region; the higher, the more its labels are wanted.

    A score that samples the network under dropout says so by an attribute ``needs_dropout = True``.
    """

    @property
    def name(self) -> str:
        """The observation's key is ``score_<name>``."""
        ...

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return an upper bound; the lower one is 0."""
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
    """Baseline H: cumulative pixel-wise Shannon entropy in nats (section 4.2)."""

    name: str = "entropy"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``pixels * log C``."""
        return _pixels(region_size) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(prediction.entropy, prediction)


@dataclass(frozen=True)
class BALD:
    """Baseline B: cumulative pixel-wise mutual information from MC dropout, in nats (section 4.2)."""

    samples: int = 20
    name: str = "bald"
    needs_dropout: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"BALD was given {self.samples} samples; at least 1 is needed, the paper's are 20")

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return ``pixels * log C``."""
        return _pixels(region_size) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.bald_map(logits[None] for logits in prediction.samples(self.samples))[0], prediction)


@dataclass(frozen=True)
class Margin:
    """Cumulative closeness of the two most probable classes: ``sum (1 - (p_1 - p_2))``."""

    name: str = "margin"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the number of pixels."""
        return float(_pixels(region_size))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.margin_map(prediction.logits[None])[0], prediction)


@dataclass(frozen=True)
class PrivilegedRarity:
    """How much of rare classes a region holds, by the truth: ``sum_c w_c sqrt(pixels of class c)``.

    It knows what no agent may know, and serves as an upper reference for heuristics. No environment observes it
    unless it is asked to.

    Attributes:
        weights: w, one per class; see :func:`class_rarity`.
    """

    weights: tuple[float, ...]
    name: str = "privileged_rarity"

    def high(self, num_classes: int, region_size: Size) -> float:
        """Return the bound by the inequality of Cauchy and Schwarz."""
        return math.sqrt(sum(w * w for w in self.weights) * _pixels(region_size))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        counts = prediction.true_counts()
        return (counts.float().sqrt() * counts.new_tensor(self.weights, dtype=prediction.logits.dtype)).sum(dim=1)


def class_rarity(frames: Frames, images: Sequence[int], num_classes: int) -> tuple[float, ...]:
    """Return a weight per class: one over its share of these images' labelled pixels, at most 10^4; 0 if absent."""
    of_images = [np.bincount(frames.mask(i).reshape(-1), minlength=256)[:num_classes] for i in images]
    counts = np.sum(of_images, axis=0, dtype=np.float64)
    shares = counts / max(counts.sum(), 1)
    return tuple(np.where(counts > 0, 1 / np.maximum(shares, 1e-4), 0.0).tolist())
