import copy
import itertools
import os

import numpy as np
import pytest
import torch
from agents_fakes import CreditedEnv, FakeRegionEnv
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents import SubActionDQN
from agents.dqn import DecomposedReplayBuffer, td_targets
from agents.dqn.saving import load_replay, save_replay
from al_seg_env.storage import load_tree, save_tree, tree_digest

PARTS = ("state", "candidates", "similarity")


class Reference:
    """All that ever happened in one lane, in a list: steps, and None for an observation where none starts."""

    def __init__(self, n_slots):
        self.n_slots = n_slots
        self.entries = []  # steps and, last, what followed; None for an observation no step starts from
        self.open = False

    def add(self, step, terminated, truncated, broken):
        if self.entries and self.open and not broken:
            self.entries.pop()  # what followed the last step is what this one starts from
        self.entries += [step, None]
        self.open = not truncated

    def steps(self):
        return [entry for entry in self.entries[-self.n_slots :] if entry is not None]


def run(buffer, env, n_steps, seed, n_envs=1, p_truncated=0.15, p_broken=0.1):
    """Random episodes through ``add``, as Stable-Baselines3 calls it; returns the reference of each lane."""
    rng = np.random.default_rng(seed)
    envs = [copy.deepcopy(env) for _ in range(n_envs)]
    lanes = [Reference(buffer.n_slots) for _ in range(n_envs)]
    now = [e.reset(seed=seed + i)[0] for i, e in enumerate(envs)]
    broken = [False] * n_envs
    for _ in range(n_steps):
        actions = np.stack([e.action_space.sample() for e in envs])
        after, rewards, dones, infos, starts = [], [], [], [], []
        for i, e in enumerate(envs):
            observation, reward, terminated, _, info = e.step(actions[i])
            truncated = not terminated and rng.random() < p_truncated
            info["TimeLimit.truncated"] = truncated
            step = {
                "obs": now[i],
                "action": actions[i],
                "reward": np.float32(reward),
                "terminated": terminated,
                "next": observation,
                "n": len(info["chosen"]) if e.report else e.pools,
                "n_next": info["next_active"] if e.report else e.pools,
            }
            lanes[i].add(step, terminated, truncated, broken[i])
            done = terminated or truncated
            broken[i] = not done and rng.random() < p_broken  # somebody resets in the midst of an episode
            starts.append(e.reset()[0] if done or broken[i] else observation)
            after.append(observation)
            rewards.append(reward)
            dones.append(done)
            infos.append(info)
        stacked = [{name: np.stack([o[name] for o in obs]) for name in PARTS} for obs in (now, after)]
        buffer.add(stacked[0], stacked[1], actions, np.array(rewards), np.array(dones), infos)
        # The arrays belong to the caller, who may well write over them.
        for observation in stacked:
            for part in observation.values():
                part[:] = -1.0
        now = starts
    return lanes


def expected_rows(lanes, n_steps=1, gamma=0.99):
    """Every decomposed transition as a flat row of numbers."""
    rows = []
    gamma = np.float32(gamma)
    for lane in lanes:
        entries = lane.entries[-lane.n_slots :]
        for place, step in enumerate(entries):
            if step is None:
                continue
            ahead, reward, discount = [step], step["reward"], gamma
            for later in entries[place + 1 : place + n_steps]:
                if later is None or ahead[-1]["terminated"]:
                    break
                ahead.append(later)
                reward, discount = reward + discount * later["reward"], discount * gamma
            end = ahead[-1]["terminated"]
            for k in range(step["n"]):
                a, next_k = step["action"][k], 0 if end else k % ahead[-1]["n_next"]
                zero, after = 0.0 if end else 1.0, ahead[-1]["next"]
                rows.append(
                    [
                        step["obs"]["state"],
                        step["obs"]["candidates"][k, a],
                        step["obs"]["similarity"][k, a],
                        reward,
                        discount,
                        end,
                        after["state"] * zero,
                        after["candidates"][next_k] * zero,
                        after["similarity"][next_k] * zero,
                    ]
                )
    return [np.concatenate([np.ravel(np.asarray(part, np.float32)) for part in row]) for row in rows]


