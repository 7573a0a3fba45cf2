"""The report of an experiment: statistical tests, and all tables and figures of section 4 and appendices C to E."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from al_seg_env.storage import write_text
from al_seg_env.storage.validation import check_choice, check_number
from al_seg_experiment.records import gather, read_experiment
from al_seg_experiment.report import sections
from al_seg_experiment.report.requests import request_pictures, stacked
from al_seg_experiment.report.results import FULL, SPLITS, Results, read_results
from al_seg_experiment.report.sections import NAMES, Document
from al_seg_experiment.report.tables import Table, markdown
from al_seg_experiment.report.training_curves import episodes_table, reference_returns, training_beside

logger = logging.getLogger(__name__)

FIGURES = {"both": SPLITS, "val_miou": ("val",), "test_miou": ("test",)}
VERDICT_ON = "dqn"
"""The method for which the report states whether it is above every heuristic."""
_INTRODUCTION = """\
Numbers are mean ± standard deviation (n - 1 in the denominator) over seeds; IoU in percent. Methods share seeds,
so they are compared seed by seed. Tests are two-sided: the paired t-test and Wilcoxon's signed-rank test, the latter
never below p = 2^(1 - n) for n seeds (0.0625 for 5). Holm's correction is over all comparisons with the same
reference, methods and budgets together, on the same split; areas under the curves are corrected apart. theta_0
(0 regions) is not compared. Intervals are 95 % t intervals of the mean.
"""


def report(
    source: str | Path,
    out: str | Path | None = None,
    *,
    figure: str = "both",
    against: str | None = None,
    target_miou: float | None = None,
    against_variant: str | None = None,
) -> Path:
    """Write every table and figure that an experiment's results allow, as png, csv and markdown, and ``REPORT.md``.

    For each split (val, test), the report has ``figure_4`` (mean IoU against budget), ``table_1`` (IoU per class, with
    the standard deviations of table C.1), ``verdict`` and ``saved`` (whether the method ``dqn`` is above every
    heuristic at every budget, and the labels that it saves), ``comparisons`` (paired tests), ``penalties`` (the
    pairwise penalty matrix), ``area`` (under the budget curve) and ``labels_needed``. Both splits share ``figure_3``
    and ``figure_C1`` (the requested classes and their entropy).

    If there are several variants, each has all of these, and ``table_E``, ``comparisons_E`` and ``figure_E`` compare
    them. The report of an experiment's folder also has ``figure_training`` (returns of the agent's episodes; of a csv
    file, where ``query_episodes.csv`` lies beside it) and ``figure_D1`` (pictures of the requests). The same results
    give the same csv and markdown, byte for byte.

    Args:
        source: The folder of an experiment, finished or not, whose ``results.csv`` is written first; or a csv file of
            any origin (see :func:`~al_seg_experiment.report.results.read_results`).
        out: Folder, created if needed; files of the same names are replaced. ``report`` beside the results if omitted.
        figure: ``"val_miou"``, ``"test_miou"``, or ``"both"`` for those that the results have.
        against: Method that all are compared with, in addition to uniform. The best baseline if omitted.
        target_miou: Target of ``labels_needed``, mean IoU in percent. By default there are two targets: 96 % of full
            supervision, and the mean IoU of ``against`` or uniform at its largest budget.
        against_variant: Variant that the others are compared with. By default the experiment's first, or the first in
            order for a csv file.

    Returns:
        The path of ``REPORT.md``.

    Raises:
        ValueError: If an argument or a file of the source is wrong or missing, or there is no result yet.
        OSError: If a file can't be opened or written.
        ImportError: If matplotlib or scipy is not installed.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source} does not exist; expected the folder of an experiment, or a csv file")
    if source.is_dir():
        experiment = read_experiment(source)
        results_csv = gather(experiment, source)
        if not results_csv.exists():
            raise ValueError(f"{source} holds no result yet; run the experiment first")
    else:
        experiment, results_csv = None, source
    results = read_results(results_csv)
    if experiment is not None and against_variant is None:
        against_variant = next((name for name in experiment.variants if name in results.variants), None)
    _check(results, figure, against, target_miou, against_variant)
    document = Document(results_csv.parent / "report" if out is None else Path(out))
    _add_results(document, results, figure, against, target_miou, against_variant)
    if experiment is not None:
        document.heading("The query agent and its requests" if experiment.learnt_methods else "Requests")
        if experiment.learnt_methods:
            sections.training(document, episodes_table(experiment, source), reference_returns(experiment, source))
        pictures = request_pictures(experiment, source)
        sections.requests(document, stacked(pictures) if pictures else None, experiment.seeds[0])
    else:
        episodes, references = training_beside(source)
        if episodes.rows:
            document.heading("The query agent")
            sections.training(document, episodes, references)
    path = document.folder / "REPORT.md"
    omitted = ["## Omitted\n", "".join(f"- {reason}\n" for reason in dict.fromkeys(document.omitted))]
    lines = ["# Report\n", _INTRODUCTION, _contents(results), *document.lines, *(omitted if document.omitted else [])]
    write_text(path, "\n".join(lines))
    logger.info("report of %d rows: %s", len(results.rows), path)
    return path


