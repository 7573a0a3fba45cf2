"""Plug in data of your own: any object with classes, names, image_size, image(i) and mask(i).

The data here are blood-smear-like pictures: many round cells, a few with a nucleus, drawn as they are asked for.
The class is registered as ``examples/Cells-v0``, so that every other example could run on it as well; ``--env`` runs
this one on any registered environment instead. It compares two ways to choose regions:

    python examples/custom_dataset.py --budget 48
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from common import environment_parser, make_environment, plot_lines
from PIL import Image
from tqdm import tqdm

from agents import EntropyPolicy, UniformPolicy
from al_seg_env import RegionSelectionEnv
from al_seg_env.registration import make_env
from al_seg_env.storage import write_csv


class Cells:
    """A data set: these five members are all that the environment asks for."""

    classes = ("background", "cell", "nucleus")
    image_size = (64, 80)

    def __init__(self, count: int = 80) -> None:
        self.names = [f"smear-{i:03d}" for i in range(count)]

    def image(self, index: int) -> np.ndarray:
        """Return ``(H, W, 3)`` uint8."""
        rng = np.random.default_rng([index, 1])
        colours = np.array([(232, 214, 206), (205, 130, 140), (120, 70, 150)], dtype=np.float64)
        noise = rng.normal(0, 14, (*self.image_size, 3)) + rng.normal(0, 10, 3)
        return np.clip(colours[self.mask(index)] + noise, 0, 255).astype(np.uint8)

    def mask(self, index: int) -> np.ndarray:
        """Return ``(H, W)`` uint8: class labels, or 255 where none is known."""
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
    """Return an environment over these data; the options are those of the built-in ones."""
    defaults = {
        "region_size": (16, 16),
        "regions_per_step": 4,
        "pool_size": 6,
        "budget": 48,
        "crop_size": (32, 32),
        "fit_iterations": 4,
        "learning_rate": 1e-2,
        "max_grad_norm": 4.0,
        "encoder": "tu-tf_mobilenetv3_small_minimal_100",
        "network_options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    }
    sizes = {"state": 4, "train": 30, "reward": 16, "eval": None, "test": 10}
    return make_env(Cells(), 0, sizes, {}, {**defaults, **options})


gym.register("examples/Cells-v0", entry_point=make_cells)


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="custom_dataset")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(env="examples/Cells-v0")
    parser.add_argument("--budget", type=int, default=48, help="regions to label")
    args = parser.parse_args(argv)

    env = make_environment(args, budget=args.budget, scores=["entropy"], render_mode="rgb_array")
    rows, lines = [], {}
    for name, policy in {"uniform": UniformPolicy(args.seed), "entropy": EntropyPolicy()}.items():
        observation, info = env.reset(seed=args.seed)
        curve, done = [(info["labelled"], info["miou"])], False
        with tqdm(total=args.budget, desc=name) as bar:
            while not done:
                action, _ = policy.predict(observation)
                observation, _, terminated, truncated, info = env.step(action)
                done = terminated or truncated
                curve.append((info["labelled"], info["miou"]))
                bar.update(len(info["chosen"]))
        rows += [{"policy": name, "labelled": labelled, "miou": round(miou, 4)} for labelled, miou in curve]
        lines[name] = tuple(zip(*curve, strict=True))
    write_csv(args.out / "curves.csv", rows)
    plot_lines(args.out / "curves.png", lines, "labelled regions", "mean IoU on D_R (%)", args.env)
    Image.fromarray(env.render()).save(args.out / "last_request.png")
    print(f"final mean IoU: {', '.join(f'{name} {line[1][-1]:.2f}' for name, line in lines.items())}; see {args.out}")


if __name__ == "__main__":
    main()
