"""The small policy that looks at candidates alone, learning from a credit for each sub-action."""

import numpy as np
import pytest
import torch
from agents_fakes import CreditedEnv

from agents import CandidatePolicy, SubActionDQN
from agents.dqn import CandidateNetwork


def trained(**options):
    settings = {"gamma": 0.0, "credit": "sub_rewards", "learning_rate": 2e-3, "batch_size": 64, "buffer_size": 2000}
    agent = SubActionDQN(
        "CandidatePolicy",
        CreditedEnv(pools=4, candidates=6, budget=16),
        seed=0,
        device="cpu",
        **{**settings, **options},
    )
    return agent.learn(400)


def worth_of_choices(agent, steps=100):
    """The mean rank of what is chosen, by worth: 0 is the worst of each pool, 1 the best."""
    env = CreditedEnv(pools=4, candidates=6, budget=4)
    ranks = []
    for seed in range(steps):
        observation, _ = env.reset(seed=seed)
        action, _ = agent.predict(observation, deterministic=True)
        worth = observation["candidates"][..., 0]
        ranks.append((worth < worth[np.arange(4), action][:, None]).sum(axis=1) / 5)
    return float(np.mean(ranks))


def test_it_learns_from_credit_what_the_shared_reward_does_not_say(tmp_path):
    agent = trained(gradient_steps=4)
    assert worth_of_choices(agent) > 0.9
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", device="cpu")
    assert isinstance(loaded.policy, CandidatePolicy)
    assert worth_of_choices(loaded) == worth_of_choices(agent)


def test_it_learns_what_regions_hold_and_weighs_it_by_what_is_needed(tmp_path):
    agent = trained(gradient_steps=4, credit="class_rewards")
    assert agent.policy.need == [2, 4]
    env = CreditedEnv(pools=4, candidates=6, budget=4)
    ranks = []
    for seed in range(100):
        observation, _ = env.reset(seed=seed)
        for needed in ([1.0, 0.0], [0.0, 1.0]):  # other needs than in training, where they were random
            candidates = observation["candidates"].copy()
            candidates[..., 2:4] = needed
            action, _ = agent.predict({**observation, "candidates": candidates}, deterministic=True)
            worth = candidates[..., :2] @ np.array(needed)
            ranks.append((worth < worth[np.arange(4), action][:, None]).sum(axis=1) / 5)
    assert np.mean(ranks) > 0.85
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], agent.predict(observation, deterministic=True)[0]
    )
    agent.policy.save(tmp_path / "policy")
    policy = CandidatePolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(observation)[0], agent.predict(observation, deterministic=True)[0])


def test_q_is_the_sum_of_the_values_of_classes_weighed_by_need():
    torch.manual_seed(0)
    network = CandidateNetwork(6, need=(1, 4)).eval()
    candidates = torch.rand(2, 3, 4, 6)
    values = network.values(candidates)
    assert values.shape == (2, 3, 4, 3)
    expected = np.einsum("bknc,bknc->bkn", values.detach(), candidates[..., 1:4])
    np.testing.assert_allclose(network(torch.zeros(2, 5, 6), candidates).detach(), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"need is \(4, 7\); expected None, or first and last column"):
        CandidateNetwork(6, need=(4, 7))
    with pytest.raises(ValueError, match="policy is 'QueryPolicy'; expected CandidatePolicy"):
        SubActionDQN("QueryPolicy", CreditedEnv(), credit="class_rewards")


def test_values_do_not_depend_on_the_state_or_on_other_candidates():
    torch.manual_seed(0)
    network = CandidateNetwork(6).eval()
    candidates = torch.randn(2, 3, 4, 6)
    q = network(torch.zeros(2, 5, 6), candidates)
    assert q.shape == (2, 3, 4)
    torch.testing.assert_close(network(torch.ones(1, 5, 6), candidates[:1, 1:2, 2:3]), q[:1, 1:2, 2:3])
