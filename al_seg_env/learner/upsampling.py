"""Logits at chosen pixels from coarse ones: bilinear interpolation as two matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from segmentation_models_pytorch.base.modules import Activation
from torch import Tensor, nn

from al_seg_env.types import IntArray


def bilinear_weights(cells: int, pixels: int, positions: Sequence[int] | IntArray, align_corners: bool) -> Tensor:
    """Return the weights of every cell at some pixels, along one axis, as ``torch.nn.functional.interpolate`` has them.

    Args:
        cells: Cells along the axis.
        pixels: Pixels along the axis that these are upsampled to.
        positions: Which of the pixels are wanted, ``(n,)``; beyond the ends it continues with the last cell.
        align_corners: Whether the centres of the first and last cell and pixel coincide, instead of their edges.

    Returns:
        ``(n, cells)`` float32; rows sum to 1.

    Example:
        >>> bilinear_weights(2, 4, range(4), align_corners=False)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    at = np.asarray(positions, np.float64)
    at = at * (cells - 1) / max(pixels - 1, 1) if align_corners else (at + 0.5) * cells / pixels - 0.5
    at = at.clip(0, cells - 1)
    first = np.minimum(at.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((len(at), cells), np.float32)
    rows = np.arange(len(at))
    weights[rows, np.minimum(first + 1, cells - 1)] = at - first
    weights[rows, first] += 1 - (at - first)
    with torch.inference_mode(mode=False):  # they may be kept, and be needed where there are gradients
        return torch.from_numpy(weights)


@lru_cache(maxsize=4096)
def spaced_weights(cells: int, pixels: int, start: int, count: int, step: int, align_corners: bool) -> Tensor:
    """Return :func:`bilinear_weights` of ``count`` pixels from ``start`` on, every ``step``-th; kept between calls."""
    return bilinear_weights(cells, pixels, start + step * np.arange(count), align_corners)


@lru_cache(maxsize=4096)
def needed_cells(
    cells: int, pixels: int, start: int, length: int, step: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Return what every ``step``-th of ``length`` pixels from ``start`` on depends on; kept between calls.

    Returns:
        Numbers of neighbouring cells ``(m,)`` int64, as many for each start; and the weights of these cells at each of
        the n pixels, ``(n, m)`` float32.
    """
    weights = spaced_weights(cells, pixels, start, len(range(0, length, step)), step, align_corners)
    count = min(cells, math.ceil(length * cells / pixels) + 2)
    first = min(int(weights[0].nonzero()[0]), cells - count)
    return torch.arange(first, first + count), weights[:, first : first + count]


def upsampled(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return logits at the pixels that weights name.

    Args:
        logits: Coarse, ``(..., h, w)``.
        rows: ``(..., H, h)``, broadcast against the leading dimensions.
        columns: ``(..., W, w)``.

    Returns:
        ``(..., H, W)`` float32.
    """
    return rows @ logits.float() @ columns.mT


def final_upsampling(head: nn.Module) -> tuple[int, nn.Upsample] | None:
    """Return where a head upsamples its logits, if that is the last thing it does, bilinearly; ``None`` otherwise.

    What follows may only be layers that do nothing, such as the identity that smp's heads end with.
    """
    layers = list(head.children()) if isinstance(head, nn.Sequential) else []
    for position, layer in reversed(list(enumerate(layers))):
        if isinstance(layer, nn.Upsample):
            return (position, layer) if layer.mode == "bilinear" else None
        if not _does_nothing(layer):
            return None
    return None


def _does_nothing(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (
        isinstance(layer, Activation) and isinstance(layer.activation, nn.Identity)
    )
