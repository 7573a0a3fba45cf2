"""The sections of the report. Each writes one figure or table, with its numbers as csv and markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from al_seg_env.storage import write_bytes, write_text
from al_seg_experiment.report import figures
from al_seg_experiment.report.analysis import (
    area_table,
    class_iou_table,
    class_share_table,
    curve_table,
    entropy_table,
    variant_table,
)
from al_seg_experiment.report.method_comparison import (
    AREA,
    comparison_table,
    needed_table,
    penalty_table,
    saved_table,
    untested,
    variant_comparison_table,
    verdict_table,
)
from al_seg_experiment.report.results import FULL, Results
from al_seg_experiment.report.statistics import summary
from al_seg_experiment.report.tables import Table, estimate, markdown, pivot, write_csv
from al_seg_experiment.report.training_curves import returns_between_variants, returns_by_followed

NAMES = {"val": "validation", "test": "test"}
TESTED = ("n", "difference [95 % interval]", "t-test p", "Holm", "Wilcoxon p", "Holm")


@dataclass
class Document:
    """A report that is being written: its folder, the lines of ``REPORT.md`` so far, and what was omitted."""

    folder: Path
    variant: str = ""
    lines: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)

    def omit(self, what: str) -> None:
        """Note that something is missing, and why."""
        self.omitted.append(f"{f'variant {self.variant}: ' if self.variant else ''}{what}")

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.lines.append(f"{'#' * level} {text}\n")

    def add(
        self,
        name: str,
        title: str,
        caption: str,
        table: Table | None = None,
        shown: Mapping[str, Table] = MappingProxyType({}),
        picture: bytes | None = None,
        inline: str | None = None,
    ) -> None:
        """Write NAME.png, NAME.csv and NAME.md as far as they are given, and embed them in the report.

        NAME.csv holds ``table``, and NAME.md all tables of ``shown`` below their headings. The report itself shows
        only the table below the heading ``inline``, or all of them if ``inline`` is omitted.
        """
        title += f", {self.variant}" if self.variant else ""
        self.heading(title, 3)
        if picture is not None:
            write_bytes(self.folder / f"{name}.png", picture)
            self.lines.append(f"![{title}]({quote(name)}.png)\n")
        self.lines.append(f"{caption}\n")
        for heading, part in shown.items():
            if inline in (None, heading):
                self.lines += [f"{heading}:\n"] * bool(heading) + [markdown(part)]
        if table is not None:
            write_csv(self.folder / f"{name}.csv", table)
            page = [f"# {title}\n", f"{caption}\n"]
            for heading, part in shown.items():
                page += [f"## {heading}\n"] * bool(heading) + [markdown(part)]
            write_text(self.folder / f"{name}.md", "\n".join(page))
            self.lines.append(f"Numbers: [csv]({quote(name)}.csv), [markdown]({quote(name)}.md)\n")


def curves(out: Document, results: Results, split: str, suffix: str) -> None:
    """Add figure 4: mean IoU against budget."""
    table = curve_table(results, split)
    caption = f"Mean IoU on {NAMES[split]} against the number of labelled regions, {_seeds(_without_full(table))}."
    if full := table.where(method=FULL).records():
        caption += (
            f" Full supervision (solid line): {estimate(full[0])} (n = {full[0]['n']}); 96 % of it (dashed line): "
            f"{figures.SHARE_OF_FULL * full[0]['mean']:.2f}."
        )
    else:
        out.omit(f"the lines of full supervision in figure 4: there are no rows of the method `{FULL}`")
    picture = figures.budget_curves({"": table}, ylabel=f"mean IoU, {NAMES[split]} [%]")
    title = f"Figure 4: mean IoU by budget, {NAMES[split]}"
    shown = {"": pivot(_without_full(table), "budget", "method")}
    out.add(f"figure_4_{split}{suffix}", title, caption, table, shown, picture)


def comparisons(out: Document, results: Results, split: str, suffix: str, against: str | None) -> None:
    """Add the paired tests against uniform and the best baseline, or ``against``."""
    table = comparison_table(results, split, against)
    if not table.rows:
        out.omit("paired tests: there are no two methods of which one is a known baseline or `against`")
        return
    caption = f"Mean IoU on {NAMES[split]}: difference to the reference, in points, over the seeds that both have."
    if untested := table.column("t_p").count(None):
        caption += (
            f" **No test is possible in {untested} of {len(table.rows)} comparisons: the two methods share fewer than "
            "2 seeds.**"
        )
    rows = []
    for r in table.records():
        best = "" if r["compared_with"] == r["reference"] else f" ({r['compared_with']})"
        rows.append((f"{r['reference']}{best}", r["budget"], r["method"], *_tested(r)))
    shown = Table(("reference", "budget", "method", *TESTED), tuple(rows))
    out.add(f"comparisons_{split}{suffix}", f"Paired comparisons, {NAMES[split]}", caption, table, {"": shown})


def verdict(out: Document, results: Results, split: str, suffix: str, method: str) -> None:
    """Add the verdict on whether a method is above every heuristic at every budget, and the labels that it saves."""
    table = verdict_table(results, split, method)
    if not table.rows:
        out.omit(f"the verdict on {method}: it shares fewer than 2 seeds with any heuristic")
        return
    records = table.records()
    failed = [r for r in records if not r["above"]]
    missing = untested(results, split, method)
    heuristics, budgets = len(set(table.column("heuristic"))), len(set(table.column("budget")))
    of = f"{len(records) - len(failed)} of {len(records)} comparisons ({heuristics} heuristics, {budgets} budgets)"
    claim = f"above every heuristic at every budget on {NAMES[split]}"
    if missing and not failed:
        said = f"**Whether {method} is {claim} is undecided:** "
    else:
        said = f"**{method} is {'not ' if failed else ''}{claim}:** "
    said += f"it is above, each with p < 0.05, in {of}. Intersection-union test, paired t-tests, {_seeds(table)}."
    if missing:
        listed = ", ".join(f"{heuristic} at {budget}" for budget, heuristic in missing)
        said += f" Not tested, since fewer than 2 seeds have both: {listed}."
    if failed:
        listed = ", ".join(f"{r['heuristic']} at {r['budget']} ({r['difference']:+.2f})" for r in failed)
        said += f" Not above: {listed}."
    rows = tuple(
        (r["budget"], r["heuristic"], r["n"], _interval(r["difference"], r, "+.2f"), _p(r["t_p"]), r["above"])
        for r in records
    )
    names = ("budget", "heuristic", "n", "difference [95 % interval]", "p", "above")
    shown = {"": Table(names, tuple((*row[:-1], "yes" if row[-1] else "no") for row in rows))}
    picture = figures.differences(table, xlabel=f"{method} minus heuristic, {NAMES[split]} [points of mIoU]")
    title = f"Verdict: {method} against every heuristic, {NAMES[split]}"
    out.add(f"verdict_{split}{suffix}", title, said, table, shown, picture)
    saved = saved_table(results, split, method)
    if saved.rows:
        needs = tuple(
            (
                f"{r['heuristic']}: {r['target_miou']:.2f} at {r['budget']}",
                None if r["regions"] is None else f"{r['regions']:.0f}",
                "not reached" if r["saved"] is None else _saved(r),
                r["n"],
            )
            for r in saved.records()
        )
        caption = (
            f"Regions with which {method} reaches each heuristic's best mean on {NAMES[split]}, by its mean curve, and "
            "the labels saved in percent with a 95 % bootstrap interval over seeds (≤ -100: with twice as many "
            "labels, or not at all)."
        )
        shown = {"": Table(("heuristic's best mean IoU", "regions needed", "saved [%]", "n"), needs)}
        out.add(f"saved_{split}{suffix}", f"Labels saved by {method}, {NAMES[split]}", caption, saved, shown)


def penalties(out: Document, results: Results, split: str, suffix: str) -> None:
    """Add the pairwise penalty matrix."""
    table = penalty_table(results, split)
    if not any(value is not None for row in table.rows for value in row[1:]):
        out.omit("the pairwise penalty matrix: no two methods share 2 seeds")
        return
    budgets = ", ".join(str(budget) for budget in results.budgets() if budget > 0)
    caption = (
        f"Share of the budgets {budgets}, which all methods have, at which the column's method is above the row's on "
        f"{NAMES[split]} (paired t-test, p < 0.05). The last column is the mean of the row: how often a method is "
        "beaten."
    )
    rows = tuple((row[0], *("" if v is None else f"{v:.2f}" for v in row[1:])) for row in table.rows)
    picture = figures.matrix(table, label="share of budgets")
    title = f"Pairwise penalties, {NAMES[split]}"
    out.add(f"penalties_{split}{suffix}", title, caption, table, {"": Table(table.columns, rows)}, picture)


def area(out: Document, results: Results, split: str, suffix: str) -> None:
    """Add the areas under the budget curves."""
    table = area_table(results, split)
    if not table.rows:
        out.omit("areas under the budget curve: no seed of any method has 2 budgets that all methods have")
        return
    budgets = results.budgets()
    caption = (
        f"Area under the curve of figure 4 from {budgets[0]} to {budgets[-1]} regions, divided by that range: the mean "
        f"height of the curve, {_seeds(table)}. A point is a seed. Tests: above, with `{AREA}` for the budget."
    )
    shown = Table(("method", "area", "n"), tuple((r["method"], estimate(r), r["n"]) for r in table.records()))
    picture = figures.method_points(table, ylabel=f"area under curve, {NAMES[split]} [% mIoU]")
    title = f"Area under the budget curve, {NAMES[split]}"
    out.add(f"area_{split}{suffix}", title, caption, table, {"": shown}, picture)


def labels_needed(
    out: Document, results: Results, split: str, suffix: str, against: str | None, target_miou: float | None
) -> None:
    """Add the labels needed to reach a mean IoU: ``target_miou``, or the mean IoU that a reference reaches."""
    reference = next((method for method in (against, "uniform") if method in results.methods), None)
    targets = {"target": target_miou} if target_miou is not None else _targets(results, split, reference)
    if not targets:
        out.omit("labels needed: there is neither `full` nor `uniform`; give a target")
        return
    table = needed_table(results, split, targets, reference)
    caption = (
        f"Regions needed to reach a mean IoU on {NAMES[split]}, by linear interpolation along each seed's curve: mean "
        "and 95 % interval where all seeds reach it, median where more than half do."
    )
    if reference is not None:
        caption += f" Saved: percent less than {reference}."
    if any(table.column("at_first")):
        caption += " ≤: some seeds reach it at their first budget already, so this is an upper bound."
    rows = []
    for r in table.records():
        bound = "≤ " if r["at_first"] else ""
        mean = None if r["mean"] is None else f"{bound}{r['mean']:.0f}"
        if mean is not None and r["n"] > 1:
            mean += f" [{r['ci_low']:.0f}, {r['ci_high']:.0f}]"
        median = None if r["median"] is None else f"{bound}{r['median']:.0f}"
        target = f"{r['target_miou']:.2f} ({r['target']})"
        rows.append((target, r["method"], f"{r['reached']} of {r['n']} seeds", mean, median, r["saved"]))
    names = ("mean IoU", "method", "reached by", "mean [95 % interval]", "median", "saved [%]")
    title = f"Labels needed, {NAMES[split]}"
    out.add(f"labels_needed_{split}{suffix}", title, caption, table, {"": Table(names, tuple(rows))})


def class_iou(out: Document, results: Results, split: str, suffix: str) -> None:
    """Add tables 1 and C.1: IoU per class with standard deviations, at each budget."""
    if not any(row.class_iou[split] for row in results.rows):
        out.omit(f"table 1 and C.1, {NAMES[split]}: there are no columns `{split}_iou_<class>`")
        return
    table = class_iou_table(results, split)
    methods = _without_full(table)
    shown = {f"{b} regions": pivot(methods.where(budget=b), "class", "method") for b in _budgets(methods)}
    if full := table.where(method=FULL).rows:
        shown["Full supervision"] = pivot(Table(table.columns, full), "class", "method")
    budget = _common_budget(methods)
    picture = figures.class_bars(methods.where(budget=budget), ylabel=f"IoU, {NAMES[split]} [%]")
    caption = f"IoU per class on {NAMES[split]} at {budget} regions, {_seeds(methods.where(budget=budget))}."
    title = f"Tables 1 and C.1: IoU per class, {NAMES[split]}"
    out.add(f"table_1_{split}{suffix}", title, caption, table, shown, picture, f"{budget} regions")


def requested_classes(out: Document, results: Results, suffix: str) -> None:
    """Add figures 3 and C.1: the distribution of classes in the requested regions, and its entropy."""
    entropies, shares = entropy_table(results), class_share_table(results)
    if not shares.rows:
        out.omit("figures 3 and C.1: there are no columns `asked_<class>`, or nothing was requested")
        return
    budget = _common_budget(shares)
    here, at = entropies.where(budget=budget), shares.where(budget=budget)
    caption = (
        f"Entropy [nats] of the distribution of classes in the requested pixels, {budget} regions, {_seeds(here)}."
    )
    picture = figures.method_points(here, ylabel="entropy of classes [nats]")
    title = "Figure 3: entropy of the requested classes"
    shown = {"": pivot(entropies, "budget", "method")}
    out.add(f"figure_3{suffix}", title, caption, entropies, shown, picture)
    caption = f"Share [%] of each class in the requested pixels that were labelled, {budget} regions, {_seeds(at)}."
    labels = {r["method"]: f"{r['method']} (H = {r['mean']:.2f})" for r in here.records()}
    picture = figures.class_bars(at, ylabel="share of requested pixels [%]", labels=labels)
    tables = {f"{b} regions": pivot(shares.where(budget=b), "class", "method") for b in _budgets(shares)}
    title = "Figure C.1: requested classes"
    out.add(f"figure_C1{suffix}", title, caption, shares, tables, picture, f"{budget} regions")


def variants(out: Document, results: Results, split: str, against: str) -> None:
    """Add tables E.1 to E.3: mean IoU of every method in every variant, and the differences to one variant."""
    table = variant_table(results, split)
    shown = {f"{b} regions": pivot(table.where(budget=b), "method", "variant") for b in _budgets(table)}
    where = unfolded = f"{_common_budget(table, 'variant')} regions"
    at = table.where(budget=_common_budget(table, "variant"))
    if not any(at.column("budget")):  # variants whose regions differ in size share only theta_0's budget
        last = {variant: max(_budgets(table.where(variant=variant))) for variant in table.column("variant")}
        at = Table(table.columns, tuple(r for r in table.rows if r[2] == last[r[1]]))
        where = f"the last budget ({', '.join(f'{name}: {regions}' for name, regions in last.items())})"
        unfolded = "Last budgets"
        shown = {unfolded: pivot(at, "method", "variant"), **shown}
    caption = f"Mean IoU on {NAMES[split]} by variant at {where}, {_seeds(at)}."
    picture = figures.variant_points(at, ylabel=f"mean IoU, {NAMES[split]} [%]")
    title = f"Tables E: mean IoU by variant, {NAMES[split]}"
    out.add(f"table_E_{split}", title, caption, table, shown, picture, unfolded)
    tests = variant_comparison_table(results, split, against)
    if tests.rows:
        caption = f"Mean IoU on {NAMES[split]}: difference to the variant {against or '-'}, in points, seed by seed."
        rows = tuple((r["method"], r["budget"], r["variant"], *_tested(r)) for r in tests.records())
        shown = {"": Table(("method", "budget", "variant", *TESTED), rows)}
        out.add(f"comparisons_E_{split}", f"Paired comparisons of variants, {NAMES[split]}", caption, tests, shown)
    panels = {m: table.where(method=m) for m in dict.fromkeys(table.column("method"))}
    panels = {
        method: part
        for method, part in panels.items()
        if len(set(part.column("variant"))) > 1 and len(_budgets(part)) > 1
    }
    if panels:
        picture = figures.budget_curves(panels, key="variant", ylabel=f"mean IoU, {NAMES[split]} [%]")
        shown = {method: pivot(part, "budget", "variant") for method, part in panels.items()}
        caption = f"Mean IoU on {NAMES[split]} against the number of labelled regions, {_seeds(table)}."
        title = f"Figure E: mean IoU by budget and variant, {NAMES[split]}"
        out.add(f"figure_E_{split}", title, caption, table, shown, picture)


def training(out: Document, episodes: Table, references: Mapping[str, Mapping[str, list[float]]] | None = None) -> None:
    """Add the returns of the agents' episodes by the policy followed in them, and the differences between variants.

    Args:
        out: The report to add to.
        episodes: See :func:`~al_seg_experiment.report.training_curves.episodes_table`.
        references: Returns of heuristics on the same images, by variant.
    """
    if not episodes.rows:
        out.omit("the training of the query agent: no agent has finished an episode")
        return
    panels = {variant: episodes.where(variant=variant) for variant in dict.fromkeys(episodes.column("variant"))}
    shown = {"": returns_by_followed(episodes, references)}
    compared = returns_between_variants(episodes)
    if compared.rows:
        first = compared.rows[0][0]
        shown[f"Mean return of each agent's own choices in the second half, and paired difference to {first}"] = (
            compared
        )
    caption = (
        f"Return of each episode (gain in mean IoU on D_R, points), and the mean of {figures.AVERAGED} episodes of the "
        "agent's own choices; all seeds."
    )
    if references:
        caption += " Dashed: the mean return of rules on the same images."
    picture = figures.episode_returns(panels, references or {}, ylabel="gain in mean IoU [points]")
    out.add("figure_training", "Training of the query agent", caption, episodes, shown, picture)


def requests(out: Document, picture: bytes | None, seed: int) -> None:
    """Add figure D.1: pictures of what each method requested."""
    if picture is None:
        out.omit(f"figure D.1: no trial of seed {seed} has drawn its requests yet")
        return
    caption = (
        "The images of which each method requested the most regions, with the labels that it got; seed "
        f"{seed}, all budgets."
    )
    out.add("figure_D1", "Figure D.1: what was requested", caption, picture=picture)


def _targets(results: Results, split: str, reference: str | None) -> dict[str, float]:
    """Return 96 % of full supervision, and the reference's mean IoU at its largest budget, as far as they are known."""
    targets = {}
    if full := list(results.miou(split, FULL).values()):
        targets["96 % of full supervision"] = figures.SHARE_OF_FULL * summary(full).mean
    if reference in results.methods:
        budget = results.budgets(reference)[-1]
        targets[f"{reference} at {budget}"] = summary(list(results.miou(split, reference, budget).values())).mean
    return targets


