"""Atomic writing of files."""

from __future__ import annotations

import csv
import fnmatch
import glob
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.(?P<machine>[0-9a-f]{8})\.(?P<process>[0-9]+)\.unfinished")
_UNFINISHED_BEFORE = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)")  # by versions before this form of names


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of ``path`` once it is written and on the disk.

    If anything fails, or the process is killed, ``path`` is what it was. Its folder is made if necessary. What
    processes of this machine that were killed left unfinished in it is removed.

    Raises:
        OSError: If the folder cannot be written to, or the disk is full; the message names the file.
    """
    path = Path(path)
    unfinished = path.with_name(unfinished_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, glob.escape(path.name))
        with unfinished.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode  # of any new file, as the umask says
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(unfinished, mode & 0o777)  # safetensors replaces its file by one for the owner alone
        os.replace(unfinished, path)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{path} could not be written ({error.strerror or error}); what was there before is unchanged. Free space, "
            "or choose another folder",
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """Return the name under which this process writes the file ``name``: short, and the same each time."""
    return f".{_digest(name, 8)}.{_digest(socket.gethostname(), 4)}.{os.getpid()}.unfinished"


def remove_unfinished(folder: str | Path, name: str) -> None:
    """Remove what processes of this machine that no longer run left unfinished in a folder.

    Args:
        folder: The folder; it need not exist.
        name: Name of the files they were writing, which may have wildcards. It matters only for what earlier versions
            of this project left, under names such as ``.results.csv.4321`` that others may use too.
    """
    machine = _digest(socket.gethostname(), 4)
    try:
        entries = os.listdir(folder)
    except OSError:  # there is no such folder, or it cannot be listed
        return
    for entry in entries:
        if not entry.startswith("."):
            continue
        if (found := _UNFINISHED.fullmatch(entry)) is not None:
            ours = found["machine"] == machine
        elif (found := _UNFINISHED_BEFORE.fullmatch(entry)) is not None:
            ours = fnmatch.fnmatchcase(found["name"], name)
        if found is not None and ours and not _is_running(int(found["process"])):
            Path(folder, entry).unlink(missing_ok=True)


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).hexdigest()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is not harmless
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
