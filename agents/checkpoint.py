"""Checkpoints of training that can be killed at any moment and then continues as if it had never stopped."""

from __future__ import annotations

import os
import re
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.training_state import restore_training, training_state
from al_seg_env.storage import folder_lock, load_tree, remove_unfinished, save_tree, well_formed
from al_seg_env.storage.validation import check_int, check_number, check_path

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
    the run was killed. A checkpoint holds the algorithm, replay, environments (in the middle of their episodes, with
    their labels) and all random states, as arrays and plain values. It is written atomically, and the last two are
    kept.

    The environments need ``get_state`` and ``set_state``. Environments in other processes (``SubprocVecEnv``) are reset
    before ``set_state``; only the counters of the wrappers ``TimeLimit``, ``Monitor`` and ``RecordEpisodeStatistics``
    around them are kept. Their states must not hold bare torch tensors: torch sends these as handles, which may be
    closed before the receiver opens them. :class:`al_seg_env.RegionSelectionEnv` sends its state as bytes.

    Only one process at a time may use a folder: from :meth:`resume`, or the start of training, to the end of training.

    Args:
        folder: Folder of the checkpoints.
        every: Minimum number of environment steps between two checkpoints, which are written between rollouts.
        share: Largest share of the time to spend on writing them: after one that took a second, the next one is at
            least 1 / share - 1 seconds later. A large replay takes seconds.
        verbose: As in Stable-Baselines3.
    """

    def __init__(self, folder: str | Path, every: int = 1, share: float = 1.0, verbose: int = 0) -> None:
        super().__init__(check_int("verbose", verbose, 0, 2))
        self.folder, self.every = check_path("folder", folder), check_int("every", every, 1)
        self.share = check_number("share", share, above=0, most=1)
        self._not_before = 0.0  # in seconds of the monotonic clock
        self._written: int | None = None  # environment steps in the newest checkpoint
        self._between_rollouts = True
        self._lock: ExitStack | None = None

    def resume(self, model: BaseAlgorithm) -> bool:
        """Restore the newest intact checkpoint into ``model``, and return whether there was one.

        A damaged checkpoint causes a warning, and the one before it is used.

        Raises:
            ValueError: If all checkpoints are damaged, if they belong to another algorithm or environment, or if
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
                warnings.warn(f"A checkpoint can't be used, so the one before it is tried: {error}", stacklevel=2)
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
        """Write a checkpoint, remove all but the last two, and return the new file's path."""
        began, steps = time.monotonic(), self.model.num_timesteps
        path = self.folder / f"checkpoint-{steps:09d}.safetensors"
        remove_unfinished(self.folder)  # left by killed processes
        save_tree(path, KIND, training_state(self.model))
        self._written = steps
        for old in [old for old in self._paths() if _steps(old) <= steps][KEPT:]:
            old.unlink(missing_ok=True)
        ended = time.monotonic()
        self._not_before = ended + (ended - began) * (1 / self.share - 1)
        return path

    def _paths(self) -> list[Path]:
        """Return the files of checkpoints, the newest first."""
        found = [path for path in self.folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_steps(path), path.name), reverse=True)

    def _acquire(self) -> None:
        """Lock the folder."""
        if self._lock is not None:
            return
        key = (os.getpid(), str(self.folder.resolve()))
        if (other := _HOLDERS.get(key)) is not None:
            other._release()  # its training ended with an error, of which callbacks aren't told
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
                f"{self.folder} already has checkpoints, such as {found[0].name}: call resume(model) to "
                "continue it, or choose another folder."
            )

    def _on_rollout_start(self) -> None:
        self._between_rollouts = False
        due = self._written is None or self.num_timesteps - self._written >= self.every
        if due and time.monotonic() >= self._not_before:
            self.save()

    def _on_rollout_end(self) -> None:
        self._between_rollouts = True

    def _on_training_end(self) -> None:
        # A callback may have ended training in the middle of a rollout, and then no buffer has its last step.
        if self._between_rollouts and self._written != self.model.num_timesteps:
            self.save()
        self._release()

    def _on_step(self) -> bool:
        return True


_HOLDERS: WeakValueDictionary[tuple[int, str], Checkpoint] = WeakValueDictionary()
"""Callbacks that hold locks, by process and folder: a forked process inherits this dict, but not the locks."""


def _steps(path: Path) -> int:
    """Return the number of environment steps in a checkpoint's file name."""
    return int(path.stem.split("-")[1])


def _read(path: Path) -> Any:
    """Return a checkpoint's state."""
    state = load_tree(path, KIND)
    with well_formed(path):
        steps = state["progress"]["num_timesteps"]
    if steps != _steps(path):
        raise ValueError(
            f"{path} holds {steps} environment steps; expected {_steps(path)}, as its name says: give it its old name"
        )
    return state
