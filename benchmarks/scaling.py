"""How does the time of a step grow with image size, candidates, labelled regions, and environments?

On synthetic streets, one quantity at a time is changed. Environments run in one process (SB3's DummyVecEnv, gymnasium's
SyncVectorEnv), and in one process each (SubprocVecEnv, AsyncVectorEnv):

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Writes OUT/scaling.csv and OUT/scaling.png, after each point.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from timing import timed
from tqdm import tqdm

import al_seg_env  # noqa: F401  (registers the environments)
from al_seg_env.command_line import run
from al_seg_env.storage import write_csv
from al_seg_experiment.plotting import plot_panels

ID = "al_seg_env/SyntheticStreets-v0"
SIZES = [(48, 64), (96, 128), (192, 256), (384, 512)]
CANDIDATES = [(4, 4), (8, 8), (16, 16), (24, 32)]
LABELLED = [16, 160, 320, 640]
ENVIRONMENTS = [1, 2, 4]
PANELS = ("pixels per image", "candidates (K N)", "labelled regions", "environments")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    steps: int = 5
    """Number of steps per point."""
    only: tuple[str, ...] = PANELS
    """Quantities to change."""
    out: Path = Path("runs/scaling")
    """Folder of the results."""


def main(options: Options) -> None:
    points: list[tuple[str, float, Callable[[], list[float]]]] = []
    for size in SIZES:
        region = (size[0] // 4, size[1] // 4)
        points.append(("pixels per image", size[0] * size[1], partial(single, options.steps, size, region)))
    for k, n in CANDIDATES:
        given: dict[str, Any] = {"regions_per_step": k, "pool_size": n, "budget": k * (options.steps + 3)}
        points.append(("candidates (K N)", k * n, partial(single, options.steps, **given)))
    for labelled in LABELLED:
        points.append(("labelled regions", labelled, partial(late, options.steps, labelled)))
    for count in ENVIRONMENTS:
        for name, played in {"SB3 one process": dummy, "SB3 processes": subproc, "make_vec sync": sync}.items():
            points.append((f"environments, {name}", count, partial(played, options.steps, count)))
        points.append(("environments, make_vec async", count, partial(asynchronous, options.steps, count)))
    points = [point for point in points if point[0].startswith(options.only)]
    rows: list[dict[str, Any]] = []
    for what, x, measure in tqdm(points, desc="points"):
        seconds = measure()
        rows.append(
            {
                "what": what,
                "x": x,
                "median_s": round(float(np.median(seconds)), 4),
                "min_s": round(min(seconds), 4),
                "max_s": round(max(seconds), 4),
            }
        )
        write_csv(options.out / "scaling.csv", rows)
        plot(options.out / "scaling.png", rows)


def single(steps: int, image_size: Any = (96, 128), region_size: Any = (24, 32), **options: Any) -> list[float]:
    env = gym.make(ID, image_size=image_size, region_size=region_size, **options)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        env.step(env.action_space.sample())
    return [timed(lambda: env.step(env.action_space.sample())) for _ in range(steps)]


def late(steps: int, labelled: int) -> list[float]:
    """Time steps once this many regions are labelled (K = 16). Earlier steps train on little, to be fast."""
    env = gym.make(ID, budget=16 * (steps + 2) + labelled, images=400, splits={"seed": 0, "train": 200})
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(labelled // 16):
        env.step(env.action_space.sample())
    return [timed(lambda: env.step(env.action_space.sample())) for _ in range(steps)]


def drive(envs: Any, steps: int, count: int) -> list[float]:
    """Time steps of all environments together, and return the time per environment."""
    envs.reset()
    nvec = gym.make(ID).action_space.nvec  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)

    def step() -> None:
        envs.step(rng.integers(nvec, size=(count, len(nvec))))

    step()
    seconds = [timed(step) / count for _ in range(steps)]
    envs.close()
    return seconds


def dummy(steps: int, count: int) -> list[float]:
    return drive(make_vec_env(ID, n_envs=count, seed=0), steps, count)


def subproc(steps: int, count: int) -> list[float]:
    return drive(make_vec_env(ID, n_envs=count, seed=0, vec_env_cls=SubprocVecEnv), steps, count)


def sync(steps: int, count: int) -> list[float]:
    return drive(gym.make_vec(ID, num_envs=count, vectorization_mode="sync"), steps, count)


def asynchronous(steps: int, count: int) -> list[float]:
    return drive(gym.make_vec(ID, num_envs=count, vectorization_mode="async"), steps, count)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the median seconds of every point measured so far."""
    panels: dict[str, dict[str, Any]] = {}
    for panel in PANELS:
        for what in dict.fromkeys(row["what"] for row in rows if row["what"].startswith(panel)):
            line = [row for row in rows if row["what"] == what]
            name = what.partition(", ")[2] or "median"
            panels.setdefault(panel, {})[name] = ([row["x"] for row in line], [row["median_s"] for row in line])
    labels = dict.fromkeys(panels, "seconds per step") | {"environments": "seconds per environment's step"}
    plot_panels(path, panels, xlabel={panel: panel for panel in panels}, ylabel=labels, ylim=(0, None))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
