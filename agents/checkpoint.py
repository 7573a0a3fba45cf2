"""Training that can be killed at any moment and goes on as if it had not been."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.training_state import restore_training, training_state
from al_seg_env.storage import load_tree, remove_unfinished, save_tree

KIND = "training checkpoint"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")


class Checkpoint(BaseCallback):
    """Write checkpoints while any algorithm of Stable-Baselines3 learns, and go on from them::

        model = PPO("MultiInputPolicy", env, seed=0)
        checkpoint = Checkpoint("runs/ppo", every=100)
        checkpoint.resume(model)
        model.learn(1000 - model.num_timesteps, callback=checkpoint, reset_num_timesteps=False)

    However often it was killed, on a CPU and with as many threads it ends bit by bit where an undisturbed run
    ends. A checkpoint holds the algorithm, replay, environments (in the middle of their episodes, with their
    labels) and all random states, as arrays and plain values; it is written whole or not at all, and the last two are
    kept. The environments need ``get_state`` and ``set_state``. What wrappers count in environments of other
    processes (``SubprocVecEnv``) is not kept: the means of episodes that are logged may differ there.

    Args:
        folder: Where the checkpoints are.
        every: Environment steps between two of them, at least; they are written between rollouts.
        verbose: As in Stable-Baselines3.
    """

    def __init__(self, folder: str | Path, every: int = 1, verbose: int = 0) -> None:
        super().__init__(verbose)
        if every < 1:
            raise ValueError(f"every is {every}: expected at least 1 environment step.")
        self.folder, self.every = Path(folder), every
        self._written: int | None = None  # environment steps in the newest checkpoint
        self._between_rollouts = True

    def resume(self, model: BaseAlgorithm) -> bool:
        """Put the newest checkpoint that is whole into ``model``; return whether there was one.

        A damaged one is warned of, and the one before it taken.

        Raises:
            ValueError: If there are checkpoints, but none that is whole, or of another algorithm or environment.
        """
        damaged = []
        for path in self._paths():
            try:
                state = load_tree(path, KIND)
            except (ValueError, OSError) as error:
                damaged.append(str(error))
                warnings.warn(f"A checkpoint can't be used, the one before it is tried: {error}", stacklevel=2)
                continue
            try:
                restore_training(model, state)
            except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
                raise ValueError(
                    f"{path} does not fit ({type(error).__name__}: {error}); use another folder"
                ) from error
            self._written = model.num_timesteps
            return True
        if damaged:
            raise ValueError(
                f"None of the {len(damaged)} checkpoints in {self.folder} can be used: {'; '.join(damaged)}. Restore "
                "one of them, or remove them all to start anew."
            )
        return False

    def save(self) -> Path:
        """Write a checkpoint; remove all but the newest two."""
        path = self.folder / f"checkpoint-{self.model.num_timesteps:09d}.safetensors"
        remove_unfinished(self.folder, "checkpoint-*.safetensors")  # of earlier steps, by processes that were killed
        save_tree(path, KIND, training_state(self.model))
        self._written = self.model.num_timesteps
        for old in self._paths()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def _paths(self) -> list[Path]:
        """The checkpoints, the newest first."""
        found = [path for path in self.folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.split("-")[1]), reverse=True)

    def _on_training_start(self) -> None:
        if self._written is None and (found := self._paths()):
            raise ValueError(
                f"{self.folder} holds checkpoints of another training, such as {found[0].name}: call resume(model) to "
                "go on with it, or choose another folder."
            )

    def _on_rollout_start(self) -> None:
        self._between_rollouts = False
        if self._written is None or self.num_timesteps - self._written >= self.every:
            self.save()

    def _on_rollout_end(self) -> None:
        self._between_rollouts = True

    def _on_training_end(self) -> None:
        # A callback may have ended training in the middle of a rollout, whose last step is then in no buffer.
        if self._between_rollouts and self._written != self.model.num_timesteps:
            self.save()

    def _on_step(self) -> bool:
        return True
