"""The training command of rl-baselines3-zoo, in which the paper's agent is known as `subdqn`.

    pip install rl_zoo3
    python examples/zoo.py --algo subdqn --env al_seg_env/SyntheticStreets-v0 --conf-file hyperparams/subdqn.yml

All arguments are the zoo's own (`python examples/zoo.py --help`), and so is what it writes to logs/. PPO, A2C and TRPO
need no such script: `python -m rl_zoo3.train --gym-packages al_seg_env ...` does the same.
"""

from __future__ import annotations

import rl_zoo3
from rl_zoo3.train import train

import al_seg_env  # noqa: F401  (registers the environments)
from agents import SubActionDQN

if __name__ == "__main__":
    rl_zoo3.ALGOS["subdqn"] = SubActionDQN
    train()
