"""The script that makes the theta_0 of the synthetic streets."""

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

from al_seg_env.registration import STREETS_THETA_0
from al_seg_experiment import Stage

SCRIPT = Path(__file__).resolve().parents[1] / "docs/tools/streets_theta_0.py"


def test_it_makes_weights_of_the_same_network_in_half_precision(tmp_path):
    splits = {"seed": 0, "state": 1, "train": 1, "reward": 1, "eval": 1}
    renders = {"style": "render", "images": 4, "splits": splits, "budget": 1, "regions_per_step": 1}
    stage = Stage(arguments=renders, images="all", epochs=1, updates=1, batch_size=2, early_stopping=False)
    runpy.run_path(str(SCRIPT))["main"](tmp_path / "work", tmp_path / "theta_0.safetensors", stage)
    made, stored = load_file(tmp_path / "theta_0.safetensors"), load_file(STREETS_THETA_0)
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in stored.items()}
    assert {value.dtype for value in made.values()} == {torch.float16, torch.int64}
