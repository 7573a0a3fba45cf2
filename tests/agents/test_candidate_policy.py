"""The small policy that looks at candidates alone, learning from a credit for each sub-action."""

import numpy as np
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


def test_values_do_not_depend_on_the_state_or_on_other_candidates():
    torch.manual_seed(0)
    network = CandidateNetwork(6).eval()
    candidates = torch.randn(2, 3, 4, 6)
    q = network(torch.zeros(2, 5, 6), candidates)
    assert q.shape == (2, 3, 4)
    torch.testing.assert_close(network(torch.ones(1, 5, 6), candidates[:1, 1:2, 2:3]), q[:1, 1:2, 2:3])
