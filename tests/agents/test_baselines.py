import itertools
import pickle

import numpy as np
import pytest
from agents_fakes import FakeRegionEnv
from fakes import closed_form_env, same
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import (
    BALDPolicy,
    EntropyPolicy,
    ForegroundPolicy,
    GreedyOraclePolicy,
    LinearPolicy,
    PowerScorePolicy,
    RareClassPolicy,
    ScorePolicy,
    StratifiedEntropyPolicy,
    UniformPolicy,
)
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


def test_power_scores_draw_in_proportion_to_a_power_of_the_score():
    scores = np.broadcast_to(np.array([1.0, 2.0, 0.0, 3.0], np.float32), (40000, 4))
    policy = PowerScorePolicy("score_margin", power=2, seed=0)
    shares = np.bincount(policy.predict({"score_margin": scores})[0], minlength=4) / 40000
    np.testing.assert_allclose(shares, np.array([1, 4, 0, 9]) / 14, atol=0.01)
    again = PowerScorePolicy("score_margin", power=2, seed=0).predict({"score_margin": scores[:9]})[0]
    np.testing.assert_array_equal(
        again, PowerScorePolicy("score_margin", power=2, seed=0).predict({"score_margin": scores[:9]})[0]
    )


def test_foreground_aware_random_choice():
    scores = np.broadcast_to(np.array([0.0, 0.2, 0.0, 0.9], np.float32), (30000, 4))
    shares = np.bincount(ForegroundPolicy(share=0.5, seed=0).predict({"score_foreground": scores})[0], minlength=4)
    # Half of the pools are drawn from regions 1 and 3 alone, the others from all four.
    np.testing.assert_allclose(shares / 30000, [1 / 8, 3 / 8, 1 / 8, 3 / 8], atol=0.01)
    nothing = np.zeros((30000, 4), np.float32)
    shares = np.bincount(ForegroundPolicy(seed=0).predict({"score_foreground": nothing})[0], minlength=4)
    np.testing.assert_allclose(shares / 30000, 1 / 4, atol=0.01)


def test_stratified_entropy_lets_regions_compete_class_by_class():
    # Columns 1 and 2 hold the entropy of two classes: region 0 leads in the first, region 1 in the other and in sum.
    candidates = np.broadcast_to(
        np.array([[9, 0.5, 0.1, 0], [9, 0.02, 0.7, 0], [9, 0, 0, 0]], np.float32), (9000, 3, 4)
    )
    policy = StratifiedEntropyPolicy(slice(1, 4), share=1.0, power=1e6, seed=0)
    shares = np.bincount(policy.predict({"candidates": candidates})[0], minlength=3) / 9000
    np.testing.assert_allclose(shares, [1 / 2, 1 / 2, 0], atol=0.03)  # the third class is not seen, and not drawn
    whole = StratifiedEntropyPolicy(slice(1, 4), share=0.0, power=1e6, seed=0)
    assert set(whole.predict({"candidates": candidates})[0]) == {1}


def test_a_fitted_linear_policy_is_a_ridge_regression():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 4)) * [1, 10, 0, 0.1] + 3  # the third does not vary
    worth = features @ [2, -1, 0, 5] + rng.normal(size=500)
    policy = LinearPolicy.fitted(features, worth, penalty=0.5)
    x = (features - features.mean(axis=0)) / np.where(features.std(axis=0) > 0, features.std(axis=0), 1)
    ridge = np.linalg.lstsq(  # the penalty as further rows of data
        np.vstack([x, np.sqrt(0.5 * 500) * np.eye(4)]), np.append(worth - worth.mean(), np.zeros(4)), rcond=None
    )[0]
    np.testing.assert_allclose(policy.coefficients * features.std(axis=0), ridge, rtol=1e-9, atol=1e-9)
    candidates = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = (candidates.astype(np.float64) @ policy.coefficients).argmax(axis=-1)
    np.testing.assert_array_equal(policy.predict({"candidates": candidates})[0], expected)
    with pytest.raises(ValueError, match="coefficients"):
        LinearPolicy([np.nan])


def test_missing_scores_say_how_to_get_them():
    observation, info = FakeRegionEnv().reset(seed=0)
    with pytest.raises(ValueError, match=r"scores=\['bald'\]; a score's key is 'score_bald'"):
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
    with pytest.raises(ValueError, match=r"scores=\['privileged_rarity'\]"):
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


def test_the_greedy_oracle_counts_in_regions():
    with pytest.raises(ValueError, match="budget_unit is 'pixels'; expected 'regions'"):
        GreedyOraclePolicy(closed_form_env(budget=1000, budget_unit="pixels"))


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
