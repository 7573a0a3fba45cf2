"""The one-step greedy oracle: what the best choice would have gained, found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

Observation = dict[str, np.ndarray]


class GreedyOraclePolicy:
    """Tries choices on a fork of the environment, and takes the one with the highest true reward.

    An upper reference that heuristics and agents are compared with: it sees the reward, and so the truth, of a step
    before it is made. From the best of some whole choices it goes on pool by pool, and in each keeps the best of
    some candidates. Its choice's reward is the one that the environment will return. What is greedy in each
    step need not be best for an episode.

    Args:
        env: The environment that is played, with ``get_state``, ``set_state`` and ``fork``; its oracle must be one
            that may be asked for what is not bought.
        draws: Random whole choices to begin with.
        per_pool: Candidates tried in each pool after that, in random order; 0 for none.
        suggestions: Policies whose choices are among the first ones, such as an entropy policy.
        seed: Of the policy's own random source.

    Attributes:
        gains: The rewards of all trials of the last step, in the order in which they were tried.
    """

    def __init__(
        self, env: gym.Env, draws: int = 8, per_pool: int = 0, suggestions: Sequence[Any] = (), seed: int | None = None
    ) -> None:
        if draws < 0 or per_pool < 0 or not (draws or per_pool or suggestions):
            raise ValueError(f"draws is {draws} and per_pool {per_pool}: expected at least one choice to try.")
        missing = [name for name in ("get_state", "set_state", "fork") if not hasattr(env.unwrapped, name)]
        if missing:
            raise ValueError(
                f"{env.unwrapped} has no {' and no '.join(missing)}: nothing can be tried on a fork of it."
            )
        self.env: Any = env.unwrapped
        self.draws, self.per_pool, self.suggestions = draws, per_pool, tuple(suggestions)
        self.rng = np.random.default_rng(seed)
        self.gains: list[float] = []

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """The best choice (K,) that was tried, for the environment's present step; int64."""
        sizes = self.env.action_space.nvec  # (K,)
        if np.ndim(observation["candidates"]) != 3:
            raise ValueError("The greedy oracle plays one environment, not several at once.")
        now = self.env.get_state()
        labelled, budget = len(now["labels"]["regions"]), self.env.config.budget
        active = min(len(sizes), budget - labelled)
        # With a budget for one step, no trial spends time on the observation that would follow.
        self._fork = self.env.fork(budget=labelled + active)
        first = [policy.predict(observation, deterministic=True)[0] for policy in self.suggestions]
        first += [self.rng.integers(sizes) for _ in range(self.draws)]
        self.gains = []
        best, gain = np.zeros(len(sizes), np.int64), -np.inf
        for action in first:
            best, gain = self._better(best, gain, np.asarray(action), now)
        for pool in self.rng.permutation(active) if self.per_pool else []:
            tried = best[pool] if self.gains else -1
            others = [candidate for candidate in self.rng.permutation(sizes[pool]) if candidate != tried]
            for candidate in others[: self.per_pool]:
                action = best.copy()
                action[pool] = candidate
                best, gain = self._better(best, gain, action, now)
        return best, state

    def _better(
        self, best: np.ndarray, gain: float, action: np.ndarray, now: dict[str, Any]
    ) -> tuple[np.ndarray, float]:
        self._fork.set_state(now)
        reward = self._fork.step(action)[1]
        self.gains.append(reward)
        return (action, reward) if reward > gain else (best, gain)
