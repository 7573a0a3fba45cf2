"""One process at a time in a folder: for long, or for a moment."""

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
    """Keep other processes out of a folder; it is made if need be.

    The operating system releases the lock when the process that holds it ends, however it ends.

    Raises:
        ValueError: If another process holds the lock; the message names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        held_by = holder.read_text(encoding="utf-8").strip() if holder.exists() else "another process"
        raise ValueError(
            f"{folder} is in use by {held_by}; two processes that write to one folder would spoil each other's "
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
    """Keep other processes from changing files of a folder for a moment; wait for one that does, up to a minute.

    The operating system releases the lock when the process that holds it ends, however it ends.

    Raises:
        OSError: If another process holds the lock for longer.
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
