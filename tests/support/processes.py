"""Processes of their own, killed or not."""

import os
import signal
import threading
import traceback
from contextlib import contextmanager

from tqdm import tqdm

KILLED = -signal.SIGPROF
"""Exit status of a process that was killed after some computing."""


def in_child(work, kill_after=None):
    """Run ``work`` in a forked process; return its exit status.

    It is killed, as abruptly as by SIGKILL, once it has computed for ``kill_after`` seconds. These are its own and not
    the clock's, so that a kill hits alike on a busy machine.
    """
    return os.waitstatus_to_exitcode(os.waitpid(_forked(work, kill_after), 0)[1])


@contextmanager
def killed_at_the_end(work):
    """Run ``work`` in a forked process for as long as the block runs."""
    pid = _forked(work)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _forked(work, kill_after=None):
    pid = os.fork()
    if pid == 0:
        status = 1
        tqdm.set_lock(threading.RLock())  # tqdm's is shared by forks: one that is killed at a bar would stop them all
        try:
            if kill_after is not None:
                signal.setitimer(signal.ITIMER_PROF, kill_after)
            work()
            status = 0
        except SystemExit as stop:
            status = 3 if stop.code else 0
        except BaseException:
            traceback.print_exc()  # os._exit would swallow it
        finally:
            os._exit(status)
    return pid
