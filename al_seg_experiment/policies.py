"""Policies by name: the paper's agent, the baselines, the references that know the truth, and a user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents import (
    BALDPolicy,
    EntropyPolicy,
    GreedyOraclePolicy,
    RareClassPolicy,
    ScorePolicy,
    SubActionDQN,
    UniformPolicy,
)
from al_seg_env.env import RegionSelectionEnv
from al_seg_experiment.experiment import METHODS

AGENT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class NamedPolicy:
    """A policy to be compared with others.

    Attributes:
        name: In results, files and figures.
        policy: A name of :data:`~al_seg_experiment.experiment.METHODS`, or ``"module:function"``, called with
            environment and seed.
        arguments: Of the environment that it plays, such as ``{"scores": ["entropy"]}``.
        agent: The file of a trained agent, for the policy ``"dqn"``.
    """

    name: str
    policy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent: Path | None = None


def parse_policy(text: str) -> NamedPolicy:
    """Return the policy of a known name, or of ``NAME=path/to/agent.safetensors`` or ``NAME=module:function``.

    >>> parse_policy("entropy").arguments
    {'scores': ['entropy']}
    >>> parse_policy("mine=my_module:make_policy")
    NamedPolicy(name='mine', policy='my_module:make_policy', arguments={}, agent=None)

    Raises:
        ValueError: If it is none of these, or there is no such file.
    """
    name, separator, value = text.partition("=")
    if not name or name == "full" or not all(c.isalnum() or c in "_+-" for c in name):
        raise ValueError(f"policy {text!r}: its name is of letters, digits, _, + and -, and not 'full'")
    if not separator:
        if name not in METHODS or name == "dqn":
            known = ", ".join(each for each in METHODS if each != "dqn")
            raise ValueError(
                f"policy {text!r} is unknown; expected one of {known}, NAME=path/to/agent{AGENT_SUFFIX} or "
                "NAME=module:function"
            )
        return NamedPolicy(name, METHODS[name]["policy"], METHODS[name].get("arguments", {}))
    if Path(value).suffix == AGENT_SUFFIX or ":" not in value:
        if not Path(value).is_file():
            raise ValueError(f"policy {text!r}: there is no file {value!r}; expected a trained agent")
        return NamedPolicy(name, "dqn", agent=Path(value))
    return NamedPolicy(name, value)


def make_policy(policy: str, env: RegionSelectionEnv, seed: int, agent: Path | None = None) -> Any:
    """Return an object with the ``predict`` of Stable-Baselines3.

    Args:
        policy: A name of :data:`~al_seg_experiment.experiment.METHODS`, or ``"module:function"``.
        env: The environment that it is to play.
        seed: Of its random source.
        agent: The file of a trained agent, for the policy ``"dqn"``.

    Raises:
        ValueError: If the function can't be imported, or the agent does not fit the environment.
    """
    known: dict[str, Callable[[], Any]] = {
        "uniform": lambda: UniformPolicy(seed),
        "entropy": EntropyPolicy,
        "bald": BALDPolicy,
        "margin": lambda: ScorePolicy("score_margin"),
        "ripu": lambda: ScorePolicy("score_ripu"),
        "rarity_entropy": lambda: ScorePolicy("score_rarity_entropy"),
        "rare": RareClassPolicy,
        "greedy": lambda: GreedyOraclePolicy(env, suggestions=[RareClassPolicy()], seed=seed),
        "dqn": lambda: SubActionDQN.load(str(agent), env=env),
    }
    return known[policy]() if policy in known else policy_function(policy)(env, seed)


def policy_function(policy: str) -> Any:
    """Return the function that a policy of the user's own names as ``module:function``.

    Raises:
        ValueError: If it can't be imported.
    """
    module, _, function = policy.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"policy {policy!r} can't be imported: {error}; expected module:function") from error
