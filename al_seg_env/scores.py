"""Acquisition scores of regions: the heuristics that an agent is compared with, offered as observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from al_seg_env import functional
from al_seg_env.featurizers import Prediction


class Score(Protocol):
    """A number per region; the higher, the more its labels are wanted."""

    @property
    def name(self) -> str:
        """The observation's key is ``score_<name>``."""
        ...

    @property
    def needs_dropout(self) -> bool:
        """Whether it samples the network under dropout."""
        ...

    def high(self, num_classes: int, region_size: functional.Size) -> float:
        """Return an upper bound; the lower one is 0."""
        ...

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)`` float32."""
        ...


def _sum(values: Tensor, prediction: Prediction) -> Tensor:
    return prediction.regions.sum(values)[:, 0]


def _pixels(region_size: functional.Size) -> int:
    return region_size[0] * region_size[1]


@dataclass(frozen=True)
class Entropy:
    """Baseline H: cumulative pixel-wise Shannon entropy in nats (section 4.2)."""

    name: str = "entropy"
    needs_dropout: bool = False

    def high(self, num_classes: int, region_size: functional.Size) -> float:
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

    def high(self, num_classes: int, region_size: functional.Size) -> float:
        """Return ``pixels * log C``."""
        return _pixels(region_size) * math.log(max(num_classes, 2))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.bald_map(logits[None] for logits in prediction.samples(self.samples))[0], prediction)


@dataclass(frozen=True)
class Margin:
    """Cumulative closeness of the two most probable classes: ``sum (1 - (p_1 - p_2))``."""

    name: str = "margin"
    needs_dropout: bool = False

    def high(self, num_classes: int, region_size: functional.Size) -> float:
        """Return the number of pixels."""
        return float(_pixels(region_size))

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M,)``."""
        return _sum(functional.margin_map(prediction.logits[None])[0], prediction)
