"""Statistics of an experiment's results: pure functions of numbers, based on scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Summary(NamedTuple):
    """Mean, standard deviation (ddof = 1; NaN where n < 2) and number of values."""

    mean: float
    std: float
    n: int


class PairedTest(NamedTuple):
    """The result of paired tests of two methods over the seeds that both have.

    Attributes:
        n: Number of seeds.
        difference: Mean of the differences, in the unit of the values.
        low: Lower end of the t interval of the mean difference.
        high: Upper end of the interval.
        t_p: Two-sided p-value of the paired t-test.
        wilcoxon_p: Two-sided p-value of Wilcoxon's signed-rank test; never below 2^(1 - n).
    """

    n: int
    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float


def summary(values: Sequence[float]) -> Summary:
    """Return the mean, standard deviation (ddof = 1) and number of at least one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(np.mean(values)), std, len(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean of n values, ``(NaN, NaN)`` for n < 2."""
    return _t_test(values, confidence)[1:] if len(values) > 1 else (float("nan"), float("nan"))


def paired_test(ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95) -> PairedTest | None:
    """Test the differences ``ours - theirs`` of two methods seed by seed; None if they share fewer than 2 seeds.

    If all differences are 0, both p-values are 1.

    Args:
        ours: The method's value for each seed.
        theirs: The other method's value for each seed. Seeds that only one of them has are omitted.
        confidence: Confidence level of the interval of the mean difference.
    """
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return None
    differences = [round(ours[seed] - theirs[seed], 9) for seed in seeds]  # so that equal ones are ties
    t_p, low, high = _t_test(differences, confidence)
    wilcoxon_p = 1.0
    if any(differences):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of ties
            wilcoxon_p = float(_scipy_stats().wilcoxon(differences).pvalue)
    else:
        t_p = 1.0
    return PairedTest(len(seeds), float(np.mean(differences)), low, high, t_p, wilcoxon_p)


def _t_test(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Test whether the mean of at least 2 values is 0: return the two-sided p-value and the ends of the t interval."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns of equal values, for which p = 0 is the limit
        test = _scipy_stats().ttest_1samp(values, 0)
        interval = test.confidence_interval(confidence)
    return float(test.pvalue), float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of n cases.

    Args:
        statistic: Called with the indices ``(n,)`` of the cases that were drawn, with replacement.
        n: Number of cases.
        seed: Seed of the draws.
        draws: Number of bootstrap samples.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return p-values corrected for multiple comparisons (Holm, 1979), in the given order, ``(n,)``.

    The k-th smallest of n p-values is multiplied by ``n - k + 1``. A corrected p-value is never below that of a smaller
    one, and never above 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def area_under_curve(budgets: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve (trapezoidal rule) divided by its range of budgets: the curve's mean height.

    Args:
        budgets: Numbers of labelled regions, at least 2 of them, increasing.
        values: Mean IoU at each budget, percent.
    """
    return float(np.trapezoid(values, budgets) / (budgets[-1] - budgets[0]))


def labels_needed(budgets: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the regions at which a curve first reaches ``target``, by linear interpolation.

    Returns None if the curve never does. If it reaches the target at its first budget already, that budget is returned,
    which is an upper bound.

    Args:
        budgets: Numbers of labelled regions, increasing.
        values: Mean IoU at each budget, percent.
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
    """Return the entropy (nats) of the distribution given by counts per class (figure 3 of the paper).

    It is 0 if one class has all counts, ``log C`` if all C classes have the same count, and NaN if all counts are 0.
    """
    return float(_scipy_stats().entropy(counts)) if any(counts) else float("nan")


def _scipy_stats() -> Any:
    """Import scipy.stats on first use: the import is slow, and commands without a report don't need it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError('the statistics need scipy; install it with: pip install "al-seg-env[examples]"') from error
    return stats
