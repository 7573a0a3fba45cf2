import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from agents.dqn import QueryNetwork, QueryPolicy
from agents.dqn.network import QueryLayer

B, S, F, D, K, N = 2, 5, 6, 4, 3, 7


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.rand(B, S, F, generator=rng),
        torch.rand(B, K, N, F, generator=rng),
        torch.rand(B, K, N, D, generator=rng),
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = QueryNetwork(S, F, D)
    network.train()
    for seed in range(5):  # so that the batch-norm statistics aren't those of a new network
        network(*inputs(seed))
    return network.eval()


def test_shapes(network):
    state, candidates, similarity = inputs()
    assert network.q_values(state, candidates, similarity).shape == (B, K, N)
    assert network(state, candidates[:, 0], similarity[:, 0]).shape == (B, N)
    assert network(state, candidates[:, 0, 0], similarity[:, 0, 0]).shape == (B,)


def test_layers_are_those_of_figure_b1(network):
    def widths(module):
        return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]

    assert widths(network.region_path) == [(F, 256), (256, 128), (128, 1)]
    assert widths(network.state_layer) == [(S, 128)]
    assert widths(network.action_path) == [(F, 512), (512, 256), (256, 128)]
    assert widths(network.score_layer) == [(256, 1)]
    assert widths(network.gate_layer) == [(D, 1)]
    layers = [m for m in network.modules() if isinstance(m, QueryLayer)]
    assert len(layers) == 9
    for layer in layers:
        assert all(map(isinstance, layer, (nn.BatchNorm1d, nn.ReLU, nn.Linear)))
        x = torch.rand(4, layer[0].num_features)
        assert torch.equal(layer(x), nn.Sequential(*layer)(x))


def test_state_computed_once_equals_state_repeated_for_each_candidate(network):
    state, candidates, similarity = inputs()
    naive = torch.empty(B, K, N)
    for b in range(B):
        for k in range(K):
            for n in range(N):
                naive[b, k, n] = network(state[b : b + 1], candidates[b : b + 1, k, n], similarity[b : b + 1, k, n])[0]
    torch.testing.assert_close(network(state, candidates, similarity), naive)
    assert naive.std() > 0


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=12),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@example([0] * 12, True, 0)  # all rows share a state
@example([3, 1], True, 0)  # each has its own, and two states are of none
def test_shared_states_are_those_of_a_batch_with_copies(rows, training, seed):
    torch.manual_seed(seed)
    shared, copied = QueryNetwork(S, F, D).double(), QueryNetwork(S, F, D).double()
    for parameter in shared.parameters():  # so that no unit is exactly zero, where the gradient of ReLU has a step
        nn.init.normal_(parameter)
    copied.load_state_dict(shared.state_dict())
    shared.train(training)
    copied.train(training)
    state_of, n = torch.tensor(rows), len(rows)
    state = torch.rand(5, S, F, dtype=torch.double)
    candidates, similarity, wanted = (torch.rand(n, *shape, dtype=torch.double) for shape in ((F,), (D,), ()))
    values = shared(state, candidates, similarity, state_of), copied(state[state_of], candidates, similarity)
    torch.testing.assert_close(*values)
    for each in values:
        (each - wanted).square().mean().backward()
    for ours, theirs in zip(shared.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(shared.buffers(), copied.buffers(), strict=True):  # the running statistics
        torch.testing.assert_close(ours, theirs)


def test_state_path_sees_each_state_once(network, monkeypatch):
    rows = []
    network.region_path[0].register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    state, candidates, similarity = inputs()
    network(state, candidates, similarity)
    network(state[:1], candidates, similarity, torch.zeros(B, dtype=torch.int64))
    assert rows == [B * S, S]


def test_gate_scales_the_score(network):
    state, candidates, similarity = inputs()
    linear = network.gate_layer[2]
    values = []
    for bias in (0.0, 50.0, -50.0):
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, bias)
        values.append(network(state, candidates, similarity))
    half, whole, none = values
    torch.testing.assert_close(half, whole / 2)  # sigmoid(0) = 1/2
    torch.testing.assert_close(none, torch.zeros_like(none))


def test_no_similarity_no_gate():
    network = QueryNetwork(S, F, 0).eval()
    state, candidates, similarity = inputs()
    assert network.gate_layer is None
    assert network(state, candidates).shape == (B, K, N)
    with pytest.raises(ValueError, match="D = 0"):
        network(state, candidates, similarity)
    with pytest.raises(ValueError, match="missing"):
        QueryNetwork(S, F, D)(state, candidates)


def make_policy(**settings):
    env = FakeRegionEnv(**settings)
    torch.manual_seed(0)
    return env, QueryPolicy(env.observation_space, env.action_space, lambda progress: 0.25)


def test_policy_takes_the_best_of_each_pool():
    env, policy = make_policy(scores=True)
    observation, _ = env.reset(seed=1)
    actions, state = policy.predict(observation, state=None, deterministic=True)
    assert state is None
    assert actions.shape == (3,)
    assert actions.dtype == np.int64
    for k, action in enumerate(actions):
        tensors = {name: torch.as_tensor(observation[name]) for name in ("state", "candidates", "similarity")}
        q = policy.q_net(tensors["state"][None], tensors["candidates"][None, k], tensors["similarity"][None, k])
        assert action == q[0].argmax()  # Eq. (1)


def test_policy_with_other_pools_and_batches():
    _, policy = make_policy()
    other = FakeRegionEnv(pools=5, candidates=2)
    observations = [other.reset(seed=seed)[0] for seed in range(3)]
    batch = {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    actions, _ = policy.predict(batch)
    assert actions.shape == (3, 5)
    np.testing.assert_array_equal(actions, [policy.predict(o)[0] for o in observations])
    assert policy.is_vectorized_observation(batch)
    assert not policy.is_vectorized_observation(observations[0])


def test_policy_says_what_is_wrong_with_an_observation():
    env, policy = make_policy()
    observation, info = env.reset(seed=0)
    with pytest.raises(ValueError, match="obs, info"):
        policy.predict((observation, info))
    with pytest.raises(ValueError, match="similarity"):
        policy.predict({name: observation[name] for name in ("state", "candidates")})
    with pytest.raises(ValueError, match="batch dimension"):
        policy.predict({**observation, "state": observation["state"][None]})
    with pytest.raises(ValueError, match=r"expected \(5, 6\)"):
        policy.predict({**observation, "state": observation["state"][:-1]})
    observation["candidates"][0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        policy.predict(observation)


def test_policy_modes_and_optimiser(tmp_path):
    env, policy = make_policy()
    policy.set_training_mode(True)
    assert policy.q_net.training
    assert not any(module.training for module in policy.q_net_target.modules())
    group = policy.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.25, 0.9, 1e-3)
    assert isinstance(policy.optimizer, torch.optim.SGD)
    observation, _ = env.reset(seed=0)
    policy.save(tmp_path / "policy.pt")
    loaded = QueryPolicy.load(tmp_path / "policy.pt")
    np.testing.assert_array_equal(loaded.predict(observation)[0], policy.predict(observation)[0])
