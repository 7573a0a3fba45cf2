"""A folder belongs to one process at a time."""

import os
import signal

import pytest
from processes import in_child

from al_seg_env.storage import folder_lock


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    def second():
        with (
            pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {os.getppid()} on "),
            folder_lock(tmp_path),
        ):
            pass

    with folder_lock(tmp_path):
        assert in_child(second) == 0
    with folder_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    def killed():
        with folder_lock(tmp_path / "new"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -9
    with folder_lock(tmp_path / "new"):
        pass
