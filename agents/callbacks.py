"""Callbacks for training with Stable-Baselines3."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

from al_seg_env.storage import parse_float, parse_int, require_file, well_formed, write_text
from al_seg_env.storage.validation import check, check_int, check_names, check_path

_PARSERS: dict[str, Callable[[str, str], int | float]] = {
    "episode": parse_int,
    "steps": parse_int,
    "return": parse_float,
    "final_miou": parse_float,
    "epsilon": parse_float,
}


class InfoLogger(BaseCallback):
    """Log entries of ``info`` at the end of each episode, as ``rollout/<key>``.

    If several episodes end between two writes of the logger, their values are averaged. Keys that ``info`` lacks are
    omitted.

    Args:
        keys: Entries to log; each must be a number.
        verbose: As in Stable-Baselines3.
    """

    def __init__(self, keys: Sequence[str] = ("miou", "labelled"), verbose: int = 0) -> None:
        super().__init__(check_int("verbose", verbose, 0, 2))
        self.keys = check_names("keys", keys, ("miou", "labelled"))

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                for key in self.keys:
                    if key in info:
                        self.logger.record_mean(f"rollout/{key}", float(info[key]))
        return True


class EpisodeRecorder(BaseCallback):
    """Write a csv file with one row per episode: steps, return, final mean IoU, exploration rate, guide.

    Training that continues from a checkpoint also continues the file. :class:`agents.Checkpoint` stores the rows, so
    the file equals that of an uninterrupted training even if it was damaged or removed in between. If the checkpoint
    has no rows, they are read from the file, except for episodes that ended after the checkpoint, which are played
    again.

    Args:
        path: The csv file.
        after: Called after each episode, once its row is written.
        verbose: As in Stable-Baselines3.

    Attributes:
        rows: One dict per episode.

    Raises:
        ValueError: If ``after`` is not a function. When training starts or continues: if the file can't be continued.
    """

    def __init__(self, path: str | Path, after: Callable[[], None] | None = None, verbose: int = 0) -> None:
        super().__init__(check_int("verbose", verbose, 0, 2))
        check("after", after, after is None or callable(after), "a function, or None")
        self.path, self.after = check_path("path", path), after
        self.rows: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        monitored = is_vecenv_wrapped(self.training_env, VecMonitor) or all(self.training_env.env_is_wrapped(Monitor))
        if not monitored:
            raise ValueError("the agent's environments are not monitored; wrap them in Monitor or VecMonitor")
        # Checkpoints store the model's attributes. The key is the file's name alone, since folders may be moved.
        self._recorded: dict[str, str] = vars(self.model).setdefault("recorded", {})
        name = self.path.name
        self.rows = []
        if self.num_timesteps and name in self._recorded:
            if self._recorded[name]:
                self.rows = _parsed(self._recorded[name], self.path)
                write_text(self.path, self._recorded[name])
        elif self.num_timesteps and self.path.exists():
            require_file(self.path)
            with well_formed(self.path):
                rows = _parsed(self.path.read_text(encoding="utf-8"), self.path)
            self.rows = [row for row in rows if row["steps"] <= self.num_timesteps]
        lines = [list(self.rows[0]), *(row.values() for row in self.rows)] if self.rows else []
        self._recorded[name] = "".join(map(_line, lines))

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
                self._append(row)
                if self.after is not None:
                    self.after()
        return True

    def _append(self, row: dict[str, Any]) -> None:
        if self.rows and row.keys() != self.rows[0].keys():
            raise ValueError(
                f"{self.path} has the columns {list(self.rows[0])}; expected {list(row)}: use another file"
            )
        added = _line(row.values()) if self.rows else _line(row) + _line(row.values())
        self.rows.append(row)
        self._recorded[self.path.name] += added
        write_text(self.path, self._recorded[self.path.name])


def _line(cells: Iterable[Any]) -> str:
    """Return a line of a csv file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _parsed(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that :class:`EpisodeRecorder` wrote; a ``ValueError`` says what is wrong with it."""
    try:
        header, *lines = list(csv.reader(io.StringIO(text), strict=True)) or [[]]
    except csv.Error as error:
        raise ValueError(f"{path} is not a csv file ({error}); restore the file, or remove it") from error
    known = [*_PARSERS, "followed"]
    if header[:4] != known[:4] or len(set(header)) < len(header) or not set(header) <= set(known):
        raise ValueError(f"{path} has the columns {header}; expected {known}, the last two optional: use another file")
    rows: list[dict[str, Any]] = []
    for number, cells in enumerate(lines, start=1):
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            raise ValueError(f"{where} has {len(cells)} cells; expected {len(header)}: restore the file, or remove it")
        row = {
            name: _PARSERS[name](cell, f"{where}: {name}") if name in _PARSERS else cell
            for name, cell in zip(header, cells, strict=True)
        }
        remedy = "restore the file, or remove it"
        if row["episode"] != number:
            raise ValueError(f"{where} is of episode {row['episode']}; expected {number}: {remedy}")
        if rows and row["steps"] < rows[-1]["steps"]:
            raise ValueError(f"{where} has {row['steps']} steps; expected at least {rows[-1]['steps']}: {remedy}")
        rows.append(row)
    return rows
