"""The small policy that looks at candidates alone, learning from a credit for each sub-action."""

import numpy as np
import pytest
import torch
from agents_fakes import CreditedEnv

from agents import CandidatePolicy, Checkpoint, SubActionDQN
from agents.dqn import CandidateNetwork


def trained(env=None, **options):
    settings = {"gamma": 0.0, "credit": "sub_rewards", "learning_rate": 2e-3, "batch_size": 64, "buffer_size": 2000}
    agent = SubActionDQN(
        "CandidatePolicy",
        env or CreditedEnv(pools=4, candidates=6, budget=16),
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


def test_it_learns_what_labels_add_and_what_that_is_worth(tmp_path):
    """Noise of deviation 1 hides in each step what class 0 is worth, and class 1 is worth nothing."""
    env = CreditedEnv(pools=4, candidates=6, budget=16)
    env.worth = 4.0
    agent = trained(env, gradient_steps=4, credit="class_rewards", exploration="episode", epsilon=0.2)
    assert (agent.policy.labelled, agent.policy.predicted) == ([2, 4], [4, 6])
    worth = agent.policy.worth.numpy()
    assert worth[0] == pytest.approx(4, abs=1.5)
    assert worth[1] < 1.5
    assert worth_of_choices(agent) > 0.85
    observation, _ = env.reset(seed=0)
    added = agent.q_net.values(torch.as_tensor(observation["candidates"])).detach().numpy()
    expected = np.maximum(observation["candidates"][..., :2] - observation["candidates"][..., 4:6], 0)
    np.testing.assert_allclose(added, expected, atol=0.3)
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], agent.predict(observation, deterministic=True)[0]
    )
    agent.policy.save(tmp_path / "policy")
    policy = CandidatePolicy.load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(observation)[0], agent.predict(observation, deterministic=True)[0])


class Stateless(CreditedEnv):
    """Training is not continued in its episodes."""

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def test_the_last_checkpoint_has_the_worth_of_all_rewards(tmp_path):
    def agent():
        settings = {"gamma": 0.0, "credit": "class_rewards", "gradient_steps": 0, "buffer_size": 400}
        env = Stateless(pools=4, candidates=6, budget=16)
        return SubActionDQN("CandidatePolicy", env, seed=0, device="cpu", **settings)

    whole = agent().learn(8, callback=Checkpoint(tmp_path, every=4))
    assert len(set(whole.policy.worth.tolist())) > 1
    resumed = agent()
    Checkpoint(tmp_path).resume(resumed)  # nothing is left to learn
    assert resumed.num_timesteps == 8
    np.testing.assert_array_equal(resumed.policy.worth.numpy(), whole.policy.worth.numpy())


def test_targets_of_a_refit_choose_by_the_worth_that_rewards_taught(monkeypatch):
    settings = {"gamma": 0.5, "credit": "class_rewards", "gradient_steps": 0, "buffer_size": 400, "worth_spread": 2.0}
    agent = SubActionDQN("CandidatePolicy", CreditedEnv(pools=4, candidates=6, budget=16), seed=0, **settings).learn(8)
    learnt, used = agent.policy.worth.tolist(), []
    monkeypatch.setattr(agent, "train", lambda *_: used.append(agent.policy.worth.tolist()))
    agent.refit(2)
    assert len(set(learnt)) > 1
    assert used == [learnt, learnt]


def test_worth_stays_the_same_for_all_classes_where_little_spread_is_believed():
    env = CreditedEnv(pools=4, candidates=6, budget=16)
    env.worth = 4.0
    options = {"credit": "class_rewards", "seed": 0, "device": "cpu"}
    worth = [
        SubActionDQN("CandidatePolicy", env, worth_spread=spread, **options).learn(40).policy.worth.numpy()
        for spread in (1e-3, 2.0)
    ]
    assert worth[0][1] == pytest.approx(worth[0][0], rel=1e-2)
    assert worth[1][1] < 0.5 * worth[1][0]


def test_columns_that_are_not_all_given_are_found():
    kwargs = {"labelled": [2, 4]}
    agent = SubActionDQN("CandidatePolicy", CreditedEnv(), credit="class_rewards", policy_kwargs=kwargs, device="cpu")
    assert (agent.policy.labelled, agent.policy.predicted) == ([2, 4], [4, 6])


def test_each_training_episode_plays_with_a_worth_of_its_own():
    agent = SubActionDQN(
        "CandidatePolicy", CreditedEnv(pools=4, budget=8), seed=0, credit="class_rewards", device="cpu"
    )
    drawn = []

    def remember(variables, _):
        drawn.append(variables["self"]._worth.copy() if not variables["dones"][0] else None)
        return True

    agent.learn(8, callback=remember)
    episodes = [draw for draw in drawn if draw is not None]  # the first of the two steps of each
    assert len(np.unique(np.stack(episodes).round(6), axis=0)) == 4
    assert (np.stack(episodes) >= 0).all()


