"""What reaches beyond a learner happens on request, in one place."""

import copy
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_child
from torch import nn

from al_seg_env import LearnerConfig, TorchLearner
from al_seg_env.learner.cpu_tuning import keep_freed_memory, return_freed_memory, tune_for_cpu

OPTIONS = {"device": "cpu", "precision": "float32"}
# Notes what reaches beyond a learner, from before the first import on.
SPY = """
import ctypes, os
done = []
register, dlopen, umask = os.register_at_fork, ctypes.CDLL, os.umask
os.register_at_fork = lambda **hooks: (
    any("al_seg_env" in str(getattr(hook, "__module__", "")) for hook in hooks.values()) and done.append("fork"),
    register(**hooks),
)
ctypes.CDLL = lambda name=None, *rest, **more: (
    name is None and done.append("allocator"),
    dlopen(name, *rest, **more),
)[1]
os.umask = lambda mask: (done.append("umask"), umask(mask))[1]
import torch
from torch import nn
import al_seg_env
imported = list(done)
network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.GroupNorm(1, 3), nn.Upsample(scale_factor=1))
kinds = [type(layer) for layer in network]
"""


def python(code):
    """Run a program in a new process; return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_import_and_construction_change_nothing_and_tuning_what_its_docstring_lists_once():
    code = SPY + (
        "al_seg_env.TorchLearner(network, 3, device='cpu', precision='float32')\n"
        "print(imported, done, [type(layer) for layer in network] == kinds)\n"
        "for _ in range(2):\n"
        "    al_seg_env.TorchLearner(network, 3, device='cpu', precision='float32', tune_cpu=True)\n"
        "print(done, [type(layer) is not kind for layer, kind in zip(network, kinds)])"
    )
    assert python(code).splitlines() == ["[] [] True", "['allocator', 'fork'] [True, True, True]"]


def test_the_ids_build_tuned_learners_and_objects_are_left_alone():
    config = LearnerConfig("FPN", "tu-tf_mobilenetv3_small_minimal_100", **OPTIONS)

    def depthwise(network):
        return {type(m) for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1}

    assert nn.Conv2d not in depthwise(config.build(["a", "b"]).network)
    plain = LearnerConfig("FPN", "tu-tf_mobilenetv3_small_minimal_100", tune_cpu=False, **OPTIONS)
    assert nn.Conv2d in depthwise(plain.build(["a", "b"]).network)


def test_a_tuned_network_computes_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 1))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 12, 16), np.uint8))
    plain = TorchLearner(copy.deepcopy(network), 3, **OPTIONS)
    tuned = TorchLearner(network, 3, tune_cpu=True, **OPTIONS)
    assert plain.network.state_dict().keys() == tuned.network.state_dict().keys()
    torch.testing.assert_close(tuned.predict(images), plain.predict(images), atol=1e-5, rtol=1e-5)


def test_the_allocator_is_asked_on_any_system(monkeypatch):
    keep_freed_memory.cache_clear()
    for system in ("win32", "linux"):
        monkeypatch.setattr("sys.platform", system)
        keep_freed_memory.cache_clear()
        assert keep_freed_memory() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_kept_until_it_is_returned():
    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    keep_freed_memory()
    large = [torch.ones(2**20) for _ in range(30)]
    after = torch.ones(100)  # so that they are not the end of the heap
    before = resident()
    del large
    assert resident() > before - 20
    return_freed_memory()
    assert resident() < before - 100
    assert after.sum() == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forks_of_a_tuned_process_have_one_thread():
    tune_for_cpu(nn.Sequential())
    assert in_child(lambda: sys.exit(torch.get_num_threads() != 1)) == 0


WORKERS = """
import multiprocessing, torch
from fakes import make
from gymnasium.vector import AsyncVectorEnv
def work(connection):
    env = make()
    env.reset(seed=0)
    connection.send(torch.get_num_threads())
if __name__ == "__main__":
    assert torch.get_num_threads() == 2
    torch.randn(256, 256) @ torch.randn(256, 256)
    torch.randn(8, 64, 64, 64).exp().sum()  # starts this process's threads
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    process.start()
    assert here.poll(1500), "the worker hangs"
    print(here.recv())
    process.join()

    env = make()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    envs = AsyncVectorEnv([make] * 2, context="fork")
    envs.reset_async(seed=0)
    print(len(envs.reset_wait(timeout=1500)[0]["state"]))
    envs.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_workers_have_one_thread_and_do_not_hang_whether_their_parent_tuned_or_not():
    """In stable-baselines3's SubprocVecEnv(start_method="fork"), no environment is made in the parent."""
    assert python(f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n" + WORKERS).split() == ["1", "2"]
