"""Does the reward of an episode agree with what its labels are worth in the end? Measure this before agents learn.

An agent is trained on the gains of the network that the steps train, and judged by a network that is trained again from
theta_0 on all labels. Whole episodes on D_T are played with random preferences among the predicted classes. At the end
of each, the mean IoU on D_R of the steps' network is compared with that of the final fit. The settings are those of
`fit_regions`: the steps train on new regions only, as in the paper, or on all labels so far.

    python benchmarks/reward_alignment.py --env-arg weights=runs/pretrain/theta_0.safetensors

Prints the correlations, and writes OUT/reward_alignment.csv with a row for each episode.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm

from agents import LinearPolicy
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.storage import write_csv

SETTINGS = ("new", "all")


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    episodes: int = 30
    """Episodes of each setting, at least 3."""
    updates: int = 150
    """Updates of a final fit."""
    batch_size: int = 48
    """Regions in an update of a final fit, half of them labelled before."""
    fit_rate: float = 0.1
    """The highest learning rate of a final fit."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/reward_alignment")
    """Folder of the results."""


def main(options: Options) -> None:
    if options.episodes < 3:
        raise ValueError(f"--episodes is {options.episodes}; expected at least 3, for a correlation")
    settings = FitSettings(None, options.batch_size, updates=options.updates, learning_rate=options.fit_rate)
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        env = options.make_unwrapped(split="train", fit_regions=setting)
        columns = env.feature_columns("mean_probability")
        for episode in tqdm(range(options.episodes), desc=f"fit_regions {setting}"):
            seed = options.seed + episode
            preferences = np.zeros(env.feature_columns(env.layout["features"][-1]).stop)
            preferences[columns] = np.random.default_rng(seed).normal(size=columns.stop - columns.start)
            policy = LinearPolicy(preferences)
            observation, info = env.reset(seed=seed)
            terminated = False
            while not terminated:
                observation, _, terminated, _, info = env.step(policy.predict(observation)[0])
            labels = env.labels
            env.learner.reset()
            fit_to_convergence(
                env.learner, env.frames, env.grid, labels.labelled, labels.mask, env.splits.reward, settings,
                np.random.default_rng(seed), known=env.labelled_before,
            )  # fmt: skip
            fitted = evaluate(env.learner, env.frames, env.splits.reward).miou
            rows.append(
                {"fit_regions": setting, "seed": seed, "steps": round(info["miou"], 3), "fit": round(fitted, 3)}
            )
            write_csv(options.out / "reward_alignment.csv", rows)
    for setting in SETTINGS:
        steps, fits = np.array([[row["steps"], row["fit"]] for row in rows if row["fit_regions"] == setting]).T
        print(
            f"fit_regions {setting}: Pearson {pearsonr(steps, fits).statistic:.2f}, "
            f"Spearman {spearmanr(steps, fits).statistic:.2f}; steps {steps.mean():.1f} ± {steps.std(ddof=1):.1f}, "
            f"fits {fits.mean():.1f} ± {fits.std(ddof=1):.1f}"
        )


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
