"""Pieces of an experiment spread over a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from al_seg_experiment.experiment import Experiment

if TYPE_CHECKING:
    from al_seg_experiment.runner import Piece

RETRIES = 5


def run_on_ray(experiment: Experiment, folder: Path, todo: Sequence[Piece], address: str) -> None:
    """Run pieces as Ray tasks, each after those that it needs.

    A task whose worker dies is run again, on any machine, and goes on from what is stored in the folder.

    Args:
        experiment: What is run; its ``cpus`` and ``gpus`` are declared to Ray for each piece.
        folder: Where results are; every machine must see it under this path.
        todo: The pieces, in an order in which they could be run.
        address: ``"local"`` for this machine, or the address of a cluster.

    Raises:
        ImportError: Without Ray.
        ray.exceptions.RayError: If a piece fails for good; whatever else is finished is kept.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('spreading trials needs Ray: pip install "al-seg-env[ray]"') from error
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    options: dict[str, Any] = {"num_cpus": experiment.cpus, "num_gpus": experiment.gpus}
    task: Any = ray.remote(_run_piece)
    task = task.options(max_retries=RETRIES, retry_exceptions=True, **options)
    running: dict[str, Any] = {}
    for piece in todo:
        needs = [running[name] for name in piece.needs if name in running]
        running[piece.name] = task.remote(experiment, str(folder.resolve()), piece, *needs)
    names = {reference: name for name, reference in running.items()}
    waiting = list(names)
    with tqdm(total=len(waiting), desc=experiment.name) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for reference in done:
                ray.get(reference)
                bar.set_postfix_str(names[reference])
                bar.update()


def _run_piece(experiment: Experiment, folder: str, piece: Piece, *_: None) -> None:
    import torch

    from al_seg_experiment.runner import run_piece

    torch.set_num_threads(max(1, int(experiment.cpus)))
    run_piece(experiment, Path(folder), piece)
