"""Temporary files: short names, the mode of any new file, and nothing of a killed process left."""

import os
import signal
import threading

import pytest
from processes import in_child

from al_seg_env.storage import remove_unfinished, replacing, write_csv, write_text
from al_seg_env.storage.atomic import unfinished_name

GONE = 2**22 + 1  # no process has this number


def killed_while_writing(path):
    def work():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -9


@pytest.mark.parametrize("name", ["東" * 80 + ".png", "x" * 251 + ".csv", "a.csv"])
def test_every_name_that_a_file_may_have_can_be_written(tmp_path, name):
    write_text(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"
    assert os.listdir(tmp_path) == [name]


def test_a_kill_in_the_very_first_write_leaves_a_folder_that_can_be_emptied(tmp_path):
    killed_while_writing(tmp_path / "experiment.json")
    assert len(os.listdir(tmp_path)) == 1
    remove_unfinished(tmp_path)
    assert not os.listdir(tmp_path)


def test_the_next_write_of_any_file_removes_what_was_left(tmp_path):
    killed_while_writing(tmp_path / "checkpoint-10.safetensors")
    write_text(tmp_path / "checkpoint-20.safetensors", "whole")
    assert os.listdir(tmp_path) == ["checkpoint-20.safetensors"]


def test_files_of_others_stay(tmp_path, monkeypatch):
    ours = unfinished_name("a.csv")
    monkeypatch.setattr("socket.gethostname", lambda: "another machine")
    elsewhere = unfinished_name("a.csv").replace(f".{os.getpid()}.", f".{GONE}.")
    monkeypatch.undo()
    kept = {ours, elsewhere, f".other.{GONE}", f".a.csv.{GONE}", ".a.csv.old", f"a.csv.{GONE}", ".hidden"}
    for name in kept:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == kept


def test_a_folder_that_does_not_exist_has_nothing_unfinished(tmp_path):
    remove_unfinished(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_of_any_new_one(tmp_path, umask):
    """Also where the mask changes after the import."""
    before = os.umask(umask)
    try:
        write_csv(tmp_path / "a.csv", [{"a": 1}])
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_does_not_touch_the_umask(tmp_path, monkeypatch):
    """Reading it means setting it, for all threads: a file that another makes meanwhile would be open to everyone.

    That importing does not touch it either is tested with all that an import leaves alone, in test_cpu_tuning.py.
    """
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("touched"))
    write_text(tmp_path / "a", "whole")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "whole"


def test_threads_write_different_files_side_by_side(tmp_path):
    threads = [threading.Thread(target=write_text, args=(tmp_path / str(i), str(i))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(i): str(i) for i in range(20)}
