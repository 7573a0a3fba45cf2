"""Every number that a user gives: what cannot work is refused where it is given, with one form of message."""

import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from fakes import closed_form_env
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import (
    Checkpoint,
    EpisodeRecorder,
    ExponentialEpsilon,
    ExponentialRate,
    GreedyOraclePolicy,
    InfoLogger,
    LinearEpsilon,
    QueryPolicy,
    ScorePolicy,
    SubActionDQN,
    UniformPolicy,
)
from agents.dqn import CandidateNetwork, DecomposedReplayBuffer, QueryNetwork

ENV = FakeRegionEnv(scores=True)
REGIONS = closed_form_env()
SPACES = (ENV.observation_space, ENV.action_space)


def dqn(**arguments):
    agent = SubActionDQN("QueryPolicy", ENV, **{"device": "cpu", "seed": 0, **arguments})
    if arguments.get("batch_size", 0) <= 64 and arguments.get("gradient_steps", 0) <= 8:
        with suppress(FloatingPointError):  # a rate of 1e18 is a number, but training diverges, and says so
            agent.learn(6)
    return agent


def policy(**optimizer):
    made = QueryPolicy(*SPACES, lambda left: 1e-3, optimizer_kwargs=optimizer)
    made.q_net(*(torch.zeros(2, *size) for size in ((5, 6), (6,), (4,)))).sum().backward()
    made.optimizer.step()
    return made


def replay(**arguments):
    return DecomposedReplayBuffer(
        **{"buffer_size": 9, **arguments}, observation_space=SPACES[0], action_space=SPACES[1]
    )


ARGUMENTS = {
    dqn: (
        "learning_rate buffer_size learning_starts batch_size tau gamma train_freq gradient_steps "
        "target_update_interval td_target credit loss exploration epsilon guides n_steps max_grad_norm policy_kwargs "
        "stats_window_size verbose seed device"
    ),
    policy: "momentum dampening weight_decay nesterov lr no_such",
    replay: "buffer_size n_envs seed n_steps gamma credit",
    lambda **given: CandidateNetwork(**{"n_features": 3, **given}): "n_features hidden members dropout",
    lambda **given: QueryPolicy(*SPACES, **{"lr_schedule": lambda left: 1e-3, **given}): (
        "lr_schedule optimizer_class optimizer_kwargs"
    ),
    lambda rate: QueryPolicy(*SPACES, lambda left: rate): "rate",
    lambda **given: QueryNetwork(**{"n_regions": 2, "n_features": 3, **given}): "n_regions n_features n_similarity",
    lambda **given: LinearEpsilon(**{"initial": 1.0, "final": 0.1, "steps": 5, **given})(3): "initial final steps",
    lambda **given: ExponentialEpsilon(**given)(3): "initial final decay",
    lambda **given: ExponentialRate(**{"initial": 0.1, "decay": 0.9, "steps": 5, **given})(0.5): "initial decay steps",
    lambda **given: EpisodeRecorder(**{"path": "x.csv", **given}): "path after verbose",
    lambda **given: InfoLogger(**given): "keys verbose",
    lambda **given: Checkpoint(**{"folder": "x", **given}): "folder every share verbose",
    lambda **given: GreedyOraclePolicy(REGIONS, **given): "draws per_pool suggestions seed",
    UniformPolicy: "seed",
    ScorePolicy: "key",
}
CASES = [(make, name) for make, names in ARGUMENTS.items() for name in names.split()]

NUMBERS = st.sampled_from([0, -0.0, 1, -1, 2, 3, 0.5, 1.5, -2.5, 1e-300, 5e-324, 1e300, 10**400, 2**63, float("nan")])
ODD = st.sampled_from(
    [
        float("inf"),
        -float("inf"),
        None,
        True,
        False,
        "",
        "1",
        "uniform",
        b"1",
        1j,
        {},
        {"a": 1},
        {1: 2},
        set(),
        object(),
    ]
    + [np.float32(0.5), np.int64(3), np.float64("nan"), np.bool_(True), np.zeros(2), np.array(1), torch.tensor(1.0)]
    + [int, len, np, Ellipsis, range(2), torch.optim.Adam, "cuda:99", {"optimizer_kwargs": {"momentum": float("nan")}}]
    + [lambda *_: 0.5, lambda *_: float("nan"), lambda *_: "0.5", lambda *_: -1.0, lambda *_: [0.5]]
)
VALUES = (
    NUMBERS | ODD | st.lists(NUMBERS | ODD, max_size=3) | st.tuples(NUMBERS, st.sampled_from(["step", "episode", 2]))
)


