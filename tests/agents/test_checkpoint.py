"""Training that is killed and resumed ends where an undisturbed one ends."""

import functools
import shutil
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from fakes import closed_form_env, make
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor, VecNormalize
from training import clean

from agents import Checkpoint, LinearEpsilon, SubActionDQN
from agents.training_state import training_state
from al_seg_env.storage import load_tree, save_tree, tree_digest


def dqn(env, **options):
    return SubActionDQN(
        "QueryPolicy", env, **{"seed": 0, "device": "cpu", "batch_size": 4, "buffer_size": 30, **options}
    )


def on_policy(kind, env):
    options = {"batch_size": 4, "n_epochs": 2} if kind is PPO else {}
    return kind("MultiInputPolicy", env, n_steps=4, seed=0, device="cpu", **options)


ENVS = {
    "one": lambda: closed_form_env(),
    "real network": lambda: make(scores=["bald"]),
    "cut short": lambda: TimeLimit(closed_form_env(), 3),
    "two": lambda: make_vec_env(closed_form_env, 2, wrapper_class=functools.partial(TimeLimit, max_episode_steps=3)),
    "normalised": lambda: VecNormalize(VecMonitor(make_vec_env(closed_form_env, 2)), norm_obs=False, gamma=0.5),
}
ALGORITHMS = {
    "dqn": dqn,
    "dqn, episodes": lambda env: dqn(env, train_freq=(1, "episode"), gradient_steps=-1),
    "ppo": lambda env: on_policy(PPO, env),
    "a2c": lambda env: on_policy(A2C, env),
}


def checkpoints(folder):
    """The files of a folder, except those of its lock."""
    return sorted(folder.glob("checkpoint-*"))


class Killed(Exception):
    pass


class KillAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        if self.num_timesteps >= self.step:
            raise Killed
        return True


def forget_global_randomness():
    torch.manual_seed(np.random.default_rng().integers(2**31))
    np.random.seed(np.random.default_rng().integers(2**31))  # noqa: NPY002


def train(make_model, folder, kills=(), steps=17, every=1):
    """Train, be killed at steps, and resume each time as a new process would; return the final state."""
    for kill in (*kills, None):
        forget_global_randomness()
        model = make_model()
        checkpoint = Checkpoint(folder, every=every)
        assert checkpoint.resume(model) or model.num_timesteps == 0
        callbacks = [checkpoint] if kill is None else [checkpoint, KillAt(kill)]
        try:
            model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
        except Killed:
            continue
    return clean(training_state(model))


@pytest.mark.parametrize("env", [name for name in ENVS if name != "real network"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_killed_training_ends_where_an_undisturbed_one_ends(algorithm, env, tmp_path):
    if algorithm == "dqn, episodes" and env in ("two", "normalised"):
        pytest.skip("Stable-Baselines3 allows it for one environment only")
    make_model = lambda: ALGORITHMS[algorithm](ENVS[env]())  # noqa: E731
    undisturbed = train(make_model, tmp_path / "whole", every=100)
    killed = train(make_model, tmp_path / "killed", kills=(1, 5, 14))
    assert tree_digest(killed) == tree_digest(undisturbed)
    seldom = train(make_model, tmp_path / "seldom", kills=(5, 16), every=7)
    assert tree_digest(seldom) == tree_digest(undisturbed)


def test_with_a_real_network(tmp_path):
    make_model = lambda: dqn(make(scores=["bald"]))  # noqa: E731
    undisturbed = train(make_model, tmp_path / "whole", steps=5)
    assert tree_digest(train(make_model, tmp_path / "k", kills=(2, 3), steps=5)) == tree_digest(undisturbed)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_draws_of_worth_and_what_they_are_learnt_from(n_envs, tmp_path):
    options = {"sub_rewards": True, "region_features": ["mean_probability", "labelled"]}

    def make_model():
        env = make_vec_env(functools.partial(closed_form_env, **options), n_envs)
        return SubActionDQN(
            "CandidatePolicy", env, seed=0, device="cpu", batch_size=4, buffer_size=60,
            credit="class_rewards", exploration="episode", epsilon=0.3,
        )  # fmt: skip

    undisturbed = train(make_model, tmp_path / "whole", every=100)
    assert tree_digest(train(make_model, tmp_path / "killed", kills=(1, 5, 14))) == tree_digest(undisturbed)


def test_environments_of_other_processes(tmp_path):
    def make_model():
        return dqn(SubprocVecEnv([closed_form_env, closed_form_env], start_method="fork"))

    undisturbed = train(make_model, tmp_path / "whole", steps=12, every=100)
    assert tree_digest(train(make_model, tmp_path / "killed", kills=(4, 8), steps=12)) == tree_digest(undisturbed)


def test_a_run_can_be_moved(tmp_path):
    make_model = lambda: dqn(closed_form_env())  # noqa: E731
    undisturbed = train(make_model, tmp_path / "whole", steps=12, every=100)
    first = train(make_model, tmp_path / "here", steps=6)
    shutil.move(tmp_path / "here", tmp_path / "elsewhere" / "there")
    assert tree_digest(train(make_model, tmp_path / "elsewhere" / "there", steps=12)) == tree_digest(undisturbed)
    assert tree_digest(first) != tree_digest(undisturbed)


def test_the_last_two_are_kept_and_a_damaged_newest_falls_back(tmp_path):
    make_model = lambda: dqn(closed_form_env())  # noqa: E731
    undisturbed = train(make_model, tmp_path / "whole", steps=12, every=100)
    train(make_model, tmp_path / "run", steps=8)
    older, newest = checkpoints(tmp_path / "run")
    assert [path.name for path in (older, newest)] == [f"checkpoint-00000000{n}.safetensors" for n in (7, 8)]
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="checkpoint-000000008.safetensors is damaged"):
        end = train(make_model, tmp_path / "run", steps=12)
    assert tree_digest(end) == tree_digest(undisturbed)
    for path in checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="None of the 2 checkpoints in .* can be used: .*damaged"):
            Checkpoint(tmp_path / "run").resume(make_model())


