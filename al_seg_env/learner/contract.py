"""The interface between the environment and a segmentation network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from al_seg_env.regions import Boxes


class Learner(Protocol):
    """The members of a segmentation network's learner that the environment uses. Any object with them will do.

    ``copy.deepcopy`` of a learner must return an independent one, so that environments can be forked.

    Batches are images ``(B, 3, H, W)`` uint8, and batches to train on are crops of images. A learner that needs other
    inputs, such as features that are computed once, has a method ``inputs(frames)`` that returns
    :class:`~al_seg_env.learner.inputs.Inputs`. The environment passes their batches on without looking inside.

    Attributes:
        num_classes: C, the channels of the logits.
        batch_size: Number of images that :meth:`predict`, :meth:`sample` and :meth:`evaluate` are given at once. Only
            the learner lowers it, if memory does not suffice. The environment stores it with its state and restores it
            from there, because the last digits of results can depend on it.
        numerics: The precision and memory layout of computations, as plain values. Two runs are only equal bit for bit
            if they share it. The environment stores it with its state and restores it from there. A learner without a
            choice uses an empty mapping.
    """

    num_classes: int
    batch_size: int
    numerics: Mapping[str, Any]

    @property
    def has_dropout(self) -> bool:
        """Whether the network has dropout, so that :meth:`sample` can be used."""
        ...

    def reset(self) -> None:
        """Return to theta_0: weights, buffers and optimiser."""

    def fit_step(self, images: Any, targets: Tensor, rng: np.random.Generator) -> float:
        """Update the weights once on n images and targets ``(n, h, w)`` uint8, 255 ignored, and return the loss.

        Raises:
            FloatingPointError: If training has diverged.
        """

    def predict(self, images: Any) -> Tensor:
        """Return logits ``(B, C, H, W)`` float32 for B images."""

    def sample(self, images: Any, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(B, C, H, W)`` float32, each with different dropout masks."""

    def evaluate(self, batches: Iterable[tuple[Any, Tensor]], stride: int = 1) -> Tensor:
        """Return the confusion matrix ``(C, C)`` int64 over all batches of images and masks ``(B, H, W)`` uint8.

        Args:
            batches: Images and their masks.
            stride: Count only every n-th pixel per row and column, starting at the middle of the first n. The
                environment passes it only if it is not 1.

        Raises:
            FloatingPointError: If logits are not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@runtime_checkable
class PredictsBoxes(Protocol):
    """A learner that predicts the pixels of boxes at a lower cost than whole images."""

    def predict_boxes(self, images: Any, groups: Sequence[Sequence[Boxes]]) -> Iterator[Tensor]:
        """Yield the logits of the pixels of each group of boxes, ``(C, P)`` float32.

        Args:
            images: B images.
            groups: Groups of boxes in the images. A group's pixels are ordered box by box, and each box row by row.
        """
        ...

    def sample_boxes(
        self, images: Any, boxes: Sequence[Boxes], count: int, rng: np.random.Generator
    ) -> Iterator[Tensor]:
        """Yield the logits of a single group ``count`` times, each with different dropout masks."""
        ...


@runtime_checkable
class HasLearningRate(Protocol):
    """A learner whose learning rate can be changed. :meth:`Learner.reset` and ``load_state_dict`` restore it."""

    learning_rate: float


@runtime_checkable
class HasNetwork(Protocol):
    """A learner with a network whose weights can be written to a file."""

    @property
    def network(self) -> nn.Module:
        """The network f."""
        ...
