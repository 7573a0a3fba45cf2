"""What does a step cost, compared with the bare network passes that it needs?

Every step of an episode is timed. Right after it, in the same process, its bare passes are timed: the forward passes on
the reward images, on D_S and on the images of candidates, and the forward and backward passes and the updates of
training. They run on prepared tensors (normalised, padded, on the device), in the same precision and memory format. The
forward passes are timed with the network itself and with its copy with folded BatchNorm, in the batches of the step, in
halves of them, and in pairs of images. The fastest way over all rounds counts.

Another step is timed with a network that returns stored logits at once, which leaves the cost of everything else
(images are still prepared). Finally, a reset is timed, and its cost without the observation is computed.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints median and range over the rounds, and writes OUT/step_cost.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import autocast, describe, timed, torch_learner
from torch import Tensor
from tqdm import tqdm

from al_seg_env import RegionSelectionEnv, TorchLearner
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner.folding import InferenceCopy
from al_seg_env.learner.preparation import Preparation
from al_seg_env.storage import write_csv

Pass = Callable[[], Any]


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 8
    """Number of rounds to measure, after two to warm up."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/step_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    env = options.make_unwrapped()
    recorder = Recorder(torch_learner(env))
    env.action_space.seed(options.seed)
    env.reset(seed=options.seed)
    rows: list[dict[str, float]] = []
    with tqdm(total=options.steps + 2, desc="rounds") as bar:
        while len(rows) < options.steps + 2:
            if env.config.budget - len(env.labels) <= 2 * env.config.regions_per_step:  # the last step observes nothing
                env.reset()
            rows.append(one_round(env, recorder))
            bar.update()
    rows = against_floor(rows[2:])
    write_csv(options.out / "step_cost.csv", rows)
    print(describe(rows))
    learner = recorder.learner
    print(f"{learner.device}, {learner.dtype}, channels_last={learner.channels_last}; times in seconds")


def one_round(env: RegionSelectionEnv, recorder: Recorder) -> dict[str, float]:
    """Time a step, its bare passes, a step without the network's cost, and a reset."""
    device = recorder.learner.device
    recorder.record()
    row = {"step": timed(lambda: env.step(env.action_space.sample()), device)}
    recorder.prepare()
    for name, passes in recorder.forward_passes():
        row[name] = timed(passes, device)
    state = env.learner.state_dict()
    row["training"] = timed(recorder.train, device)
    env.learner.load_state_dict(state)
    with recorder.answering_at_once():
        row["other"] = timed(lambda: env.step(env.action_space.sample()), device)
    reset = timed(env.reset, device)
    observing = timed(lambda: env.observer.observe(env.pools, env.labels, env.np_random, initial=True), device)
    row["reset"] = reset - observing
    return row


def against_floor(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Add to each round the ratio of its step to the passes that are the fastest over all rounds."""
    ways = [name for name in rows[0] if name.startswith("forward")]
    cheapest = min(ways, key=lambda name: float(np.median([row[name] for row in rows])))
    print(f"cheapest forward passes: {cheapest}")
    return [
        {
            **{name: round(value, 5) for name, value in row.items()},
            "ratio": round(row["step"] / (row[cheapest] + row["training"]), 4),
            "other_percent": round(100 * row["other"] / row["step"], 3),
            "reset_percent": round(100 * row["reset"] / row["step"], 3),
        }
        for row in rows
    ]


class Recorder:
    """Records a learner's passes, so that they can be run again by themselves."""

    def __init__(self, learner: TorchLearner) -> None:
        self.learner = learner
        self._predict, self._fit_step, self._prepare = learner.predict, learner.fit_step, learner.prepare

    def record(self) -> None:
        """Start a new recording."""
        self._inputs: list[Tensor] = []
        self._updates: list[tuple[Tensor, Tensor]] = []
        self._logits: dict[tuple[int, ...], Tensor] = {}
        self.learner.predict, self.learner.fit_step = self._noting_predict, self._noting_fit_step  # type: ignore[method-assign]

    def _noting_predict(self, images: Tensor) -> Tensor:
        assert isinstance(self._prepare, Preparation)
        preparation = NotingPreparation(self._prepare)
        self.learner.prepare = preparation  # type: ignore[assignment]
        try:
            logits = self._predict(images)
        finally:
            self.learner.prepare = self._prepare
        self._inputs += preparation.prepared
        self._logits[tuple(images.shape)] = logits
        return logits

    def _noting_fit_step(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
        self._updates.append((images, targets))
        return self._fit_step(images, targets, rng)

    def prepare(self) -> None:
        """Stop recording, and prepare the inputs of the bare passes."""
        self.learner.predict, self.learner.fit_step = self._predict, self._fit_step  # type: ignore[method-assign]
        self._crops = [
            (images, self.learner.prepare(images), targets.to(self.learner.device).long())
            for images, targets in self._updates
        ]

    def forward_passes(self) -> Iterable[tuple[str, Pass]]:
        """Yield the names of ways to run the forward passes, and the functions that run them."""
        learner = self.learner
        folded = InferenceCopy(learner.network, self._inputs[0], learner.dtype, learner.memory_format).updated()
        halves = [half for x in self._inputs for half in x.split(max(1, len(x) // 2))]
        pairs = [torch.cat(self._inputs[i : i + 2]) for i in range(0, len(self._inputs), 2)]
        for folding, network in (("folded", folded), ("plain", self.learner.network)):
            for batching, inputs in (("", self._inputs), ("_halves", halves), ("_pairs", pairs)):
                yield f"forward_{folding}{batching}", partial(self._forward, network, inputs)

    @torch.inference_mode()
    def _forward(self, network: torch.nn.Module, inputs: Iterable[Tensor]) -> None:
        for x in inputs:
            with autocast(self.learner):
                network(x)

    def train(self) -> None:
        """Run the recorded updates."""
        network, optimizer = self.learner.network, self.learner.optimizer
        network.train()
        for images, x, targets in self._crops:
            with autocast(self.learner):
                logits = network(x)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.learner.prepare.undo(logits, images), targets, ignore_index=255).backward()
            if self.learner.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), self.learner.max_grad_norm)
            optimizer.step()
        network.eval()

    def answering_at_once(self) -> Answering:
        """Return a context in which the network costs nothing."""
        return Answering(self.learner, self._logits)


class NotingPreparation:
    """Prepares images like a learner, and records the result."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation, self.prepared = preparation, list[Tensor]()

    def __call__(self, images: Tensor, batch: int | None = None) -> Tensor:
        """Return prepared images, and record them."""
        self.prepared.append(self.preparation(images, batch))
        return self.prepared[-1]

    def undo(self, logits: Tensor, images: Tensor) -> Tensor:
        """Remove the padding from logits."""
        return self.preparation.undo(logits, images)


class Answering:
    """A context in which a learner predicts stored logits and does not train. Images are still prepared."""

    def __init__(self, learner: TorchLearner, logits: dict[tuple[int, ...], Tensor]) -> None:
        self.learner, self.logits = learner, logits
        self._kept = learner.predict, learner.fit_step

    def __enter__(self) -> None:
        largest = max(self.logits.values(), key=len)
        kept = largest[torch.arange(self.learner.batch_size) % len(largest)]

        def predict(images: Tensor) -> Tensor:
            self.learner.prepare(images)
            return kept[: len(images)]

        def fit_step(images: Tensor, targets: Tensor, rng: np.random.Generator) -> float:
            self.learner.prepare(images)
            return 0.0

        self.learner.predict, self.learner.fit_step = predict, fit_step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.learner.predict, self.learner.fit_step = self._kept  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
