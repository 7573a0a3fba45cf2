"""What the environment needs of a segmentation network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from al_seg_env.regions import Boxes


class Learner(Protocol):
    """All that the environment uses of a segmentation network. Any object with these members will do.

    ``copy.deepcopy`` of a learner must give an independent one, so that environments can be forked.

    Batches of images are pixels, ``(B, 3, H, W)`` uint8, and those to train on are crops of them. A learner that wants
    something else in their place, such as features that are computed once, has a method ``inputs(frames)`` that returns
    :class:`~al_seg_env.learner.inputs.Inputs`; the environment passes on what these make and never looks inside.

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

    def fit_step(self, images: Any, targets: Tensor, rng: np.random.Generator) -> float:
        """Update once on n images and targets ``(n, h, w)`` uint8, 255 ignored; return the loss.

        Raises:
            FloatingPointError: If the training has diverged.
        """

    def predict(self, images: Any) -> Tensor:
        """Return logits ``(B, C, H, W)`` float32 for B images."""

    def sample(self, images: Any, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(B, C, H, W)`` float32, each under other dropout masks."""

    def evaluate(self, batches: Iterable[tuple[Any, Tensor]], stride: int = 1) -> Tensor:
        """Return the confusion matrix ``(C, C)`` int64 over all batches of images and masks ``(B, H, W)`` uint8.

        Args:
            batches: Images, and their masks.
            stride: Count only every n-th pixel per row and column, from the middle of the first n on. The environment
                gives it only where it is not 1.

        Raises:
            FloatingPointError: If logits are not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@runtime_checkable
class PredictsBoxes(Protocol):
    """A learner that predicts the pixels of some boxes for less than whole images cost."""

    def predict_boxes(self, images: Any, groups: Sequence[Sequence[Boxes]]) -> Iterator[Tensor]:
        """Yield the logits of the pixels of one group of boxes after another, ``(C, P)`` float32 each.

        Args:
            images: B images.
            groups: Boxes in them. The pixels of a group come box after box, row by row.
        """
        ...

    def sample_boxes(
        self, images: Any, boxes: Sequence[Boxes], count: int, rng: np.random.Generator
    ) -> Iterator[Tensor]:
        """Yield the logits of a single group ``count`` times, each under other dropout masks."""
        ...


@runtime_checkable
class HasLearningRate(Protocol):
    """A learner whose learning rate can be changed; :meth:`Learner.reset` and ``load_state_dict`` restore it."""

    learning_rate: float


@runtime_checkable
class HasNetwork(Protocol):
    """A learner whose weights are those of a network, so that they can be written to a file."""

    @property
    def network(self) -> nn.Module:
        """The network f."""
        ...