def _add_results(
    document: Document,
    results: Results,
    figure: str,
    against: str | None,
    target_miou: float | None,
    against_variant: str | None,
) -> None:
    """Add the sections that need only the results: those of each variant, and the comparison of variants."""
    splits = [split for split in FIGURES[figure] if split in results.splits]
    for split in FIGURES[figure]:
        if split not in results.splits:
            document.omit(f"all figures of {NAMES[split]} mean IoU: there is no column `{split}_miou`")
    suffixes = _suffixes(results.variants)
    for variant, suffix in suffixes.items():
        part = results.of_variant(variant)
        if suffix:
            document.variant = variant or "-"
            document.heading(f"Variant {document.variant}")
        for split in splits:
            sections.curves(document, part, split, suffix)
            if VERDICT_ON in part.methods:
                sections.verdict(document, part, split, suffix, VERDICT_ON)
            sections.comparisons(document, part, split, suffix, against)
            sections.penalties(document, part, split, suffix)
            sections.area(document, part, split, suffix)
            sections.labels_needed(document, part, split, suffix, against, target_miou)
            sections.class_iou(document, part, split, suffix)
        sections.requested_classes(document, part, suffix)
    document.variant = ""
    if len(suffixes) > 1:
        document.heading("Variants")
        first = results.variants[0] if against_variant is None else against_variant
        for split in splits:
            sections.variants(document, results, split, first)


def _check(
    results: Results, figure: str, against: str | None, target_miou: float | None, against_variant: str | None
) -> None:
    check_choice("figure", figure, FIGURES)
    if not set(FIGURES[figure]) & set(results.splits):
        raise ValueError(f"figure is {figure!r}, but the results have only {results.splits[0]}_miou; use that")
    check_choice("against", against, (*results.methods, None))
    check_choice("against_variant", against_variant, (*results.variants, None))
    if target_miou is not None:
        check_number("target_miou", target_miou, above=0, most=100)


def _suffixes(variants: tuple[str, ...]) -> dict[str, str]:
    """Return a suffix for the names of each variant's files, distinct on every file system."""
    if len(variants) == 1:
        return {variants[0]: ""}
    suffixes: dict[str, str] = {}
    for variant in variants:
        name = "_" + (re.sub(r"[^A-Za-z0-9.+=-]", "_", variant) or "unnamed")
        number = sum(name.lower() == re.sub(r"~\d+$", "", other).lower() for other in suffixes.values())
        suffixes[variant] = f"{name}~{number + 1}" if number else name
    return suffixes


def _contents(results: Results) -> str:
    """Return a table of the methods, their seeds and budgets."""
    rows = []
    for variant in dict.fromkeys(row.variant for row in results.rows):
        part = Results(tuple(r for r in results.rows if r.variant == variant), results.classes, results.splits)
        for method in (*part.methods, FULL):
            if of_method := part.of_method(method):
                seeds = sorted({row.seed for row in of_method})
                texts = (", ".join(map(str, values)) for values in (seeds, part.budgets(method)))
                rows.append((variant or "-", method, len(seeds), *texts))
    return markdown(Table(("variant", "method", "n", "seeds", "budgets (regions)"), tuple(rows)))
