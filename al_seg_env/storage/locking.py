"""Locks that let only one process at a time use a folder, for a long time or for a moment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".lock-holder"
SHORT_LOCK, PATIENCE = ".short-lock", 60.0


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created if necessary.

    The operating system releases the lock when the process that holds it ends, however it ends.

    Raises:
        ValueError: If another process holds the lock. The message names that process.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        held_by = holder.read_text(encoding="utf-8").strip() if holder.exists() else "another process"
        raise ValueError(
            f"{folder} is in use by {held_by}; two processes that write to the same folder would corrupt each other's "
            "results. Wait for it to end, stop it, or choose another folder"
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def short_lock(folder: str | Path) -> Iterator[None]:
    """Keep other processes from changing files of a folder for a moment.

    If another process holds the lock, wait for it, for a minute at most.

    The operating system releases the lock when the process that holds it ends, however it ends.

    Raises:
        OSError: If another process holds the lock for longer than that.
    """
    lock = FileLock(Path(folder) / SHORT_LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise OSError(
            f"another process has been changing files in {folder} for {PATIENCE:.0f} s; stop it if it hangs"
        ) from error
    try:
        yield
    finally:
        lock.release()
