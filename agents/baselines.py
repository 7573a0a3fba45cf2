"""The baselines of the DQN (paper, section 4.2): uniform choice, and the highest acquisition score.

All have the ``predict`` of Stable-Baselines3, so that ``evaluate_policy`` takes them in place of an agent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agents.observations import Observation
from al_seg_env.storage.validation import check, check_seed


class UniformPolicy:
    """Draws a region from each pool, uniformly. Random even where ``deterministic``; seeded runs are equal.

    Args:
        seed: Seed of the policy's own random source; ``None`` draws one from the system.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.rng = np.random.default_rng(check_seed("seed", seed))

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.int64], Any]:
        """Choices (K,) for ``candidates`` of shape (K, N, F), (n_envs, K) for (n_envs, K, N, F); int64."""
        *shape, n_candidates, _ = _entry(observation, "candidates", "").shape
        return self.rng.integers(n_candidates, size=shape), state


class ScorePolicy:
    """Takes the region with the highest score from each pool; the first of equals.

    Args:
        key: Entry of the observation that holds the scores, such as ``"score_entropy"``.
    """

    def __init__(self, key: str) -> None:
        check("key", key, isinstance(key, str), "an entry of the observation, such as 'score_entropy'")
        self.key = key

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.int64], Any]:
        """Choices (K,) for scores of shape (K, N), (n_envs, K) for (n_envs, K, N); int64."""
        name = self.key.removeprefix("score_")
        scores = _entry(observation, self.key, f" Make the environment with scores=({name!r},).")
        return scores.argmax(axis=-1).astype(np.int64), state


class EntropyPolicy(ScorePolicy):
    """The regions of highest Shannon entropy: the paper's baseline H."""

    def __init__(self) -> None:
        super().__init__("score_entropy")


class BALDPolicy(ScorePolicy):
    """The regions of highest mutual information under dropout: the paper's baseline B."""

    def __init__(self) -> None:
        super().__init__("score_bald")


class RareClassPolicy(ScorePolicy):
    """The regions richest in rare classes, by the true labels: an upper reference that knows what no agent may know."""

    def __init__(self) -> None:
        super().__init__("score_privileged_rarity")


def _entry(observation: Observation, key: str, remedy: str) -> npt.NDArray[Any]:
    if not isinstance(observation, dict):
        raise ValueError(
            f"Expected an observation as a dict of arrays, but got {type(observation).__name__}. "
            "With Gymnasium, write `obs, info = env.reset()`."
        )
    if key not in observation:
        raise ValueError(f"The observation has the keys {sorted(observation)}, but not {key!r}.{remedy}")
    return np.asarray(observation[key])
