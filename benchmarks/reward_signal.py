"""How much of a step's reward tells a good choice from a bad one? The first thing to measure on new data.

From theta_0, one step is taken many times with random choices and with choices that know the truth (from each pool
the candidate richest in rare classes). A setting is worth training an agent with when the two differ by more than
the reward varies between draws:

    python benchmarks/reward_signal.py --env-arg weights=runs/pretrain/theta_0.safetensors

It prints a row per setting, and writes OUT/reward_signal.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import environment_parser, make_environment

from al_seg_env import RegionSelectionEnv
from al_seg_files import write_csv


def main() -> None:
    parser = environment_parser(__doc__ or "", out="reward_signal")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--draws", type=int, default=8, help="steps per setting and kind of choice")
    parser.add_argument(
        "--settings", nargs="+", default=["0.001:1", "0.01:1", "0.001:8"], help="learning rate:iterations"
    )
    args = parser.parse_args()
    rows = []
    for setting in tqdm(args.settings, desc="settings"):
        rate, iterations = setting.split(":")
        env: RegionSelectionEnv = make_environment(  # type: ignore[assignment]
            args, learning_rate=float(rate), fit_iterations=int(iterations)
        ).unwrapped
        rare = rarity(env)
        gains = {
            kind: [gain(env, args.seed + draw, rare if kind == "rare" else None) for draw in range(args.draws)]
            for kind in ("uniform", "rare")
        }
        pooled = np.sqrt((np.var(gains["uniform"], ddof=1) + np.var(gains["rare"], ddof=1)) / 2)
        rows.append(
            {
                "learning_rate": rate,
                "fit_iterations": iterations,
                "draws": args.draws,
                **{f"{k}_mean": round(float(np.mean(g)), 3) for k, g in gains.items()},
                **{f"{k}_std": round(float(np.std(g, ddof=1)), 3) for k, g in gains.items()},
                "signal_to_noise": round(float((np.mean(gains["rare"]) - np.mean(gains["uniform"])) / pooled), 2),
            }
        )
        tqdm.write(str(rows[-1]))
        write_csv(args.out / "reward_signal.csv", rows)


def rarity(env: RegionSelectionEnv) -> np.ndarray:
    """Return a weight per class, ``(C,)``: one over its share of the pixels of D_S."""
    counts = sum(np.bincount(env.frames.mask(i).ravel(), minlength=256) for i in env.splits.state)
    shares = counts[: len(env.data.classes)] / counts.sum()
    return 1 / np.maximum(shares, 1e-4)


def gain(env: RegionSelectionEnv, seed: int, rare: np.ndarray | None) -> float:
    """Return the reward of one step from theta_0; the seed fixes the pools, so that choices are paired."""
    env.reset(seed=seed)
    if rare is None:
        action = np.random.default_rng(seed).integers(env.action_space.nvec)
    else:
        action = np.array([np.argmax([worth(env, region, rare) for region in pool]) for pool in env.pools])
    return env.step(action)[1]


def worth(env: RegionSelectionEnv, region: int, rare: np.ndarray) -> float:
    """Return how much of rare classes a region holds, by the truth."""
    box = env.grid.box(region)
    counts = np.bincount(box.crop(env.frames.mask(box.image)).ravel(), minlength=256)[: len(rare)]
    return float((np.sqrt(counts) * rare).sum())


if __name__ == "__main__":
    main()
