"""The numbers behind the paper's tables and figures, computed from the rows of an experiment.

Every table has one row per case, with ``mean``, ``std`` (ddof = 1) and ``n`` over seeds. Tables whose figures show
single seeds also have one column per seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from al_seg_experiment.report.results import FULL, Results
from al_seg_experiment.report.statistics import area_under_curve, class_entropy, summary
from al_seg_experiment.report.tables import Table

BySeed = Mapping[int, float]


def curve_table(results: Results, split: str) -> Table:
    """Return mean IoU (percent) by method and budget, including full supervision (figure 4)."""
    cases = [(method, budget) for method in (*results.methods, FULL) for budget in results.budgets(method)]
    return _by_seed(results, ("method", "budget"), {case: results.miou(split, *case) for case in cases})


def class_iou_table(results: Results, split: str) -> Table:
    """Return IoU (percent) by method, budget and class, with mean IoU as the last class (tables 1 and C.1)."""
    rows = []
    for method in (*results.methods, FULL):
        for budget in results.budgets(method):
            at_budget = [row for row in results.of_method(method) if row.budget == budget]
            for name in results.classes:
                if values := [row.class_iou[split][name] for row in at_budget if name in row.class_iou[split]]:
                    rows.append((method, budget, name, *summary(values)))
            rows.append((method, budget, "mIoU", *summary([row.miou[split] for row in at_budget])))
    return Table(("method", "budget", "class", "mean", "std", "n"), tuple(rows))


def entropy_table(results: Results) -> Table:
    """Return the entropy (nats) of the requested classes, by method and budget (figure 3)."""
    cases: dict[tuple[Any, ...], dict[int, float]] = {}
    for method, budget, seed, asked in _asked(results):
        cases.setdefault((method, budget), {})[seed] = class_entropy(list(asked.values()))
    return _by_seed(results, ("method", "budget"), cases)


def class_share_table(results: Results) -> Table:
    """Return the share (percent) of each class in the requested pixels, by method and budget (figure C.1)."""
    shares: dict[tuple[str, int, str], list[float]] = {}
    for method, budget, _, asked in _asked(results):
        total = sum(asked.values())
        for name, pixels in asked.items():
            shares.setdefault((method, budget, name), []).append(100 * pixels / total)
    rows = tuple((*case, *summary(values)) for case, values in shares.items())
    return Table(("method", "budget", "class", "mean", "std", "n"), rows)


def area_table(results: Results, split: str) -> Table:
    """Return the area under each seed's budget curve, in points of mean IoU, by method.

    The area is taken over the budgets that all methods share. Seeds that lack one of these budgets are omitted.
    """
    return _by_seed(results, ("method",), {(method,): values for method, values in areas(results, split).items()})


def areas(results: Results, split: str) -> dict[str, BySeed]:
    """Return the area under the budget curve of each method by seed; empty if methods share fewer than 2 budgets."""
    budgets = results.budgets()
    if len(budgets) < 2:
        return {}
    found: dict[str, BySeed] = {}
    for method in results.methods:
        curves = results.curves(split, method)
        found[method] = {
            seed: area_under_curve(budgets, [curve[budget] for budget in budgets])
            for seed, curve in curves.items()
            if set(budgets) <= set(curve)
        }
    return {method: values for method, values in found.items() if values}


def variant_table(results: Results, split: str) -> Table:
    """Return mean IoU (percent) by method, variant and budget (tables E.1 to E.3)."""
    parts = {variant: results.of_variant(variant) for variant in results.variants}
    cases = {
        (method, variant or "-", budget): part.miou(split, method, budget)
        for method in results.methods
        for variant, part in parts.items()
        for budget in part.budgets(method)
    }
    return _by_seed(results, ("method", "variant", "budget"), cases)


def _by_seed(results: Results, keys: tuple[str, ...], cases: Mapping[tuple[Any, ...], BySeed]) -> Table:
    """Return a table with the mean, the standard deviation, the number and the single values of each case."""
    rows = (
        (*case, *summary(list(v.values())), *(v.get(seed) for seed in results.seeds)) for case, v in cases.items() if v
    )
    return Table((*keys, "mean", "std", "n", *(f"seed_{seed}" for seed in results.seeds)), tuple(rows))


def _asked(results: Results) -> Iterator[tuple[str, int, int, Mapping[str, int]]]:
    """Yield method, budget, seed and labelled pixels per class of every row in which regions were requested."""
    for method in results.methods:
        for row in sorted(results.of_method(method), key=lambda row: (row.budget, row.seed)):
            if sum(row.asked.values()):
                yield method, row.budget, row.seed, row.asked
