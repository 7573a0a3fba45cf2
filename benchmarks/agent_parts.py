"""What does an agent owe to its parts? Its agents play again without one of them, on the seeds of an experiment.

- equal_worth: all classes are worth the same, so that nothing learnt from rewards is left.
- forecast_alone: without the correction of the forecast that `refit` teaches; the worth of the classes stays.

The experiment must have trained agents with CandidatePolicy and a forecast, as `camvid_frozen` does:

    python benchmarks/agent_parts.py --folder runs/camvid_frozen

Makes an experiment of its own in OUT, which resumes like any other, with theta_0 and forecast trained again, equally.
The seeds' results can be compared, in pairs, with those of the method "dqn" in the first experiment.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from agents import CandidatePolicy, SubActionDQN
from agents.dqn import CandidateNetwork
from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import run
from al_seg_experiment import Method
from al_seg_experiment import run as run_experiment
from al_seg_experiment.records import read_experiment

AGENTS = "AL_SEG_ENV_AGENTS"  # the experiment's folder, for the policies, which the experiment calls with env and seed


@dataclass(frozen=True)
class Options:
    """What is played."""

    folder: Annotated[Path, arg(metavar="PATH")] = Path("runs/camvid_frozen")
    """Folder of the experiment whose agents play."""
    out: Path = Path("runs/agent_parts")
    """Folder of the new experiment."""


def main(options: Options) -> None:
    os.environ[AGENTS] = str(options.folder.resolve())
    methods = {name: Method(policy=f"agent_parts:{name}") for name in ("equal_worth", "forecast_alone")}
    experiment = read_experiment(options.folder).model_copy(update={"methods": methods, "full": 0})
    print(run_experiment(experiment, options.out))


def equal_worth(env: RegionSelectionEnv, seed: int) -> SubActionDQN:
    """Return the agent of a seed, to which all classes are worth the same."""
    agent, policy = _agent(env, seed)
    policy.worth = torch.ones_like(policy.worth).numpy()
    return agent


def forecast_alone(env: RegionSelectionEnv, seed: int) -> SubActionDQN:
    """Return the agent of a seed without its correction of the forecast."""
    agent, policy = _agent(env, seed)
    assert isinstance(policy.q_net, CandidateNetwork)
    with torch.no_grad():
        for member in policy.q_net.members:
            assert isinstance(member, torch.nn.Sequential)
            for parameter in member[-1].parameters():
                parameter.zero_()
    return agent


def _agent(env: RegionSelectionEnv, seed: int) -> tuple[SubActionDQN, CandidatePolicy]:
    """Return the agent that the experiment trained for a seed, and its policy."""
    file = Path(os.environ[AGENTS]) / "query" / str(seed) / "agent.safetensors"
    agent = SubActionDQN.load(str(file), env=env)
    if not isinstance(agent.policy, CandidatePolicy) or agent.policy_kwargs.get("forecast") is None:
        raise ValueError(f"{file} is not an agent with CandidatePolicy and a forecast, so it has no such parts")
    return agent, agent.policy


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
