"""A finished experiment that several test files look at, copy and damage."""

import pytest
from experiments import TINY_EXPERIMENT
from processes import in_child

from al_seg_experiment import load_experiment, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a finished experiment, made in a child as the killed ones are."""
    folder = tmp_path_factory.mktemp("experiment") / "whole"
    assert in_child(lambda: run(load_experiment(TINY_EXPERIMENT), folder)) == 0
    return folder
