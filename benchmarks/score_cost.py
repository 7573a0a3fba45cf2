"""What does a step with BALD's samples cost, compared with one with the entropy score, and one without scores?

Steps of three environments with the same seed and actions are timed in turn:

    python benchmarks/score_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints times and ratios, and writes OUT/score_cost.csv.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from timing import describe, steps_in_turn

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    steps: int = 6
    """Rounds to time, after one to warm up."""
    seed: int = 0
    """Seed of the first episode."""
    out: Path = Path("runs/score_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    kinds: dict[str, list[str]] = {"none": [], "entropy": ["entropy"], "bald": ["bald"]}
    envs = {name: options.make_unwrapped(scores=scores) for name, scores in kinds.items()}
    rows = steps_in_turn(envs, options.seed, options.steps)
    for row in rows:
        row["bald_by_entropy"] = round(row["bald"] / row["entropy"], 4)
    write_csv(options.out / "score_cost.csv", rows)
    print(describe(rows))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
