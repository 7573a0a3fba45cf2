"""What the benchmarks share: timing, and telling a ratio with its spread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import environment_parser, make_environment, plot_lines, write_csv

__all__ = ["describe", "environment_parser", "make_environment", "median_and_range", "plot_lines", "timed", "write_csv"]


def timed(run: Callable[[], Any], device: torch.device | None = None) -> float:
    """Return the seconds that ``run`` takes, on a GPU too."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_and_range(values: Sequence[float], unit: str = "") -> str:
    """Return ``median (lowest to highest)``."""
    table = np.asarray(values, float)
    return f"{np.median(table):.4g}{unit} ({table.min():.4g} to {table.max():.4g})"


def describe(rows: Sequence[Mapping[str, float]]) -> str:
    """Return a line per column: its name, median and range over the rows."""
    lines = [f"{name:>16s}  {median_and_range([float(row[name]) for row in rows])}" for name in rows[0]]
    return "\n".join([*lines, f"{len(rows)} rounds, {torch.get_num_threads()} threads"])
