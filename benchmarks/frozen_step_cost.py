"""What does a step with a frozen encoder cost, compared with the bare passes that it needs, and with whole networks?

Steps of several environments with the same seed and actions are timed in turn: on stored features with the head Light,
and through a whole FPN for each of --whole. The bare passes of the step on features are timed right after it, on
features that are ready in memory: the forward passes of the head and, for training, the backward pass and the update.
They are timed without the head's last layer, which upsamples the coarse logits, and with it, upsampling only the pixels
that the step used.

    python benchmarks/frozen_step_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints times and their ratios, and writes OUT/frozen_step_cost.csv.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from timing import autocast, describe, timed, torch_learner
from torch import Tensor
from tqdm import tqdm

from al_seg_env import TorchLearner
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.learner import feature_learner
from al_seg_env.learner.frozen_encoder import FeatureMaps
from al_seg_env.learner.upsampling import upsampled
from al_seg_env.storage import write_csv

Upsampling = tuple[Tensor, ...]
"""Coarse logits, and the weights of rows and columns."""


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 6
    """Rounds to time, after one to warm up."""
    encoder: str = "timm-tf_efficientnet_lite0"
    """The frozen encoder."""
    whole: tuple[str, ...] = ("timm-tf_efficientnet_lite0",)
    """Encoders of the whole networks. With ENCODER/2, images and regions have half the height and width."""
    stride: int = 4
    """With the frozen encoder, use every n-th pixel per row and column for training, reward and observation."""
    clock: Literal["wall", "processor"] = "wall"
    """The clock. "processor", the CPU time of all threads, is for machines that are shared with others."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/frozen_step_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    strides = dict.fromkeys(("label_stride", "reward_stride", "observation_stride"), options.stride)
    light: dict[str, Any] = {"architecture": "Light", "encoder": options.encoder, "trainable": "decoder"}
    if options.arguments.get("architecture") != "Light":
        light["network_options"] = {}  # given options are those of another architecture
    frozen = options.make_unwrapped(**light, **strides)
    passes = BarePasses(torch_learner(frozen))
    envs = {"frozen": frozen}
    for name in options.whole:
        encoder, _, part = name.partition("/")
        smaller: dict[str, Any] = {}
        if part:
            if not part.isdecimal() or not int(part):
                raise ValueError(f"--whole has {name!r}; expected ENCODER, or ENCODER/N with a whole number N")
            smaller["image_size"] = [side // int(part) for side in frozen.grid.image_size]
            smaller["region_size"] = [side // int(part) for side in frozen.grid.region_size]
        whole = {"architecture": "FPN", "encoder": encoder, "trainable": "all", "network_options": {}}
        envs[name] = options.make_unwrapped(**{**whole, "encoder_weights": None, **smaller})
    measure = partial(timed, clock={"wall": time.perf_counter, "processor": time.process_time}[options.clock])
    for env in envs.values():
        env.reset(seed=options.seed)
    frozen.action_space.seed(options.seed)
    rows: list[dict[str, float]] = []
    for _ in tqdm(range(1 + options.steps), desc="rounds"):
        action, row = frozen.action_space.sample(), dict[str, float]()
        for name, env in envs.items():
            if not env.pools:  # the episode is over
                env.reset()
            step = partial(env.step, action)
            if name == "frozen":
                with passes:
                    row[name] = measure(step, torch_learner(env).device)
                state = env.learner.state_dict()
                for column in ("coarse", "bare"):
                    row[column] = measure(partial(passes.run, column == "bare"), passes.learner.device)
                    env.learner.load_state_dict(state)
            else:
                row[name] = measure(step, torch_learner(env).device)
        ratios = {f"{name} / frozen": row[name] / row["frozen"] for name in options.whole}
        shares = {f"frozen / {name}": row["frozen"] / row[name] for name in ("coarse", "bare")}
        rows.append({**row, **shares, **ratios})
    rows = [{name: round(value, 4) for name, value in row.items()} for row in rows[1:]]
    write_csv(options.out / "frozen_step_cost.csv", rows)
    print(describe(rows))


class BarePasses:
    """A context that records what a learner reads and upsamples, to pass it through the head again later."""

    def __init__(self, learner: TorchLearner) -> None:
        self.learner, self.prepare = learner, learner.prepare

    def __enter__(self) -> None:
        self._predicted: list[FeatureMaps] = []
        self._trained: list[FeatureMaps] = []
        self._looked_at: list[Upsampling] = []
        self._trained_on: list[Upsampling] = []
        self.learner.prepare = self  # type: ignore[assignment]
        self._patch = mock.patch.object(feature_learner, "upsampled", self._upsampled)
        self._patch.start()

    def __exit__(self, *error: object) -> None:
        self.learner.prepare = self.prepare
        self._patch.stop()

    def __call__(self, batch: Any, length: int | None = None) -> FeatureMaps:
        """Return what the learner requests, and record it."""
        maps: Any = self.prepare(batch, length)
        (self._trained if self.learner.network.training else self._predicted).append(maps)
        return maps

    def _upsampled(self, *given: Tensor) -> Tensor:
        """Return what the learner requests, and record it."""
        (self._trained_on if self.learner.network.training else self._looked_at).append(given)
        return upsampled(*given)

    def undo(self, logits: Tensor, batch: Any) -> Tensor:
        """Remove the padding from logits."""
        return self.prepare.undo(logits, batch)

    def run(self, whole: bool) -> None:
        """Run the recorded passes through the whole head, or through its layers except the last."""
        network, optimizer = self.learner.network, self.learner.optimizer
        with torch.inference_mode():
            for maps in self._predicted:
                self._coarse(maps)
            if whole:
                for given in self._looked_at:
                    upsampled(*given)
        network.train()
        for maps, (_, row_weights, column_weights) in zip(self._trained, self._trained_on, strict=True):
            logits = self._coarse(maps).float()
            if whole:
                logits = upsampled(logits, row_weights, column_weights)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, logits.detach().argmax(dim=1)).backward()
            optimizer.step()
        network.eval()

    def _coarse(self, maps: FeatureMaps) -> Tensor:
        network: Any = self.learner.network
        layers = list(network.segmentation_head.children())
        with autocast(self.learner):
            values: Tensor = network.decoder(network.encoder(maps))
            for layer in layers[:-1]:  # the last upsamples
                values = layer(values)
        return values


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
