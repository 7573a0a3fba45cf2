"""Train an algorithm of Stable-Baselines3 on the environment, unchanged: PPO, or A2C.

    python examples/train_ppo.py --steps 240 --algorithm PPO

OUT holds checkpoints with the agent, from which ``--resume`` goes on as if training had never been interrupted, the
episodes (csv) and their returns (png).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from common import checkpoint_folder, environment_parser, make_environment, plot_lines
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.monitor import Monitor

from agents import Checkpoint, InfoLogger
from al_seg_env.storage import write_csv


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="train_ppo")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--algorithm", choices=("PPO", "A2C"), default="PPO")
    parser.add_argument("--steps", type=int, default=240, help="environment steps")
    parser.add_argument("--n-steps", type=int, default=24, help="environment steps per update")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUT")
    args = parser.parse_args(argv)

    env = Monitor(make_environment(args))
    algorithm = {"PPO": PPO, "A2C": A2C}[args.algorithm]
    options = {"batch_size": args.n_steps} if args.algorithm == "PPO" else {}
    agent = algorithm("MultiInputPolicy", env, n_steps=args.n_steps, seed=args.seed, **options)
    checkpoint = Checkpoint(checkpoint_folder(args.out, args.resume), every=args.n_steps)
    if args.resume:
        checkpoint.resume(agent)
    if agent.num_timesteps < args.steps:
        remaining = args.steps - agent.num_timesteps
        agent.learn(remaining, callback=[InfoLogger(), checkpoint], reset_num_timesteps=False, progress_bar=True)

    returns = env.get_episode_rewards()
    rows = [{"episode": i + 1, "return": round(r, 4)} for i, r in enumerate(returns)]
    if not rows:
        print(f"no episode ended within {args.steps} steps; ask for more")
        return
    write_csv(args.out / "episodes.csv", rows)
    lines = {args.algorithm.lower(): (np.arange(len(returns)) + 1, returns)}
    plot_lines(args.out / "episodes.png", lines, "episode", "gain in mean IoU (points)", args.algorithm)
    print(f"{len(rows)} episodes; mean gain of the last 10: {np.mean(returns[-10:]):.2f} points; see {args.out}")


if __name__ == "__main__":
    main()
