"""Layers that a CPU's kernels are slow at, run in another way that gives the same up to rounding."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


def use_better_kernels(network: nn.Module) -> None:
    """Let the layers of a network that is to run on a CPU avoid its slow kernels (docs/design/performance.md).

    Weights, and what the layers compute, stay as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not _is_depthwise(module):
            continue
        if (better := _BETTER.get(type(module))) is not None:
            module.__class__ = better


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


class _TrainsInFloat32(nn.Module):
    """The backward pass of a depthwise convolution can be fifty times slower in bfloat16 than in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _Conv2d(_TrainsInFloat32, nn.Conv2d):
    pass


class _Conv2dSame(_TrainsInFloat32, Conv2dSame):
    pass


class _GroupNorm(nn.GroupNorm):
    """Group normalisation of small maps is many times slower with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[2] * x.shape[3] < 1024 and not x.is_contiguous():
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class _Upsample(nn.Upsample):
    """Interpolation of few channels is several times slower in bfloat16, and less exact."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.shape[1] < 32 else x)


_BETTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    Conv2dSame: _Conv2dSame,
    nn.GroupNorm: _GroupNorm,
    nn.Upsample: _Upsample,
    nn.UpsamplingBilinear2d: _Upsample,
}


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, in place of handing it back to the system.

    The system would clear every page of it again at each pass. It is a setting of the whole process; it
    does nothing where the C library is another. The process holds on to the most that it needed at once.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 * 2**20)
