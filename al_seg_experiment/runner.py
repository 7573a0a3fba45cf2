"""Running an experiment: its pieces, one after another or distributed over a Ray cluster."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from al_seg_env.learner.cpu_tuning import return_freed_memory
from al_seg_env.storage import folder_lock, remove_unfinished
from al_seg_env.storage.locking import HOLDER, LOCK
from al_seg_experiment import protocol
from al_seg_experiment.checking import check_data
from al_seg_experiment.experiment import Experiment
from al_seg_experiment.pieces import Piece, experiment_of, pieces
from al_seg_experiment.ray_cluster import run_on_ray
from al_seg_experiment.records import (
    EXPERIMENT,
    EXTENSIBLE,
    FINISHED,
    NUMERICS,
    PIECE,
    check_piece,
    claim,
    finish,
    gather,
    made_with,
    read_experiment,
    read_record,
    refuse_damage,
    refuse_differences,
    set_aside,
    weights_of,
    write_record,
)

logger = logging.getLogger(__name__)

WITH_WEIGHTS = ("theta_0", "query_theta_0", "forecast", "query")
"""Kinds of pieces that leave weights which others need."""

_UNFINISHED = re.compile(r"\..+\.unfinished")


def run(experiment: Experiment, folder: str | Path, ray_address: str | None = None) -> Path:
    """Run all unfinished pieces, and write ``results.csv``.

    Args:
        experiment: The experiment.
        folder: Folder for the results, which may hold earlier ones.
        ray_address: ``None`` runs one piece after another in this process; ``"local"`` starts Ray on this machine; any
            other text is the address of a cluster, all of whose machines must share the folder.

    Returns:
        The path of ``results.csv``.

    Raises:
        ValueError: If the folder is in use or holds results of another configuration, or data, budgets and agents do
            not match. Nothing has been run then.
    """
    folder = Path(folder)
    if not _check_folder(experiment, folder):
        check_data(experiment)  # before the folder is made
    with folder_lock(folder):
        begun = _check_folder(experiment, folder)
        if not begun:
            write_record(folder / EXPERIMENT, experiment.as_dict())
            write_record(folder / NUMERICS, _measured(experiment))
        numerics = read_record(folder / NUMERICS)
        _check_pieces(experiment, folder, numerics)
        for piece in pieces(experiment):
            set_aside(experiment, folder, piece)
        todo = [piece for piece in pieces(experiment) if not (folder / piece.name / FINISHED).exists()]
        if todo and begun:
            check_data(experiment)
        write_record(folder / EXPERIMENT, experiment.as_dict())
        work = partial(run_piece, experiment, folder.resolve(), numerics)
        if ray_address is None:
            for piece in tqdm(todo, desc=experiment.name):
                logger.info("running %s", piece.name)
                work(piece)
        elif todo:
            run_on_ray(work, todo, ray_address, experiment.cpus, experiment.gpus, experiment.name)
        return gather(experiment, folder)


def run_piece(experiment: Experiment, folder: Path, numerics: Mapping[str, Any], piece: Piece) -> None:
    """Run or resume one piece; the pieces that it needs must be finished.

    Args:
        experiment: The experiment.
        folder: The experiment's folder.
        numerics: Precision and memory layout that all pieces compute in.
        piece: The piece.

    Raises:
        ValueError: If a piece that it needs is damaged, or was made again and differs from the one that others used.
    """
    own = folder / piece.name
    needed = [each for each in pieces(experiment) if each.name in piece.needs]
    for each in needed:
        refuse_damage(experiment, folder, each)
    claim(folder, piece, made_with(experiment, piece, numerics, weights_of(folder, needed)))
    folders = {each.kind: folder / each.name for each in needed}
    places = {"cache": str(folder / "cache")} if experiment.cache else {}
    if "forecast" in folders:
        places["forecast"] = str(folders["forecast"] / protocol.FORECAST)
    part = experiment_of(experiment.with_arguments({**numerics, **places}), piece)
    weights = folders.get("theta_0", own) / protocol.WEIGHTS
    agent = folders["query"] / protocol.AGENT if "query" in folders else None
    work: dict[str, Callable[[], None]] = {
        "theta_0": lambda: protocol.pretrain(part, part.theta_0, own),
        "query_theta_0": lambda: protocol.pretrain(part, part.query_theta_0, own),
        "forecast": lambda: protocol.train_forecast(part, folders["query_theta_0"] / protocol.WEIGHTS, own),
        "query": lambda: protocol.train_query(
            part, folders["query_theta_0"] / protocol.WEIGHTS, own, piece.seed, piece.method
        ),
        "reference": lambda: protocol.run_theta_0(part, weights, own),
        "full": lambda: protocol.run_full(part, piece.seed, weights, own),
        "trial": lambda: protocol.run_trial(part, piece.method, piece.seed, weights, agent, own),
    }
    work[piece.kind]()
    return_freed_memory()  # an agent's replay is larger than what the next piece needs
    finish(experiment, folder, piece)
    if piece.kind in WITH_WEIGHTS:  # that were made again must be those that others had
        _check_pieces(experiment, folder, numerics)


def _check_pieces(experiment: Experiment, folder: Path, numerics: Mapping[str, Any]) -> None:
    """Refuse pieces, begun or finished, that were made with anything other than the current settings and files."""
    weights = weights_of(folder, [piece for piece in pieces(experiment) if piece.kind in WITH_WEIGHTS])
    for piece in pieces(experiment):
        check_piece(folder, piece, made_with(experiment, piece, numerics, weights))


def _check_folder(experiment: Experiment, folder: Path) -> bool:
    """Refuse a folder with results of another configuration or with other files; return whether a piece has begun."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder for the results")
    remove_unfinished(folder)
    begun = any(folder.rglob(PIECE))
    if (folder / EXPERIMENT).exists():
        if begun:
            stored = read_experiment(folder)
            _check_agents(experiment, stored, folder)
            refuse_differences(_settled(stored), _settled(experiment), folder / EXPERIMENT)
        else:
            read_record(folder / EXPERIMENT)  # a file of that name that is somebody else's is not replaced
    elif begun:
        raise ValueError(
            f"{folder / EXPERIMENT} is missing, and {folder} holds pieces of an experiment; restore it, or choose "
            "another folder"
        )
    elif others := [path.name for path in sorted(folder.iterdir()) if not _is_left_over(path.name)]:
        raise ValueError(f"{folder} holds other files and no experiment, such as {others[0]}; choose a new folder")
    return begun