def sampled_rows(batch):
    n, copies = len(batch.reward), batch._asdict()
    for states, state_of in (("state", "state_of"), ("next_state", "next_state_of")):
        copies[states] = copies[states][copies.pop(state_of)]
    return torch.cat([part.reshape(n, -1).float() for part in copies.values()], dim=1).numpy()


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buffer_size", [1, 9, 31])
@pytest.mark.parametrize(("n_steps", "gamma"), [(1, 0.99), (2, 0.9), (5, 1.0)])
def test_returns_exactly_the_stored_transitions(n_envs, seed, buffer_size, n_steps, gamma):
    env = FakeRegionEnv(budget=11)  # 11 = 3 + 3 + 3 + 2: in the last step n < K
    settings = {"n_envs": n_envs, "seed": seed, "n_steps": n_steps, "gamma": gamma}
    buffer = DecomposedReplayBuffer(buffer_size, env.observation_space, env.action_space, "cpu", **settings)
    for played in (1, 3, 40):
        buffer.reset()
        lanes = run(buffer, env, played, seed, n_envs)
        expected = {row.tobytes() for row in expected_rows(lanes, n_steps, gamma)}
        assert buffer.size() == len(expected_rows(lanes))
        drawn = sampled_rows(buffer.sample(40 * len(expected)))
        assert {row.tobytes() for row in drawn} == expected


def test_holds_the_steps_that_the_size_allows():
    env = FakeRegionEnv(budget=12)
    buffer = DecomposedReplayBuffer(16, env.observation_space, env.action_space, "cpu")
    run(buffer, env, 50, 0, p_truncated=0.0, p_broken=0.0)
    assert buffer.size() == 6 * 3  # ceil(16 / 3) steps of K = 3


def test_environments_that_report_nothing():
    env = FakeRegionEnv(report=False, budget=12)
    buffer = DecomposedReplayBuffer(30, env.observation_space, env.action_space, "cpu", seed=0)
    lanes = run(buffer, env, 3, 0)
    assert buffer.size() == 9
    drawn = {row.tobytes() for row in sampled_rows(buffer.sample(400))}
    assert drawn == {row.tobytes() for row in expected_rows(lanes)}


def test_next_pool_where_fewer_count():
    env = FakeRegionEnv(budget=5)  # 3 + 2
    buffer = DecomposedReplayBuffer(3, env.observation_space, env.action_space, "cpu", seed=0)
    lanes = run(buffer, env, 1, 0, p_truncated=0.0, p_broken=0.0)
    after = lanes[0].steps()[0]["next"]["candidates"]
    assert not after[2].any()
    batch = buffer.sample(100)
    pools = {pool.numpy().tobytes() for pool in batch.next_candidates}
    assert pools == {after[0].tobytes(), after[1].tobytes()}  # sub-action 2 takes pool 2 mod 2 = 0


def test_pairs_are_drawn_uniformly_and_seeded():
    env = FakeRegionEnv(budget=8)
    buffers = [
        DecomposedReplayBuffer(200, env.observation_space, env.action_space, "cpu", n_envs=2, seed=3) for _ in range(2)
    ]
    for buffer in buffers:
        env.action_space.seed(0)
        run(buffer, env, 20, 0, n_envs=2)
    n_pairs, n_draws = buffers[0].size(), 40_000
    first, second = (sampled_rows(buffer.sample(n_draws)) for buffer in buffers)
    np.testing.assert_array_equal(first, second)
    _, counts = np.unique(first[:, :-1], axis=0, return_counts=True)
    assert len(counts) == n_pairs
    expected = n_draws / n_pairs
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (n_pairs - 1)) < 5 * np.sqrt(2 * (n_pairs - 1))


