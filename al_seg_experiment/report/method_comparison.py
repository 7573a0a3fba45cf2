"""Comparisons of methods: paired tests over the seeds, and the labels that each needs for the same mean IoU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from al_seg_experiment.report.analysis import BySeed, areas
from al_seg_experiment.report.results import HEURISTICS, Results
from al_seg_experiment.report.statistics import (
    bootstrap_interval,
    holm,
    labels_needed,
    mean_interval,
    paired_test,
    summary,
)
from al_seg_experiment.report.tables import Table

SIGNIFICANT = 0.05
"""Significance level of a single comparison."""
BEST = "best baseline"
AREA = "area"


def comparison_table(results: Results, split: str, against: str | None = None) -> Table:
    """Return paired tests of every method against uniform and the best baseline (or ``against``).

    The best baseline is the one with the highest mean at the same budget. Holm's correction covers all methods and
    budgets that are compared with the same reference; areas under the curves (``budget`` is ``"area"``) are corrected
    separately. If two methods share fewer than 2 seeds, the cells of the tests are empty.

    Columns: the budget; the role and the method of the reference; the method, and the number n of seeds that both
    have; the mean difference in points of mean IoU with its 95 % t interval; the p-values of both tests, before and
    after Holm's correction.
    """
    values: dict[Any, dict[str, BySeed]] = {}
    for budget in sorted({row.budget for row in results.rows} - {0}):  # theta_0 is the same for all
        values[budget] = {m: v for m in results.methods if (v := results.miou(split, m, budget))}
    rows: list[tuple[Any, ...]] = []
    for family in (values, {AREA: areas(results, split)}):
        for role in _roles(results, against):
            rows += _family(family, role)
    columns = ("budget", "compared_with", "reference", "method", "n", "difference", "ci_low", "ci_high")
    return Table((*columns, "t_p", "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm"), tuple(rows))


def variant_comparison_table(results: Results, split: str, against: str) -> Table:
    """Return paired tests of every variant against one of them, method by method.

    Holm's correction covers all variants and budgets of a method. The first column is the method; the others are
    those of :func:`comparison_table`, with variants in place of methods.
    """
    rows: list[tuple[Any, ...]] = []
    for method in results.methods:
        values: dict[Any, dict[str, BySeed]] = {}
        for variant in results.variants:
            part = results.of_variant(variant)
            for budget in part.budgets(method):
                if budget > 0:
                    values.setdefault(budget, {})[variant] = part.miou(split, method, budget)
        rows += [
            (method, budget, reference or "-", variant or "-", *rest)
            for budget, _, reference, variant, *rest in _family(values, against)
        ]
    columns = ("method", "budget", "reference", "variant", "n", "difference", "ci_low", "ci_high")
    return Table((*columns, "t_p", "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm"), tuple(rows))


def _roles(results: Results, against: str | None) -> list[str]:
    """Return the references of the comparisons: uniform, and the best baseline or a given method."""
    uniform = ["uniform"] if "uniform" in results.methods else []
    if against is not None:
        return list(dict.fromkeys([*uniform, against]))
    return [*uniform, *([BEST] if any(method in HEURISTICS for method in results.methods) else [])]


def _family(values: Mapping[Any, Mapping[str, BySeed]], role: str) -> list[tuple[Any, ...]]:
    """Return the rows of all comparisons with one reference, with p-values corrected for their number."""
    rows = []
    for budget, by_method in values.items():
        reference = _best_baseline(by_method) if role == BEST else role
        if reference is not None and reference in by_method:
            theirs = by_method[reference]
            for method, ours in by_method.items():
                if method != reference:
                    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
                    mean = float(np.mean(differences)) if differences else None
                    case = (budget, role, reference, method, len(differences), mean)
                    rows.append((case, paired_test(ours, theirs)))
    tests = [test for _, test in rows if test]
    t_holm, wilcoxon_holm = (iter(holm(p).tolist()) for p in ([t.t_p for t in tests], [t.wilcoxon_p for t in tests]))
    return [
        (*row, *test[2:5], next(t_holm), test.wilcoxon_p, next(wilcoxon_holm)) if test else (*row, *[None] * 6)
        for row, test in rows
    ]


def _best_baseline(values: Mapping[str, BySeed]) -> str | None:
    known = [method for method in values if method in HEURISTICS]
    # One that has not finished must not be the best by a lucky seed.
    most = max((len(values[method]) for method in known), default=0)
    known = [method for method in known if len(values[method]) == most]
    return max(known, key=lambda method: summary(list(values[method].values())).mean, default=None)


def verdict_table(results: Results, split: str, method: str) -> Table:
    """Return the comparisons of an intersection-union test of one method against every heuristic at every budget.

    The method is above every heuristic at every budget if each single comparison is significant. Because all of them
    must be significant, no correction for their number is needed (Berger, 1982), and no best baseline has to be chosen
    after the fact.

    Columns: the budget and the heuristic; the number n of seeds that both have; the mean difference in points of mean
    IoU with its 95 % t interval; the two-sided p-value of the paired t-test; whether the method is above the heuristic
    with p < 0.05. Comparisons in which the two share fewer than 2 seeds have no row; :func:`untested` lists them.
    """
    rows: list[tuple[Any, ...]] = []
    for budget, heuristic in _comparisons(results, method):
        ours, theirs = results.miou(split, method, budget), results.miou(split, heuristic, budget)
        if test := paired_test(ours, theirs):
            above = test.difference > 0 and test.t_p < SIGNIFICANT
            rows.append((budget, heuristic, *test[:5], above))
    return Table(("budget", "heuristic", "n", "difference", "ci_low", "ci_high", "t_p", "above"), tuple(rows))


def untested(results: Results, split: str, method: str) -> list[tuple[int, str]]:
    """Return the budgets and heuristics that :func:`verdict_table` lacks, because too few seeds have both."""
    records = verdict_table(results, split, method).records()
    tested = {(record["budget"], record["heuristic"]) for record in records}
    return [pair for pair in _comparisons(results, method) if pair not in tested]


def _comparisons(results: Results, method: str) -> list[tuple[int, str]]:
    """Return each budget of a method with each heuristic."""
    heuristics = [name for name in results.methods if name in HEURISTICS and name != method]
    budgets = sorted(set(results.budgets(method)) - {0})
    return [(budget, heuristic) for budget in budgets for heuristic in heuristics]


def penalty_table(results: Results, split: str) -> Table:
    """Return the pairwise penalty matrix: the share of budgets at which the column's method is above the row's.

    A method is above another one if its mean is higher with p < 0.05 in the two-sided paired t-test. The last column is
    the mean of the row: the lower it is, the less often the method is beaten. The matrix follows Ash et al. ("BADGE",
    ICLR 2020), who compare the means of the columns instead.
    """
    budgets = [budget for budget in results.budgets() if budget > 0]
    if not budgets or len(results.methods) < 2:
        return Table((), ())
    rows: list[tuple[Any, ...]] = []
    for beaten in results.methods:
        shares: list[float | None] = []
        for winner in results.methods:
            tests = [
                paired_test(results.miou(split, winner, budget), results.miou(split, beaten, budget))
                for budget in budgets
            ]
            wins = [test.difference > 0 and test.t_p < SIGNIFICANT for test in tests if test]
            shares.append(float(np.mean(wins)) if wins and winner != beaten else None)
        known = [share for share in shares if share is not None]
        rows.append((beaten, *shares, float(np.mean(known)) if known else None))
    return Table(("beaten", *results.methods, "mean"), tuple(rows))


def saved_table(results: Results, split: str, method: str, seed: int = 0) -> Table:
    """Return how many labels one method saves against each heuristic.

    The target is the heuristic's best mean over all budgets. Linear interpolation on the method's mean curve, which
    starts at theta_0, gives the number of regions at which the method reaches it. The 95 % interval comes from a paired
    bootstrap: seeds are resampled 2,000 times.

    Columns: the heuristic; its best mean IoU in percent, and the budget at which it reaches it; the number n of seeds
    that both have at all budgets; the regions that the method needs (None if it does not reach the target); the
    percentage of labels saved, and its interval. Savings are cut off at -100, which stands for a target not reached
    within the budgets.
    """
    ours = results.curves(split, method)
    start = [row.miou[split] for row in results.rows if row.budget == 0]
    rows: list[tuple[Any, ...]] = []
    for heuristic in (name for name in results.methods if name in HEURISTICS and name != method):
        theirs = results.curves(split, heuristic)
        budgets = sorted(set(results.budgets(method)) & set(results.budgets(heuristic)) - {0})
        seeds = sorted(s for s in set(ours) & set(theirs) if set(budgets) <= set(ours[s]) & set(theirs[s]))
        if len(seeds) > 1 and budgets:
            a, b = (np.array([[curves[s][budget] for budget in budgets] for s in seeds]) for curves in (ours, theirs))
            race = _Race(tuple(budgets), a, b, float(np.mean(start)) if start else None)
            target, at, regions = race.run(np.arange(len(seeds)))  # all of them
            share = None if regions is None else race.saved(np.arange(len(seeds)))
            interval = bootstrap_interval(race.saved, len(seeds), seed)
            rows.append((heuristic, target, at, len(seeds), regions, share, *interval))
    columns = ("heuristic", "target_miou", "budget", "n", "regions", "saved", "ci_low", "ci_high")
    return Table(columns, tuple(rows))


@dataclass(frozen=True)
class _Race:
    """The labels that one method needs to reach the best mean IoU of another.

    Attributes:
        budgets: The B budgets that both have, increasing.
        ours: Mean IoU of the method, percent, ``(seeds, B)``.
        theirs: Mean IoU of the other method, percent, ``(seeds, B)``.
        start: Mean IoU of theta_0, with which both start, if it is known.
    """

    budgets: tuple[int, ...]
    ours: npt.NDArray[np.float64]
    theirs: npt.NDArray[np.float64]
    start: float | None

    def run(self, seeds: npt.NDArray[np.int64]) -> tuple[float, int, float | None]:
        """Return the other's best mean over some seeds, its budget, and the regions that the method needs for it."""
        mean, other = self.ours[seeds].mean(axis=0), self.theirs[seeds].mean(axis=0)
        best = int(other.argmax())
        budgets, values = list(self.budgets), mean.tolist()
        if self.start is not None:
            budgets, values = [0, *budgets], [self.start, *values]
        return float(other[best]), self.budgets[best], labels_needed(budgets, values, float(other[best]))

    def saved(self, seeds: npt.NDArray[np.int64]) -> float:
        """Return the percentage of labels saved over some seeds; -100 if the method does not reach the target."""
        _, at, regions = self.run(seeds)
        return -100.0 if regions is None else max(-100.0, 100 * (1 - regions / at))


