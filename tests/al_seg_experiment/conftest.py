"""A finished experiment that several test files look at, copy and damage."""

import pytest
from experiments import TINY_EXPERIMENT
from filelock import FileLock
from processes import in_child

from al_seg_experiment import load_experiment, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory, worker_id):
    """The folder of a finished experiment, made once for all workers, in a child as the killed ones are; read-only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "whole"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.csv").exists():
            assert in_child(lambda: run(load_experiment(TINY_EXPERIMENT), folder)) == 0
    return folder
