"""Train the paper's query agent, SubActionDQN, on D_T (section 3.2).

    python examples/train_dqn.py --episodes 20 --env-arg weights=runs/pretrain/theta_0.safetensors

After every episode, OUT has the agent (agent.safetensors), the episodes so far (episodes.csv), the learning curve
(episodes.png) and a checkpoint. --resume continues from the newest checkpoint, as if training had never been
interrupted; the folder may be moved. `al-seg-env train` has more options.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_experiment import train_agent


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """How long to train."""

    episodes: int = 20
    """Total number of episodes."""
    seed: int = 0
    """Seed of agent and environment."""
    resume: FlagCreatePairsOff[bool] = False
    """Resume from the newest checkpoint in OUT."""
    out: Path = Path("runs/train")
    """Folder of the results."""


def main(options: Options) -> None:
    agent = train_agent(
        options.spec,
        options.out,
        episodes=options.episodes,
        seed=options.seed,
        resume=options.resume,
        # All other arguments are the agent's own; see the docstring of SubActionDQN.
        buffer_size=600,
        batch_size=16,
        gamma=0.99,
    )
    print("the agent is", agent)


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
