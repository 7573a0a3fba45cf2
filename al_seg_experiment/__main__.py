"""Run an experiment, look at how far it is, and report: ``python -m al_seg_experiment run|status|report FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from al_seg_experiment.reading import load_experiment, read_json
from al_seg_experiment.records import status
from al_seg_experiment.report import report
from al_seg_experiment.runner import run


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
        sub.add_argument("--out", type=Path, help="folder of the results; runs/NAME if omitted")
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
            sys.stdout.write(f"{report(args.file, args.out)}\n")
            return 0
        experiment = load_experiment(args.file, _overrides(args.set))
        out = args.out or Path("runs") / experiment.name
        if args.command == "status":
            _show(status(experiment, out))
            return 0
        if args.command == "run":
            run(experiment, out, args.ray)
        sys.stdout.write(f"{report(out)}\n")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


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
            overrides[name] = read_json(value)
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


if __name__ == "__main__":
    sys.exit(main())
