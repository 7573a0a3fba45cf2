"""Train an unchanged algorithm of Stable-Baselines3, PPO or A2C, on the environment.

    python examples/train_ppo.py --steps 240 --algorithm PPO

OUT has checkpoints with the agent, the episodes (episodes.csv) and their returns (episodes.png). --resume continues
from the newest checkpoint, as if training had never been interrupted.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.monitor import Monitor
from tyro.conf import FlagCreatePairsOff

from agents import EpisodeRecorder, InfoLogger
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_experiment.query_training import learn, plot_returns


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """How to train."""

    algorithm: Literal["PPO", "A2C"] = "PPO"
    """The algorithm."""
    steps: int = 240
    """Total number of environment steps."""
    n_steps: int = 24
    """Environment steps per update."""
    seed: int = 0
    """Seed of agent and environment."""
    resume: FlagCreatePairsOff[bool] = False
    """Resume from the newest checkpoint in OUT."""
    out: Path = Path("runs/train_ppo")
    """Folder of the results."""


def main(options: Options) -> None:
    env = Monitor(options.make())
    shared: dict[str, Any] = {"n_steps": options.n_steps, "seed": options.seed}
    if options.algorithm == "PPO":
        agent: PPO | A2C = PPO("MultiInputPolicy", env, batch_size=options.n_steps, **shared)
    else:
        agent = A2C("MultiInputPolicy", env, **shared)
    episodes = options.out / "episodes.csv"
    learn(
        agent,
        steps=options.steps,
        folder=options.out,
        resume=options.resume,
        checkpoint_every=options.n_steps,
        callbacks=[EpisodeRecorder(episodes), InfoLogger()],
    )
    agent.save(options.out / "agent")
    if not episodes.exists():
        raise ValueError(f"no episode ended within {options.steps} steps; request more")
    with episodes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    plot_returns(rows, options.out / "episodes.png")
    returns = [float(row["return"]) for row in rows]
    print(f"{len(returns)} episodes; mean gain of the last 10: {sum(returns[-10:]) / len(returns[-10:]):.2f} points")


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
