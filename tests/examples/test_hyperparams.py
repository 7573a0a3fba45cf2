"""The settings for rl-baselines3-zoo name existing ids and arguments."""

import inspect
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import A2C, PPO

import al_seg_env  # noqa: F401  (registers the environments)
from agents import SubActionDQN

FOLDER = Path(__file__).resolve().parents[2] / "hyperparams"
# TRPO is in sb3-contrib; its arguments that are used here are PPO's.
ALGORITHMS = {"a2c": A2C, "ppo": PPO, "trpo": PPO, "subdqn": SubActionDQN}
OF_THE_ZOO = {"n_envs", "n_timesteps"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_settings_exist(path):
    known = {*inspect.signature(ALGORITHMS[path.stem]).parameters} | OF_THE_ZOO
    settings = yaml.safe_load(path.read_text("utf-8"))
    assert set(settings) <= set(gym.registry)
    for env, values in settings.items():
        assert set(values) - known == set(), env