EXAMPLES = 25


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES)
@given(data=st.data())
@pytest.mark.parametrize(("make", "name"), CASES, ids=[f"{number}-{name}" for number, (_, name) in enumerate(CASES)])
def test_an_argument_is_refused_or_works(make, name, data):
    value = data.draw(VALUES)
    started = time.process_time()
    try:
        made = make(**{name: value})
    except ValueError as error:
        assert "expected" in str(error) or "Unknown" in str(error), error  # noqa: PT017
    else:
        assert made is not None
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("make", "argument", "value", "message"),
    [
        (dqn, "max_grad_norm", -1.0, "max_grad_norm is -1.0; expected a finite number above 0, or None not to clip"),
        (dqn, "max_grad_norm", 0, "max_grad_norm is 0; expected a finite number above 0, or None not to clip"),
        (dqn, "max_grad_norm", True, "max_grad_norm is True; expected a finite number above 0, or None not to clip"),
        (dqn, "max_grad_norm", np.nan, "max_grad_norm is nan; expected a finite number above 0, or None not to clip"),
        (dqn, "batch_size", 16.0, "batch_size is 16.0; expected a whole number from 2 to 65536"),
        (dqn, "train_freq", (1, "day"), "the unit of train_freq is 'day'; expected one of 'step', 'episode'"),
        (dqn, "seed", 2**32, "seed is 4294967296; expected a whole number from 0 to 4294967295"),
        (Checkpoint, "every", 0, "every is 0; expected a whole number of at least 1"),
        (InfoLogger, "keys", "miou", "keys is 'miou'; expected a list of names, such as ['miou', 'labelled']"),
        (UniformPolicy, "seed", -1, "seed is -1; expected a whole number of at least 0"),
        (ExponentialEpsilon, "initial", 1.2, "initial is 1.2; expected a finite number of at least 0 and up to 1"),
    ],
)
def test_messages_have_one_form(make, argument, value, message, tmp_path):
    with pytest.raises(ValueError) as error:
        make(**{**({"folder": tmp_path} if make is Checkpoint else {}), argument: value})
    assert str(error.value) == message


def test_numpys_numbers_are_stored_as_plain_ones(tmp_path):
    agent = dqn(
        n_steps=np.int64(2), gamma=np.float32(0.5), max_grad_norm=np.float64(3), train_freq=[np.int8(2), "step"]
    )
    agent.save(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", device="cpu")
    assert (loaded.n_steps, loaded.gamma, loaded.max_grad_norm, loaded.train_freq.frequency) == (2, 0.5, 3.0, 2)


def test_schedules_are_checked_in_the_course_of_training():
    agent = dqn(learning_rate=lambda left: 1e-3 if left > 0.5 else -1.0, learning_starts=6)
    with pytest.raises(ValueError, match="the present learning_rate is -1.0; expected a finite number of at least 0"):
        agent.learn(40)
    with pytest.raises(ValueError, match="log_interval is 0"):
        agent.learn(4, log_interval=0)
    with pytest.raises(ValueError, match="total_timesteps is nan"):
        agent.learn(float("nan"))


def test_episodes_between_updates_need_one_environment():
    from stable_baselines3.common.vec_env import DummyVecEnv

    two = DummyVecEnv([FakeRegionEnv, FakeRegionEnv])
    message = "train_freq counts episodes, and there are 2 environments"
    with pytest.raises(ValueError, match=message):
        SubActionDQN("QueryPolicy", two, train_freq=(1, "episode"), device="cpu")
    agent = SubActionDQN("QueryPolicy", FakeRegionEnv(), train_freq=(1, "episode"), device="cpu")
    with pytest.raises(ValueError, match=message):
        agent.set_env(two)


def test_a_spread_of_worth_that_is_not_learnt_is_named(recwarn):
    SubActionDQN("QueryPolicy", ENV, worth_spread=1.0)
    assert "worth_spread has no effect, since credit is 'shared'" in str(recwarn[0].message)
