"""What has to work where the wheel was just installed: `make dist` and a test run this outside of the repository."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import gymnasium as gym

import agents
import al_seg_env
import al_seg_experiment

PACKAGES = (agents, al_seg_env, al_seg_experiment)


def main() -> None:
    """Check registration, package data and the console script, and play an episode."""
    environment = Path(sys.prefix).resolve()
    for package in PACKAGES:
        assert environment in Path(str(package.__file__)).resolve().parents, package.__file__
        assert files(package.__name__).joinpath("py.typed").is_file()
    assert version("al-seg-env") == al_seg_env.__version__
    assert len([name for name in gym.registry if name.startswith("al_seg_env/")]) == 5
    assert files("al_seg_env").joinpath("datasets/camvid_ralis.json").is_file()
    assert files("al_seg_env").joinpath("datasets/synthetic/theta_0.safetensors").is_file()
    assert al_seg_experiment.load_experiment("synthetic_small").name == "synthetic_small"
    script = environment / "bin/al-seg-env"
    shown = subprocess.run([script, "train", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--episodes" in shown
    env = gym.make("al_seg_env/SyntheticStreets-v0", image_size=[32, 40], region_size=[16, 20], budget=32)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(env.action_space.sample())
    assert info["labelled"] == 32
    sys.stdout.write(f"al-seg-env {al_seg_env.__version__} works in {environment}\n")


if __name__ == "__main__":
    main()
