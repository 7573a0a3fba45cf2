"""Conversion of uint8 images to a network's input, and of its logits back to the images' size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from al_seg_env.learner.hardware import to_device


class Prepares(Protocol):
    """Converts a batch to a network's input, and crops the network's logits to the images' size."""

    memory_format: torch.memory_format

    def __call__(self, batch: Any, length: int | None = None, /) -> Any:
        """Return the network's input, padded to a length."""
        ...

    def undo(self, logits: Tensor, batch: Any, /) -> Tensor:
        """Remove the padding from logits, and convert them to float32, so that later computations are exact."""
        ...


class Preparation:
    """Normalises images on the device, and pads them at the bottom and right by repeating the edge.

    Args:
        mean, std: Normalisation per channel, for images in [0, 1].
        output_stride: Number that divides the sides of the result.
        device: Device of the result.
        memory_format: Memory layout of the result.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        output_stride: int,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        self.output_stride, self.device, self.memory_format = output_stride, device, memory_format
        self.mean, self.std = (tuple(float(value) for value in values) for values in (mean, std))
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (mean, std))
        self._maps: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Omit what is computed again when it is needed."""
        return {**self.__dict__, "_maps": {}}

    def __call__(self, images: Tensor, batch: int | None = None) -> Tensor:
        """Return images ``(B, 3, h, w)`` uint8 as float32, their sides padded to the output stride.

        Args:
            images: The batch.
            batch: Length to pad the batch to, with black images.
        """
        count, _, height, width = images.shape
        grown = (side + -side % self.output_stride for side in (height, width))
        x = torch.empty((batch or count, 3, *grown), device=self.device, memory_format=self.memory_format)
        x[count:] = 0
        inner = x[:count, :, :height, :width]
        inner.copy_(to_device(images, self.device))
        scale, shift = self._scale_and_shift(height, width)
        torch.addcmul(shift, inner, scale, out=inner)
        x[:count, :, :height, width:] = inner[..., width - 1 : width]
        x[:count, :, height:] = x[:count, :, height - 1 : height]
        return x

    def _scale_and_shift(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return scale and shift of every pixel, ``(1, 3, h, w)``, which is faster than broadcasting three numbers."""
        if (height, width) not in self._maps:
            scale, shift = (
                value.expand(1, 3, height, width).contiguous(memory_format=self.memory_format)
                for value in (1 / self._std, -self._mean / self._std)
            )
            self._maps[height, width] = scale, shift
        return self._maps[height, width]

    @staticmethod
    def undo(logits: Tensor, images: Tensor) -> Tensor:
        """Remove the padding from logits, and convert them to float32, so that later computations are exact."""
        return logits[: len(images), :, : images.shape[2], : images.shape[3]].float()
