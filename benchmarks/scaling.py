"""How does a step's time grow with image size, candidates, labelled regions, and environments?

On synthetic streets, one thing at a time is changed; environments run in one process (SB3's DummyVecEnv, gymnasium's
SyncVectorEnv) and in processes of their own (SubprocVecEnv, AsyncVectorEnv):

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Writes OUT/scaling.csv and OUT/scaling.png, after each point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from timing import timed, write_csv
from tqdm import tqdm

import al_seg_env  # noqa: F401

ID = "al_seg_env/SyntheticStreets-v0"
SIZES = [(48, 64), (96, 128), (192, 256), (384, 512)]
CANDIDATES = [(4, 4), (8, 8), (16, 16), (24, 32)]
LABELLED = [16, 160, 320, 640]
ENVIRONMENTS = [1, 2, 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps per point")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    args = parser.parse_args()
    points: list[tuple[str, float, Callable[[], list[float]]]] = []
    for size in SIZES:
        region = (size[0] // 4, size[1] // 4)
        points.append(("pixels per image", size[0] * size[1], lambda s=size, r=region: single(args.steps, s, r)))
    for k, n in CANDIDATES:
        options = {"regions_per_step": k, "pool_size": n, "budget": k * (args.steps + 3)}
        points.append(("candidates (K N)", k * n, lambda o=options: single(args.steps, **o)))
    for labelled in LABELLED:
        points.append(("labelled regions", labelled, lambda m=labelled: late(args.steps, m)))
    for count in ENVIRONMENTS:
        for name, run in {"SB3 one process": dummy, "SB3 processes": subproc, "make_vec sync": sync}.items():
            points.append((f"environments, {name}", count, lambda c=count, r=run: r(args.steps, c)))
        points.append(("environments, make_vec async", count, lambda c=count: asynchronous(args.steps, c)))
    rows = []
    for what, x, run in tqdm(points, desc="points"):
        seconds = run()
        rows.append(
            {
                "what": what,
                "x": x,
                "median_s": round(float(np.median(seconds)), 4),
                "min_s": round(min(seconds), 4),
                "max_s": round(max(seconds), 4),
            }
        )
        write_csv(args.out / "scaling.csv", rows)
        plot(args.out / "scaling.png", rows)


def single(steps: int, image_size: Any = (96, 128), region_size: Any = (24, 32), **options: Any) -> list[float]:
    env = gym.make(ID, image_size=image_size, region_size=region_size, **options)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        env.step(env.action_space.sample())
    return [timed(lambda: env.step(env.action_space.sample())) for _ in range(steps)]


def late(steps: int, labelled: int) -> list[float]:
    """Time steps once so many regions are labelled (K = 16); the steps before train on little, to get there soon."""
    env = gym.make(ID, budget=16 * (steps + 2) + labelled, images=400, splits={"seed": 0, "train": 200})
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(labelled // 16):
        env.step(env.action_space.sample())
    return [timed(lambda: env.step(env.action_space.sample())) for _ in range(steps)]


def drive(envs: Any, steps: int, count: int) -> list[float]:
    """Time steps of all environments together, and return what one environment's step took of it."""
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = ["pixels per image", "candidates (K N)", "labelled regions", "environments"]
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
    for panel, ax in zip(panels, axes.flat, strict=True):
        mine = [row for row in rows if row["what"].startswith(panel)]
        for name, marker in zip(dict.fromkeys(row["what"] for row in mine), "osD^", strict=False):
            line = [row for row in mine if row["what"] == name]
            x, y = [row["x"] for row in line], [row["median_s"] for row in line]
            low, high = ([abs(row["median_s"] - row[key]) for row in line] for key in ("min_s", "max_s"))
            ax.errorbar(x, y, [low, high], marker=marker, capsize=3, label=name.partition(", ")[2] or None)
        if panel == "environments":
            ax.set_ylabel("seconds per environment's step")
            if mine:
                ax.legend(fontsize=8)
        else:
            ax.set_ylabel("seconds per step")
        ax.set(xlabel=panel, ylim=(0, None))
        ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
