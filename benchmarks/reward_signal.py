"""How well does a step's reward distinguish good choices from bad ones? Measure this first on new data.

Episodes on D_T are played with the same seeds and three kinds of choices: uniform ones, those of the highest entropy,
and those of an oracle that uses the ground truth (RareClassPolicy, which selects from each pool the candidate with most
of the rare classes). A setting is suitable to train an agent if the oracle's gain exceeds the uniform one's by more
than the reward varies:

    python benchmarks/reward_signal.py --env-arg weights=runs/pretrain/theta_0.safetensors --steps 4

It prints two rows per setting, and writes OUT/reward_signal.csv (all steps), OUT/summary.csv and OUT/reward_signal.png.
Each setting is LEARNING_RATE:ITERATIONS. The signal-to-noise ratio is the difference between oracle and uniform choices
divided by the pooled standard deviation, for single steps and for the sums of whole episodes. For a sum of n
independent steps, it is sqrt(n) times that of a step. A higher ratio means that choices pay off in later steps.

With --sets, theta_0 is then fitted to random sets of --labels regions of D_V, --fits times each. A policy can be learnt
from final results only if the deviation between sets exceeds the deviation between fits of the same set. OUT/sets.csv
has the mean IoU of each fit on D_R and on the test set, and OUT/sets_summary.csv has both deviations.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents import EntropyPolicy, RareClassPolicy, UniformPolicy
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.storage import write_csv
from al_seg_experiment.plotting import plot_panels

KINDS = ("uniform", "entropy", "rare")
TESTED = ("reward", "test")


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    episodes: int = 6
    """Number of episodes per setting and kind of choice, at least 2."""
    steps: int = 1
    """Number of steps of an episode."""
    settings: tuple[str, ...] = ("0.001:1", "0.01:1", "0.001:8")
    """Settings, each LEARNING_RATE:ITERATIONS; the list may be empty."""
    sets: int = 0
    """Number of random sets of regions to fit theta_0 to: 0, or at least 2."""
    fits: int = 3
    """Number of fits of each set, at least 2."""
    labels: int = 240
    """Number of regions in a set."""
    updates: int = 300
    """Number of updates of a fit."""
    batch_size: int = 48
    """Number of regions per update of a fit, half of them from D_T."""
    fit_rate: float = 0.1
    """Highest learning rate of a fit."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/reward_signal")
    """Folder of the results."""


def main(options: Options) -> None:
    if options.episodes < 2:
        raise ValueError(f"--episodes is {options.episodes}; expected at least 2, for a deviation")
    if options.sets and min(options.sets, options.fits) < 2:
        raise ValueError(f"--sets {options.sets} --fits {options.fits}: expected at least 2 of each, for a deviation")
    if options.settings:
        steps_of_kinds(options)
    if options.sets:
        fits_of_sets(options)


