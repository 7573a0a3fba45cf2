"""Experiments that are killed at their writes, and run again."""

import itertools
import os
import shutil
import signal

import numpy as np
import pytest
from experiments import SMALLEST_EXPERIMENT as SMALLEST
from experiments import TINY_EXPERIMENT as TINY
from experiments import contents, quick_pieces, rows_of
from processes import in_child
from tqdm import tqdm

from al_seg_experiment import load_experiment, run


def run_killed_at(write, experiment, folder):
    """Run in a child that is killed just before its n-th call of os.fsync or os.replace; return its exit status."""

    def work():
        calls = itertools.count(1)

        def killing(original):
            def counted(*args, **kwargs):
                if next(calls) == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return counted

        os.fsync, os.replace = killing(os.fsync), killing(os.replace)
        run(experiment, folder)

    return in_child(work)


def test_killed_at_each_write_in_turn_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """All writes of the runner and of pieces that train nothing; those of the real ones are below."""
    quick_pieces(monkeypatch)
    experiment = load_experiment({**SMALLEST, "methods": ["dqn"]})
    run(experiment, tmp_path / "whole")
    undisturbed, folder = contents(tmp_path / "whole"), tmp_path / "killed"
    for write in itertools.count(1):
        status = run_killed_at(write, experiment, folder)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        run(experiment, folder)
        assert contents(folder) == undisturbed, write
        shutil.rmtree(folder)
    assert write > 2 * len(undisturbed)  # each file is brought to the disk, then renamed


@pytest.mark.slow
def test_killed_at_many_writes_one_run_after_another(whole, tmp_path):
    """The real pieces of one seed, each run killed a few writes after the one before it."""
    experiment = load_experiment({**TINY, "seeds": [0], "full": 1})
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    statuses = [run_killed_at(int(rng.integers(8, 25)), experiment, folder) for _ in range(6)]
    assert statuses.count(-signal.SIGKILL) >= 5
    assert in_child(lambda: run(experiment, folder)) == 0
    after, undisturbed = contents(folder), contents(whole)
    differ = ("result-", "finished.json", "checkpoint", "experiment.json", "results.csv")  # by clocks and seeds
    same = [name for name in after if not any(each in name for each in differ)]
    assert {name: after[name] for name in same} == {name: undisturbed[name] for name in same}
    assert len(same) > 20
    rows = rows_of(whole / "results.csv")
    assert rows_of(folder / "results.csv") == [row for row in rows if row["seed"] == "0"]


def test_a_process_that_is_killed_as_it_draws_a_bar_does_not_stop_others():
    locks = tqdm.get_lock().locks

    def draw():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(draw) == -signal.SIGKILL
    for lock in locks:
        assert lock.acquire(False)
        lock.release()


def test_killed_in_the_very_first_write(tmp_path, monkeypatch):
    quick_pieces(monkeypatch)
    experiment = load_experiment(SMALLEST)
    assert run_killed_at(1, experiment, tmp_path / "run") == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "run").iterdir()]
    assert any(name.endswith(".unfinished") for name in left)
    assert not any(name.endswith(".json") for name in left)
    assert in_child(lambda: run(experiment, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "results.csv").exists()
