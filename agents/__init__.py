"""Agents for region selection: the paper's batch-mode double DQN and the baselines it is compared with.

They know an environment by its Gymnasium spaces alone, and follow the interface of Stable-Baselines3.
"""

from agents.baselines import BALDPolicy, EntropyPolicy, RareClassPolicy, ScorePolicy, UniformPolicy
from agents.callbacks import EpisodeRecorder, InfoLogger
from agents.checkpoint import Checkpoint
from agents.dqn import ExponentialEpsilon, ExponentialRate, LinearEpsilon, QueryPolicy, SubActionDQN
from agents.greedy import GreedyOraclePolicy

__all__ = [
    "BALDPolicy",
    "Checkpoint",
    "EntropyPolicy",
    "EpisodeRecorder",
    "ExponentialEpsilon",
    "ExponentialRate",
    "GreedyOraclePolicy",
    "InfoLogger",
    "LinearEpsilon",
    "QueryPolicy",
    "RareClassPolicy",
    "ScorePolicy",
    "SubActionDQN",
    "UniformPolicy",
]
