"""The command of rl-baselines3-zoo, in which the paper's agent is known as `subdqn`, and searches suit long steps.

    pip install rl_zoo3
    python examples/zoo.py --algo subdqn --env al_seg_env/SyntheticStreets-v0 --conf-file hyperparams/subdqn.yml
    python examples/zoo.py --algo subdqn --env al_seg_env/SyntheticStreets-v0 --conf-file hyperparams/subdqn.yml \
        -optimize --n-trials 20 --n-timesteps 240

All arguments are the zoo's own (`python examples/zoo.py --help`), and so is what it writes to logs/. To train PPO, A2C
or TRPO, no such script is needed: `python -m rl_zoo3.train --gym-packages al_seg_env ...` does the same. To search for
their settings, it is: the zoo's own search draws rollouts of up to 4096 steps, here they have the length in the file.
"""

from __future__ import annotations

from typing import Any

import rl_zoo3
from optuna import Trial
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.train import train

import al_seg_env  # noqa: F401  (registers the environments)
from agents import SubActionDQN


def sample_subdqn(trial: Trial, *_: Any) -> dict[str, Any]:
    """Return settings of SubActionDQN to try."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "gamma": trial.suggest_categorical("gamma", [0.0, 0.9, 0.99]),
        "gradient_steps": trial.suggest_categorical("gradient_steps", [1, 4, 16]),
    }


def sample_actor_critic(trial: Trial, *_: Any) -> dict[str, Any]:
    """Return settings of PPO, A2C or TRPO to try; their rollouts stay as they are in the file."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "gamma": trial.suggest_categorical("gamma", [0.9, 0.99, 1.0]),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.8, 0.95, 1.0]),
    }


if __name__ == "__main__":
    rl_zoo3.ALGOS["subdqn"] = SubActionDQN
    HYPERPARAMS_SAMPLER.update(subdqn=sample_subdqn)
    HYPERPARAMS_SAMPLER.update(dict.fromkeys(("a2c", "ppo", "trpo"), sample_actor_critic))
    HYPERPARAMS_CONVERTER.update(dict.fromkeys(("a2c", "ppo", "subdqn", "trpo"), dict))  # they are arguments as drawn
    train()
