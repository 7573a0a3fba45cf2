"""Statistics of an experiment's results: pure functions of numbers, on scipy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from scipy import stats
except ImportError as error:
    raise ImportError('the statistics need scipy; install it with: pip install "al-seg-env[examples]"') from error


class Summary(NamedTuple):
    """Mean, standard deviation (ddof = 1; NaN where n < 2) and number of values."""

    mean: float
    std: float
    n: int


class PairedTest(NamedTuple):
    """Differences of two methods over the seeds that both have.

    Attributes:
        n: Number of seeds.
        difference: Mean of the differences, in the unit of the values.
        low: Lower end of the t interval of the mean difference.
        high: Upper end.
        t_p: Two-sided p of the paired t-test.
        wilcoxon_p: Two-sided p of Wilcoxon's signed-rank test; never below 2^(1 - n).
    """

    n: int
    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float


def summary(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation (ddof = 1) and number of at least one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(np.mean(values)), std, len(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean of n values, ``(NaN, NaN)`` for n < 2."""
    mean, std, n = summary(values)
    margin = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / np.sqrt(n) if n > 1 else float("nan")
    return mean - margin, mean + margin


def paired_test(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95) -> PairedTest | None:
    """Compare two methods seed by seed, ``ours - theirs``; None if they share fewer than 2 seeds.

    Where all differences are 0, both p are 1.

    Args:
        ours: A value per seed.
        theirs: The same of the other method; seeds that only one has are left out.
        confidence: Of the interval of the mean difference.
    """
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return None
    differences = [round(ours[seed] - theirs[seed], 9) for seed in seeds]  # so that equal ones are ties
    low, high = mean_interval(differences, confidence)
    t_p = wilcoxon_p = 1.0
    if any(differences):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scipy warns of equal differences, for which p = 0 is the limit
            t_p = float(stats.ttest_1samp(differences, 0).pvalue)
            wilcoxon_p = float(stats.wilcoxon(differences).pvalue)
    return PairedTest(len(seeds), float(np.mean(differences)), low, high, t_p, wilcoxon_p)


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return p values corrected for their number (Holm, 1979), in the given order, ``(n,)``.

    The k-th smallest of n is multiplied by ``n - k + 1``; none may be below a smaller one's, none above 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def area_under_curve(budgets: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve (trapezoids) divided by its range of budgets: the mean height.

    Args:
        budgets: At least 2 regions labelled, increasing.
        values: Mean IoU at each, percent.
    """
    x, y = np.asarray(budgets, np.float64), np.asarray(values, np.float64)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def labels_needed(budgets: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the regions at which a curve first reaches ``target``, by linear interpolation.

    None if it never does. If it has reached it at its first budget already, that is returned: an upper bound.

    Args:
        budgets: Regions labelled, increasing.
        values: Mean IoU at each, percent.
        target: Mean IoU to reach, percent.
    """
    for i, (budget, value) in enumerate(zip(budgets, values, strict=True)):
        if value >= target:
            if i == 0:
                return float(budget)
            share = (target - values[i - 1]) / (value - values[i - 1])
            return float(budgets[i - 1] + share * (budget - budgets[i - 1]))
    return None


def class_entropy(counts: Sequence[float]) -> float:
    """Return the entropy (nats) of the distribution given by counts per class, figure 3 of the paper.

    It is 0 if all are of one class and ``log C`` if all C classes are alike; NaN if nothing was counted.
    """
    n = np.asarray(counts, np.float64)
    if not n.sum():
        return float("nan")
    shares = n[n > 0] / n.sum()
    return float(max(0.0, -(shares * np.log(shares)).sum()))
