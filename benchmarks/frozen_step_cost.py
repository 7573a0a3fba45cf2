"""What does a step cost with a frozen encoder, beside one that trains the whole network?

Steps of two environments with the same seed and actions are timed in turn: on stored features with the head Light, and
through a whole FPN with the same encoder:

    python benchmarks/frozen_step_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints times and their ratio, and writes OUT/frozen_step_cost.csv.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from timing import describe, steps_in_turn

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 6
    """Rounds to time, after one to warm up."""
    encoder: str = "timm-tf_efficientnet_lite0"
    """Encoder of both."""
    stride: int = 4
    """Every n-th pixel is trained on and rewarded, with the frozen encoder."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/frozen_step_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    frozen = {"architecture": "Light", "trainable": "decoder"}
    strides = {"label_stride": options.stride, "reward_stride": options.stride}
    envs = {
        "frozen": options.make_unwrapped(**frozen, **strides, encoder=options.encoder, network_options={}),
        "whole": options.make_unwrapped(architecture="FPN", encoder=options.encoder),
    }
    rows = steps_in_turn(envs, options.seed, options.steps)
    for row in rows:
        row["whole_by_frozen"] = round(row["whole"] / row["frozen"], 2)
    write_csv(options.out / "frozen_step_cost.csv", rows)
    print(describe(rows))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
