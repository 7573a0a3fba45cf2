"""Train the paper's query agent, SubActionDQN, on D_T (section 3.2).

    python examples/train_dqn.py --episodes 20 --env-arg weights=runs/pretrain/theta_0.safetensors

After every episode the agent (OUT/agent.zip), a row of OUT/episodes.csv and the learning curve (OUT/episodes.png)
are written; ``--resume`` goes on from there, with an empty replay.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import environment_parser, make_environment, plot_lines, write_csv
from stable_baselines3.common.callbacks import BaseCallback

from agents import ExponentialEpsilon, InfoLogger, LinearEpsilon, SubActionDQN


class EpisodeRecorder(BaseCallback):
    """Save the agent, a csv and a picture after every episode."""

    def __init__(self, out: Path, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.out, self.rows = out, rows

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self.rows.append(
                    {
                        "episode": len(self.rows) + 1,
                        "steps": self.num_timesteps,
                        "return": round(info["episode"]["r"], 4),
                        "final_miou": round(info["miou"], 4),
                        "epsilon": round(self.model.exploration_rate, 4),  # type: ignore[attr-defined]
                    }
                )
                self._write()
        return True

    def _write(self) -> None:
        unfinished = self.out / ".agent.zip"
        self.model.save(unfinished)
        os.replace(unfinished, self.out / "agent.zip")
        write_csv(self.out / "episodes.csv", self.rows)
        returns = [float(row["return"]) for row in self.rows]
        smooth = [
            sum(returns[max(0, i - 9) : i + 1]) / len(returns[max(0, i - 9) : i + 1]) for i in range(len(returns))
        ]
        numbers = range(1, len(returns) + 1)
        lines = {"return": (numbers, returns), "mean of the last 10": (numbers, smooth)}
        plot_lines(self.out / "episodes.png", lines, "episode", "gain in mean IoU (points)", "SubActionDQN on D_T")


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
    parser.add_argument("--exploration", choices=("sub_action", "step"), default="sub_action")
    parser.add_argument(
        "--epsilon-steps",
        type=int,
        help="steps over which epsilon falls from 1 to 0.05; the released code's schedule if left out",
    )
    parser.add_argument("--tensorboard", type=Path, help="folder of TensorBoard logs")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/agent.zip")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    env = make_environment(args, split="train")
    config = env.unwrapped.config  # type: ignore[attr-defined]
    steps = args.episodes * math.ceil(config.budget / config.regions_per_step)
    rows: list[dict[str, Any]] = []
    if args.resume and (args.out / "agent.zip").exists():
        agent = SubActionDQN.load(args.out / "agent.zip", env=env)
        rows = list(csv.DictReader((args.out / "episodes.csv").open()))
    else:
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
            epsilon=LinearEpsilon(1.0, 0.05, args.epsilon_steps) if args.epsilon_steps else ExponentialEpsilon(),
            tensorboard_log=None if args.tensorboard is None else str(args.tensorboard),
            seed=args.seed,
        )
    if agent.num_timesteps < steps:
        agent.learn(
            steps - agent.num_timesteps,
            callback=[EpisodeRecorder(args.out, rows), InfoLogger()],
            reset_num_timesteps=not rows,
            progress_bar=True,
        )
    print(f"{len(rows)} episodes played; the agent is {args.out / 'agent.zip'}")


if __name__ == "__main__":
    main()
