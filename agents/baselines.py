"""Baselines: those of the paper (section 4.2), and heuristics that later work found to be strong.

All have Stable-Baselines3's ``predict``, so ``evaluate_policy`` accepts them in place of an agent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.observations import Observation
from al_seg_env.storage.validation import check, check_number, check_seed


class BaselinePolicy(ABC):
    """A policy that neither learns nor has a state. Subclasses only implement :meth:`choose`."""

    @abstractmethod
    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for one observation, (n_envs, K) for several; int64."""

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.int64], Any]:
        """Choices (K,) for one observation, (n_envs, K) for several, int64; ``state`` is returned unchanged."""
        return self.choose(observation), state


class UniformPolicy(BaselinePolicy):
    """Draws a region uniformly from each pool, the paper's baseline U.

    It is random even if ``deterministic``. Runs with the same seed are equal.

    Args:
        seed: Seed of the policy's own random source; ``None`` draws one from the system.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.rng = np.random.default_rng(check_seed("seed", seed))

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for ``candidates`` of shape (K, N, F), (n_envs, K) for (n_envs, K, N, F); int64."""
        *shape, n_candidates, _ = _entry(observation, "candidates", "").shape
        return self.rng.integers(n_candidates, size=shape)


class ScorePolicy(BaselinePolicy):
    """Selects the region with the highest score from each pool, and the first one on ties.

    Args:
        key: Entry of the observation that holds the scores, such as ``"score_entropy"``.
    """

    def __init__(self, key: str) -> None:
        check("key", key, isinstance(key, str), "an entry of the observation, such as 'score_entropy'")
        self.key = key

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for scores of shape (K, N), (n_envs, K) for (n_envs, K, N); int64."""
        return self._order(_scores(observation, self.key)).argmax(axis=-1).astype(np.int64)

    def _order(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values whose maximum is selected, in the shape of ``scores``."""
        return scores