def test_a_training_that_a_callback_ends_leaves_a_checkpoint_that_is_whole(tmp_path):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 5

    make_model = lambda: dqn(closed_form_env())  # noqa: E731
    undisturbed = train(make_model, tmp_path / "whole", steps=12, every=100)
    make_model().learn(12, callback=[Checkpoint(tmp_path / "run", every=3), Stop()])
    assert tree_digest(train(make_model, tmp_path / "run", steps=12)) == tree_digest(undisturbed)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: dqn(closed_form_env(), gamma=0.5), "gamma is 0.99 there, 0.5 here"),
        (lambda: dqn(closed_form_env(), epsilon=LinearEpsilon(1, 0, 5)), "epsilon is .* there, .*LinearEpsilon.* here"),
        (lambda: on_policy(PPO, closed_form_env()), "checkpoint is of a SubActionDQN, this is a PPO"),
        (lambda: dqn(closed_form_env(reward_scale=3.0)), "reward_scale is 1.0 there, 3.0 here"),
        (lambda: dqn(make_vec_env(closed_form_env, 2)), "shapes|checkpoint has 1 environments, .* has 2"),
        (lambda: dqn(TimeLimit(closed_form_env(), 2)), "environment had 1 wrappers, but this one has 2"),
        (lambda: dqn(closed_form_env(), max_grad_norm=None), "max_grad_norm is 10.0 there, None here"),
        (
            lambda: dqn(closed_form_env(), policy_kwargs={"optimizer_kwargs": {"momentum": 0.5}}),
            "policy_kwargs.optimizer_kwargs is missing there, {'momentum': 0.5} here",
        ),
        (lambda: dqn(closed_form_env(), buffer_size=60), "buffer_size is 30 there, 60 here"),
        (lambda: dqn(closed_form_env(), seed=1), "seed is 0 there, 1 here"),
    ],
)
def test_another_training_is_refused(tmp_path, other, message):
    train(lambda: dqn(closed_form_env()), tmp_path, steps=4)
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path).resume(other())


def test_an_argument_that_is_newer_than_a_checkpoint_had_its_default(tmp_path):
    train(lambda: dqn(closed_form_env(), max_grad_norm=None), tmp_path, steps=4)
    for path in checkpoints(tmp_path):
        state = load_tree(path, "training checkpoint")
        del state["settings"]["n_steps"]
        save_tree(path, "training checkpoint", state)
    assert Checkpoint(tmp_path).resume(dqn(closed_form_env(), max_grad_norm=None))
    with pytest.raises(ValueError, match="n_steps is .* there, 3 here"):
        Checkpoint(tmp_path).resume(dqn(closed_form_env(), max_grad_norm=None, n_steps=3))


