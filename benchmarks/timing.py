"""Timing, and formatting of results with their spread, shared by the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from al_seg_env import RegionSelectionEnv, TorchLearner


def timed(
    run: Callable[[], Any], device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that ``run`` takes by a clock, including work on a GPU."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = clock()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return clock() - start


def steps_in_turn(envs: Mapping[str, RegionSelectionEnv], seed: int, rounds: int) -> list[dict[str, float]]:
    """Step environments in turn with the same seed and actions. Return the seconds of each round except the first."""
    for env in envs.values():
        env.reset(seed=seed)
    space = next(iter(envs.values())).action_space
    space.seed(seed)
    rows = []
    for _ in tqdm(range(1 + rounds), desc="rounds"):
        action = space.sample()
        row = {name: timed(partial(env.step, action), torch_learner(env).device) for name, env in envs.items()}
        rows.append({name: round(value, 4) for name, value in row.items()})
    return rows[1:]


def torch_learner(env: RegionSelectionEnv) -> TorchLearner:
    """Return an environment's learner, or raise a ValueError if it is not a TorchLearner."""
    if not isinstance(env.learner, TorchLearner):
        raise ValueError(f"the learner is a {type(env.learner).__name__}; expected a TorchLearner")
    return env.learner


def autocast(learner: TorchLearner) -> torch.autocast:
    """Return a context with the precision in which a learner's network runs."""
    return torch.autocast(learner.device.type, learner.dtype, enabled=learner.dtype != torch.float32)


def median_and_range(values: Sequence[float]) -> str:
    """Return ``median (lowest to highest)``."""
    table = np.asarray(values, float)
    return f"{np.median(table):.4g} ({table.min():.4g} to {table.max():.4g})"


def describe(rows: Sequence[Mapping[str, float]]) -> str:
    """Return a line per column: its name, median and range over the rows."""
    lines = [f"{name:>16s}  {median_and_range([float(row[name]) for row in rows])}" for name in rows[0]]
    return "\n".join([*lines, f"{len(rows)} rounds, {torch.get_num_threads()} threads"])
