"""How much memory does an episode take at its peak, beside a bare training step of the same network?

Each runs in a process of its own; its peak is the most that the system saw it use, images and interpreter included:

    python benchmarks/memory.py --env al_seg_env/CamVid-v0 --env-arg root=...
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F
from timing import environment_parser, make_environment, write_csv


def main() -> None:
    parser = environment_parser(__doc__ or "", out="memory")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=3, help="steps of the episode, and bare training steps")
    parser.add_argument("--only", choices=("episode", "training"), help="what to run in this very process")
    args = parser.parse_args()
    if args.only:
        run_episode(args) if args.only == "episode" else run_training(args)
        sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return
    peaks = {}
    for kind in ("training", "episode"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
        peaks[kind] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    row = {**{f"{kind}_MiB": round(peak) for kind, peak in peaks.items()}}
    row["ratio"] = round(peaks["episode"] / peaks["training"], 3)  # type: ignore[assignment]
    write_csv(args.out / "memory.csv", [row])
    print(row)


def run_episode(args: argparse.Namespace) -> None:
    env = make_environment(args)
    env.reset(seed=args.seed)
    for _ in range(args.steps):
        env.step(env.action_space.sample())


def run_training(args: argparse.Namespace) -> None:
    """Forward and backward pass and update on as many crops as a step trains on, and nothing else."""
    env = make_environment(args).unwrapped
    config, learner = env.config, env.learner  # type: ignore[attr-defined]
    count = min(config.regions_per_step, config.fit_batch_size)
    size = env.grid.image_size if config.crop_size is None else config.crop_size  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, *size, 3), np.uint8)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(rng.integers(0, learner.num_classes, (count, *size)))
    network, optimizer = learner.network.train(), learner.optimizer
    for _ in range(args.steps):
        with learner._autocast():
            logits = network(learner.prepare(images))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(learner.prepare.undo(logits, images), targets).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
