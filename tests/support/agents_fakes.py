"""A small environment with the spaces and info that agents need; features tell which regions are the best."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class FakeRegionEnv(gym.Env):
    """A contextual bandit: feature 0 of a candidate is its worth; the reward is the mean worth of the chosen.

    An episode ends when ``budget`` regions are labelled; the last step counts what the budget still allows.
    Pools that don't count in a step are all zeros.
    """

    def __init__(
        self,
        pools: int = 3,
        candidates: int = 4,
        regions: int = 5,
        features: int = 6,
        similarity: int = 4,
        budget: int = 12,
        scores: bool = False,
        layout: dict[str, Any] | None = None,
        report: bool = True,
    ) -> None:
        self.pools, self.n_candidates, self.budget, self.report = pools, candidates, budget, report
        parts = {"state": (regions, features), "candidates": (pools, candidates, features)}
        if similarity:
            parts["similarity"] = (pools, candidates, similarity)
        if scores:
            parts["score_entropy"] = (pools, candidates)
        self.observation_space = spaces.Dict(
            {name: spaces.Box(0.0, 1.0, shape, np.float32) for name, shape in parts.items()}
        )
        self.action_space = spaces.MultiDiscrete([candidates] * pools)
        if layout is not None:
            self.layout = layout

    def _active(self) -> int:
        return min(self.pools, self.budget - self.labelled)

    def _observe(self) -> dict[str, np.ndarray]:
        draws = {
            name: self.np_random.random(space.shape, dtype=np.float32)
            for name, space in self.observation_space.spaces.items()
        }
        if "score_entropy" in draws:
            draws["score_entropy"] = draws["candidates"][..., 0].copy()
        for name, draw in draws.items():
            if name != "state":
                draw[self._active() :] = 0.0
            elif self._active() == 0:
                draw[:] = 0.0
        return draws

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.labelled = 0
        self.last = self._observe()
        return {name: part.copy() for name, part in self.last.items()}, self._info(())

    def _info(self, chosen: tuple[int, ...]) -> dict[str, Any]:
        if not self.report:
            return {}
        return {
            "chosen": chosen,
            "next_active": self._active(),
            "labelled": self.labelled,
            "miou": 40.0 + self.labelled,
        }

    def step(self, action):
        counted = self._active()
        worth = self.last["candidates"][np.arange(counted), np.asarray(action)[:counted], 0]
        chosen = tuple(range(self.labelled, self.labelled + counted))
        self.labelled += counted
        terminated = self.labelled == self.budget
        self.last = self._observe()
        observation = {name: part.copy() for name, part in self.last.items()}
        return observation, float(worth.mean()), terminated, False, self._info(chosen)


class CreditedEnv(FakeRegionEnv):
    """Tells what each chosen region holds of two classes: features 0 and 1, from 0 to 1.

    Features 2 and 3 are the logarithmic label levels of these classes, features 4 and 5 what is predicted of them, up
    to 0.3. The shared reward is noise, plus what the labels of class 0 are worth: by how much that which was not
    predicted raises the level, times ``worth``. Features 6 to 11, if there are as many, are those of a forecast.
    """

    worth = 0.0

    def feature_columns(self, name):
        return {"labelled": slice(2, 4), "mean_probability": slice(4, 6), "forecast": slice(6, 12)}[name]

    def reset(self, *, seed=None, options=None):
        self.amounts = np.ones(2)
        return super().reset(seed=seed, options=options)

    def _observe(self):
        observation = super()._observe()
        observation["candidates"][..., 4:6] *= 0.3
        observation["candidates"][..., 2:4] = np.log(self.amounts) if self.labelled < self.budget else 0
        return observation

    def step(self, action):
        last = self.last["candidates"]
        held = np.array([last[k, action[k], :2] for k in range(self._active())])
        new = np.maximum(held - [last[k, action[k], 4:6] for k in range(len(held))], 0)
        raised = np.log1p(new.sum(axis=0) / self.amounts)
        self.amounts = self.amounts + held.sum(axis=0)
        observation, _, terminated, truncated, info = super().step(action)
        info["sub_rewards"] = tuple(held[:, 0].tolist())
        info["class_rewards"] = held
        return observation, float(self.np_random.normal() + self.worth * raised[0]), terminated, truncated, info