def test_q_is_how_much_the_label_levels_rise_weighed_by_worth():
    torch.manual_seed(0)
    network = CandidateNetwork(6, labelled=(1, 4)).eval()
    network.worth.copy_(torch.tensor([1.0, 0.0, 2.0]))
    candidates = torch.rand(2, 3, 4, 6)
    shares = network.values(candidates)
    assert shares.shape == (2, 3, 4, 3)
    amounts = candidates[..., 1:4].exp()
    rise = (amounts + shares.clamp(min=0)).log() - amounts.log()
    torch.testing.assert_close(network(torch.zeros(2, 5, 6), candidates), rise[..., 0] + 2 * rise[..., 2])
    elsewhere = candidates.clone()
    elsewhere[..., 1:4] = 0.5  # what is labelled does not change what a region holds
    torch.testing.assert_close(network.values(elsewhere), shares)
    with pytest.raises(ValueError, match=r"labelled is \(4, 7\); expected None, or first and last column"):
        CandidateNetwork(6, labelled=(4, 7))
    with pytest.raises(ValueError, match="policy is 'QueryPolicy'; expected CandidatePolicy"):
        SubActionDQN("QueryPolicy", CreditedEnv(), credit="class_rewards")


def test_with_a_forecast_the_network_starts_from_it_and_learns_what_it_lacks():
    """Columns: 0 and 1 predicted, 2 and 3 labelled, 4 and 5 forecast."""
    torch.manual_seed(0)
    columns = {"predicted": (0, 2), "labelled": (2, 4), "forecast": (4, 6)}
    network = CandidateNetwork(6, **columns).eval()
    candidates = torch.tensor([[0.1, 0.6, 0.0, 0.0, 0.5, 0.2], [0.0, 0.0, 1.0, 2.0, 0.3, 0.7]])
    beyond = torch.tensor([[0.4, 0.0], [0.3, 0.7]])  # of the prediction
    torch.testing.assert_close(network.values(candidates), beyond)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(600):  # the labels hold 0.1 more of class 0 than was forecast
        batch = torch.rand(64, 6)
        target = (batch[:, 4:] - batch[:, :2]).clamp(min=0) + torch.tensor([0.1, 0.0])
        network.train()
        optimizer.zero_grad()
        network.normalized_errors(network.values(batch), target).square().mean().backward()
        optimizer.step()
    batch = torch.rand(256, 6)
    added = network.eval().values(batch) - (batch[:, 4:] - batch[:, :2]).clamp(min=0)
    torch.testing.assert_close(added.mean(dim=0), torch.tensor([0.1, 0.0]), atol=0.03, rtol=0.0)
    for wrong in ({"forecast": (4, 5)}, {"predicted": None}, {"labelled": None}):
        with pytest.raises(ValueError, match=r"forecast is \(4, [56]\); expected columns of as many classes"):
            CandidateNetwork(6, **{**columns, **wrong})


def test_an_agent_finds_the_forecast_and_plays_by_it_before_it_has_learnt_anything(tmp_path):
    layout = {"features": ["held_2", "labelled", "mean_probability", "forecast_1a2b3c4d"]}
    env = CreditedEnv(features=12, layout=layout)
    agent = SubActionDQN("CandidatePolicy", env, credit="class_rewards", seed=0, device="cpu")
    assert agent.policy.forecast == [6, 8]
    observation, _ = env.reset(seed=0)
    observation["candidates"][..., 4:6] = 0.0
    beyond = np.log1p(observation["candidates"][..., 6:8]).sum(axis=-1)
    assert agent.predict(observation, deterministic=True)[0][0] == beyond[0].argmax()
    agent.save(tmp_path / "agent")
    assert SubActionDQN.load(tmp_path / "agent", device="cpu").policy.forecast == [6, 8]
    options = {"credit": "class_rewards", "policy_kwargs": {"forecast": None}, "device": "cpu"}
    assert SubActionDQN("CandidatePolicy", env, **options).policy.forecast is None


def test_a_pool_counts_what_the_pools_before_it_may_bring():
    """Two pools offer the same: a region full of class 0, and one full of class 1, which is worth a little less."""
    env = CreditedEnv(pools=2, candidates=2)
    policy = CandidatePolicy(env.observation_space, env.action_space, lambda _: 0.1, labelled=[2, 4])
    policy.q_net.values = lambda candidates: candidates[..., :2]
    policy.worth = [1.0, 0.9]
    candidates = torch.zeros(1, 2, 2, 6)
    candidates[0, :, 0, 0] = candidates[0, :, 1, 1] = 1.0
    assert policy.choose({"candidates": candidates}, policy.worth).tolist() == [[0, 1]]
    # log(2) against 0.9 log(2), then log(3 / 2) against 0.9 log(2); worth 5 times as much, class 0 is taken twice
    assert policy.choose({"candidates": candidates}, torch.tensor([[5.0, 0.9]])).tolist() == [[0, 0]]


def test_targets_are_normalized_by_the_deviation_of_all_so_far():
    torch.manual_seed(0)
    network = CandidateNetwork(5, labelled=(3, 5)).train()
    targets = torch.rand(3, 64, 2) * torch.tensor([1.0, 0.01]) + 5
    for batch in targets:
        errors = network.normalized_errors(torch.zeros(64, 2), batch)
    deviation = targets.var(dim=1).mean(dim=0).sqrt()
    torch.testing.assert_close(errors, -targets[-1] / deviation, rtol=1e-3, atol=0.0)
    mean = network.eval().values(torch.zeros(1000, 5)).mean(dim=0)
    torch.testing.assert_close(mean, targets.mean(dim=(0, 1)), rtol=0.1, atol=0.0)


def test_values_do_not_depend_on_the_state_or_on_other_candidates():
    torch.manual_seed(0)
    network = CandidateNetwork(6).eval()
    candidates = torch.randn(2, 3, 4, 6)
    q = network(torch.zeros(2, 5, 6), candidates)
    assert q.shape == (2, 3, 4)
    torch.testing.assert_close(network(torch.ones(1, 5, 6), candidates[:1, 1:2, 2:3]), q[:1, 1:2, 2:3])
