"""Train the paper's query agent, SubActionDQN, on D_T (section 3.2).

    python examples/train_dqn.py --episodes 20 --env-arg weights=runs/pretrain/theta_0.safetensors

After every episode the agent (OUT/agent.safetensors), a row of OUT/episodes.csv and the learning curve
(OUT/episodes.png) are written, and a checkpoint. ``--resume`` goes on from the newest one, as if training had never
been interrupted; a run's folder may be moved.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import checkpoint_folder, environment_parser, make_environment, plot_lines

from agents import Checkpoint, EpisodeRecorder, ExponentialEpsilon, InfoLogger, LinearEpsilon, SubActionDQN


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="train_dqn")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play in all")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--buffer-size", type=int, default=600, help="decomposed transitions")
    parser.add_argument("--batch-size", type=int, default=16, help="decomposed transitions per update")
    parser.add_argument("--gradient-steps", type=int, default=1, help="updates per environment step")
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--td-target", choices=("paper", "van_hasselt"), default="paper")
    parser.add_argument("--loss", choices=("squared", "huber"), default="squared")
    parser.add_argument("--exploration", choices=("sub_action", "step", "episode"), default="sub_action")
    parser.add_argument(
        "--guides",
        nargs="+",
        default=["uniform"],
        metavar="GUIDE",
        help="what exploring follows: uniform, or a score such as score_entropy (with --env-arg scores=entropy)",
    )
    parser.add_argument("--n-steps", type=int, default=1, help="rewards that a target sums up")
    parser.add_argument(
        "--epsilon-steps",
        type=int,
        help="steps over which epsilon falls from 1 to 0.05; the released code's schedule if left out",
    )
    parser.add_argument("--tensorboard", type=Path, help="folder of TensorBoard logs")
    parser.add_argument(
        "--checkpoint-every", type=int, help="environment steps between checkpoints; an episode if left out"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUT")
    args = parser.parse_args(argv)

    env = make_environment(args, split="train")
    config = env.unwrapped.config  # type: ignore[attr-defined]
    per_episode = math.ceil(config.budget / config.regions_per_step)
    steps = args.episodes * per_episode
    agent = SubActionDQN(
        "QueryPolicy",
        env,
        learning_rate=args.learning_rate,
        buffer_size=args.buffer_size,
        batch_size=args.batch_size,
        gradient_steps=args.gradient_steps,
        gamma=args.gamma,
        td_target=args.td_target,
        loss=args.loss,
        exploration=args.exploration,
        guides=args.guides,
        n_steps=args.n_steps,
        epsilon=LinearEpsilon(1.0, 0.05, args.epsilon_steps) if args.epsilon_steps else ExponentialEpsilon(),
        tensorboard_log=None if args.tensorboard is None else str(args.tensorboard),
        seed=args.seed,
    )
    checkpoint = Checkpoint(checkpoint_folder(args.out, args.resume), every=args.checkpoint_every or per_episode)
    if args.resume:
        checkpoint.resume(agent)

    def after_episode() -> None:
        agent.save(args.out / "agent.safetensors")
        draw([float(row["return"]) for row in recorder.rows], args.out / "episodes.png")

    recorder = EpisodeRecorder(args.out / "episodes.csv", after_episode)
    if agent.num_timesteps < steps:
        agent.learn(
            steps - agent.num_timesteps,
            callback=[recorder, InfoLogger(), checkpoint],
            reset_num_timesteps=False,
            progress_bar=True,
        )
    print(f"{args.episodes} episodes played; the agent is {args.out / 'agent.safetensors'}")


def draw(returns: Sequence[float], path: Path) -> None:
    """Draw the return of each episode and the mean of the last ten."""
    numbers = range(1, len(returns) + 1)
    smooth = [float(np.mean(returns[max(0, i - 10) : i])) for i in numbers]
    lines = {"return": (numbers, returns), "mean of the last 10": (numbers, smooth)}
    plot_lines(path, lines, "episode", "gain in mean IoU (points)", "SubActionDQN on D_T")


if __name__ == "__main__":
    main()
