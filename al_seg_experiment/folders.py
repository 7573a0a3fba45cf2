"""Folders of long jobs: each belongs to one process at a time, and to one configuration forever."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from al_seg_env.learner.weights import weights_digest
from al_seg_env.observation.forecast import KIND as FORECAST
from al_seg_env.registration import environment_spec
from al_seg_env.storage import folder_lock, load_tree, tree_digest
from al_seg_env.storage.validation import check
from al_seg_experiment.records import read_record, refuse_differences, write_record

MADE_WITH = "made_with.json"


def refuse_others(folder: str | Path, names: Sequence[str], marks: Sequence[str]) -> None:
    """Refuse a folder with files that a job would replace, unless such a job wrote them.

    Args:
        folder: The folder; it need not exist.
        names: Names of the files that the job writes, or patterns for them.
        marks: Names of files that such a job writes before all others.

    Raises:
        ValueError: If the folder has any of ``names`` but none of ``marks``.
    """
    folder = Path(folder)
    found = [path for name in names for path in sorted(folder.glob(name))]
    if found and not any((folder / mark).exists() for mark in marks):
        raise ValueError(
            f"{found[0]} would be replaced, and nothing there says that al-seg-env wrote it (no {marks[0]}); choose a "
            "new folder, or move it"
        )


def acquiring(split: str, env: str | gym.Env | EnvSpec, **arguments: Any) -> EnvSpec:
    """Return the specification of an environment that acquires from D_T or D_V, with some arguments changed.

    Args:
        split: ``"train"`` (D_T) or ``"eval"`` (D_V).
        env, arguments: See :func:`~al_seg_env.registration.environment_spec`.

    Raises:
        ValueError: If the environment was made to acquire from the other one, or its budget is not in regions.
    """
    made_with = environment_spec(env).kwargs
    given, unit = made_with.get("split", split), made_with.get("budget_unit", "regions")
    check("split", given, given == split, f"{split!r}, which is what this job acquires from; omit it")
    check("budget_unit", unit, unit == "regions", "'regions', in which this job counts; omit it")
    return environment_spec(env, split=split, **arguments)


@contextmanager
def claimed(folder: str | Path, job: str, made_with: Mapping[str, Any], writes: Sequence[str] = ()) -> Iterator[Path]:
    """Lock a folder for a job, and record the job's settings in it.

    Args:
        folder: The folder; created if necessary.
        job: Kind of the job, such as ``"pretrain"``.
        made_with: Plain values on which the results depend.
        writes: Names of the files that the job writes, or patterns for them.

    Raises:
        ValueError: If another process uses the folder, or the folder has results of another job or configuration, or
            files of these names that no job wrote. The message says what differs.
    """
    folder = Path(folder)
    refuse_others(folder, writes, [MADE_WITH])
    here = {"job": job, **json.loads(json.dumps(made_with))}
    with folder_lock(folder):
        path = folder / MADE_WITH
        made = any(file.is_file() and file != path and file.name[0] != "." for file in folder.rglob("*"))
        if path.exists() and made:  # until then, a mistake can still be corrected
            refuse_differences(read_record(path), here, path)
        else:
            if path.exists():
                read_record(path)  # a file of that name that is somebody else's is not replaced
            write_record(path, here)
        yield folder


def described(value: Any) -> Any:
    """Return plain values as they are, and for functions and other objects what tells them apart: their names."""
    if isinstance(value, Mapping):
        return {name: described(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike | np.generic):
        return os.fspath(value) if isinstance(value, os.PathLike) else value.item()
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def identity(spec: EnvSpec) -> dict[str, Any]:
    """Return values that identify an environment on any machine: theta_0 and forecast by tensors, not by paths.

    Raises:
        ValueError: If the weights can't be read.
    """
    arguments = {name: described(value) for name, value in spec.kwargs.items() if name != "cache"}
    if isinstance(weights := arguments.get("weights"), str | Path):
        arguments["weights"] = weights_digest(weights)
    if isinstance(forecast := arguments.get("forecast"), str | Path):
        arguments["forecast"] = tree_digest(load_tree(forecast, FORECAST))
    return {"env": spec.id, "arguments": arguments}
