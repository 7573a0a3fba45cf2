"""Processes of their own, killed or not."""

import os
import signal
import time
import traceback
from contextlib import contextmanager


def in_child(work, kill_after=None):
    """Run ``work`` in a forked process, killed after this many seconds; return its exit status, -9 if it was killed."""
    pid = _forked(work)
    if kill_after is not None:
        until = time.monotonic() + kill_after
        while time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def killed_at_the_end(work):
    """Run ``work`` in a forked process for as long as the block runs."""
    pid = _forked(work)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _forked(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as stop:
            status = 3 if stop.code else 0
        except BaseException:
            traceback.print_exc()  # os._exit would swallow it
        finally:
            os._exit(status)
    return pid
