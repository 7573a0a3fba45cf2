"""What the labels of each class are worth, learnt from the rewards of whole steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

SPREAD = 0.5


@dataclass(frozen=True)
class Worth:
    """The posterior of a linear model of returns, ``r_1 + ... + r_t = w . d_t + constant of t + noise``.

    d_t is what the labels of an episode's first t steps, as far as they exceed the prediction, add to the logarithmic
    label levels of the classes. w is the worth of the classes: the reward weights of successor features (Barreto et
    al., NeurIPS 2017), estimated by Bayesian linear regression. A priori all classes are worth the same.

    Attributes:
        mean: Mean of w, ``(C,)`` float64.
        covariance: Covariance of w, ``(C, C)`` float64.

    >>> Worth.unknown(2).mean
    array([1., 1.])
    """

    mean: FloatArray
    covariance: FloatArray

    @classmethod
    def unknown(cls, n_classes: int, spread: float = SPREAD) -> Worth:
        """Return the prior: what is believed before the first reward."""
        return cls(np.ones(n_classes), spread**2 * np.eye(n_classes))

    @classmethod
    def learnt(
        cls, added: npt.ArrayLike, returns: npt.ArrayLike, steps: npt.ArrayLike, spread: float = SPREAD
    ) -> Worth:
        """Return the posterior given the beginnings of episodes.

        The prior mean, which all classes share, and the standard deviation of the noise come from a regression of the
        returns on the sum over the classes.

        Args:
            added: d_t of n beginnings, ``(n, C)``; see :class:`Worth`.
            returns: Sum of the rewards of each beginning, ``(n,)``.
            steps: Number of steps of each beginning, ``(n,)``.
            spread: Prior standard deviation of the classes' worth, as a multiple of the prior mean. Where rewards tell
                little, all classes keep about the same worth.
        """
        d, r, t = np.array(added, np.float64), np.array(returns, np.float64), np.asarray(steps)
        for step in np.unique(t):  # the constants of t
            d[t == step] -= d[t == step].mean(axis=0)
            r[t == step] -= r[t == step].mean()
        n_classes, total = d.shape[1], d.sum(axis=1)
        if len(t) - len(np.unique(t)) < 2 or not np.var(total) > 0 or not np.var(r) > 0:
            return cls.unknown(n_classes, spread)
        shared = max(float(total @ r / (total @ total)), 0.0)
        noise = max(float(np.var(r - shared * total)), 1e-9 * float(np.var(r)))  # above 0 where all is explained
        # Where the sum explains nothing, a class may still be worth what would explain all returns.
        shared = max(shared, float(np.std(r) / np.std(total)) / n_classes)
        prior = np.full(n_classes, shared)
        covariance = np.linalg.inv(d.T @ d / noise + np.eye(n_classes) / (spread * shared) ** 2)
        mean = prior + covariance @ d.T @ (r - d @ prior) / noise
        return cls(mean, (covariance + covariance.T) / 2)

    @property
    def positive(self) -> FloatArray:
        """The mean, or 0 where it is negative, since labels do no harm, ``(C,)`` float64."""
        return np.maximum(self.mean, 0.0)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """Return a draw of w, with 0 for negative values, ``(C,)`` float64."""
        return np.maximum(rng.multivariate_normal(self.mean, self.covariance, method="cholesky"), 0.0)
