"""Environments in other processes: their states arrive whatever happens to the sender, and training resumes in them."""

import functools
import pickle
from multiprocessing.reduction import ForkingPickler

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.multiprocessing  # noqa: F401 - registers how torch sends tensors
from fakes import closed_form_env, make, same
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor
from training import clean

from agents import Checkpoint, EpisodeRecorder, SubActionDQN
from agents.training_state import training_state
from al_seg_env import load_state, save_state
from al_seg_env.storage import PortableTree, tree_digest

FORK = {"start_method": "fork"}


@pytest.fixture
def no_handles(monkeypatch):
    """Sending a tensor as a handle is an error here, and in processes that are forked from this one."""

    def refuse(tensor):
        raise AssertionError(f"a {type(tensor).__name__} was to be sent as a handle")

    kinds = [kind for kind in ForkingPickler._extra_reducers if kind.__module__.startswith("torch")]
    assert torch.Tensor in kinds
    for kind in kinds:
        monkeypatch.setitem(ForkingPickler._extra_reducers, kind, refuse)


def dqn(env):
    return SubActionDQN("QueryPolicy", env, seed=0, device="cpu", batch_size=4, buffer_size=30)


def train(make_env, folder, *stops):
    """Train up to each number of steps in turn, every time as a new process would; return the end and the episodes."""
    for steps in stops:
        env = make_env()
        model, checkpoint = dqn(env), Checkpoint(folder)
        checkpoint.resume(model)
        callbacks = [checkpoint, EpisodeRecorder(folder / "episodes.csv")]
        model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
        state = tree_digest(clean(training_state(model)))
        env.close()
    return state, (folder / "episodes.csv").read_text() if callbacks[1].rows else ""


def short(make_env=closed_form_env):
    return TimeLimit(make_env(), 3)


ENVS = {
    "wrapped": lambda: VecMonitor(SubprocVecEnv([make, make], **FORK)),
    "cut short": lambda: VecMonitor(SubprocVecEnv([short, short], **FORK)),
    "monitored": lambda: make_vec_env(short, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK),
}


@pytest.mark.parametrize("env", ENVS)
def test_training_resumes_through_wrappers_and_sends_no_handles(env, tmp_path, no_handles):
    """Steps 4 and 10 are in the middle of episodes; real networks are stopped once."""
    stops = (4, 8) if env == "wrapped" else (4, 10, 16)
    assert train(ENVS[env], tmp_path / "parts", *stops) == train(ENVS[env], tmp_path / "whole", stops[-1])


@pytest.mark.parametrize("order", [(DummyVecEnv, SubprocVecEnv), (SubprocVecEnv, DummyVecEnv)])
def test_a_training_moves_between_processes(order, tmp_path):
    makers = [
        functools.partial(
            make_vec_env, short, 2, vec_env_cls=kind, vec_env_kwargs=FORK if kind is SubprocVecEnv else {}
        )
        for kind in order
    ]
    _, whole = train(makers[0], tmp_path / "whole", 16)
    train(makers[0], tmp_path / "parts", 4)
    _, parts = train(makers[1], tmp_path / "parts", 16)
    assert parts == whole
    assert whole.count("\n") > 4


def test_states_cross_gymnasiums_processes_as_bytes(tmp_path, no_handles):
    envs = gym.vector.AsyncVectorEnv([make, make], context="fork")
    envs.reset(seed=3)
    envs.step(np.zeros((2, 3), np.int64))
    save_state(tmp_path / "state", envs.call("get_state")[1])
    expected = envs.step(np.ones((2, 3), np.int64))
    envs.call("set_state", load_state(tmp_path / "state"))
    again = envs.step(np.ones((2, 3), np.int64))
    assert same(expected[1][1], again[1][0])
    assert same(
        {key: value[1] for key, value in expected[0].items()}, {key: value[0] for key, value in again[0].items()}
    )
    envs.close()


def test_a_portable_tree_comes_back(no_handles):
    tree = PortableTree(tensor=torch.arange(3), inner={"array": np.ones(2), "rng": np.random.default_rng(0)})
    back = pickle.loads(ForkingPickler.dumps(tree))
    assert type(back) is PortableTree
    assert tree_digest(back) == tree_digest(tree)
    with pytest.raises(AssertionError, match="sent as a handle"):
        ForkingPickler.dumps(dict(tree))
