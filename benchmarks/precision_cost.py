"""How much faster are the default precision and memory layout, and do they change the results?

Steps of two environments with the same seed and actions are timed in turn. One uses the defaults. The other computes as
the released code does: in float32, with contiguous tensors, and without folding BatchNorm:

    python benchmarks/precision_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

With --train, networks are also trained on the labels of D_T in both ways, from the same weights with the same seeds.
The benchmark then reports their mean IoU, and how it shifts if the same weights are evaluated in the other way:

    python benchmarks/precision_cost.py --env ... --steps 0 --train 5

Prints medians and ranges, and writes OUT/precision_cost.csv and OUT/precision_training.csv. The latter is written after
each training, and finished trainings are not repeated.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from timing import describe, median_and_range, steps_in_turn, torch_learner
from tqdm import tqdm

from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import write_csv

RELEASED = {"precision": "float32", "channels_last": False, "fold_batchnorm": False}


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 6
    """Number of pairs of steps to time, after a warm-up."""
    train: int = 0
    """Number of pairs of trainings, each with a different seed."""
    epochs: int = 15
    """Epochs of a training, of which the best one counts."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/precision_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    envs = {"default": options.make_unwrapped(), "released": options.make_unwrapped(**RELEASED)}
    for name, env in envs.items():
        learner = torch_learner(env)
        print(f"{name}: {learner.dtype}, channels_last={learner.channels_last}")
    if options.steps:
        time_steps(options, envs)
    if options.train:
        compare_training(options, envs)


def time_steps(options: Options, envs: dict[str, RegionSelectionEnv]) -> None:
    rows = steps_in_turn(envs, options.seed, options.steps)
    for row in rows:
        row["speedup"] = round(row["released"] / row["default"], 3)
    write_csv(options.out / "precision_cost.csv", rows)
    print(describe(rows))


def compare_training(options: Options, envs: dict[str, RegionSelectionEnv]) -> None:
    path = options.out / "precision_training.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for seed in tqdm(range(options.train), desc="pairs of trainings"):
        if any(row["seed"] == seed for row in rows):
            continue
        row: dict[str, Any] = {"seed": seed}
        for name, env in envs.items():
            row[name] = train(env, seed, options.epochs)
            state = env.learner.state_dict()
            for other in envs.values():
                other.learner.load_state_dict(state)
            found = [evaluate(other.learner, other.frames, other.splits.reward).miou for other in envs.values()]
            row[f"shift_{name}"] = round(found[0] - found[1], 4)
        rows.append(row)
        write_csv(path, rows)
    default, released = (np.array([row[name] for row in rows]) for name in envs)
    shifts = [abs(row[f"shift_{name}"]) for row in rows for name in envs]
    print(f"mIoU on D_R  default  {default.mean():.2f} +- {default.std(ddof=1):.2f}")
    print(f"             released {released.mean():.2f} +- {released.std(ddof=1):.2f}")
    difference = default - released
    p = stats.ttest_rel(default, released).pvalue
    print(
        f"difference {difference.mean():+.2f} +- {difference.std(ddof=1):.2f}, n {len(rows)}, paired t-test p {p:.2f}"
    )
    print(f"the same weights evaluated in both: |shift| in points {median_and_range(shifts)}")


def train(env: RegionSelectionEnv, seed: int, epochs: int) -> float:
    """Train on whole images of D_T; return the best mean IoU on D_R in percent."""
    env.learner.reset()
    whole = RegionGrid(env.grid.image_size, env.grid.image_size)
    settings = FitSettings(crop_size=env.config.crop_size, batch_size=16, patience=epochs, max_epochs=epochs)
    fit = fit_to_convergence(
        env.learner,
        env.frames,
        whole,
        env.splits.train,
        env.frames.mask,
        env.splits.reward,
        settings,
        np.random.default_rng(seed),
        progress=f"seed {seed}",
    )
    return round(fit.best_miou, 4)


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
