"""Schedules of exploration and learning rate, and what the sub-actions that explore follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from agents.baselines import ScorePolicy

EXPLORATIONS = ("sub_action", "step", "episode")
UNIFORM = "uniform"

Epsilon: TypeAlias = float | Callable[[int], float]


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}: expected a probability between 0 and 1.")


@dataclass(frozen=True)
class LinearEpsilon:
    """From ``initial`` to ``final`` in equal parts over ``steps`` environment steps, then ``final``."""

    initial: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        _check_probability("initial", self.initial)
        _check_probability("final", self.final)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: expected at least 1.")

    def __call__(self, num_timesteps: int) -> float:
        """Epsilon after ``num_timesteps`` environment steps."""
        return self.initial + (self.final - self.initial) * min(num_timesteps / self.steps, 1.0)


@dataclass(frozen=True)
class ExponentialEpsilon:
    """``final + (initial - final) * exp(-steps / decay)``, as in the released code; the paper gives none."""

    initial: float = 0.9
    final: float = 0.05
    decay: float = 10.0

    def __post_init__(self) -> None:
        _check_probability("initial", self.initial)
        _check_probability("final", self.final)
        if not self.decay > 0:
            raise ValueError(f"decay is {self.decay}: expected a positive number of environment steps.")

    def __call__(self, num_timesteps: int) -> float:
        """Epsilon after ``num_timesteps`` environment steps."""
        return self.final + (self.initial - self.final) * math.exp(-num_timesteps / self.decay)


@dataclass(frozen=True)
class ExponentialRate:
    """A learning rate for ``SubActionDQN(learning_rate=...)``: ``initial * decay ** steps done``.

    The released code's decay is 0.97, so that learning soon stops.

    Args:
        initial: The first one.
        decay: Factor per environment step.
        steps: Environment steps in all, which Stable-Baselines3 tells as progress.
    """

    initial: float
    decay: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.initial > 0 and 0 < self.decay <= 1 and self.steps >= 1):
            raise ValueError(f"{self}: expected a positive rate, a decay above 0 and up to 1, and at least 1 step.")

    def __call__(self, progress_remaining: float) -> float:
        """The rate when ``progress_remaining``, from 1 to 0, is left."""
        return self.initial * self.decay ** (self.steps * (1.0 - progress_remaining))


def epsilon_at(epsilon: Epsilon, num_timesteps: int) -> float:
    """Epsilon after ``num_timesteps`` environment steps; ``ValueError`` where it is no probability."""
    value = float(epsilon(num_timesteps) if callable(epsilon) else epsilon)
    _check_probability(f"epsilon after {num_timesteps} steps", value)
    return value


def draw_guides(shape: tuple[int, ...], n_guides: int, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Draw who is followed: with probability epsilon one of the guides, each as likely; else the greedy policy.

    Returns:
        ``shape``, int64: the number of a guide, or ``n_guides`` for the greedy policy.
    """
    return np.where(rng.random(shape) < epsilon, rng.integers(n_guides, size=shape), n_guides)


def follow(
    drawn: np.ndarray,
    greedy: np.ndarray,
    guides: Sequence[str],
    observation: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the sub-actions of those that :func:`draw_guides` drew.

    Args:
        drawn: (..., K), or (..., 1) where one is followed in all K.
        greedy: (..., K), the greedy sub-actions.
        guides: ``"uniform"``, or entries (..., K, N) of the observation, whose highest is taken.
        observation: What the guides look at.
        rng: Source of the uniform choices.

    Returns:
        (..., K), int64.

    Raises:
        ValueError: If the observation lacks the score that a guide follows.
    """
    n_candidates = observation["candidates"].shape[-2]
    choices = [
        rng.integers(n_candidates, size=greedy.shape)
        if guide == UNIFORM
        else ScorePolicy(guide).predict(dict(observation))[0]
        for guide in guides
    ]
    everyone = np.stack([*choices, greedy])  # (guides + 1, ..., K)
    return np.take_along_axis(everyone, np.broadcast_to(drawn, greedy.shape)[None], axis=0)[0]