def test_global_random_state_is_left_alone():
    env = FakeRegionEnv()
    buffer = DecomposedReplayBuffer(9, env.observation_space, env.action_space, "cpu", seed=0)
    run(buffer, env, 3, 0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    buffer.sample(10)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_memory_at_cityscapes_size():
    pools, candidates, regions, features, similarity = 256, 20, 1280, 19 + 192, 64
    unbounded = {"low": -np.inf, "high": np.inf, "dtype": np.float32}
    observation_space = spaces.Dict(
        state=spaces.Box(shape=(regions, features), **unbounded),
        candidates=spaces.Box(shape=(pools, candidates, features), **unbounded),
        similarity=spaces.Box(shape=(pools, candidates, similarity), **unbounded),
        score_entropy=spaces.Box(shape=(pools, candidates), **unbounded),
    )
    buffer = DecomposedReplayBuffer(3200, observation_space, spaces.MultiDiscrete([candidates] * pools), "cpu")
    assert buffer.steps_per_lane == 13
    assert set(buffer.stored) == set(PARTS)
    assert buffer.nbytes < 200e6


def test_refuses_counts_that_cannot_be():
    env = FakeRegionEnv()
    observation = {name: part[None] for name, part in env.reset(seed=0)[0].items()}
    step = (observation, observation, np.zeros((1, 3), int), np.zeros(1), np.zeros(1, bool))
    buffer = DecomposedReplayBuffer(9, env.observation_space, env.action_space, "cpu")
    with pytest.raises(ValueError, match="no transitions"):
        buffer.sample(2)
    with pytest.raises(ValueError, match="names 4 regions"):
        buffer.add(*step, [{"chosen": (1, 2, 3, 4)}])
    with pytest.raises(ValueError, match="next_active"):
        buffer.add(*step, [{"next_active": 0}])


@pytest.mark.filterwarnings("error")
def test_a_malformed_replay_is_refused_or_drawn_from(tmp_path):
    """Each value of a stored replay in turn is another; a load that is refused changes nothing."""
    env = FakeRegionEnv()
    buffer = DecomposedReplayBuffer(9, env.observation_space, env.action_space, "cpu", seed=0)
    run(buffer, env, 20, 0)
    save_replay(tmp_path / "replay", buffer)
    tree = load_tree(tmp_path / "replay.safetensors", "replay")
    odd = [
        None,
        0,
        -1,
        "x",
        [],
        {},
        np.zeros(0),
        np.zeros((4, 1)),
        np.full((4, 1), 99),
        np.full((4, 1), -1),
        np.array(3),
    ]
    loaded, refused = 0, 0
    zeros = [(key, np.zeros_like(value)) for key, value in tree.items() if isinstance(value, np.ndarray)]
    for key, value in [*itertools.product([*tree, "another"], odd), *zeros]:
        save_tree(tmp_path / "odd.safetensors", "replay", {**tree, key: value})
        kept = tree_digest(buffer.state_dict())
        try:
            load_replay(tmp_path / "odd", buffer)
        except ValueError as error:
            assert str(tmp_path / "odd.safetensors") in str(error)  # noqa: PT017
            assert tree_digest(buffer.state_dict()) == kept
            refused += 1
        else:
            if buffer.size():
                buffer.sample(20)
            loaded += 1
            load_replay(tmp_path / "replay", buffer)
    assert loaded > 0
    assert refused > 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_envs", [0, -1, 2.5, "1", None, [], 2**60])
def test_an_agents_file_with_an_impossible_number_of_environments_is_refused(n_envs, tmp_path):
    agent = SubActionDQN("QueryPolicy", FakeRegionEnv(), seed=0, device="cpu")
    agent.save(tmp_path / "agent.safetensors")
    tree = load_tree(tmp_path / "agent.safetensors", "agent")
    save_tree(tmp_path / "agent.safetensors", "agent", {**tree, "n_envs": n_envs})
    with pytest.raises(ValueError, match="agent.safetensors"):
        SubActionDQN.load(tmp_path / "agent", device="cpu")


def test_a_path_in_a_file_is_not_followed(tmp_path):
    """Stable-Baselines3 takes a text in place of parameters for the name of a file that it unpickles."""
    agent = SubActionDQN("QueryPolicy", FakeRegionEnv(), seed=0, device="cpu")
    OffPolicyAlgorithm.save(agent, tmp_path / "parameters.zip")
    agent.save(tmp_path / "agent.safetensors")
    tree = load_tree(tmp_path / "agent.safetensors", "agent")
    odd = {**tree, "parameters": str(tmp_path / "parameters.zip")}
    save_tree(tmp_path / "agent.safetensors", "agent", odd)
    with pytest.raises(ValueError, match="agent.safetensors: the parameters are 'str'; expected a dict"):
        SubActionDQN.load(tmp_path / "agent", device="cpu")


def test_td_targets_by_hand():
    reward = torch.tensor([1.0, 2.0, 3.0])
    terminated = torch.tensor([False, False, True])
    q = torch.tensor([[5.0, 7.0], [1.0, 0.0], [9.0, torch.nan]])  # Q(s', .; phi)
    q_target = torch.tensor([[4.0, 2.0], [10.0, 20.0], [9.0, torch.nan]])  # Q(s', .; phi')
    # Chosen by phi': candidates 0 and 1, which phi values at 5 and 0.
    paper = td_targets(reward, terminated, q, q_target, discount=0.5, rule="paper")
    assert paper.tolist() == [1.0 + 0.5 * 5.0, 2.0 + 0.5 * 0.0, 3.0]
    # Chosen by phi: candidates 1 and 0, which phi' values at 2 and 10.
    usual = td_targets(reward, terminated, q, q_target, discount=0.5, rule="van_hasselt")
    assert usual.tolist() == [1.0 + 0.5 * 2.0, 2.0 + 0.5 * 10.0, 3.0]
    with pytest.raises(ValueError, match="td3"):
        td_targets(reward, terminated, q, q_target, 0.5, rule="td3")


def test_credit_of_sub_actions_is_their_own_reward():
    env, options = CreditedEnv(budget=8), {"credit": "sub_rewards", "gamma": 0.0}
    buffer = DecomposedReplayBuffer(30, env.observation_space, env.action_space, seed=0, **options)
    run(buffer, env, 40, seed=0, p_truncated=0.0, p_broken=0.0)
    batch = buffer.sample(200)
    np.testing.assert_array_equal(batch.reward, batch.chosen[:, 0])  # feature 0 is the region's worth
    copied = DecomposedReplayBuffer(30, env.observation_space, env.action_space, **options)
    copied.load_state_dict(buffer.state_dict())
    np.testing.assert_array_equal(copied.sample(200).reward, buffer.sample(200).reward)


def test_returns_of_a_sub_action_take_those_of_the_step_that_counts_fewer():
    """The budget ends in the midst of the last step: beyond its sub-actions, those before them take part again."""
    env = CreditedEnv(budget=8)  # steps of 3, 3 and 2
    buffer = DecomposedReplayBuffer(
        9, env.observation_space, env.action_space, seed=0, credit="sub_rewards", gamma=0.5, n_steps=3
    )
    observation, _ = env.reset(seed=0)
    own, action = [], np.zeros(3, np.int64)
    for done in (False, False, True):
        following, reward, _, _, info = env.step(action)
        buffer.add(*(add_dimension(part) for part in (observation, following, action, reward, done)), [info])
        own.append(np.array(info["sub_rewards"]))
        observation = following
    assert [len(rewards) for rewards in own] == [3, 3, 2]
    last = own[2][[0, 1, 0]]
    expected = {*(own[0] + 0.5 * own[1] + 0.25 * last), *(own[1] + 0.5 * last), *own[2]}
    np.testing.assert_allclose(sorted(set(buffer.sample(500).reward.tolist())), sorted(expected), rtol=1e-6)


def test_td_targets_of_classes_value_apart_what_q_chooses():
    reward = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    terminated = torch.tensor([False, True])
    need = torch.tensor([1.0, 10.0])
    values = (
        torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(2, 1, 1),
        torch.tensor([[[9.0, 0.5], [9.0, 0.1]]]).repeat(2, 1, 1),
    )
    q, q_target = (each @ need for each in values)  # phi prefers candidate 1, phi' candidate 0
    paper = td_targets(reward, terminated, q, q_target, 0.5, "paper", values)
    torch.testing.assert_close(paper, torch.tensor([[1 + 0.5 * 1, 2.0], [5.0, 6.0]]))
    usual = td_targets(reward, terminated, q, q_target, 0.5, "van_hasselt", values)
    torch.testing.assert_close(usual, torch.tensor([[1 + 0.5 * 9, 2 + 0.5 * 0.1], [5.0, 6.0]]))
    # Weighed by need, the targets of classes are those of Q, where need is the same in both steps.
    scalar = td_targets(reward @ need, terminated, q, q_target, 0.5, "paper")
    torch.testing.assert_close(paper @ need, scalar)


def test_credit_of_classes_is_a_vector_for_each_sub_action():
    env, options = (
        CreditedEnv(budget=8),
        {"credit": "class_rewards", "gamma": 0.5, "n_steps": 2, "labelled": (2, 4), "predicted": (4, 6)},
    )
    buffer = DecomposedReplayBuffer(30, env.observation_space, env.action_space, seed=0, **options)
    run(buffer, env, 40, seed=0, p_truncated=0.0, p_broken=0.0)
    assert buffer.sample(200).reward.shape == (200, 2)
    one_step = DecomposedReplayBuffer(30, env.observation_space, env.action_space, seed=0, **{**options, "n_steps": 1})
    run(one_step, env, 40, seed=0, p_truncated=0.0, p_broken=0.0)
    batch = one_step.sample(200)
    # Features 0 and 1 are what a region holds, features 4 and 5 what was predicted of it.
    np.testing.assert_array_equal(batch.reward, (batch.chosen[:, :2] - batch.chosen[:, 4:]).clamp(min=0))
    wrong = DecomposedReplayBuffer(30, env.observation_space, env.action_space, **{**options, "labelled": (2, 6)})
    with pytest.raises(ValueError, match=r"class_rewards'\] is of shape \(3, 2\); expected \(3, 4\)"):
        run(wrong, env, 4, seed=0, p_truncated=0.0, p_broken=0.0)


def test_beginnings_of_episodes_sum_what_their_steps_brought():
    env = CreditedEnv(budget=8)
    options = {"credit": "class_rewards", "labelled": (2, 4), "predicted": (4, 6)}
    # Five steps of three sub-actions: the ring has gone round when the third episode ends.
    buffer = DecomposedReplayBuffer(15, env.observation_space, env.action_space, seed=0, **options)
    rng, expected = np.random.default_rng(0), []
    for episode in range(3):
        observation, _ = env.reset(seed=episode)
        done, amounts, total, steps, added = False, np.ones(2), 0.0, 0, np.zeros(2)
        while not done:
            action = rng.integers(4, size=3)
            offered = observation["candidates"][np.arange(3), action]
            following, reward, done, _, info = env.step(action)
            buffer.add(*(add_dimension(part) for part in (observation, following, action, reward, done)), [info])
            held = info["class_rewards"]
            new = np.maximum(held - offered[: len(held), 4:], 0).sum(axis=0)
            added = added + np.log1p(new / amounts)
            observation, amounts = following, amounts + held.sum(axis=0)
            total, steps = total + reward, steps + 1
            expected.append((*added, total, steps))
    added, returns, steps = buffer.beginnings()
    found = np.column_stack([added, returns, steps])
    np.testing.assert_allclose(found[np.argsort(found[:, 2])], sorted(expected[-5:], key=lambda row: row[2]), rtol=1e-5)
    copied = DecomposedReplayBuffer(15, env.observation_space, env.action_space, **options)
    copied.load_state_dict(buffer.state_dict())
    np.testing.assert_array_equal(copied.beginnings()[1], returns)


def test_an_early_reset_begins_an_episode_anew():
    env = CreditedEnv(budget=12)
    buffer = DecomposedReplayBuffer(
        30, env.observation_space, env.action_space, credit="class_rewards", labelled=(2, 4), predicted=(4, 6)
    )
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        for _ in range(2):
            action = np.zeros(3, np.int64)
            following, reward, done, _, info = env.step(action)
            buffer.add(*(add_dimension(part) for part in (observation, following, action, reward, done)), [info])
            observation = following
    assert buffer.beginnings()[2].tolist() == [1, 2, 1, 2]


def add_dimension(part):
    return {name: each[None] for name, each in part.items()} if isinstance(part, dict) else np.asarray(part)[None]


def test_credit_that_is_not_told_is_refused():
    env = FakeRegionEnv()
    buffer = DecomposedReplayBuffer(30, env.observation_space, env.action_space, credit="sub_rewards")
    with pytest.raises(
        ValueError, match=r"info\['sub_rewards'\] is of shape \(0,\); expected \(3,\).*: make the environment"
    ):
        run(buffer, env, 1, seed=0)
    with pytest.raises(ValueError, match="credit is 'mine'"):
        DecomposedReplayBuffer(30, env.observation_space, env.action_space, credit="mine")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_does_not_write_into_the_replay():
    env = FakeRegionEnv()
    stored = DecomposedReplayBuffer(8, env.observation_space, env.action_space).stored
    if (child := os.fork()) == 0:
        for array in stored.values():
            array[:] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert set(stored) >= {"state", "candidates"}
    for array in stored.values():
        np.testing.assert_array_equal(array, 0)
