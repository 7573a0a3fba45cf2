"""What does a step cost with BALD's samples, beside one with the entropy score, and one with no score?

Steps of three environments with the same seed and actions are timed in turn:

    python benchmarks/score_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints times and ratios, and writes OUT/score_cost.csv.
"""

from __future__ import annotations

import argparse
from typing import Any

from timing import describe, environment_parser, make_environment, steps_in_turn, write_csv


def main() -> None:
    parser = environment_parser(__doc__ or "", out="score_cost")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=6, help="rounds to time, after one to warm up")
    args = parser.parse_args()
    kinds = {"none": [], "entropy": ["entropy"], "bald": ["bald"]}
    envs: dict[str, Any] = {name: make_environment(args, scores=scores).unwrapped for name, scores in kinds.items()}
    rows = steps_in_turn(envs, args.seed, args.steps)
    for row in rows:
        row["bald_by_entropy"] = round(row["bald"] / row["entropy"], 4)
    write_csv(args.out / "score_cost.csv", rows)
    print(describe(rows))


if __name__ == "__main__":
    main()
