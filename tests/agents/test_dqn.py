import warnings

import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from agents import (
    EpisodeRecorder,
    ExponentialEpsilon,
    ExponentialRate,
    InfoLogger,
    LinearEpsilon,
    SubActionDQN,
    UniformPolicy,
)
from agents.dqn.exploration import draw_guides, epsilon_at, follow
from al_seg_env.storage import tree_digest

LAYOUT = {"classes": ["road", "car"], "state_images": ["a.png", "b.png"], "features": {"counts": 2}}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost such small networks more than they gain, on a busy machine very much more."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def make_agent(env=None, **settings):
    settings = {"seed": 0, "device": "cpu", **settings}
    return SubActionDQN("QueryPolicy", FakeRegionEnv() if env is None else env, **settings)


def weights(agent):
    return torch.cat([part.flatten().double() for part in agent.policy.state_dict().values()])


def observe(env, seed=0):
    return env.reset(seed=seed)[0]


@pytest.mark.parametrize("td_target", ["paper", "van_hasselt"])
def test_learns_to_choose_better_than_uniform(td_target):
    agent = make_agent(
        FakeRegionEnv(pools=2),
        learning_rate=0.02,
        gamma=0.3,
        td_target=td_target,
        epsilon=0.3,
        max_grad_norm=5.0,
    )
    agent.learn(200)
    test_env = Monitor(FakeRegionEnv(pools=4, candidates=6, budget=12))  # other K and N than in training
    test_env.reset(seed=7)
    learnt, _ = evaluate_policy(agent, test_env, n_eval_episodes=20)
    uniform, _ = evaluate_policy(UniformPolicy(seed=0), test_env, n_eval_episodes=20)
    # Three steps an episode: uniform earns 1/2 each; the best of 6 candidates 6/7.
    assert uniform == pytest.approx(3 / 2, abs=0.15)
    assert learnt > 2.1


