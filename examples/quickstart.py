"""Watch a query agent learn to choose regions, in a few minutes on two CPU cores and without any download.

1. theta_0: a small segmentation network learns street scenes of one rendering style (in the paper: GTA5).
2. SubActionDQN plays active learning on street scenes of another style, whose labels are known (D_T).
3. The agent, entropy and uniform choice spend the same budget on scenes that none has seen (D_V).

    python examples/quickstart.py

OUT holds the agent, the learning curve (train/episodes.png), the comparison (comparison.png and .csv), and what the
agent asked for (requests.png).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pretrain
import train_dqn
from common import environment_parser, make_environment, plot_lines
from PIL import Image
from tqdm import tqdm

from agents import EntropyPolicy, SubActionDQN, UniformPolicy
from al_seg_env.storage import write_csv


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="quickstart")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--episodes", type=int, default=12, help="training episodes of the agent")
    parser.add_argument("--seeds", type=int, default=3, help="evaluation runs per policy")
    parser.add_argument("--pretrain-epochs", type=int, default=12)
    args = parser.parse_args(argv)
    started = time.perf_counter()
    passed_on = ["--env", args.env, "--seed", str(args.seed), *(f"--env-arg={item}" for item in args.env_arg)]
    if args.env_file:
        passed_on += ["--env-file", str(args.env_file)]

    print("1/3  Pretraining theta_0")
    source = (
        ["--source-arg", "style=render", "--images", "none"]
        if args.env.startswith("al_seg_env/Synthetic")
        else ["--images", "state"]
    )
    epochs = ["--epochs", str(args.pretrain_epochs), "--patience", "12", "--updates", "20"]
    rate = ["--env-arg", "learning_rate=0.02"]
    pretrain.main([*passed_on, *rate, *source, *epochs, "--out", str(args.out / "theta_0")])
    weights = f"weights={args.out / 'theta_0' / 'theta_0.safetensors'}"

    print("2/3  Training the query agent on D_T")
    shutil.rmtree(args.out / "train" / "checkpoints", ignore_errors=True)  # of an earlier demonstration
    agent_options = ["--buffer-size", "4800", "--batch-size", "64", "--gradient-steps", "4", "--gamma", "0.5"]
    explore = ["--exploration", "step", "--epsilon-steps", str(6 * args.episodes)]
    episodes = ["--episodes", str(args.episodes), "--out", str(args.out / "train")]
    train_dqn.main([*passed_on, "--env-arg", weights, *agent_options, *explore, *episodes])

    print("3/3  Spending the budget on D_V")
    args.env_arg.append(weights)
    env = make_environment(args, split="eval", scores=["entropy"], render_mode="rgb_array")
    agent = SubActionDQN.load(args.out / "train" / "agent.safetensors", env=env)
    policies = {"uniform": UniformPolicy(args.seed), "entropy": EntropyPolicy(), "dqn": agent}
    curves = {name: [play(env, policy, seed, name) for seed in range(args.seeds)] for name, policy in policies.items()}
    Image.fromarray(env.render()).save(args.out / "requests.png")
    write_csv(
        args.out / "comparison.csv",
        [
            {"policy": name, "seed": seed, "labelled": labelled, "miou": round(miou, 4)}
            for name, runs in curves.items()
            for seed, run in enumerate(runs)
            for labelled, miou in run
        ],
    )
    lines = {name: summary(runs) for name, runs in curves.items()}
    title = f"Mean and standard deviation over {args.seeds} runs on D_V"
    plot_lines(args.out / "comparison.png", lines, "labelled regions", "mean IoU on D_R (%)", title)
    for name, (_, mean, spread) in lines.items():
        print(f"  {name:8s} {mean[-1]:6.2f} +- {spread[-1]:.2f} % mean IoU at the end")
    print(f"Done in {time.perf_counter() - started:.0f} s. Look at the pictures in {args.out}.")


def play(env: Any, policy: Any, seed: int, name: str) -> list[tuple[int, float]]:
    """Return ``(labelled regions, mean IoU in percent)`` along one episode."""
    observation, info = env.reset(seed=seed)
    curve, done = [(info["labelled"], info["miou"])], False
    with tqdm(total=env.unwrapped.config.budget, desc=f"{name}, seed {seed}", leave=False) as bar:
        while not done:
            action, _ = policy.predict(observation, deterministic=True)
            observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            curve.append((info["labelled"], info["miou"]))
            bar.update(len(info["chosen"]))
    return curve


def summary(runs: Sequence[Sequence[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labelled regions, mean and standard deviation of the mean IoU over the runs."""
    miou = np.array([[value for _, value in run] for run in runs])
    spread = miou.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(miou.shape[1])
    return np.array([labelled for labelled, _ in runs[0]]), miou.mean(axis=0), spread


if __name__ == "__main__":
    main()
