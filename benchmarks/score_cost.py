"""What does a step cost with BALD's samples, beside one with the entropy score, and one with no score?

Steps of three environments with the same seed and actions are timed in turn:

    python benchmarks/score_cost.py --env al_seg_env/CamVid-v0 --env-arg root=...

Prints times and ratios, and writes OUT/score_cost.csv.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from timing import describe, environment_parser, make_environment, timed, write_csv
from tqdm import tqdm


def main() -> None:
    parser = environment_parser(__doc__ or "", out="score_cost")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=6, help="rounds to time, after one to warm up")
    args = parser.parse_args()
    kinds = {"none": [], "entropy": ["entropy"], "bald": ["bald"]}
    envs: dict[str, Any] = {name: make_environment(args, scores=scores).unwrapped for name, scores in kinds.items()}
    encoder_calls = [0]
    for env in envs.values():
        env.reset(seed=args.seed)
    bald = envs["bald"].learner
    encoder = bald._inference.network.encoder if bald._inference else bald.network.encoder
    encoder.register_forward_pre_hook(lambda *_: encoder_calls.__setitem__(0, encoder_calls[0] + 1))
    space = envs["none"].action_space
    space.seed(args.seed)
    rows = []
    for _ in tqdm(range(1 + args.steps), desc="rounds"):
        action = space.sample()
        row = {name: timed(partial(env.step, action), env.learner.device) for name, env in envs.items()}
        row["bald_by_entropy"] = row["bald"] / row["entropy"]
        rows.append({name: round(value, 4) for name, value in row.items()})
    write_csv(args.out / "score_cost.csv", rows[1:])
    print(describe(rows[1:]))
    print(f"encoder passes of the BALD environment: {encoder_calls[0] / len(rows):.1f} batches a step")


if __name__ == "__main__":
    main()
