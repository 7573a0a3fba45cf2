"""Distributing the pieces of an experiment over a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from al_seg_experiment.pieces import Piece

RETRIES = 5


def run_on_ray(
    work: Callable[[Piece], None], todo: Sequence[Piece], address: str, cpus: float, gpus: float, title: str
) -> None:
    """Run pieces as Ray tasks, each after those that it needs.

    A task whose worker dies is run again, on any machine, and resumes from the experiment's folder.

    Args:
        work: Runs a piece; it is pickled, and run on any machine.
        todo: The pieces, in an order in which they could be run.
        address: ``"local"`` for this machine, or the address of a cluster.
        cpus: CPU cores that a piece needs.
        gpus: GPUs that a piece needs.
        title: Title of the progress bar.

    Raises:
        ImportError: If Ray is not installed.
        ray.exceptions.RayError: If a piece fails for good; all finished pieces are kept.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('spreading trials needs Ray: pip install "al-seg-env[ray]"') from error
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    task: Any = ray.remote(_run_piece)
    task = task.options(max_retries=RETRIES, retry_exceptions=True, num_cpus=cpus, num_gpus=gpus)
    running: dict[str, Any] = {}
    for piece in todo:
        needs = [running[name] for name in piece.needs if name in running]
        running[piece.name] = task.remote(work, piece, max(1, int(cpus)), *needs)
    names = {reference: name for name, reference in running.items()}
    waiting = list(names)
    with tqdm(total=len(waiting), desc=title) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for reference in done:
                ray.get(reference)
                bar.set_postfix_str(names[reference])
                bar.update()


def _run_piece(work: Callable[[Piece], None], piece: Piece, threads: int, *_: None) -> None:
    import torch

    torch.set_num_threads(threads)
    work(piece)
