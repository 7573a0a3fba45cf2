"""Tests need no accelerator, and compare results bit for bit: all of them run on the CPU."""

import functools
import gc
import os
import zlib

import gymnasium.utils.seeding
import pytest
from hypothesis import HealthCheck, settings

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for a GPU
if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side would wait for each other's threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test must not fail because the machine is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_modifyitems(items):
    """Files with the longest tests are first, so that no process is left alone with one of them at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish():
    """What imports and the collection have made stays: it needs no walk at each collection of garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def the_same_draws_in_every_run(request, monkeypatch):
    """What nobody has seeded (an action space, a reset without a seed) draws the same whenever a test is run."""
    draw, calls = gymnasium.utils.seeding.np_random, []

    def seeded(seed=None):
        if seed is None:
            calls.append(None)
            seed = zlib.crc32(f"{request.node.nodeid} {len(calls)}".encode())
        return draw(seed)

    monkeypatch.setattr(gymnasium.utils.seeding, "np_random", seeded)


@pytest.fixture(autouse=True, scope="session")
def the_disk_is_not_waited_for():
    """What a killed process has written is there without it: only power failures, which no test makes, lose it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def folders_of_loggers_are_removed_with_those_of_tests(tmp_path_factory):
    """Stable-Baselines3 makes a folder for each training's logger, even where nothing is written to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.getbasetemp()))
        yield


@pytest.fixture(autouse=True, scope="session")
def how_encoders_are_divided_is_looked_up_once():
    """For each network, segmentation-models-pytorch makes its encoder a second time, only to read its strides."""
    import timm
    import torch

    create = timm.create_model
    known = functools.cache(functools.partial(create, features_only=True))

    def create_model(name, *arguments, **options):
        if not arguments and options == {"features_only": True} and torch.get_default_device().type == "meta":
            return known(name)
        return create(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_model)
        yield
