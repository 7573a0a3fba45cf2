"""Callbacks for training with Stable-Baselines3."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from al_seg_env.storage import write_csv


class InfoLogger(BaseCallback):
    """Log entries of ``info`` at the end of each episode, as ``rollout/<key>``.

    Several episodes between two writes of the logger are averaged. A key that an ``info`` lacks is left out.

    Args:
        keys: entries to log; each has to be a number.
        verbose: as in Stable-Baselines3.
    """

    def __init__(self, keys: Sequence[str] = ("miou", "labelled"), verbose: int = 0) -> None:
        super().__init__(verbose)
        self.keys = tuple(keys)

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                for key in self.keys:
                    if key in info:
                        self.logger.record_mean(f"rollout/{key}", float(info[key]))
        return True


class EpisodeRecorder(BaseCallback):
    """Write a csv file with a row per episode: steps, return, final mean IoU, exploration rate, who was followed.

    Where training goes on from a checkpoint, so does the file: rows of episodes that ended after the checkpoint
    are dropped, since those are played again.

    Args:
        path: The csv file.
        after: Called after each episode, when its row is written.
        verbose: as in Stable-Baselines3.

    Attributes:
        rows: One dict per episode.
    """

    def __init__(self, path: str | Path, after: Callable[[], None] | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path, self.after = Path(path), after
        self.rows: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.rows = []
        if self.num_timesteps and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["steps"]) <= self.num_timesteps]

    def _on_step(self) -> bool:
        followed = getattr(self.model, "followed", None)
        for number, (done, info) in enumerate(zip(self.locals["dones"], self.locals["infos"], strict=True)):
            if done:
                row: dict[str, Any] = {"episode": len(self.rows) + 1, "steps": self.num_timesteps}
                row |= {"return": round(float(info["episode"]["r"]), 4), "final_miou": round(float(info["miou"]), 4)}
                if (rate := getattr(self.model, "exploration_rate", None)) is not None:
                    row["epsilon"] = round(float(rate), 4)
                if followed is not None:
                    row["followed"] = followed[number]
                self.rows.append(row)
                write_csv(self.path, self.rows)
                if self.after is not None:
                    self.after()
        return True
