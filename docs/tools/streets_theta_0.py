"""Make the theta_0 that comes with the package: `python docs/tools/streets_theta_0.py`, four minutes on a CPU core.

The network of ``al_seg_env/SyntheticStreets-v0`` learns 600 scenes of the style ``render`` from random weights, in 1500
updates of 16 scenes; no scene of the style ``street`` is trained on. It is stored in half the precision.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym

from al_seg_env import TorchLearner, save_weights
from al_seg_env.registration import STREETS_THETA_0, make_again
from al_seg_experiment import Stage, pretrain

STREETS = "al_seg_env/SyntheticStreets-v0"
RENDERS = Stage(
    arguments={"style": "render", "images": 600},
    images="all",
    epochs=1,
    updates=1500,
    learning_rate=0.05,
    early_stopping=False,
)


def main(
    folder: Path = Path("build/streets_theta_0"), stored: Path = STREETS_THETA_0, renders: Stage = RENDERS
) -> None:
    """Train theta_0 in a folder, where it resumes, and store it."""
    weights = pretrain(gym.make(STREETS, weights=None), [renders], folder)
    env = make_again(STREETS, weights=str(weights))
    assert isinstance(env.learner, TorchLearner)
    env.learner.network.half()
    save_weights(env.learner, stored, env.data.classes)


if __name__ == "__main__":
    main()
