"""What does a step cost beside the bare network passes that it needs?

The floor is counted as this: the forward passes of the reward images, of D_S and of the images that hold candidates,
and the forward and backward passes and the optimiser's update of training, on prepared tensors (normalised, padded, on
the device), in the same batches, precision and memory format, with nothing else around them. Every step of an episode
is timed, and right after it, in the same process, the bare passes that it made:

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --env al_seg_env/CamVid-v0 --env-arg root=... --env-arg encoder=resnet50

Prints both times and their ratio (median and range over the steps), and writes OUT/step_cost.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import environment_parser, make_environment, write_csv

from al_seg_env import RegionSelectionEnv, TorchLearner

Pass = Callable[[], Any]


def main() -> None:
    parser = environment_parser(__doc__ or "", out="step_cost")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=12, help="steps to measure, after two to warm up")
    args = parser.parse_args()
    env: RegionSelectionEnv = make_environment(args).unwrapped  # type: ignore[assignment]
    recorder = Recorder(env.learner)  # type: ignore[arg-type]
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    rows = []
    for index in tqdm(range(args.steps + 2), desc="steps"):
        recorder.passes.clear()
        whole = timed(lambda: env.step(env.action_space.sample()), env.learner.device)
        terminated = env._active == 0
        state = env.learner.state_dict()
        for item in recorder.passes:
            item.prepare()
        bare = timed(lambda: [item.run() for item in recorder.passes], env.learner.device)
        env.learner.load_state_dict(state)
        if index >= 2 and not terminated:  # the last step of an episode observes nothing
            rows.append({"step_s": round(whole, 4), "bare_s": round(bare, 4), "ratio": round(whole / bare, 4)})
        if terminated:
            env.reset()
    write_csv(args.out / "step_cost.csv", rows)
    table = np.array([list(row.values()) for row in rows])
    for name, values in zip(rows[0], table.T, strict=True):
        print(f"{name:8s} median {np.median(values):8.4f}   range {values.min():.4f} to {values.max():.4f}")
    print(f"{len(rows)} steps, {torch.get_num_threads()} threads, {env.learner.device}, {recorder.learner.dtype}")


class Recorder:
    """Notes the passes that a learner makes, so that they can be made again without anything around them."""

    def __init__(self, learner: TorchLearner) -> None:
        self.learner = learner
        self.passes: list[Prepared] = []
        self._predict, self._fit_step = learner.predict, learner.fit_step
        learner.predict, learner.fit_step = self.predict, self.fit_step  # type: ignore[method-assign]

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Note a forward pass, and make it."""
        prepared: list[torch.Tensor] = []

        @torch.inference_mode()
        def bare() -> None:
            with self.learner._autocast():
                self.learner.network(prepared[0])

        self.passes.append(Prepared(bare, lambda: prepared.append(self.learner.prepare(images))))
        return self._predict(images)

    def fit_step(self, images: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator) -> float:
        """Note an update, and make it."""
        prepared: list[torch.Tensor] = []

        def prepare() -> None:
            prepared.extend([self.learner.prepare(images), targets.to(self.learner.device).long()])

        def bare() -> None:
            network, optimizer = self.learner.network, self.learner.optimizer
            network.train()
            with self.learner._autocast():
                logits = network(prepared[0])
            logits = logits[..., : images.shape[2], : images.shape[3]].float()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, prepared[1], ignore_index=255).backward()
            optimizer.step()
            network.eval()

        self.passes.append(Prepared(bare, prepare))
        return self._fit_step(images, targets, rng)


@dataclass
class Prepared:
    """A pass, and what makes its inputs ready before the clock starts."""

    run: Pass
    prepare: Pass


def timed(run: Pass, device: torch.device) -> float:
    """Return the seconds that ``run`` takes, on a GPU too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
