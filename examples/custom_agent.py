"""Bring your own agent, which needs only the observation and the action space.

This agent learns by recursive least squares which combination of simple region statistics (the predicted classes, their
uncertainty, and the similarity to labelled regions) predicts a gain in mean IoU. From each pool, it selects the region
with the highest expected gain. It needs no reinforcement learning library:

    python examples/custom_agent.py --episodes 5
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv
from al_seg_experiment.plotting import plot_lines

Observation = dict[str, np.ndarray]


class LinearAgent:
    """Predicts a step's reward from the mean description of the chosen regions, by ridge regression."""

    def __init__(self, num_classes: int, explore: float, seed: int) -> None:
        self.num_classes, self.explore = num_classes, explore
        self.rng = np.random.default_rng(seed)
        self.precision = np.eye(num_classes + 3)
        self.moment = np.zeros(num_classes + 3)

    def describe(self, observation: Observation) -> np.ndarray:
        """Return ``(K, N, C + 3)``: class shares, mean entropy, share of near-identical labelled regions, 1."""
        classes, entropy = np.split(observation["candidates"], [self.num_classes], axis=-1)
        similarity = observation.get("similarity", np.zeros((*classes.shape[:2], 1)))
        parts = [classes, entropy.mean(-1, keepdims=True), similarity[..., :1], np.ones((*classes.shape[:2], 1))]
        return np.concatenate(parts, axis=-1)

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the action ``(K,)``, random with probability ``explore`` per pool unless ``deterministic``."""
        explore = 0.0 if deterministic else self.explore
        gain = self.describe(observation) @ np.linalg.solve(self.precision, self.moment)  # (K, N)
        random = self.rng.integers(gain.shape[1], size=gain.shape[0])
        return np.where(self.rng.random(gain.shape[0]) < explore, random, gain.argmax(axis=1)), state

    def learn(self, observation: Observation, action: np.ndarray, reward: float) -> None:
        """Learn from one step."""
        chosen = self.describe(observation)[np.arange(len(action)), action].mean(axis=0)
        self.precision += np.outer(chosen, chosen)
        self.moment += reward * chosen


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """How to learn."""

    episodes: int = 5
    """Episodes to play."""
    explore: float = 0.2
    """Probability of a random sub-action."""
    seed: int = 0
    """Seed of agent and environment."""
    out: Path = Path("runs/custom_agent")
    """Folder of the results."""


def main(options: Options) -> None:
    env = options.make()
    agent = LinearAgent(len(env.get_wrapper_attr("layout")["classes"]), options.explore, options.seed)
    rows: list[dict[str, Any]] = []
    for episode in tqdm(range(options.episodes), desc="episodes"):
        observation, info = env.reset(seed=options.seed + episode)
        start, done = info["miou"], False
        while not done:
            action, _ = agent.predict(observation)
            following, reward, terminated, truncated, info = env.step(action)
            agent.learn(observation, action, float(reward))
            observation, done = following, terminated or truncated
        rows.append({"episode": episode + 1, "miou": round(info["miou"], 4), "gain": round(info["miou"] - start, 4)})
        write_csv(options.out / "episodes.csv", rows)
    gains = {"LinearAgent": ([row["episode"] for row in rows], [row["gain"] for row in rows])}
    plot_lines(options.out / "episodes.png", gains, xlabel="episode", ylabel="gain in mean IoU [points]")
    print(f"gain in the last episode: {rows[-1]['gain']:.2f} points; see {options.out}")


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
