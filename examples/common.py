"""What the examples share: choosing an environment on the command line, and writing what came out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

import al_seg_env  # noqa: F401  (registers the environments)
from al_seg_env.storage import replacing

# Colours that stay apart for colour-blind readers and in print (Okabe and Ito).
COLOURS = {
    "uniform": "#000000",
    "entropy": "#E69F00",
    "bald": "#56B4E9",
    "margin": "#009E73",
    "dqn": "#D55E00",
    "ppo": "#CC79A7",
}
MARKERS = {"uniform": "o", "entropy": "s", "bald": "^", "margin": "v", "dqn": "D", "ppo": "P"}


def environment_parser(description: str, out: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that choose an environment and a folder for the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="al_seg_env/SyntheticStreets-v0", help="any registered environment id")
    parser.add_argument(
        "--env-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the environment, its value as JSON or plain text; may be repeated "
        "(--env-arg root=data/camvid --env-arg image_size=[180,240])",
    )
    parser.add_argument("--env-file", type=Path, help="json file of environment arguments, below --env-arg")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--out", type=Path, default=Path("runs") / out, help="folder for the results")
    return parser


def environment_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments that ``--env-file`` and ``--env-arg`` name."""
    chosen: dict[str, Any] = json.loads(args.env_file.read_text()) if args.env_file else {}
    for item in args.env_arg:
        name, separator, value = item.partition("=")
        if not separator:
            raise SystemExit(f"--env-arg {item!r}: expected NAME=VALUE")
        try:
            chosen[name] = json.loads(value)
        except json.JSONDecodeError:
            chosen[name] = value
    return chosen


def make_environment(args: argparse.Namespace, **overrides: Any) -> gym.Env:
    """Make the environment that the command line names."""
    return gym.make(args.env, **{**environment_arguments(args), **overrides})


def checkpoint_folder(out: Path, resume: bool) -> Path:
    """Return the folder of a training's checkpoints; refuse one with those of a training not to be resumed."""
    folder = out / "checkpoints"
    if not resume and any(folder.glob("checkpoint-*")):
        raise SystemExit(f"{out} holds a training: --resume goes on with it; or choose another --out, or remove it")
    return folder


def plot_lines(
    path: Path,
    lines: Mapping[str, tuple[Iterable[float], Iterable[float]] | tuple[Iterable[float], Iterable[float], Any]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Draw named lines of ``(x, y)`` or ``(x, y, spread)``; the spread becomes a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, (x, y, *spread) in lines.items():
        x, y = np.asarray(list(x)), np.asarray(list(y))
        colour = COLOURS.get(name)
        axes.plot(x, y, label=name, color=colour, marker=MARKERS.get(name), markersize=4)
        if spread:
            width = np.asarray(list(spread[0]))
            axes.fill_between(x, y - width, y + width, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    plt.close(figure)
