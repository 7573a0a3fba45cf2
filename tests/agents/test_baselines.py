import itertools
import pickle

import numpy as np
import pytest
from agents_fakes import FakeRegionEnv
from fakes import closed_form_env, same
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import BALDPolicy, EntropyPolicy, GreedyOraclePolicy, RareClassPolicy, ScorePolicy, UniformPolicy
from al_seg_env import Entropy


def test_uniform_is_uniform_and_seeded():
    observation = {"candidates": np.zeros((5000, 3, 4, 6), np.float32)}
    actions, state = UniformPolicy(seed=1).predict(observation, state="kept")
    assert state == "kept"
    assert actions.shape == (5000, 3)
    assert actions.dtype == np.int64
    for pool in actions.T:
        np.testing.assert_allclose(np.bincount(pool, minlength=4) / 5000, 1 / 4, atol=0.03)
    np.testing.assert_array_equal(actions, UniformPolicy(seed=1).predict(observation)[0])
    assert (actions != UniformPolicy(seed=2).predict(observation)[0]).any()


def test_scores_by_hand():
    scores = np.array([[0.1, 0.9, 0.3], [0.7, 0.2, 0.7]], np.float32)
    actions, _ = ScorePolicy("score_margin").predict({"score_margin": scores})
    assert actions.tolist() == [1, 0]
    assert actions.dtype == np.int64
    batch, _ = EntropyPolicy().predict({"score_entropy": np.stack([scores, scores[:, ::-1]])})
    assert batch.tolist() == [[1, 0], [1, 0]]
    assert BALDPolicy().predict({"score_bald": scores})[0].tolist() == [1, 0]


def test_missing_scores_say_how_to_get_them():
    observation, info = FakeRegionEnv().reset(seed=0)
    with pytest.raises(ValueError, match=r"scores=\('bald',\)"):
        BALDPolicy().predict(observation)
    with pytest.raises(ValueError, match="obs, info"):
        UniformPolicy().predict((observation, info))
    with pytest.raises(ValueError, match="'candidates'"):
        UniformPolicy().predict({})


@pytest.mark.parametrize("policy", [UniformPolicy(seed=0), EntropyPolicy()], ids=["uniform", "entropy"])
def test_single_observation_chooses_for_each_pool(policy):
    env = FakeRegionEnv(scores=True)
    observation, _ = env.reset(seed=0)
    actions, _ = policy.predict(observation, deterministic=True)
    assert actions.shape == (3,)
    assert env.action_space.contains(actions)
    pickle.loads(pickle.dumps(policy)).predict(observation)


def test_evaluate_policy_takes_them():
    env = DummyVecEnv([lambda: Monitor(FakeRegionEnv(scores=True)) for _ in range(2)])
    env.seed(0)
    uniform, _ = evaluate_policy(UniformPolicy(seed=0), env, n_eval_episodes=20)
    entropy, _ = evaluate_policy(EntropyPolicy(), env, n_eval_episodes=20)
    # Four steps an episode; here the score is the worth: 1/2 on average, the best of 4 candidates 4/5.
    assert uniform == pytest.approx(2.0, abs=0.2)
    assert entropy == pytest.approx(3.2, abs=0.2)


def test_rare_class_policy_takes_the_privileged_score():
    scores = np.array([[0.1, 0.9], [0.5, 0.2]])
    assert RareClassPolicy().predict({"score_privileged_rarity": scores})[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"scores=\('privileged_rarity',\)"):
        RareClassPolicy().predict({"state": scores})


def test_the_greedy_oracle_finds_the_choice_that_gains_most_and_leaves_the_environment_alone():
    env, untouched = closed_form_env(budget=8), closed_form_env(budget=8)
    for one in (env, untouched):
        observation, info = one.reset(seed=0)
    policy = GreedyOraclePolicy(env, draws=1, per_pool=4, seed=0)
    terminated = False
    while not terminated:  # the last step counts but two of the three pools
        active = info["next_active"]
        action, _ = policy.predict(observation)
        all_gains = []
        for choice in itertools.product(range(4), repeat=3):
            fork = untouched.fork()
            all_gains.append(fork.step(np.array(choice))[1])
        observation, reward, terminated, _, info = env.step(action)
        assert same(untouched.step(action)[1], reward)
        assert reward == max(policy.gains)
        assert reward >= np.quantile(all_gains, 0.9)  # by itself a search pool by pool may miss the very best
        assert len(policy.gains) == 1 + 3 * active


def test_the_greedy_oracle_is_at_least_as_good_as_what_is_suggested():
    env = closed_form_env(scores=[Entropy()])
    observation, _ = env.reset(seed=1)
    greedy = GreedyOraclePolicy(env, draws=3, suggestions=[EntropyPolicy()], seed=0)
    action, _ = greedy.predict(observation)
    assert greedy.gains[0] == env.fork().step(EntropyPolicy().predict(observation)[0])[1]
    assert env.step(action)[1] == max(greedy.gains)
    assert len(greedy.gains) == 4


def test_the_greedy_oracle_says_what_it_needs():
    with pytest.raises(ValueError, match="no get_state and no set_state and no fork"):
        GreedyOraclePolicy(FakeRegionEnv())
    with pytest.raises(ValueError, match="at least one choice"):
        GreedyOraclePolicy(closed_form_env(), draws=0)
