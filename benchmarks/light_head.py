"""What mean IoU does the head Light reach with all labels, and what does its forward pass cost?

Each network is trained on stored features for a fixed number of updates, on all labels of D_T, or of D_T and D_V. It is
tested on all pixels of D_R and, if trained with D_V, also of the test set. Forward passes are timed in turn, in one
process:

    python benchmarks/light_head.py --env al_seg_env/CamVid-v0 --env-arg root=... --env-arg encoder_weights=imagenet

Prints a row for each network, with the median and range of its time, and writes OUT/light_head.csv. Choose a head by
D_T and D_R only; D_V and the test set then show how good the choice was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from timing import median_and_range, timed, torch_learner
from tqdm import tqdm

from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.storage import write_csv

IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    heads: tuple[str, ...] = ("48", "96", "192", "96:2", "192:2")
    """Heads, each WIDTH, WIDTH@STRIDE, WIDTH:DILATION,DILATION,... or WIDTH@STRIDE:DILATION,..."""
    labels: Literal["train", "train+eval"] = "train"
    """Images to train on: D_T, or D_T and D_V."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: one training of each head per seed."""
    updates: int = 500
    """Number of updates of a training."""
    batch_size: int = 96
    """Number of regions per update."""
    learning_rate: float = 0.1
    """Highest learning rate of the one-cycle schedule."""
    rounds: int = 10
    """Forward passes of each network to time."""
    out: Path = Path("runs/light_head")
    """Folder of the results."""


def main(options: Options) -> None:
    cases = [(head, seed) for head in options.heads for seed in options.seeds]
    settings = {"architecture": "Light", "encoder": "timm-tf_efficientnet_lite0", "trainable": "decoder"}
    further: dict[str, Any] = {name: value for name, value in settings.items() if name not in options.arguments}
    envs = {
        (head, seed): options.make_unwrapped(**further, network_options=network_options(head), weights_seed=seed)
        for head, seed in cases
    }
    tested = ["reward"] if options.labels == "train" else ["reward", "test"]
    rows: list[dict[str, Any]] = []
    for (head, seed), env in tqdm(envs.items()):
        train(env, options, seed)
        parameters = sum(parameter.numel() for parameter in torch_learner(env).network.parameters())
        row: dict[str, Any] = {"head": head, "seed": seed, "labels": options.labels, "parameters": parameters}
        for split in tested:
            row[f"{split}_miou"] = round(evaluate(env.learner, env.frames, getattr(env.splits, split)).miou, 3)
        rows.append(row)
    milliseconds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case, env in envs.items():
            batch = env.inputs.whole(env.splits.reward[:IMAGES_AT_ONCE])
            seconds = timed(partial(env.learner.predict, batch), torch_learner(env).device)
            milliseconds[case].append(1000 * seconds / len(batch))
    for row, case in zip(rows, cases, strict=True):
        row["milliseconds_per_image"] = round(min(milliseconds[case]), 3)
        print("  ".join(f"{name} {value}" for name, value in row.items()), "of", median_and_range(milliseconds[case]))
    write_csv(options.out / "light_head.csv", rows)


def network_options(head: str) -> dict[str, Any]:
    """Return the arguments of Light that WIDTH@STRIDE:DILATION,DILATION,... stands for."""
    size, _, dilations = head.partition(":")
    width, _, stride = size.partition("@")
    try:
        options = {"width": int(width), "dilations": [int(dilation) for dilation in dilations.split(",") if dilation]}
        return options | ({"stride": int(stride)} if stride else {})
    except ValueError:
        raise ValueError(f"--heads has {head!r}; expected WIDTH@STRIDE:DILATION,DILATION,...") from None


def train(env: RegionSelectionEnv, options: Options, seed: int) -> None:
    """Train on all labels of the splits."""
    settings = FitSettings(
        None, options.batch_size, updates=options.updates, replay=0.0, learning_rate=options.learning_rate
    )
    images = [image for split in options.labels.split("+") for image in getattr(env.splits, split)]
    regions = env.grid.regions_of(images).tolist()
    rng = np.random.default_rng(seed)
    fit_to_convergence(
        env.learner, env.frames, env.grid, regions, env.frames.mask, env.splits.reward, settings, rng, "training"
    )


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
