"""The paper's batch-mode double DQN."""

from agents.dqn.dqn import SubActionDQN
from agents.dqn.exploration import ExponentialEpsilon, ExponentialRate, LinearEpsilon
from agents.dqn.network import CandidateNetwork, QueryNetwork
from agents.dqn.policy import CandidatePolicy, QueryPolicy
from agents.dqn.replay import DecomposedBatch, DecomposedReplayBuffer
from agents.dqn.targets import td_targets

__all__ = [
    "DecomposedBatch",
    "DecomposedReplayBuffer",
    "CandidateNetwork",
    "CandidatePolicy",
    "ExponentialEpsilon",
    "ExponentialRate",
    "LinearEpsilon",
    "QueryNetwork",
    "QueryPolicy",
    "SubActionDQN",
    "td_targets",
]
