"""How methods compare: paired tests over the seeds, and the labels each needs for the same mean IoU."""

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
"""p of a single comparison."""
BEST = "best baseline"
AREA = "area"


def comparison_table(results: Results, split: str, against: str | None = None) -> Table:
    """Return paired tests of every method against uniform and the best baseline (or ``against``).

    The best baseline is that of the highest mean at the same budget. Holm's correction is over all methods and
    budgets compared with uniform, over all compared with the other, and the same apart for the areas under the
    curves (``budget`` is ``"area"``). Where two methods share fewer than 2 seeds the row has gaps for a test.

    Columns: the budget; what is compared with, and its method; the method, the n seeds both have; mean of the
    differences in points of mean IoU with its 95 % t interval; p of both tests, as they are and after Holm.
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

    Holm's correction is over all variants and budgets of a method. Columns: the method; the others as in
    :func:`comparison_table`, with the variants in the place of methods.
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
    """Return what methods are compared with: uniform, and the best baseline or a given method."""
    uniform = ["uniform"] if "uniform" in results.methods else []
    if against is not None:
        return list(dict.fromkeys([*uniform, against]))
    return [*uniform, *([BEST] if any(method in HEURISTICS for method in results.methods) else [])]


def _family(values: Mapping[Any, Mapping[str, BySeed]], role: str) -> list[tuple[Any, ...]]:
    """Return the rows of all comparisons with one reference, their p corrected for their number."""
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
    return max(known, key=lambda method: summary(list(values[method].values())).mean, default=None)


def verdict_table(results: Results, split: str, method: str) -> Table:
    """Return the comparisons of an intersection-union test: of one method with every heuristic at every budget.

    That the method is above every heuristic at every budget may be said if each single comparison is significant; no
    correction for their number is needed, because all of them must be (Berger, 1982), and no best baseline is chosen
    afterwards.

    Columns: the budget and the heuristic; the n seeds both have; mean of the differences in points of mean IoU with its
    95 % t interval; two-sided p of the paired t-test; whether the method is above with p < 0.05.
    """
    rows: list[tuple[Any, ...]] = []
    for budget in sorted(set(results.budgets(method)) - {0}):
        ours = results.miou(split, method, budget)
        for heuristic in (name for name in results.methods if name in HEURISTICS and name != method):
            if test := paired_test(ours, results.miou(split, heuristic, budget)):
                above = test.difference > 0 and test.t_p < SIGNIFICANT
                rows.append((budget, heuristic, *test[:5], above))
    return Table(("budget", "heuristic", "n", "difference", "ci_low", "ci_high", "t_p", "above"), tuple(rows))


def penalty_table(results: Results, split: str) -> Table:
    """Return the pairwise penalty matrix: the share of budgets at which the column's method is above the row's.

    Above is p < 0.05 in the two-sided paired t-test. The last column is the mean of the row: the lower, the less often
    a method is beaten (Ash et al., "BADGE", ICLR 2020; there the columns' means are compared).
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

    A heuristic's best mean of all budgets is the target; the method's mean curve, from theta_0 on, reaches it at some
    number of regions, by linear interpolation. Seeds are drawn again 2,000 times, in pairs, for the 95 % interval.

    Columns: the heuristic; its best mean IoU in percent, and the budget where it has it; the n seeds both have; the
    regions that the method needs (None if it does not reach it); percent saved, and its interval (lower than -100 is
    given as -100: not reached within the budgets).
    """
    ours = results.curves(split, method)
    start = [row.miou[split] for row in results.rows if row.budget == 0]
    rows: list[tuple[Any, ...]] = []
    for heuristic in (name for name in results.methods if name in HEURISTICS and name != method):
        theirs = results.curves(split, heuristic)
        seeds = sorted(set(ours) & set(theirs))
        budgets = sorted(set.intersection(*({*ours[s]} & {*theirs[s]} for s in seeds)) - {0}) if seeds else []
        if len(seeds) > 1 and budgets:
            a, b = (np.array([[curves[s][budget] for budget in budgets] for s in seeds]) for curves in (ours, theirs))
            race = _Race(tuple(budgets), a, b, float(np.mean(start)) if start else None)
            target, at, regions = race.run(np.arange(len(seeds)))
            share = None if regions is None else 100 * (1 - regions / at)
            interval = bootstrap_interval(race.saved, len(seeds), seed)
            rows.append((heuristic, target, at, len(seeds), regions, share, *interval))
    columns = ("heuristic", "target_miou", "budget", "n", "regions", "saved", "ci_low", "ci_high")
    return Table(columns, tuple(rows))


@dataclass(frozen=True)
class _Race:
    """The labels that one method needs for what another one reaches.

    Attributes:
        budgets: B budgets that both have, increasing.
        ours: Mean IoU of the method, ``(seeds, B)``.
        theirs: That of the other one.
        start: Mean IoU of theta_0, which both begin with, if it is known.
    """

    budgets: tuple[int, ...]
    ours: npt.NDArray[np.float64]
    theirs: npt.NDArray[np.float64]
    start: float | None

    def run(self, seeds: npt.NDArray[np.int64]) -> tuple[float, int, float | None]:
        """Return the other's best mean over some seeds, its budget, and the regions with which the method has it."""
        mean, other = self.ours[seeds].mean(axis=0), self.theirs[seeds].mean(axis=0)
        best = int(other.argmax())
        budgets, values = list(self.budgets), mean.tolist()
        if self.start is not None:
            budgets, values = [0, *budgets], [self.start, *values]
        return float(other[best]), self.budgets[best], labels_needed(budgets, values, float(other[best]))

    def saved(self, seeds: npt.NDArray[np.int64]) -> float:
        """Return the labels saved in percent; -100 if the method does not reach what the other one has."""
        _, at, regions = self.run(seeds)
        return -100.0 if regions is None else max(-100.0, 100 * (1 - regions / at))


def needed_table(results: Results, split: str, targets: Mapping[str, float], reference: str | None) -> Table:
    """Return the regions needed to reach each target (percent of mean IoU), by method.

    ``mean`` and its 95 % t interval are given only if every seed reaches the target, ``median`` if more than half
    do; ``at_first`` counts the seeds that have reached it at their first budget already, if that is not 0, so that
    the number is an upper bound. ``saved`` is the percentage of the mean that is needed less than by ``reference``,
    given where neither is a bound.
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
    """Return the number of seeds that need no more than their first budget, other than none at all."""
    firsts = {seed: min(curve) for seed, curve in results.curves(split, method).items()}
    return sum(needed[seed] == first > 0 for seed, first in firsts.items())


def _mean(needed: Mapping[int, float | None]) -> float | None:
    """Return the mean, None unless every seed has a number."""
    values = [value for value in needed.values() if value is not None]
    return float(np.mean(values)) if len(values) == len(needed) else None