def test_same_seed_same_run():
    runs = [make_agent(FakeRegionEnv(), seed=seed).learn(30) for seed in (1, 1, 2)]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_global_numpy_state_is_left_alone():
    agent = make_agent(seed=None)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    agent.learn(10)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_update_is_the_gradient_step_of_eq_2():
    agent = make_agent(policy_kwargs={"optimizer_kwargs": {}}, learning_rate=0.1, gamma=0.5, batch_size=8)
    agent.learn(1)  # fills the replay with one step
    agent.learn(4, reset_num_timesteps=False)
    batch = agent.replay_buffer.sample(8)
    agent.replay_buffer.sample = lambda size, env=None: batch
    reference = type(agent.policy.q_net)(5, 6, 4)
    reference.load_state_dict(agent.q_net.state_dict())
    reference.eval()
    after = (batch.next_state[batch.next_state_of], batch.next_candidates, batch.next_similarity)
    with torch.no_grad():
        best = agent.q_net_target(*after).argmax(dim=1)
        value = reference(*after)[torch.arange(8), best]
    target = batch.reward + 0.5 * value * (~batch.terminated)
    reference.train()
    loss = ((target - reference(batch.state[batch.state_of], batch.chosen, batch.similarity)) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    agent.policy.set_training_mode(True)  # targets come from evaluation mode all the same
    agent.train(gradient_steps=1, batch_size=8)
    for ours, theirs in zip(agent.q_net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert agent.logger.name_to_value["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_target_network_follows():
    agent = make_agent(target_update_interval=4)
    first = next(agent.q_net_target.parameters()).clone()
    agent.learn(3)
    assert torch.equal(first, next(agent.q_net_target.parameters()))
    assert not torch.equal(*(next(net.parameters()) for net in (agent.q_net, agent.q_net_target)))
    agent._on_step()  # the fourth
    ours, theirs = agent.q_net.state_dict(), agent.q_net_target.state_dict()
    for name in ours:
        if "num_batches" not in name:  # statistics of batch normalisation too
            assert torch.equal(ours[name], theirs[name]), name
    assert not agent.q_net_target.training


def test_epsilon_schedules():
    linear = LinearEpsilon(1.0, 0.2, steps=10)
    assert [linear(step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    released = ExponentialEpsilon()
    assert [released(step) for step in (0, 10, 10_000)] == pytest.approx([0.9, 0.05 + 0.85 / np.e, 0.05])
    assert epsilon_at(0.3, 5) == 0.3
    with pytest.raises(ValueError, match="after 7 steps is 7"):
        epsilon_at(lambda step: step, 7)
    for make in (
        lambda: LinearEpsilon(1.2, 0, 5),
        lambda: LinearEpsilon(1, 0, 0),
        lambda: ExponentialEpsilon(decay=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()


def test_guides_are_drawn_as_often_as_epsilon_says():
    drawn = draw_guides((30_000,), 3, 0.3, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn) / drawn.size, [0.1, 0.1, 0.1, 0.7], atol=0.01)
    assert (draw_guides((50,), 2, 0.0, np.random.default_rng(0)) == 2).all()


def test_sub_actions_are_those_of_who_is_followed():
    rng = np.random.default_rng(0)
    observation = {"candidates": rng.random((2, 3, 4, 5)), "score_a": rng.random((2, 3, 4))}
    observation["score_b"] = -observation["score_a"]
    greedy = np.full((2, 3), 9)
    drawn = np.array([[0, 1, 2], [2, 2, 0]])
    guides = ("score_a", "score_b")
    highest, lowest = observation["score_a"].argmax(-1), observation["score_a"].argmin(-1)
    expected = [[highest[0, 0], lowest[0, 1], 9], [9, 9, highest[1, 2]]]
    np.testing.assert_array_equal(follow(drawn, greedy, guides, observation, rng), expected)
    one_for_all = follow(np.array([[1], [2]]), greedy, guides, observation, rng)
    np.testing.assert_array_equal(one_for_all, [lowest[0], [9, 9, 9]])
    with pytest.raises(ValueError, match=r"score_c.*scores=\['c'\]"):
        follow(drawn, greedy, ("score_c",), observation, rng)


def test_an_episode_is_explored_with_one_guide_or_not_at_all(tmp_path):
    """Of 2 environments side by side, with episodes of 4 steps: each episode follows the score, or else the network."""
    envs = VecMonitor(DummyVecEnv([lambda: FakeRegionEnv(scores=True)] * 2))
    settings = {"exploration": "episode", "guides": ["score_entropy", "uniform"], "epsilon": 0.5, "buffer_size": 10_000}
    agent = make_agent(envs, **settings)
    agent.gradient_steps = 0  # who is followed does not depend on what is learnt
    agent.learn(2 * 4 * 120, callback=(recorder := EpisodeRecorder(tmp_path / "episodes.csv")))
    buffer = agent.replay_buffer
    n_steps = 4 * 120
    assert buffer.terminated[3:n_steps:4].all()
    # Feature 0 is the score: the highest of 4 candidates is its own rank 0.
    chosen = np.take_along_axis(
        buffer.stored["candidates"][:n_steps, :, :, :, 0], buffer.actions[:n_steps, ..., None], 3
    )
    best = chosen[..., 0] == buffer.stored["candidates"][:n_steps, ..., 0].max(-1)  # (steps, envs, K)
    by_score = best.reshape(120, 4, 2, 3).all(axis=(1, 3))  # (episodes, envs)
    by_chance = 0.5 * 0.25**12
    assert by_chance < 1e-7
    assert by_score.mean() == pytest.approx(0.25, abs=0.09)  # epsilon, times one of two guides
    followed = np.array([row["followed"] for row in recorder.rows]).reshape(120, 2)
    np.testing.assert_array_equal(by_score, followed == "score_entropy")
    assert set(followed.ravel()) == {"score_entropy", "uniform", "greedy"}
    partly = best.reshape(120, 4, 2, 3).all(axis=3).mean(axis=1)[~by_score]  # share of steps wholly by the score
    assert (partly >= 0.75).mean() < 0.02  # none is followed for a part of an episode
    assert abs(np.corrcoef(by_score.T)[0, 1]) < 0.3  # each environment draws for itself


def test_learns_what_pays_only_later():
    """The worth of a choice is paid two steps later; returns of whole episodes show it to the bandit's Q, too."""

    class Late(FakeRegionEnv):
        def reset(self, **kwargs):
            self.owed = []
            return super().reset(**kwargs)

        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            self.owed.append(reward)
            paid = sum(self.owed[-3:]) if terminated else self.owed[-3] if len(self.owed) > 2 else 0.0
            return observation, paid, terminated, truncated, info

    agent = make_agent(
        Late(scores=True),
        learning_rate=0.02,
        gamma=1.0,
        n_steps=4,
        exploration="episode",
        guides=("uniform", "score_entropy"),
        epsilon=0.7,
        buffer_size=3000,
    ).learn(480)
    test_env = Monitor(FakeRegionEnv(pools=3, candidates=6, budget=12))
    test_env.reset(seed=7)
    learnt, _ = evaluate_policy(agent, test_env, n_eval_episodes=20)
    assert learnt > 2.7  # of four steps: uniform earns 2, the best of 6 candidates 4 * 6/7


def test_a_refit_learns_from_the_replay_alone(tmp_path):
    """An agent that only ever explored, its network not trained at all, is as good as one that learnt on the way."""
    agent = make_agent(FakeRegionEnv(pools=2), learning_rate=0.02, gamma=0.3, epsilon=1.0, buffer_size=3000)
    agent.gradient_steps = 0
    agent.learn(240)
    untrained, steps = weights(agent), agent.num_timesteps
    replay = tree_digest(agent.replay_buffer.stored)
    agent.save_replay_buffer(tmp_path / "replay")
    decay = {"optimizer_kwargs": {"momentum": 0.9, "weight_decay": 0.02}}
    agent.refit(240, decay)
    assert (agent.num_timesteps, tree_digest(agent.replay_buffer.stored)) == (steps, replay)
    assert agent.policy.optimizer.param_groups[0]["weight_decay"] == 0.02
    assert not torch.equal(untrained, weights(agent))
    test_env = Monitor(FakeRegionEnv(pools=4, candidates=6, budget=12))
    test_env.reset(seed=7)
    assert evaluate_policy(agent, test_env, n_eval_episodes=20)[0] > 2.1  # of three steps: uniform earns 1.5
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", env=FakeRegionEnv(pools=2), device="cpu")
    assert torch.equal(weights(agent), weights(loaded))
    assert loaded.policy.optimizer.param_groups[0]["weight_decay"] == 0.02
    with pytest.raises(ValueError, match="gradient_steps is 0"):
        agent.refit(0)
    with pytest.raises(ValueError, match="replay is empty"):
        loaded.refit(1)
    loaded.load_replay_buffer(tmp_path / "replay")
    assert not torch.equal(weights(agent), weights(loaded.refit(1)))


def test_a_refit_begins_with_the_first_learning_rate():
    rates = []
    agent = make_agent(FakeRegionEnv(pools=2), learning_rate=lambda remaining: 0.01 * remaining, buffer_size=100)
    agent.learn(20)
    end, train = agent._current_progress_remaining, agent.train

    def noted(*arguments):
        train(*arguments)
        rates.append(agent.policy.optimizer.param_groups[0]["lr"])

    agent.train = noted
    agent.refit(3)
    assert rates == [0.01] * 3
    assert agent._current_progress_remaining == end


def test_predict_explores_unless_deterministic():
    agent = make_agent(epsilon=1.0)
    observation = observe(agent.env.envs[0].unwrapped)
    greedy = [tuple(agent.predict(observation, deterministic=True)[0]) for _ in range(20)]
    explored = [tuple(agent.predict(observation)[0]) for _ in range(20)]
    assert len(set(greedy)) == 1
    assert len(set(explored)) > 5
    batch = {name: np.stack([part, part]) for name, part in observation.items()}
    assert agent.predict(batch)[0].shape == (2, 3)


@pytest.mark.parametrize("with_env", [False, True])
def test_saved_and_loaded(tmp_path, with_env):
    agent = make_agent(FakeRegionEnv(layout=LAYOUT), epsilon=LinearEpsilon(0.5, 0.1, 50)).learn(20)
    agent.save(tmp_path / "agent.zip")
    env = FakeRegionEnv(layout=LAYOUT, pools=2, candidates=7) if with_env else None
    loaded = SubActionDQN.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert torch.equal(weights(agent), weights(loaded))
    assert loaded.exploration_rate == agent.exploration_rate == pytest.approx(0.34)
    for pools in (3, 5):
        observation = observe(FakeRegionEnv(pools=pools))
        for deterministic in (True, False):  # exploration continues where it was
            ours, theirs = (a.predict(observation, deterministic=deterministic)[0] for a in (agent, loaded))
            np.testing.assert_array_equal(ours, theirs)
    if with_env:
        loaded.learn(10, reset_num_timesteps=False)
        assert loaded.num_timesteps == 30
        assert not torch.equal(weights(agent), weights(loaded))


def test_replay_is_saved_apart(tmp_path):
    agent = make_agent().learn(10)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = SubActionDQN.load(tmp_path / "agent.zip", env=FakeRegionEnv(), device="cpu")
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    assert loaded.replay_buffer.size() == agent.replay_buffer.size() > 0
    loaded.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": 9}, r"S \(regions of the state\) is 5 for the agent, 9"),
        ({"features": 9}, r"F \(features of a region\) is 6 for the agent, 9"),
        ({"similarity": 2}, r"D \(similarity features\) is 4 for the agent, 2"),
        ({"similarity": 0}, r"D \(similarity features\) is 4 for the agent, 0"),
        (
            {"layout": {**LAYOUT, "classes": ["road", "sky"]}},
            r"layout.classes is \['road', 'car'\] for the agent, \['road', 'sky'\] in",
        ),
    ],
)
def test_refuses_another_task(tmp_path, settings, message):
    agent = make_agent(FakeRegionEnv(layout=LAYOUT))
    agent.save(tmp_path / "agent.zip")
    env = FakeRegionEnv(**{"layout": LAYOUT, **settings})
    with pytest.raises(ValueError, match=message):
        agent.set_env(env)
    with pytest.raises(ValueError, match=message):
        SubActionDQN.load(tmp_path / "agent.zip", env=env)


def test_refuses_another_set_of_state_images_in_two_lines():
    trained, played = ([f"{folder}/{n:04d}.png" for n in range(100)] for folder in ("a", "b"))
    agent = make_agent(FakeRegionEnv(layout={**LAYOUT, "state_images": trained}))
    with pytest.raises(ValueError, match="does not fit") as raised:
        agent.set_env(FakeRegionEnv(layout={**LAYOUT, "state_images": ["a/0000.png", *played[1:]]}))
    assert "layout.state_images has 100 entries for the agent, 100 in the environment" in str(raised.value)
    assert "'a/0001.png' and 'b/0001.png'" in str(raised.value)
    assert len(str(raised.value)) < 400
    with pytest.raises(ValueError, match="100 entries for the agent, 99 in the environment") as raised:
        agent.set_env(FakeRegionEnv(layout={**LAYOUT, "state_images": trained[:99]}))
    assert "different one" not in str(raised.value)


def test_guides_must_be_in_the_observation_while_training(tmp_path):
    with pytest.raises(
        ValueError, match=r"guides is \('score_bald',\); expected some of \('uniform', 'score_entropy'\)"
    ):
        make_agent(FakeRegionEnv(scores=True), guides=("score_bald",))
    agent = make_agent(FakeRegionEnv(scores=True), guides=["score_entropy"]).learn(4)
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", env=FakeRegionEnv(), device="cpu")  # plays without scores
    assert loaded.predict(observe(FakeRegionEnv()), deterministic=True)[0].shape == (3,)


def test_an_embedding_of_other_images_is_refused_unless_the_agent_is_older_than_that():
    agent = make_agent(FakeRegionEnv(layout={**LAYOUT, "basis_of": "1a2b3c4d"}))
    with pytest.raises(ValueError, match=r"layout.basis_of is '1a2b3c4d' for the agent, '5e6f7a8b' in the environment"):
        agent.set_env(FakeRegionEnv(layout={**LAYOUT, "basis_of": "5e6f7a8b"}))
    make_agent(FakeRegionEnv(layout=LAYOUT)).set_env(FakeRegionEnv(layout={**LAYOUT, "basis_of": "5e6f7a8b"}))


def test_takes_other_pools_scores_and_unknown_layouts():
    agent = make_agent(FakeRegionEnv(layout={**LAYOUT, "classes": ("road", "car")})).learn(10)
    size = agent.replay_buffer.size()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.set_env(FakeRegionEnv(layout=LAYOUT, scores=True))  # the same, apart from a score
    assert agent.replay_buffer.size() == size
    with pytest.warns(UserWarning, match="replay was emptied"):
        agent.set_env(FakeRegionEnv(pools=2, candidates=7))
    assert agent.replay_buffer.size() == 0
    agent.learn(10, reset_num_timesteps=False)
    assert agent.num_timesteps == 20


def test_environments_side_by_side_must_agree():
    with pytest.raises(ValueError, match="side by side"):
        make_agent(DummyVecEnv([lambda: FakeRegionEnv(layout={"a": 1}), lambda: FakeRegionEnv(layout={"a": 2})]))
    with pytest.raises(ValueError, match="plain JSON"):
        make_agent(FakeRegionEnv(layout={"a": object()}))


@pytest.mark.parametrize("part", ["state", "candidates"])
def test_refuses_spaces_without_size(part):
    env = FakeRegionEnv()
    shape = {"state": (0, 6), "candidates": (3, 0, 6)}[part]
    parts = {"state": env.observation_space["state"], "candidates": env.observation_space["candidates"]}
    env.observation_space = spaces.Dict({**parts, part: spaces.Box(0, 1, shape)})
    with pytest.raises(ValueError, match="expected sizes of at least 1"):
        make_agent(env)


def test_refuses_spaces_of_another_kind():
    env = FakeRegionEnv()
    with pytest.raises(ValueError, match="Dict"):
        make_agent(FlattenObservation(env))
    env.observation_space = spaces.Dict(state=spaces.Box(0, 1, (5, 6)), pools=spaces.Box(0, 1, (3, 4, 6)))
    with pytest.raises(ValueError, match="'candidates'"):
        make_agent(env)
    for action_space in (spaces.Discrete(4), spaces.MultiDiscrete([4, 4, 5])):
        env = FakeRegionEnv()
        env.action_space = action_space
        with pytest.raises(ValueError, match=r"MultiDiscrete\(\[4\] \* 3\)"):
            make_agent(env)
    env = FakeRegionEnv()
    env.observation_space = spaces.Dict(state=spaces.Box(0, 1, (5, 7)), candidates=spaces.Box(0, 1, (3, 4, 6)))
    with pytest.raises(ValueError, match="7 features"):
        make_agent(env)


@pytest.mark.parametrize(
    "setting",
    [
        {"buffer_size": 0},
        {"learning_starts": -1},
        {"batch_size": 1},
        {"gamma": 1.5},
        {"tau": 0.0},
        {"target_update_interval": 0},
        {"gradient_steps": -2},
        {"td_target": "double"},
        {"loss": "l1"},
        {"exploration": "pool"},
        {"guides": ()},
        {"guides": "uniform"},
        {"guides": (1,)},
        {"n_steps": 0},
        {"worth_spread": 0},
        {"epsilon": 2.0},
        {"epsilon": lambda step: -1.0},
        {"max_grad_norm": 0.0},
        {"learning_rate": 0.0},
    ],
)
def test_refuses_settings(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name}.*expected"):
        make_agent(**setting)


@pytest.mark.parametrize("spoilt", ["reward", "state"])
def test_values_that_are_not_finite_leave_the_weights_alone(spoilt):
    agent = make_agent().learn(5)
    if spoilt == "reward":
        agent.replay_buffer.rewards[:] = np.nan
    else:
        agent.replay_buffer.stored["state"][:] = np.inf
        agent.replay_buffer.terminated[:] = True  # so that the targets are finite
    before = weights(agent)
    with pytest.raises(FloatingPointError, match="not finite"):
        agent.train(gradient_steps=1, batch_size=16)
    assert torch.equal(before, weights(agent))


def test_observations_are_not_normalised_twice():
    env = DummyVecEnv([FakeRegionEnv])
    with pytest.raises(ValueError, match="norm_obs=False"):
        make_agent(VecNormalize(env))
    make_agent(VecNormalize(env, norm_obs=False)).learn(6)


@pytest.mark.parametrize("settings", [{}, {"similarity": 0}, {"pools": 1}, {"candidates": 1}, {"report": False}])
def test_kinds_of_environments(settings):
    agent = make_agent(FakeRegionEnv(**settings), loss="huber", exploration="step", max_grad_norm=4.0)
    agent.learn(14)
    assert agent.num_timesteps == 14


def test_several_environments_and_time_limits():
    env = DummyVecEnv([lambda: TimeLimit(FakeRegionEnv(), 3), FakeRegionEnv])
    agent = make_agent(env, gradient_steps=-1)
    agent.learn(30)
    assert agent.num_timesteps == 30
    assert agent._n_updates == 30
    replay = agent.replay_buffer
    assert replay.steps_per_lane == 100
    assert (replay.counted > 0).sum(axis=0).tolist() == [15, 15]
    assert replay.terminated.sum(axis=0).tolist() == [0, 3]  # the first lane's episodes are cut short


def test_train_freq_in_episodes():
    agent = make_agent(train_freq=(1, "episode"), gradient_steps=2)
    agent.learn(8)  # two episodes
    assert agent._n_updates == 4


class Recorder(BaseCallback):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def _on_step(self):
        self.steps += 1
        return True


def test_callbacks_logger_tensorboard_and_progress_bar(tmp_path):
    agent = make_agent(
        FakeRegionEnv(layout=LAYOUT),
        tensorboard_log=str(tmp_path / "tb"),
        learning_rate=lambda left: 1e-3 * left,
    )
    recorder = Recorder()
    evaluation = EvalCallback(Monitor(FakeRegionEnv(candidates=9)), eval_freq=10, n_eval_episodes=2, verbose=0)
    agent.learn(20, callback=[recorder, evaluation, InfoLogger()], progress_bar=True)
    assert recorder.steps == 20
    assert np.isfinite(evaluation.best_mean_reward)
    assert list((tmp_path / "tb").glob("SubActionDQN_1/events*"))
    agent.set_logger(configure(str(tmp_path / "csv"), ["csv"]))
    agent.learn(8, callback=InfoLogger(), log_interval=2)
    header, *rows = (tmp_path / "csv" / "progress.csv").read_text().split()
    logged = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert float(logged["rollout/miou"]) == 52.0
    assert float(logged["rollout/labelled"]) == 12.0
    assert float(logged["train/n_updates"]) > 0
    assert {
        "train/loss",
        "train/q_mean",
        "train/learning_rate",
        "rollout/epsilon",
        "rollout/ep_rew_mean",
    } <= set(logged)


def test_a_decaying_rate_is_the_released_codes_and_is_stored(tmp_path):
    rate = ExponentialRate(1e-3, 0.97, 40)
    assert rate(1.0) == 1e-3
    assert rate(0.75) == pytest.approx(1e-3 * 0.97**10)
    rates = []

    class Watch(BaseCallback):
        def _on_step(self):
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])
            return True

    agent = make_agent(learning_rate=rate).learn(40, callback=Watch())
    assert rates[-1] == pytest.approx(1e-3 * 0.97**39, rel=1e-3)  # set before the update that follows a step
    agent.save(tmp_path / "agent")
    assert SubActionDQN.load(tmp_path / "agent", device="cpu").learning_rate == rate
    with pytest.raises(ValueError, match="decay is 1.5; expected a finite number above 0 and up to 1"):
        ExponentialRate(1e-3, 1.5, 10)
