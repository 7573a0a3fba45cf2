"""Every benchmark runs at its smallest setting, and writes its figures."""

from __future__ import annotations

import importlib
import json
import multiprocessing
from pathlib import Path

import gymnasium as gym
import pytest
from experiments import TINY, rows_of

from al_seg_env.command_line import run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALLEST = {
    "choice_parts": ["--draws=1", "--steps=1", "--updates=1", "--gradient-steps=2"]
    + ["--env-arg", 'region_features=["mean_probability"]'],
    "feature_signal": ["--draws", "3"],
    "frozen_scaling": ["--steps", "1", "--pool", "1100"],
    "frozen_step_cost": ["--steps", "1", "--whole", "timm-tf_efficientnet_lite0/1"],
    "kl_cost": ["--candidates", "8", "--labelled", "4", "--classes", "3", "--rounds", "1"],
    "light_head": ["--heads", "8", "8:2", "8@8:1", "--updates", "2", "--batch-size", "4", "--rounds", "1"],
    "memory": ["--steps", "1"],
    "precision_cost": ["--steps", "1", "--train", "2", "--epochs", "1"],
    "reward_alignment": ["--episodes=3", "--updates=1", "--env-arg", 'region_features=["mean_probability"]'],
    "reward_signal": ["--episodes=2", "--settings=0.01:1", "--sets=2", "--fits=2", "--labels=4", "--updates=1"],
    "scaling": ["--steps", "1", "--only", "pixels per image"],
    "score_cost": ["--steps", "1"],
    "shared_states": ["--regions", "3", "--features", "2", "--batch", "4", "--steps", "1", "2", "--rounds", "1"],
    "step_cost": ["--steps", "1"],
}
WITHOUT_ENVIRONMENT = ("kl_cost", "scaling", "shared_states")


@pytest.fixture
def benchmark(monkeypatch):
    """Return a function that imports a benchmark, as its own folder's Python would."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def forked(vector_env):
    """Return a class of environments in processes that are forked, whatever is requested."""
    return lambda *args, **options: vector_env(*args, **{**options, "context": "fork"})


def test_each_benchmark_is_run():
    assert set(SMALLEST) == {path.stem for path in BENCHMARKS.glob("*.py")} - {"agent_parts", "timing"}


@pytest.mark.parametrize("name", SMALLEST)
def test_benchmark(name, benchmark, tmp_path, monkeypatch):
    module = benchmark(name)
    argv = [*SMALLEST[name], "--out", str(tmp_path / "out")]
    if name not in WITHOUT_ENVIRONMENT:
        (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "budget": 12, "device": "cpu"}))
        argv += ["--env-file", str(tmp_path / "tiny.json")]
    # A spawned process would import everything again.
    if name == "memory":
        monkeypatch.setattr(module, "get_context", lambda _: multiprocessing.get_context("fork"))
    if name == "frozen_scaling":
        monkeypatch.setattr(gym.vector, "AsyncVectorEnv", forked(gym.vector.AsyncVectorEnv))
    if name == "scaling":
        monkeypatch.setattr(module, "SIZES", [(48, 64)])
    assert run(module.main, module.Options, argv) == 0
    written = list((tmp_path / "out").glob("*.csv"))
    assert written
    assert all(rows_of(path) for path in written)
