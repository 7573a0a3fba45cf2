"""Atomic writing of files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.(?P<machine>[0-9a-f]{8})\.(?P<process>[0-9]+)\.unfinished")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces ``path`` once it is written and on the disk.

    If anything fails, or the process is killed, ``path`` stays unchanged. Its folder is created if necessary.
    Unfinished files that killed processes of this machine left in the folder are removed.

    Raises:
        OSError: If the folder cannot be written to, or the disk is full; the message names the file.
    """
    path = Path(path)
    unfinished = path.with_name(unfinished_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent)
        with unfinished.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode  # of a new file under the umask
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(unfinished, mode & 0o777)  # safetensors writes files that only the owner may read
        os.replace(unfinished, path)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{path} could not be written ({error.strerror or error}); an earlier file is unchanged. Free space, or "
            "choose another folder",
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """Return the temporary name for the file ``name`` in this process: short, and the same each time."""
    return f".{_digest(name, 8)}.{_digest(socket.gethostname(), 4)}.{os.getpid()}.unfinished"


def remove_unfinished(folder: str | Path) -> None:
    """Remove unfinished files and folders in a folder that processes of this machine left when they were killed.

    The folder need not exist.
    """
    machine = _digest(socket.gethostname(), 4)
    try:
        entries = os.listdir(folder)
    except OSError:  # the folder does not exist or cannot be listed
        return
    for entry in entries:
        found = _UNFINISHED.fullmatch(entry)
        if found is not None and found["machine"] == machine and not _is_running(int(found["process"])):
            left = Path(folder, entry)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).hexdigest()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere, signal 0 is not harmless
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as JSON atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as csv atomically."""
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
