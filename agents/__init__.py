"""Agents for region selection: the paper's batch-mode double DQN and the baselines it is compared with.

They follow the interface of Stable-Baselines3. Policies choose from observations alone, so they work in any environment
with these spaces. The DQN also learns from ``info``, and reads the environment's ``layout``, if any, to refuse other
tasks.
Two classes need an environment that can be saved and continued: :class:`Checkpoint` uses ``get_state`` and
``set_state``, and :class:`GreedyOraclePolicy`, an upper reference that no agent can be, tries steps on a ``fork``.
"""

from agents.baselines import (
    BALDPolicy,
    EntropyPolicy,
    ForegroundPolicy,
    LinearPolicy,
    PowerScorePolicy,
    RareClassPolicy,
    ScorePolicy,
    StratifiedEntropyPolicy,
    UniformPolicy,
)
from agents.callbacks import EpisodeRecorder, InfoLogger
from agents.checkpoint import Checkpoint
from agents.dqn import CandidatePolicy, ExponentialEpsilon, ExponentialRate, LinearEpsilon, QueryPolicy, SubActionDQN
from agents.greedy import GreedyOraclePolicy

__all__ = [
    "BALDPolicy",
    "CandidatePolicy",
    "Checkpoint",
    "EntropyPolicy",
    "EpisodeRecorder",
    "ExponentialEpsilon",
    "ExponentialRate",
    "ForegroundPolicy",
    "GreedyOraclePolicy",
    "InfoLogger",
    "LinearEpsilon",
    "LinearPolicy",
    "PowerScorePolicy",
    "QueryPolicy",
    "RareClassPolicy",
    "ScorePolicy",
    "StratifiedEntropyPolicy",
    "SubActionDQN",
    "UniformPolicy",
]
