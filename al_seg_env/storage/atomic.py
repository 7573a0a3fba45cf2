"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the name of a temporary file to write; it takes the place of ``path`` once it is written and on the disk.

    Should anything fail, or the process be killed, ``path`` is what it was. Its folder is made if need be. What a
    process of this machine that was killed left unfinished of the same file is removed.

    Raises:
        OSError: If the folder cannot be written to, or the disk is full; the message says what was to be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, glob.escape(path.name))
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o666 & ~_UMASK)  # as any new file; safetensors makes its own for the owner alone
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


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what processes that are no more left unfinished of the files of a name, which may have wildcards."""
    for left in folder.glob(f".{name}.*"):
        if left.suffix[1:].isdigit() and not _is_running(int(left.suffix[1:])):
            left.unlink(missing_ok=True)


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
    """Write a file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as json, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as csv, whole or not at all."""
    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