def test_checkpoints_of_another_training_are_not_written_over(tmp_path):
    train(lambda: dqn(closed_form_env()), tmp_path, steps=4)
    kept = {path: path.read_bytes() for path in checkpoints(tmp_path)}
    with pytest.raises(ValueError, match=r"call resume\(model\) to continue it, or choose another folder"):
        dqn(closed_form_env()).learn(3, callback=Checkpoint(tmp_path))
    assert {path: path.read_bytes() for path in checkpoints(tmp_path)} == kept


def test_an_environment_without_a_state_says_so_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"FakeRegionEnv has no get_state\(\) and set_state\(\)"):
        dqn(FakeRegionEnv()).learn(10, callback=Checkpoint(tmp_path))


def test_without_checkpoints_training_starts(tmp_path):
    model = dqn(closed_form_env())
    assert Checkpoint(tmp_path / "none").resume(model) is False
    assert model.num_timesteps == 0
    assert not (tmp_path / "none").exists()


def test_names_of_folders_are_not_taken_from_a_checkpoint(tmp_path):
    """A wrapper that writes files keeps writing where this run's wrapper does."""

    class Writer(gym.Wrapper):
        def __init__(self, env, folder):
            super().__init__(env)
            self.folder, self.count = str(folder), 0

        def step(self, action):
            self.count += 1
            return super().step(action)

    train(lambda: dqn(Monitor(Writer(closed_form_env(), "/elsewhere"))), tmp_path, steps=4)
    model = dqn(Monitor(Writer(closed_form_env(), "/here")))
    Checkpoint(tmp_path).resume(model)
    writer = model.env.envs[0].env
    assert (writer.folder, writer.count) == ("/here", 4)
    for path in checkpoints(tmp_path):
        assert b"/elsewhere" not in path.read_bytes()


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_parameters_in_a_checkpoint_reach_networks_and_optimisers_only(tmp_path, algorithm, monkeypatch):
    """Stable-Baselines3 unpickles the file that a text names, and gives values to any attribute that a dict names."""
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("something was unpickled"))
    monkeypatch.setattr("zipfile.ZipFile", lambda *_: pytest.fail("a zip was opened"))
    train(lambda: ALGORITHMS[algorithm](closed_form_env()), tmp_path, steps=4)
    model = ALGORITHMS[algorithm](closed_form_env())
    before = tree_digest(model.get_parameters())
    (path, *others) = checkpoints(tmp_path)
    for other in others:
        other.unlink()
    state = load_tree(path, "training checkpoint")
    parameters = state["parameters"]
    name = next(iter(parameters))
    for odd in (
        str(tmp_path / "model.zip"),
        None,
        [],
        {},
        {**parameters, "replay_buffer": {}},
        {**parameters, name: str(tmp_path / "model.zip")},
        {name: parameters[name]},
    ):
        save_tree(path, "training checkpoint", {**state, "parameters": odd})
        with pytest.raises(ValueError, match=rf"{path.name}: the parameters are .*; expected a dict with a dict for"):
            Checkpoint(tmp_path).resume(model)
        assert tree_digest(model.get_parameters()) == before


def test_a_checkpoint_whose_content_is_malformed_is_refused(tmp_path):
    train(lambda: dqn(closed_form_env()), tmp_path, steps=4)
    for path in checkpoints(tmp_path):
        state = load_tree(path, "training checkpoint")
        save_tree(path, "training checkpoint", {key: state[key] for key in state if key != "envs"})
    with pytest.raises(ValueError, match=r"checkpoint-000000004.safetensors is malformed \(KeyError: 'envs'\)"):
        Checkpoint(tmp_path).resume(dqn(closed_form_env()))


def test_checkpoints_that_take_long_are_written_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("agents.checkpoint.time.monotonic", lambda: clock[0])
    written = []

    def slow_save(path, kind, state):
        clock[0] += 1.0
        written.append(state["progress"]["num_timesteps"])

    class Tick(BaseCallback):
        def _on_step(self):
            clock[0] += 1.0  # a step takes as long as a checkpoint
            return True

    monkeypatch.setattr("agents.checkpoint.save_tree", slow_save)
    dqn(closed_form_env()).learn(12, callback=[Checkpoint(tmp_path, share=0.2), Tick()])
    assert written == [0, 4, 8, 12]  # the last at the end of training, whatever it takes