def _tested(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the cells below ``TESTED``: n, the difference with its interval, and the p-values of both tests."""
    difference = None if record["difference"] is None else f"{record['difference']:+.2f}"
    if record["t_p"] is not None:
        difference = f"{difference} [{record['ci_low']:+.2f}, {record['ci_high']:+.2f}]"
    p = (_p(record[name]) for name in ("t_p", "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm"))
    return record["n"], difference, *p


def _interval(value: float, record: Mapping[str, Any], form: str) -> str:
    return f"{value:{form}} [{record['ci_low']:{form}}, {record['ci_high']:{form}}]"


def _saved(record: Mapping[str, Any]) -> str:
    saved, low, high = (
        "≤ -100" if record[name] <= -100 else f"{record[name]:.0f}" for name in ("saved", "ci_low", "ci_high")
    )
    return f"{saved} [{low}, {high}]"


def _p(value: float | None) -> str | None:
    return None if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _without_full(table: Table) -> Table:
    return Table(table.columns, tuple(row for row in table.rows if row[table.columns.index("method")] != FULL))


def _budgets(table: Table) -> list[int]:
    return sorted(set(table.column("budget")))


def _common_budget(table: Table, key: str = "method") -> int:
    """Return the largest of the budgets that most methods (or variants) have."""
    return max(_budgets(table), key=lambda budget: (len(set(table.where(budget=budget).column(key))), budget))


def _seeds(table: Table) -> str:
    """Return the number of seeds behind the rows of a table, in words."""
    low, high = min(table.column("n")), max(table.column("n"))
    if high == 1:
        return "a single seed, so without deviations"
    return f"n = {low} seeds" if low == high else f"n = {low} to {high} seeds"
