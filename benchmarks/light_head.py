"""What does the head Light reach with all labels, and what does a forward pass of it cost, by its width?

Each network trains on all labels of D_T and D_V, on stored features, by a fixed number of updates, and is tested on
every pixel of D_R and of the test set. Forward passes are timed in turn, in one process:

    python benchmarks/light_head.py --env al_seg_env/CamVid-v0 --env-arg root=... --env-arg encoder_weights=imagenet

Prints a row for each, and writes OUT/light_head.csv.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import timed, torch_learner
from tqdm import tqdm

from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.storage import write_csv

IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    widths: tuple[int, ...] = (48, 96, 192)
    """Channels of the head."""
    seeds: tuple[int, ...] = (0,)
    """One training of each width per seed."""
    updates: int = 500
    """Updates of a training."""
    batch_size: int = 96
    """Regions in an update."""
    learning_rate: float = 0.1
    """The highest learning rate of the cycle."""
    rounds: int = 10
    """Forward passes to time of each."""
    out: Path = Path("runs/light_head")
    """Folder of the results."""


def main(options: Options) -> None:
    cases = [(width, seed) for width in options.widths for seed in options.seeds]
    settings = {"architecture": "Light", "encoder": "timm-tf_efficientnet_lite0", "trainable": "decoder"}
    given = options.arguments
    envs = {}
    for width, seed in cases:
        further: dict[str, Any] = {name: value for name, value in settings.items() if name not in given}
        envs[width, seed] = options.make_unwrapped(**further, network_options={"width": width}, weights_seed=seed)
    rows: list[dict[str, Any]] = []
    for (width, seed), env in tqdm(envs.items()):
        train(env, options, seed)
        val, test = (evaluate(env.learner, env.frames, images).miou for images in (env.splits.reward, env.splits.test))
        parameters = sum(parameter.numel() for parameter in torch_learner(env).network.parameters())
        rows.append({"width": width, "seed": seed, "parameters": parameters, "val_miou": val, "test_miou": test})
    seconds: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case, env in envs.items():
            batch = env.inputs.whole(env.splits.reward[:IMAGES_AT_ONCE])
            passes = partial(env.learner.predict, batch)
            seconds[case].append(timed(passes, torch_learner(env).device) / len(batch))
    for row, case in zip(rows, cases, strict=True):
        row["milliseconds_per_image"] = 1000 * min(seconds[case])
    rows = [{name: round(value, 3) for name, value in row.items()} for row in rows]
    write_csv(options.out / "light_head.csv", rows)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def train(env: RegionSelectionEnv, options: Options, seed: int) -> None:
    """Train on all labels of D_T and D_V."""
    settings = FitSettings(
        None, options.batch_size, updates=options.updates, replay=0.0, learning_rate=options.learning_rate
    )
    regions = env.grid.regions_of([*env.splits.train, *env.splits.eval]).tolist()
    rng = np.random.default_rng(seed)
    fit_to_convergence(
        env.learner, env.frames, env.grid, regions, env.frames.mask, env.splits.reward, settings, rng, "training"
    )


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
