"""What the machine at hand has, is good at, and lacks: device, kernels, memory."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device meant by a name; ``"auto"`` is a CUDA GPU where there is one.

    Raises:
        ValueError: If torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here ({error}); 'cpu' and 'auto' always can") from error
    return resolved


class TrainingKernels(TorchFunctionMode):
    """Runs what a CPU's kernels are slow at in another way that gives the same up to rounding.

    The backward pass of a depthwise convolution is up to fifty times slower in bfloat16 than in float32, and
    group normalisation of small maps many times slower with channels last; so is the interpolation of few
    channels in bfloat16 (docs/performance.md).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what is better here."""
        if func is torch.conv2d and len(args) > 1 and args[1].shape[1] == 1 and len(args[1]) > 1:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        if func is nn.functional.group_norm and is_small_map(args[0]):
            result = func(args[0].contiguous(), *args[1:], **(kwargs or {}))
            return result.contiguous(memory_format=torch.channels_last)
        if func is nn.functional.interpolate and has_few_channels(args[0]):
            return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def is_small_map(x: Tensor) -> bool:
    """Return whether group normalisation on a CPU is slow for ``x``, ``(B, C, H, W)``, because of its layout."""
    return x.dim() == 4 and x.shape[2] * x.shape[3] < 1024 and not x.is_contiguous()


def has_few_channels(x: Tensor) -> bool:
    """Return whether interpolation on a CPU would rather have ``x``, ``(B, C, H, W)``, in float32."""
    return x.shape[1] < 32


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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, a GPU's or the machine's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def within_memory(run: Callable[..., T], batch: tuple[Tensor, ...], option: str) -> list[T]:
    """Return ``[run(*batch)]``; where memory does not suffice, the results of the batch's two halves.

    Args:
        run: Called with the batch's tensors.
        batch: Tensors of equal length B.
        option: How to make batches smaller, for the messages.

    Raises:
        MemoryError: If a half does not fit either.
    """
    try:
        return [run(*batch)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # Only here, after the error and its frames are gone, is what the attempt held free again.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    count = len(batch[0])
    if count > 1:
        half = -(-count // 2)
        warnings.warn(
            f"a batch of {count} does not fit into memory ({reason}); going on with {half} at once. Results can "
            f"differ in their last digits; lower {option} to have it so from the start",
            RuntimeWarning,
            stacklevel=2,
        )
        try:
            return [run(*parts) for parts in zip(*(tensor.split(half) for tensor in batch), strict=True)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    raise MemoryError(f"a batch of {-(-count // 2)} does not fit into memory ({reason}); lower {option}")
