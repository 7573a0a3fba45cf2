"""The environment with a real network: both checkers, vectors, wrappers, pickling, and SB3's own algorithms."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import ID, TINY, TinyNetwork, custom, make, play, same, tiny_network
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from al_seg_env import BALD

# SB3 warns of boxes of unusual shapes, and mistakes boxes of two and three dimensions for images.
SB3_SHAPES = ("unconventional shape", "is an image", "CnnPolicy")


def test_gymnasiums_checker_finds_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(make(render_mode="rgb_array", scores=["entropy", "bald"], bald_samples=2).unwrapped)
    assert [str(warning.message) for warning in caught] == []


def test_sb3s_checker_finds_nothing_but_unusual_shapes():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(make(scores=["entropy"]))
    messages = [str(warning.message) for warning in caught]
    assert [message for message in messages if not any(known in message for known in SB3_SHAPES)] == []


def test_it_works_without_arguments():
    env = gym.make(ID)
    assert env.observation_space["state"].shape == (8 * 16, 10 + 192)
    assert env.action_space == gym.spaces.MultiDiscrete([8] * 16)


@pytest.fixture(scope="module")
def record():
    """One seeded episode, as a fresh environment plays it."""
    return play(make(scores=["entropy", "bald", "margin"], bald_samples=2), 3)


def test_an_episode_has_rewards_that_are_gains_in_miou(record):
    mious = [record[0][1]["miou"]] + [result[4]["miou"] for result in record[1:]]
    assert [result[1] for result in record[1:]] == pytest.approx(np.diff(mious).tolist())
    assert np.any(np.diff(mious))
    assert [result[4]["labelled"] for result in record[1:]] == [3, 6, 7]


def test_seeded_episodes_are_equal_whatever_was_played_and_drawn_before(record):
    env = make(scores=["entropy", "bald", "margin"], bald_samples=2)
    torch.manual_seed(99)
    play(env, 8)
    env.reset(seed=5)
    env.step(np.zeros(3, np.int64))
    torch.rand(3)
    np.random.seed(0)  # noqa: NPY002
    assert same(play(env, 3), record)


def test_the_spec_rebuilds_an_equal_environment(record):
    spec = make(scores=["entropy", "bald", "margin"], bald_samples=2).spec
    rebuilt = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert same(play(rebuilt, 3), record)


@pytest.mark.filterwarnings("error")
def test_it_pickles_in_the_middle_of_an_episode():
    env = make(scores=["bald"], bald_samples=2)
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    other = pickle.loads(pickle.dumps(env.unwrapped))
    action = np.ones(3, np.int64)
    assert same(copy.deepcopy(env.step(action)), copy.deepcopy(other.step(action)))
    assert same(play(env, None), play(other, None))


def test_theta_0_is_restored_at_every_reset():
    env = make().unwrapped
    initial = {key: value.clone() for key, value in env.learner.network.state_dict().items()}
    play(env, 0)
    assert any(not torch.equal(initial[key], value) for key, value in env.learner.network.state_dict().items())
    env.reset()
    assert all(torch.equal(initial[key], value) for key, value in env.learner.network.state_dict().items())


@pytest.fixture
def one_thread():
    """The number of threads changes the last bits of a convolution, and forked processes have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_vectors_in_this_process_and_in_others_agree(request):
    """Torch has run on all threads before the others are forked, which must not make them hang."""
    torch.rand(500, 500) @ torch.rand(500, 500)
    request.getfixturevalue("one_thread")
    results = []
    for mode in ("sync", "async"):
        envs = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, **TINY)
        observations, infos = envs.reset(seed=4)
        steps = [(observations, infos["miou"])]
        for _ in range(4):  # three steps and the autoreset
            observations, rewards, terminations, truncations, infos = envs.step(np.zeros((2, 3), np.int64))
            steps.append((observations, rewards, terminations, truncations, infos["labelled"]))
        envs.close()
        results.append(copy.deepcopy(steps))
    for one, other in zip(*results, strict=True):
        for a, b in zip(one, other, strict=True):
            if isinstance(a, dict):
                assert all(np.array_equal(a[key], b[key]) for key in a)
            else:
                np.testing.assert_array_equal(a, b)
    _, _, terminations, truncations, labelled = results[0][3]
    assert terminations.all()
    assert not truncations.any()
    assert labelled.tolist() == [7, 7]
    assert results[0][4][4].tolist() == [0, 0]


def test_statistics_and_time_limit():
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(make(), max_episode_steps=2))
    _, first = env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    observation, _, terminated, truncated, info = env.step(np.zeros(3, np.int64))
    assert (terminated, truncated) == (False, True)
    assert observation["candidates"].any()  # cut off, not over: one may bootstrap from it
    assert info["episode"]["l"] == 2
    assert info["episode"]["r"] == pytest.approx(info["miou"] - first["miou"], abs=1e-4)


def test_a_video_is_written(tmp_path):
    pytest.importorskip("moviepy")
    env = gym.wrappers.RecordVideo(make(render_mode="rgb_array"), str(tmp_path / "videos"))
    play(env, 0)
    env.close()
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_frames():
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    frame = env.render()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    assert (frame == (255, 230, 0)).all(axis=2).any()  # the outline of what was requested


@pytest.mark.parametrize(("algorithm", "options"), [(PPO, {"batch_size": 4, "n_epochs": 1}), (A2C, {})])
def test_algorithms_of_sb3_learn(algorithm, options):
    envs = make_vec_env(ID, n_envs=2, seed=0, env_kwargs=TINY)
    model = algorithm("MultiInputPolicy", envs, n_steps=4, seed=0, device="cpu", **options)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(8)
    after = list(model.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in after)
    assert len(model.ep_info_buffer) == 2
    action, _ = model.predict(envs.reset(), deterministic=True)
    assert action.shape == (2, 3)
    envs.close()


def test_any_module_and_any_data_will_do():
    env = custom(scores=[BALD(3)])
    record = play(env, 0)
    assert all(env.observation_space.contains(result[0]) for result in record)
    assert record[1][0]["score_bald"].max() > 0
    assert same(play(custom(scores=[BALD(3)]), 0), record)


def test_a_network_handed_over_in_training_mode_is_switched_to_evaluation():
    network = tiny_network().train()
    env = custom(network)
    assert same(env.reset(seed=0), custom().reset(seed=0))
    assert not network.training


def test_diverging_weights_are_reported_and_a_reset_mends_them():
    env = custom()
    first = play(env, 0)
    env.reset(seed=0)
    with torch.no_grad():
        env.learner.network.head.bias.fill_(float("nan"))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="update was not made"):
            env.step(np.zeros(4, np.int64))
    assert same(play(env, 0), first)


class WrongSize(TinyNetwork):
    def forward(self, x):
        return super().forward(x)[..., ::2, ::2]


@pytest.mark.parametrize("network", [TinyNetwork(4), TinyNetwork(2), WrongSize(3)])
def test_logits_of_another_shape_are_refused(network):
    with pytest.raises(ValueError, match=r"expected \(1, 3, 32, 40\): one channel for each of the 3 classes"):
        custom(network)
