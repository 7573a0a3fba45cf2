"""Devices and memory of the machine."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device. Copies to a GPU are asynchronous."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a GPU or of the machine did not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def within_memory(run: Callable[..., T], batch: tuple[Tensor, ...], option: str) -> list[T]:
    """Return ``[run(*batch)]``, or the results of the batch's two halves if memory does not suffice.

    Args:
        run: Called with the batch's tensors.
        batch: Tensors of equal length B.
        option: Name of the option that makes batches smaller, for the messages.

    Raises:
        MemoryError: If a half does not fit into memory, either.
    """
    try:
        return [run(*batch)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # The memory of the attempt is only free here, after the error and its stack frames are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    count = len(batch[0])
    if count > 1:
        half = -(-count // 2)
        warnings.warn(
            f"a batch of {count} does not fit into memory ({reason}); continuing with {half} at once. Results can "
            f"differ in their last digits; lower {option} to use smaller batches from the start",
            RuntimeWarning,
            stacklevel=2,
        )
        try:
            return [run(*parts) for parts in zip(*(tensor.split(half) for tensor in batch), strict=True)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    raise MemoryError(f"a batch of {-(-count // 2)} does not fit into memory ({reason}); lower {option}")


def available_memory() -> int:
    """Return the bytes of memory that this process can still use without swapping, as far as the system knows."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not limits:
        with suppress(AttributeError, OSError, ValueError):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # the limit of a container, or "max" if there is none
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        limits.append(max(0, most - used))
    return min(limits, default=2**63)
