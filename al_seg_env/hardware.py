"""What the machine at hand is good at: device, precision, memory layout, allocator, and its limits."""

from __future__ import annotations

import copy
import ctypes
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

logger = logging.getLogger("al_seg_env")
T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROBE_SHAPE = (2, 3, 128, 128)
PROBE_ROUNDS = 3
WORTHWHILE = 0.85  # a choice must take at most this share of the time of the one before it in the list

_chosen: dict[tuple[str, ...], tuple[str, bool]] = {}


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


def resolve_numerics(
    network: nn.Module, device: torch.device, precision: str, channels_last: bool | None
) -> tuple[torch.dtype, bool]:
    """Return the precision and memory layout to run a network in.

    What is left open is measured: forward passes of the network in each combination, interleaved, once per
    architecture and process. So that the choice does not hang on the noise of a clock, float32 in
    contiguous tensors gives way only to what is clearly faster.

    Args:
        network: The network; only a copy of it runs.
        device: Where it is to run.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``.
        channels_last: Whether tensors lie in memory with the channels last; ``None`` leaves it open.

    Raises:
        ValueError: If the precision is unknown, or the device cannot compute in it.
    """
    if precision not in {"auto", *DTYPES}:
        raise ValueError(f"precision {precision!r} is unknown; use 'auto', 'float32' or 'bfloat16'")
    if precision == "bfloat16" and (problem := _cannot_compute(torch.bfloat16, device)):
        raise ValueError(
            f"precision 'bfloat16' cannot be used on device {str(device)!r} ({problem}); use 'float32' or 'auto'"
        )
    names = list(DTYPES) if precision == "auto" else [precision]
    layouts = [False, True] if channels_last is None else [channels_last]
    candidates = [
        (name, layout)
        for layout in layouts
        for name in names
        if name == precision or not _cannot_compute(DTYPES[name], device)
    ]
    if len(candidates) > 1:
        key = (type(network).__qualname__, str(network), str(device), precision, str(channels_last))
        if key not in _chosen:
            _chosen[key] = _fastest(network, device, candidates)
        name, layout = _chosen[key]
    else:
        ((name, layout),) = candidates
    return DTYPES[name], layout


def _fastest(network: nn.Module, device: torch.device, candidates: list[tuple[str, bool]]) -> tuple[str, bool]:
    """Return the candidate whose forward passes are the fastest; the first unless another is clearly faster."""
    subjects = []
    for name, layout in candidates:
        memory_format = torch.channels_last if layout else torch.contiguous_format
        subject = copy.deepcopy(network).to(device, memory_format=memory_format).eval()  # type: ignore[call-overload]
        subjects.append((subject, torch.rand(PROBE_SHAPE, device=device).to(memory_format=memory_format), DTYPES[name]))
    seconds = [float("inf")] * len(candidates)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            for round_ in range(PROBE_ROUNDS + 1):
                for index, (subject, images, dtype) in enumerate(subjects):
                    took = _seconds_of_forward(subject, images, dtype)
                    if round_:  # the first round is for warming up
                        seconds[index] = min(seconds[index], took)
    except (RuntimeError, ValueError, TypeError) as error:
        logger.info("precision: %s was not measured (%s); float32 is used", type(network).__name__, error)
        return next((c for c in candidates if c == ("float32", True)), candidates[0])
    best = 0
    for index in range(1, len(candidates)):
        if seconds[index] < WORTHWHILE * seconds[best]:
            best = index
    logger.info(
        "precision: %s on %s takes %s",
        type(network).__name__,
        device,
        ", ".join(
            f"{1000 * s:.1f} ms in {name}{' channels_last' if layout else ''}{' (chosen)' if i == best else ''}"
            for i, (s, (name, layout)) in enumerate(zip(seconds, candidates, strict=True))
        ),
    )
    return candidates[best]


def _seconds_of_forward(network: nn.Module, images: Tensor, dtype: torch.dtype) -> float:
    device = images.device
    start = time.perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        network(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@cache
def _cannot_compute(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why a device cannot convolve in a precision, or ``None``."""
    if dtype == torch.float32:
        return None
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype):
            nn.functional.conv2d(torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)).cpu()
    except (RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None


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
            return func(args[0].contiguous(), *args[1:], **(kwargs or {}))
        if func is nn.functional.interpolate and has_few_channels(args[0]):
            return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def is_small_map(x: Tensor) -> bool:
    """Return whether group normalisation on a CPU would rather have ``x``, ``(B, C, H, W)``, contiguous."""
    return x.dim() == 4 and x.shape[2] * x.shape[3] < 1024


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
