"""A tiny environment and a tiny experiment, as plain values, and the rows of their csv files."""

import csv

import numpy as np
from PIL import Image

TINY = {
    "image_size": [32, 40],
    "images": 24,
    "splits": {"seed": 0, "state": 2, "train": 6, "reward": 3, "eval": 8},
    "region_size": [16, 20],
    "regions_per_step": 2,
    "pool_size": 2,
    "budget": 4,
    "crop_size": [32, 32],
    "fit_iterations": 1,
    "precision": "float32",
}

TINY_EXPERIMENT = {
    "name": "tiny",
    "arguments": {
        "image_size": [32, 40],
        "images": 24,
        "splits": {"seed": 0, "state": 2, "train": 6, "reward": 3, "eval": 8},
        "region_size": [16, 20],
        "regions_per_step": 2,
        "pool_size": 2,
        "budget": 4,
        "crop_size": [32, 32],
        "fit_iterations": 1,
        "precision": "float32",
        "device": "cpu",
    },
    "methods": ["uniform", "dqn", "rare"],
    "seeds": [0, 1],
    "budgets": [2, 4],
    "theta_0": [
        {"arguments": {"style": "render"}, "images": "all", "epochs": 1, "updates": 1},
        {"epochs": 1, "updates": 1},
    ],
    "query_theta_0": [{"images": "state", "epochs": 1, "updates": 1}],
    "query": {"episodes": 2, "agent": {"batch_size": 4, "epsilon_steps": 3}, "checkpoint_every": 1},
    "fit": {"crop_size": [32, 32], "patience": 1, "max_epochs": 2},
}


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_picture(path) -> None:
    """See that a file is a picture that is not blank."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 1, f"{path} is blank"
