"""The folder of a training: one process at a time, kills in any write, and files that are damaged, moved or removed."""

import itertools
import os
import shutil
import signal
import warnings

import pytest
from fakes import closed_form_env
from processes import in_child
from stable_baselines3.common.callbacks import BaseCallback

from agents import Checkpoint, EpisodeRecorder, SubActionDQN

STEPS = 12


def dqn():
    return SubActionDQN("QueryPolicy", closed_form_env(), seed=0, device="cpu", batch_size=4, buffer_size=30)


def train(folder, steps=STEPS, *more):
    """Train as a process that a user starts again."""
    model, checkpoint = dqn(), Checkpoint(folder, every=2)
    checkpoint.resume(model)
    callbacks = [checkpoint, EpisodeRecorder(folder / "episodes.csv"), *more]
    model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)


def result(folder, tmp_path):
    """The agent and its episodes, as bytes; checkpoints hold clock readings."""
    model = dqn()
    assert Checkpoint(folder).resume(model)
    assert model.num_timesteps == STEPS
    model.save(tmp_path / "agent.safetensors")
    episodes = folder / "episodes.csv"
    return (tmp_path / "agent.safetensors").read_bytes(), episodes.read_text() if episodes.exists() else None


class At(BaseCallback):
    """Do something in the middle of training."""

    def __init__(self, step, what):
        super().__init__()
        self.step, self.what = step, what

    def _on_step(self):
        if self.num_timesteps == self.step:
            self.what()
        return True


def stop():
    raise InterruptedError


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A training that ended after 8 of 12 steps, and the result of an undisturbed one."""
    folder = tmp_path_factory.mktemp("begun")
    train(folder / "run", 8)
    train(folder / "whole")
    return folder / "run", result(folder / "whole", folder)


def files(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def duplicate(path):
    """Under the name of a later checkpoint, or beside."""
    name = "checkpoint-000000009.safetensors" if path.suffix == ".safetensors" else "copy.csv"
    shutil.copy(path, path.with_name(name))


def swap(path):
    other = next(each for each in files(path.parent) if each != path)
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def add(path):
    path.with_name("checkpoint-000000099.safetensors").write_bytes(b"not from here")
    path.with_name("notes.txt").write_text("somebody's")


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [remove, empty, truncate, flip, duplicate, swap, add, make_folder])
@pytest.mark.parametrize("number", range(3))
def test_each_file_that_is_changed_leads_to_the_same_result_or_is_named(change, number, begun, tmp_path):
    folder, whole = begun
    shutil.copytree(folder, tmp_path / "run")
    names = [path.name for path in files(folder)]
    assert names == ["checkpoint-000000006.safetensors", "checkpoint-000000008.safetensors", "episodes.csv"]
    changed = tmp_path / "run" / names[number]
    change(changed)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            train(tmp_path / "run")
        except (ValueError, OSError) as error:
            assert str(changed) in str(error)  # noqa: PT017
            assert change is make_folder or (change is swap and number < 2)
        else:
            assert result(tmp_path / "run", tmp_path) == whole


@pytest.mark.filterwarnings("ignore:A checkpoint can't be used")
def test_checkpoints_that_swapped_their_names_are_named(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    older, newer, _ = files(tmp_path / "run")
    kept = older.read_bytes()
    older.write_bytes(newer.read_bytes())
    newer.write_bytes(kept)
    with (
        pytest.warns(UserWarning, match="holds 6 environment steps; expected 8"),
        pytest.raises(
            ValueError, match=rf"None of the 2 checkpoints .*{older.name} holds 8 environment steps; expected 6"
        ),
    ):
        train(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:A checkpoint can't be used")
def test_damaged_checkpoints_of_later_steps_do_not_displace_whole_ones(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    for number in (97, 98, 99):
        (tmp_path / "run" / f"checkpoint-0000000{number}.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint-000000097"):
        train(tmp_path / "run")
    with pytest.warns(UserWarning, match="checkpoint-000000097"):
        assert result(tmp_path / "run", tmp_path) == begun[1]


def test_a_kill_in_each_of_the_first_writes_leaves_a_folder_that_training_continues_in(begun, tmp_path):
    def killed_at(call, name, folder):
        calls, function = itertools.count(), getattr(os, name)

        def killing(*args):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        setattr(os, name, killing)
        train(folder)

    for name, call in itertools.product(("fsync", "replace"), range(4)):
        folder = tmp_path / f"{name}-{call}"
        assert in_child(lambda: killed_at(call, name, folder)) == -9  # noqa: B023
        train(folder)
        assert result(folder, tmp_path) == begun[1]
        assert not list(folder.glob(".*.safetensors.*"))


def test_a_second_process_is_kept_out_from_resume_to_the_end_of_training(begun, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    statuses = []

    def try_it():
        def other():
            message = rf"run is in use by process {os.getppid()} on .*Wait for it to end, stop it, or choose another"
            for attempt in (lambda: Checkpoint(tmp_path / "run").resume(dqn()), lambda: train(tmp_path / "run")):
                with pytest.raises(ValueError, match=message):
                    attempt()

        statuses.append(in_child(other))

    train(tmp_path / "run", STEPS, At(10, try_it))
    assert statuses == [0]
    checkpoint, model = Checkpoint(tmp_path / "run"), dqn()
    assert checkpoint.resume(model)
    try_it()
    assert statuses == [0, 0]
    del checkpoint  # released with it
    assert in_child(lambda: Checkpoint(tmp_path / "run").resume(dqn())) == 0
    assert result(tmp_path / "run", tmp_path) == begun[1]


def test_a_training_that_failed_can_be_tried_again_in_the_same_process(begun, tmp_path):
    kept = []
    for step in (5, 9):
        with pytest.raises(InterruptedError) as error:
            train(tmp_path / "run", STEPS, At(step, stop))
        kept.append(error)  # its traceback holds the callbacks, as a notebook does
    train(tmp_path / "run")
    assert in_child(lambda: Checkpoint(tmp_path / "run").resume(dqn())) == 0
    assert result(tmp_path / "run", tmp_path) == begun[1]


def test_a_killed_process_holds_nothing(begun, tmp_path):
    def killed():
        train(tmp_path / "run", STEPS, At(9, lambda: os.kill(os.getpid(), signal.SIGKILL)))

    assert in_child(killed) == -9
    assert (tmp_path / "run" / ".lock").exists()
    train(tmp_path / "run")
    assert result(tmp_path / "run", tmp_path) == begun[1]
