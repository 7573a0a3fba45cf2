"""Label photographs by hand: the network requests the regions it is least sure of, people label them, and it learns.

    python examples/label_by_hand.py --root photos --out runs/labels

``photos`` has a folder ``images`` and a file ``classes.json``, such as ``["road", "sky"]``. No masks are needed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents import EntropyPolicy
from al_seg_env import FolderOracle, ImageFolder, LabelsPending, save_weights
from al_seg_env.command_line import run
from al_seg_env.labelling.answered_data import AnsweredData
from al_seg_env.storage import write_png


@dataclass(frozen=True)
class Options:
    """Label photographs by hand."""

    root: Path = Path("photos")
    """Folder of the photographs."""
    budget: int = 40
    """Number of regions to label."""
    out: Path = Path("runs/label_by_hand")
    """Folder of requests, answers and results."""


def main(options: Options) -> None:
    photos: dict[str, Any] = {"root": str(options.root), "missing_masks": "unlabelled", "image_size": (96, 128)}
    data = ImageFolder(**photos)
    oracle = FolderOracle(data, options.out)
    env: Any = gym.make(
        "al_seg_env/ImageFolder-v0",
        **photos,
        oracle=oracle,
        reward=None,  # there are no labels yet on which to measure it
        scores=["entropy"],
        budget=options.budget,
        pool_size=4,
        encoder="tu-tf_mobilenetv3_small_minimal_100",
    )
    policy = EntropyPolicy()
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        action, _ = policy.predict(observation)
        try:
            observation, _, terminated, _, _ = env.step(action)
        except LabelsPending as pending:
            input(f"{pending}. Press Enter when they are there. ")
    save_weights(env.unwrapped.learner, options.out / "network.safetensors", data.classes)
    answered = AnsweredData(data, oracle.labels)
    for image in answered.answered:
        write_png(options.out / "masks" / f"{image}.png", answered.full_mask(image), palette=data.palette)


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