class PowerScorePolicy(ScorePolicy):
    """Draws a region from each pool with a probability proportional to a power of its score.

    This is the sampling of PowerBALD (Kirsch et al., "Stochastic Batch Acquisition", TMLR 2023): the policy selects the
    highest ``log score + Gumbel noise / power`` of each pool, so that a batch does not consist of near duplicates.

    Args:
        key: Entry of the observation that holds the scores, such as ``"score_margin"``.
        power: Exponent of the score, at least 0. 0 draws uniformly; large values select the highest score.
        seed: Seed of the policy's own random source; ``None`` draws one from the system.
    """

    def __init__(self, key: str, power: float = 8.0, seed: int | None = None) -> None:
        super().__init__(key)
        self.power = check_number("power", power, least=0)
        self.rng = np.random.default_rng(check_seed("seed", seed))

    def _order(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self.power * _log(scores) + self.rng.gumbel(size=scores.shape)


class ForegroundPolicy(BaselinePolicy):
    """ "Foreground-aware random": uniform selection, restricted in a share of the pools to regions with foreground.

    The policy is nnActive's (Lüth et al., 2025), where few scores beat it. The environment's score ``"foreground"``
    tells which regions are predicted to have foreground.

    Args:
        share: Probability that the selection from a pool is restricted to regions with foreground.
        seed: Seed of the policy's own random source; ``None`` draws one from the system.
    """

    def __init__(self, share: float = 2 / 3, seed: int | None = None) -> None:
        self.share = check_number("share", share, least=0, most=1)
        self.rng = np.random.default_rng(check_seed("seed", seed))

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for scores of shape (K, N), (n_envs, K) for (n_envs, K, N); int64."""
        foreground = _scores(observation, "score_foreground") > 0
        aware = self.rng.random(foreground.shape[:-1]) < self.share
        allowed = foreground | ~(aware & foreground.any(axis=-1))[..., None]
        return np.where(allowed, self.rng.random(foreground.shape), -1.0).argmax(axis=-1).astype(np.int64)


class StratifiedEntropyPolicy(BaselinePolicy):
    """Entropy class by class, with power noise, similar to nnActive's ClaSP PE.

    In a share of the pools, a class is drawn uniformly from those that the network predicts in the pool, and regions
    are ranked by the entropy of that class. In the other pools, they are ranked by the total entropy. The noise is that
    of :class:`PowerScorePolicy`.

    Args:
        columns: Columns of ``candidates`` with each class's share of the mean entropy, the feature
            ``"class_entropy"``; see :meth:`al_seg_env.RegionSelectionEnv.feature_columns`.
        share: Probability that a class is drawn for a pool.
        power: Power of the noise; see :class:`PowerScorePolicy`.
        seed: Seed of the policy's own random source; ``None`` draws one from the system.
    """

    def __init__(self, columns: slice, share: float = 2 / 3, power: float = 8.0, seed: int | None = None) -> None:
        check("columns", columns, isinstance(columns, slice), "a slice, env.unwrapped.feature_columns('class_entropy')")
        self.columns = columns
        self.share, self.power = check_number("share", share, least=0, most=1), check_number("power", power, least=0)
        self.rng = np.random.default_rng(check_seed("seed", seed))

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for ``candidates`` of shape (K, N, F), (n_envs, K) for (n_envs, K, N, F); int64."""
        of_class = _entry(observation, "candidates", "")[..., self.columns]  # (..., N, C)
        seen = of_class.max(axis=-2) > 0.01  # (..., C), in nats
        drawn = np.where(seen, self.rng.random(seen.shape), -1.0).argmax(axis=-1)[..., None, None]  # (..., 1, 1)
        of_drawn = np.take_along_axis(of_class, drawn, axis=-1)[..., 0]  # (..., N)
        stratified = self.rng.random(seen.shape[:-1])[..., None] < self.share
        scores = np.where(stratified, of_drawn, of_class.sum(axis=-1))
        order = self.power * _log(scores) + self.rng.gumbel(size=scores.shape)
        return order.argmax(axis=-1).astype(np.int64)


class LinearPolicy(BaselinePolicy):
    """Selects from each pool the region whose features have the highest dot product with given coefficients.

    :meth:`fitted` gives a *supervised* policy: a ridge regression of the worth of regions, computed from their labels.
    This is what an agent could learn without any reward.

    Args:
        coefficients: One number per feature, ``(F,)``.
    """

    def __init__(self, coefficients: npt.ArrayLike) -> None:
        self.coefficients = np.asarray(coefficients, np.float64)
        good = self.coefficients.ndim == 1 and bool(np.isfinite(self.coefficients).all())
        check("coefficients", coefficients, good, "finite numbers of shape (F,)")

    @classmethod
    def fitted(cls, features: npt.ArrayLike, worth: npt.ArrayLike, penalty: float = 1.0) -> LinearPolicy:
        """Return the policy of a ridge regression on standardised features.

        Args:
            features: Features of n regions, ``(n, F)``.
            worth: Worth of the labels of each region, ``(n,)``.
            penalty: Penalty on the squared coefficients, per region: 1 halves the coefficient of a single feature.
        """
        x, y = np.asarray(features, np.float64), np.asarray(worth, np.float64)
        deviation = x.std(axis=0)
        varies = deviation > 1e-6
        x = (x - x.mean(axis=0))[:, varies] / deviation[varies]
        normal = x.T @ x / len(x) + check_number("penalty", penalty, least=0) * np.eye(x.shape[1])
        coefficients = np.zeros(len(varies))
        coefficients[varies] = np.linalg.solve(normal, x.T @ (y - y.mean()) / len(x)) / deviation[varies]
        return cls(coefficients)

    def choose(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Choices (K,) for ``candidates`` of shape (K, N, F), (n_envs, K) for (n_envs, K, N, F); int64."""
        values = _entry(observation, "candidates", "").astype(np.float64) @ self.coefficients
        return values.argmax(axis=-1).astype(np.int64)


class EntropyPolicy(ScorePolicy):
    """Selects the regions with the highest Shannon entropy: the paper's baseline H."""

    def __init__(self) -> None:
        super().__init__("score_entropy")


class BALDPolicy(ScorePolicy):
    """Selects the regions with the highest mutual information under dropout: the paper's baseline B."""

    def __init__(self) -> None:
        super().__init__("score_bald")


class RareClassPolicy(ScorePolicy):
    """Selects the regions that hold most of the rare classes by ground truth: an oracle for reference, not a method."""

    def __init__(self) -> None:
        super().__init__("score_privileged_rarity")


def _scores(observation: Observation, key: str) -> npt.NDArray[Any]:
    score = key.removeprefix("score_")
    return _entry(observation, key, f" Make the environment with scores=[{score!r}]; a score's key is 'score_{score}'.")


def _log(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the logarithm of scores, which may be 0."""
    return np.log(np.maximum(scores, 1e-12))


def _entry(observation: Observation, key: str, remedy: str) -> npt.NDArray[Any]:
    if not isinstance(observation, dict):
        raise ValueError(
            f"Expected an observation as a dict of arrays, but got {type(observation).__name__}. "
            "With Gymnasium, write `obs, info = env.reset()`."
        )
    if key not in observation:
        raise ValueError(f"The observation has the keys {sorted(observation)}; expected {key!r} among them.{remedy}")
    return np.asarray(observation[key])
