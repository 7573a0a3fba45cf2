"""How the training of the query agents went: the return of each episode, by who was followed in it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from al_seg_env.storage import write_bytes, write_text
from al_seg_experiment.experiment import Experiment
from al_seg_experiment.report import figures
from al_seg_experiment.report.statistics import holm, paired_test, summary
from al_seg_experiment.report.tables import Table, estimate, markdown, write_csv
from al_seg_experiment.runner import pieces

ALL = "all"
"""Who is followed where an agent explores step by step: no one in particular."""
COLUMNS = ("variant", "seed", "episode", "return", "followed")


def training_figure(experiment: Experiment, folder: Path, report: Path) -> Path | None:
    """Draw the returns of all agents' episodes, and add the figure to the report.

    Returns:
        The figure's path, or ``None`` if no agent has finished an episode.
    """
    table = _episodes(experiment, folder)
    if not table.rows:
        return None
    panels = {variant: table.where(variant=variant) for variant in dict.fromkeys(table.column("variant"))}
    figure = report.parent / "figure_training.png"
    write_bytes(figure, figures.episode_returns(panels, ylabel="gain in mean IoU [points]"))
    write_csv(report.parent / "training.csv", table)
    text = report.read_text(encoding="utf-8").rstrip()
    text += (
        "\n\n## Training of the query agent\n\nReturn of each episode (gain in mean IoU on D_R, points), and the mean "
        f"of {figures.AVERAGED} episodes of the agent's own choices; all seeds.\n\n"
        f"![return by episode]({figure.name})\n\n{markdown(_by_followed(table))}\nNumbers: [csv](training.csv)\n"
    )
    if (compared := _between_variants(table)).rows:
        text += (
            "\nMean return of each agent's own choices in the second half, and paired difference to "
            f"{compared.rows[0][0]}:\n\n{markdown(compared)}"
        )
    write_text(report, text)
    return figure


def _episodes(experiment: Experiment, folder: Path) -> Table:
    rows: list[tuple[Any, ...]] = []
    for piece in pieces(experiment):
        path = folder / piece.name / "episodes.csv"
        if piece.kind == "query" and path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        followed = row.get("followed", ALL).removeprefix("score_")
                        rows.append((piece.variant, piece.seed, int(row["episode"]), float(row["return"]), followed))
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
                raise ValueError(
                    f"{path} is damaged ({type(error).__name__}: {error}); remove it, and the report does without it"
                ) from error
    return Table(COLUMNS, tuple(rows))


def _by_followed(table: Table) -> Table:
    """Return mean, deviation and number of returns, in the first and the last half of training."""
    half = max(table.column("episode")) / 2
    rows = []
    for variant in dict.fromkeys(table.column("variant")):
        own = table.where(variant=variant)
        for followed in dict.fromkeys(own.column("followed")):
            records = own.where(followed=followed).records()
            halves = [[r for r in records if r["episode"] <= half], [r for r in records if r["episode"] > half]]
            rows.append((variant or "-", followed, *(_estimate([r["return"] for r in part]) for part in halves)))
    return Table(("variant", "followed", "first half", "second half"), tuple(rows))


def _between_variants(table: Table) -> Table:
    """Return the mean return of the second half of training by variant, and paired tests against the first variant."""
    half = max(table.column("episode")) / 2
    returns: dict[str, dict[int, list[float]]] = {}
    for r in table.records():
        if r["episode"] > half and r["followed"] in (ALL, figures.GREEDY):
            returns.setdefault(r["variant"], {}).setdefault(r["seed"], []).append(r["return"])
    means = {v: {seed: sum(own) / len(own) for seed, own in seeds.items()} for v, seeds in returns.items()}
    if len(means) < 2:
        return Table((), ())
    first, *others = means
    tests = {variant: paired_test(means[variant], means[first]) for variant in others}
    corrected = iter(holm([test.t_p for test in tests.values() if test]).tolist())
    rows: list[tuple[Any, ...]] = [(first or "-", _estimate(list(means[first].values())), None, None, None)]
    for variant, test in tests.items():
        shown = (None, None, None)
        if test:
            difference = f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
            shown = (difference, f"{test.t_p:.4f}", f"{next(corrected):.4f}")  # type: ignore[assignment]
        rows.append((variant or "-", _estimate(list(means[variant].values())), *shown))
    return Table(("variant", "return", "difference [95 % interval]", "t-test p", "Holm"), tuple(rows))


def _estimate(values: list[float]) -> str | None:
    return f"{estimate(summary(values)._asdict())} (n = {len(values)})" if values else None
