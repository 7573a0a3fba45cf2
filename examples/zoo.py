"""The command of rl-baselines3-zoo with the paper's agent as `subdqn`, and with searches that suit slow steps.

    pip install rl_zoo3
    python examples/zoo.py --algo subdqn --env al_seg_env/SyntheticStreets-v0 --conf-file hyperparams/subdqn.yml
    python examples/zoo.py --algo subdqn --env al_seg_env/SyntheticStreets-v0 --conf-file hyperparams/subdqn.yml \
        -optimize --n-trials 20 --n-timesteps 240

Arguments (`python examples/zoo.py --help`) and outputs in logs/ are the zoo's own. To train PPO, A2C or TRPO, this
script is not needed: `python -m rl_zoo3.train --gym-packages al_seg_env ...` does the same. To search for their
settings, it is needed: the zoo's own search draws rollouts of up to 4096 steps, while here they have the length given
in the file.
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
    """Return settings of PPO, A2C or TRPO to try. The length of rollouts stays as in the file."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        "gamma": trial.suggest_categorical("gamma", [0.9, 0.99, 1.0]),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.8, 0.95, 1.0]),
    }


if __name__ == "__main__":
    rl_zoo3.ALGOS["subdqn"] = SubActionDQN
    HYPERPARAMS_SAMPLER.update(subdqn=sample_subdqn)
    HYPERPARAMS_SAMPLER.update(dict.fromkeys(("a2c", "ppo", "trpo"), sample_actor_critic))
    HYPERPARAMS_CONVERTER.update(dict.fromkeys(("a2c", "ppo", "subdqn", "trpo"), dict))  # settings are used as drawn
    train()
