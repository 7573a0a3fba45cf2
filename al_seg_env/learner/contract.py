"""What the environment needs of a segmentation network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn


class Learner(Protocol):
    """All that the environment uses of a segmentation network. Any object with these members will do.

    ``copy.deepcopy`` of a learner must give an independent one, so that environments can be forked.

    Attributes:
        num_classes: C, the channels of its logits.
        batch_size: Images that :meth:`predict`, :meth:`sample` and :meth:`evaluate` are given at once. The learner
            alone lowers it, when memory does not suffice. The environment stores it with its state and sets it again
            there, because results can differ in their last digits with it.
        numerics: In what precision and layout it computes, as plain values: what two runs must share to be equal bit
            for bit. Stored with the environment's state, and set again from there. A learner that has no choice uses
            an empty mapping.
    """

    num_classes: int
    batch_size: int
    numerics: Mapping[str, Any]

    @property
    def has_dropout(self) -> bool:
        """Whether :meth:`sample` can be used."""
        ...

    def reset(self) -> None:
        """Return to theta_0: weights, buffers and optimiser."""

    def fit_step(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
        """Update once on ``(n, 3, h, w)`` and ``(n, h, w)`` uint8, 255 ignored; return the loss.

        Raises:
            FloatingPointError: If the training has diverged.
        """

    def predict(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C, H, W)`` float32 for images ``(B, 3, H, W)`` uint8."""

    def sample(self, images: Tensor, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(B, C, H, W)`` float32, each under other dropout masks."""

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the confusion matrix ``(C, C)`` int64 over all batches of images and masks ``(B, H, W)`` uint8.

        Raises:
            FloatingPointError: If logits are not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@runtime_checkable
class HasNetwork(Protocol):
    """A learner whose weights are those of a network, so that they can be written to a file."""

    @property
    def network(self) -> nn.Module:
        """The network f."""
        ...
