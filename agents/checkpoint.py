"""Training that can be killed at any moment and continues as if it had not been."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.training_state import restore_training, training_state
from al_seg_env.storage import folder_lock, load_tree, remove_unfinished, save_tree, well_formed
from al_seg_env.storage.validation import check_int, check_path

KIND = "training checkpoint"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")


class Checkpoint(BaseCallback):
    """Write checkpoints while any algorithm of Stable-Baselines3 learns, and continue from them::

        model = PPO("MultiInputPolicy", env, seed=0)
        checkpoint = Checkpoint("runs/ppo", every=100)
        checkpoint.resume(model)
        model.learn(1000 - model.num_timesteps, callback=checkpoint, reset_num_timesteps=False)

    On a CPU with the same number of threads, the result equals that of an uninterrupted run bit for bit, however often
    it was killed. A checkpoint holds the algorithm, replay, environments (in the middle of their episodes, with their
    labels) and all random states, as arrays and plain values; it is written atomically, and the last two are kept. The
    environments need ``get_state`` and ``set_state``. Those of other processes (``SubprocVecEnv``) are reset before
    ``set_state``; of the wrappers around them, only the counters of ``TimeLimit``, ``Monitor`` and
    ``RecordEpisodeStatistics`` are kept. Their states must not hold bare torch tensors, of which torch sends handles
    that may be closed before they are opened; those of :class:`al_seg_env.RegionSelectionEnv` are sent as bytes.

    One process at a time uses a folder: from :meth:`resume`, or the start of training, to the end of training.

    Args:
        folder: Folder of the checkpoints.
        every: Environment steps between two checkpoints, at least; they are written between rollouts.
        verbose: As in Stable-Baselines3.
    """

    def __init__(self, folder: str | Path, every: int = 1, verbose: int = 0) -> None:
        super().__init__(check_int("verbose", verbose, 0, 2))
        self.folder, self.every = check_path("folder", folder), check_int("every", every, 1)
        self._written: int | None = None  # environment steps in the newest checkpoint
        self._between_rollouts = True
        self._lock: ExitStack | None = None

    def resume(self, model: BaseAlgorithm) -> bool:
        """Put the newest checkpoint that is whole into ``model``; return whether there was one.

        A damaged one causes a warning, and the one before it is used.

        Raises:
            ValueError: If there are checkpoints, but none that is whole, or of another algorithm or environment; or if
                another process uses the folder.
        """
        if not self.folder.exists():
            return False
        self._acquire()
        damaged = []
        for path in self._paths():
            try:
                state = _read(path)
            except (ValueError, OSError) as error:
                damaged.append(str(error))
                warnings.warn(f"A checkpoint can't be used, the one before it is tried: {error}", stacklevel=2)
                continue
            with well_formed(path):
                restore_training(model, state)
            self._written = model.num_timesteps
            return True
        if damaged:
            raise ValueError(
                f"None of the {len(damaged)} checkpoints in {self.folder} can be used: {'; '.join(damaged)}. Restore "
                "one of them, or remove them all to start again."
            )
        return False

    def save(self) -> Path:
        """Write a checkpoint; remove older ones than the last two."""
        steps = self.model.num_timesteps
        path = self.folder / f"checkpoint-{steps:09d}.safetensors"
        remove_unfinished(self.folder, "checkpoint-*.safetensors")  # of earlier steps, by processes that were killed
        save_tree(path, KIND, training_state(self.model))
        self._written = steps
        for old in [old for old in self._paths() if _steps(old) <= steps][KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def _paths(self) -> list[Path]:
        """The checkpoints, the newest first."""
        found = [path for path in self.folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_steps(path), path.name), reverse=True)

    def _acquire(self) -> None:
        """Lock the folder."""
        if self._lock is not None:
            return
        key = (os.getpid(), str(self.folder.resolve()))
        if (other := _HOLDERS.get(key)) is not None:
            other._release()  # of a training of this process that ended with an error, which callbacks don't learn of
        lock = ExitStack()
        lock.enter_context(folder_lock(self.folder))
        self._lock, _HOLDERS[key] = lock, self

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _on_training_start(self) -> None:
        self._acquire()
        if self._written is None and (found := self._paths()):
            self._release()
            raise ValueError(
                f"{self.folder} holds checkpoints of another training, such as {found[0].name}: call resume(model) to "
                "continue it, or choose another folder."
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
        self._release()

    def _on_step(self) -> bool:
        return True


_HOLDERS: WeakValueDictionary[tuple[int, str], Checkpoint] = WeakValueDictionary()
"""Who locked a folder, by process: a forked process inherits this, but not its parent's locks."""


def _steps(path: Path) -> int:
    """Environment steps that a checkpoint's name promises."""
    return int(path.stem.split("-")[1])


def _read(path: Path) -> Any:
    """Return a checkpoint's state."""
    state = load_tree(path, KIND)
    with well_formed(path):
        steps = state["progress"]["num_timesteps"]
    if steps != _steps(path):
        raise ValueError(f"{path} holds {steps} environment steps; expected {_steps(path)}: give it back its name")
    return state