def _is_left_over(name: str) -> bool:
    """Return whether a file may precede all others: the lock, or an interrupted first write."""
    return name in (LOCK, HOLDER) or _UNFINISHED.fullmatch(name) is not None


def _settled(experiment: Experiment) -> dict[str, Any]:
    """Return the entries that must not change once a piece has begun."""
    entries = {name: value for name, value in experiment.as_dict().items() if name not in EXTENSIBLE}
    return {**entries, "query": {name: value for name, value in entries["query"].items() if name != "references"}}


def _check_agents(experiment: Experiment, stored: Experiment, folder: Path) -> None:
    """Refuse a different first seed if one agent, trained with the first seed, serves all."""
    one = not experiment.query.per_seed and not stored.query.per_seed
    if one and experiment.learnt_methods and stored.learnt_methods and experiment.seeds[0] != stored.seeds[0]:
        raise ValueError(
            f"seeds is {list(stored.seeds)} in {folder}, {list(experiment.seeds)} here: with query.per_seed false, the "
            f"first seed is that of the one agent, and {folder} holds an agent of seed {stored.seeds[0]}. Put "
            f"{stored.seeds[0]} first, or choose another folder"
        )


def _measured(experiment: Experiment) -> dict[str, Any]:
    """Return the precision and memory layout for all pieces, which are measured only once."""
    learner = protocol.make_environment(experiment, split="eval").learner
    return dict(getattr(learner, "numerics", {}))
