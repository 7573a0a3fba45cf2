"""Changes to networks and to this process that make networks faster on a CPU. Only :func:`tune_for_cpu` makes them.

``tune_cpu=True`` requests them. It is the default of :class:`~al_seg_env.learner.building.LearnerConfig`, and so of the
registered ids, but not of a :class:`~al_seg_env.learner.torch_learner.TorchLearner` that is made from a network.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from functools import cache
from multiprocessing import context
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


def tune_for_cpu(network: nn.Module) -> None:
    """Prepare a network and this process for running on a CPU (measured in docs/design/performance.md).

    1. Layers with slow CPU kernels are replaced in place by layers with the same results up to rounding:
       :func:`use_better_kernels`.
    2. Until the process ends, it keeps the memory of freed tensors for later ones: :func:`keep_freed_memory`.
    3. Until the process ends, processes forked from it run torch on one thread: :func:`run_forks_on_one_thread`.
    """
    use_better_kernels(network)
    keep_freed_memory()
    run_forks_on_one_thread()


def use_better_kernels(network: nn.Module) -> None:
    """Change the layers of a network in place so that they avoid slow CPU kernels.

    Weights stay the same, and so do the layers' outputs up to rounding.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not _is_depthwise(module):
            continue
        if (better := _BETTER.get(type(module))) is not None:
            module.__class__ = better


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


class _TrainsInFloat32(nn.Module):
    """Trains in float32: the backward pass of a depthwise convolution can be fifty times slower in bfloat16."""

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
    """Uses contiguous channels: group normalisation of small maps is many times slower with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[2] * x.shape[3] < 1024 and not x.is_contiguous():
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class _Upsample(nn.Upsample):
    """Interpolates in float32: for few channels, bfloat16 is several times slower, and less exact."""

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
    """Let glibc keep the memory of freed tensors for later ones, instead of returning it to the system.

    Otherwise, the system clears every page again in each pass. The setting applies to the whole process, which then
    keeps its peak memory until :func:`return_freed_memory`. It does nothing with other C libraries.
    """
    if (mallopt := _of_glibc("mallopt")) is None:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 * 2**20)


def return_freed_memory() -> None:
    """Return the memory of freed tensors to the system, once: between two tasks that need memory in other sizes."""
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of glibc; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


@cache
def run_forks_on_one_thread() -> None:
    """Set torch to one thread in processes that are forked from this one later, and in this one if it was forked.

    A forked process (gymnasium's AsyncVectorEnv forks) has none of its parent's OpenMP threads, and would wait for them
    forever in its first parallel region. With one thread, there are no parallel regions.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    if _was_forked():
        torch.set_num_threads(1)


def _was_forked() -> bool:
    """Return whether this process is a worker that multiprocessing forked."""
    if multiprocessing.parent_process() is None or not hasattr(context, "ForkProcess"):
        return False
    this = multiprocessing.current_process()
    by_default = isinstance(this, multiprocessing.Process) and multiprocessing.get_start_method() == "fork"
    return by_default or isinstance(this, context.ForkProcess)
