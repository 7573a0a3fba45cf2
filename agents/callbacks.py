"""Callbacks for training with Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback


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
