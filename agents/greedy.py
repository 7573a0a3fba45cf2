"""The one-step greedy oracle, which tries actions to find the one with the highest reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from agents.baselines import BaselinePolicy
from agents.observations import Observation
from al_seg_env.storage.validation import check, check_int, check_seed


class GreedyOraclePolicy(BaselinePolicy):
    """Tries actions on a fork of the environment, and takes the one with the highest true reward.

    It is a reference for heuristics and agents, not a method: it sees the reward of a step, and so the ground truth,
    before the step is taken. The search starts from the best of some complete actions. It then goes through the pools
    and keeps the best of some candidates in each. The environment then returns exactly the reward that was found. The
    best action in each step need not be the best for an episode.

    Args:
        env: The environment being played. Unlike other policies, this one needs more than the environment's spaces:
            ``get_state``, ``set_state``, ``fork``, ``config.budget``, and an oracle that can answer for regions
            that are not requested in the end.
        draws: Number of random complete actions to start with.
        per_pool: Number of candidates then tried in each pool, in random order; 0 for none.
        suggestions: Policies whose choices are tried first, such as an entropy policy.
        seed: Seed of the policy's own random source; ``None`` draws one from the system.

    Attributes:
        gains: The rewards of all trials of the last step, in the order in which they were tried.

    Raises:
        ValueError: If there is no choice to try, or the environment cannot be forked.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        draws: int = 8,
        per_pool: int = 0,
        suggestions: Sequence[Any] = (),
        seed: int | None = None,
    ) -> None:
        self.draws, self.per_pool = check_int("draws", draws, 0), check_int("per_pool", per_pool, 0)
        good = isinstance(suggestions, list | tuple) and all(hasattr(policy, "predict") for policy in suggestions)
        check("suggestions", suggestions, good, "a list of policies")
        if not (draws or per_pool or suggestions):
            raise ValueError("draws and per_pool are 0, and there are no suggestions; expected at least one choice")
        missing = [name for name in ("get_state", "set_state", "fork") if not hasattr(env.unwrapped, name)]
        if missing:
            raise ValueError(
                f"{env.unwrapped} has no {' and no '.join(missing)}, which the greedy oracle needs to try actions on a "
                "fork of the environment."
            )
        self.env: Any = env.unwrapped
        unit = self.env.get_wrapper_attr("config").budget_unit
        check("budget_unit", unit, unit == "regions", "'regions', in which the greedy oracle counts")
        self.suggestions = tuple(suggestions)
        self.rng = np.random.default_rng(check_seed("seed", seed))
        self.gains: list[float] = []

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """The best of the choices that were tried for the environment's current step, (K,); int64."""
        sizes = self.env.action_space.nvec  # (K,)
        if np.ndim(observation["candidates"]) != 3:
            raise ValueError(
                "The observation is a batch; expected a single one, since the greedy oracle plays one environment."
            )
        now = self.env.get_state()
        labelled, budget = len(now["labels"]["regions"]), self.env.config.budget
        active = min(len(sizes), budget - labelled)
        # With a budget for one step, trials end there and compute no next observation.
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
        return best

    def _better(
        self, best: npt.NDArray[np.int64], gain: float, action: npt.NDArray[np.int64], now: dict[str, Any]
    ) -> tuple[npt.NDArray[np.int64], float]:
        self._fork.set_state(now)
        reward = self._fork.step(action)[1]
        self.gains.append(reward)
        return (action, reward) if reward > gain else (best, gain)
