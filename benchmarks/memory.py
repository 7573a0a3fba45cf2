"""What is the peak memory of an episode, compared with a bare training step of the same network?

Each runs in a process of its own. Its peak is the one reported by the system, including images and interpreter:

    python benchmarks/memory.py --env al_seg_env/CamVid-v0 --env-arg root=...
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timing import autocast, torch_learner

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 3
    """Number of steps of the episode, and of bare training steps."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/memory")
    """Folder of the results."""


def main(options: Options) -> None:
    peaks = {}
    for kind, work in {"training": run_training, "episode": run_episode}.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peaks[kind] = process.submit(peak_of, work, options).result()
    row: dict[str, float] = {f"{kind}_MiB": round(peak) for kind, peak in peaks.items()}
    row["ratio"] = round(peaks["episode"] / peaks["training"], 3)
    write_csv(options.out / "memory.csv", [row])
    print(row)


def peak_of(work: Callable[[Options], None], options: Options) -> float:
    """Do some work, and return the peak memory of this process in MiB."""
    work(options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_episode(options: Options) -> None:
    env = options.make()
    env.reset(seed=options.seed)
    for _ in range(options.steps):
        env.step(env.action_space.sample())


def run_training(options: Options) -> None:
    """Run only forward and backward passes and updates, on as many crops as a step trains on."""
    env = options.make_unwrapped()
    config, learner = env.config, torch_learner(env)
    count = min(config.regions_per_step, config.fit_batch_size)
    size = env.grid.image_size if config.crop_size is None else config.crop_size
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, *size, 3), np.uint8)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(rng.integers(0, learner.num_classes, (count, *size)))
    network, optimizer = learner.network.train(), learner.optimizer
    for _ in range(options.steps):
        with autocast(learner):
            logits = network(learner.prepare(images))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(learner.prepare.undo(logits, images), targets).backward()
        optimizer.step()


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
