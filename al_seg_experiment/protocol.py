"""The pieces of an experiment (section 4.1): pretraining, training the query agent, acquiring, and testing.

Each function does one piece in its own folder, with the functions that also work outside experiments, and stores each
result immediately. Called again after a kill, it resumes from there, on a CPU bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

from al_seg_env.env import RegionSelectionEnv
from al_seg_env.registration import environment_spec, make_again
from al_seg_experiment import acquisition
from al_seg_experiment.experiment import Experiment, Stage
from al_seg_experiment.forecasting import FORECAST, run_forecast
from al_seg_experiment.policies import make_policy
from al_seg_experiment.pretraining import WEIGHTS, run_stages
from al_seg_experiment.query_training import AGENT, train_agent

__all__ = [
    "AGENT",
    "FORECAST",
    "WEIGHTS",
    "make_environment",
    "pretrain",
    "run_full",
    "run_theta_0",
    "run_trial",
    "train_forecast",
    "train_query",
]


def make_environment(experiment: Experiment, *arguments: Mapping[str, Any], **more: Any) -> RegionSelectionEnv:
    """Return the experiment's environment with further arguments; later ones take precedence."""
    return make_again(_spec(experiment, *arguments, **more))


def pretrain(experiment: Experiment, stages: Sequence[Stage], folder: Path) -> None:
    """Train theta_0 in stages; write ``theta_0.safetensors`` and ``pretrain.csv``."""
    run_stages(_spec(experiment), stages, folder)


def train_forecast(experiment: Experiment, weights: Path, folder: Path) -> None:
    """Train the networks of the feature ``"forecast"``; write ``forecast.safetensors`` and ``forecast.csv``."""
    assert experiment.forecast is not None
    run_forecast(_spec(experiment, weights=str(weights)), experiment.forecast, folder)


def train_query(experiment: Experiment, weights: Path, folder: Path, seed: int, method: str = "") -> None:
    """Train the query agent on D_T (section 3.2); write ``agent.safetensors`` and ``episodes.csv``."""
    query = experiment.query_of(method)
    train_agent(
        _spec(experiment, query.arguments, weights=str(weights)),
        folder,
        episodes=query.episodes,
        seed=seed,
        envs=query.envs,
        checkpoint_every=query.checkpoint_every,
        refit=None if query.refit is None else dict(query.refit),
        plot=False,  # the report draws all agents together
        policy=query.policy,
        references=query.references,
        **query.agent,
    )


def run_trial(
    experiment: Experiment,
    method: str,
    seed: int,
    weights: Path,
    agent: Path | None,
    folder: Path,
) -> None:
    """Acquire regions of D_V through all budgets; at each, train a copy to convergence, and test it."""
    entry, budgets = experiment.methods[method], experiment.budgets
    if acquisition.is_acquired(folder, budgets):
        return
    env = make_environment(experiment, entry.arguments, split="eval", budget=budgets[-1], weights=str(weights))
    policy = make_policy(entry.policy, env, seed, agent)
    acquisition.acquire(env, policy, folder, method=method, seed=seed, budgets=budgets, fit=experiment.fit.settings)


def run_full(experiment: Experiment, seed: int, weights: Path, folder: Path) -> None:
    """Train with all labels of D_V to convergence, and test: the line of full supervision in figure 4."""
    env = make_environment(experiment, split="eval", weights=str(weights))
    acquisition.supervise_fully(env, folder, seed=seed, fit=experiment.fit.settings)


def run_theta_0(experiment: Experiment, weights: Path, folder: Path) -> None:
    """Test theta_0 itself: budget 0."""
    acquisition.measure_theta_0(make_environment(experiment, split="eval", weights=str(weights)), folder)


def _spec(experiment: Experiment, *arguments: Mapping[str, Any], **more: Any) -> EnvSpec:
    merged = dict(experiment.arguments)
    for each in (*arguments, more):
        merged.update(each)
    if "forecast" not in merged.get("region_features", ()):  # a method may leave the feature out
        merged.pop("forecast", None)
    return environment_spec(experiment.env, **merged)
