"""The precision and memory layout that a network runs in, which are measured unless they are given."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from al_seg_env.learner.folding import InferenceCopy
from al_seg_env.storage.validation import check_choice

logger = logging.getLogger("al_seg_env")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROBE_SHAPE = (2, 3, 192, 192)
PROBE_ROUNDS = 3
# The choice changes results, so timing noise must not decide it: the winner takes at most this share of the time.
PRECISION_MARGIN, LAYOUT_MARGIN = 0.75, 0.75

Choice = tuple[str, bool]
"""Name of the precision, and whether channels come last."""

_chosen: dict[tuple[str, ...], Choice] = {}


def resolve_numerics(
    network: nn.Module, device: torch.device, precision: str, channels_last: bool | None, probe: Any = None
) -> tuple[torch.dtype, bool]:
    """Return the precision and memory layout to run a network in.

    With ``"auto"``, interleaved forward passes of the network measure each combination of what is not given, once per
    architecture and process. So that timing noise does not decide, float32 with channels last is replaced only by a
    combination that is faster by a third. The logger ``al_seg_env`` reports the times.

    Args:
        network: The network. Only a copy of it runs.
        device: Device on which the network will run.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``.
        channels_last: Whether tensors have their channels last in memory. ``None`` measures it with ``"auto"``, and
            stands for ``True`` if the precision is given.
        probe: Input for the measurement, if the network takes something other than images.

    Raises:
        ValueError: If the precision is unknown, or the device cannot compute in it.
    """
    check_choice("precision", precision, ("auto", *DTYPES))
    if precision == "bfloat16" and (problem := _cannot_compute(torch.bfloat16, device)):
        raise ValueError(
            f"precision 'bfloat16' cannot be used on device {str(device)!r} ({problem}); use 'float32' or 'auto'"
        )
    names = list(DTYPES) if precision == "auto" else [precision]
    # With a given precision, equal runs should have equal results, so the layout must not be measured, either.
    layouts = [channels_last] if channels_last is not None else [True, False] if precision == "auto" else [True]
    candidates = [
        (name, layout)
        for layout in layouts
        for name in names
        if name == precision or not _cannot_compute(DTYPES[name], device)
    ]
    if len(candidates) > 1:
        key = (type(network).__qualname__, str(network), str(device), precision, str(channels_last))
        if key not in _chosen:
            _chosen[key] = _fastest(network, device, candidates, probe)
        name, layout = _chosen[key]
    else:
        ((name, layout),) = candidates
    return DTYPES[name], layout


def _fastest(network: nn.Module, device: torch.device, candidates: list[Choice], probe: Any) -> Choice:
    """Return the candidate whose forward passes are the fastest, by a clear margin."""
    seconds = dict.fromkeys(candidates, math.inf)
    try:
        runs = {candidate: _forward_pass(network, device, probe, *candidate) for candidate in candidates}
        with torch.inference_mode():
            for round_ in range(1 + PROBE_ROUNDS):
                for candidate, run in runs.items():
                    took = _seconds(run, device)
                    if round_:  # the first round is a warm-up
                        seconds[candidate] = min(seconds[candidate], took)
    except (RuntimeError, ValueError, TypeError) as error:
        logger.info("precision of %s: not measured, %s is used (%s)", type(network).__name__, candidates[0], error)
        return candidates[0]
    of_precision: dict[str, Choice] = {}
    for name, layout in candidates:  # combinations with channels last come first
        other = of_precision.setdefault(name, (name, layout))
        if seconds[name, layout] <= LAYOUT_MARGIN * seconds[other]:
            of_precision[name] = name, layout
    exact, rounded = of_precision.get("float32"), of_precision.get("bfloat16")
    if exact is None or (rounded is not None and seconds[rounded] <= PRECISION_MARGIN * seconds[exact]):
        exact = rounded
    assert exact is not None
    measured = ", ".join(
        f"{name}{' channels_last' if layout else ''} {1000 * took:.1f} ms" for (name, layout), took in seconds.items()
    )
    logger.info("precision of %s: %s is used (%s)", type(network).__name__, exact, measured)
    return exact


def _forward_pass(
    network: nn.Module, device: torch.device, probe: Any, name: str, channels_last: bool
) -> Callable[[], Tensor]:
    """Return a function that runs a forward pass in the same way as the learner."""
    dtype, memory_format = DTYPES[name], torch.channels_last if channels_last else torch.contiguous_format
    if probe is None:
        probe = torch.rand(PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    images = probe.to(device, memory_format=memory_format)
    subject = copy.deepcopy(network).to(device, memory_format=memory_format).eval()  # type: ignore[call-overload]
    predictor = InferenceCopy(subject, images, dtype, memory_format).updated()

    def run() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = predictor(images)
        return logits

    return run


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@cache
def _cannot_compute(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why a device cannot compute convolutions in a precision, or ``None`` if it can."""
    if dtype == torch.float32:
        return None
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype):
            nn.functional.conv2d(torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)).cpu()
    except (RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None
