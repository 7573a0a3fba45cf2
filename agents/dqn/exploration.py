"""Schedules for exploration and learning rate, and the guides that exploring sub-actions follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.baselines import ScorePolicy
from al_seg_env.storage.validation import check_int, check_number

EXPLORATIONS = ("sub_action", "step", "episode")
UNIFORM = "uniform"

Epsilon: TypeAlias = float | Callable[[int], float]


@dataclass(frozen=True)
class LinearEpsilon:
    """Epsilon that changes linearly from ``initial`` to ``final`` over ``steps`` environment steps and stays there."""

    initial: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        check_number("initial", self.initial, least=0, most=1)
        check_number("final", self.final, least=0, most=1)
        check_int("steps", self.steps, 1)

    def __call__(self, num_timesteps: int) -> float:
        """Epsilon after ``num_timesteps`` environment steps."""
        return self.initial + (self.final - self.initial) * min(num_timesteps / self.steps, 1.0)


@dataclass(frozen=True)
class ExponentialEpsilon:
    """Epsilon ``final + (initial - final) * exp(-steps / decay)``, as in the released code; the paper gives none."""

    initial: float = 0.9
    final: float = 0.05
    decay: float = 10.0

    def __post_init__(self) -> None:
        check_number("initial", self.initial, least=0, most=1)
        check_number("final", self.final, least=0, most=1)
        check_number("decay", self.decay, above=0)

    def __call__(self, num_timesteps: int) -> float:
        """Epsilon after ``num_timesteps`` environment steps."""
        return self.final + (self.initial - self.final) * math.exp(-num_timesteps / self.decay)


@dataclass(frozen=True)
class ExponentialRate:
    """A learning rate for ``SubActionDQN(learning_rate=...)``: ``initial * decay ** steps done``.

    The released code's decay is 0.97, with which learning soon stops.

    Args:
        initial: The first rate.
        decay: Factor per environment step, up to 1.
        steps: Environment steps of the whole training. Stable-Baselines3 reports progress only as a share of them.
    """

    initial: float
    decay: float
    steps: int = field(repr=False)  # a longer training has the same rates, so it may continue a shorter one

    def __post_init__(self) -> None:
        check_number("initial", self.initial, above=0)
        check_number("decay", self.decay, above=0, most=1)
        check_int("steps", self.steps, 1)

    def __call__(self, progress_remaining: float) -> float:
        """Learning rate when ``progress_remaining``, from 1 down to 0, is left."""
        return self.initial * math.pow(self.decay, self.steps * (1.0 - progress_remaining))


def epsilon_at(epsilon: Epsilon, num_timesteps: int) -> float:
    """Epsilon after ``num_timesteps`` environment steps; ``ValueError`` if it is not a probability."""
    name, other = f"epsilon after {num_timesteps} steps", "a function of the environment steps"
    if callable(epsilon):
        return check_number(name, _called(epsilon, num_timesteps, "epsilon", other), least=0, most=1)
    return check_number(name, epsilon, least=0, most=1, alternative=other)


def rate_at(schedule: Callable[[float], float], progress_remaining: float) -> float:
    """Learning rate when ``progress_remaining`` is left; ``ValueError`` if it is negative or not finite."""
    rate = _called(schedule, progress_remaining, "learning_rate", "a function of the progress remaining")
    return check_number(f"learning_rate with {progress_remaining:g} of the progress remaining", rate, least=0)


def _called(schedule: Callable[[Any], Any], argument: float, name: str, expected: str) -> Any:
    try:
        return schedule(argument)
    except TypeError as error:
        raise ValueError(f"{name} is {schedule!r}; expected {expected} ({error})") from error


def draw_guides(
    shape: tuple[int, ...], n_guides: int, epsilon: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw what to follow: with probability epsilon one of the guides, drawn uniformly, else the greedy policy.

    Returns:
        Array of the given ``shape``, int64: the index of a guide, or ``n_guides`` for the greedy policy.
    """
    return np.where(rng.random(shape) < epsilon, rng.integers(n_guides, size=shape), n_guides)


def follow(
    drawn: npt.NDArray[np.int64],
    greedy: npt.NDArray[np.int64],
    guides: Sequence[str],
    observation: Mapping[str, npt.NDArray[Any]],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return the sub-actions of the guides that :func:`draw_guides` drew.

    Args:
        drawn: (..., K), or (..., 1) to follow the same one in all K pools.
        greedy: (..., K), the greedy sub-actions.
        guides: For each guide, ``"uniform"``, or the key of an entry (..., K, N) of the observation. Such a guide
            chooses the candidate with the highest value.
        observation: Observation that holds the guides' entries.
        rng: Random source of the uniform choices.

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
    sub_actions: npt.NDArray[np.int64] = np.take_along_axis(
        everyone, np.broadcast_to(drawn, greedy.shape)[None], axis=0
    )[0]
    return sub_actions
