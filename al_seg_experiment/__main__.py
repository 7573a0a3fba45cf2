"""Run an experiment, look at how far it is, and report: ``python -m al_seg_experiment run|status|report FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from al_seg_experiment.experiment import Experiment, load_experiment
from al_seg_experiment.report.requests import requests_figure
from al_seg_experiment.report.results import read_results
from al_seg_experiment.report.training_curves import training_figure
from al_seg_experiment.report.writing import report
from al_seg_experiment.runner import gather, run, status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m al_seg_experiment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("run", "run what is not finished, then report"),
        ("status", "show each piece and its state"),
        ("report", "write tables and figures from what is stored"),
    ):
        sub = commands.add_parser(command, help=text, description=text)
        also = "; or a results.csv, however it was made" if command == "report" else ""
        sub.add_argument("file", help=f"yaml or toml file, or the name of a preset{also}")
        sub.add_argument("--out", type=Path, help="folder of the results; runs/NAME if left out")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="change an entry: arguments.root=data/camvid",
        )
        if command == "run":
            sub.add_argument(
                "--ray",
                nargs="?",
                const="local",
                metavar="ADDRESS",
                help="spread over Ray: here, or a cluster's address",
            )
    args = parser.parse_args(argv)
    try:
        if args.command == "report" and args.file.endswith(".csv"):
            sys.stdout.write(f"{report(args.file, args.out or Path(args.file).parent / 'report')}\n")
            return 0
        experiment = load_experiment(args.file, _overrides(args.set))
        out = args.out or Path("runs") / experiment.name
        if args.command == "status":
            _show(status(experiment, out))
            return 0
        results = run(experiment, out, args.ray) if args.command == "run" else gather(experiment, out)
        _report(experiment, out, results)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _report(experiment: Experiment, out: Path, results: Path) -> None:
    if not results.exists():
        raise ValueError(f"{out} holds no result yet; run the experiment first")
    there = read_results(results).variants
    first = next((variant for variant in experiment.variants if variant in there), None)
    written = report(results, out / "report", against_variant=first)
    training_figure(experiment, out, written)
    requests_figure(experiment, out, written)
    sys.stdout.write(f"{written}\n")


def _show(rows: Sequence[dict[str, Any]]) -> None:
    width = max(len(row["piece"]) for row in rows)
    for row in rows:
        sys.stdout.write(f"{row['piece']:{width}}  {row['state']:9}{row['results']}\n")
    done = sum(row["state"] == "finished" for row in rows)
    sys.stdout.write(f"{done} of {len(rows)} pieces finished\n")


def _overrides(items: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--set {item!r}: expected NAME=VALUE")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


if __name__ == "__main__":
    sys.exit(main())
