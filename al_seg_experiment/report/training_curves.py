"""The training of the query agents: the return of each episode, by the policy that was followed in it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from al_seg_env.storage.csv_values import parse_float, parse_int
from al_seg_experiment.experiment import Experiment
from al_seg_experiment.pieces import pieces
from al_seg_experiment.records import read_references
from al_seg_experiment.report.figures import GREEDY
from al_seg_experiment.report.statistics import holm, paired_test, summary
from al_seg_experiment.report.tables import Table, estimate

ALL = "all"
"""Value of the column ``followed`` where an agent explores step by step, so that no single policy is followed."""
COLUMNS = ("variant", "seed", "episode", "return", "followed")
EPISODES, REFERENCES = "query_episodes.csv", "query_references.csv"
"""Names of files beside a csv file of results that hold what an experiment's folder has of its trainings."""


def episodes_table(experiment: Experiment, folder: Path) -> Table:
    """Return the episodes of all agents.

    The columns are the variant (and the method, if it has agents of its own), the seed, the episode, its return, and
    the policy that was followed in it.

    Raises:
        ValueError: If a record of episodes is damaged. The message names the file.
    """
    rows: list[tuple[Any, ...]] = []
    for piece in pieces(experiment):
        path = folder / piece.name / "episodes.csv"
        if piece.kind == "query" and path.exists():
            variant = " ".join(filter(None, (piece.variant, piece.method)))
            rows += _episodes(path, {"variant": variant, "seed": str(piece.seed)})
    return Table(COLUMNS, tuple(rows))


def training_beside(results: Path) -> tuple[Table, dict[str, dict[str, list[float]]]]:
    """Return what :func:`episodes_table` and :func:`reference_returns` do, from files beside a csv file of results.

    ``query_episodes.csv`` has the columns ``episode``, ``return`` and, where there are several of them, ``variant``,
    ``seed`` and ``followed``; ``query_references.csv`` has ``method``, ``episode`` and ``return``, of the agents
    without a variant. The first may be the report's ``figure_training.csv``. Without the files, there is nothing.

    Raises:
        ValueError: If one of them is damaged. The message names it.
    """
    episodes, references = results.parent / EPISODES, results.parent / REFERENCES
    table = Table(COLUMNS, tuple(_episodes(episodes, {}) if episodes.is_file() else ()))
    returns: dict[str, list[float]] = {}
    for row in read_references(references) if references.is_file() else ():
        returns.setdefault(row["method"], []).append(row["return"])
    return table, {"": returns} if returns else {}


def _episodes(path: Path, of_all: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """Return the rows of a file of episodes, with the columns that it does not have itself."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            read = [{**row, **of_all} for row in csv.DictReader(file, strict=True)]
        return [
            (
                row.get("variant", ""),
                parse_int(row.get("seed", "0"), "seed"),
                parse_int(row["episode"], "episode"),
                parse_float(row["return"], "return"),
                row.get("followed", ALL).removeprefix("score_"),
            )
            for row in read
        ]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and the report omits it"
        ) from error


def reference_returns(experiment: Experiment, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the returns of heuristics in the environments of a variant's agents: ``{variant: {method: returns}}``.

    Raises:
        ValueError: If a record is damaged. The message names the file.
    """
    returns: dict[str, dict[str, list[float]]] = {}
    for piece in pieces(experiment):
        path = folder / piece.name / "references.csv"
        if piece.kind == "query" and path.exists():
            of_variant = returns.setdefault(" ".join(filter(None, (piece.variant, piece.method))), {})
            for row in read_references(path):
                of_variant.setdefault(row["method"], []).append(row["return"])
    return returns


def returns_by_followed(episodes: Table, references: Mapping[str, Mapping[str, list[float]]] | None = None) -> Table:
    """Return mean, standard deviation and number of returns, in the first and the second half of training.

    The rows of ``references`` (:func:`reference_returns`) come last: heuristics that played before the training.
    """
    rows = []
    for variant in dict.fromkeys(episodes.column("variant")):
        of_variant = episodes.where(variant=variant)
        half = max(of_variant.column("episode")) / 2
        for followed in dict.fromkeys(of_variant.column("followed")):
            records = of_variant.where(followed=followed).records()
            halves = [[r for r in records if r["episode"] <= half], [r for r in records if r["episode"] > half]]
            rows.append((variant or "-", followed, *(_estimate([r["return"] for r in part]) for part in halves)))
        for method, returns in (references or {}).get(variant, {}).items():
            rows.append((variant or "-", f"the rule {method}", _estimate(returns), None))
    return Table(("variant", "followed", "first half", "second half"), tuple(rows))


def returns_between_variants(episodes: Table) -> Table:
    """Return each variant's mean return in the second half of training, with paired tests against the first variant.

    The returns are those of the agents' own choices. The table is empty if the first variant has none, or no other.
    """
    returns: dict[str, dict[int, list[float]]] = {}
    for variant in dict.fromkeys(episodes.column("variant")):
        of_variant = episodes.where(variant=variant)
        half = max(of_variant.column("episode")) / 2
        by_seed = returns.setdefault(variant, {})
        for r in of_variant.records():
            if r["episode"] > half and r["followed"] in (ALL, GREEDY):
                by_seed.setdefault(r["seed"], []).append(r["return"])
    means = {
        variant: {seed: sum(values) / len(values) for seed, values in by_seed.items()}
        for variant, by_seed in returns.items()
    }
    first, *others = means
    others = [variant for variant in others if means[variant]]
    if not (means[first] and others):
        return Table((), ())
    tests = {variant: paired_test(means[variant], means[first]) for variant in others}
    corrected = iter(holm([test.t_p for test in tests.values() if test]).tolist())
    rows: list[tuple[Any, ...]] = [(first or "-", _estimate(list(means[first].values())), None, None, None)]
    for variant, test in tests.items():
        shown: tuple[str | None, str | None, str | None] = (None, None, None)
        if test:
            difference = f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
            shown = (difference, f"{test.t_p:.4f}", f"{next(corrected):.4f}")
        rows.append((variant or "-", _estimate(list(means[variant].values())), *shown))
    return Table(("variant", "return", "difference [95 % interval]", "t-test p", "Holm"), tuple(rows))


def _estimate(values: list[float]) -> str | None:
    return f"{estimate(summary(values)._asdict())} (n = {len(values)})" if values else None
