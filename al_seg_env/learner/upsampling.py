"""Upsampling of coarse logits at chosen pixels: bilinear interpolation as two matrix products."""

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
    """Return the weights of ``torch.nn.functional.interpolate`` along one axis, for every cell at some pixels.

    Args:
        cells: Number of cells along the axis.
        pixels: Number of pixels along the axis to which the cells are upsampled.
        positions: Positions of the n pixels. Beyond the ends, the first or last cell is repeated.
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
    with torch.inference_mode(mode=False):  # the weights may be reused in computations with gradients
        return torch.from_numpy(weights)


@lru_cache(maxsize=4096)
def spaced_weights(cells: int, pixels: int, start: int, count: int, step: int, align_corners: bool) -> Tensor:
    """Return cached :func:`bilinear_weights` of ``count`` pixels from ``start`` on, every ``step``-th."""
    return bilinear_weights(cells, pixels, start + step * np.arange(count), align_corners)


@lru_cache(maxsize=4096)
def needed_cells(
    cells: int, pixels: int, start: int, length: int, step: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Return the cells on which every ``step``-th of ``length`` pixels from ``start`` on depends; results are cached.

    Returns:
        Indices of the m neighbouring cells, ``(m,)`` int64, where m is the same for each start; and the weights of
        these cells at each of the n pixels, ``(n, m)`` float32.
    """
    weights = spaced_weights(cells, pixels, start, len(range(0, length, step)), step, align_corners)
    count = min(cells, math.ceil(length * cells / pixels) + 2)
    first = min(int(weights[0].nonzero()[0]), cells - count)
    return torch.arange(first, first + count), weights[:, first : first + count]


def upsampled(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return logits at the rows and columns that weights describe.

    Args:
        logits: Coarse logits, ``(..., h, w)``.
        rows: Weights of the rows, ``(..., H, h)``, broadcast against the leading dimensions.
        columns: Weights of the columns, ``(..., W, w)``.

    Returns:
        ``(..., H, W)`` float32.
    """
    return rows @ logits.float() @ columns.mT


def final_upsampling(head: nn.Module) -> tuple[int, nn.Upsample] | None:
    """Return the position and the layer of a head's final bilinear upsampling; ``None`` if it does not end with one.

    Only layers without any effect may follow it, such as the identity at the end of smp's heads.
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
