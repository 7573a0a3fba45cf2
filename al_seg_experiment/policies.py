"""Policies by name: the paper's agent, the baselines, the references that use the ground truth, and custom ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
    SubActionDQN,
    UniformPolicy,
)
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.observation.forecast import KIND as FORECAST
from al_seg_env.observation.scores import cell_counts, class_rarity
from al_seg_experiment.experiment import METHODS

AGENT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class NamedPolicy:
    """A policy to compare with others.

    Attributes:
        name: Name in results, files and figures.
        policy: A name of :data:`~al_seg_experiment.experiment.METHODS`, or ``"module:function"``, called with
            environment and seed.
        arguments: Arguments of its environment, such as ``{"scores": ["entropy"]}``.
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
        env: Its environment.
        seed: Seed of its random source.
        agent: The file of a trained agent, for the policy ``"dqn"``.

    Raises:
        ValueError: If the function can't be imported, or the agent does not match the environment.
    """
    known: dict[str, Callable[[], Any]] = {
        "uniform": lambda: UniformPolicy(seed),
        "entropy": EntropyPolicy,
        "bald": BALDPolicy,
        "margin": lambda: ScorePolicy("score_margin"),
        "balanced_margin": lambda: ScorePolicy("score_balanced_margin"),
        "power_margin": lambda: PowerScorePolicy("score_margin", seed=seed),
        "ripu": lambda: ScorePolicy("score_ripu"),
        "clasp": lambda: StratifiedEntropyPolicy(env.feature_columns("class_entropy"), seed=seed),
        "foreground": lambda: ForegroundPolicy(seed=seed),
        "rarity": lambda: ScorePolicy("score_rarity"),
        "rarity_entropy": lambda: ScorePolicy("score_rarity_entropy"),
        "location_entropy": lambda: ScorePolicy("score_location_entropy"),
        "rarity_regression": lambda: rarity_regression(env),
        "forecast_rarity": lambda: forecast_rarity(env),
        "rare": RareClassPolicy,
        "greedy": lambda: GreedyOraclePolicy(env, suggestions=[RareClassPolicy()], seed=seed),
        "dqn": lambda: SubActionDQN.load(str(agent), env=env),
    }
    return known[policy]() if policy in known else policy_function(policy)(env, seed)


def rarity_regression(env: RegionSelectionEnv) -> LinearPolicy:
    """Return a linear policy fitted to the true rarity of D_T's regions, with their features under theta_0.

    A region's worth is ``sum_c w_c sqrt(pixels of class c)``, with the weights of
    :class:`~al_seg_env.observation.scores.PrivilegedRarity` from the labels of D_T. An episode in progress is not
    affected.
    """
    episode = env.get_state()
    env.learner.reset()
    env.inputs.prepare(env.splits.train)
    counts = [cell_counts(env.frames, env.grid, [image], len(env.data.classes)) for image in env.splits.train]
    of_regions = np.concatenate(counts)  # (n, C)
    regions = env.grid.regions_of(env.splits.train)
    features = env.observer.described(regions, np.zeros(len(env.data.classes), np.int64))
    env.set_state(episode)
    worth = np.sqrt(of_regions) @ np.array(class_rarity(of_regions.sum(axis=0)))
    return LinearPolicy.fitted(features, worth)


def forecast_rarity(env: RegionSelectionEnv) -> LinearPolicy:
    """Return the rule ``rarity`` by the forecast: mean forecast probability of each class, times its rarity.

    The classes' weights are those of :class:`~al_seg_env.observation.scores.Rarity`, by the images that are labelled
    before an episode.

    Raises:
        ValueError: If the environment's regions have no feature ``"forecast"``.
    """
    first = env.feature_columns(FORECAST).start  # the classes' mean probabilities come first
    n_classes = len(env.data.classes)
    counts = cell_counts(env.frames, env.grid, env.labelled_before, n_classes).sum(axis=0)
    coefficients = np.zeros(env.feature_columns(env.layout["features"][-1]).stop)
    coefficients[first : first + n_classes] = class_rarity(counts)
    return LinearPolicy(coefficients)


def policy_function(policy: str) -> Any:
    """Return the function that ``module:function`` names.

    Raises:
        ValueError: If it can't be imported.
    """
    module, _, function = policy.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"policy {policy!r} can't be imported: {error}; expected module:function") from error
