"""Folders of long jobs: each belongs to one process at a time, and to one configuration for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

from al_seg_env.learner.weights import weights_digest
from al_seg_env.observation.forecast import KIND as FORECAST
from al_seg_env.storage import folder_lock, load_tree, tree_digest
from al_seg_experiment.records import read_record, refuse_differences, write_record

MADE_WITH = "made_with.json"


@contextmanager
def claimed(folder: str | Path, job: str, made_with: Mapping[str, Any]) -> Iterator[Path]:
    """Hold a folder for a job, and note in it what the job is made with.

    Args:
        folder: Made if need be.
        job: What kind of job it is, such as ``"pretrain"``.
        made_with: Plain values on which the results depend.

    Raises:
        ValueError: If another process holds the folder, or it holds results of another job or configuration; the
            message says what differs.
    """
    folder = Path(folder)
    here = {"job": job, **json.loads(json.dumps(made_with))}
    with folder_lock(folder):
        path = folder / MADE_WITH
        made = any(file.is_file() and file != path and file.name[0] != "." for file in folder.rglob("*"))
        if path.exists() and made:  # before that, a mistake can still be mended
            refuse_differences(read_record(path), here, folder)
        else:
            write_record(path, here)
        yield folder


def identity(spec: EnvSpec) -> dict[str, Any]:
    """Return what identifies an environment on any machine: theta_0 and forecast by their tensors, not by their paths.

    Raises:
        ValueError: If the weights can't be read.
    """
    arguments = {name: value for name, value in spec.kwargs.items() if name != "cache"}
    if isinstance(weights := arguments.get("weights"), str):
        arguments["weights"] = weights_digest(weights)
    if isinstance(forecast := arguments.get("forecast"), str):
        arguments["forecast"] = tree_digest(load_tree(forecast, FORECAST))
    return {"env": spec.id, "arguments": arguments}
