"""Reading regular files, and JSON in them."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any


def require_file(path: Path) -> None:
    """Raise an OSError unless ``path`` is a regular file: opening a pipe waits, reading a device may never end."""
    if not path.is_file():
        found = "is a folder, pipe or device, not a file" if path.exists() else "does not exist or is a broken link"
        raise OSError(f"{path} {found}; put the file there")


def read_json(path: Path, expected: str) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file.
        expected: What it should hold; the end of the error message.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or an object in it has a key twice.
    """
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {expected}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"more than once in one object: {reprlib.repr(twice)}")
    return dict(pairs)
