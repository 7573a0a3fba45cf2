"""Bring your own data: any object with classes, names, image_size, image(i) and mask(i).

The images here resemble blood smears: many round cells, a few of which have a nucleus, drawn on request. The data set
is registered as `examples/Cells-v0`, so that every tool accepts it like any other environment. This script compares
uniform and entropy selection on it:

    python examples/custom_dataset.py --budgets 24 48
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tyro.conf import arg

from al_seg_env import RegionSelectionEnv, make_env
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_experiment import evaluate
from al_seg_experiment.report import report


class Cells:
    """A data set: these five members are all that the environment needs."""

    classes = ("background", "cell", "nucleus")
    image_size = (64, 80)

    def __init__(self, count: int = 80) -> None:
        self.names = [f"smear-{i:03d}" for i in range(count)]

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return ``(H, W, 3)`` uint8."""
        rng = np.random.default_rng([index, 1])
        colours = np.array([(232, 214, 206), (205, 130, 140), (120, 70, 150)], dtype=np.float64)
        noise = rng.normal(0, 14, (*self.image_size, 3)) + rng.normal(0, 10, 3)
        return np.clip(colours[self.mask(index)] + noise, 0, 255).astype(np.uint8)

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """Return ``(H, W)`` uint8: class labels, or 255 for pixels without a label."""
        rng = np.random.default_rng([index, 0])
        rows, columns = np.mgrid[: self.image_size[0], : self.image_size[1]]
        mask = np.zeros(self.image_size, dtype=np.uint8)
        for _ in range(rng.integers(8, 16)):
            row, column = rng.uniform((0, 0), self.image_size)
            distance = np.hypot(rows - row, columns - column)
            mask[distance < rng.uniform(5, 8)] = 1
            if rng.random() < 0.15:
                mask[distance < 3] = 2
        return mask


def make_cells(**options: Any) -> RegionSelectionEnv:
    """Return an environment on these data. It has the options of the built-in environments."""
    defaults = {
        "budget": 48,
        "crop_size": (32, 32),
        "fit_iterations": 4,
        "learning_rate": 1e-2,
        "max_grad_norm": 4.0,
        "encoder": "tu-tf_mobilenetv3_small_minimal_100",
        "network_options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    }
    return make_env(Cells(), **{**defaults, **options})


gym.register("examples/Cells-v0", entry_point=make_cells)


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """The comparison."""

    env: Annotated[str, arg(metavar="ID")] = "examples/Cells-v0"
    """Id of a registered environment."""
    budgets: tuple[int, ...] = (24, 48)
    """Budgets in labelled regions."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: one trial of each policy per seed."""
    out: Path = Path("runs/custom_dataset")
    """Folder of the results."""


def main(options: Options) -> None:
    results = evaluate(
        options.spec,
        ["uniform", "entropy"],
        options.out,
        seeds=options.seeds,
        budgets=options.budgets,
        fit={"max_epochs": 10, "patience": 3},
    )
    print("see", report(results))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