def needed_table(results: Results, split: str, targets: Mapping[str, float], reference: str | None) -> Table:
    """Return the regions needed to reach each target (mean IoU in percent), by method.

    ``mean`` and its 95 % t interval are given only if every seed reaches the target, and ``median`` only if more than
    half of the seeds do. ``at_first`` counts the seeds that reach the target at their first budget already, unless that
    budget is 0; the numbers are then upper bounds. ``saved`` is how much lower ``mean`` is than that of ``reference``,
    in percent; it is given only if neither is an upper bound.
    """
    rows = []
    for name, target in targets.items():
        needed = {method: _needed(results, split, method, target) for method in results.methods}
        at_first = {method: _at_first(results, split, method, by_seed) for method, by_seed in needed.items()}
        base = _mean(needed[reference]) if reference is not None and not at_first.get(reference, 1) else None
        for method, by_seed in needed.items():
            reached = [value for value in by_seed.values() if value is not None]
            mean, median, saved = _mean(by_seed), None, None
            low, high = mean_interval(reached) if mean is not None else (None, None)
            if 2 * len(reached) > len(by_seed):
                median = float(np.median([math.inf if value is None else value for value in by_seed.values()]))
            if mean is not None and base and method != reference and not at_first[method]:
                saved = 100 * (1 - mean / base)
            counts = (len(reached), len(by_seed), at_first[method])
            seeds = (by_seed.get(seed) for seed in results.seeds)
            rows.append((name, target, method, *counts, mean, low, high, median, saved, *seeds))
    columns = ("target", "target_miou", "method", "reached", "n", "at_first", "mean", "ci_low", "ci_high", "median")
    return Table((*columns, "saved", *(f"seed_{seed}" for seed in results.seeds)), tuple(rows))


def _needed(results: Results, split: str, method: str, target: float) -> dict[int, float | None]:
    """Return the regions needed by seed, None where the target is not reached."""
    return {
        seed: labels_needed(budgets := sorted(curve), [curve[budget] for budget in budgets], target)
        for seed, curve in results.curves(split, method).items()
    }


def _at_first(results: Results, split: str, method: str, needed: Mapping[int, float | None]) -> int:
    """Return the number of seeds that reach the target at their first budget, where that budget is not 0."""
    firsts = {seed: min(curve) for seed, curve in results.curves(split, method).items()}
    return sum(needed[seed] == first > 0 for seed, first in firsts.items())


def _mean(needed: Mapping[int, float | None]) -> float | None:
    """Return the mean, or None if any seed has no number."""
    values = [value for value in needed.values() if value is not None]
    return float(np.mean(values)) if len(values) == len(needed) else None
