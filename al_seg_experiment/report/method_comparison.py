"""How methods compare: paired tests over the seeds, and the labels each needs for the same mean IoU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from al_seg_experiment.report.analysis import BySeed, areas
from al_seg_experiment.report.results import Results
from al_seg_experiment.report.statistics import holm, labels_needed, mean_interval, paired_test, summary
from al_seg_experiment.report.tables import Table

BASELINES = ("uniform", "entropy", "bald", "margin", "ripu", "rarity_entropy")
"""The methods among which the best baseline is sought."""
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
    return [*uniform, *([BEST] if any(method in BASELINES for method in results.methods) else [])]


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
    known = [method for method in values if method in BASELINES]
    return max(known, key=lambda method: summary(list(values[method].values())).mean, default=None)


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
