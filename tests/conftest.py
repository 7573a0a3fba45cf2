"""Tests need no accelerator, and compare results bit by bit: all of them run on the CPU."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for a GPU
