"""Tests need no accelerator, and compare results bit for bit: all of them run on the CPU."""

import os

from hypothesis import HealthCheck, settings

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for a GPU
if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side would wait for each other's threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test must not fail because the machine is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
