"""What the environment needs of a segmentation network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Learner(Protocol):
    """What the environment needs of a segmentation network. Anything with these members will do.

    Attributes:
        num_classes: C, the channels of its logits.
        batch_size: Images that :meth:`predict` and :meth:`evaluate` are given at once.
        device: Where its logits lie.
        has_dropout: Whether :meth:`sample` can be used.
    """

    num_classes: int
    batch_size: int
    device: torch.device

    @property
    def has_dropout(self) -> bool:
        """Whether :meth:`sample` can be used."""
        ...

    def reset(self) -> None:
        """Return to theta_0: weights, buffers and optimiser."""

    def fit_step(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
        """Update once on ``(n, 3, h, w)`` and ``(n, h, w)`` uint8, 255 ignored; return the loss."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C, H, W)`` float32 for images ``(B, 3, H, W)`` uint8."""

    def sample(self, images: Tensor, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(B, C, H, W)``, each under other dropout masks."""

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the confusion matrix ``(C, C)`` int64 over all ``(images, masks)`` batches."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