def steps_of_kinds(options: Options) -> None:
    """Play episodes with each kind of choice, in each setting."""
    rows: list[dict[str, Any]] = []
    for setting in tqdm(options.settings, desc="settings"):
        rate, _, iterations = setting.partition(":")
        env = options.make(
            learning_rate=float(rate),
            fit_iterations=int(iterations),
            scores=["entropy", "privileged_rarity"],
        )
        for episode in range(options.episodes):
            for kind in KINDS:
                gains = play(env, kind, options.seed + episode, options.steps)
                rows += [
                    {"setting": setting, "kind": kind, "episode": episode, "step": step + 1, "gain": round(gain, 4)}
                    for step, gain in enumerate(gains)
                ]
        played = [each for each in options.settings if any(row["setting"] == each for row in rows)]
        summary = [summarise(rows, each, of) for each in played for of in ("step", "episode")]
        tqdm.write("\n".join(map(str, summary[-2:])))
        write_csv(options.out / "reward_signal.csv", rows)
        write_csv(options.out / "summary.csv", summary)
    draw(options.out / "reward_signal.png", rows)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean gain so far of each kind of choice, with one panel per setting."""
    panels = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        rate, _, iterations = setting.partition(":")
        gains = {kind: by_step(rows, setting, kind) for kind in KINDS}
        panels[f"learning rate {rate}, {iterations} iterations"] = {
            kind: (range(1, len(each) + 1), np.cumsum(each)) for kind, each in gains.items()
        }
    episodes = len({row["episode"] for row in rows})
    xlabel = dict.fromkeys(panels, f"step (means of n = {episodes} episodes)")
    plot_panels(path, panels, xlabel=xlabel, ylabel=dict.fromkeys(panels, "gain so far [points]"), columns=3)


def fits_of_sets(options: Options) -> None:
    """Fit random sets of regions of D_V several times each, and compare the two deviations."""
    env = options.make_unwrapped(split="eval", scores=[])
    settings = FitSettings(None, options.batch_size, updates=options.updates, learning_rate=options.fit_rate)
    candidates = env.grid.regions_of(env.splits.eval)
    rows: list[dict[str, Any]] = []
    for number in tqdm(range(options.sets), desc="sets"):
        chosen = np.random.default_rng([options.seed, number]).choice(candidates, options.labels, replace=False)
        for fit in range(options.fits):
            rng = np.random.default_rng([options.seed, number, fit])
            fit_to_convergence(
                env.learner, env.frames, env.grid, chosen.tolist(), env.frames.mask, env.splits.reward, settings, rng,
                known=env.labelled_before,
            )  # fmt: skip
            found = {split: evaluate(env.learner, env.frames, getattr(env.splits, split)).miou for split in TESTED}
            rows.append({"set": number, "fit": fit, **{split: round(miou, 3) for split, miou in found.items()}})
        write_csv(options.out / "sets.csv", rows)
    summary = []
    for split in TESTED:
        table = np.array([row[split] for row in rows]).reshape(options.sets, options.fits)
        within = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
        # The variance between the means of sets, minus the part that comes from the variance between fits.
        between = float(np.sqrt(max(0.0, table.mean(axis=1).var(ddof=1) - within**2 / options.fits)))
        summary.append(
            {"tested": split, "mean": round(float(table.mean()), 2), "within": round(within, 3)}
            | {"between": round(between, 3), "within_by_between": round(within / max(between, 1e-9), 3)}
        )
        print(summary[-1])
    write_csv(options.out / "sets_summary.csv", summary)


def play(env: Any, kind: str, seed: int, steps: int) -> list[float]:
    """Return the rewards of an episode's first steps. The seed fixes the first pools, so kinds are paired in step 1."""
    policies: dict[str, Any] = {"uniform": UniformPolicy(seed), "entropy": EntropyPolicy(), "rare": RareClassPolicy()}
    policy = policies[kind]
    observation, _ = env.reset(seed=seed)
    gains: list[float] = []
    terminated = False
    while len(gains) < steps and not terminated:
        observation, gain, terminated, _, _ = env.step(policy.predict(observation)[0])
        gains.append(float(gain))
    return gains


def by_step(rows: Sequence[Mapping[str, Any]], setting: str, kind: str) -> list[float]:
    """Return the mean gain of each step."""
    chosen = [row for row in rows if (row["setting"], row["kind"]) == (setting, kind)]
    steps = sorted({row["step"] for row in chosen})
    return [float(np.mean([row["gain"] for row in chosen if row["step"] == step])) for step in steps]


def summarise(rows: list[dict[str, Any]], setting: str, of: str) -> dict[str, Any]:
    """Return mean and standard deviation of the gain of a step or an episode per kind, and signal to noise."""
    gains = {}
    for kind in KINDS:
        chosen = [row for row in rows if (row["setting"], row["kind"]) == (setting, kind)]
        units: dict[Any, float] = {}
        for row in chosen:
            unit = row["episode"] if of == "episode" else (row["episode"], row["step"])
            units[unit] = units.get(unit, 0.0) + row["gain"]
        gains[kind] = np.array(list(units.values()))
    noise = float(np.sqrt((gains["uniform"].var(ddof=1) + gains["rare"].var(ddof=1)) / 2))
    return {
        "setting": setting,
        "of": of,
        "n": len(gains["uniform"]),
        **{f"{kind}_mean": round(float(values.mean()), 3) for kind, values in gains.items()},
        **{f"{kind}_std": round(float(values.std(ddof=1)), 3) for kind, values in gains.items()},
        "signal_to_noise": round(float(gains["rare"].mean() - gains["uniform"].mean()) / noise, 2),
    }


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
