"""Tests need no accelerator, and compare results bit by bit: all of them run on the CPU."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for a GPU
if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side would wait for each other's threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
